"""The directories of a TIFF file, read and written; and which of them describes the photo."""

import enum
import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

from qualiclip_jax.images.error import not_supported
from qualiclip_jax.images.magic import camera_raw


class Tag(enum.IntEnum):
    """The tags that are read; all others are passed over."""

    NEW_SUBFILE_TYPE = 254
    SUBFILE_TYPE = 255
    WIDTH = 256
    HEIGHT = 257
    BITS = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    FILL_ORDER = 266
    MAKE = 271
    STRIP_OFFSETS = 273
    ORIENTATION = 274
    SAMPLES = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTES = 279
    PLANAR = 284
    PREDICTOR = 317
    COLOR_MAP = 320
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILE_OFFSETS = 324
    TILE_BYTES = 325
    SUB_DIRECTORIES = 330
    INK_SET = 332
    EXTRA_SAMPLES = 338
    SAMPLE_FORMAT = 339
    SUBSAMPLING = 530
    DNG_VERSION = 50706


_READ = frozenset(Tag)
_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_REDUCED, _MASK = 1, 4  # bits of the kind of a picture
_CFA, _LINEAR_RAW = 32803, 34892  # photometric interpretations
_MOST_DIRECTORIES, _MOST_ENTRIES, _MOST_VALUES = 64, 1024, 1 << 22  # values of all tags together
_MAKERS = {  # of cameras, and what their raw files are called
    "nikon": "NEF", "canon": "CR2", "sony": "ARW", "pentax": "PEF", "samsung": "SRW", "hasselblad": "3FR",
    "phase one": "IIQ", "leaf": "MOS", "epson": "ERF", "kodak": "DCR",
}  # fmt: skip


@dataclass(frozen=True)
class Directory:
    """What describes one picture.

    Attributes:
      offset: where the directory begins.
      tags: values by tag, at least one each.
      next: where the next directory begins; 0 if there is none.
    """

    offset: int
    tags: Mapping[int, tuple[int, ...]]
    next: int

    def get(self, tag: Tag, default: int) -> int:
        """The first value of a tag."""
        return self.tags.get(tag, (default,))[0]

    def is_photo(self) -> bool:
        """Whether the picture is neither a reduced version of another one nor a mask."""
        reduced = _REDUCED if self.get(Tag.SUBFILE_TYPE, 0) == 2 else 0
        return not self.get(Tag.NEW_SUBFILE_TYPE, reduced) & (_REDUCED | _MASK)

    def area(self) -> int:
        """Pixels of the picture."""
        return self.get(Tag.WIDTH, 0) * self.get(Tag.HEIGHT, 0)


class TiffFile:
    """A TIFF or BigTIFF file.

    Attributes:
      order: "<" or ">", the byte order as `struct` writes it.
      size: bytes of the file.
    """

    def __init__(self, file: BinaryIO):
        self.size = file.seek(0, io.SEEK_END)
        self._file = file
        head = self._bytes(0, 8)
        self.order = "<" if head[:2] == b"II" else ">"
        self._big = 43 in head[2:4]
        self._count, self._entry, self._word = ("Q", "HHQ", "Q") if self._big else ("H", "HHI", "I")
        self._link = 8 if self._big else 4  # where the offset of the first directory is
        (self._first,) = self._unpack(self._link, self._word)
        self._left, self._values = _MOST_DIRECTORIES, _MOST_VALUES

    def photo(self) -> Directory:
        """The largest photo of the first page that has one. A page is a directory with those below it.

        Raises:
          Refused: the file is a camera raw.
          ValueError, EOFError: the first directory is damaged.
        """
        pages = [[page] for page in self._chain(self._first)]
        for page in pages:
            for start in page[0].tags.get(Tag.SUB_DIRECTORIES, ()):
                page += self._chain(start)
        first, everything = pages[0][0], [directory for page in pages for directory in page]
        if Tag.DNG_VERSION in first.tags:
            raise camera_raw("DNG")
        if any(directory.get(Tag.PHOTOMETRIC, 0) in (_CFA, _LINEAR_RAW) for directory in everything):
            make = bytes(first.tags.get(Tag.MAKE, ())).decode("latin-1").lower()
            raise camera_raw(next((name for maker, name in _MAKERS.items() if maker in make), ""))
        photos = ([directory for directory in page if directory.is_photo()] for page in pages)
        return max(next(filter(None, photos), everything), key=Directory.area)

    def _chain(self, start: int) -> Iterator[Directory]:
        """A directory and its successors. Only the first one of the file has to be sound."""
        while start and self._left:
            self._left -= 1
            try:
                directory = self._read(start)
            except (ValueError, EOFError):
                if start == self._first:
                    raise
                return
            yield directory
            start = directory.next

    def _read(self, start: int) -> Directory:
        (count,) = self._unpack(start, self._count)
        if count > _MOST_ENTRIES:
            raise ValueError("damaged directory")
        tags = {}
        place = start + self._size(self._count)
        inline = self._size(self._word)
        for _ in range(count):
            tag, kind, length = self._unpack(place, self._entry)
            place += self._size(self._entry)
            if tag in _READ and kind in _TYPES and length:
                self._values -= length
                if self._values < 0:
                    raise ValueError("more values than any picture needs")
                code = f"{length}{_TYPES[kind]}"
                outside = length * self._size(_TYPES[kind]) > inline
                tags[tag] = self._unpack(self._unpack(place, self._word)[0] if outside else place, code)
            place += inline
        following = self._unpack(place, self._word)[0] if place + inline <= self.size else 0
        return Directory(start, tags, following)

    def _size(self, code: str) -> int:
        return struct.calcsize("<" + code)

    def _unpack(self, start: int, code: str) -> tuple[int, ...]:
        return struct.unpack(self.order + code, self._bytes(start, self._size(code)))

    def _bytes(self, start: int, size: int) -> bytes:
        if start + size > self.size:
            raise EOFError("the file ends within a directory")
        return self.read(start, size)

    def read(self, start: int, size: int) -> bytes:
        """The bytes of a part of the file, as far as they are there."""
        self._file.seek(start)
        return self._file.read(size)

    def open(self, directory: Directory) -> Image.Image:
        """Has Pillow open a picture of the file."""
        if self._big and self.order == ">":
            raise not_supported("big-endian BigTIFF of this kind")
        data = self._content()
        struct.pack_into(self.order + self._word, data, self._link, directory.offset)
        return _pillow(data, directory.get(Tag.WIDTH, 0), directory.get(Tag.HEIGHT, 0))

    def open_as(self, tags: Mapping[int, tuple[int, ...]]) -> Image.Image:
        """Has Pillow open bytes of the file as the picture that `tags` describe, all of its own directories aside."""
        data = self._content()
        data += bytes(len(data) % 2)
        offset, outside_at = len(data), len(data) + 6 + 12 * len(tags)
        if outside_at + 4 * sum(map(len, tags.values())) >= 1 << 32:
            raise not_supported("TIFF of more than 4 GiB")
        entries, outside = b"", b""
        for tag, values in sorted(tags.items()):
            value = values[0]
            if len(values) > 1:
                value = outside_at + len(outside)
                outside += struct.pack(f"<{len(values)}I", *values)
            entries += struct.pack("<HHII", tag, 4, len(values), value)
        data += struct.pack("<H", len(tags)) + entries + bytes(4) + outside
        data[:8] = b"II*\0" + struct.pack("<I", offset)  # single bytes are the same in either order
        return _pillow(data, tags[Tag.WIDTH][0], tags[Tag.HEIGHT][0])

    def _content(self) -> bytearray:
        self._file.seek(0)
        return bytearray(self._file.read())


def _pillow(data: bytearray, width: int, height: int) -> Image.Image:
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    image.im = Image.new(image.mode, (width, height)).im  # else Pillow refuses what is above its own limit
    return image
