"""QualiCLIP+ on CLIVE: learned context in the prompts of QualiCLIP, both encoders frozen, the published options.

    python -m qualiclip_jax.train --config configs/prompts_clive.py --workdir runs/prompts_clive

Weights: the authors' QualiCLIP (CC BY-NC 4.0), fetched on first use; or your own with --config.model.weights.
Data: clive, prepared as docs/datasets.md tells. It has no published parts: a tenth of the photos picks the best
checkpoint.
Numbers beside published ones need the splits of `qualiclip evaluate`.
Hours and resulting correlations: not measured yet.
"""

from qualiclip_jax.training.config import ratings_config


def get_config():
    """50 epochs of batches of 8 crops of 384 px, evaluated about once an epoch."""
    c = ratings_config("clive")
    c.eval.every = c.checkpoint.every = 131
    return c
