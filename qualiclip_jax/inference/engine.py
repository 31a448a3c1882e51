"""The loop that scores many images: decoding in threads, ahead of the encoder, and two batches at a time in that."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike

from qualiclip_jax.images import ImageError
from qualiclip_jax.inference.buckets import Batch

Fetched = np.ndarray | ImageError
AHEAD_PIXELS = 64e6  # decoded and waiting: at most this many pixels (and one batch)


def run(
    batches: Sequence[Batch],
    fetch: Callable[[int], np.ndarray],
    encode: Callable[[Batch, list[np.ndarray]], ArrayLike],
    pixels_at_once: float,
) -> Iterator[tuple[int, Fetched]]:
    """Scores the images of a plan.

    Args:
      batches: from `buckets.plan`.
      fetch: image [H, W, 3] by index; called in threads; may raise an `ImageError`, which becomes that image's result.
      encode: takes a batch and its images, starts to compute their results [count, ...]. Called in two threads, but
        never twice at the same moment: XLA computes side by side what comes from two threads, and on a CPU one fills
        the cores where the other cannot.
      pixels_at_once: the most pixels that two batches computed side by side may have.

    Yields:
      (index, result or ImageError), each image once, in the order of the plan.
    """
    one_at_a_time = threading.Lock()
    started: deque[tuple[Batch, list[int], Future[np.ndarray]]] = deque()

    def encoded(batch: Batch, images: list[np.ndarray]) -> np.ndarray:
        with one_at_a_time:
            results = encode(batch, images)
        return np.asarray(results)

    def finished() -> Iterator[tuple[int, Fetched]]:
        _, indices, results = started.popleft()
        yield from zip(indices, results.result())

    pool = ThreadPoolExecutor(2, thread_name_prefix="encode")
    try:
        for batch, fetched in _fetch_ahead(batches, fetch):
            good = {i: image for i, image in zip(batch.indices, fetched) if not isinstance(image, ImageError)}
            yield from ((i, error) for i, error in zip(batch.indices, fetched) if isinstance(error, ImageError))
            while started and (len(started) > 1 or started[0][0].pixels + batch.pixels > pixels_at_once):
                yield from finished()
            if good:
                started.append((batch, list(good), pool.submit(encoded, batch, list(good.values()))))
        while started:
            yield from finished()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fetch_ahead(batches: Iterable[Batch], fetch: Callable[[int], np.ndarray]) -> Iterator[tuple[Batch, list[Fetched]]]:
    """Yields each batch with its images, while threads fetch those of the next ones."""

    def fetch_or_error(index: int) -> Fetched:
        try:
            return fetch(index)
        except ImageError as error:
            return error

    waiting: deque[tuple[Batch, list[Future[Fetched]]]] = deque()
    pool = ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1), thread_name_prefix="decode")

    def next_one() -> tuple[Batch, list[Fetched]]:
        batch, futures = waiting.popleft()
        return batch, [future.result() for future in futures]

    try:
        for batch in batches:
            waiting.append((batch, [pool.submit(fetch_or_error, i) for i in batch.indices]))
            while len(waiting) > 1 and sum(b.pixels for b, _ in waiting) > AHEAD_PIXELS:
                yield next_one()
        while waiting:
            yield next_one()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
