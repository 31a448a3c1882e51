"""Parts of EfficientNet against others: depthwise convolutions against XLA's, expected features against samples."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qualiclip_jax import models
from qualiclip_jax.models import depthwise, lite
from qualiclip_jax.models.efficientnet import VARIANCE_EPS
from tests.small_models import EFFICIENTNET


def by_xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pad = {(3, 1): (1, 1), (5, 1): (2, 2), (3, 2): (0, 1), (5, 2): (1, 2)}[kernel.shape[0], stride]
    layout = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return jax.lax.conv_general_dilated(
        x, kernel, strides, (pad, pad), dimension_numbers=layout, feature_group_count=x.shape[-1]
    )


@functools.partial(jax.jit, static_argnums=(0, 4))
def with_gradients(convolve, x, kernel, dy, stride):
    y, backward = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
    return y, *backward(dy)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "height", "width"), [(3, 8, 9), (5, 9, 6), (5, 2, 3)])
def test_depthwise_convolution_and_its_gradients(size, height, width, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, height, width, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((size, size, 1, 3)), jnp.float32)
    dy = jnp.asarray(rng.standard_normal((2, height // stride, width // stride, 3)), jnp.float32)
    ours, theirs = (with_gradients(f, x, kernel, dy, stride) for f in (depthwise.convolve, by_xla))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_depthwise_convolution_in_bfloat16_sums_in_float32():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 6, 6, 3)), jnp.bfloat16)
    kernel = jnp.asarray(rng.standard_normal((5, 5, 1, 3)), jnp.bfloat16)
    exact = by_xla(x.astype(jnp.float32), kernel.astype(jnp.float32), 1)
    np.testing.assert_array_equal(depthwise.convolve(x, kernel, 1), exact.astype(jnp.bfloat16))


def test_expected_features_are_those_of_a_network_of_normal_channels():
    """Drawn at random: channels as BatchNorm describes them, clipped or added up."""
    rng = np.random.default_rng(0)
    shape = models.EfficientNetConfig(
        stem=2, channels=(3, 4), layers=(1, 2), kernels=(3, 3), strides=(1, 2), expansions=(1, 2), head=2,
        pooled=(0, 1, 2, 3),
    )  # fmt: skip
    means, deviations, arrays = [], [], {}
    parts = {0: ["stem"], 1: ["stages/0/0/project"], 2: ["stages/1/0/project", "stages/1/1/project"], 3: ["head"]}
    for level, paths in parts.items():
        total = 0.0
        for path in paths:
            width = shape.pooled_channels[level]
            bias, scale = rng.normal(size=width), rng.normal(size=width)
            arrays |= {f"image/{path}/norm/bias": bias, f"image/{path}/norm/scale": scale}
            total = total + bias + scale * rng.normal(size=(100_000, width))
        total = np.clip(total, 0, 6) if level in (0, 3) else total
        means.append(total.mean(0))
        deviations.append(np.sqrt(total.var(0) + VARIANCE_EPS))
    center, spread = lite.expected_features(arrays, shape)
    np.testing.assert_allclose(center, np.concatenate([*means, *deviations]), atol=0.03)
    np.testing.assert_allclose(spread, np.concatenate([*deviations, *deviations]), atol=0.03)


def test_configs_survive_json():
    assert models.CLIPConfig.from_dict(json.loads(json.dumps(EFFICIENTNET.to_dict()))) == EFFICIENTNET
