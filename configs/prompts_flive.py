"""QualiCLIP+ on FLIVE: learned context in the prompts of QualiCLIP, both encoders frozen, the published options.

    python -m qualiclip_jax.train --config configs/prompts_flive.py --workdir runs/prompts_flive

Weights: the authors' QualiCLIP (CC BY-NC 4.0), fetched on first use; or your own with --config.model.weights.
Data: flive, prepared as docs/datasets.md tells. Trains on the published training part, and picks the best
checkpoint by the validation part (the published options pick it by the test part). The test part is for
`qualiclip evaluate`.
Hours and resulting correlations: not measured yet.
"""

from qualiclip_jax.training.config import ratings_config


def get_config():
    """50 epochs of batches of 8 crops of 384 px, evaluated about once an epoch."""
    c = ratings_config("flive")
    c.eval.every = c.checkpoint.every = 3782
    c.data.short_side = (384, 416)
    return c
