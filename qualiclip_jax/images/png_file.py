"""PNG files: the chunks that make the picture are read, and no others, however large or damaged these are."""

import io
import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import PngImagePlugin

from qualiclip_jax.images.error import not_supported
from qualiclip_jax.images.rgb import Opened, by_strips, orientation, over_white, to_rgb, upright, upright_size

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_GREY, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 3, 4, 6
_MOST_EXIF = 1 << 20  # bytes
_PASSES = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))  # Adam7
_PIECE = 1 << 20  # bytes unpacked at a time


def open_png(file: BinaryIO) -> Opened:
    """Reads the header of a PNG file."""
    chunks: dict[bytes, bytes] = {}
    data: list[tuple[int, int]] = []  # where the parts of the compressed picture are, and their lengths
    file.seek(len(_SIGNATURE))
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if not kind.isalpha():
            raise ValueError(f"broken chunk {kind!r}")
        if kind == b"IEND":
            break
        if kind in (b"IHDR", b"PLTE", b"tRNS") or (kind == b"eXIf" and length <= _MOST_EXIF):
            content = file.read(length + 4)
            if kind != b"eXIf" and content[length:] != struct.pack(">I", zlib.crc32(kind + content[:length])):
                raise ValueError(f"bad checksum of {kind.decode()}")
            chunks[kind] = content[:length]
        elif kind[:1].isupper() and kind != b"IDAT":
            raise not_supported(f"PNG with the chunk {kind.decode()}")
        else:
            if kind == b"IDAT":
                data.append((file.tell(), length))
            file.seek(length + 4, io.SEEK_CUR)
    if len(chunks.get(b"IHDR", b"")) != 13:
        raise ValueError("no header")
    width, height, depth, color = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    if depth not in _DEPTHS.get(color, ()):
        raise ValueError(f"there is no PNG of {depth} bits and colour type {color}")
    if color == _PALETTE and b"PLTE" not in chunks:
        raise ValueError("no palette")

    key = None  # the colour that is transparent, in the depth of the file
    if b"tRNS" in chunks and color in (0, 2):
        count = _SAMPLES[color]
        key = np.array(struct.unpack(f">{count}H", chunks[b"tRNS"][: 2 * count])) & ((1 << depth) - 1)

    def decode() -> np.ndarray:
        parts = []
        for start, length in data:
            file.seek(start)
            parts.append(file.read(length))
        pixels = (_deep if depth == 16 else _shallow)(chunks, b"".join(parts), key)
        return upright(pixels, turn)

    exif = chunks.get(b"eXIf", b"")
    turn = orientation(b"Exif\0\0" + exif) if exif else 1
    return Opened(upright_size(height, width, turn), decode)


def _picture(header: bytes, *chunks: tuple[bytes, bytes]) -> PngImagePlugin.PngImageFile:
    """Has Pillow open a PNG file of these chunks."""
    stream = io.BytesIO()
    stream.write(_SIGNATURE)
    for kind, content in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        stream.writelines((struct.pack(">I4s", len(content), kind), content))
        stream.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)) if kind != b"IDAT" else 0))  # not checked
    stream.seek(0)
    return PngImagePlugin.PngImageFile(stream)


def _load(image: PngImagePlugin.PngImageFile, header: bytes, data: bytes) -> None:
    """Decodes the pixels.

    Raises:
      EOFError: the compressed data are sound, but end before the last row. Pillow leaves what is missing at zero.
    """
    image.load()
    width, height = image.size
    interlaced = header[12]
    if not interlaced and any(image.crop((0, height - 1, width, height)).tobytes()):
        return
    unpack, left = zlib.decompressobj(), _unpacked_size(header)
    while left > 0 and data:
        left -= len(unpack.decompress(data, min(left, _PIECE)))
        data = b"" if unpack.eof else unpack.unconsumed_tail
    if left > 0:
        raise EOFError("its compressed data end before the last row")


def _unpacked_size(header: bytes) -> int:
    """How many bytes the rows have, each with the byte that says how it is filtered."""
    width, height, depth, color, *_, interlaced = struct.unpack(">IIBBBBB", header)
    size = 0
    for top, down, start, across in _PASSES if interlaced else ((0, 1, 0, 1),):
        columns = len(range(start, width, across))
        size += len(range(top, height, down)) * (1 + (columns * _SAMPLES[color] * depth + 7) // 8) if columns else 0
    return size


def _shallow(chunks: dict[bytes, bytes], data: bytes, key: np.ndarray | None) -> np.ndarray:
    """Decodes at most 8 bits a sample."""
    header = chunks[b"IHDR"]
    depth, color = header[8:10]
    palette = [(kind, chunks[kind]) for kind in (b"PLTE", b"tRNS") if color == _PALETTE and kind in chunks]
    image = _picture(header, *palette, (b"IDAT", data))
    _load(image, header, data)
    if key is not None:
        scaled = [int(sample) * 255 // ((1 << depth) - 1) for sample in key]
        image.info["transparency"] = scaled[0] if color == _GREY else tuple(scaled)
    return to_rgb(image)


def _deep(chunks: dict[bytes, bytes], data: bytes, key: np.ndarray | None) -> np.ndarray:
    """Decodes 16 bits a sample: Pillow would cut most of them to 8, so it is asked for the bytes of each sample."""
    header = chunks[b"IHDR"]
    width, height, _, color = struct.unpack(">IIBB", header[:10])
    if color in (_GREY, _GREY_ALPHA):  # as many bytes as grey with alpha, or RGB with alpha, of 8 bits
        as_8_bits = header[:8] + bytes([8, _GREY_ALPHA if color == _GREY else _RGB_ALPHA]) + header[10:]
        both = _picture(as_8_bits, (b"IDAT", data))
        _load(both, header, data)
        images, channels = [both, both], (slice(0, None, 2), slice(1, None, 2))
    else:
        images, channels = [], (slice(None), slice(None))
        for order in "BL":  # takes the first byte of each sample, then the second
            image = _picture(header, (b"IDAT", data))
            image.tile = [image.tile[0]._replace(args=f"{image.mode};16{order}")]
            _load(image, header, data)
            images.append(image)
    alpha = color in (_GREY_ALPHA, _RGB_ALPHA)

    def convert(first: int, last: int) -> np.ndarray:
        high, low = (
            np.asarray(image.crop((0, first, width, last)))[..., part] for image, part in zip(images, channels)
        )
        samples = (high.astype(np.uint16) << 8) | low  # [h, w, S]
        unit = samples.astype(np.float32) / 65535
        if key is not None:
            return over_white(unit, (samples != key).any(-1, keepdims=True))
        return over_white(unit[..., :-1], unit[..., -1:]) if alpha else over_white(unit)

    return by_strips(height, width, convert)
