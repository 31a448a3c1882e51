"""The loop over many images: first their sizes, then their pixels; each image once, whatever is wrong with it."""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np

from qualiclip_jax.images import ImageError
from qualiclip_jax.inference.buckets import Size as Size

S = TypeVar("S")
T = TypeVar("T")


class Scorer(Protocol):
    """What `QualiCLIP.run` offers."""

    @property
    def prompts(self) -> Sequence[tuple[str, str]]:
        """P antonym pairs."""
        ...

    def score_of(self, outputs: np.ndarray) -> np.ndarray:
        """See `models.Model.score_of`."""
        ...

    def rating_of(self, outputs: np.ndarray) -> np.ndarray | None:
        """See `models.Model.rating_of`."""
        ...

    def run(
        self,
        windows: Iterable[Sequence[Size | ImageError]],
        fetch: Callable[[int], np.ndarray],
        done: Container[int] = (),
    ) -> Iterator[tuple[int, np.ndarray | ImageError]]:
        """See `QualiCLIP.run`."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """What came out for one image.

    Attributes:
      index: which image.
      size: height and width; None if they could not be read.
      outputs: float32 [P + M], a score in [0, 1] per antonym pair first; None where there is an error.
      error: why there is no score.
      score: a float32; NaN where there is an error.
      rating: MOS and ends of its interval, float64 [3]; None where there is an error, or the model has no rating.
    """

    index: int
    size: Size | None
    outputs: np.ndarray | None = None
    error: str | None = None
    score: float = float("nan")
    rating: np.ndarray | None = None


def in_threads(function: Callable[[S], T], items: Iterable[S], threads: int | None = None) -> Iterator[T | ImageError]:
    """Yields `function` of each item, computed a little ahead; an `ImageError` that it raises is yielded.

    Args:
      function: called in threads.
      items: taken as they are needed.
      threads: how many; about one a processor if None.
    """

    def value_or_error(item: S) -> T | ImageError:
        try:
            return function(item)
        except ImageError as error:
            return error

    threads = threads or min(8, (os.cpu_count() or 1) + 1)
    coming: deque[Future[T | ImageError]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="read") as pool:
        for item in items:
            coming.append(pool.submit(value_or_error, item))
            if len(coming) > 8 * threads:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; each is made in a thread while the one before is in use."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming: Future[Any] = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item


def score_images(
    model: Scorer,
    windows: Iterable[Sequence[Size | ImageError]],
    read: Callable[[int], np.ndarray],
    done: Container[int] = (),
) -> Iterator[Scored]:
    """Scores many images, whatever is wrong with some of them.

    Args:
      model: a `QualiCLIP`.
      windows: height and width of each image, or why they could not be read; in lists that are planned one after the
        other (`buckets.windows`), or in one. Images are numbered through.
      read: gives an image, uint8 [H, W, 3], by number; called in threads; may raise an `ImageError`. An image whose
        pixels have another size than `windows` says is scored at the size of its pixels, in the end.
      done: images whose scores are known from an earlier run. They are not given again, but batches are made as if
        they were new, so the others get the same digits as in a run that scores all.

    Yields:
      One `Scored` per image that is not done, in the order that suits the encoder.
    """
    others: dict[int, Size] = {}
    yield from _score_sized(model, windows, read, done, others)
    if others:
        numbers = list(others)
        again = _score_sized(model, [[*others.values()]], lambda place: read(numbers[place]), (), None)
        yield from (dataclasses.replace(scored, index=numbers[scored.index]) for scored in again)


def _score_sized(
    model: Scorer,
    windows: Iterable[Sequence[Size | ImageError]],
    read: Callable[[int], np.ndarray],
    done: Container[int],
    others: dict[int, Size] | None,
) -> Iterator[Scored]:
    """Scores images of the sizes given; those that have another size after all go to `others`, or are an error."""
    sizes: dict[int, Size | ImageError] = {}  # of the images that are on their way

    def noted() -> Iterator[Sequence[Size | ImageError]]:
        first = 0
        for window in windows:
            sizes.update(enumerate(window, first))
            first += len(window)
            yield window

    def fetch(index: int) -> np.ndarray:
        image = read(index)
        if image.shape[:2] != sizes[index]:
            if others is not None:
                others[index] = image.shape[:2]
            raise ImageError(f"image {index}", "changed while it was being scored")
        return image

    for index, outputs in model.run(noted(), fetch, done):
        told = sizes.pop(index)
        size = None if isinstance(told, ImageError) else told
        if index in done or (others is not None and index in others):
            continue
        if isinstance(outputs, ImageError):
            yield Scored(index, size, error=outputs.reason)
        elif not np.isfinite(outputs).all():
            yield Scored(index, size, error="the model gives no finite score")
        else:
            score, rating = float(model.score_of(outputs)), model.rating_of(outputs)
            yield Scored(index, size, outputs, score=score, rating=rating)
