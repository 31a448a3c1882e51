"""Image files that Pillow reads as they are: JPEG, WebP, BMP, GIF, AVIF, HEIC."""

from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, ImageFile, WebPImagePlugin

from qualiclip_jax.images.error import Refused, not_supported
from qualiclip_jax.images.jpeg_file import load_jpeg, open_jpeg
from qualiclip_jax.images.rgb import Opened, orientation, to_rgb, upright, upright_size

_OPENERS: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "JPEG": open_jpeg,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}


def open_with_pillow(file: BinaryIO, format: str) -> Opened:
    """Reads the header of an image file; `file` stays open for the pixels."""
    if format == "BMP":
        bits = _bmp_bits(file)
    file.seek(0)
    image = (_heif_plugin() if format == "HEIF" else _OPENERS[format])(
        file
    )  # has no limit of its own, as Image.open has
    if format == "BMP" and bits != {"1": 1, "L": 8}.get(image.mode, bits):
        raise not_supported(f"BMP of {bits} bits and a grey palette")  # Pillow would read other bits than there are
    turn = orientation(image)
    width, height = image.size

    def decode() -> np.ndarray:
        loaded = load_jpeg(image, file) if format == "JPEG" else image
        loaded.load()
        if format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
            loaded = image.convert("RGB")  # a writer left the fourth byte empty: this is no invisible picture
        return upright(to_rgb(loaded), turn)

    return Opened(upright_size(height, width, turn), decode)


def _bmp_bits(file: BinaryIO) -> int:
    """Bits of a pixel, from the header of a BMP file."""
    file.seek(14)
    header = file.read(16)
    place = 10 if header[:4] == b"\x0c\0\0\0" else 14  # the header of OS/2 is shorter
    return int.from_bytes(header[place : place + 2], "little")


def _heif_plugin() -> Callable[[BinaryIO], ImageFile.ImageFile]:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise Refused("HEIC images need one more package: pip install pillow-heif") from None
    return HeifImageFile
