"""QualiCLIP+ on KonIQ-10k: learned context in the prompts of QualiCLIP, both encoders frozen, the published options.

    python -m qualiclip_jax.train --config configs/prompts_koniq.py --workdir runs/prompts_koniq

Weights: the authors' QualiCLIP (CC BY-NC 4.0), fetched on first use; or your own with --config.model.weights.
Data: koniq10k, prepared as docs/datasets.md tells. Trains on the published training part, and picks the best
checkpoint by the validation part (the published options pick it by the test part). The test part is for
`qualiclip evaluate`.
Hours and resulting correlations: not measured yet.
"""

from qualiclip_jax.training.config import ratings_config


def get_config():
    """50 epochs of batches of 8 crops of 384 px, evaluated about once an epoch."""
    c = ratings_config("koniq10k")
    c.eval.every = c.checkpoint.every = 883
    return c
