"""Tiny CLIPs for tests."""

import pathlib

import numpy as np
import pytest
from small_models import build_clip


@pytest.fixture(scope="session")
def build():
    """`build(config)` gives a CLIP."""
    return build_clip


@pytest.fixture(scope="session")
def state() -> dict[str, np.ndarray]:
    """A ViT under OpenAI's names."""
    with np.load(pathlib.Path(__file__).parents[1] / "golden" / "clip_vit_tiny.npz") as golden:
        return {key.removeprefix("state/"): golden[key].copy() for key in golden if key.startswith("state/")}
