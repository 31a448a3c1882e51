"""ViT-B/32 on the pristine photos of KADIS-700k: a quarter of ViT-B/16's work, to try things.

    python -m qualiclip_jax.train --config configs/vitb32.py --workdir runs/vitb32

Weights: OpenAI's ViT-B/32, 605 MB. Data and everything else as in configs/vitb.py.
Hours and resulting correlations: not measured yet.
"""

from qualiclip_jax.training.config import recommended_config


def get_config():
    """As `configs/vitb.py`, with patches of 32 pixels."""
    c = recommended_config()
    c.model.weights = "ViT-B/32"
    c.model.position = "interpolate"
    return c
