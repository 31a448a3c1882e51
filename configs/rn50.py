"""RN50, the paper's backbone, with our recipe: bfloat16, larger batch, warm-up and cosine, photos at several scales.

    python -m qualiclip_jax.train --config configs/rn50.py --workdir runs/rn50

Weights: OpenAI's RN50, 408 MB, fetched on first use; or its RN50.pt with --config.model.weights=RN50.pt.
Data as in configs/vitb.py. The paper's own recipe is in configs/rn50_paper.py.
Hours and resulting correlations: not measured yet.
"""

from qualiclip_jax.training.config import recommended_config


def get_config():
    """As `configs/vitb.py` with RN50, no positional embedding, BatchNorm frozen."""
    c = recommended_config()
    c.model.weights = "RN50"
    c.model.position = "none"
    return c
