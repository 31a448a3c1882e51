"""Colour distortions against scikit-image and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage import color as skimage_color

from qualiclip_jax import degradations
from qualiclip_jax.degradations import color, color_spaces


@pytest.fixture(scope="module")
def image(photos):
    return jnp.asarray(photos[0], jnp.float32) / 255


def test_lab_is_that_of_scikit_image(image):
    lab = color_spaces.rgb_to_lab(image)
    np.testing.assert_allclose(
        jnp.moveaxis(lab, 0, -1), skimage_color.rgb2lab(image), atol=2e-2
    )  # its constants are rounder
    np.testing.assert_allclose(color_spaces.lab_to_rgb(lab), image, atol=3e-6)


def test_lab_of_black_white_and_strong_colours():
    corners = jnp.array([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)], jnp.float32)[None]
    lab = color_spaces.rgb_to_lab(corners)
    np.testing.assert_allclose(jnp.moveaxis(lab, 0, -1), skimage_color.rgb2lab(corners), atol=2e-2)
    np.testing.assert_allclose(color_spaces.lab_to_rgb(lab), corners, atol=1e-5)


@pytest.mark.parametrize("factor", [0.4, 0.1, 0.0])
def test_hsv_saturation_is_that_of_scikit_image(image, factor):
    hsv = skimage_color.rgb2hsv(image)
    hsv[..., 1] *= factor
    np.testing.assert_allclose(color.hsv_saturation(image, factor), skimage_color.hsv2rgb(hsv), atol=1e-6)


def test_colour_shift_moves_green_where_there_are_edges(image):
    rows, columns = 3, 5
    array = np.asarray(image, np.float64)
    grey = array @ [0.299, 0.587, 0.114]
    gradient = [ndimage.correlate1d(grey, [-0.5, 0, 0.5], axis=axis, mode="nearest") for axis in (0, 1)]
    edges = ndimage.gaussian_filter(np.hypot(*gradient), 4, truncate=2, mode="nearest")
    blend = (edges - edges.min()) / np.ptp(edges)
    green = array[..., 1]
    moved = ndimage.shift(green, (rows, columns), order=0, mode="nearest")
    expected = array.copy()
    expected[..., 1] = moved * blend + green * (1 - blend)
    np.testing.assert_allclose(jax.jit(color.color_shift)(image, rows, columns), expected, atol=1e-5)


def test_colour_shift_goes_down_and_right_by_its_amount():
    """The displacement is the one that explains best where green went, on noise that has edges everywhere."""
    image = jax.random.uniform(jax.random.key(0), (64, 64, 3))
    shift = jax.jit(lambda level, key: degradations.degrade("color_shift", image, level, key))
    before = np.asarray(image[..., 1])
    inner = slice(13, -13)
    candidates = [(down, right) for down in range(14) for right in range(14)]
    moved = [(np.roll(before, by, (0, 1)) - before)[inner, inner].ravel() for by in candidates]
    shifts = []
    for seed in range(10):
        for level in (3, 5):
            change = (np.asarray(shift(level, jax.random.key(seed)))[..., 1] - before)[inner, inner].ravel()
            shifts.append(candidates[np.argmax([np.corrcoef(change, m)[0, 1] if m.any() else 0 for m in moved])])
    shifts = np.array(shifts).reshape(10, 2, 2)  # [key, level, (down, right)]
    assert np.abs(np.hypot(*shifts.T) - np.array([[6], [12]])).max() < 1
    angles = np.degrees(np.arctan2(shifts[..., 0], shifts[..., 1]))
    assert np.abs(angles[:, 0] - angles[:, 1]).max() < 10  # one direction for all levels
    assert np.ptp(angles[:, 1]) > 40


def test_diffusion_keeps_lightness_and_multiplies_flat_colour():
    """A flat image has nothing to diffuse: k = 1 leaves it alone."""
    flat = jnp.broadcast_to(jnp.array([0.6, 0.5, 0.4]), (40, 40, 3))
    diffuse = jax.jit(color.color_diffusion)
    assert np.abs(np.asarray(diffuse(flat, 1.0)) - flat).max() <= 1.01 / 255
    before, after = (color_spaces.rgb_to_lab(x[20, 20, ::-1]) for x in (flat, diffuse(flat, 2.0)))
    np.testing.assert_allclose(after, np.asarray(before) * [1, 2, 2], atol=0.5)
