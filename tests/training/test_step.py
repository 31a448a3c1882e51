"""The training step as a pure function: accumulation, averaging, keys, precision, and that it compiles once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from qualiclip_jax import train
from qualiclip_jax.degradations import camera
from qualiclip_jax.degradations.catalog import FACTORS, factor_matrix
from qualiclip_jax.training import build, parallel
from qualiclip_jax.training.state import create_state
from qualiclip_jax.training.step import degrade_batch, describe, drawn_for_camera, loss_fn, train_step

TINY = __file__.replace("test_step", "tiny_vit")


@pytest.fixture(scope="module")
def run():
    """(recipe, state, batch) of the tiny run, with an average of the parameters."""
    with jax.numpy_dtype_promotion("standard"):
        config, _, _ = train.parse(["--config", TINY, "--config.optimizer.ema_decay=0.75"])
        model = build.build_model(config)
        recipe, params, batch_stats = build.build_recipe(config, model, 10)
        crops = np.random.default_rng(0).integers(0, 256, (4, 2, 32, 32, 3), np.uint8)
        batch = {"crops": jnp.array(crops), "example": jnp.arange(4, dtype=jnp.uint32)}
        return recipe, create_state(params, batch_stats, recipe), batch


def jitted(recipe):
    return jax.jit(lambda state, batch: train_step(state, batch, recipe=recipe))


@pytest.fixture(scope="module")
def stepped(run):
    """The state and metrics after one step of the tiny run."""
    recipe, state, batch = run
    with jax.numpy_dtype_promotion("standard"):
        return jitted(recipe)(state, batch)


def test_accumulation_changes_nothing_but_the_order_of_sums(run, stepped):
    recipe, state, batch = run
    whole, metrics = stepped
    parts, metrics_of_parts = jitted(dataclasses.replace(recipe, accumulate=2))(state, batch)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], metrics_of_parts[name], rtol=2e-4, atol=1e-6, err_msg=name)
    # Adam's first step is the sign of the gradient times the rate: compare the moments, not the parameters.
    for a, b in zip(jax.tree.leaves(whole.opt_state), jax.tree.leaves(parts.opt_state)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


class Tiny(nnx.Module):
    """An image encoder that compiles in no time: two layers on the sums of eight columns."""

    def __init__(self):
        self.first, self.last = (nnx.Linear(*size, rngs=nnx.Rngs(0)) for size in ((24, 16), (16, 16)))

    def encode_image(self, images):
        return self.last(jnp.tanh(self.first(images.reshape(len(images), -1, 24).mean(1))))


def test_ranking_across_images_sees_the_whole_batch(run, darkened):
    """The same loss and gradient (by a step of SGD) on any devices and in any micro-batches, also of attributes."""
    recipe, _, batch = run
    graphdef, params, batch_stats = nnx.split(Tiny(), nnx.Param, nnx.BatchStat)
    weights = dict.fromkeys(recipe.weights, 1.0) | {"across": 3.0}
    features = jnp.concatenate([recipe.prompt_features, recipe.prompt_features[:, ::-1]])
    mapped = factor_matrix(("all", "noise+jpeg"))
    recipe = dataclasses.replace(
        recipe, graphdef=graphdef, weights=weights, optimizer=optax.sgd(1.0), prompt_features=features, factors=mapped
    )

    def step_on(devices, accumulate):
        devices = jax.local_devices()[:devices]
        spread = parallel.Pmap(devices)
        step = spread.compile(train_step, dataclasses.replace(recipe, accumulate=accumulate))
        state = jax.tree.map(jnp.copy, create_state(params, batch_stats, recipe))
        parts = spread.put_batch({name: np.asarray(x) for name, x in batch.items()})
        after, metrics = jax.device_get(step(spread.put_state(state), parts))
        gradient = jax.tree.map(lambda a, b: np.asarray(a) - b, params, after.params)
        return metrics, np.concatenate([x.ravel() for x in jax.tree.leaves(gradient)])

    metrics, gradient = step_on(1, 1)
    assert metrics["across"] > 0.1
    for setting in ((1, 2), (2, 2), (4, 1)):
        others, other_gradient = step_on(*setting)
        for name in ("across", "loss"):
            np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5, err_msg=f"{setting}")
        np.testing.assert_allclose(other_gradient, gradient, atol=1e-5 * np.abs(gradient).max(), err_msg=f"{setting}")


def test_average_of_parameters(run, stepped):
    state, after = run[1], stepped[0]
    for old, new, average in zip(*map(jax.tree.leaves, (state.params, after.params, after.ema))):
        np.testing.assert_allclose(average, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-7)


def test_gradient_against_finite_differences(run):
    recipe, state, batch = run
    images = jax.jit(lambda b: degrade_batch(b["crops"], b["example"], recipe))(batch)
    loss = jax.jit(lambda params: loss_fn(params, state.batch_stats, *images, recipe, None)[0])
    gradient = jax.grad(loss)(state.params)
    norm = sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient))
    step = 1e-4 / jnp.sqrt(norm)  # small: the hinges bend
    moved = lambda sign: jax.tree.map(lambda p, g: p + sign * step * g, state.params, gradient)
    slope = (loss(moved(1)) - loss(moved(-1))) / (2 * step)
    np.testing.assert_allclose(slope, norm, rtol=0.01)


def test_an_example_is_degraded_the_same_in_any_batch(run):
    recipe, _, batch = run
    degrade = jax.jit(lambda crops, example: degrade_batch(crops, example, recipe)[0])
    together = degrade(batch["crops"], batch["example"])
    turned = degrade(batch["crops"][::-1], batch["example"][::-1])
    np.testing.assert_array_equal(together, turned[::-1])
    assert not np.array_equal(together, degrade(batch["crops"], batch["example"] + 4))


def test_images_are_degraded_by_types_or_by_the_camera(run, monkeypatch):
    """With a chain in place of the camera's that darkens by the level: the right images, levels and severities."""

    def darken(crops, key, levels, *, local, alone):
        assert key.shape == (len(crops),)
        assert (local, alone) == (0.25, 0.125)
        severities = jnp.zeros((*levels.shape, len(FACTORS))).at[..., 0].set(levels)
        return crops[:, None] / 255 * (1 - levels[..., None, None, None, None]), severities

    monkeypatch.setattr(camera, "simulate", darken)
    recipe, _, batch = run
    recipe = dataclasses.replace(recipe, levels=5, camera=0.5, local=0.25, alone=0.125)
    crops, example = jnp.concatenate([batch["crops"]] * 4), jnp.arange(16)
    by_camera = np.asarray(drawn_for_camera(example, recipe))
    assert 0 < by_camera.sum() < 16
    images, severities = degrade_batch(crops, example, recipe)
    of_types, of_type_severities = degrade_batch(crops, example, dataclasses.replace(recipe, camera=0.0))
    np.testing.assert_array_equal(images[~by_camera], of_types[~by_camera])
    np.testing.assert_array_equal(severities[~by_camera], of_type_severities[~by_camera])
    np.testing.assert_allclose(of_type_severities.sum(-1)[0], [0.2, 0.4, 0.6, 0.8, 1], rtol=1e-6)
    np.testing.assert_allclose(severities[by_camera, :, 0], [[0, 0.25, 0.5, 0.75, 1]] * by_camera.sum())
    np.testing.assert_allclose(images[by_camera, 4], 0)
    names = describe(np.arange(16), severities, recipe)
    assert all((name == "exposure 1.00") == drawn for name, drawn in zip(names, by_camera))

    free = degrade_batch(crops, example, dataclasses.replace(recipe, camera=1.0, continuous=True))[1][..., 0]
    np.testing.assert_allclose(np.diff(free), 0.2, atol=1e-6)
    assert free.min() >= 0
    assert free.max() <= 1
    assert len(np.unique(free[:, 0])) == 16


def test_compiles_once_and_moves_nothing_between_host_and_device(run):
    recipe, state, batch = run
    traces = []

    def counted(*arguments, **constants):
        traces.append(1)
        return train_step(*arguments, **constants)

    spread = parallel.Pmap()
    step = spread.compile(counted, recipe)
    state = spread.put_state(jax.tree.map(jnp.copy, state))
    for _ in range(3):
        on_devices = spread.put_batch({name: np.asarray(x) for name, x in batch.items()})
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, on_devices)
    assert len(traces) == 1
    assert int(jax.device_get(state.step)) == 3
    assert np.isfinite(jax.device_get(metrics["loss"]))


def test_master_parameters_stay_float32_in_bfloat16(run, stepped):
    config, _, _ = train.parse(["--config", TINY, "--config.model.compute_dtype=bfloat16"])
    model = build.build_model(config)
    recipe, params, batch_stats = build.build_recipe(config, model, 10)
    state, metrics = jitted(recipe)(create_state(params, batch_stats, recipe), run[2])
    floats = [x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype("float32")}
    in_float32 = stepped[1]["loss"]
    np.testing.assert_allclose(metrics["loss"], in_float32, rtol=0.05)
    assert metrics["loss"] != in_float32
