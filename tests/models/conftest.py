"""Tiny CLIPs for tests, built without random generators (which take long to compile)."""

import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from qualiclip_jax import models


def build_clip(config: models.CLIPConfig, seed: int = 0) -> models.CLIP:
    """A CLIP in which every parameter and every running statistic has an effect."""
    _, shapes = models.to_pure(nnx.eval_shape(lambda: models.CLIP(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise, name = rng.standard_normal(leaf.shape).astype(np.float32), path[-1].key
        if name in ("var", "scale", "deviation"):
            return np.exp(0.2 * noise)
        return noise * (np.prod(leaf.shape[-4:-1]) ** -0.5 if name == "kernel" else 0.1)

    return models.from_pure(config, jax.tree_util.tree_map_with_path(draw, shapes))


@pytest.fixture(scope="session")
def build():
    """`build(config)` gives a CLIP."""
    return build_clip


@pytest.fixture(scope="session")
def state() -> dict[str, np.ndarray]:
    """A ViT under OpenAI's names."""
    with np.load(pathlib.Path(__file__).parents[1] / "golden" / "clip_vit_tiny.npz") as golden:
        return {key.removeprefix("state/"): golden[key].copy() for key in golden if key.startswith("state/")}
