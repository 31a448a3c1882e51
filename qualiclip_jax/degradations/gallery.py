"""Contact sheets of one photograph: all degradations, or the faults of a camera."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qualiclip_jax.degradations import camera
from qualiclip_jax.degradations.catalog import FACTOR_MEANINGS, FACTORS, GROUPS, LEVELS, MEANINGS, PARAMETERS, TYPES
from qualiclip_jax.degradations.pipeline import MIN_SIZE, degrade
from qualiclip_jax.errors import UserError
from qualiclip_jax.progress import track

_LABEL, _HEAD, _GAP = 240, 34, 4  # px: width of the labels, height of the heading, space between the tiles
_SMALLEST_TILE = 72  # px, the height of the labels
_DRAWN = 5  # rows of faults as `camera.simulate` draws them


class _Row(NamedTuple):
    tiles: list[np.ndarray]  # pristine, level 1, ..., level 5; uint8 [S, S, 3] each
    group: str  # stands above the row, if it is the first one of a group
    lines: tuple[str, str, str]  # beside it: name, meaning, values


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
    """All types and levels of a photograph, labelled, one type per row: pristine, level 1, ..., level 5.

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
    pristine = _checked_square(photo, size, tile)
    levels = jnp.arange(1, LEVELS + 1)
    group_of = {names[0]: group for group, names in GROUPS.items()}
    rows = []
    for name in track(TYPES, len(TYPES), "degrading", "type"):
        run = jax.jit(lambda image, key, name=name: jax.lax.map(lambda level: degrade(name, image, level, key), levels))
        degraded = _to_uint8(run(pristine / np.float32(255), jax.random.key(seed)))
        lines = name, MEANINGS[name], "   ".join(f"{value:g}" for value in PARAMETERS[name])
        rows.append(_Row([_shrunk(image, tile) for image in (pristine, *degraded)], group_of.get(name, ""), lines))
    return _sheet(rows)


def camera_sheet(photo: np.ndarray, size: int = 224, tile: int = 160, seed: int = 0) -> np.ndarray:
    """The faults of a camera at levels 0.2 to 1, labelled: each factor alone, then several at once as they are drawn.

    Args:
      photo: uint8 [H, W, 3].
      size: as in `contact_sheet`.
      tile: as in `contact_sheet`.
      seed: of the noise, and of the faults that are drawn.

    Returns:
      uint8 [H', W', 3].

    Raises:
      UserError: `size`, `tile` or photograph too small.
    """
    pristine = _checked_square(photo, size, tile)
    keys = jax.random.split(jax.random.key(seed), _DRAWN)
    levels = [level / LEVELS for level in range(1, LEVELS + 1)]

    @jax.jit
    def run(faults: camera.Faults) -> jax.Array:
        image = jnp.asarray(pristine, jnp.float32) / 255
        return jax.lax.map(lambda level: camera.apply(image, faults.at(level), keys[0]), jnp.array(levels))

    drawn = [camera.draw(key) for key in keys]
    alone = [
        drawn[0]._replace(strengths=sign * jax.nn.one_hot(k, len(FACTORS)), first_jpeg=jnp.zeros(()))
        for k, name in enumerate(FACTORS)
        for sign in ((-1.0, 1.0) if name == "exposure" else (1.0,))
    ]
    rows = []
    for number, faults in enumerate(track([*alone, *drawn], len(alone) + _DRAWN, "degrading", "fault")):
        tiles = [_shrunk(image, tile) for image in (pristine, *_to_uint8(run(faults)))]
        on = [name for name, strength in zip(FACTORS, faults.strengths) if strength]
        if number < len(alone):
            values = [float(camera.of_factor(faults.at(level), on[0])) for level in levels]
            lines = on[0], FACTOR_MEANINGS[on[0]], "   ".join(f"{value:.2g}" for value in values)
            rows.append(_Row(tiles, "" if number else "one factor", lines))
        else:
            total = f"severity {float(jnp.abs(faults.strengths).sum()):.1f}"
            half = (len(on) + 1) // 2
            lines = total, ", ".join(on[:half]), ", ".join(on[half:])
            rows.append(_Row(tiles, "" if number > len(alone) else "as drawn", lines))
    return _sheet(rows)


def _checked_square(photo: np.ndarray, size: int, tile: int) -> np.ndarray:
    if tile < _SMALLEST_TILE:
        raise UserError(f"tiles of {tile} px are too small for their labels: {_SMALLEST_TILE} px or more")
    return square(photo, size)


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


def _sheet(rows: Sequence[_Row]) -> np.ndarray:
    size = len(rows[0].tiles[0])
    step = size + _GAP
    sheet = Image.new("RGB", (_LABEL + step * len(rows[0].tiles), _HEAD + step * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(16), ImageFont.load_default(12)

    for column, title in enumerate(["pristine", *(f"level {k}" for k in range(1, LEVELS + 1))]):
        draw.text((_LABEL + column * step + size / 2, _HEAD / 2), title, "black", large, anchor="mm")
    for number, row in enumerate(rows):
        top = _HEAD + number * step
        if row.group:
            draw.line((0, top - _GAP / 2, sheet.width, top - _GAP / 2), "#888888")
            draw.text((_LABEL - 8, top + 4), row.group, "#888888", small, anchor="ra")
        for text, offset in zip(row.lines, (-20, 2, 20)):
            style = ("black", large) if text is row.lines[0] else ("#444444", small)
            draw.text((8, top + size / 2 + offset), text, *style, anchor="lm")
        for column, tile in enumerate(row.tiles):
            sheet.paste(Image.fromarray(tile), (_LABEL + column * step, top))
    return np.array(sheet)


def _to_uint8(images: jax.Array) -> np.ndarray:
    return np.round(np.asarray(images) * 255).astype(np.uint8)
