"""ViT-H/14 on the pristine photos of KADIS-700k, spread over several accelerators.

    python -m qualiclip_jax.train --config configs/vith.py --workdir runs/vith
    python -m qualiclip_jax.train --config configs/vith.py --workdir runs/vitbigg --config.model.weights=ViT-bigG-14

Weights: LAION's ViT-H/14 (3.9 GB) or ViT-bigG/14 (10 GB). Data as in configs/vitb.py.
Work: 20,000 steps of 32 images x 10 crops, on 8 accelerators of 16 GB or more; docs/training.md has a table of memory.
Hours and resulting correlations: not measured; it has never run.
"""

from qualiclip_jax.training.config import recommended_config


def get_config():
    """As `configs/vitl.py`, with parameters and optimizer spread over the devices."""
    c = recommended_config()
    c.parallel = "fsdp"
    c.batch_size = 32
    c.learning_rate = 1.5e-6
    c.model.weights = "ViT-H-14"
    c.model.position = "interpolate"
    c.model.remat = True
    return c
