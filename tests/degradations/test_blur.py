"""Blurs against SciPy, and the geometry of their kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from qualiclip_jax import degradations
from qualiclip_jax.degradations import blur, filters

gaussian_blur = jax.jit(blur.gaussian_blur)


@pytest.mark.parametrize("sigma", [0.5, 2.0, 5.0])
def test_gaussian_blur_is_that_of_scipy(photos, sigma):
    image = photos[0] / np.float32(255)
    expected = ndimage.gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), mode="nearest", truncate=2.0)
    np.testing.assert_allclose(gaussian_blur(jnp.asarray(image), sigma), expected, atol=2e-6)


def test_wide_filter_is_the_narrow_one(photos):
    image = jnp.asarray(photos[0], jnp.float32) / 255
    narrow, wide = (filters.gaussian_taps(3.5, 7, radius) for radius in (7, 40))
    planes = jax.jit(filters.separable_wide)(jnp.moveaxis(image, -1, 0), wide)
    np.testing.assert_allclose(jnp.moveaxis(planes, 0, -1), jax.jit(filters.separable)(image, narrow), atol=2e-6)


def test_correlate_is_that_of_scipy_up_to_the_edge(photos):
    image = photos[:, :40, :33] / np.float32(255)
    kernel = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    expected = ndimage.correlate(image.astype(np.float64), kernel[None, :, :, None], mode="nearest")
    np.testing.assert_allclose(
        jax.jit(filters.correlate)(jnp.asarray(image), jnp.asarray(kernel), 2), expected, atol=1e-5
    )


@pytest.mark.parametrize("radius", range(2, 9))
def test_disk_kernel(radius):
    kernel = blur.disk_kernel(radius)
    assert kernel.shape == (2 * radius + 1, 2 * radius + 1)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(kernel, kernel.T)
    np.testing.assert_array_equal(kernel, kernel[::-1])
    distance = np.hypot(*np.mgrid[-radius : radius + 1, -radius : radius + 1])
    assert (kernel[distance > radius + 1] == 0).all()
    inside = kernel[distance < radius - 1]
    assert np.ptp(inside) < 1e-7


@pytest.mark.parametrize("length", [1, 2, 4, 6, 10, 16])
def test_line_kernel(length):
    kernel = np.asarray(jax.vmap(lambda angle: blur.line_kernel(length, angle))(jnp.arange(0.0, 181.0, 7.5)))
    np.testing.assert_allclose(kernel.sum((1, 2)), 1, atol=1e-6)
    assert (kernel >= 0).all()
    np.testing.assert_allclose(kernel, kernel[:, ::-1, ::-1], atol=1e-6)  # a line has no direction
    np.testing.assert_allclose(kernel[0], kernel[-1], atol=1e-5)  # 0 and 180 degrees
    np.testing.assert_allclose(kernel[0], kernel[12].T, atol=1e-5)  # 0 and 90 degrees
    np.testing.assert_allclose(kernel[4], kernel[20][:, ::-1], atol=1e-5)  # 30 and 150 degrees


def orientation(response: np.ndarray) -> np.ndarray:
    """Degrees in 0..180, counterclockwise from horizontal, of the long axis of blurred points [..., H, W]."""
    height, width = response.shape[-2:]
    x, y = np.arange(width) - width // 2, -(np.arange(height)[:, None] - height // 2)
    xx, yy, xy = ((response * moment).sum((-2, -1)) for moment in (x * x, y * y, x * y))
    return np.degrees(np.arctan2(2 * xy, xx - yy) / 2) % 180


@pytest.fixture(scope="module")
def blurred_point():
    """Keys [N] -> responses [N, 5, 33, 33] to a white pixel at levels 1 to 5."""
    point = jnp.zeros((33, 33, 3)).at[16, 16].set(1.0)
    each_level = jax.vmap(lambda level, key: degradations.degrade("motion_blur", point, level, key), (0, None))
    run = jax.jit(jax.vmap(lambda key: each_level(jnp.arange(1, 6), key)))
    return lambda keys: np.asarray(run(keys))[..., 0]


def test_angle_is_uniform_and_the_same_at_all_levels(blurred_point):
    angles = orientation(blurred_point(jax.random.split(jax.random.key(1), 400)))  # [400, 5]
    assert stats.kstest(angles[:, 4] / 180, "uniform").pvalue > 0.01
    apart = np.abs(angles[:, 3] - angles[:, 4])
    assert np.minimum(apart, 180 - apart).max() < 8  # of short lines on a pixel grid


def test_angle_is_counterclockwise():
    point = jnp.zeros((33, 33, 3)).at[16, 16].set(1.0)
    angles = jnp.array([0.0, 30.0, 70.0, 110.0, 160.0])
    responses = jax.vmap(lambda angle: blur.motion_blur(point, 10.0, angle))(angles)[..., 0]
    apart = np.abs(orientation(np.asarray(responses)) - angles)
    assert np.minimum(apart, 180 - apart).max() < 3
