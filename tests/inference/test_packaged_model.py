"""The model in the package: its scores on fixed images are golden."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage import data

from qualiclip_jax import QualiCLIP

# After the model has been replaced: python -m pytest tests/inference/test_packaged_model.py prints the new values.
GOLDEN = {
    "chelsea": 0.86218,
    "chelsea, blurred": 0.29386,
    "chelsea, noisy": 0.4629,
    "coffee, a quarter of the size": 0.98381,
    "rocket, a corner": 0.70647,
}


def images():
    """By name: uint8 [H, W, 3], of different sizes; degraded by Pillow and NumPy, not by this package."""
    chelsea = data.chelsea()
    noise = np.random.default_rng(0).normal(0, 25, chelsea.shape)
    small = Image.fromarray(data.coffee()).resize((150, 100), Image.Resampling.LANCZOS)
    return {
        "chelsea": chelsea,
        "chelsea, blurred": np.asarray(Image.fromarray(chelsea).filter(ImageFilter.GaussianBlur(2))),
        "chelsea, noisy": np.clip(chelsea + noise, 0, 255).astype(np.uint8),
        "coffee, a quarter of the size": np.asarray(small),
        "rocket, a corner": data.rocket()[:97, 300:431],
    }


@pytest.fixture(scope="module")
def scores():
    return dict(zip(images(), map(float, QualiCLIP.load("tiny").score(list(images().values())))))


def test_scores_are_golden(scores):
    rounded = {name: round(score, 5) for name, score in scores.items()}
    assert scores == pytest.approx(GOLDEN, abs=1e-4), f"{rounded}"


def test_degraded_versions_score_lower(scores):
    assert scores["chelsea"] > scores["chelsea, noisy"] + 0.05
    assert scores["chelsea"] > scores["chelsea, blurred"] + 0.05
