"""Images with human ratings: prepared sets by name, or anybody's own as a CSV file and a folder."""

import csv
import dataclasses
import functools
import io
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qualiclip_jax.data import store
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError, decode_image

_SHOWN = 3  # of the things that are wrong, how many an error names


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

    def __len__(self) -> int:
        return len(self.ids)

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


def load(spec: str, data_dir: str | os.PathLike | None = None, allow_missing: bool = False) -> RatedSet:
    """Loads the ratings of a set; its images are read when asked for.

    A CSV file has a header line with the columns `image` and `mos` (higher is better) or `dmos` (lower is better), and
    may have `mos_std`, `reference`, `distortion`, `level` and `split`, separated by commas, semicolons or tabs.

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


def _load_prepared(name: str, data_dir: str | os.PathLike | None) -> RatedSet:
    from qualiclip_jax.data.builders import SOURCES

    source = SOURCES.get(name)
    if source is None or not source.rated:
        known = ", ".join(s.name for s in SOURCES.values() if s.rated)
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
        return self._source[index]["image"]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}


def _load_csv(spec: str, allow_missing: bool) -> RatedSet:
    path, folder = _csv_paths(spec.removeprefix("csv:"))
    columns = _read_csv(path)
    files = [folder / image for image in columns["image"]]
    there = [os.path.isfile(file) for file in files]  # False also for a name that no file can have
    absent = [image for image, is_there in zip(columns["image"], there) if not is_there]
    if absent and (len(absent) == len(files) or not allow_missing):
        raise UserError(
            f"{path}: {len(absent)} of {len(files)} images are not in {folder}: {_some(absent)}"
            + ("" if len(absent) == len(files) else " (--allow-missing goes on without them)")
        )
    columns = {name: [v for v, is_there in zip(values, there) if is_there] for name, values in columns.items()}
    files = [file for file, is_there in zip(files, there) if is_there]
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
        _read=lambda index: files[index].read_bytes(),
    )


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


def _read_csv(path: Path) -> dict[str, list]:
    """Columns by name, converted and checked; every error names file and line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    names = [name.strip().lower() for name in next(reader, [])]
    if "image" not in names or len({"mos", "dmos"} & set(names)) != 1:
        raise UserError(f"{path}: needs the columns image and mos (or dmos), it has {', '.join(names) or 'none'}")
    twice = [name for name in names if name in _CONVERT and names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: has the column {twice[0]} twice")
    columns = {name: [] for name in names if name in _CONVERT}
    first_line: dict[str, int] = {}
    for row in _rows(reader, path):
        if not any(field.strip() for field in row):
            continue
        where = f"{path}, line {reader.line_num}"
        if len(row) != len(names):
            raise UserError(f"{where}: {len(row)} fields, the header has {len(names)}")
        for name, field in zip(names, row):
            if name in columns:
                columns[name].append(_CONVERT[name](field.strip(), f"{where}, {name}"))
        image = columns["image"][-1]
        if image in first_line:
            raise UserError(f"{where}: {image} is rated in line {first_line[image]} already")
        first_line[image] = reader.line_num
    if not first_line:
        raise UserError(f"{path}: no rows below the header")
    return columns


def _rows(reader: Any, path: Path) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:  # a quotation mark that is never closed
        raise UserError(f"{path}, line {reader.line_num}: {error}; is a quotation mark missing?") from None


def _text(field: str, where: str) -> str:
    return field


def _name(field: str, where: str) -> str:
    if not field:
        raise UserError(f"{where}: is empty")
    return field


def _number(field: str, where: str) -> float:
    try:
        value = float(field)
    except ValueError:
        raise UserError(f"{where}: {field!r} is not a number") from None
    if not math.isfinite(value):
        raise UserError(f"{where}: {field} is not a finite number")
    return value


def _number_or_nan(field: str, where: str) -> float:
    return _number(field, where) if field else math.nan


def _level(field: str, where: str) -> int:
    value = _number(field or "0", where)
    if not 0 <= value < 2**31 or value != int(value):
        raise UserError(f"{where}: {field} is not a level (0 for none, 1 the mildest, 2, ...)")
    return int(value)


_CONVERT: dict[str, Callable[[str, str], Any]] = {
    "image": _name,
    "mos": _number,
    "dmos": _number,
    "mos_std": _number_or_nan,
    "reference": _text,
    "distortion": _text,
    "level": _level,
    "split": _text,
}


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _floats(column: list | None) -> np.ndarray | None:
    return None if column is None else np.asarray([math.nan if v is None else v for v in column], np.float64)


def _texts(column: list | None) -> list[str] | None:
    return None if column is None else [value or "" for value in column]
