"""Models to write: one of each encoder, with positional embeddings that count."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from qualiclip_jax import QualiCLIP, checkpoint
from tests.small_models import EFFICIENTNET, RESNET, SIGLIP, VIT, make_model


@pytest.fixture(scope="session")
def models() -> dict[str, QualiCLIP]:
    naflex = dataclasses.replace(SIGLIP, image=dataclasses.replace(SIGLIP.image, resampling="bilinear"))
    return {
        "resnet": make_model(dataclasses.replace(RESNET, position="interpolate")),
        "vit": make_model(VIT),
        "siglip": make_model(naflex, bias=-2.0),
        "efficientnet": make_model(EFFICIENTNET, scored=2),
    }


@pytest.fixture(scope="session")
def images() -> list[np.ndarray]:
    """Batches of images uint8 [N, H, W, 3], the sides odd and even."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, shape, np.uint8) for shape in ((1, 33, 47, 3), (2, 97, 64, 3))]


@pytest.fixture(scope="session")
def expected(models, images) -> dict[str, list[np.ndarray]]:
    """The attributes of each batch by each model, as they are computed here."""
    of_all = {name: model.attributes([image for batch in images for image in batch]) for name, model in models.items()}
    return {name: [attributes[:1], attributes[1:]] for name, attributes in of_all.items()}


@pytest.fixture(scope="session")
def saved(models, tmp_path_factory) -> Path:
    """The EfficientNet as a checkpoint."""
    path = tmp_path_factory.mktemp("models") / "efficientnet"
    checkpoint.save_model(path, models["efficientnet"])
    return path
