"""optax relies on JAX's ordinary type promotion; runs whose pictures are not the point draw none."""

import jax
import pytest

from qualiclip_jax.training import flops, loop


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def plain_runs():
    """The runs of a module draw no pictures and do not measure the rate of the device."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_examples", "draw_curves"):
            patch.setattr(loop._Run, name, lambda *_: None)
        patch.setattr(flops, "matmul_rate", lambda _: 1.0)
        yield
