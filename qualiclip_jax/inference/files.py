"""Scoring image files: one row per file, whatever is wrong with it."""

import dataclasses
import datetime
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from qualiclip_jax.images import ImageError, decode_image, decode_size, read_image, read_size
from qualiclip_jax.inference import buckets, urls
from qualiclip_jax.inference.stream import Scored, Scorer, Size, ahead, in_threads, score_images

_REMOTE_THREADS = 32  # that wait for files from elsewhere


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
      rating: MOS and the two ends of its interval, where the model rates.
      causes: the faults that stand out, in words; see `explain.causes`.
      burst, burst_rank: number of the burst that it belongs to, and its place there by score, 1 for the best.
    """

    path: str
    score: float | None = None
    attributes: tuple[float, ...] | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    modified: str | None = None
    error: str | None = None
    rating: tuple[float, ...] | None = None
    causes: str | None = None
    burst: int | None = None
    burst_rank: int | None = None


def state_of(path: str | os.PathLike[str]) -> dict[str, int | str | None]:
    """`bytes` and `modified` of a `Row`; None if the file cannot be looked at."""
    if urls.is_url(os.fspath(path)):
        return urls.state(os.fspath(path))
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return {"bytes": None, "modified": None}
    return {"bytes": status.st_size, "modified": _moment(status.st_mtime_ns // 1000)}


def _moment(microseconds: int) -> str:
    """A time since 1970 as text: ISO 8601, or `@SECONDS` where it lies outside the years 1 to 9999."""
    try:
        moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=microseconds)
    except OverflowError:
        return f"@{microseconds // 10**6}.{microseconds % 10**6:06}"
    return f"{moment.isoformat(timespec='microseconds')}Z"


def score_files(
    model: Scorer,
    paths: Sequence[str | os.PathLike[str]],
    known: Mapping[str, Row] | None = None,
    max_side: int | None = None,
    tell: Callable[[np.ndarray, Size], str] | None = None,
) -> Iterator[Row]:
    """Scores image files.

    Args:
      model: a `QualiCLIP`.
      paths: the files.
      known: rows of an earlier run by path, of files that have not changed since. They are not given again; but the
        others are put into the same batches as if they were new, and get the same digits.
      max_side: larger images are shrunk before they are scored, so that their longer side has so many pixels.
      tell: gives the causes from the outputs of the model for an image, and its size.

    Yields:
      One `Row` per path that is not known, in the order that suits the encoder.
    """
    known = known or {}
    begun: dict[int, _Begun] = {}  # the files that are on their way

    def sizes() -> Iterator[Size | ImageError]:
        threads = _REMOTE_THREADS if any(urls.is_url(str(path)) for path in paths[:1]) else None
        for index, file in enumerate(in_threads(lambda path: _begin(str(path), known), paths, threads)):
            assert not isinstance(file, ImageError)  # it does not raise
            begun[index] = file
            yield file.size if isinstance(file.size, ImageError) else shrunk_size(file.size, max_side)

    def read(index: int) -> np.ndarray:
        path, data = str(paths[index]), begun[index].data
        if data is None and urls.is_url(path):
            data = urls.fetch(path)
        return shrunk(read_image(path) if data is None else decode_image(data, path), max_side)

    done = {index for index, path in enumerate(paths) if str(path) in known}
    for scored in score_images(model, ahead(buckets.windows(sizes())), read, done):
        file = begun.pop(scored.index)
        row = filled(file.row, scored, len(model.prompts))
        if tell is not None and scored.outputs is not None and scored.size is not None:
            row = dataclasses.replace(row, causes=tell(scored.outputs, scored.size))
        yield row if max_side is None or isinstance(file.size, ImageError) else _of_size(row, file.size)


def shrunk_size(size: Size, max_side: int | None) -> Size:
    """Height and width of an image after `shrunk`."""
    if max_side is None or max(size) <= max_side:
        return size
    height, width = (max(1, round(side * max_side / max(size))) for side in size)
    return height, width


def shrunk(image: np.ndarray, max_side: int | None) -> np.ndarray:
    """An image uint8 [H, W, 3], shrunk (Lanczos) to a longer side of `max_side` pixels if it is larger."""
    size = shrunk_size((image.shape[0], image.shape[1]), max_side)
    if size == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def _of_size(row: Row, size: Size) -> Row:
    """A row that tells the size of the file, not that at which it was scored."""
    return row if row.height is None else dataclasses.replace(row, height=size[0], width=size[1])


@dataclasses.dataclass(frozen=True)
class _Begun:
    """What is known of a file before it is decoded: its size in pixels, and its content if it came from elsewhere."""

    row: Row
    size: Size | ImageError
    data: bytes | None = None


def _begin(path: str, known: Mapping[str, Row]) -> _Begun:
    row = known.get(path) or Row(path, **state_of(path))  # type: ignore[arg-type]
    if row.score is not None and row.height is not None and row.width is not None:
        return _Begun(row, (row.height, row.width))
    try:
        if not urls.is_url(path):
            return _Begun(row, read_size(path))
        data = urls.fetch(path)
        return _Begun(row, decode_size(data, path), data)
    except ImageError as error:
        return _Begun(row, error)


def filled(row: Row, scored: Scored, pairs: int) -> Row:
    """A row with what came out for its image; `pairs` is the number of antonym pairs."""
    height, width = scored.size or (row.height, row.width)
    if scored.outputs is None:
        return dataclasses.replace(row, height=height, width=width, error=scored.error)
    return dataclasses.replace(
        row,
        height=height,
        width=width,
        score=shortest(np.float32(scored.score)),
        attributes=tuple(map(shortest, scored.outputs[:pairs])),
        rating=None if scored.rating is None else tuple(map(shortest, scored.rating)),
    )


def shortest(value: np.floating) -> float:
    """The float whose text is the shortest that still gives the same float32."""
    return float(str(np.float32(value)))
