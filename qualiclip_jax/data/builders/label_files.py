"""Label files that are compressed inside, Excel workbooks and MATLAB files, unpacked no further than they may be."""

import io
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

MOST_BYTES = 32 << 20  # of a label file, unpacked; those of the published sets have less than 10 MB
_MOST_ROWS, _MOST_COLUMNS, _MOST_VALUES = 500_000, 64, 10**7
_MAT_HEADER, _MAT_COMPRESSED = 128, 15  # bytes; type of an element


class TooLarge(Exception):
    """A label file would unpack to more than any label file holds."""

    def __init__(self) -> None:
        super().__init__(f"it would unpack to more than {MOST_BYTES / 1e6:.0f} MB: taken for a decompression bomb")


def read_member(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The bytes of a file inside a zip file, never more than the size that is declared for it.

    Raises:
      NotImplementedError: it is compressed in a way that cannot be unpacked piece by piece.
      zipfile.BadZipFile: the contents are not what is declared.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise NotImplementedError("compressed by another method than deflate: extract it first")
    with file.open(member) as content:
        return content.read(member.file_size)


def sheet_rows(data: bytes, sheet: str | None = None) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of values of an Excel workbook: of its first sheet, or the one named.

    Raises:
      TooLarge: it unpacks to more than a label file holds.
      Exception: of nearly every class, if it is damaged.
    """
    import openpyxl

    book = io.BytesIO()  # the same, uncompressed, with the sizes that are declared
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of styles it does not know
        with zipfile.ZipFile(io.BytesIO(data)) as packed, zipfile.ZipFile(book, "w") as unpacked:
            if sum(member.file_size for member in packed.infolist()) > MOST_BYTES:
                raise TooLarge
            for member in packed.infolist():
                unpacked.writestr(member.filename, read_member(packed, member))
        loaded = openpyxl.load_workbook(book, read_only=True, data_only=True)
    table = loaded[sheet] if sheet else loaded.worksheets[0]
    table.reset_dimensions()  # they may be anything
    rows = table.iter_rows(max_row=_MOST_ROWS, max_col=_MOST_COLUMNS, values_only=True)
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = next(rows, None)
        if row is None:
            return
        yield row


def mat_variables(data: bytes, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yields the variables of a MATLAB file: name, and array without axes of length 1; only `names` have values.

    Raises:
      TooLarge: it unpacks to more than a label file holds.
      Exception: of nearly every class, if it is damaged.
    """
    import scipy.io

    _check_unpacked_size(data)
    shapes = {name: shape for name, shape, _ in scipy.io.whosmat(io.BytesIO(data))}
    if sum(math.prod(shape) for shape in shapes.values()) > _MOST_VALUES:
        raise TooLarge
    yield from (
        dict.fromkeys(shapes) | scipy.io.loadmat(io.BytesIO(data), squeeze_me=True, variable_names=names)
    ).items()


def _check_unpacked_size(data: bytes) -> None:
    """Unpacks the compressed elements of a MATLAB file once, piece by piece; other files have none."""
    order = {b"IM": "<", b"MI": ">"}.get(data[_MAT_HEADER - 2 : _MAT_HEADER])
    place, left = _MAT_HEADER, MOST_BYTES
    while order and place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind == _MAT_COMPRESSED:
            left -= len(zlib.decompressobj().decompress(data[place + 8 : place + 8 + size], left + 1))
        if left < 0:
            raise TooLarge
        place += 8 + size
