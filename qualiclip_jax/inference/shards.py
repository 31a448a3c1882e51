"""Scoring shards: tar files as WebDataset makes them, and Parquet files of images, wherever fsspec reaches.

Each shard gets a table of its own, `NAME.scores.parquet`, written whole or not at all. So a run that was killed goes on
with the shards that have none, and loses one at most. Memory does not grow with the number of images: a window of
them is read while the one before is scored.
"""

import dataclasses
import io
import itertools
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

import fsspec
import numpy as np

from qualiclip_jax import tabular
from qualiclip_jax.errors import UserError, printable
from qualiclip_jax.images import IMAGE_EXTENSIONS, ImageError, decode_image, decode_size
from qualiclip_jax.inference import buckets, formats, output, urls
from qualiclip_jax.inference.files import Row, filled
from qualiclip_jax.inference.stream import Scorer, Size, ahead, score_images
from qualiclip_jax.progress import Progress, plural

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP

SCORES = ".scores"  # behind the name of a shard, before the extension of its table
_IMAGES = ("image", "bytes", "jpg", "jpeg", "png", "webp", "content", "data")  # columns that may hold images
_KEYS = ("__key__", "key", "id", "path", "file_name", "filename", "name", "url")  # and what they are called
_KINDS = {"path": str, "score": float, "width": int, "height": int, "bytes": int, "error": str}


@dataclasses.dataclass(frozen=True)
class Member:
    """An image in a shard.

    Attributes:
      key: its name there, or the number of its row.
      data: the bytes of the image file; or why there are none.
      end: how many bytes of the shard come up to its end; of a Parquet file on average.
    """

    key: str
    data: bytes | ImageError
    end: float = 0.0


@dataclasses.dataclass(frozen=True)
class Done:
    """What came out for a shard.

    Attributes:
      shard: which one.
      scored, failed: how many images have a score, and how many have none.
      problem: why it could not be read to its end, and so has no table; None if it could.
    """

    shard: str
    scored: int = 0
    failed: int = 0
    problem: str | None = None


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


def members(shard: str) -> Iterator[Member]:
    """Yields the images of a shard, one by one, without reading more of it than is needed.

    In a tar file they are the members with the extension of an image. A Parquet file has a column of bytes (`image`,
    `bytes`, `jpg` ..., or the structure of Hugging Face's data sets), or of paths beside it.

    Raises:
      UserError: the shard cannot be read, ends early, or has no images.
    """
    with urls.reading(shard) as file:
        yield from _of_tar(file) if shard.lower().endswith(".tar") else _of_parquet(file, shard)


def count_about(shard: str, size: int, most: int) -> float:
    """How many images a shard of so many bytes has, by the first `most` of them. Raises UserError as `members`."""
    first = list(itertools.islice(members(shard), most))
    return len(first) if len(first) < most else size / first[-1].end * len(first)


def targets(shards: Iterable[str], folder: str, suffix: str) -> dict[str, str]:
    """Where the table of each shard goes. Raises UserError where two have the same name."""
    every = list(shards)
    found = {shard: f"{folder.rstrip('/')}/{PurePosixPath(shard).stem}{SCORES}{suffix}" for shard in every}
    if len(set(found.values())) < len(every):
        raise UserError(
            "two of the shards have the same name, and so would their tables: score them one after the other"
        )
    return found


def score(
    model: Scorer,
    shards: Iterable[str],
    advance: Callable[[int], object] = lambda images: None,
    most: int | None = None,
) -> Iterator[tuple[str, list[Row] | UserError]]:
    """Scores shards one after the other, without a pause between them.

    Args:
      model: a `QualiCLIP`.
      shards: see `members`.
      advance: called with the number 1 after each image.
      most: take only so many images of each, the first ones; None for all.

    Yields:
      Each shard with a `Row` for each of its images, in their order; `path` is the key. Or with the reason why the
      shard could not be read to its end.
    """
    coming: dict[int, tuple[int, Member]] = {}  # images on their way, with the number of their shard
    rows: dict[int, dict[int, Row]] = {}  # of the shards that are not done
    ended: dict[int, tuple[str, int | UserError]] = {}  # shards read to their end, and how many images they have
    images = itertools.count()

    def noted(number: int, shard: str) -> Iterator[Member]:
        rows[number], found = {}, 0
        try:
            for member in itertools.islice(members(shard), most):
                found += 1
                coming[next(images)] = number, member
                yield member
            ended[number] = shard, found
        except UserError as error:
            ended[number] = shard, error

    def windows() -> Iterator[list[Size | ImageError]]:
        for number, shard in enumerate(shards):
            sizes = map(_size, noted(number, shard))
            yield from buckets.windows(sizes, buckets.WINDOW if number else buckets.FIRST_WINDOW)

    def done() -> Iterator[tuple[str, list[Row] | UserError]]:
        for number, (shard, found) in list(ended.items()):
            if isinstance(found, UserError) or len(rows[number]) == found:
                yield shard, found if isinstance(found, UserError) else [rows[number][i] for i in sorted(rows[number])]
                del ended[number], rows[number]

    for scored in score_images(model, ahead(windows()), lambda i: _pixels(coming[i][1])):
        number, member = coming.pop(scored.index)
        row = Row(member.key, bytes=len(member.data) if isinstance(member.data, bytes) else None)
        if number in rows:
            rows[number][scored.index] = filled(row, scored, len(model.prompts))
            advance(1)
        yield from done()
    yield from done()


def score_to_tables(
    model: "QualiCLIP",
    tables: Mapping[str, str],
    attributes: bool,
    advance: Callable[[int], object] = lambda images: None,
) -> Iterator[Done]:
    """Scores shards, and writes their tables.

    Args:
      model: the model.
      tables: where the table of each shard goes, see `targets`.
      attributes: whether tables have a column for each antonym pair.
      advance: as in `score`.
    """
    for shard, rows in score(model, tables, advance):
        if isinstance(rows, UserError):
            yield Done(shard, problem=str(rows))
        else:
            _write(tables[shard], rows, model, attributes)
            scored = sum(row.error is None for row in rows)
            yield Done(shard, scored, len(rows) - scored)


Engine = Callable[["QualiCLIP", Mapping[str, str], bool, Callable[[int], object]], Iterator[Done]]


def score_shards(
    model: "QualiCLIP",
    arguments: Sequence[str],
    folder: str,
    *,
    attributes: bool = False,
    part: tuple[int, int] = (1, 1),
    suffix: str = ".parquet",
    engine: Engine = score_to_tables,
) -> Outcome:
    """Scores shards and writes a table for each, with progress.

    Args:
      model: the model.
      arguments: shards and patterns of them, see `urls.expand`.
      folder: path or URL of the folder of the tables.
      attributes: whether tables have a column for each antonym pair.
      part: (K, N): take every N-th shard, from the K-th on.
      suffix: the format of the tables, one of `formats.FORMATS`.
      engine: what does the work; like `score_to_tables`.

    Raises:
      UserError: two shards of one name, tables of another model, a folder that cannot be written.
    """
    if suffix == ".parquet" or any(argument.lower().endswith(".parquet") for argument in arguments):
        tabular.pyarrow()
    tables = targets(itertools.chain.from_iterable(map(urls.expand, arguments)), folder, suffix)
    share = dict(itertools.islice(tables.items(), part[0] - 1, None, part[1]))
    with ThreadPoolExecutor(16) as pool:  # a store takes its time
        there = dict(zip(share, pool.map(lambda shard: written(shard, share[shard], model.fingerprint), share)))
    missing = {shard: table for shard, table in share.items() if there[shard] is None}
    status = lambda: "compiling ..." if model.compiling else ""
    with Progress(None, "scoring", "image", status=status) as progress:
        done = engine(model, missing, attributes, progress.advance)
        return told(done, len(share), len(share) - len(missing), progress)


def told(done: Iterable[Done], shards: int, earlier: int, progress: Progress) -> Outcome:
    """Sums up what comes out of a run, and tells it meanwhile.

    Args:
      done: shards as they are done.
      shards: how many there are in all.
      earlier: how many had been scored already.
      progress: of the run.
    """
    scored, failed, broken = 0, 0, 0
    for number, one in enumerate(done, earlier + 1):
        scored, failed = scored + one.scored, failed + one.failed
        if one.problem is not None:
            broken += 1
            progress.write(printable(one.problem))
        progress.advance(0, f"{number} of {shards} {plural(shards, 'shard')}")
    return Outcome(scored, failed, earlier, broken)


def summary(outcome: Outcome) -> str:
    """What came out, in a few words."""
    words = f"{outcome.scored} scored, {outcome.failed} failed"
    words += f", {outcome.broken} {plural(outcome.broken, 'shard')} could not be read" if outcome.broken else ""
    earlier = f"; {outcome.earlier} {plural(outcome.earlier, 'shard')} scored before" if outcome.earlier else ""
    return words + earlier


def _of_tar(file: BinaryIO) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for info in tar:
            if info.isfile() and PurePosixPath(info.name).suffix.lower() in IMAGE_EXTENSIONS:
                content = tar.extractfile(info)
                assert content is not None
                yield Member(info.name, content.read(), info.offset_data + info.size)


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
    each = file.seek(0, io.SEEK_END) / max(1, table.metadata.num_rows)
    rows = itertools.chain.from_iterable(batch.to_pylist() for batch in table.iter_batches(64, columns=wanted))
    for number, row in enumerate(rows):
        value, name = row[column], str(number if key is None else row[key])
        if isinstance(value, dict):
            name, value = str(value.get("path") or name), value.get("bytes")
        if isinstance(value, str):
            name, value = value, _read_beside(shard, value)
        data = ImageError(name, "there is no image in this row") if value is None else value
        yield Member(name, data, (number + 1) * each)


def _read_beside(shard: str, path: str) -> bytes | ImageError:
    """The file that a row names: a URL, or a path from the folder of the shard."""
    url = path if "://" in path or path.startswith("/") else f"{shard.rpartition('/')[0] or '.'}/{path}"
    try:
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read()
            return data
    except (OSError, ValueError, ImportError) as error:
        return ImageError(path, urls.reason(error))


def _size(member: Member) -> Size | ImageError:
    try:
        return decode_size(_data(member), member.key)
    except ImageError as error:
        return error


def _pixels(member: Member) -> np.ndarray:
    return decode_image(_data(member), member.key)


def _data(member: Member) -> bytes:
    if isinstance(member.data, ImageError):
        raise member.data
    return member.data


def _write(target: str, rows: Sequence[Row], model: "QualiCLIP", attributes: bool) -> None:
    """Writes the table of a shard, whole or not at all; the extension is the format."""
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
    data = formats.to_bytes(records, PurePosixPath(target).suffix, kinds)
    with urls.writing(target) as file:
        file.write(data)


def written(shard: str, table: str, fingerprint: str) -> Done | None:
    """What the table of a shard holds; None if there is none.

    Raises:
      UserError: it is of another model, or no such table.
    """
    if not urls.exists(table):
        return None
    with urls.reading(table) as file:
        data = file.read()
    try:
        rows = list(tabular.records(table, ("score",), (output.CHECKPOINT,), data=data))
        models = {row[output.CHECKPOINT] for row in rows}
        scored = sum(row.get("score") not in (None, "") for row in rows)
    except (UserError, KeyError) as error:
        reason = str(error).removeprefix(table).lstrip(":, ")
        raise UserError(f"{table} exists and is not a table of scores ({reason})") from None
    if models - {fingerprint}:
        raise UserError(
            f"{table} holds scores of another checkpoint ({', '.join(map(str, models))}, this one is {fingerprint}): "
            "choose another --output"
        )
    return Done(shard, scored, len(rows) - scored)
