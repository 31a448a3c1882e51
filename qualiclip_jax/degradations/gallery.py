"""A contact sheet of all degradations of one photograph."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qualiclip_jax.degradations.catalog import GROUPS, LEVELS, MEANINGS, PARAMETERS, TYPES
from qualiclip_jax.degradations.pipeline import MIN_SIZE, degrade
from qualiclip_jax.errors import UserError
from qualiclip_jax.progress import track

_LABEL, _HEAD, _GAP = 240, 34, 4  # px: width of the labels, height of the heading, space between the tiles
_SMALLEST_TILE = 72  # px, the height of the labels


def degrade_photo(photo: np.ndarray, name: str, level: int, seed: int = 0) -> np.ndarray:
    """Degrades a photograph at its own size.

    Args:
      photo: uint8 [H, W, 3].
      name: one of `TYPES`.
      level: 1 to 5.
      seed: of the random types.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UserError: as `degrade`.
    """
    run = jax.jit(lambda image: degrade(name, image, level, jax.random.key(seed)))
    return _to_uint8(run(photo / np.float32(255)))


def contact_sheet(photo: np.ndarray, size: int = 224, tile: int = 160, seed: int = 0) -> np.ndarray:
    """All types and levels of a photograph, labelled, one type a row: pristine, level 1, ..., level 5.

    Args:
      photo: uint8 [H, W, 3].
      size: px; the central square of the photograph is shrunk to it (never enlarged), then degraded. Training degrades
        crops of 224.
      tile: px, the degraded squares are shown no larger.
      seed: of the random types.

    Returns:
      uint8 [H', W', 3].

    Raises:
      UserError: `size`, `tile` or photograph too small.
    """
    if tile < _SMALLEST_TILE:
        raise UserError(f"tiles of {tile} px are too small for their labels: {_SMALLEST_TILE} px or more")
    pristine = square(photo, size)
    levels = jnp.arange(1, LEVELS + 1)
    rows = []
    for name in track(TYPES, len(TYPES), "degrading", "type"):
        run = jax.jit(lambda image, key, name=name: jax.lax.map(lambda level: degrade(name, image, level, key), levels))
        degraded = _to_uint8(run(pristine / np.float32(255), jax.random.key(seed)))
        rows.append([_shrunk(image, tile) for image in (pristine, *degraded)])
    return _sheet(rows)


def square(photo: np.ndarray, size: int) -> np.ndarray:
    """The central square of a photograph [H, W, 3], shrunk to `size`: uint8 [S, S, 3], S <= size."""
    height, width = photo.shape[:2]
    side = min(height, width)
    if min(side, size) < MIN_SIZE:
        raise UserError(
            f"a square of {min(side, size)} px (photo {width} x {height} px, size {size} px) is too small: "
            f"degradations need {MIN_SIZE} px or more"
        )
    top, left = (height - side) // 2, (width - side) // 2
    return _shrunk(photo[top : top + side, left : left + side], size)


def _shrunk(image: np.ndarray, size: int) -> np.ndarray:
    if len(image) <= size:
        return image
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def _sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
    size = len(rows[0][0])
    step = size + _GAP
    sheet = Image.new("RGB", (_LABEL + step * len(rows[0]), _HEAD + step * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(16), ImageFont.load_default(12)
    first_of_group = {names[0]: group for group, names in GROUPS.items()}

    for column, title in enumerate(["pristine", *(f"level {k}" for k in range(1, LEVELS + 1))]):
        draw.text((_LABEL + column * step + size / 2, _HEAD / 2), title, "black", large, anchor="mm")
    for row, (name, tiles) in enumerate(zip(TYPES, rows)):
        top = _HEAD + row * step
        if name in first_of_group:
            draw.line((0, top - _GAP / 2, sheet.width, top - _GAP / 2), "#888888")
            draw.text((_LABEL - 8, top + 4), first_of_group[name], "#888888", small, anchor="ra")
        values = "   ".join(f"{value:g}" for value in PARAMETERS[name])
        lines = ((name, "black", large), (MEANINGS[name], "#444444", small), (values, "#444444", small))
        for (text, color, font), offset in zip(lines, (-20, 2, 20)):
            draw.text((8, top + size / 2 + offset), text, color, font, anchor="lm")
        for column, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(tile), (_LABEL + column * step, top))
    return np.array(sheet)


def _to_uint8(images) -> np.ndarray:
    return np.round(np.asarray(images) * 255).astype(np.uint8)
