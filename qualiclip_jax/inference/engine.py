"""The loop that scores many images: decoding in threads, ahead of the encoder, and two batches at a time in that."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
from numpy.typing import ArrayLike

from qualiclip_jax.images import ImageError
from qualiclip_jax.inference.buckets import Batch

Fetched = np.ndarray | ImageError
AHEAD_BATCHES, AHEAD_PIXELS = 8, 64e6  # decoded and waiting: no more, and no more pixels for each device, or one batch
_PATIENCE = 0.02  # seconds in which the next batch is usually planned


def run(
    batches: Iterable[Batch],
    fetch: Callable[[int], np.ndarray],
    encode: Callable[[Batch, list[np.ndarray]], ArrayLike],
    pixels_at_once: float,
    devices: int = 1,
) -> Iterator[tuple[int, Fetched]]:
    """Scores the images of a plan.

    Args:
      batches: from `buckets.plan`; taken as they are needed, so there may be any number of them.
      fetch: image [H, W, 3] by index; called in threads; may raise an `ImageError`, which becomes that image's result.
      encode: takes a batch and its images, starts to compute their results [count, ...]. Called in two threads, but
        never twice at the same moment: XLA computes side by side what comes from two threads, and on a CPU one fills
        the cores where the other cannot.
      pixels_at_once: the most pixels that two batches computed side by side may have.
      devices: how many devices share a batch; so many more images are decoded ahead.

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
        for ready in _fetch_ahead(batches, fetch, devices):
            if ready is None:
                while started:
                    yield from finished()
                continue
            batch, fetched = ready
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


def _fetch_ahead(
    batches: Iterable[Batch], fetch: Callable[[int], np.ndarray], devices: int
) -> Iterator[tuple[Batch, list[Fetched]] | None]:
    """Yields each batch with its images, while threads fetch those of the next ones.

    Yields None before it waits long for the next batch: the caller may finish what is under way.
    """

    def fetch_or_error(index: int) -> Fetched:
        try:
            return fetch(index)
        except ImageError as error:
            return error

    waiting: deque[tuple[Batch, list[Future[Fetched]]]] = deque()
    threads = min(8 * devices, (os.cpu_count() or 1) + 1)
    planning = ThreadPoolExecutor(1, thread_name_prefix="plan")
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def next_one() -> tuple[Batch, list[Fetched]]:
        batch, futures = waiting.popleft()
        return batch, [future.result() for future in futures]

    def too_many(batch: Batch) -> bool:
        pixels = sum(other.pixels for other, _ in waiting) + batch.pixels
        return len(waiting) >= AHEAD_BATCHES or pixels > AHEAD_PIXELS * devices

    try:
        following = iter(batches)
        coming = planning.submit(next, following, None)
        while True:
            while not wait([coming], _PATIENCE).done:
                if not waiting:
                    yield None
                    break
                yield next_one()
            if (batch := coming.result()) is None:
                break
            coming = planning.submit(next, following, None)
            while waiting and too_many(batch):
                yield next_one()
            waiting.append((batch, [pool.submit(fetch_or_error, i) for i in batch.indices]))
        while waiting:
            yield next_one()
    finally:
        planning.shutdown(wait=True, cancel_futures=True)
        pool.shutdown(wait=True, cancel_futures=True)
