"""Tables of records as CSV, JSON lines or Parquet, read back as they were written, whatever the names of the files."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qualiclip_jax import tabular
from qualiclip_jax.errors import UserError
from qualiclip_jax.errors import printable as printable

FORMATS = (".csv", ".jsonl", ".parquet")
PATH = "path"
_SURROGATES = re.compile("[\ud800-\udfff]")

Record = dict[str, Any]


def to_bytes(records: Sequence[Record], suffix: str, kinds: Mapping[str, type]) -> bytes:
    """A table as the content of a file.

    Args:
      records: rows by column name; one is `path`.
      suffix: one of `FORMATS`.
      kinds: the columns in order, and whether each holds str, int or float; None is allowed in all of them.
    """
    if suffix == ".jsonl":
        return "".join(json.dumps({name: record[name] for name in kinds}) + "\n" for record in records).encode()
    if suffix == ".csv":
        return tabular.to_csv(list(kinds), ([record[name] for name in kinds] for record in records))
    pa, parquet = tabular.pyarrow()
    types = {str: pa.string(), float: pa.float64(), int: pa.int64()}
    columns = {name: pa.array([_utf8(record[name]) for record in records], types[kind]) for name, kind in kinds.items()}
    if any(_SURROGATES.search(record[PATH]) for record in records):
        odd = [os.fsencode(record[PATH]) if _SURROGATES.search(record[PATH]) else None for record in records]
        columns[tabular.PATH_BYTES] = pa.array(odd, pa.binary())
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def read(path: Path, wanted: Sequence[str]) -> list[Record]:
    """The records of a file that `to_bytes` made; their values are text where the format is CSV.

    Args:
      path: the file; its extension is one of `FORMATS`.
      wanted: names that each record must have.

    Raises:
      UserError: the file cannot be read, or is something else.
    """
    records = list(tabular.records(path, *((name,) for name in wanted)))
    for number, record in enumerate(records, 1):
        missing = [name for name in wanted if name not in record]
        if missing:
            raise UserError(f"{path}: row {number} has no {', '.join(missing)}")
    return records


def _utf8(value: Any) -> Any:
    """Text without the surrogates that stand for bytes which are not UTF-8; what is not text stays."""
    return _SURROGATES.sub(lambda match: printable(match[0]), value) if isinstance(value, str) else value
