"""Reads and writes image files."""

import io
import os
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from qualiclip_jax import storage
from qualiclip_jax.images.error import ImageError, Refused, first_line
from qualiclip_jax.images.magic import HEAD, identify
from qualiclip_jax.images.pillow_file import open_with_pillow
from qualiclip_jax.images.png_file import open_png
from qualiclip_jax.images.rgb import Opened
from qualiclip_jax.images.tiff_file import open_tiff

T = TypeVar("T")
MAX_PIXELS = 512 * 10**6  # more in a header is taken for a decompression bomb; phones reach 200 * 10**6
_LARGE, _LEAST_BYTES = 64 * 10**6, 1 / 200  # above so many pixels, a file of fewer bytes a pixel is taken for a bomb
_UNKNOWN_KIND = re.compile(r"unsupported|not supported|cannot handle|not installed", re.IGNORECASE)
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL(\.|$)"), 0)


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image file; the content decides the format, not the name.

    Args:
      path: JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF; HEIC with the optional package pillow-heif.
      max_pixels: an image whose header claims more is refused before it is decoded.

    Returns:
      uint8 [H, W, 3], RGB.

    Raises:
      ImageError: missing, not readable, empty, truncated, not an image, too many pixels, unsupported.
    """
    return _with_file(path, lambda file: _guarded(_pixels, file, path, max_pixels))


def read_size(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width that `read_image` would return, from the header alone.

    Raises:
      ImageError: as `read_image`, as far as the header tells.
    """
    return _with_file(path, lambda file: _guarded(_size, file, path, max_pixels))


def decode_image(data: bytes, name: str | os.PathLike[str] = "image", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Like `read_image`, from the bytes of a file; `name` is what an error calls it."""
    return _guarded(_pixels, io.BytesIO(data), name, max_pixels)


def decode_size(data: bytes, name: str | os.PathLike[str] = "image", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Like `read_size`, from the bytes of a file."""
    return _guarded(_size, io.BytesIO(data), name, max_pixels)


def write_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes an image file, whole or not at all; the extension decides the format.

    Args:
      path: where; an existing file is replaced.
      image: uint8 [H, W, 3], or float [H, W, 3] in [0, 1].

    Raises:
      ValueError: on an extension that stands for no format.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    path = Path(path)
    format = Image.registered_extensions().get(path.suffix.lower())
    if format is None:
        raise ValueError(f"unknown file extension: {path.suffix}")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format)
    storage.write_bytes(path, buffer.getvalue())


def _with_file(path: str | os.PathLike[str], use: Callable[[BinaryIO], T]) -> T:
    """Opens a regular file and calls `use` with it, turning what the system refuses into an `ImageError`."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(path, "is a folder, not an image")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(path, "is not a regular file")
        with open(path, "rb") as file:
            return use(file)
    except FileNotFoundError:
        raise ImageError(path, "no such file") from None
    except PermissionError:
        raise ImageError(path, "no permission to read it") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError(path, f"cannot be opened ({first_line(error)})") from None


def _pixels(opened: Opened, size: int) -> np.ndarray:
    height, width = opened.size
    if height * width > _LARGE and size < height * width * _LEAST_BYTES:
        raise Refused(f"{size} bytes would unpack to {width} x {height} pixels: taken for a decompression bomb")
    return opened.decode()


def _size(opened: Opened, _: int) -> tuple[int, int]:
    return opened.size


def _guarded(use: Callable[[Opened, int], T], file: BinaryIO, name: str | os.PathLike[str], max_pixels: int) -> T:
    """Reads a header and calls `use` with it and the bytes of the file; whatever goes wrong becomes an `ImageError`."""
    _ignore_pillow_warnings()
    try:
        opened = _open(file)
        height, width = opened.size
        if width * height > max_pixels:
            raise Refused(
                f"its header claims {width} x {height} pixels, more than {max_pixels / 1e6:g} megapixels: "
                "taken for a decompression bomb"
            )
        return use(opened, file.seek(0, io.SEEK_END))
    except Refused as error:
        reason = str(error)
    except MemoryError:
        reason = "not enough memory to decode it"
    except Image.DecompressionBombError:
        reason = "decompression bomb: it would unpack to far more than an image"
    except Exception as error:  # damaged files make the decoders raise nearly every class there is
        said = first_line(error)
        if _UNKNOWN_KIND.search(said):
            reason = f"an image of this kind is not supported ({said})"
        else:
            truncated = "truncated" in said.lower() or isinstance(error, EOFError)
            reason = f"{'truncated' if truncated else 'damaged'} image ({said})"
    raise ImageError(name, reason)


def _open(file: BinaryIO) -> Opened:
    """Reads the header of an image file of any format."""
    head = file.read(HEAD)
    if not head:
        raise Refused("empty file")
    format = identify(head)
    if format == "PNG":
        return open_png(file)
    return open_tiff(file) if format == "TIFF" else open_with_pillow(file, format)


def _ignore_pillow_warnings() -> None:
    """Pillow warns of damaged metadata; a reader that either returns the pixels or raises has no use for it.

    Kept at the front of the filters, never taken away again: restoring them is what is not safe in threads.
    """
    if not warnings.filters or warnings.filters[0] != _PILLOW_WARNINGS:
        warnings.filterwarnings("ignore", module=_PILLOW_WARNINGS[3].pattern)
