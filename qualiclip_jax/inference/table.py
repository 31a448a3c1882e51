"""The table of scores on disk: CSV, JSON lines or Parquet, resumable and shared by several processes.

While a run lasts, each process appends its rows to a file of its own beside the output, `<output>.part-K-of-N`. Whoever
finishes last merges them into the output. A run that is repeated takes from the output and from such parts what was
scored already, by path, size and time of the file.
"""

import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qualiclip_jax import storage
from qualiclip_jax.errors import UserError
from qualiclip_jax.inference.files import Row, state_of

FORMATS = (".csv", ".jsonl", ".parquet")
_COLUMNS = {"path": str, "score": float, "width": int, "height": int, "bytes": int, "modified": str, "error": str}
CHECKPOINT = "checkpoint"


def attribute_columns(prompts: Sequence[tuple[str, str]]) -> list[str]:
    """A column name for each antonym pair, after its positive prompt: "Sharp image." becomes `sharp_image`."""
    names: list[str] = []
    for positive, _ in prompts:
        name = re.sub(r"\W+", "_", positive.lower()).strip("_") or "attribute"
        if name in (*_COLUMNS, CHECKPOINT):
            name += "_attribute"
        clashes = sum(re.fullmatch(rf"{re.escape(name)}(_\d+)?", other) is not None for other in names)
        names.append(f"{name}_{clashes + 1}" if clashes else name)
    return names


@dataclasses.dataclass(frozen=True)
class Table:
    """Where the rows of one list of files go.

    Attributes:
      output: the file to write; its extension is the format.
      checkpoint: fingerprint of the model; rows of another are refused.
      columns: names of the attributes (`attribute_columns`); in the output only if `with_attributes`.
      with_attributes: whether the output has them.
      part, parts: this process is number `part` (from 1) of `parts` that share the list.
    """

    output: Path
    checkpoint: str
    columns: Sequence[str]
    with_attributes: bool = False
    part: int = 1
    parts: int = 1

    def check(self) -> None:
        """Finds out before the work whether the output can be written.

        Raises:
          UserError: another extension, no such folder, or a package is missing.
        """
        if self.output.suffix not in FORMATS:
            raise UserError(f"--output {self.output}: the extension must be one of {', '.join(FORMATS)}")
        if not self.output.parent.is_dir():
            raise UserError(f"--output {self.output}: there is no folder {self.output.parent}")
        if not os.access(self.output.parent, os.W_OK):
            raise UserError(f"--output {self.output}: no permission to write in {self.output.parent}")
        if self.output.suffix == ".parquet":
            _pyarrow()

    def known(self) -> dict[str, Row]:
        """Rows of earlier runs, by path: those without an error, of files that have not changed since.

        Raises:
          UserError: if they were made with another checkpoint, or the output is not a table of scores.
        """
        found: dict[str, Row] = {}
        for record in self._records():
            row = self._to_row(record)
            unchanged = {"bytes": row.bytes, "modified": row.modified} == state_of(row.path)
            complete = row.attributes is not None or not self.with_attributes
            if row.error is None and row.score is not None and complete and unchanged:
                found[row.path] = row
        return found

    def start(self, rows: Sequence[Row]) -> None:
        """Begins this process's part with what is `known` of its share."""
        self._part().unlink(missing_ok=True)
        self.append(rows)
        self._part(done=True).unlink(missing_ok=True)

    def append(self, rows: Iterable[Row]) -> None:
        """Writes rows to this process's part, each as it comes."""
        with storage.JsonLines(self._part()) as lines:
            for row in rows:
                lines.append(self._to_record(row, attributes=True))

    def finish(self, order: Sequence[str]) -> list[Row] | None:
        """Closes this process's part, and merges all parts if it was the last.

        Args:
          order: paths of the whole list, in the order of the output.

        Returns:
          All rows; None while other processes are still at work (they will merge).
        """
        os.replace(self._part(), self._part(done=True))
        done = [self._part(k, done=True) for k in range(1, self.parts + 1)]
        if not all(path.exists() for path in done):
            return None
        try:
            records = [record for path in done for record in storage.read_jsonl(path)]
        except FileNotFoundError:  # another process was last as well, and has merged
            return None
        place = {path: i for i, path in enumerate(order)}
        last = {record["path"]: record for record in records}  # of a file scored twice, the later row
        records = sorted(last.values(), key=lambda record: place.get(record["path"], len(place)))
        rows = [self._to_row(record) for record in records]
        self._write(rows)
        for path in self.output.parent.glob(f"{_glob_escape(self.output.name)}.part-*"):
            path.unlink(missing_ok=True)
        return rows

    def _part(self, part: int | None = None, done: bool = False) -> Path:
        suffix = ".done" if done else ""
        return Path(f"{self.output}.part-{self.part if part is None else part}-of-{self.parts}{suffix}")

    def _records(self) -> Iterator[dict[str, Any]]:
        """Everything that earlier runs left, oldest first."""
        if self.output.exists():
            yield from _read(self.output)
        for path in sorted(self.output.parent.glob(f"{_glob_escape(self.output.name)}.part-*"), key=os.path.getmtime):
            yield from storage.read_jsonl(path)

    def _to_record(self, row: Row, attributes: bool) -> dict[str, Any]:
        """A row as named values; `attributes`: with a column for each."""
        record: dict[str, Any] = {"path": row.path, "score": row.score}
        if attributes:
            record |= dict(zip(self.columns, row.attributes or [None] * len(self.columns)))
        record |= {name: getattr(row, name) for name in ("width", "height", "bytes", "modified")}
        return record | {CHECKPOINT: self.checkpoint, "error": row.error}

    def _to_row(self, record: dict[str, Any]) -> Row:
        other = record.get(CHECKPOINT)
        if not other or "path" not in record or "score" not in record:
            raise UserError(f"{self.output} exists and is not a table of scores: choose another --output")
        if other != self.checkpoint:
            raise UserError(
                f"{self.output} holds scores of another checkpoint ({other}, this one is {self.checkpoint}): "
                "choose another --output, or remove it"
            )
        try:
            values = {name: _parse(kind, record.get(name)) for name, kind in _COLUMNS.items()}
            attributes = tuple(_parse(float, record.get(name)) for name in self.columns)
        except ValueError:
            raise UserError(f"{self.output} has been changed by hand ({record['path']}): remove it") from None
        return Row(**values, attributes=None if None in attributes else attributes)

    def _write(self, rows: Sequence[Row]) -> None:
        records = [self._to_record(row, self.with_attributes) for row in rows]
        storage.write_bytes(self.output, to_bytes(records, self.output.suffix, self._kinds()))

    def _kinds(self) -> dict[str, type]:
        return {
            name: _COLUMNS.get(name, str if name == CHECKPOINT else float)
            for name in self._to_record(Row(""), self.with_attributes)
        }


def to_bytes(records: Sequence[dict[str, Any]], suffix: str, kinds: dict[str, type] | Sequence[str]) -> bytes:
    """A table in a file format.

    Args:
      records: rows, all with the same names.
      suffix: one of `FORMATS`.
      kinds: type of each column, in order; for CSV the names are enough.
    """
    if suffix == ".jsonl":
        return "".join(json.dumps(record) + "\n" for record in records).encode()
    if suffix == ".parquet":
        pa, parquet = _pyarrow()
        types = {str: pa.string(), float: pa.float64(), int: pa.int64()}
        columns = {
            name: pa.array([printable(record[name]) for record in records], types[kind]) for name, kind in kinds.items()
        }
        sink = pa.BufferOutputStream()
        parquet.write_table(pa.table(columns), sink)
        return sink.getvalue().to_pybytes()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(kinds), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a finished table."""
    try:
        if path.suffix == ".jsonl":
            yield from storage.read_jsonl(path)
        elif path.suffix == ".parquet":
            yield from _pyarrow()[1].read_table(path).to_pylist()
        else:
            with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                yield from csv.DictReader(file)
    except UserError:
        raise
    except Exception as error:  # pyarrow has its own classes
        raise UserError(f"{path} exists and cannot be read as a table of scores ({error}): remove it") from None


def _parse(kind: type, value: Any) -> Any:
    return None if value in (None, "") else kind(value)


def printable(value: Any) -> Any:
    """Text without the escapes that stand for bytes which are not UTF-8; what is not text stays."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _glob_escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _pyarrow():
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("Parquet needs one more package: pip install pyarrow (or use .csv or .jsonl)") from None
    return pyarrow, parquet
