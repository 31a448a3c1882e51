"""Choosing images by their scores: thresholds over many tables, lists, and shards that hold a part of others."""

import dataclasses
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO

import numpy as np

from qualiclip_jax import tabular
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import IMAGE_EXTENSIONS
from qualiclip_jax.inference import shards, urls
from qualiclip_jax.progress import Progress

LISTS = (".txt", ".csv", ".jsonl")
BINS, WIDTH = 20, 50  # of the histogram

Masks = list[np.ndarray]  # bool, for each table one number a row


def find(arguments: Sequence[str]) -> list[str]:
    """The tables that paths, URLs and patterns mean. Raises UserError where nothing fits, or one is there twice."""
    tables = [name for argument in arguments for name in urls.expand(argument)]
    if len(set(tables)) < len(tables):
        raise UserError("a table is named twice")
    return tables


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What a selection is made by; of each row no more than this is kept in memory.

    Attributes:
      values: for each table, float32 of its rows; NaN where there is none.
      groups: for each table, the number of the group of each row.
    """

    values: list[np.ndarray]
    groups: list[np.ndarray]

    @classmethod
    def read(cls, tables: Sequence[str], by: str, per: str | None) -> "Scores":
        """Reads the column `by` of tables, and groups by the column `per`.

        Raises:
          UserError: a table that cannot be read, that lacks a column, or whose values are no numbers.
        """
        values, groups, numbers = [], [], dict[str, int]()
        with Progress(len(tables), "reading", "table") as progress:
            for table in tables:
                rows = [(_value(table, row, by), str(row.get(per)) if per else "") for row in _rows(table, by, per)]
                values.append(np.array([value for value, _ in rows], np.float32))
                groups.append(np.array([numbers.setdefault(group, len(numbers)) for _, group in rows], np.int32))
                progress.advance()
        if not any(np.isfinite(part).any() for part in values):
            raise UserError(f"no row of these tables has a value in the column {by}")
        return cls(values, groups)

    @property
    def count(self) -> int:
        """How many rows have a value."""
        return int(sum(np.isfinite(part).sum() for part in self.values))

    def choose(self, top: tuple[float, bool] | None, above: float | None) -> Masks:
        """The rows that are chosen.

        Args:
          top: of each group so many of the highest values, or (number, True) so many per cent of them, rounded, at
            least one; where values are equal, the first.
          above: the least value.
        """
        values, groups = np.concatenate(self.values), np.concatenate(self.groups)
        chosen = np.isfinite(values)
        if top is not None:
            best = np.zeros_like(chosen)
            order = np.flatnonzero(chosen)
            order = order[np.lexsort((-values[order], groups[order]))]  # stable: by group, then from the highest
            _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
            for start, count in zip(starts, counts):
                most = max(1, round(top[0] / 100 * count)) if top[1] else int(top[0])
                best[order[start : start + min(most, count)]] = True
            chosen &= best
        if above is not None:
            chosen &= values >= above
        return np.split(chosen, np.cumsum([len(part) for part in self.values])[:-1])

    def histogram(self, chosen: Masks) -> str:
        """How values are spread, as lines of text: bars of all images, and dark within them those that are chosen."""
        values, taken = np.concatenate(self.values), np.concatenate(chosen)
        taken, values = taken[np.isfinite(values)], values[np.isfinite(values)]
        low, high = (
            (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (float(values.min()), float(values.max()))
        )
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1, dtype=np.float32)
        every, of_taken = (np.histogram(part, edges)[0] for part in (values, values[taken]))
        lines = [f"{'from':>8s}  {'images':>9s}  {'chosen':>9s}"]
        for edge, count, number in zip(edges, every, of_taken):
            dark, whole = (round(WIDTH * part / every.max()) for part in (number, count))
            lines.append(f"{edge:8.3f}  {count:9,d}  {number:9,d}  {'█' * dark}{'░' * (whole - dark)}".rstrip())
        return "\n".join(lines)


def write_list(tables: Sequence[str], chosen: Masks, by: str, out: str) -> None:
    """Writes the chosen rows as a list, whole or not at all: paths, or paths with their value and their table.

    Raises:
      UserError: another extension, a file that is there, names that a list of lines cannot hold.
    """
    if not out.endswith(LISTS):
        raise UserError(f"--out {out}: the extension must be one of {', '.join(LISTS)}")
    if urls.exists(out):
        raise UserError(f"--out {out} exists: choose another, or remove it")
    with urls.writing(out) as file:
        if out.endswith(".csv"):
            file.write(tabular.to_csv(("path", by, "table"), ()))
        for table, mask in zip(tables, chosen):
            for row, taken in zip(_rows(table, by, None), mask):
                if taken:
                    file.write(_line(str(row["path"]), _value(table, row, by), by, table, out))


def write_shards(patterns: Sequence[str], tables: Sequence[str], chosen: Masks, folder: str) -> None:
    """Writes new shards of what is chosen, each whole or not at all; those that are there stay as they are.

    Of a tar file, all members of a sample go along, those with the name of the image up to its first dot.

    Raises:
      UserError: a shard without a table, or that is not the one that the table was made of.
    """
    masks = {PurePosixPath(table).stem.removesuffix(shards.SCORES): mask for table, mask in zip(tables, chosen)}
    every = [shard for pattern in patterns for shard in urls.expand(pattern)]
    for shard in every:
        if PurePosixPath(shard).stem not in masks:
            raise UserError(f"{shard}: there is no table {PurePosixPath(shard).stem}{shards.SCORES} among those given")
    with Progress(len(every), "writing", "shard") as progress:
        for shard in every:
            name, mask = PurePosixPath(shard).name, masks[PurePosixPath(shard).stem]
            target = f"{folder.rstrip('/')}/{name}"
            if not urls.exists(target):
                with urls.reading(shard) as source, urls.writing(target) as file:
                    copy = _copy_tar if name.lower().endswith(".tar") else _copy_parquet
                    if copy(source, file, mask) != len(mask):
                        raise UserError(f"{shard} does not have the {len(mask)} images of its table: score it again")
            progress.advance()


def _copy_tar(source: BinaryIO, file: BinaryIO, mask: np.ndarray) -> int:
    """Copies the samples that are chosen; returns how many images there are. Members of a sample follow each other."""
    images, held = 0, list[tuple[tarfile.TarInfo, bytes]]()
    name, taken = "", False

    def flush() -> None:
        for info, data in held if taken else ():
            new.addfile(info, io.BytesIO(data))
        held.clear()

    with tarfile.open(fileobj=source, mode="r|*") as old, tarfile.open(fileobj=file, mode="w|") as new:
        for info in old:
            content = old.extractfile(info) if info.isfile() else None
            if content is None:
                continue
            path = PurePosixPath(info.name)
            sample = str(path.with_name(path.name.partition(".")[0]))
            if sample != name:
                flush()
                name, taken = sample, False
            held.append((info, content.read()))
            if path.suffix.lower() in IMAGE_EXTENSIONS:
                taken |= images < len(mask) and bool(mask[images])
                images += 1
        flush()
    return images


def _copy_parquet(source: BinaryIO, file: BinaryIO, mask: np.ndarray) -> int:
    """Copies the rows that are chosen, with all their columns; returns how many there are."""
    pa, parquet = tabular.pyarrow()
    table, first = parquet.ParquetFile(source), 0
    with parquet.ParquetWriter(file, table.schema_arrow) as writer:
        for batch in table.iter_batches(256):
            part = mask[first : first + len(batch)]
            first += len(batch)
            if len(part) == len(batch):
                writer.write_batch(batch.filter(pa.array(part)))
    return first


def _rows(table: str, by: str, per: str | None) -> Iterator[dict[str, object]]:
    wanted = [name for name in ("path", by, per) if name]
    with urls.reading(table) as file:
        data = file.read()
    for number, row in enumerate(tabular.records(table, *((name,) for name in wanted), data=data), 1):
        if missing := [name for name in wanted if name not in row]:
            raise UserError(f"{table}: row {number} has no {', '.join(missing)}")
        yield row


def _value(table: str, row: dict[str, object], by: str) -> float:
    value = row[by]
    try:
        return float("nan") if value in (None, "") else float(str(value))
    except ValueError:
        raise UserError(f"{table}: {tabular.shown(str(value))} in the column {by} is no number") from None


def _line(path: str, value: float, by: str, table: str, out: str) -> bytes:
    if out.endswith(".csv"):
        return tabular.to_csv(("path", by, "table"), [(path, value, table)]).split(b"\n", 1)[1]
    if out.endswith(".jsonl"):
        return (json.dumps({"path": path, by: value, "table": table}) + "\n").encode()
    if "\n" in path:
        raise UserError(f"--out {out}: the name {tabular.shown(path)} has a line break; use .csv or .jsonl")
    return path.encode(errors="surrogateescape") + b"\n"
