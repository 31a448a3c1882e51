"""Where pristine images come from: a folder, a prepared tfds data set, or scikit-image's photographs.

A source is a random-access sequence of images: `len(source)`, `source[i]` -> uint8 [H, W, 3], `source.names[i]`,
`source.size(i)` from the header alone, `source.describe()`. Images are decoded when asked for, never kept.
All sources may be read from several threads.
"""

import importlib.util
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qualiclip_jax.data import store
from qualiclip_jax.data.rated import RatedSet
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError, decode_image, decode_size, list_images, read_image, read_size

SPECS = (
    "folder:PATH, tfds:NAME[:SPLIT][@DATA_DIR], sample, sample:train, sample:test; several joined by commas; "
    "8* before one counts it eight times"
)

SAMPLE_TRAIN = (
    "astronaut.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
SAMPLE_TEST = ("chelsea.png", "coffee.png")  # held out: no training reads them
SAMPLES = {"": SAMPLE_TRAIN + SAMPLE_TEST, "train": SAMPLE_TRAIN, "test": SAMPLE_TEST}

MOST_TIMES = 1000  # that one source may be counted
_PROBES = 100  # images tried before a source counts as without a readable one


class Source(Protocol):
    """A random-access sequence of images."""

    @property
    def names(self) -> Sequence[str]:
        """What errors and records call the images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray:
        """Decodes image `index` to uint8 [H, W, 3]; raises `ImageError` if it cannot be read."""

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of image `index` from its header; raises `ImageError` if that cannot be read."""

    def describe(self) -> str:
        """A few words for the screen and the logs."""


def open_source(spec: str, field: str = "data.source") -> Source:
    """Opens a source of images.

    Args:
      spec: `folder:PATH` (recursive; also a file or a glob pattern), `tfds:NAME[:SPLIT][@DATA_DIR]` (a prepared
        ArrayRecord data set), `sample`, `sample:train` or `sample:test` (the colour photographs inside
        scikit-image's wheel), or several of these joined by commas. `8*folder:PATH` counts each image eight times, so
        that a small source weighs more beside a large one.
      field: what an error calls the place where `spec` was given.

    Returns:
      A source with at least one readable image.

    Raises:
      UserError: no such kind, folder, data set or split; or no readable image there.
    """
    parts = re.split(r",(?=\s*(?:\d+\*)?(?:folder:|tfds:|sample(?:$|[:,])))", spec)
    sources: list[Source] = []
    for part in parts:
        times, one = re.findall(r"^(?:(\d+)\*)?(.*)$", part.strip(), re.DOTALL)[0]
        if times and not 1 <= int(times) <= MOST_TIMES:
            raise UserError(f"{field}: {part.strip()!r}: a source counts 1 to {MOST_TIMES} times")
        sources += [_open_one(one, field)] * int(times or 1)
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def _open_one(spec: str, field: str) -> Source:
    kind, _, rest = spec.partition(":")
    source: Source
    if kind == "folder" and rest:
        source = FolderSource(rest)
    elif kind == "tfds" and rest:
        source = TfdsSource(rest)
    elif kind == "sample" and rest in SAMPLES:
        source = SampleSource(rest)
    else:
        raise UserError(f"{field}: {spec!r} is not a source of images; use one of: {SPECS}")
    _require_readable(source)
    return source


def _require_readable(source: Source) -> None:
    tried = min(len(source), _PROBES)
    first = None
    for k in range(tried):
        try:
            source[k * len(source) // tried]
            return
        except ImageError as error:
            first = first or error
    raise UserError(f"{source.describe()}: none of the {tried} images tried can be read; the first: {first}")


class FolderSource:
    """The image files of a folder and the folders in it, sorted by path."""

    def __init__(self, where: str | os.PathLike[str], paths: Sequence[Path] | None = None):
        self._where = os.path.expanduser(where)
        self.paths = list_images(self._where) if paths is None else list(paths)

    @cached_property
    def names(self) -> list[str]:
        if not os.path.isdir(self._where):
            return [str(path) for path in self.paths]
        return [path.relative_to(self._where).as_posix() for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_image(self.paths[index])

    def size(self, index: int) -> tuple[int, int]:
        return read_size(self.paths[index])

    def describe(self) -> str:
        return f"folder:{self._where} ({len(self)} images)"


class SampleSource(FolderSource):
    """The colour photographs inside scikit-image's wheel (nothing is downloaded)."""

    def __init__(self, part: str = ""):
        package = importlib.util.find_spec("skimage")
        if package is None or not package.submodule_search_locations:
            raise UserError("sample: scikit-image is not installed; pip install scikit-image")
        folder = Path(package.submodule_search_locations[0], "data")
        super().__init__(folder, [folder / name for name in SAMPLES[part]])
        self._spec = f"sample:{part}" if part else "sample"
        missing = [path.name for path in self.paths if not path.is_file()]
        if missing:
            raise UserError(
                f"{self._spec}: {', '.join(missing)} not in {folder}; reinstall scikit-image from its wheel"
            )

    @cached_property
    def names(self) -> list[str]:
        return [path.stem for path in self.paths]

    def describe(self) -> str:
        return f"{self._spec} ({len(self)} photographs of scikit-image)"


class TfdsSource:
    """The images of a data set that tfds prepared as ArrayRecord; TensorFlow is never imported.

    Args:
      spec: `NAME[:SPLIT][@DATA_DIR]`. NAME as tfds writes it (`kadis700k`), or the folder of one prepared version.
        SPLIT is `train` where there is one, else all splits; slices such as `train[:10%]` work. DATA_DIR is the
        environment variable TFDS_DATA_DIR where it is set, else ~/tensorflow_datasets.
    """

    def __init__(self, spec: str):
        rest, _, data_dir = spec.partition("@")
        self._name, _, split = rest.partition(":")
        builder = _open_builder(self._name, store.data_dir(data_dir))
        splits = tuple(builder.info.splits)
        self._split = split or ("train" if "train" in splits else "all")
        if re.split(r"\W", self._split)[0] not in (*splits, "all"):
            raise UserError(f"tfds:{spec}: no split {self._split!r}; it has {', '.join(splits)}")
        self._feature, self._records = _read_encoded(builder, self._split)
        if not len(self._records):
            raise UserError(f"tfds:{spec}: split {self._split!r} is empty")

    @property
    def names(self) -> Sequence[str]:
        return _NumberedNames(f"{self._name}:{self._split}", len(self))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> np.ndarray:
        return decode_image(self._encoded(index), self.names[index])

    def size(self, index: int) -> tuple[int, int]:
        return decode_size(self._encoded(index), self.names[index])

    def _encoded(self, index: int) -> bytes:
        try:
            return bytes(self._records[index][self._feature])
        except RuntimeError as error:  # how array_record says that a part of the file is damaged
            raise ImageError(self.names[index], f"damaged record ({str(error).splitlines()[0]})") from None

    def describe(self) -> str:
        return f"tfds:{self._name}:{self._split} ({len(self)} images)"


class _NumberedNames(Sequence[str]):
    """`PREFIX#0`, `PREFIX#1`, ... without holding them."""

    def __init__(self, prefix: str, count: int):
        self._prefix, self._count = prefix, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        chosen = range(self._count)[index]
        return [f"{self._prefix}#{k}" for k in chosen] if isinstance(chosen, range) else f"{self._prefix}#{chosen}"


def _open_builder(name: str, data_dir: Path) -> Any:
    """The tfds builder that reads what was prepared, from its files alone."""
    import tensorflow_datasets as tfds

    try:
        if Path(name, "dataset_info.json").is_file():
            return tfds.builder_from_directory(name)
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"tfds:{name}: no prepared data set of that name in {data_dir}; python -m qualiclip_jax.data prepare makes "
            f"one; tfds:{name}@DATA_DIR or the environment variable TFDS_DATA_DIR says where it is"
        ) from error


def _read_encoded(builder: Any, split: str) -> tuple[str, Sequence[dict[str, Any]]]:
    """The name of the image feature, and random access to records in which it is the bytes of the image file."""
    import tensorflow_datasets as tfds

    images = [name for name, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
    if "image" not in images and len(images) != 1:
        raise UserError(f"tfds:{builder.name}: no feature `image` (image features: {', '.join(images) or 'none'})")
    encoded = {name: tfds.decode.SkipDecoding() for name in images}
    try:
        records = builder.as_data_source(split=split, decoders=encoded)
    except NotImplementedError as error:
        raise UserError(f"tfds:{builder.name}: not stored as ArrayRecord; prepare it so") from error
    except ValueError as error:
        raise UserError(f"tfds:{builder.name}: {str(error).splitlines()[0]}") from error
    return "image" if "image" in images else images[0], records


class RatedSource:
    """The images of a rated set, each with a number.

    Args:
      rated: the set.
      values: float32 [N].
    """

    def __init__(self, rated: RatedSet, values: np.ndarray):
        self._rated, self.values = rated, values

    @property
    def names(self) -> Sequence[str]:
        return self._rated.ids

    def __len__(self) -> int:
        return len(self._rated)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._rated.image(index)

    def size(self, index: int) -> tuple[int, int]:
        return decode_size(self._rated.image_bytes(index), self._rated.ids[index])

    def describe(self) -> str:
        return f"{len(self)} rated images of {self._rated.name}"


class JoinedSource:
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self._ends = list(accumulate(len(source) for source in sources))

    @cached_property
    def names(self) -> list[str]:
        return [name for source in self._sources for name in source.names]

    def _locate(self, index: int) -> tuple[Source, int]:
        index = range(len(self))[index]
        k = bisect_right(self._ends, index)
        return self._sources[k], index - (self._ends[k - 1] if k else 0)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> np.ndarray:
        source, local = self._locate(index)
        return source[local]

    def size(self, index: int) -> tuple[int, int]:
        source, local = self._locate(index)
        return source.size(local)

    def describe(self) -> str:
        runs = ((source.describe(), len(list(group))) for source, group in groupby(self._sources))
        return " + ".join(f"{times} x {one}" if times > 1 else one for one, times in runs)
