"""Scoring shards: tar files as WebDataset makes them, and Parquet files of images, wherever fsspec reaches.

Each shard gets a table of its own, `NAME.scores.parquet`, written whole or not at all. So a run that was killed goes on
with the shards that have none, and loses one at most. Memory does not grow with the number of images: a window of
them is read while the one before is scored.
"""

import contextlib
import dataclasses
import itertools
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from qualiclip_jax import storage, tabular
from qualiclip_jax.errors import UserError, printable
from qualiclip_jax.images import IMAGE_EXTENSIONS, ImageError, decode_image, decode_size
from qualiclip_jax.inference import formats, output
from qualiclip_jax.inference.files import Row, filled
from qualiclip_jax.inference.stream import Scorer, in_threads, score_images
from qualiclip_jax.progress import Progress, plural

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP

SCORES = ".scores.parquet"
MOST_IMAGES, MOST_BYTES = 2000, 2.56e8  # of a window: enough for full batches of mixed sizes
_IMAGES = ("image", "bytes", "jpg", "jpeg", "png", "webp", "content", "data")  # columns that may hold images
_KEYS = ("__key__", "key", "id", "path", "file_name", "filename", "name", "url")  # and what they are called
_KINDS = {"path": str, "score": float, "width": int, "height": int, "bytes": int, "error": str}


@dataclasses.dataclass(frozen=True)
class Member:
    """An image in a shard.

    Attributes:
      key: its name there, or the number of its row.
      data: the bytes of the image file; or why there are none.
    """

    key: str
    data: bytes | ImageError


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out of a run.

    Attributes:
      scored, failed: how many images have a score, and how many have none.
      earlier: shards that had been scored already.
      broken: shards that could not be read to their end; they have no table.
    """

    scored: int
    failed: int
    earlier: int
    broken: int


def expand(argument: str) -> list[str]:
    """The shards that a pattern means, in order: braces as in a shell, then `*`, `?` and `[...]`.

    Args:
      argument: a path or URL, e.g. "s3://bucket/{0000..0999}.tar".

    Raises:
      UserError: no file fits, or nothing can read such a URL.
    """
    if (braces := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", argument)) is not None:
        first, last, words = braces.groups()
        if words is None:
            numbers = (
                range(int(first), int(last) + 1) if int(first) <= int(last) else range(int(first), int(last) - 1, -1)
            )
            parts = [str(number).zfill(len(first)) for number in numbers]
        else:
            parts = words.split(",")
        before, after = argument[: braces.start()], argument[braces.end() :]
        return [shard for part in parts for shard in expand(f"{before}{part}{after}")]
    if not re.search(r"[*?\[]", argument):
        return [argument]
    system, path = _system(argument)
    found = sorted(system.glob(path))
    if not found:
        raise UserError(f"{argument}: no shard fits this pattern")
    return found if isinstance(system, LocalFileSystem) else [system.unstrip_protocol(name) for name in found]


def members(shard: str) -> Iterator[Member]:
    """Yields the images of a shard, one by one, without reading more of it than is needed.

    In a tar file they are the members with the extension of an image. A Parquet file has a column of bytes (`image`,
    `bytes`, `jpg` ..., or the structure of Hugging Face's data sets), or of paths beside it.

    Raises:
      UserError: the shard cannot be read, ends early, or has no images.
    """
    with reading(shard) as file:
        yield from _of_tar(file) if shard.lower().endswith(".tar") else _of_parquet(file, shard)


@contextlib.contextmanager
def reading(shard: str) -> Iterator[BinaryIO]:
    """Opens a shard; whatever is wrong with reading it becomes a UserError that names it."""
    try:
        with fsspec.open(shard, "rb") as file:
            yield file
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{shard}: no such file") from None
    except (OSError, EOFError, tarfile.TarError, ValueError, ImportError) as error:
        raise UserError(f"{shard}: cannot be read ({_reason(error)})") from None


def score_shard(model: Scorer, shard: str) -> Iterator[Row]:
    """Scores the images of a shard.

    Args:
      model: a `QualiCLIP`.
      shard: see `members`.

    Yields:
      A `Row` for each image, in windows, in each of them in the order of the shard; `path` is the key.

    Raises:
      UserError: as `members`.
    """
    for window in _ahead(_windows(members(shard))):
        yield from _score(model, window)


def score_shards(
    model: "QualiCLIP",
    arguments: Sequence[str],
    folder: str,
    *,
    attributes: bool = False,
    part: tuple[int, int] = (1, 1),
) -> Outcome:
    """Scores shards and writes a table for each, with progress.

    Args:
      model: the model.
      arguments: shards and patterns of them, see `expand`.
      folder: path or URL of the folder of the tables.
      attributes: whether tables have a column for each antonym pair.
      part: (K, N): take every N-th shard, from the K-th on.

    Raises:
      UserError: two shards of one name, tables of another model, a folder that cannot be written.
    """
    tabular.pyarrow()
    every = list(itertools.chain.from_iterable(map(expand, arguments)))
    targets = {shard: f"{folder.rstrip('/')}/{PurePosixPath(shard).stem}{SCORES}" for shard in every}
    if len(set(targets.values())) < len(every):
        raise UserError(
            "two of the shards have the same name, and so would their tables: score them one after the other"
        )
    share = every[part[0] - 1 :: part[1]]
    done = {shard for shard in share if _is_done(targets[shard], model.fingerprint)}
    scored, failed, broken = 0, 0, 0
    status = lambda: "compiling ..." if model.compiling else ""
    with Progress(None, "scoring", "image", status=status) as progress:
        for number, shard in enumerate(share, 1):
            if shard in done:
                continue
            rows = []
            try:
                for row in score_shard(model, shard):
                    rows.append(row)
                    progress.advance(1, f"shard {number} of {len(share)}")
            except UserError as error:
                broken += 1
                progress.write(printable(str(error)))
                continue
            _write(targets[shard], _table(rows, model, attributes))
            failed += (wrong := sum(row.error is not None for row in rows))
            scored += len(rows) - wrong
    return Outcome(scored, failed, len(done), broken)


def summary(outcome: Outcome) -> str:
    """What came out, in a few words."""
    words = f"{outcome.scored} scored, {outcome.failed} failed"
    words += f", {outcome.broken} {plural(outcome.broken, 'shard')} could not be read" if outcome.broken else ""
    earlier = f"; {outcome.earlier} {plural(outcome.earlier, 'shard')} scored before" if outcome.earlier else ""
    return words + earlier


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it."""
    try:
        system, path = fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:  # an unknown protocol, or one whose package is missing
        raise UserError(f"{url}: {_reason(error)}") from None
    return system, path


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0]


def _of_tar(file: BinaryIO) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for info in tar:
            if info.isfile() and PurePosixPath(info.name).suffix.lower() in IMAGE_EXTENSIONS:
                content = tar.extractfile(info)
                assert content is not None
                yield Member(info.name, content.read())


def _of_parquet(file: BinaryIO, shard: str) -> Iterator[Member]:
    pa, parquet = tabular.pyarrow()
    table = parquet.ParquetFile(file)
    kinds = {field.name: field.type for field in table.schema_arrow}
    binary = [name for name, kind in kinds.items() if pa.types.is_binary(kind) or pa.types.is_large_binary(kind)]
    holds = [name for name, kind in kinds.items() if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0]
    paths = [name for name in ("path", "file_name", "image") if name in kinds and pa.types.is_string(kinds[name])]
    likely = sorted(binary, key=lambda name: _IMAGES.index(name) if name in _IMAGES else len(_IMAGES))
    column = next(iter([*holds, *likely, *paths]), None)
    if column is None:
        raise UserError(f"{shard}: no column of images (bytes, or paths in a column path) among {', '.join(kinds)}")
    key = next((name for name in _KEYS if name in kinds and name != column), None)
    wanted = [column] if key is None else [column, key]
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in table.iter_batches(64, columns=wanted))
    for number, row in enumerate(rows):
        value, name = row[column], str(number if key is None else row[key])
        if isinstance(value, dict):
            name, value = str(value.get("path") or name), value.get("bytes")
        if isinstance(value, str):
            name, value = value, _read_beside(shard, value)
        yield Member(name, ImageError(name, "there is no image in this row") if value is None else value)


def _read_beside(shard: str, path: str) -> bytes | ImageError:
    """The file that a row names: a URL, or a path from the folder of the shard."""
    url = path if "://" in path or path.startswith("/") else f"{shard.rpartition('/')[0] or '.'}/{path}"
    try:
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read()
            return data
    except (OSError, ValueError, ImportError) as error:
        return ImageError(path, _reason(error))


def _data(member: Member) -> bytes:
    if isinstance(member.data, ImageError):
        raise member.data
    return member.data


def _score(model: Scorer, window: Sequence[Member]) -> list[Row]:
    rows: dict[int, Row] = {}
    sizes = list(in_threads(lambda i: decode_size(_data(window[i]), window[i].key), len(window)))
    for scored in score_images(model, sizes, lambda i: decode_image(_data(window[i]), window[i].key)):
        member = window[scored.index]
        row = Row(member.key, bytes=len(member.data) if isinstance(member.data, bytes) else None)
        rows[scored.index] = filled(row, scored, len(model.prompts))
    return [rows[index] for index in range(len(window))]


def _windows(found: Iterable[Member]) -> Iterator[list[Member]]:
    """The images in lists, each of so many and so large ones as are read at once."""
    window: list[Member] = []
    held = 0
    for member in found:
        window.append(member)
        held += len(member.data) if isinstance(member.data, bytes) else 0
        if len(window) >= MOST_IMAGES or held >= MOST_BYTES:
            yield window
            window, held = [], 0
    if window:
        yield window


def _ahead(windows: Iterator[list[Member]]) -> Iterator[list[Member]]:
    """The same; each is read while the one before is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="shard") as pool:
        coming = pool.submit(next, windows, None)
        while (window := coming.result()) is not None:
            coming = pool.submit(next, windows, None)
            yield window


def _table(rows: Sequence[Row], model: "QualiCLIP", attributes: bool) -> bytes:
    columns = output.attribute_columns(model.prompts) if attributes else []
    rating = output.RATING if model.rating is not None else ()
    records = [
        {name: getattr(row, name) for name in _KINDS}
        | dict(zip(rating, row.rating or [None] * len(rating)))
        | dict(zip(columns, row.attributes or [None] * len(columns)))
        | {output.CHECKPOINT: model.fingerprint}
        for row in rows
    ]
    kinds = _KINDS | dict.fromkeys((*rating, *columns), float) | {output.CHECKPOINT: str}
    return formats.to_bytes(records, ".parquet", kinds)


def _is_done(target: str, fingerprint: str) -> bool:
    """Whether the table of a shard is there. Raises UserError if it is of another model, or no such table."""
    system, path = _system(target)
    if not system.exists(path):
        return False
    _, parquet = tabular.pyarrow()
    try:
        with system.open(path, "rb") as file:
            models = set(parquet.read_table(file, columns=[output.CHECKPOINT])[output.CHECKPOINT].to_pylist())
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{target} exists and is not a table of scores ({_reason(error)})") from None
    if models - {fingerprint}:
        raise UserError(
            f"{target} holds scores of another checkpoint ({', '.join(map(str, models))}, this one is {fingerprint}): "
            "choose another --output"
        )
    return True


def _write(target: str, data: bytes) -> None:
    """Writes a table, whole or not at all; the folder is made."""
    system, path = _system(target)
    if isinstance(system, LocalFileSystem):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(path, data)
    else:
        system.pipe_file(path, data)  # what appears in a bucket is whole
