"""Spatial distortions: places, sizes and displacements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from qualiclip_jax import degradations
from qualiclip_jax.degradations import spatial

SIZE = 256


def ramps(size: int = SIZE) -> jnp.ndarray:
    """Each pixel carries its own place: row / size, column / size, 0."""
    rows, columns = np.mgrid[:size, :size] / np.float32(size)
    return jnp.asarray(np.stack([rows, columns, np.zeros_like(rows)], axis=-1), jnp.float32)


def at_level(name: str, image, seeds: int = 4):
    """level -> [seeds, H, W, 3], compiled once."""
    one = lambda level, key: degradations.degrade(name, image, level, key)
    run = jax.jit(jax.vmap(one, in_axes=(None, 0)))
    keys = jax.random.split(jax.random.key(0), seeds)
    return lambda level: np.asarray(run(level, keys))


def test_jitter_displaces_as_five_rounds_of_normal_noise():
    """Against the same five rounds with SciPy and NumPy's normal numbers; a ramp shows how far each pixel moved."""
    size = 128
    jitter = at_level("jitter", ramps(size))
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    inner = slice(16, -16)
    for level, std in enumerate(degradations.PARAMETERS["jitter"], start=1):
        expected = rows.astype(np.float64)
        for _ in range(5):
            down, right = rng.normal(scale=std, size=(2, size, size))
            expected = ndimage.map_coordinates(expected, (rows - down, columns - right), order=1, mode="nearest")
        expected = (expected - rows)[inner, inner].std()
        moved = np.asarray(jitter(level) - ramps(size))[:, inner, inner, :2] * size  # px
        assert moved[..., 0].std() == pytest.approx(expected, rel=0.05)
        assert moved[..., 1].std() == pytest.approx(expected, rel=0.05)
        assert abs(np.corrcoef(moved[..., 0].ravel(), moved[..., 1].ravel())[0, 1]) < 0.02


def test_displace_is_the_bilinear_sampling_of_scipy(photos):
    image = photos[:2] / np.float32(255)
    down, right = np.random.default_rng(0).normal(scale=3, size=(2, *image.shape[:3])).astype(np.float32)
    rows, columns = np.mgrid[: image.shape[1], : image.shape[2]]
    output = jax.jit(spatial.displace)(jnp.asarray(image), jnp.asarray(down), jnp.asarray(right))
    for n in range(2):
        places = rows - down[n], columns - right[n]
        for channel in range(3):
            expected = ndimage.map_coordinates(image[n, ..., channel], places, order=1, mode="nearest")
            np.testing.assert_allclose(output[n, ..., channel], expected, atol=2e-5)


def test_copy_patches_is_a_loop_of_copies():
    rng = np.random.default_rng(0)
    sources, targets = rng.integers(0, SIZE - 16, (2, 30, 2))
    expected = np.asarray(ramps()).copy()
    for (y, x), (v, u) in zip(sources[:20], targets[:20]):
        expected[v : v + 16, u : u + 16] = expected[y : y + 16, x : x + 16].copy()
    output = jax.jit(spatial.copy_patches)(
        ramps(), jnp.asarray(sources, jnp.int32), jnp.asarray(targets, jnp.int32), 20
    )
    np.testing.assert_array_equal(output, expected)


def test_patches_are_as_many_and_as_far_off_as_the_table_says():
    size = 1024  # so large that few patches meet
    degrade = at_level("non_eccentricity_patch", ramps(size), seeds=2)
    for level in (1, 5):
        count = degradations.PARAMETERS["non_eccentricity_patch"][level - 1]
        for moved in np.round((np.asarray(ramps(size)) - degrade(level)) * size).astype(int)[..., :2]:
            pieces, found = ndimage.label(moved.any(-1))
            areas = ndimage.sum_labels(moved.any(-1), pieces, range(1, found + 1))
            alone = areas == 256
            assert 0.7 * count <= found <= count
            assert alone.sum() >= 0.7 * count
            assert areas.sum() <= 256 * count
            steps = np.array([moved[pieces == k + 1][0] for k in np.flatnonzero(alone)])
            assert np.abs(steps).max() <= 8
            assert np.abs(steps).max() >= 6
            assert len(np.unique(steps, axis=0)) >= 0.5 * count
            assert not moved[:8].any()  # patches come from 16 px or more inside and go 8 px
            assert not moved[-8:].any()


def test_blocks_are_as_many_and_as_large_as_the_table_says():
    degrade = at_level("color_block", jnp.zeros((SIZE, SIZE, 3)), seeds=8)
    for level, count in enumerate(degradations.PARAMETERS["color_block"], start=1):
        for image in degrade(level):
            colors, areas = np.unique(image[image.any(-1)], axis=0, return_counts=True)
            assert count - 1 <= len(colors) <= count  # one may lie under others
            assert areas.max() == 32 * 32  # the last lies on top
            for color in colors:
                rows, columns = np.nonzero((image == color).all(-1))
                assert np.ptp(rows) < 32
                assert np.ptp(columns) < 32


def test_paint_blocks_is_a_loop_of_assignments():
    rng = np.random.default_rng(0)
    corners, colors = rng.integers(0, SIZE - 32, (6, 2)), rng.random((6, 3), np.float32)
    expected = np.asarray(ramps()).copy()
    for (y, x), color in zip(corners[:4], colors[:4]):
        expected[y : y + 32, x : x + 32] = color
    output = jax.jit(spatial.paint_blocks)(ramps(), jnp.asarray(corners, jnp.int32), jnp.asarray(colors), 4)
    np.testing.assert_array_equal(output, expected)


def test_quantization_numbers_the_bins_and_stretches_them():
    """The bins of `numpy.histogram` over 0..255; a sample on an edge belongs below it."""
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    quantize = jax.jit(spatial.quantization)
    for bins in degradations.PARAMETERS["quantization"]:
        edges = np.histogram_bin_edges([], bins, (0, 255))[1:-1].astype(int)
        index = np.searchsorted([0, *edges], values)
        expected = (index - index.min()) / np.ptp(index)
        output = quantize(jnp.asarray(values, jnp.float32) / 255, bins)
        np.testing.assert_allclose(output, expected, atol=1e-6)


def test_pixelate_with_a_static_strength_is_that_of_the_table(photos):
    image = jnp.asarray(photos[0], jnp.float32) / 255
    for level, strength in enumerate(degradations.PARAMETERS["pixelate"], start=1):
        from_table = degradations.degrade("pixelate", image, level, jax.random.key(0))
        np.testing.assert_array_equal(spatial.pixelate(image, strength), from_table)
