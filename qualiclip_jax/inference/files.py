"""Scoring image files: one row per file, whatever is wrong with it."""

import dataclasses
import datetime
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from qualiclip_jax.images import ImageError, read_image, read_size

Size = tuple[int, int]


class Scorer(Protocol):
    """What `QualiCLIP.run` offers."""

    def run(
        self, sizes: Sequence[Size], fetch: Callable[[int], np.ndarray], done: Collection[int]
    ) -> Iterator[tuple[int, np.ndarray | ImageError]]: ...


@dataclasses.dataclass(frozen=True)
class Row:
    """What came out for one file: a score, or an error.

    Attributes:
      path: the file, as it was given.
      score: in [0, 1], higher is better; None where there is an error.
      attributes: one score per antonym pair.
      width, height: in pixels, upright.
      bytes, modified: size and time of the file when it was scored (UTC, ISO 8601); tell whether it changed since.
      error: why there is no score.
    """

    path: str
    score: float | None = None
    attributes: tuple[float, ...] | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    modified: str | None = None
    error: str | None = None


def state_of(path: str | os.PathLike) -> dict[str, int | str | None]:
    """`bytes` and `modified` of a `Row`; None if the file cannot be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return {"bytes": None, "modified": None}
    moment = datetime.datetime.fromtimestamp(status.st_mtime_ns // 1000 / 1e6, datetime.UTC)
    return {"bytes": status.st_size, "modified": moment.isoformat(timespec="microseconds").replace("+00:00", "Z")}


def score_files(
    model: Scorer, paths: Sequence[str | os.PathLike], known: Mapping[str, Row] | None = None
) -> Iterator[Row]:
    """Scores image files.

    Args:
      model: a `QualiCLIP`.
      paths: the files.
      known: rows of an earlier run by path, of files that have not changed since. They are not given again; but the
        others are put into the same batches as if they were new, and get the same digits.

    Yields:
      One `Row` per path that is not known, in the order that suits the encoder.
    """
    known = known or {}
    rows = [known.get(str(path)) or Row(str(path), **state_of(path)) for path in paths]
    sizes: dict[int, Size] = {}
    for i, size in enumerate(_in_threads(_size_or_error, rows)):
        if isinstance(size, ImageError):
            yield dataclasses.replace(rows[i], error=size.reason)
        else:
            sizes[i] = size
    others: dict[int, Size] = {}  # the pixels turn out to have another size than the header said
    yield from _score_sized(model, rows, sizes, others)
    yield from _score_sized(model, rows, others, None)


def _score_sized(
    model: Scorer, rows: list[Row], sizes: dict[int, Size], others: dict[int, Size] | None
) -> Iterator[Row]:
    """Scores `rows` of the sizes given; those that have another one after all go to `others`, or are an error."""
    order = list(sizes)
    done = {k for k, i in enumerate(order) if rows[i].score is not None}

    def fetch(k: int) -> np.ndarray:
        i = order[k]
        image = read_image(rows[i].path)
        if image.shape[:2] != sizes[i]:
            if others is not None:
                others[i] = image.shape[:2]
            raise ImageError(rows[i].path, "changed while it was being scored")
        return image

    for k, attributes in model.run([sizes[i] for i in order], fetch, done):
        i = order[k]
        if k not in done and (others is None or i not in others):
            yield _filled(rows[i], sizes[i], attributes)


def _filled(row: Row, size: Size, attributes: np.ndarray | ImageError) -> Row:
    row = dataclasses.replace(row, height=size[0], width=size[1])
    if isinstance(attributes, ImageError):
        return dataclasses.replace(row, error=attributes.reason)
    if not np.isfinite(attributes).all():
        return dataclasses.replace(row, error="the model gives no finite score")
    values = tuple(shortest(value) for value in attributes)
    return dataclasses.replace(row, score=shortest(attributes.mean()), attributes=values)


def shortest(value: np.floating) -> float:
    """The float whose text is the shortest that still gives the same float32."""
    return float(str(np.float32(value)))


def _size_or_error(row: Row) -> Size | ImageError:
    try:
        return (row.height, row.width) if row.score is not None else read_size(row.path)
    except ImageError as error:
        return error


def _in_threads(function, items: Iterable) -> list:
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1), thread_name_prefix="header") as pool:
        return list(pool.map(function, items))
