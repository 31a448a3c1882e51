"""Crop pairs: where they lie, and that a region is resized as the whole photo would be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qualiclip_jax.data.crops import Pair, cut_pair, draw_pair, resize_region


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise with edges: the hardest thing to resize alike twice."""
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    photo[height // 3 :, width // 4 :] //= 4
    return photo


@settings(max_examples=300, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    crop_size=st.integers(1, 300),
    min_overlap=st.floats(0, 1),
    bounds=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    seed=st.integers(0, 2**32 - 1),
)
def test_drawn_crops_lie_in_the_photo_and_overlap(size, crop_size, min_overlap, bounds, seed):
    low, high = sorted(bounds)
    pair = draw_pair(
        np.random.default_rng(seed), size, crop_size=crop_size, min_overlap=min_overlap, scale_range=(low, high)
    )
    for axis in (0, 1):
        a, b = (corner[axis] for corner in pair.corners)
        assert min(a, b) >= 0
        assert max(a, b) + crop_size <= pair.size[axis]
        assert crop_size - abs(a - b) >= min_overlap * crop_size - 1e-6
    fits = crop_size / min(size)
    for old, new in zip(size, pair.size):
        assert max(low, fits) * old - 0.5 <= new or new == crop_size
        assert new <= max(high, fits) * old + 0.5 or new == crop_size
    if min(size) <= crop_size:
        assert min(pair.size) == crop_size


def test_crops_reach_every_part_and_every_allowed_distance():
    rng = np.random.default_rng(0)
    pairs = [draw_pair(rng, (20, 30), crop_size=10, min_overlap=0.6) for _ in range(3000)]
    first, second = np.moveaxis(np.array([pair.corners for pair in pairs]), 1, 0)  # each [3000, 2]
    for corners in (first, second):
        assert set(corners[:, 0]) == set(range(11))
        assert set(corners[:, 1]) == set(range(21))
    assert set((second - first)[:, 1]) == set(range(-4, 5))
    assert 0.45 < np.mean([pair.flip for pair in pairs]) < 0.55


def test_scale_is_spread_over_what_the_crop_allows():
    rng = np.random.default_rng(0)
    heights = [
        draw_pair(rng, (1000, 2000), crop_size=600, scale_range=(0.2, 1.0)).size[0] for _ in range(2000)
    ]  # 0.2 .. 0.6 would not fit
    share, _ = np.histogram(heights, bins=4, range=(600, 1000))
    assert min(heights) < 610
    assert max(heights) > 990
    assert share.min() > 0.2 * len(heights)


def test_numbers_drawn_stay_what_they_were():
    pairs = [draw_pair(np.random.default_rng(i), (400, 700), crop_size=96, scale_range=(0.3, 1)) for i in range(3)]
    assert pairs == [
        Pair(size=(298, 522), corners=((54, 17), (7, 53)), flip=False),
        Pair(size=(263, 461), corners=((159, 52), (165, 34)), flip=True),
        Pair(size=(193, 338), corners=((29, 197), (7, 205)), flip=False),
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [((97, 141), (60, 88)), ((300, 200), (75, 50)), ((64, 80), (61, 77)), ((31, 47), (40, 61)), ((500, 37), (600, 45))],
)
def test_resized_region_equals_the_whole_photo_resized(old, new):
    photo = textured(*old)
    whole = np.asarray(Image.fromarray(photo).resize(new[::-1], Image.Resampling.LANCZOS)).astype(int)
    rng = np.random.default_rng(1)
    boxes = [(0, 0, *new)]
    for _ in range(20):
        (top, bottom), (left, right) = (sorted(rng.choice(side + 1, 2, replace=False)) for side in new)
        boxes.append((top, left, bottom, right))
    for top, left, bottom, right in boxes:
        region = resize_region(photo, new, (top, left, bottom, right))
        assert region.shape == (bottom - top, right - left, 3)
        assert np.abs(region - whole[top:bottom, left:right]).max() <= 1


def test_without_resizing_crops_are_the_photo_itself():
    photo = textured(50, 60)
    crops = cut_pair(photo, Pair(size=(50, 60), corners=((3, 7), (12, 20)), flip=False), crop_size=32)
    assert crops.dtype == np.uint8
    np.testing.assert_array_equal(crops[0], photo[3:35, 7:39])
    np.testing.assert_array_equal(crops[1], photo[12:44, 20:52])


def test_common_part_of_resized_crops_is_the_same_to_the_bit():
    crops = cut_pair(textured(150, 170), Pair(size=(100, 113), corners=((5, 40), (21, 33)), flip=False), crop_size=64)
    np.testing.assert_array_equal(crops[0][16:, : 64 - 7], crops[1][: 64 - 16, 7:])


def test_flip_mirrors_both_crops():
    photo = textured(90, 70)
    there, back = (
        cut_pair(photo, Pair(size=(80, 62), corners=((0, 3), (20, 9)), flip=flip), crop_size=48)
        for flip in (False, True)
    )
    np.testing.assert_array_equal(back, there[:, :, ::-1])
