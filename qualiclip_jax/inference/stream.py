"""The loop over many images: first their sizes, then their pixels; each image once, whatever is wrong with it."""

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from qualiclip_jax.images import ImageError

T = TypeVar("T")
Size = tuple[int, int]  # height, width


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
        self, sizes: Sequence[Size], fetch: Callable[[int], np.ndarray], done: Collection[int] = ()
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


def in_threads(function: Callable[[int], T], count: int) -> Iterator[T | ImageError]:
    """Yields `function(0)` to `function(count - 1)`, computed ahead; an `ImageError` that it raises is yielded."""

    def value_or_error(index: int) -> T | ImageError:
        try:
            return function(index)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1), thread_name_prefix="read") as pool:
        yield from pool.map(value_or_error, range(count))


def score_images(
    model: Scorer,
    sizes: Sequence[Size | ImageError],
    read: Callable[[int], np.ndarray],
    done: Collection[int] = (),
) -> Iterator[Scored]:
    """Scores many images, whatever is wrong with some of them.

    Args:
      model: a `QualiCLIP`.
      sizes: height and width of each image, or why they could not be read.
      read: gives an image, uint8 [H, W, 3], by index; called in threads; may raise an `ImageError`. An image whose
        pixels have another size than `sizes` says is scored at the size of its pixels.
      done: images whose scores are known from an earlier run. They are not given again, but batches are made as if
        they were new, so the others get the same digits as in a run that scores all.

    Yields:
      One `Scored` per image that is not done, in the order that suits the encoder.
    """
    known: dict[int, Size] = {}
    for index, size in enumerate(sizes):
        if isinstance(size, ImageError):
            yield Scored(index, None, error=size.reason)
        else:
            known[index] = size
    others: dict[int, Size] = {}
    yield from _score_sized(model, known, read, done, others)
    if others:
        yield from _score_sized(model, others, read, (), None)


def _score_sized(
    model: Scorer,
    sizes: Mapping[int, Size],
    read: Callable[[int], np.ndarray],
    done: Collection[int],
    others: dict[int, Size] | None,
) -> Iterator[Scored]:
    """Scores images of the sizes given; those that have another size after all go to `others`, or are an error."""
    order = list(sizes)

    def fetch(place: int) -> np.ndarray:
        index = order[place]
        image = read(index)
        if image.shape[:2] != sizes[index]:
            if others is not None:
                others[index] = image.shape[:2]
            raise ImageError(f"image {index}", "changed while it was being scored")
        return image

    places = {place for place, index in enumerate(order) if index in done}
    for place, outputs in model.run([sizes[index] for index in order], fetch, places):
        index = order[place]
        if place in places or (others is not None and index in others):
            continue
        if isinstance(outputs, ImageError):
            yield Scored(index, sizes[index], error=outputs.reason)
        elif not np.isfinite(outputs).all():
            yield Scored(index, sizes[index], error="the model gives no finite score")
        else:
            score, rating = float(model.score_of(outputs)), model.rating_of(outputs)
            yield Scored(index, sizes[index], outputs, score=score, rating=rating)
