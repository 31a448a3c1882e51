"""Image files written by hand, sample by sample: TIFF, PNG and BMP of every depth, without an image library."""

import dataclasses
import struct
import zlib
from collections.abc import Sequence

import numpy as np

_TIFF_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclasses.dataclass
class Page:
    """A directory of a TIFF file.

    Attributes:
      samples: [H, W, S]; integers below 2 ** bits, or floating point.
      bits: of a sample.
      photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, ...
      planar: 1 samples side by side, 2 plane after plane.
      fill: 1 the first pixel in the highest bits of a byte, 2 in the lowest.
      compression: 1 none, 5 LZW, 8 deflate, 32773 PackBits.
      predictor: 2 differences of samples, 3 of the bytes of floating point.
      rows: of a strip.
      tile: height and width of a tile, instead of strips.
      tags: {tag: (type, values)}, further ones or others.
      subs: directories that the tag SubIFDs names.
    """

    samples: np.ndarray
    bits: int
    photometric: int
    planar: int = 1
    fill: int = 1
    compression: int = 1
    predictor: int = 1
    rows: int | None = None
    tile: tuple[int, int] | None = None
    tags: dict[int, tuple[int, Sequence[int]]] = dataclasses.field(default_factory=dict)
    subs: Sequence["Page"] = ()

    def blocks(self, order: str) -> list[bytes]:
        """The strips or tiles, packed and compressed."""
        height, width, count = self.samples.shape
        planes = [self.samples] if self.planar == 1 else [self.samples[..., k : k + 1] for k in range(count)]
        tall, wide = self.tile or (self.rows or height, width)
        blocks = []
        for plane in planes:
            for y in range(0, height, tall):
                for x in range(0, width, wide):
                    block = plane[y : y + tall, x : x + wide]
                    if self.tile:
                        lacking = (tall - block.shape[0], wide - block.shape[1])
                        block = np.pad(block, ((0, lacking[0]), (0, lacking[1]), (0, 0)))
                    packed = _compress(self._rows(block, order), self.compression)
                    blocks.append(packed.translate(_REVERSED) if self.fill == 2 else packed)
        return blocks

    def _rows(self, block: np.ndarray, order: str) -> bytes:
        """The bytes of a strip or tile [h, w, S], before they are compressed."""
        size = self.bits // 8
        if self.predictor == 2:
            bits = block.astype(f"{block.dtype.kind}{size}").view(f"u{size}")
            block = np.diff(bits, axis=1, prepend=np.zeros_like(bits[:, :1]))
        elif self.predictor == 3:
            big = block.astype(f">f{size}").reshape(len(block), -1, 1).view(np.uint8)  # [h, numbers, bytes]
            planes = big.swapaxes(1, 2).reshape(len(block), -1, block.shape[2])
            return np.diff(planes, axis=1, prepend=np.zeros_like(planes[:, :1])).tobytes()
        return pack(block.reshape(len(block), -1), self.bits, order)

    def all_tags(self) -> dict[int, tuple[int, Sequence[int]]]:
        """The tags that need no offsets."""
        height, width, count = self.samples.shape
        tags: dict[int, tuple[int, Sequence[int]]] = {
            256: (4, [width]), 257: (4, [height]), 258: (3, [self.bits] * count), 259: (3, [self.compression]),
            262: (3, [self.photometric]), 277: (3, [count]),
        }  # fmt: skip
        if self.tile:
            tags |= {322: (3, [self.tile[1]]), 323: (3, [self.tile[0]])}
        else:
            tags[278] = (4, [self.rows or height])
        if self.planar != 1:
            tags[284] = (3, [self.planar])
        if self.predictor != 1:
            tags[317] = (3, [self.predictor])
        if self.fill != 1:
            tags[266] = (3, [self.fill])
        if self.samples.dtype.kind != "u":
            tags[339] = (3, [{"i": 2, "f": 3}[self.samples.dtype.kind]] * count)
        return tags | self.tags


def pack(rows: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Packs samples [H, N], each row to whole bytes; below 8 bits, and 12, the first one in the highest bits."""
    if bits in (8, 16, 32, 64):
        return rows.astype(f"{order}{rows.dtype.kind}{bits // 8}").tobytes()
    digits = (rows[..., None].astype(np.uint32) >> np.arange(bits - 1, -1, -1, dtype=np.uint32)) & 1
    return np.packbits(digits.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def _compress(data: bytes, compression: int) -> bytes:
    if compression == 8:
        return zlib.compress(data)
    if compression == 5:  # LZW: single bytes as codes of 9 bits, cleared before the codes become longer
        codes = [code for k, byte in enumerate(data) for code in ([256, byte] if k % 200 == 0 else [byte])] + [257]
        return pack(np.array([codes]), 9)
    if compression == 32773:  # PackBits: runs of single bytes
        runs = [data[k : k + 128] for k in range(0, len(data), 128)]
        return b"".join(bytes([len(run) - 1]) + run for run in runs)
    return data


def tiff(*pages: Page, order: str = "<", big: bool = False) -> bytes:
    """A TIFF file of several directories, or a BigTIFF file."""
    offset_type, word = (16, "Q") if big else (4, "I")
    file = bytearray(b"II" if order == "<" else b"MM")
    file += struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)

    def append(data: bytes) -> int:
        file.extend(b"\0" * (len(file) % 2))
        file.extend(data)
        return len(file) - len(data)

    def put(page: Page) -> tuple[int, int]:
        """Appends a directory; returns where it begins and where its link to the next one stands."""
        tags = page.all_tags()
        if page.subs:
            tags[330] = (offset_type, [put(sub)[0] for sub in page.subs])
        blocks = page.blocks(order)
        starts, counts = (324, 325) if page.tile else (273, 279)
        tags[starts] = (offset_type, [append(block) for block in blocks])
        tags[counts] = (offset_type, [len(block) for block in blocks])
        entries = b""
        for tag, (kind, values) in sorted(tags.items()):
            data = struct.pack(f"{order}{len(values)}{_TIFF_TYPES[kind]}", *values)
            if len(data) > struct.calcsize(word):
                data = struct.pack(order + word, append(data))
            entries += struct.pack(order + "HH" + word, tag, kind, len(values)) + data.ljust(
                struct.calcsize(word), b"\0"
            )
        start = append(struct.pack(order + ("Q" if big else "H"), len(tags)) + entries)
        return start, append(struct.pack(order + word, 0))

    link = 8 if big else 4
    for page in pages:
        start, next_link = put(page)
        struct.pack_into(order + word, file, link, start)
        link = next_link
    return bytes(file)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    samples: np.ndarray,
    depth: int,
    color: int,
    before: Sequence[tuple[bytes, bytes]] = (),
    after: Sequence[tuple[bytes, bytes]] = (),
    interlaced: bool = False,
) -> bytes:
    """A PNG file.

    Args:
      samples: unsigned integers [H, W, S] below 2 ** depth.
      depth: bits of a sample.
      color: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
      before: (kind, content) of chunks before the pixels.
      after: the same, after the pixels.
      interlaced: whether the pixels come in the seven passes of Adam7.
    """
    height, width = samples.shape[:2]
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    parts = [samples[y::down, x::across] for y, down, x, across in passes] if interlaced else [samples]
    rows = [pack(row.reshape(1, -1), depth) for part in parts if part.size for row in part]
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *before, (b"IDAT", data), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, content) for kind, content in chunks)


def bmp(
    samples: np.ndarray, bits: int, palette: bytes = b"", masks: Sequence[int] = (), top_down: bool = False
) -> bytes:
    """A BMP file.

    Args:
      samples: of 1 to 8 bits, indices [H, W]; else whole pixels [H, W], as they are stored.
      bits: of a pixel.
      palette: blue, green, red, 0 for each colour.
      masks: where in a pixel red, green, blue and, if given, alpha are.
      top_down: whether the first row comes first.
    """
    height, width = samples.shape
    rows = samples if top_down else samples[::-1]
    if bits == 24:
        packed = [b"".join(struct.pack("<I", pixel)[:3] for pixel in row.tolist()) for row in rows]
    else:
        packed = [pack(row[None], bits, "<") for row in rows]
    data = b"".join(row + bytes(-len(row) % 4) for row in packed)
    tail = struct.pack("<4I", *masks, *[0] * (4 - len(masks))) + bytes(52) if masks else b""
    size = 40 + len(tail)
    offset = 14 + size + len(palette)
    header = struct.pack("<IiiHH", size, width, -height if top_down else height, 1, bits)
    header += struct.pack("<IIiiII", 3 if masks else 0, len(data), 0, 0, len(palette) // 4, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + tail + palette + data
