"""optax relies on JAX's ordinary type promotion; runs whose pictures are not the point draw none."""

import jax
import jax.numpy as jnp
import pytest

from qualiclip_jax import degradations
from qualiclip_jax.training import flops, loop


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def darkened(monkeypatch):
    """In place of every degradation, which takes long to compile, level l of L darkens by l / 2L."""

    def degrade_pairs(crops, types, keys, *, levels, among):
        share = jnp.arange(1, levels + 1, dtype=jnp.float32) / (2 * levels)
        return crops[:, None] / jnp.float32(255) * (1 - share[:, None, None, None, None])

    monkeypatch.setattr(degradations, "degrade_pairs", degrade_pairs)


@pytest.fixture(scope="module")
def plain_runs():
    """The runs of a module draw no pictures and do not measure the rate of the device."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_examples", "draw_curves"):
            patch.setattr(loop._Run, name, lambda *_: None)
        patch.setattr(flops, "matmul_rate", lambda _: 1.0)
        yield
