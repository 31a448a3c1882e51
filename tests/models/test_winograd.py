"""Winograd's 3 x 3 convolution against a plain one in double precision, from scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.signal import correlate2d

from qualiclip_jax import models
from qualiclip_jax.models import winograd
from tests.small_models import make_model


def layer(channels, out):
    conv = nnx.Conv(channels, out, (3, 3), padding=1, rngs=nnx.Rngs(3))
    conv.bias[...] = jnp.linspace(-1, 1, out)
    return conv


def in_double_precision(x, conv):
    x, kernel, bias = (np.asarray(array, np.float64) for array in (x, conv.kernel[...], conv.bias[...]))
    y = np.zeros((*x.shape[:3], len(bias)))
    for n, c, d in np.ndindex(len(x), x.shape[3], len(bias)):
        y[n, ..., d] += correlate2d(x[n, ..., c], kernel[..., c, d], "same")
    return y + bias


@pytest.mark.parametrize("shape", [(2, 1, 1, 4), (3, 10, 13, 8), (1, 2, 3, 4), (1, 4, 8, 3), (1, 37, 20, 6)], ids=str)
def test_equals_the_plain_convolution(shape):
    conv = layer(shape[-1], 5)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = jax.jit(winograd.WinogradConv(conv))(jnp.asarray(x))
    np.testing.assert_allclose(ours, in_double_precision(x, conv), rtol=0, atol=5e-6)


def test_gradients_are_those_of_the_plain_convolution():
    conv, x = layer(6, 5), jax.random.normal(jax.random.key(0), (2, 21, 12, 6))
    ours, plain = (
        jax.jit(jax.grad(lambda x, f=f: jnp.sin(f(x)).sum()))(x) for f in (winograd.WinogradConv(conv), conv)
    )
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-5)


def test_an_encoder_keeps_its_features_and_its_weights():
    shape = models.ResNetConfig(layers=(1, 1, 1, 1), width=64, heads=8, image_size=64)
    clip = models.fold_batch_norm(make_model(models.CLIPConfig(32, shape)).clip)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(clip)))
    images, sizes = jax.random.normal(jax.random.key(1), (2, 96, 64, 3)), jnp.array([[96, 64], [71, 40]])
    fast = clip.image.for_inference(winograd=True)
    kinds = [type(block.conv2.conv) for stage in fast.stages for block in stage]
    assert kinds == [winograd.WinogradConv] * 4
    encode = nnx.jit(lambda encoder: encoder(images, sizes))
    expected = encode(clip.image)
    np.testing.assert_allclose(encode(fast), expected, rtol=0, atol=5e-6 * float(jnp.abs(expected).max()))
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(clip)), before)
