"""BatchNorm: frozen, in training mode (against PyTorch), over devices, folded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qualiclip_jax import models
from qualiclip_jax.models.layers import BatchNorm

CONFIG = models.CLIPConfig(16, models.ResNetConfig((1, 1, 1, 1), 4, 2))


def disturbed(seed=0):
    """A CLIP whose BatchNorms are all different."""
    config, arrays = models.to_pure(models.CLIP(CONFIG, rngs=nnx.Rngs(seed)))
    rng = np.random.default_rng(seed)

    def disturb(path, a):
        noise = rng.standard_normal(a.shape).astype(np.float32)
        return np.exp(0.3 * noise) if path[-1].key in ("var", "scale") else a + 0.1 * noise

    return models.from_pure(config, jax.tree_util.tree_map_with_path(disturb, jax.device_get(arrays)))


def images(n, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, 64, 64, 3)).astype(np.float32))


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
    np.testing.assert_allclose(ours(jnp.asarray(x)), wanted, atol=2e-6)
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.var[...], theirs.running_var.numpy(), rtol=1e-6)


def test_statistics_of_a_padded_batch_are_those_of_the_valid_pixels():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 5, 3)).astype(np.float32)
    valid = np.zeros((2, 4, 5, 1), bool)
    valid[0, :3, :2] = valid[1, :4, :5] = True
    norm = BatchNorm(3)
    norm.training = True
    norm(jnp.asarray(x), jnp.asarray(valid))
    pixels = x[valid[..., 0]]
    np.testing.assert_allclose(norm.mean[...], 0.1 * pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * pixels.var(0, ddof=1), atol=1e-6)


def test_statistics_over_devices_are_those_of_the_whole_batch():
    clip, batch = disturbed(), images(8)

    def step(state, images, axis_name=None):
        clip = nnx.merge(graph, state)
        clip.batch_norm_mode(training=True, axis_name=axis_name)

        def loss(clip):
            features = clip.encode_image(images)
            return jnp.mean(features**2), features

        (_, features), gradients = nnx.value_and_grad(loss, has_aux=True)(clip)
        if axis_name:
            gradients = jax.lax.pmean(gradients, axis_name)
        return features, gradients, nnx.state(clip, nnx.BatchStat)

    graph, state = nnx.split(clip)
    whole = jax.jit(step)(state, batch)
    devices = jax.pmap(
        lambda state, images: step(state, images, "devices"),
        "devices",
        in_axes=(None, 0),
        out_axes=(0, None, None),
        devices=jax.devices()[:2],
    )(state, batch.reshape(2, 4, 64, 64, 3))
    np.testing.assert_allclose(devices[0].reshape(8, -1), whole[0], atol=2e-5 * float(jnp.abs(whole[0]).max()))
    for a, b in zip(jax.tree.leaves(devices[1:]), jax.tree.leaves(whole[1:]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max() + 1))
    before = jax.tree.leaves(nnx.state(clip, nnx.BatchStat))
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, jax.tree.leaves(whole[2]), strict=True))


@pytest.mark.parametrize("remat", [False, True])
def test_statistics_move_in_training_mode_only(remat):
    clip = models.from_pure(dataclasses.replace(CONFIG, remat=remat), models.to_pure(disturbed())[1])
    graph, params, statistics = nnx.split(clip, nnx.Param, nnx.BatchStat)

    def moved(training):
        def loss(params):
            clip = nnx.merge(graph, params, statistics, copy=True)
            clip.batch_norm_mode(training)
            return jnp.sum(clip.encode_image(images(2)) ** 2), nnx.state(clip, nnx.BatchStat)

        after = jax.jit(jax.grad(loss, has_aux=True))(params)[1]
        pairs = zip(jax.tree.leaves(statistics), jax.tree.leaves(after), strict=True)
        return [not np.array_equal(a, b) for a, b in pairs]

    assert not any(moved(training=False))
    assert all(moved(training=True))


def test_folding_is_exact():
    clip = disturbed()
    folded = models.fold_batch_norm(clip)
    assert not jax.tree.leaves(nnx.state(folded, nnx.BatchStat))
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
