"""Reads tables that others wrote: CSV in any of its dialects, JSON lines, Parquet. Writes CSV in one dialect.

    table = tabular.read("ratings.csv", ("image", "path"), ("mos", "dmos"))
    table.column("image")   # fields as they are written
    table.numbers("mos")    # float64 [N], NaN where a field is no finite number
    table.where(3)          # "ratings.csv, line 5", for an error message

A CSV file has a header line. The delimiter is a comma, semicolon, tab or vertical bar: the one that finds the columns
wanted, or the one that a first line `sep=;` names. The text is UTF-8 or, with a byte order mark, UTF-16; lines end in
any of the three ways; blank rows are skipped. Bytes that are not UTF-8 survive as surrogate escapes, as in file names.
"""

import csv
import dataclasses
import difflib
import io
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qualiclip_jax import storage
from qualiclip_jax.errors import UserError

NAME_COLUMNS = ("image", "path", "file", "name", "filename", "file_name", "image_name")  # what names a row's image
EXTENSIONS = (".csv", ".tsv", ".txt", ".jsonl", ".parquet", ".xlsx", ".xls")  # the last two for their error messages
PATH_BYTES = "path_bytes"  # a column of Parquet, where text is UTF-8: the bytes of a `path` that is not
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}

_FOREIGN = {  # first bytes of files that are taken for CSV
    b"PK\x03\x04": "an Excel workbook or another zip archive; save it as CSV first",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save it as CSV first",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "compressed; unpack it first",
}
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_SEP = re.compile(r'"?sep=(.)"?[^\S\r\n]*(\r\n|\r|\n)', re.IGNORECASE)  # how Excel is told the delimiter
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_PUNCTUATED = re.compile(r"[+-]?[\d.,]+([eE][+-]?\d+)?", re.ASCII)
_SURROGATES = re.compile("[\udc80-\udcff]+")
_LONGEST_HEADER = 2**22  # letters
_MOST_NAMES, _MOST_LETTERS = 8, 60  # that an error message shows


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The rows of a file below its header.

    Attributes:
      path: the file.
      names: of the C columns, in lower case, without spaces around them.
      rows: N rows of C fields, as they are written.
      lines: N line numbers in the file, from 1, where each row begins; of a Parquet file the numbers of the rows.
      decimal_commas: whether a comma in a number is a decimal mark; else it is no number.
      utf8: False if the file holds bytes that are not UTF-8; `labels` takes them for Windows-1252.
    """

    path: Path
    names: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    decimal_commas: bool = False
    utf8: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        """File and line of a row, for error messages."""
        return f"{self.path}, line {self.lines[index]}"

    def find(self, *names: str) -> str | None:
        """The first of `names` that is a column, or None."""
        return next((name for name in names if name in self.names), None)

    def column(self, name: str) -> list[str]:
        """The N fields of a column, as they are written.

        Raises:
          UserError: the column is not there, or there twice.
        """
        if self.names.count(name) != 1:
            raise UserError(f"{self.path}: has {'no' if name not in self.names else 'more than one'} column {name}")
        place = self.names.index(name)
        return [row[place] for row in self.rows]

    def labels(self, name: str) -> list[str]:
        """The N fields of a column as text to show and compare: without spaces around, always printable."""
        return [_SURROGATES.sub(_as_windows, field).strip() for field in self.column(name)]

    def numbers(self, name: str) -> np.ndarray:
        """The numbers of a column, float64 [N]; NaN where a field is empty or anything else than a finite number.

        Raises:
          UserError: the column is missing, or its decimal mark cannot be told ("1.234,5", or points and commas).
        """
        fields = [field.strip() for field in self.column(name)]
        if self.decimal_commas:
            fields = self._with_points(name, fields)
        values = np.array([float(f) if _NUMBER.fullmatch(f) else math.nan for f in fields], np.float64)
        return np.where(np.isfinite(values), values, np.nan)

    def _with_points(self, name: str, fields: list[str]) -> list[str]:
        """The fields with decimal points, if the column has decimal commas."""
        numbers = [i for i, field in enumerate(fields) if _PUNCTUATED.fullmatch(field)]
        commas, points = ([i for i in numbers if mark in fields[i]] for mark in ",.")
        if commas and points:
            first, other = fields[commas[0]], fields[points[0]]
            beside = "" if "." in first else f", and {shown(other)} in line {self.lines[points[0]]} a point"
            raise UserError(
                f"{self.where(commas[0])}, {name}: {shown(first)} has a comma{beside or ' and a point'}: "
                "write all numbers with the same decimal mark, and no others"
            )
        return [field.replace(",", ".") for field in fields] if commas else fields


def read(path: str | os.PathLike[str], *wanted: Sequence[str]) -> Table:
    """Reads a table.

    Args:
      path: a file of JSON lines (.jsonl) or a Parquet file (.parquet), else a CSV file.
      wanted: the columns that must be there, each as a choice of names, e.g. `("mos", "dmos")`.

    Returns:
      The table. Values that are not text become text; `numbers` makes the same numbers of it.

    Raises:
      UserError: the file cannot be read, is no table, lacks a column wanted, or a row has too few or too many fields.
    """
    path = Path(path)
    if path.suffix.lower() not in (".jsonl", ".parquet"):
        return parse(_bytes(path), path, *wanted)
    rows = list(records(path))
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = tuple(name.strip().lower() for name in names)
    _check(path, table, wanted)
    fields = [["" if (value := row.get(name)) is None else str(value) for name in names] for row in rows]
    return Table(path, table, fields, list(range(1, len(rows) + 1)))


def parse(data: bytes, path: str | os.PathLike[str], *wanted: Sequence[str]) -> Table:
    """Like `read`, from the bytes of a file; `path` is what errors call it."""
    content = _Content(data, Path(path), wanted)
    rows, lines = [], []
    for line, row in content:
        rows.append(row)
        lines.append(line)
    return Table(content.path, content.names, rows, lines, content.delimiter != ",", content.utf8)


def records(
    path: str | os.PathLike[str], *wanted: Sequence[str], data: bytes | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table one by one, as values by name: text of a CSV file, what they are of others.

    Args:
      path: as in `read`.
      wanted: as in `read`, of a CSV file.
      data: the content of the file; read from `path` if None.

    Raises:
      UserError: as `read`; what is wrong with a row when that row comes.
    """
    data = _bytes(path) if data is None else data
    name, suffix = str(path), Path(path).suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_records(data, name)
    elif suffix == ".jsonl":
        yield from _json_records(data, name)
    else:
        content = _Content(data, Path(path), wanted)
        for _, row in content:
            yield dict(zip(content.names, row))


def _json_records(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    try:
        values = storage.parse_jsonl(data, whole=True)
    except ValueError as error:
        raise UserError(f"{name}: cannot be read as JSON lines ({error})") from None
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise UserError(f"{name}, line {number}: is no object with names")
        yield value


def _parquet_records(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    try:
        for row in pyarrow()[1].read_table(io.BytesIO(data)).to_pylist():
            if (odd := row.pop(PATH_BYTES, None)) is not None:
                row["path"] = os.fsdecode(odd)
            yield row
    except UserError:
        raise
    except Exception as error:  # pyarrow has classes of its own
        raise UserError(f"{name}: cannot be read as a Parquet file ({shown(str(error))})") from None


def pyarrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`. Raises UserError where they are not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError("Parquet needs one more package: pip install pyarrow (or use .csv or .jsonl)") from None
    return pyarrow, parquet


def to_csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table as CSV: commas, UTF-8, lines that end in a newline. `read` gives every field back to the byte.

    Args:
      head: names of the columns.
      rows: fields; None is written as nothing.
    """
    lines: list[str] = []
    write = csv.writer(_Lines(lines), lineterminator="\r\n").writerow  # so that fields with \r are quoted as well
    write(head)
    for row in rows:
        write(row)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines).encode("utf-8", "surrogateescape")


class _Lines:
    """Collects what a csv.writer writes, a row at a time."""

    def __init__(self, lines: list[str]):
        self.write = lines.append


def spellings(name: str) -> Iterator[str]:
    """Yields the names that an image may have on disk: `name`, and what became of it in a table.

    Tables come with spaces around names, backslashes between folders, bytes of Windows-1252, and accents in the other
    of Unicode's two forms.
    """
    yield name
    name = _SURROGATES.sub(_as_windows, name).strip()
    yield name
    slashes = name.replace("\\", "/")
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, name)
        yield unicodedata.normalize(form, slashes)


def plain(name: str) -> str:
    """One spelling for all `spellings` of a name."""
    return unicodedata.normalize("NFC", _SURROGATES.sub(_as_windows, name).strip().replace("\\", "/"))


def is_table(name: str | os.PathLike[str]) -> bool:
    """Whether a file with this name is taken for a table."""
    return Path(name).suffix.lower() in EXTENSIONS


def shown(text: str) -> str:
    """A field for an error message: in quotation marks, on one line, shortened."""
    return repr(text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "...")


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of some names for an error message, on one line."""
    short = (name if name.isprintable() and len(name) <= _MOST_LETTERS else shown(name) for name in names[:most])
    return ", ".join(short) + (", ..." if len(names) > most else "")


def _as_windows(match: re.Match[str]) -> str:
    return match[0].encode("utf-8", "surrogateescape").decode("cp1252", "replace")


def _bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


class _Content:
    """The rows of a CSV file below the header, each with its line number; the header is read at once."""

    def __init__(self, data: bytes, path: Path, wanted: Sequence[Sequence[str]]):
        self.path = path
        text, self.utf8 = _decode(data, path)
        given = _SEP.match(text)
        if given and given[1] not in DELIMITERS:
            raise UserError(f"{path}, line 1: sep={given[1]}: the delimiter must be a {_either(DELIMITERS.values())}")
        self._text, self._above = (text[given.end() :], 1) if given else (text, 0)
        names, self.delimiter, self._skip = self._header(given[1] if given else "".join(DELIMITERS), wanted)
        self.names = tuple(names)
        _check(path, names, wanted)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        rows = self._rows(self.delimiter, self._skip)
        next(rows, None)  # the header
        width = len(self.names)
        for line, row in rows:
            if len(row) < width or any(field.strip() for field in row[width:]):
                mark = DELIMITERS[self.delimiter]
                hint = f" (a field with a {mark} in it needs quotation marks)" if len(row) > width else ""
                raise UserError(f"{self.path}, line {line}: {len(row)} fields, the header has {width}{hint}")
            yield line, row[:width]

    def _header(self, delimiters: str, wanted: Sequence[Sequence[str]]) -> tuple[list[str], str, bool]:
        """Names of the columns, the delimiter that finds most of them, and whether spaces follow it."""
        found: list[tuple[int, int, list[str], str, bool]] = []
        broken: UserError | None = None
        for delimiter in delimiters:
            try:
                _, fields = next(self._rows(delimiter, False, _LONGEST_HEADER), (0, []))
                skip = len(fields) > 1 and all(field.startswith(" ") for field in fields[1:])
                if skip:
                    _, fields = next(self._rows(delimiter, True, _LONGEST_HEADER))
            except UserError as error:
                broken = broken or error
                continue
            names = [field.strip().lower() for field in fields]
            found.append((sum(bool(set(c) & set(names)) for c in wanted), len(names), names, delimiter, skip))
        best = max(found, key=lambda item: item[:2], default=None)
        if broken and (best is None or best[0] < len(wanted)):
            raise broken
        assert best is not None
        return best[2:]

    def _rows(self, delimiter: str, skip_spaces: bool, most: int | None = None) -> Iterator[tuple[int, list[str]]]:
        """All rows that are not blank, the header too, each with the line in which it begins."""
        lines = io.StringIO(self._text[:most], newline="")
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=skip_spaces, strict=True)
        while True:
            line = self._above + reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # e.g. a quotation mark that is never closed
                raise UserError(f"{self.path}, line {line}: {error}; is a quotation mark missing?") from None
            if any(field.strip() for field in row):
                yield line, row


def _decode(data: bytes, path: Path) -> tuple[str, bool]:
    """The text of a file, and whether it is valid."""
    for start, what in _FOREIGN.items():
        if data.startswith(start):
            raise UserError(f"{path}: is not a CSV file but {what}")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    errors = "strict" if encoding == "utf-16" else "surrogateescape"
    try:
        text = data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as {encoding.upper()} text ({error.reason})") from None
    if "\0" in text:
        raise UserError(f"{path}: holds NUL bytes; it is not text, or UTF-16 without a byte order mark")
    return text, _SURROGATES.search(text) is None


def _check(path: Path, names: Sequence[str], wanted: Sequence[Sequence[str]]) -> None:
    """Raises UserError if a column that is wanted is not there, or there twice."""
    missing = [choice for choice in wanted if not set(choice) & set(names)]
    if missing:
        raise UserError(f"{path}: needs the columns {_columns(wanted)}; it has {_hint(names, missing)}")
    twice = [name for choice in wanted for name in choice if names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: has more than one column {twice[0]}")


def _columns(wanted: Sequence[Sequence[str]]) -> str:
    return " and ".join(f"{first} (or {', '.join(others)})" if others else first for first, *others in wanted)


def _hint(names: Sequence[str], missing: Sequence[Sequence[str]]) -> str:
    """What the header has instead, and what may be wrong with it."""
    there = some(names, _MOST_NAMES)
    if any(_PUNCTUATED.fullmatch(name) for name in names):
        return f"{there}; is the header line missing?"
    for choice in missing:
        for name in choice:
            close = difflib.get_close_matches(name, names, 1, 0.7)
            if close:
                return f"{there}; is {close[0]} the column {name}?"
    return there or "none"


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}"
