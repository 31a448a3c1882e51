"""Scores of the images of a rated set: computed and kept as they come, or read from a file."""

import collections
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qualiclip_jax import storage, tabular
from qualiclip_jax.data.rated import short_name
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError, decode_image, decode_size
from qualiclip_jax.inference.stream import Scored, Scorer, Size, in_threads, score_images
from qualiclip_jax.progress import Progress, track


class Images(Protocol):
    """What is needed of a `RatedSet`."""

    @property
    def name(self) -> str: ...

    @property
    def ids(self) -> list[str]: ...

    def image_bytes(self, index: int) -> bytes: ...


class Keeps(Protocol):
    """What is needed of a `Kept`."""

    def __contains__(self, key: str) -> bool: ...

    def __getitem__(self, key: str) -> Any: ...

    def put(self, key: str, value: Any) -> None: ...


class Kept:
    """Values by key, in a file of JSON lines to which each new one is appended at once.

    A run that is killed leaves at most a last line cut off, which is ignored.

    Args:
      path: the file; it is made with the first value. None keeps values in memory alone.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._values: dict[str, Any] = {}
        for pair in storage.read_jsonl(path) if path else ():
            if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str):
                self._values[pair[0]] = pair[1]

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def put(self, key: str, value: object) -> None:
        """Keeps a value that JSON can hold; one that is there already stays.

        Raises:
          UserError: if the file cannot be written.
        """
        if key in self._values:
            return
        self._values[key] = value
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with storage.JsonLines(self.path) as lines:
                lines.append([key, value])
        except OSError as error:
            raise UserError(f"{self.path}: scores cannot be kept there ({error.strerror or error})") from None


def content_key(data: bytes) -> str:
    """Names the content of an image, whatever its file is called."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def score_set(model: Scorer, rated: Images, kept: Kept, title: str = "scoring") -> np.ndarray:
    """Scores all images of a set, or rates them if the model rates; those that are kept from an earlier run stay.

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
    value = lambda scored: scored.score if scored.rating is None else float(scored.rating[0])
    return np.array(values_of_set(model, rated, kept, value, title), np.float64)


def values_of_set(model: Scorer, rated: Images, kept: Keeps, value: Callable[[Scored], Any], title: str) -> list[Any]:
    """Gives a value for each image of a set, except those whose values are kept from an earlier run.

    Images are scored in an order of their own (by size, then content), in batches that depend on the set alone. So
    neither the order of the set nor an interruption changes a digit.

    Args:
      model: a `QualiCLIP`.
      rated: the set.
      kept: values by `content_key`; new ones are put in.
      value: of an image that was scored without an error.
      title: of the progress bar.

    Returns:
      N values as they are in `kept`.

    Raises:
      UserError: images that cannot be read or scored; the others are kept.
    """
    found = [
        *track(in_threads(_key_and_size(rated), range(len(rated.ids))), len(rated.ids), f"{title}: reading", "image")
    ]
    errors = [item for item in found if isinstance(item, ImageError)]
    if errors:
        raise _unreadable(errors, len(rated.ids), rated.name)
    keys, sizes = zip(*found)
    first = {key: index for index, key in reversed(list(enumerate(keys)))}  # key -> one image that has it
    order = sorted(first, key=lambda key: (sizes[first[key]], key))
    known = {position for position, key in enumerate(order) if key in kept}

    def read(position: int) -> np.ndarray:
        index = first[order[position]]
        return decode_image(rated.image_bytes(index), rated.ids[index])

    if len(known) < len(order):
        with Progress(len(order), title, "image", done=len(known)) as progress:
            for scored in score_images(model, [[sizes[first[key]] for key in order]], read, known):
                key = order[scored.index]
                if scored.error is None:
                    kept.put(key, value(scored))
                else:
                    errors.append(ImageError(rated.ids[first[key]], scored.error))
                progress.advance()
    if errors:
        raise _unreadable(errors, len(rated.ids), rated.name)
    return [kept[key] for key in keys]


def _key_and_size(rated: Images) -> Callable[[int], tuple[str, Size]]:
    """A function that gives the `content_key` and the size of an image by index."""

    def key_and_size(index: int) -> tuple[str, Size]:
        try:
            data = rated.image_bytes(index)
        except OSError as error:
            raise ImageError(rated.ids[index], str(error.strerror or error)) from None
        return content_key(data), decode_size(data, rated.ids[index])

    return key_and_size


def _unreadable(errors: Sequence[ImageError], images: int, name: str) -> UserError:
    return UserError(
        f"{name}: {len(errors)} of {images} images cannot be scored, first {errors[0]}: "
        "mend them, or take them out of the set"
    )


def read_scores(path: Path, rated: Images, lower_is_better: bool = False) -> np.ndarray:
    """Scores of the images of a set from a table, for judging any metric.

    The table has a column that names the image (`tabular.NAME_COLUMNS`) and a column `score`; with a column `dataset`,
    only the rows of this set count. What `qualiclip score` and `qualiclip evaluate` write is such a table. An image is
    found by its whole name, else by as many of its folders as tell it from others in the table and in the set. Rows of
    other images may hold anything.

    Args:
      path: the file, as `tabular.read` takes it.
      rated: the set.
      lower_is_better: turn the scores around.

    Returns:
      float64 [N], higher is better.

    Raises:
      UserError: a column is missing, or an image has no score, two of them, or one that is no finite number.
    """
    table = tabular.read(path, tabular.NAME_COLUMNS, ("score",))
    names, values = table.column(table.find(*tabular.NAME_COLUMNS) or ""), table.numbers("score")
    rows = _rows_of(table, rated.name)
    found = _match(rated.ids, {row: names[row] for row in rows if not math.isnan(values[row])}, table)
    missing = [name for name, row in zip(rated.ids, found) if row is None]
    if missing:
        bad = {_tail(names[row], 1): row for row in reversed(rows) if math.isnan(values[row])}
        row = next((bad[_tail(name, 1)] for name in missing if _tail(name, 1) in bad), None)
        reason = "" if row is None else f" (line {table.lines[row]} has {tabular.shown(table.column('score')[row])})"
        raise UserError(
            f"{path}: no score for {len(missing)} of {len(rated.ids)} images of {rated.name}: "
            f"{tabular.some(missing)}{reason}"
        )
    scores = values[np.array(found, int)]
    return np.asarray(-scores if lower_is_better else scores)


def _match(ids: Sequence[str], names: Mapping[int, str], table: tabular.Table) -> list[int | None]:
    """For each of the images `ids` the row that has its name, as `read_scores` tells; None for none."""
    found: list[int | None] = [None] * len(ids)
    depth = max(tabular.plain(name).count("/") for name in ids) + 1
    forms: list[Callable[[str], str]] = [str, tabular.plain]
    forms += [functools.partial(_tail, parts=parts) for parts in range(depth, 0, -1)]
    for form in forms:
        rows: dict[str, list[int]] = {}
        for row, name in names.items():
            rows.setdefault(form(name), []).append(row)
        keys = [form(name) for name in ids]
        images = collections.Counter(keys)
        for index, key in enumerate(keys):
            same = rows.get(key, []) if found[index] is None else []
            if form is str and len(same) > 1:
                where = f"{table.where(same[1])}: a second score for {tabular.some([key])}"
                raise UserError(f"{where}, after line {table.lines[same[0]]}")
            if len(same) == images[key] == 1:
                found[index] = same[0]
        if None not in found:
            break
    return found


def _rows_of(table: tabular.Table, dataset: str) -> Sequence[int]:
    """The rows of a table that are of a set: all, or those that a column `dataset` says."""
    if "dataset" not in table.names:
        return range(len(table))
    given = table.labels("dataset")
    forms: tuple[Callable[[str], str], ...] = (str, short_name)
    for form in forms:
        rows = [row for row, name in enumerate(given) if form(name) == form(dataset)]
        if rows:
            return rows
    raise UserError(f"{table.path}: no scores for {dataset}; its column dataset has {tabular.some(sorted(set(given)))}")


def _tail(name: str, parts: int) -> str:
    """The last parts of a path, its file name the last one."""
    return "/".join(tabular.plain(name).split("/")[-parts:])
