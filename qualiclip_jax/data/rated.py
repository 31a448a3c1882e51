"""Images with human ratings: prepared sets by name, or anybody's own as a CSV file and a folder."""

import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qualiclip_jax import tabular
from qualiclip_jax.data import raters, store
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError, decode_image

_RATINGS, _SPLIT_COLUMNS = ("mos", "dmos"), ("split", "set")
_REFERENCE_COLUMNS = ("reference", "scene", "group")
_LABELS = ("mos_std", "reference", "distortion", "level", "split")
_SPLITS = {
    "": "",
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NOT_GIVEN = ("", "-", "na", "n/a", "nan", "none", "null")


@dataclasses.dataclass(frozen=True, eq=False)
class RatedSet:
    """N images and their ratings. Building one reads no image; images are read by index, from any thread.

    Attributes:
      name: what it was loaded as.
      ids: N names of images, unique.
      mos: float64 [N], mean opinion scores, higher is better (a published DMOS is mirrored within its scale).
      mos_std: float64 [N], standard deviations of the opinions, NaN where one is not known; or None.
      reference: N names of undistorted images, images of one content share it, "" for none; or None.
      distortion: N names of distortions, "" for none; or None.
      level: int32 [N], 1 the mildest, 0 for none; or None.
      split: N times "train", "validation", "test" or "", as published; or None.
      native_scale: lowest and highest rating of the set's own scale (of a CSV: those that occur).
      native_direction: "higher" or "lower": which ratings were the better ones before conversion.
      missing: how many images or ratings of the set are left out, because missing was allowed.
      title, licence, url: as published; licence and url are "" for a CSV.
      label_files: which files the ratings were read from.
      notes: what users should know about how the labels were read, a line each.
    """

    name: str
    ids: list[str]
    mos: np.ndarray
    mos_std: np.ndarray | None
    reference: list[str] | None
    distortion: list[str] | None
    level: np.ndarray | None
    split: list[str] | None
    native_scale: tuple[float, float]
    native_direction: str
    missing: int
    title: str
    licence: str
    url: str
    label_files: tuple[str, ...]
    _read: Callable[[int], bytes] = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def groups(self) -> np.ndarray:
        """Which images belong together, int [N]: those that share a reference; the others are alone."""
        names = self.reference or [""] * len(self)
        labels = [f"={name}" if name else f"#{index}" for index, name in enumerate(names)]
        return np.asarray(np.unique(labels, return_inverse=True)[1])

    def part(self, rows: np.ndarray) -> "RatedSet":
        """Some of the images, int [n], as a set of the same name."""
        kept = [int(row) for row in rows]
        some: dict[str, Any] = {}
        for name in ("ids", "mos", *_LABELS):
            values = getattr(self, name)
            some[name] = values[kept] if isinstance(values, np.ndarray) else values and [values[row] for row in kept]
        return dataclasses.replace(self, **some, _read=lambda index: self._read(kept[index]))

    def image_bytes(self, index: int) -> bytes:
        """The image file as published, undecoded.

        Raises:
          ImageError: it cannot be read.
        """
        index = range(len(self))[index]
        try:
            return self._read(index)
        except (OSError, RuntimeError, ValueError) as error:  # a file that is gone or damaged since it was loaded
            raise ImageError(self.ids[index], f"cannot be read ({str(error).splitlines()[0]})") from None

    def image(self, index: int) -> np.ndarray:
        """Decodes one image: uint8 [H, W, 3], RGB.

        Raises:
          ImageError: it cannot be read.
        """
        return decode_image(self.image_bytes(index), self.ids[index])


def load(spec: str, data_dir: str | os.PathLike[str] | None = None, allow_missing: bool = False) -> RatedSet:
    """Loads the ratings of a set; its images are read when asked for.

    A CSV file (any that `tabular` reads) has a header line with the columns `image` and `mos` (higher is better) or
    `dmos` (lower is better), and may have `mos_std`, `reference` (or `scene`, `group`), `distortion`, `level` and
    `split` (or `set`). Splits are called train, training, val, validation, test or testing, in any case. With a column
    `rater`, each row is one rating of one person, and `raters.opinions` makes the scores of the images.
    `RatedSet.notes` tells what was not understood.

    Args:
      spec: name of a prepared set ("koniq10k"); or "csv:PATH", images relative to the folder of the CSV file; or
        "csv:PATH@FOLDER", images relative to FOLDER.
      data_dir: where prepared sets lie; $TFDS_DATA_DIR or ~/tensorflow_datasets by default.
      allow_missing: leave out rows of a CSV file whose image file is missing. (A prepared set was checked when it was
        prepared; `RatedSet.missing` tells what it lacks.)

    Raises:
      UserError: not prepared; or in the CSV file a column, a number or an image file is missing or wrong.
    """
    if spec.startswith("csv:"):
        return _load_csv(spec, allow_missing)
    return _load_prepared(spec, data_dir)


def short_name(spec: str) -> str:
    """What a set is called where a spec is too long: "csv:ratings/my.csv@photos" is "my", "koniq10k" is itself."""
    return Path(spec.removeprefix("csv:").partition("@")[0]).stem if spec.startswith("csv:") else spec


def _load_prepared(name: str, data_dir: str | os.PathLike[str] | None) -> RatedSet:
    from qualiclip_jax.data.builders import IMAGE_SETS

    source = IMAGE_SETS.get(name)
    if source is None or not source.rated:
        known = ", ".join(s.name for s in IMAGE_SETS.values() if s.rated)
        raise UserError(f"no rated image set {name!r}; known are {known}, or give csv:PATH")
    folder = store.set_dir(name, data_dir)
    if not folder.is_dir():
        raise UserError(
            f"{name} is not prepared in {store.data_dir(data_dir)}: "
            f"python -m qualiclip_jax.data prepare {name} --manual-dir FOLDER. {source.how_to_get()}"
        )
    stored = store.read_labels(folder)
    labels, facts = stored["labels"], stored["source"]
    return RatedSet(
        name=name,
        ids=labels["id"],
        mos=np.asarray(labels["mos"], np.float64),
        mos_std=_floats(labels["mos_std"]),
        reference=_texts(labels["reference"]),
        distortion=_texts(labels["distortion"]),
        level=None if labels["level"] is None else np.asarray([v or 0 for v in labels["level"]], np.int32),
        split=_texts(labels["split"]),
        native_scale=tuple(facts["scale"]),
        native_direction="higher" if facts["higher_is_better"] else "lower",
        missing=stored["missing"],
        title=facts["title"],
        licence=facts["terms"],
        url=facts["url"],
        label_files=tuple(facts["label_files"]),
        _read=_Records(folder),
    )


class _Records:
    """Reads the undecoded image of a record; opened at the first use, so that labels alone stay cheap."""

    def __init__(self, folder: Path):
        self.folder = folder

    @functools.cached_property
    def _source(self) -> Any:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.folder)
        return builder.as_data_source("rated", decoders={"image": tfds.decode.SkipDecoding()})

    def __call__(self, index: int) -> bytes:
        image: bytes = self._source[index]["image"]
        return image

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}


def _load_csv(spec: str, allow_missing: bool) -> RatedSet:
    path, folder = _csv_paths(spec.removeprefix("csv:"))
    table = tabular.read(path, tabular.NAME_COLUMNS, _RATINGS)
    columns = _csv_columns(table)
    found = [_find(folder, name) for name in columns["image"]]
    absent = [name for name, file in zip(columns["image"], found) if file is None]
    if absent and (len(absent) == len(found) or not allow_missing):
        raise UserError(
            f"{path}: {len(absent)} of {len(found)} images are not in {folder}: {tabular.some(absent)}"
            + ("" if len(absent) == len(found) else " (--allow-missing goes on without them)")
        )
    columns["image"] = found
    kept = [index for index, name in enumerate(found) if name is not None]
    columns = {name: [values[index] for index in kept] for name, values in columns.items()}
    if "rater" in columns:
        columns = _by_image(columns)
    else:
        _check_once([table.where(index) for index in kept], columns["image"])
    ratings = np.asarray(columns.get("mos") or columns["dmos"], np.float64)
    low, high = float(ratings.min()), float(ratings.max())
    return RatedSet(
        name=spec,
        ids=columns["image"],
        mos=ratings if "mos" in columns else low + high - ratings,
        mos_std=_floats(columns.get("mos_std")),
        reference=columns.get("reference"),
        distortion=columns.get("distortion"),
        level=np.asarray(columns["level"], np.int32) if "level" in columns else None,
        split=columns.get("split"),
        native_scale=(low, high),
        native_direction="higher" if "mos" in columns else "lower",
        missing=len(absent),
        title=path.name,
        licence="",
        url="",
        label_files=(str(path),),
        _read=lambda index: (folder / columns["image"][index]).read_bytes(),
        notes=tuple(_notes(table)),
    )


def _find(folder: Path, name: str) -> str | None:
    """The name under which an image of a table lies in the folder; None if it does not."""
    return next((n for n in tabular.spellings(name) if os.path.isfile(folder / n)), None)


def _check_once(places: list[str], names: list[str]) -> None:
    first: dict[str, str] = {}
    for place, name in zip(places, names):
        if name in first:
            raise UserError(f"{place}: {tabular.some([name])} is rated already, in {first[name].rpartition(', ')[2]}")
        first[name] = place


def _by_image(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """One row for each image, with its mean opinion score, from one row for each rating."""
    name = "mos" if "mos" in columns else "dmos"
    found = raters.opinions(columns["image"], columns["rater"], columns[name])
    first = {image: index for index, image in reversed(list(enumerate(columns["image"])))}
    merged = {other: [values[first[image]] for image in found] for other, values in columns.items()}
    scores, deviations = zip(*found.values())
    return merged | {name: list(scores), "mos_std": list(deviations)}


def _csv_paths(given: str) -> tuple[Path, Path]:
    """Splits PATH or PATH@FOLDER (a file name may hold an @ itself) into the file and the folder of images."""
    pairs = [(Path(given), Path(given).parent)]
    pairs += [(Path(given[:at]), Path(given[at + 1 :])) for at, letter in enumerate(given) if letter == "@"]
    pairs = [(path.expanduser(), folder.expanduser()) for path, folder in pairs]  # no shell does so behind "csv:"
    path, folder = next((pair for pair in pairs if pair[0].is_file()), pairs[-1])
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    return path, folder


def _csv_columns(table: tabular.Table) -> dict[str, list[Any]]:
    """Columns by name, converted and checked; every error names file and line."""
    ratings = [name for name in _RATINGS if name in table.names]
    if len(ratings) > 1:
        raise UserError(f"{table.path}: has both mos and dmos: remove the column that is not meant")
    if not len(table):
        raise UserError(f"{table.path}: no rows below the header")
    images = table.column(table.find(*tabular.NAME_COLUMNS) or "")
    for index, name in enumerate(images):
        if not name.strip():
            raise UserError(f"{table.where(index)}, image: is empty")
    columns: dict[str, list[Any]] = {"image": images, ratings[0]: _numbers(table, ratings[0])}
    if "mos_std" in table.names:
        columns["mos_std"] = _numbers(table, "mos_std", math.nan)
    if "level" in table.names:
        columns["level"] = _numbers(table, "level", 0.0)
        for index, level in enumerate(columns["level"]):
            if not 0 <= level < 2**31 or level != int(level):
                raise UserError(
                    f"{table.where(index)}, level: {level:g} is not a level (0 for none, 1 the mildest, 2, ...)"
                )
    for name, label in (("reference", table.find(*_REFERENCE_COLUMNS)), ("distortion", table.find("distortion"))):
        if label:
            columns[name] = table.labels(label)
    if "rater" in table.names:
        columns["rater"] = table.labels("rater")
    split = table.find(*_SPLIT_COLUMNS)
    if split:
        columns["split"] = [_SPLITS.get(label.lower(), "") for label in table.labels(split)]
    return columns


def _numbers(table: tabular.Table, name: str, unknown: float | None = None) -> list[float]:
    """The numbers of a column; `unknown` stands for those that are not given, None allows none."""
    values: list[float] = table.numbers(name).tolist()
    for index, (value, field) in enumerate(zip(values, table.column(name))):
        if math.isnan(value):
            if unknown is None or field.strip().lower() not in _NOT_GIVEN:
                raise UserError(f"{table.where(index)}, {name}: {tabular.shown(field)} is not a finite number")
            values[index] = unknown
    return values


def _notes(table: tabular.Table) -> Iterator[str]:
    """What was not understood as its author may have meant it."""
    if not table.utf8:
        yield f"{table.path} is not UTF-8: its other bytes are read as Windows-1252"
    split = table.find(*_SPLIT_COLUMNS)
    odd = sorted({label for label in table.labels(split) if label.lower() not in _SPLITS}) if split else []
    if odd:
        yield f"column {split}: not known as train, validation or test, and left aside: {tabular.some(odd)}"
    if "level" in table.names:
        yield "column level: no figure of an evaluation depends on it"
    if "rater" in table.names:
        people = len(set(table.labels("rater")))
        yield f"column rater: {len(table)} ratings by {people}; scores are means without the biases of raters"
    known = {*tabular.NAME_COLUMNS, *_RATINGS, *_SPLIT_COLUMNS, *_REFERENCE_COLUMNS, *_LABELS, "rater"}
    unused = [name for name in dict.fromkeys(table.names) if name and name not in known]
    absent = [label for label in _LABELS if label not in table.names]
    meant = {name: difflib.get_close_matches(name, absent, 1, 0.7) for name in unused}
    unused.sort(key=lambda name: not meant[name])  # the misspelt ones first
    if unused:
        listed = [f"{name} (is {meant[name][0]} meant?)" if meant[name] else name for name in unused]
        yield f"columns not used: {tabular.some(listed, 8)}"


def _floats(column: list[Any] | None) -> np.ndarray | None:
    return None if column is None else np.asarray([math.nan if v is None else v for v in column], np.float64)


def _texts(column: list[Any] | None) -> list[str] | None:
    return None if column is None else [value or "" for value in column]
