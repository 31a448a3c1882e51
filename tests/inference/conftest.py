"""Small models and some photos, for all tests of scoring."""

import numpy as np
import pytest
from small_models import EFFICIENTNET, RESNET, VIT, make_model

from qualiclip_jax import QualiCLIP


@pytest.fixture(scope="session")
def resnet() -> QualiCLIP:
    return make_model(RESNET)


@pytest.fixture(scope="session")
def vit() -> QualiCLIP:
    return make_model(VIT)


@pytest.fixture(scope="session")
def efficientnet() -> QualiCLIP:
    return make_model(EFFICIENTNET)


@pytest.fixture(scope="session", params=["resnet", "efficientnet"])
def convolutional(request) -> QualiCLIP:
    """Encoders that take tiles and slices."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Images uint8 of different sizes and contents."""
    rng = np.random.default_rng(1)
    sizes = [(64, 64), (33, 47), (64, 64), (97, 130), (131, 96), (40, 200), (96, 128), (32, 32)]
    return [_photo(rng, *size) for size in sizes]


def _photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = sum(np.sin(x * rng.normal() / 5 + y * rng.normal() / 5 + rng.random()) for _ in range(4))
    noise = rng.normal(scale=rng.uniform(0, 30), size=(height, width, 3))
    return np.clip(128 + 40 * waves[..., None] * rng.uniform(-1, 1, 3) + noise, 0, 255).astype(np.uint8)
