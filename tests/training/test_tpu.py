"""The training step lowers for a TPU, which need not be there."""

import jax
import numpy as np
import pytest

from qualiclip_jax import train
from qualiclip_jax.training import build, parallel
from qualiclip_jax.training.state import create_state
from qualiclip_jax.training.step import train_step

TINY_VIT = __file__.replace("test_tpu", "tiny_vit")


@pytest.mark.parametrize(("types", "devices"), [("()", 1), ('("white_noise",)', 4)], ids=["all types", "fsdp"])
def test_the_step_lowers_for_a_tpu(types, devices):
    """JAX raises for an operation that a TPU lacks."""
    fields = [f"--config.degradations.types={types}", "--config.model.compute_dtype=bfloat16"]
    config, _, _ = train.parse(["--config", TINY_VIT, *fields])
    recipe, params, batch_stats = build.build_recipe(config, build.build_model(config), 10)
    spread = parallel.Fsdp(devices=jax.devices()[:devices])
    state = spread.put_state(create_state(params, batch_stats, recipe))
    crops, example = np.zeros((4, 2, 32, 32, 3), np.uint8), np.arange(4, dtype=np.uint32)
    batch = spread.put_batch({"crops": crops, "example": example})
    exported = jax.export.export(spread.compile(train_step, recipe), platforms=["tpu"])(state, batch)
    assert (exported.platforms, exported.nr_devices) == (("tpu",), devices)
