"""The loop that scores many images, with an encoder that only watches what is in flight."""

import itertools
import threading

import numpy as np
import pytest

from qualiclip_jax.images import ImageError
from qualiclip_jax.inference import engine
from qualiclip_jax.inference.buckets import Batch

BATCHES = [Batch((2, 0), (2, 10, 10)), Batch((1,), (1, 10, 10)), Batch((3, 5), (2, 10, 10)), Batch((4,), (1, 10, 10))]


class Pending:
    """Results that are ready once `wait` returns."""

    def __init__(self, values, wait):
        self.values, self.wait = values, wait

    def __array__(self, dtype=None, copy=None):
        self.wait()
        return np.array(self.values)


def images(index):
    return np.full((10, 10, 3), index)


def test_two_batches_are_computed_side_by_side():
    meet = threading.Barrier(2, timeout=60)  # breaks unless two batches wait for their results at once

    def encode(batch, images):
        return Pending([image[0, 0, 0] for image in images], meet.wait)

    assert [(i, int(r)) for i, r in engine.run(BATCHES, images, encode, 1e9)] == [(i, i) for i in (2, 0, 1, 3, 5, 4)]


def test_batches_too_large_together_are_computed_alone():
    in_flight, most = [], []

    def encode(batch, images):
        in_flight.append(batch.pixels)
        most.append(sum(in_flight))
        return Pending([image[0, 0, 0] for image in images], lambda: in_flight.remove(batch.pixels))

    results = list(engine.run(BATCHES, images, encode, 250))
    assert [i for i, _ in results] == [2, 0, 1, 3, 5, 4]
    assert max(most) <= 250


def test_an_error_of_an_image_is_its_result_and_one_of_the_encoder_ends_the_run():
    def fetch(index):
        if index == 5:
            raise ImageError("5", "damaged")
        return images(index)

    def encode(batch, images):
        if batch.indices == (4,):
            raise RuntimeError("out of memory")
        return np.array([image[0, 0, 0] for image in images])

    run = engine.run(BATCHES, fetch, encode, 1e9)
    results = dict(itertools.islice(run, 5))
    with pytest.raises(RuntimeError, match="out of memory"):
        next(run)
    assert {i: int(r) for i, r in results.items() if i != 5} == {2: 2, 0: 0, 1: 1, 3: 3}
    assert results[5].reason == "damaged"
