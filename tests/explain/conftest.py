"""The packaged model and small ones, for all tests of explanations."""

import pytest
from small_models import EFFICIENTNET, RESNET, VIT, make_model

from qualiclip_jax import QualiCLIP


@pytest.fixture(scope="session")
def packaged() -> QualiCLIP:
    return QualiCLIP.load("tiny")


@pytest.fixture(scope="session", params=[RESNET, EFFICIENTNET, VIT], ids=["resnet", "efficientnet", "vit"])
def small(request) -> QualiCLIP:
    return make_model(request.param)
