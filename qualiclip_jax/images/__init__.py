"""Image files and NumPy arrays: read anything people have, say clearly what cannot be read.

Every image becomes RGB, uint8 [H, W, 3]: EXIF orientation applied, transparency laid over white, grey, palette and CMYK
converted, 16 bits rounded to 8 (not clipped), the first frame of an animation. Colour profiles are not applied: neither
does the reference implementation. All functions may be called from several threads.
"""

from qualiclip_jax.images.error import ImageError
from qualiclip_jax.images.listing import IMAGE_EXTENSIONS, is_system_folder, list_images, walk
from qualiclip_jax.images.magic import FORMATS
from qualiclip_jax.images.reading import (
    MAX_PIXELS,
    decode_image,
    decode_size,
    read_image,
    read_size,
    write_image,
)

__all__ = [
    "FORMATS", "IMAGE_EXTENSIONS", "MAX_PIXELS", "ImageError", "decode_image", "decode_size", "is_system_folder",
    "list_images", "read_image", "read_size", "walk", "write_image",
]  # fmt: skip
