"""From decoded samples to uint8 RGB: strip by strip, so that a large image is held no more often than needed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qualiclip_jax.images.error import Refused, not_supported

_ORIENTATION_TAG = 0x0112
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}
_STRIP = 1 << 20  # pixels converted at a time


@dataclass(frozen=True)
class Opened:
    """An image file whose header has been read.

    Attributes:
      size: height and width of the upright image.
      decode: returns it, uint8 [H, W, 3].
    """

    size: tuple[int, int]
    decode: Callable[[], np.ndarray]


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns a stored picture [H, W, 3] as its EXIF orientation says."""
    return np.ascontiguousarray(_UPRIGHT[orientation](image)) if orientation in _UPRIGHT else image


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width after `upright`."""
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def orientation(source: bytes | Image.Image) -> int:
    """The EXIF orientation of an image, or of EXIF data: 1 to 8. Damaged EXIF data count as none."""
    try:
        if isinstance(source, bytes):
            exif = Image.Exif()
            exif.load(source)
        else:
            exif = source.getexif()
        return int(exif.get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def by_strips(height: int, width: int, convert: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Puts an image together from its rows: `convert(first, last)` returns uint8 [last - first, width, 1 or 3]."""
    image = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP // width)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        image[first:last] = convert(first, last)
    return image


def to_rgb(image: Image.Image) -> np.ndarray:
    """Converts an image of Pillow, of 8 bits or fewer, to uint8 [H, W, 3]; transparency is laid over white."""
    width, height = image.size

    def convert(first: int, last: int) -> np.ndarray:
        part = image if (first, last) == (0, height) else image.crop((0, first, width, last))
        if "transparency" in part.info or part.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
            part = part.convert("LA") if part.mode == "La" else part
            rgba = part.convert("RGBA")
            part = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return np.asarray(part if part.mode == "RGB" else part.convert("RGB"))

    if image.mode[0] in "IF" or image.mode == "LAB":
        raise not_supported(f"{image.format} with samples of the kind {image.mode}")
    image.load()
    return by_strips(height, width, convert)


def from_pillow(image: Image.Image) -> np.ndarray:
    """Converts an image that Pillow has opened or made to uint8 [H, W, 3], upright, as `read_image` does with a file.

    Raises:
      Refused: it is of a mode that is not supported, or of floating point that does not go from 0 to 1.
    """
    image.load()  # of a TIFF, Pillow turns it upright now
    width, height = image.size
    if width == 0 or height == 0:
        return np.zeros((height, width, 3), np.uint8)
    if image.mode.startswith("I;16") or image.mode == "F":
        samples = np.asarray(image)[..., None]
        if image.mode == "F" and not (samples.min() >= 0 and samples.max() <= 1):
            raise Refused(f"floating point values from {samples.min():.8g} to {samples.max():.8g}, expected 0 to 1")
        key = image.info.get("transparency")
        alpha = None if key is None else (samples != key).astype(np.float32)
        grey = over_white(samples.astype(np.float32) / (1 if image.mode == "F" else 65535), alpha)
        rgb = np.repeat(grey, 3, axis=2)
    elif image.mode in ("I", "LAB"):
        raise not_supported(f"an image of Pillow of mode {image.mode}", "convert it, or give an array")
    else:
        rgb = to_rgb(image)
    return upright(rgb, orientation(image))


def over_white(color: np.ndarray, alpha: np.ndarray | None = None, premultiplied: bool = False) -> np.ndarray:
    """Rounds samples to 8 bits and lays them over white.

    Args:
      color: floating point [H, W, 1 or 3] in [0, 1], grey or RGB.
      alpha: floating point [H, W, 1] in [0, 1].
      premultiplied: whether `color` has been multiplied by `alpha`.

    Returns:
      uint8 [H, W, 1 or 3].
    """
    if alpha is not None:
        color = (color if premultiplied else color * alpha) + (1 - alpha)
    rounded: np.ndarray = np.round(np.clip(color, 0, 1) * 255).astype(np.uint8)
    return rounded
