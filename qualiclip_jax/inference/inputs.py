"""Images as they are given to a model from Python: checked, and brought into one form."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.experimental import checkify

from qualiclip_jax.errors import UserError
from qualiclip_jax.images.error import first_line
from qualiclip_jax.images.rgb import from_pillow

Image = np.ndarray | jax.Array | PIL.Image.Image
Images = Image | Sequence[Image]


def as_list(images: Images) -> list[np.ndarray]:
    """The images that `score` accepts, all of one type: uint8, or float32 in [0, 1], each [H, W, 3].

    Images of Pillow become RGB as files do: turned upright, transparency laid over white, 16 bits rounded to 8.

    Raises:
      UserError: another shape or type, or values outside the range.
    """
    if isinstance(images, Sequence) and not isinstance(images, str):
        several: Iterable[Any] = images
    else:
        several = np.asarray(images) if getattr(images, "ndim", None) == 4 else [images]
    given = [_checked(image, i) for i, image in enumerate(several)]
    if all(image.dtype == np.uint8 for image in given):
        return given
    return [image / np.float32(255) if image.dtype == np.uint8 else image.astype(np.float32) for image in given]


def _checked(image: Any, index: int) -> np.ndarray:
    what = f"image {index}"
    if isinstance(image, str | os.PathLike):
        raise UserError(f"{what} is a path, {os.fspath(image)!r}: score_files takes the paths of image files")
    if isinstance(image, PIL.Image.Image):
        return _from_pillow(image, what)
    if not hasattr(image, "dtype") or not hasattr(image, "ndim"):
        raise UserError(f"{what} is a {type(image).__name__}: give arrays (NumPy or JAX) or images of Pillow")
    array = np.asarray(image)
    _check_form(array.shape, array.dtype, what, 3)
    if array.dtype != np.uint8 and array.size and not (array.min() >= 0 and array.max() <= 1):
        raise UserError(f"{what} has {_range(array)}")
    return array


def _from_pillow(image: PIL.Image.Image, what: str) -> np.ndarray:
    try:
        return from_pillow(image)
    except Exception as error:  # Pillow decodes the file only now
        raise UserError(f"{what}: {first_line(error)}") from None


def check_array(images: jax.Array, check: bool) -> None:
    """Checks what `apply` is given: shape and type; values where they are known, or with `check` when they are.

    Raises:
      UserError: another shape or type, or values outside [0, 1].
    """
    if not isinstance(images, np.ndarray | jax.Array):  # what is traced is a jax.Array, too
        raise UserError(f"images are a {type(images).__name__}: give an array, NumPy or JAX")
    _check_form(images.shape, images.dtype, "the array of images", None)
    if images.dtype == jnp.uint8:
        return
    if isinstance(images, jax.core.Tracer):
        if check:
            outside = jnp.sum(~((images >= 0) & (images <= 1)))
            message = "the array of images has {outside} values that are not from 0 to 1"
            checkify.check(outside == 0, message, outside=outside)
    elif images.size:
        with jax.ensure_compile_time_eval():
            inside = bool(jnp.all((images >= 0) & (images <= 1)))
        if not inside:
            raise UserError(f"the array of images has {_range(np.asarray(images))}")


def _check_form(shape: tuple[int, ...], dtype: Any, what: str, ndim: int | None) -> None:
    if len(shape) < 3 or len(shape) != (ndim or len(shape)) or shape[-1] != 3:
        raise UserError(f"{what} has the shape {list(shape)}: give RGB {'images' if ndim is None else 'as'} [H, W, 3]")
    if dtype != np.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"{what} has the type {dtype}: give uint8, or floating point in [0, 1]")


def _range(image: np.ndarray) -> str:
    return f"values from {float(image.min()):.8g} to {float(image.max()):.8g}: floating point goes from 0 to 1"
