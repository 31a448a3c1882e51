"""ViT-L/14 on the pristine photos of KADIS-700k: the largest of OpenAI's, with activations computed again to fit.

    python -m qualiclip_jax.train --config configs/vitl.py --workdir runs/vitl

Weights: OpenAI's ViT-L/14, 1.7 GB. Data as in configs/vitb.py.
Work: 20,000 steps of 32 images x 10 crops; meant for several accelerators or one with 80 GB.
Hours and resulting correlations: not measured yet.
"""

from qualiclip_jax.training.config import recommended_config


def get_config():
    """As `configs/vitb.py`, half the batch, half the learning rate, rematerialisation."""
    c = recommended_config()
    c.batch_size = 32
    c.learning_rate = 1.5e-6
    c.model.weights = "ViT-L/14"
    c.model.position = "interpolate"
    c.model.remat = True
    return c
