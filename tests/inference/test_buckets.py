"""The plan: every image once, in shapes that hold it, with bounded waste and few shapes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qualiclip_jax.inference import buckets
from qualiclip_jax.inference.buckets import MANY_SIZES, MOST_SHAPES, Costs, plan, rungs

COSTS = Costs(compile=4e5, call=2.5e4, batch=5e5)
SIZE = st.tuples(st.integers(32, 3000), st.integers(32, 3000))


def total(batches, sizes, compiled=()) -> float:
    """What a plan costs, in pixels."""
    shapes = {batch.shape for batch in batches} - set(compiled)
    return sum(batch.pixels + COSTS.call for batch in batches) + COSTS.compile * len(shapes)


def random_sizes(n: int, low: int, high: int, seed: int = 0) -> list[tuple[int, int]]:
    return [tuple(size) for size in np.random.default_rng(seed).integers(low, high, (n, 2)).tolist()]


@settings(deadline=None, max_examples=100)
@given(st.lists(SIZE, max_size=30), st.sets(st.tuples(st.integers(1, 8), st.integers(32, 999), st.integers(32, 999))))
def test_every_image_once_in_a_shape_that_holds_it(sizes, compiled):
    batches = plan(sizes, COSTS, compiled)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(sizes)))
    for batch in batches:
        count, height, width = batch.shape
        assert 0 < len(batch.indices) <= count
        assert all(sizes[i][0] <= height and sizes[i][1] <= width for i in batch.indices)
        assert count == 1 or batch.pixels <= COSTS.batch or batch.shape in compiled


@settings(deadline=None, max_examples=50)
@given(st.lists(SIZE, min_size=1, max_size=30))
def test_a_plan_is_no_dearer_than_one_shape_or_one_shape_per_image(sizes):
    cost = total(plan(sizes, COSTS), sizes)
    largest = np.prod(np.max(sizes, axis=0) * 1.25 + 32)
    each = sum(np.prod(np.array(size) * 1.25 + 32) + COSTS.call + COSTS.compile for size in sizes)
    assert cost <= max(largest, 1) * len(sizes) + (COSTS.call + 2 * COSTS.compile) * len(sizes)
    assert cost <= each + COSTS.compile


@pytest.mark.parametrize(("low", "high", "waste", "shapes"), [(32, 257, 0.9, 10), (200, 1200, 0.25, 45)])
def test_200_sizes_share_few_shapes(low, high, waste, shapes):
    sizes = random_sizes(200, low, high)
    batches = plan(sizes, COSTS)
    pixels = sum(height * width for height, width in sizes)
    assert sum(batch.pixels for batch in batches) <= (1 + waste) * pixels
    assert len({batch.shape for batch in batches}) <= shapes


def test_a_frequent_size_gets_its_own_shape_without_padding():
    sizes = [(500, 375)] * 100 + [(490, 370)]
    batches = plan(sizes, COSTS)
    assert {batch.shape[1:] for batch in batches} == {(500, 375)}


def test_one_image_after_the_other_shares_shapes():
    compiled = set()
    for size in random_sizes(300, 200, 1200):
        compiled |= {batch.shape for batch in plan([size], COSTS, compiled)}
    assert len(compiled) <= 60


def test_a_repeated_plan_adds_no_shape():
    sizes = random_sizes(100, 50, 800)
    compiled = {batch.shape for batch in plan(sizes, COSTS)}
    assert {batch.shape for batch in plan(sizes, COSTS, compiled)} <= compiled


def test_thousands_of_sizes_stay_within_the_limit():
    sizes = random_sizes(4 * MANY_SIZES, 200, 4000)
    assert len({batch.shape for batch in plan(sizes, COSTS)}) <= MOST_SHAPES + 1


def test_tail_batches_are_small():
    batches = plan([(224, 224)] * 21, COSTS)
    assert sum(batch.shape[0] for batch in batches) <= 24
    assert len({batch.shape for batch in batches}) == 1


def test_rungs_are_close_together():
    ladder = rungs(5000)
    assert ladder[0] == 32
    assert ladder[-1] >= 5000
    assert (np.diff(ladder) <= np.maximum(32, ladder[:-1] / 8)).all()
    assert (ladder % 32 == 0).all()


def test_windows_hold_a_bounded_number_of_images_and_pixels(monkeypatch):
    monkeypatch.setattr(buckets, "WINDOW", 8)
    monkeypatch.setattr(buckets, "WINDOW_PIXELS", 500)
    taken = []
    sizes = (taken.append(k) or ("none" if k < 3 else (2, 2) if k < 20 else (10, 20)) for k in itertools.count())
    windows = buckets.windows(sizes, first=3)
    assert [len(next(windows)) for _ in range(5)] == [3, 6, 8, 6, 3]
    assert len(taken) == 26  # no more was read


def test_once_many_shapes_are_compiled_no_further_ones_save_padding():
    """But one that holds what none of them holds."""
    compiled = {(1, 100, 100 + k) for k in range(buckets.MOST_PROGRAMS)}
    batches = plan([(90, 90)] * 100 + [(500, 500)] * 50, COSTS, compiled)
    assert {batch.shape for batch in batches if batch.shape[1] == 100} == {(1, 100, 100)}
    assert len({batch.shape for batch in batches} - compiled) == 1


def test_several_devices_share_batches_evenly():
    costs = Costs(compile=1e4, call=1e4, batch=4e4, devices=4)
    for images, most in ((1, 1), (3, 4), (4, 4), (16, 16), (100, 16)):
        batches = plan([(100, 100)] * images, costs)
        counts = {batch.shape[0] for batch in batches}
        assert all(count % 4 == 0 or images == 1 for count in counts)
        assert max(counts) == most
        assert sum(len(batch.indices) for batch in batches) == images
