"""BatchNorm: frozen, in training mode (against PyTorch), over devices, folded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qualiclip_jax import models
from qualiclip_jax.models.layers import BatchNorm
from tests.small_models import EFFICIENTNET

CONFIG = models.CLIPConfig(16, models.ResNetConfig((1, 1, 1, 1), 4, 2))


def images(n, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, 64, 64, 3)).astype(np.float32))


normalised = nnx.jit(lambda norm, *arrays: norm(*arrays))  # and the statistics take their step


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_is_that_of_pytorch(training):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    rng = np.random.default_rng(0)
    x = 3 + 2 * rng.standard_normal((4, 5, 6, 7)).astype(np.float32)
    values = {name: rng.uniform(0.5, 2, 7).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    ours = BatchNorm(7)
    for name, value in values.items():
        getattr(ours, name)[...] = jnp.asarray(value)
    ours.training = training
    theirs = torch.nn.BatchNorm2d(7).train(training)
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    theirs.load_state_dict({name: torch.tensor(values[ours]) for name, ours in names.items()}, strict=False)
    with torch.no_grad():
        wanted = theirs(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(normalised(ours, jnp.asarray(x)), wanted, atol=2e-6)
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.var[...], theirs.running_var.numpy(), rtol=1e-6)


def test_statistics_of_a_padded_batch_are_those_of_the_valid_pixels():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 5, 3)).astype(np.float32)
    valid = np.zeros((2, 4, 5, 1), bool)
    valid[0, :3, :2] = valid[1, :4, :5] = True
    norm = BatchNorm(3)
    norm.training = True
    normalised(norm, jnp.asarray(x), jnp.asarray(valid))
    pixels = x[valid[..., 0]]
    np.testing.assert_allclose(norm.mean[...], 0.1 * pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * pixels.var(0, ddof=1), atol=1e-6)


def test_statistics_over_devices_are_those_of_the_whole_batch():
    rng = np.random.default_rng(0)
    batch = 2 + rng.standard_normal((8, 3, 2, 5)).astype(np.float32)
    batch[:4] *= 3  # the devices see different statistics
    target = jnp.asarray(rng.standard_normal(batch.shape).astype(np.float32))
    graph, state = nnx.split(BatchNorm(5))

    def step(state, images, target, axis_name=None):
        norm = nnx.merge(graph, state)
        norm.training, norm.axis_name = True, axis_name

        def loss(norm, images):
            normed = norm(images)
            return jnp.sum(jnp.square(normed - target)), normed

        gradient, normed = nnx.grad(loss, argnums=(0, 1), has_aux=True)(norm, images)
        if axis_name:
            gradient = (jax.lax.psum(gradient[0], axis_name), gradient[1])
        return normed, gradient[1], gradient[0], nnx.state(norm, nnx.BatchStat)

    whole = jax.jit(step)(state, jnp.asarray(batch), target)
    parts = jax.pmap(
        lambda *args: step(*args, "devices"),
        "devices",
        in_axes=(None, 0, 0),
        out_axes=(0, 0, None, None),
        devices=jax.devices()[:2],
    )(state, batch.reshape(2, 4, 3, 2, 5), target.reshape(2, 4, 3, 2, 5))
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a.reshape(b.shape), b, atol=1e-5 * float(jnp.abs(b).max()))


def test_the_mode_reaches_every_batch_norm(build):
    clip = build(CONFIG)
    clip.batch_norm_mode(training=True, axis_name="devices")
    norms = [module for _, module in nnx.iter_modules(clip) if isinstance(module, BatchNorm)]
    assert len(norms) == 3 + 4 * 4  # the stem, and four blocks with a shortcut
    assert all(norm.training and norm.axis_name == "devices" for norm in norms)
    clip.batch_norm_mode(training=False)
    assert not any(norm.training or norm.axis_name for norm in norms)


def test_statistics_move_in_training_mode_only(build):
    graph, params, statistics = nnx.split(build(CONFIG), nnx.Param, nnx.BatchStat)

    def moved(training):
        @jax.jit
        def after(params, statistics):
            clip = nnx.merge(graph, params, statistics, copy=True)
            clip.batch_norm_mode(training)
            clip.encode_image(images(2))
            return nnx.state(clip, nnx.BatchStat)

        pairs = zip(jax.tree.leaves(statistics), jax.tree.leaves(after(params, statistics)), strict=True)
        return [not np.array_equal(a, b) for a, b in pairs]

    assert not any(moved(training=False))
    assert all(moved(training=True))


@pytest.mark.parametrize("config", [CONFIG, EFFICIENTNET], ids=["resnet", "efficientnet"])
def test_folding_is_exact(build, config):
    clip = build(config)
    folded = models.fold_batch_norm(clip)
    assert not any("norm" in path for path in nnx.to_flat_state(nnx.state(folded)).paths)
    sizes = jnp.array([[64, 64], [50, 37]], jnp.int32)
    encode = nnx.jit(lambda clip, sizes: clip.encode_image(images(2), sizes))
    wanted, got = encode(clip, sizes), encode(folded, sizes)
    assert float(jnp.abs(got - wanted).max() / jnp.abs(wanted).max()) < 2e-6
    assert models.fold_batch_norm(folded) is folded
    again = models.from_pure(*models.to_pure(folded))  # it can be saved
    np.testing.assert_array_equal(encode(again, sizes), got)


def test_folding_leaves_a_vit_alone():
    config = dataclasses.replace(CONFIG, image=models.ViTConfig(1, 64, 1, 16, 32))
    clip = models.CLIP(config, rngs=nnx.Rngs(0))
    assert models.fold_batch_norm(clip) is clip
