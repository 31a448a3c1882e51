"""QualiCLIP+ on SPAQ: learned context in the prompts of QualiCLIP, both encoders frozen, the published options.

    python -m qualiclip_jax.train --config configs/prompts_spaq.py --workdir runs/prompts_spaq

Weights: the authors' QualiCLIP (CC BY-NC 4.0), fetched on first use; or your own with --config.model.weights.
Data: spaq, prepared as docs/datasets.md tells. It has no published parts: a tenth of the photos picks the best
checkpoint.
Photos are shrunk to a shorter side of 512 px in training; scoring takes them whole.
Hours and resulting correlations: not measured yet.
"""

from qualiclip_jax.training.config import ratings_config


def get_config():
    """50 epochs of batches of 8 crops of 384 px, evaluated about once an epoch."""
    c = ratings_config("spaq")
    c.eval.every = c.checkpoint.every = 1252
    c.data.short_side = (512, 512)
    return c
