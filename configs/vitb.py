"""ViT-B/16 on the pristine photos of KADIS-700k: the recipe to start from.

    python -m qualiclip_jax.train --config configs/vitb.py --workdir runs/vitb
    python -m qualiclip_jax.train --config configs/vitb.py --config.data.source=folder:my_photos

Weights: OpenAI's ViT-B/16 (600 MB, fetched on first use; any other name of `qualiclip models`, or a path, with
--config.model.weights=...).
Data: `python -m qualiclip_jax.data prepare kadis700k --manual-dir DIR`, or any folder of good photos.
Work: 20,000 steps of 64 images x 10 crops in bfloat16; on one NVIDIA H200 0.18 s and 41 GiB a step, so an hour.
Resulting correlations: not measured yet.
"""

from qualiclip_jax.training.config import recommended_config


def get_config():
    """ViT-B/16, bfloat16, AdamW with warm-up and cosine."""
    c = recommended_config()
    c.model.weights = "ViT-B/16"
    c.model.position = "interpolate"
    return c
