"""Crops where there is something to see: maps of detail against SciPy, and draws from a half blurred photo."""

import numpy as np
import pytest
from scipy import ndimage

from qualiclip_jax.data.crops import draw_pair
from qualiclip_jax.data.detail import CELL, detail_maps, detail_of_crops


@pytest.fixture(scope="module")
def half_blurred():
    """uint8 [384, 640, 3], sharp on the left, out of focus on the right."""
    photo = np.random.default_rng(0).integers(0, 256, (384, 640, 1)).repeat(3, 2).astype(np.uint8)
    photo[:, 320:] = ndimage.gaussian_filter(photo.astype(float), (8, 8, 0))[:, 320:]
    return photo


def test_a_map_is_the_laplacian_in_cells(half_blurred):
    grey = half_blurred[..., 0].astype(float)
    inner = np.square(ndimage.laplace(grey)[1:-1, 1:-1])  # without the edge, where neighbours are missing
    full, half = detail_maps(half_blurred[:, :350])[:2]
    assert full.shape == (12, 10)
    assert half.shape == (6, 5)
    for row, column in ((0, 0), (3, 5), (11, 2)):
        cell = inner[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        assert full[row, column] == pytest.approx(np.sqrt(cell.mean()), rel=1e-3)
    grey = grey[:, :350].reshape(192, 2, 175, 2).mean((1, 3))
    last = np.square(ndimage.laplace(grey)[1:-1, 1:-1])[160:, 128:]  # to the edge: 175 px are 5 cells and a half
    assert half[5, 4] == pytest.approx(np.sqrt(last.mean()), rel=1e-3)


def test_a_crop_has_the_detail_of_its_weakest_quarter(half_blurred):
    maps, size = detail_maps(half_blurred), half_blurred.shape[:2]
    corners = np.array([[0, 64], [128, 224], [128, 400]])  # sharp, half and half, blurred
    sharp, half, blurred = detail_of_crops(maps, size, size, corners, 192)
    assert sharp > 20 * half
    assert half == pytest.approx(blurred, rel=0.5)
    shrunk = detail_of_crops(maps, size, (96, 160), corners // 4, 48)  # seen smaller, blur is less of a fault
    assert shrunk[0] / shrunk[2] < sharp / blurred / 3


def test_crops_go_where_the_photo_is_sharp(half_blurred):
    maps = detail_maps(half_blurred)

    def share_of_sharp(detail):
        rng = np.random.default_rng(1)
        draw = lambda: draw_pair(rng, (384, 640), crop_size=64, detail=detail, maps=maps)
        return np.mean([max(x for _, x in draw().corners) + 64 <= 320 for _ in range(300)])

    anywhere, by_detail, by_its_square = map(share_of_sharp, (0, 1, 2))
    assert 0.3 < anywhere < 0.5
    assert by_detail > 0.9  # the rest reaches over the edge by less than a cell
    assert by_its_square >= by_detail


def test_crops_lie_anywhere_in_a_photo_of_equal_detail():
    photo = np.full((100, 160, 3), 77, np.uint8)
    maps, rng = detail_maps(photo), np.random.default_rng(2)
    pairs = [draw_pair(rng, (100, 160), crop_size=90, min_overlap=0.9, detail=2, maps=maps) for _ in range(2000)]
    first, second = np.moveaxis(np.array([pair.corners for pair in pairs]), 1, 0)
    assert set(first[:, 0]) == set(range(11))
    assert set(first[:, 1]) == set(range(71))
    assert np.abs(second - first).max() == 9
    assert 0.45 < np.mean([pair.flip for pair in pairs]) < 0.55


@pytest.mark.parametrize("size", [(1, 1), (2, 40), (31, 33), (64, 65), (700, 33)])
def test_small_photos_have_maps_too(size):
    rng = np.random.default_rng(3)
    maps = detail_maps(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    assert all(np.isfinite(x).all() and x.min() > 0 for x in maps)
    pair = draw_pair(rng, size, crop_size=32, detail=1, maps=maps)
    assert min(pair.size) >= 32
