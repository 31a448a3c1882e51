"""Scores of the images of a rated set: computed and kept as they come, or read from a file."""

import collections
import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError, decode_image, decode_size
from qualiclip_jax.progress import Progress

_NAME_COLUMNS = ("image", "path", "file", "name")


class Images(Protocol):
    """What is needed of a `RatedSet`."""

    name: str
    ids: list[str]

    def image_bytes(self, index: int) -> bytes: ...


class Kept:
    """Values by key, in a file of JSON lines to which each new one is appended at once.

    A run that is killed leaves at most a last line cut off, which is ignored.

    Args:
      path: the file; it is made with the first value.
    """

    def __init__(self, path: Path):
        self.path = path
        self._values: dict[str, object] = {}
        self._cut = False
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            self._cut = not text.endswith("\n") and bool(text)
            for line in text.splitlines():
                try:
                    key, value = json.loads(line)
                except (ValueError, TypeError):  # cut off, or no pair
                    continue
                self._values[key] = value

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str):
        return self._values[key]

    def put(self, key: str, value: object) -> None:
        """Keeps a value that JSON can hold; one that is there already stays.

        Raises:
          UserError: if the file cannot be written.
        """
        if key in self._values:
            return
        self._values[key] = value
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(("\n" if self._cut else "") + json.dumps([key, value]) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: scores cannot be kept there ({error.strerror or error})") from None
        self._cut = False


def content_key(data: bytes) -> str:
    """Names the content of an image, whatever its file is called."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def score_set(model, rated: Images, kept: Kept, title: str = "scoring") -> np.ndarray:
    """Scores all images of a set, except those whose scores are kept from an earlier run.

    Images are scored in an order of their own (by size, then content), in batches that depend on the set alone. So
    neither the order of the set nor an interruption changes a digit.

    Args:
      model: a `QualiCLIP`.
      rated: the set.
      kept: scores of this model by `content_key`; new ones are put in.
      title: of the progress bar.

    Returns:
      float64 [N].

    Raises:
      UserError: images that cannot be read or scored; the others are kept.
    """
    keys, sizes = zip(*_in_threads(lambda index: _key_and_size(rated, index), len(rated.ids), f"{title}: reading"))
    errors = [size for size in sizes if isinstance(size, ImageError)]
    if errors:
        raise _unreadable(errors, len(rated.ids), rated.name)
    first = {key: index for index, key in reversed(list(enumerate(keys)))}  # key -> one image that has it
    order = sorted(first, key=lambda key: (sizes[first[key]], key))
    known = {position for position, key in enumerate(order) if key in kept}

    def fetch(position: int) -> np.ndarray:
        index = first[order[position]]
        image = decode_image(rated.image_bytes(index), rated.ids[index])
        if image.shape[:2] != sizes[index]:
            raise ImageError(rated.ids[index], "its header gives another size than its pixels")
        return image

    if len(known) < len(order):
        with Progress(len(order), title, "image", done=len(known)) as progress:
            for position, attributes in model.run([sizes[first[key]] for key in order], fetch, known):
                key = order[position]
                if isinstance(attributes, ImageError):
                    errors.append(ImageError(rated.ids[first[key]], attributes.reason))
                    continue
                score = float(np.float32(attributes.mean()))
                if not math.isfinite(score):
                    raise UserError(f"{rated.name}: the model gives {rated.ids[first[key]]} no finite score")
                kept.put(key, score)
                progress.advance(position not in known)
    if errors:
        raise _unreadable(errors, len(rated.ids), rated.name)
    return np.array([kept[key] for key in keys], np.float64)


def _key_and_size(rated: Images, index: int) -> tuple[str, tuple[int, int] | ImageError]:
    try:
        data = rated.image_bytes(index)
        return content_key(data), decode_size(data, rated.ids[index])
    except ImageError as error:
        return "", error
    except OSError as error:
        return "", ImageError(rated.ids[index], str(error.strerror or error))


def _in_threads(function, count: int, title: str) -> Iterator:
    with ThreadPoolExecutor(4) as pool, Progress(count, title, "image") as progress:
        for result in pool.map(function, range(count)):
            progress.advance()
            yield result


def _unreadable(errors: Sequence[ImageError], images: int, name: str) -> UserError:
    return UserError(
        f"{name}: {len(errors)} of {images} images cannot be scored, first {errors[0]}: "
        "mend them, or take them out of the set"
    )


def read_scores(path: Path, rated: Images, lower_is_better: bool = False) -> np.ndarray:
    """Scores of the images of a set from a CSV file, for judging any metric.

    The file has a column `image` (or `path`, `file`, `name`) and a column `score`; with a column `dataset`, only the
    rows of this set count. An image is found by its name in the set,
    else by its file name where that is unique in both.

    Args:
      path: the file.
      rated: the set.
      lower_is_better: turn the scores around.

    Returns:
      float64 [N], higher is better.

    Raises:
      UserError: a column, a number or the score of an image is missing or wrong.
    """
    by_name = _read_rows(path, rated.name)
    by_file: dict[str, list[float]] = {}
    for name, score in by_name.items():
        by_file.setdefault(_file_name(name), []).append(score)
    images = collections.Counter(map(_file_name, rated.ids))
    scores = np.full(len(rated.ids), np.nan)
    for index, name in enumerate(rated.ids):
        same_file = by_file.get(_file_name(name), [])
        if name in by_name:
            scores[index] = by_name[name]
        elif len(same_file) == images[_file_name(name)] == 1:
            scores[index] = same_file[0]
    missing = [name for name, score in zip(rated.ids, scores) if math.isnan(score)]
    if missing:
        raise UserError(
            f"{path}: no score for {len(missing)} of {len(scores)} images of {rated.name}, e.g. {missing[0]}"
        )
    return -scores if lower_is_better else scores


def _file_name(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def _read_rows(path: Path, dataset: str) -> dict[str, float]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    columns = [name.strip().lower() for name in next(reader, [])]
    name_column = next((name for name in _NAME_COLUMNS if name in columns), None)
    if name_column is None or "score" not in columns:
        raise UserError(f"{path}: needs the columns image and score, it has {', '.join(columns) or 'none'}")
    found: dict[str, float] = {}
    for fields in filter(None, reader):
        where = f"{path}, line {reader.line_num}"
        if len(fields) != len(columns):
            raise UserError(f"{where}: {len(fields)} fields, the header has {len(columns)}")
        row = dict(zip(columns, (field.strip() for field in fields)))
        if row.get("dataset", dataset) != dataset:
            continue
        try:
            score = float(row["score"])
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise UserError(f"{where}: the score of {row[name_column]} is {row['score']!r}, a finite number is needed")
        if row[name_column] in found:
            raise UserError(f"{where}: a second score for {row[name_column]}")
        found[row[name_column]] = score
    if not found:
        raise UserError(f"{path}: no scores for {dataset}")
    return found
