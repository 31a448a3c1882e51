"""JPEG files that Pillow does not judge right: without an end marker, with one too early, of kinds it cannot decode."""

import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image, ImageFile, JpegImagePlugin

from qualiclip_jax.images.error import not_supported

_MARKER = re.compile(rb"\xff+([\x02-\xcf\xd8-\xfe])")  # neither a stuffed byte nor a restart
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_START, _END, _SCAN, _END_BYTES = 0xD8, 0xD9, 0xDA, b"\xff\xd9"
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # Huffman and arithmetic coding, sequential and progressive
_OTHER_FRAMES = {0xC3: "lossless", 0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical", 0xCB: "lossless"}
_OTHER_FRAMES |= dict.fromkeys((0xCD, 0xCE, 0xCF), "hierarchical") | {0xF7: "lossless (LS)"}
_NOISE = bytes((73 * k + 46) % 255 for k in range(512))  # as good as compressed data; begins with bits 0010
_ZEROS = 16  # at the end of a file, as no picture ends
_NOISES = (_NOISE, bytes(254 - byte for byte in _NOISE))


def open_jpeg(file: BinaryIO) -> ImageFile.ImageFile:
    """Reads the header of a JPEG file.

    Raises:
      Refused: it is of a kind that is not decoded.
    """
    try:
        return JpegImagePlugin.JpegImageFile(file)
    except SyntaxError:
        _refuse_other_frames(_content(file))
        raise


def load_jpeg(image: Image.Image, file: BinaryIO) -> Image.Image:
    """Loads a JPEG image that has been opened from `file`; one without an end marker too, if its pixels are complete.

    Raises:
      Refused: it is of a kind that is not decoded.
      OSError: damaged or truncated, or filled up with zeros where the rest is missing.
    """
    try:
        image.load()
    except OSError:
        data = _content(file)
        _refuse_other_frames(data)
        whole = None if _end(data) is not None else _without_end(data)
        if whole is None:
            raise
        return whole
    file.seek(-_ZEROS, io.SEEK_END)
    suspect = "progressive" in image.info or _ends_in_grey(image)
    if any(file.read()) and not suspect:
        return image
    data = _content(file)
    end = _end(data)
    if end is None:
        whole = _without_end(data)
        if whole is None:
            raise OSError("truncated: zeros take the place of the rest")
        return whole
    if suspect and not (_has_all_scans(data[:end]) and (not _ends_in_grey(image) or _decode_whole(data[:end]))):
        raise OSError("truncated: its end marker comes before its last pixels")
    return image


def _ends_in_grey(image: Image.Image) -> bool:
    """Whether the last pixel is what libjpeg puts in the place of pixels that are missing."""
    pixel = image.getpixel((image.width - 1, image.height - 1))
    if isinstance(pixel, tuple):  # colour may come from the pixels beside it: the luma of RGB, the black of CMYK
        pixel = pixel[3] if len(pixel) == 4 else 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
    return pixel is not None and abs(pixel - 128) <= 2


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _refuse_other_frames(data: bytes) -> None:
    for _, marker, _ in _segments(data):
        if marker in _OTHER_FRAMES:
            raise not_supported(f"{_OTHER_FRAMES[marker]} JPEG") from None


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Where the markers of a JPEG file are, which they are, and what belongs to each, without compressed data."""
    place = 0
    while match := _MARKER.search(data, place):
        marker, place, length = match[1][0], match.end(), 0
        if marker not in (_START, _END):
            length = int.from_bytes(data[place : place + 2], "big")
        yield match.start(), marker, data[place + 2 : place + length]
        place += length


def _end(data: bytes) -> int | None:
    """Where the end marker of the picture is; another picture may follow."""
    return next((place for place, marker, _ in _segments(data) if marker == _END), None)


def _without_end(data: bytes) -> Image.Image | None:
    """Decodes a file that stops without an end marker; None if pixels are missing."""
    bare = data.rstrip(b"\0")  # what some cameras and downloads fill a file up with; the first ones may be pixels
    if not _has_all_scans(bare):
        return None
    for zeros in range(min(len(data) - len(bare), 3) + 1):
        whole = bare + bytes(zeros)
        image = _decode_whole(whole[:-1] if whole.endswith(b"\xff") else whole)  # half of the end marker
        if image is not None:
            return image
    return None


def _decode_whole(data: bytes) -> Image.Image | None:
    """Decodes a file that stops after its last pixel; None if pixels are missing.

    Pixels are missing if what is appended to the file changes the picture: a decoder would go on with it. Where all of
    them are there, the decoder passes over it.
    """
    restarts = len(_RESTART.findall(data, data.rindex(b"\xff\xda")))
    restart = b"\xff" + bytes([0xD0 + restarts % 8])
    tails = (b"", *_NOISES, *(restart + noise for noise in _NOISES))
    images = (JpegImagePlugin.JpegImageFile(io.BytesIO(data + tail + _END_BYTES)) for tail in tails)
    try:
        first = next(images)
        pixels = first.tobytes()
        return first if all(image.tobytes() == pixels for image in images) else None
    except OSError:
        return None


def _has_all_scans(data: bytes) -> bool:
    """Whether there is a scan for every coefficient, down to its last bit."""
    components = b""
    bits_left: dict[tuple[int, int], int] = {}  # by component and coefficient
    for _, marker, content in _segments(data):
        if marker in _FRAMES:
            components = content[6::3]
        elif marker == _SCAN and content:
            count = content[0]
            first, last, bits = content[1 + 2 * count : 4 + 2 * count]
            for component in content[1 : 1 + 2 * count : 2]:
                bits_left |= {(component, k): bits & 15 for k in range(first, last + 1)}
    return bool(components) and all(bits_left.get((c, k)) == 0 for c in components for k in range(64))
