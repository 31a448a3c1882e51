"""The table of scores on disk: resumable, shared by several processes, and never at the cost of what is there already.

While a run lasts, each process appends its rows to a journal of its own beside the output, `<output>.part-K-of-N`, and
holds the lock of it. Whoever finishes last merges the journals into the output. A run that is repeated takes from the
output and from journals what was scored already, by path, size and time of the file.
"""

import contextlib
import dataclasses
import glob
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from qualiclip_jax import storage, tabular
from qualiclip_jax.errors import UserError
from qualiclip_jax.inference import formats
from qualiclip_jax.inference.files import Row, state_of

_COLUMNS = {"path": str, "score": float, "width": int, "height": int, "bytes": int, "modified": str, "error": str}
RATING = ("mos", "mos_low", "mos_high")  # further columns, where the model rates
FOUND = {"causes": str, "burst": int, "burst_rank": int}  # columns that the table has where they were asked for
CHECKPOINT = "checkpoint"
_WAIT = 60.0  # seconds for a lock that is held for the time of a merge only
_JOURNAL = re.compile(r"\.part-\d+-of-\d+(\.done)?", re.ASCII)
_FIRST = b'{"path": "'  # how the lines of a journal begin
_MISSED = "not in the list of the process whose share it is: run the same command again"


def attribute_columns(prompts: Sequence[tuple[str, str]]) -> list[str]:
    """A column name for each antonym pair, after its positive prompt: "Sharp image." becomes `sharp_image`."""
    names: list[str] = []
    for positive, _ in prompts:
        name = re.sub(r"\W+", "_", positive.lower()).strip("_") or "attribute"
        if name in (*_COLUMNS, *RATING, *FOUND, CHECKPOINT):
            name += "_attribute"
        clashes = sum(re.fullmatch(rf"{re.escape(name)}(_\d+)?", other) is not None for other in names)
        names.append(f"{name}_{clashes + 1}" if clashes else name)
    return names


def ordered(rows: Sequence[Row], sort: str) -> list[Row]:
    """Rows by `score` (best first, failed ones last), by `path`, or as they are (`none`)."""
    if sort == "score":
        return sorted(rows, key=lambda row: -2.0 if row.score is None else row.score, reverse=True)
    return sorted(rows, key=lambda row: row.path) if sort == "path" else list(rows)


@dataclasses.dataclass(frozen=True)
class Merged:
    """The output of a run.

    Attributes:
      rows: of the files of the run, in the order of its list.
      kept: how many rows of other files the output holds, from earlier runs.
    """

    rows: list[Row]
    kept: int


class Table:
    """Where the rows of a list of files go.

        with Table(output) as table:      # refuses what must not be written, before any work
            known = table.begin(model.fingerprint, attribute_columns(model.prompts), list_of_files)
            table.append(rows)            # of the files that are not known
            merged = table.finish()

    Args:
      output: the file; its extension is the format. Rows of other files that are in it stay.
      part, parts: this process is number `part` (from 1) of `parts` that share the list.
    """

    def __init__(self, output: Path, part: int = 1, parts: int = 1):
        self.output, self.part, self.parts = output, part, parts
        self._file = Path(os.path.realpath(output))  # all names of a file are one
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Table":
        """Makes sure that the output can be written, and locks this process's part of it.

        Raises:
          UserError: it cannot; it is not a table of scores; another run is writing it.
        """
        self._check()
        with contextlib.ExitStack() as held:
            with storage.lock(self._file, wait=_WAIT):
                self._refuse_files_of_others()
                self._refuse_another_division()
                held.enter_context(self._lock_of(self._journal()))
                with contextlib.suppress(FileNotFoundError):  # what this part had finished counts no more
                    os.replace(self._journal(done=True), self._journal())
            self._records = self._read_output()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @property
    def found(self) -> set[str]:
        """Which of `FOUND` the output has already."""
        return self._there() & FOUND.keys()

    def _there(self) -> set[str]:
        return {name for record in self._records for name in record}

    def begin(
        self,
        checkpoint: str,
        columns: Sequence[str],
        files: Sequence[str],
        attributes: bool = False,
        rating: bool = False,
        causes: bool = False,
    ) -> dict[str, Row]:
        """Opens this process's journal.

        Args:
          checkpoint: fingerprint of the model; rows of another are refused.
          columns: names of the attributes (`attribute_columns`).
          files: the whole list, in the order of the output.
          attributes: whether the output has a column for each; it has them anyway if it has them already.
          rating: whether the model rates.
          causes: whether an earlier row must tell its causes.

        Returns:
          By path, the rows of earlier runs for this process's share of the list: those without an error, of files
          that have not changed since.

        Raises:
          UserError: the output holds scores of another model, or columns that are not this table's.
        """
        self._checkpoint, self._attributes, self._paths = checkpoint, list(columns), list(files)
        self._rating = RATING if rating else ()
        there = self._there()
        others = there - {*_COLUMNS, *self._rating, *FOUND, CHECKPOINT}
        self._with_causes = causes
        earlier = [self._to_row(record) for record in self._records]
        if others - set(columns):
            raise UserError(
                f"{self.output} has columns that are not of this table ({', '.join(sorted(others - set(columns)))}): "
                "choose another --output"
            )
        self._with_attributes = attributes or bool(others)
        share = set(files[self.part - 1 :: self.parts])
        known: dict[str, Row] = {}
        journals = self._journals()
        for rows in (earlier, *journals.values()):
            known |= {row.path: row for row in rows if row.path in share and self._still_true(row)}
        begun = {row.path: row for row in journals.get(self._journal(), ())}
        self._lines = self._held.enter_context(storage.JsonLines(self._journal()))
        self.append(row for path, row in known.items() if begun.get(path) != row)
        return known

    def append(self, rows: Iterable[Row]) -> None:
        """Writes rows to this process's journal, each as it comes."""
        for row in rows:
            told = {} if row.causes is None else {"causes": row.causes}
            self._lines.append(self._to_record(row, attributes=True) | told)

    def finish(self, sort: str = "none", find: Callable[[list[Row]], list[Row]] = lambda rows: rows) -> Merged | None:
        """Closes this process's part, and merges all parts if it was the last.

        Args:
          sort: order of the rows in the output, `score`, `path` or `none`; see `ordered`.
          find: finds out what concerns all rows together, and fills it in.

        Returns:
          What was merged; None while other processes are still at work (they will merge).
        """
        self._lines.close()
        with storage.lock(self._file, wait=_WAIT):
            os.replace(self._journal(), self._journal(done=True))
            parts = [self._journal(k, done=True) for k in range(1, self.parts + 1)]
            if not all(path.exists() for path in parts):
                return None
            place = {path: i for i, path in enumerate(self._paths)}
            found: dict[str, Row] = {}
            journals = self._journals()
            for k, part in enumerate(parts):
                found |= {row.path: row for row in journals[part] if place.get(row.path, -1) % self.parts == k}
            merged = [found.get(path) or Row(path, error=_MISSED) for path in self._paths]
            records = self._records if self.parts == 1 else self._read_output()  # others may have written it by now
            others = {row.path: row for row in map(self._to_row, records)}
            others |= {row.path: row for rows in journals.values() for row in rows}
            kept = [row for path, row in others.items() if path not in place]
            rows = find([*merged, *kept])
            self._write(ordered(rows, sort))
            for journal in journals:
                journal.unlink(missing_ok=True)
        return Merged(rows[: len(merged)], len(kept))

    def _check(self) -> None:
        """Refuses an output that cannot be written, or that is no table by its kind."""
        name, file = f"--output {self.output}", self._file
        if self.output.suffix not in formats.FORMATS:
            raise UserError(f"{name}: the extension must be one of {', '.join(formats.FORMATS)}")
        if not file.parent.is_dir():
            raise UserError(f"{name}: there is no folder {file.parent}")
        if self.output.suffix == ".parquet":
            tabular.pyarrow()
        refuse_to_replace(file, name)

    def _read_output(self) -> list[formats.Record]:
        if not self._file.exists() or not self._file.stat().st_size:
            return []
        try:
            records = formats.read(self.output, ("path", "score", CHECKPOINT))
            missing = sorted({name for record in records for name in _COLUMNS.keys() - record.keys()})
            if missing:
                raise UserError(f"it lacks the columns {', '.join(missing)}")
            return records
        except UserError as error:
            reason = str(error).removeprefix(f"{self.output}").lstrip(":, ")
            raise UserError(
                f"{self.output} exists and is not a table of scores ({reason}): choose another --output"
            ) from None

    @contextlib.contextmanager
    def _lock_of(self, journal: Path) -> Iterator[None]:
        try:
            with storage.lock(journal):
                yield
        except storage.Busy:
            which = "" if self.parts == 1 else f"part {self.part}/{self.parts} of "
            raise UserError(
                f"{which}{self.output} is being written by another run: let it finish, or choose another --output"
            ) from None

    def _refuse_files_of_others(self) -> None:
        """Refuses to begin where a file that bears the name of a journal is none."""
        for path in self._journal_paths():
            lines = path.read_bytes().split(b"\n") if path.is_file() else [b"no file"]
            if not all(line.startswith(_FIRST) or _FIRST.startswith(line) for line in lines):  # a line may be cut off
                raise UserError(
                    f"{path} is not of this tool, but bears the name of a file that it needs for {self.output}: "
                    "move it, or choose another --output"
                )

    def _refuse_another_division(self) -> None:
        """Refuses to begin while processes are at work that share a list by another number."""
        for lock_file in self._file.parent.glob(f".{glob.escape(self._file.name)}.part-*-of-*.lock"):
            journal = self._file.with_name(lock_file.name[1:].removesuffix(".lock"))
            if journal.name.rpartition("-")[2] != str(self.parts):
                with self._lock_of(journal):
                    pass

    def _journal(self, part: int | None = None, done: bool = False) -> Path:
        part = self.part if part is None else part
        return Path(f"{self._file}.part-{part}-of-{self.parts}{'.done' if done else ''}")

    def _journals(self) -> dict[Path, list[Row]]:
        """The rows in all journals that there are, oldest first."""
        return {
            path: [self._to_row(record, path) for record in storage.read_jsonl(path) if isinstance(record, dict)]
            for path in sorted(self._journal_paths(), key=lambda path: path.stat().st_mtime_ns)
        }

    def _journal_paths(self) -> list[Path]:
        paths = self._file.parent.glob(f"{glob.escape(self._file.name)}.part-*-of-*")
        return [path for path in paths if _JOURNAL.fullmatch(path.name.removeprefix(self._file.name))]

    def _still_true(self, row: Row) -> bool:
        complete = row.score is not None and (row.attributes is not None or not self._with_attributes)
        complete &= row.causes is not None or not self._with_causes
        return complete and {"bytes": row.bytes, "modified": row.modified} == state_of(row.path)

    def _to_record(self, row: Row, attributes: bool) -> formats.Record:
        """A row as named values; `attributes`: with a column for each."""
        record: formats.Record = {"path": row.path, "score": row.score}
        record |= dict(zip(self._rating, row.rating or [None] * len(self._rating)))
        if attributes:
            record |= dict(zip(self._attributes, row.attributes or [None] * len(self._attributes)))
        record |= {name: getattr(row, name) for name in ("width", "height", "bytes", "modified")}
        return record | {CHECKPOINT: self._checkpoint, "error": row.error}

    def _to_row(self, record: formats.Record, journal: Path | None = None) -> Row:
        where, other = journal or self.output, record.get(CHECKPOINT)
        if other != self._checkpoint:
            raise UserError(
                f"{where} holds scores of another checkpoint ({other}, this one is {self._checkpoint}): "
                "choose another --output, or remove it"
            )
        try:
            values = {name: _parse(kind, record.get(name)) for name, kind in (_COLUMNS | FOUND).items()}
            attributes = tuple(_parse(float, record.get(name)) for name in self._attributes)
            rating = tuple(_parse(float, record.get(name)) for name in self._rating)
            if values["path"] is None:
                raise ValueError
        except (ValueError, TypeError):
            raise UserError(
                f"{where} has been changed by hand ({formats.printable(str(record.get('path')))}): "
                "choose another --output, or remove it"
            ) from None
        rated = None if None in rating or not rating else rating
        return Row(**values, attributes=None if None in attributes else attributes, rating=rated)

    def _write(self, rows: Sequence[Row]) -> None:
        found = [name for name in FOUND if any(getattr(row, name) is not None for row in rows) or name in self.found]
        records = [
            self._to_record(row, self._with_attributes) | {name: getattr(row, name) for name in found} for row in rows
        ]
        names = [*self._to_record(Row(""), self._with_attributes), *found]
        kinds = {name: (_COLUMNS | FOUND).get(name, str if name == CHECKPOINT else float) for name in names}
        storage.write_bytes(self._file, formats.to_bytes(records, self.output.suffix, kinds))


def refuse_to_replace(file: Path, name: str) -> None:
    """Raises a `UserError` if there is something at `file` that is not to be replaced, whatever is in it.

    Args:
      file: what would be written.
      name: what the error calls it.
    """
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{name}: {'is a folder' if stat.S_ISDIR(mode) else 'is not a regular file'}")
    if not mode & 0o222 or not os.access(file, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"{name}: the file is there and is read-only; choose another one")


def _parse(kind: type, value: Any) -> Any:
    return None if value in (None, "") or value != value else kind(value)
