"""The training step as a pure function: accumulation, averaging, keys, precision, and that it compiles once."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qualiclip_jax import degradations, train
from qualiclip_jax.training import build, parallel
from qualiclip_jax.training.state import create_state
from qualiclip_jax.training.step import degrade_batch, loss_fn, train_step
from tests.training.quick_train import add_noise

TINY = __file__.replace("test_step", "tiny")


@pytest.fixture(autouse=True)
def _cheap_degradation(monkeypatch):
    monkeypatch.setattr(degradations, "degrade_pairs", add_noise)


@pytest.fixture(scope="module")
def run():
    """(recipe, state, batch) of the tiny run."""
    with jax.numpy_dtype_promotion("standard"):
        config, _, _ = train.parse(["--config", TINY])
        model = build.build_model(config)
        recipe, params, batch_stats = build.build_recipe(config, model, 10)
        crops = np.random.default_rng(0).integers(0, 256, (4, 2, 32, 32, 3), np.uint8)
        batch = {"crops": jnp.array(crops), "example": jnp.arange(4, dtype=jnp.uint32)}
        return recipe, create_state(params, batch_stats, recipe), batch


def jitted(recipe):
    return jax.jit(lambda state, batch: train_step(state, batch, recipe=recipe))


def test_accumulation_changes_nothing_but_the_order_of_sums(run):
    recipe, state, batch = run
    whole, metrics = jitted(recipe)(state, batch)
    parts, metrics_of_parts = jitted(dataclasses.replace(recipe, accumulate=2))(state, batch)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], metrics_of_parts[name], rtol=2e-4, atol=1e-6, err_msg=name)
    # Adam's first step is the sign of the gradient times the rate: compare the moments, not the parameters.
    for a, b in zip(jax.tree.leaves(whole.opt_state), jax.tree.leaves(parts.opt_state)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_average_of_parameters(run):
    recipe, state, batch = run
    recipe = dataclasses.replace(recipe, ema_decay=0.75)
    state = create_state(state.params, state.batch_stats, recipe)
    after, _ = jitted(recipe)(state, batch)
    for old, new, average in zip(*map(jax.tree.leaves, (state.params, after.params, after.ema))):
        np.testing.assert_allclose(average, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-7)


def test_gradient_against_finite_differences(run):
    recipe, state, batch = run
    images = jax.jit(lambda b: degrade_batch(b["crops"], b["example"], recipe))(batch)
    loss = jax.jit(lambda params: loss_fn(params, state.batch_stats, images, recipe, None)[0])
    gradient = jax.grad(loss)(state.params)
    norm = sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient))
    step = 1e-4 / jnp.sqrt(norm)  # small: the hinges bend
    moved = lambda sign: jax.tree.map(lambda p, g: p + sign * step * g, state.params, gradient)
    slope = (loss(moved(1)) - loss(moved(-1))) / (2 * step)
    np.testing.assert_allclose(slope, norm, rtol=0.01)


def test_an_example_is_degraded_the_same_in_any_batch(run):
    recipe, _, batch = run
    degrade = jax.jit(lambda crops, example: degrade_batch(crops, example, recipe))
    together = degrade(batch["crops"], batch["example"])
    turned = degrade(batch["crops"][::-1], batch["example"][::-1])
    np.testing.assert_array_equal(together, turned[::-1])
    assert not np.array_equal(together, degrade(batch["crops"], batch["example"] + 4))


def test_compiles_once_and_moves_nothing_between_host_and_device(run):
    recipe, state, batch = run
    chex.clear_trace_counter()
    step = parallel.parallel_step(chex.assert_max_traces(train_step, n=1), recipe)
    state = parallel.replicate(jax.tree.map(jnp.copy, state))
    for _ in range(3):
        on_devices = parallel.put_batch({name: np.asarray(x) for name, x in batch.items()})
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, on_devices)
    assert int(jax.device_get(state.step)) == 3
    assert np.isfinite(jax.device_get(metrics["loss"]))


def test_master_parameters_stay_float32_in_bfloat16(run):
    config, _, _ = train.parse(["--config", TINY, "--config.model.compute_dtype=bfloat16"])
    model = build.build_model(config)
    recipe, params, batch_stats = build.build_recipe(config, model, 10)
    state, metrics = jitted(recipe)(create_state(params, batch_stats, recipe), run[2])
    floats = [x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype("float32")}
    in_float32 = jitted(run[0])(run[1], run[2])[1]["loss"]
    np.testing.assert_allclose(metrics["loss"], in_float32, rtol=0.05)
    assert metrics["loss"] != in_float32
