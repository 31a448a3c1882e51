"""Reads and writes image files."""

import io
import os
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import (
    AvifImagePlugin,  # noqa: F401  (a plugin registers itself when imported)
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from qualiclip_jax import storage
from qualiclip_jax.images.error import ImageError, first_line

T = TypeVar("T")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
MAX_PIXELS = 512 * 10**6  # more in a header is taken for a decompression bomb; phones reach 200 * 10**6
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSING = tuple(_TRANSPOSE[tag] for tag in (5, 6, 7, 8))
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL(\.|$)"), 0)


def read_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image file; the content decides the format, not the name.

    Args:
      path: JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF; HEIC with the optional package pillow-heif.
      max_pixels: an image whose header claims more is refused before it is decoded.

    Returns:
      uint8 [H, W, 3], RGB.

    Raises:
      ImageError: missing, not readable, empty, truncated, not an image, too many pixels, unsupported.
    """
    return _with_file(path, lambda file: _decode(file, path, max_pixels))


def read_size(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width that `read_image` would return, from the header alone.

    Raises:
      ImageError: as `read_image`, as far as the header tells.
    """
    return _with_file(path, lambda file: _guarded(_size, file, path, max_pixels))


def decode_image(data: bytes, name: str | os.PathLike = "image", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Like `read_image`, from the bytes of a file; `name` is what an error calls it."""
    return _decode(io.BytesIO(data), name, max_pixels)


def decode_size(data: bytes, name: str | os.PathLike = "image", max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Like `read_size`, from the bytes of a file."""
    return _guarded(_size, io.BytesIO(data), name, max_pixels)


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
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


def _with_file(path: str | os.PathLike, use: Callable[[BinaryIO], T]) -> T:
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


def _decode(file: BinaryIO, name: str | os.PathLike, max_pixels: int) -> np.ndarray:
    return _guarded(_pixels, file, name, max_pixels)


def _pixels(image: Image.Image, name: str | os.PathLike) -> np.ndarray:
    image.load()
    return _to_rgb(_upright(image), name)


def _size(image: Image.Image, name: str | os.PathLike) -> tuple[int, int]:
    width, height = image.size
    turned_already = image.format == "TIFF"  # Pillow itself applies the orientation of a TIFF
    return (width, height) if not turned_already and _transposition(image) in _TRANSPOSING else (height, width)


def _guarded(use: Callable, file: BinaryIO, name: str | os.PathLike, max_pixels: int) -> Any:
    """Opens an image and calls `use`, turning whatever goes wrong into an `ImageError`."""
    _ignore_pillow_warnings()
    try:
        with _open(file, name, max_pixels) as image:
            return use(image, name)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(name, "not enough memory to decode it") from None
    except Image.DecompressionBombError:
        raise ImageError(name, "decompression bomb: it would unpack to far more than an image") from None
    except Exception as error:  # damaged files make the decoders raise nearly every class there is
        reason = first_line(error)
        damage = "truncated" if "truncated" in reason.lower() or isinstance(error, EOFError) else "damaged"
        raise ImageError(name, f"{damage} image ({reason})") from None


def _open(file: BinaryIO, name: str | os.PathLike, max_pixels: int) -> Image.Image:
    """Reads the header. As `PIL.Image.open`, with a limit of our own in place of its process-wide one."""
    prefix = file.read(16)
    if not prefix:
        raise ImageError(name, "empty file")
    heif = prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS
    if heif:
        _register_heif()
    for format in FORMATS:
        factory, accept = Image.OPEN.get(format, (None, None))
        if factory is None or accept(prefix) is not True:
            continue
        file.seek(0)
        try:
            image = factory(file, str(name))
        except SyntaxError as error:  # how a plugin says: not mine after all
            if heif or format == "AVIF":
                continue
            raise ImageError(name, f"damaged {format} image ({first_line(error)})") from None
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                name,
                f"its header claims {width} x {height} pixels, more than {max_pixels / 1e6:g} megapixels: "
                "taken for a decompression bomb",
            )
        return image
    if heif and "HEIF" not in Image.OPEN:
        raise ImageError(name, "HEIC images need one more package: pip install pillow-heif")
    raise ImageError(name, "not an image in a format read here (JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC)")


def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError:
        return
    if "HEIF" not in Image.OPEN:
        pillow_heif.register_heif_opener()


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """What the EXIF orientation asks for; damaged EXIF data count as none."""
    try:
        return _TRANSPOSE.get(image.getexif().get(_ORIENTATION_TAG))
    except Exception:
        return None


def _upright(image: Image.Image) -> Image.Image:
    method = _transposition(image)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, name: str | os.PathLike) -> np.ndarray:
    """Converts any mode of Pillow to uint8 [H, W, 3]."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey_to_rgb(image, name)
    if image.mode == "LAB":
        raise ImageError(name, "Lab colour is not supported")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        if image.mode in ("La", "PA"):
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"))


def _deep_grey_to_rgb(image: Image.Image, name: str | os.PathLike) -> np.ndarray:
    """Grey of 16 bits (0..65535) or floating point (0..1) to uint8 [H, W, 3]."""
    grey = np.asarray(image)  # [H, W]
    top = 1.0 if image.mode == "F" else 65535.0
    low, high = float(grey.min()), float(grey.max())
    if not (low >= 0 and high <= top):
        raise ImageError(name, f"grey values from {low:g} to {high:g}, expected 0 to {top:g}")
    transparent = image.info.get("transparency")
    grey8 = np.round(grey * np.float32(255 / top)).astype(np.uint8)
    if isinstance(transparent, int):
        grey8[grey == transparent] = 255
    return np.repeat(grey8[..., None], 3, axis=-1)


def _ignore_pillow_warnings() -> None:
    """Pillow warns of damaged metadata; a reader that either returns the pixels or raises has no use for it.

    Kept at the front of the filters, never taken away again: restoring them is what is not safe in threads.
    """
    if not warnings.filters or warnings.filters[0] != _PILLOW_WARNINGS:
        warnings.filterwarnings("ignore", module=_PILLOW_WARNINGS[3].pattern)
