"""Quality maps as pictures: the photo under a quiet overlay, and a scale below it."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qualiclip_jax.explain.maps import QualityMap

WORSE, BETTER = (213, 94, 0), (0, 114, 178)  # vermilion and blue of Okabe and Ito: told apart by all eyes
GREYED = 0.8  # how grey the photo is under the overlay
OPAQUE = 0.65  # of the overlay where a cell is farthest from the score
LEAST = 0.1  # the scale reaches at least so far from the score: an even photo stays as it is
_INK, _PAPER, _GREY = "#1c1e21", "#ffffff", 150
_SCALE_HEIGHT = 64  # px


def overlay(found: QualityMap, attribute: int | None = None, side: int = 1600) -> Image.Image:
    """The colours of the cells, smoothly enlarged: RGBA, transparent where a cell is as good as the photo.

    Args:
      found: the map.
      attribute: number of an antonym pair; None for the score.
      side: the longer side in pixels, at most; the photo's own if that is less.
    """
    cells, middle = _chosen(found, attribute)
    factor = min(1.0, side / max(found.size))
    height, width = (max(1, round(length * factor)) for length in found.size)
    down, across = (max(1, round(count * found.cell * factor)) for count in cells.shape)
    small = np.clip((cells - middle) / _reach(cells, middle), -1, 1).astype(np.float32)
    value = np.zeros((height, width, 1), np.float32)
    large = np.asarray(Image.fromarray(small).resize((across, down), Image.Resampling.BICUBIC))[:height, :width]
    value[: len(large), : large.shape[1], 0] = np.clip(large, -1, 1)
    color, alpha = _colors(value)
    return Image.fromarray(np.concatenate([color, 255 * alpha], axis=-1).round().astype(np.uint8), "RGBA")


def draw(
    photo: np.ndarray, found: QualityMap, attribute: int | None = None, title: str = "score", side: int = 1600
) -> np.ndarray:
    """The photo, nearly grey, under the overlay, and the scale below.

    Args:
      photo: uint8 [H, W, 3].
      found: its map.
      attribute: number of an antonym pair; None for the score.
      title: what the scale calls the score.
      side: the longer side of the picture of the photo in pixels; a larger photo is shrunk to it.

    Returns:
      uint8 [H', W', 3].
    """
    over = overlay(found, attribute, side)
    picture = Image.fromarray(photo).resize(over.size, Image.Resampling.LANCZOS)
    picture = Image.blend(picture, picture.convert("L").convert("RGB"), GREYED).convert("RGBA")
    picture.alpha_composite(over)
    scale = _scale(max(picture.width, 320), title, *_chosen(found, attribute))
    sheet = Image.new("RGB", (max(picture.width, scale.width), picture.height + scale.height), _PAPER)
    sheet.paste(picture.convert("RGB"), ((sheet.width - picture.width) // 2, 0))
    sheet.paste(scale, (0, picture.height))
    return np.array(sheet)


def _chosen(found: QualityMap, attribute: int | None) -> tuple[np.ndarray, float]:
    """The cells of the score or of an attribute, and the score of the whole image."""
    if attribute is None:
        return found.scores, found.score
    return found.attribute_scores[..., attribute], float(found.attributes[attribute])


def _reach(cells: np.ndarray, middle: float) -> float:
    return max(LEAST, float(np.abs(cells - middle).max()))


def _colors(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour [..., 3] of 0 to 255 and opacity [..., 1] for values [..., 1] from -1, worst, to 1, best."""
    color = np.where(value < 0, np.array(WORSE), np.array(BETTER)).astype(np.float32)
    return color, OPAQUE * np.abs(value) * np.where(value < 0, 1.0, 0.5)  # what is wrong stands out, not what is right


def _scale(width: int, title: str, cells: np.ndarray, middle: float) -> Image.Image:
    """A bar of the colours as they look over mid-grey, with the scores below."""
    reach = _reach(cells, middle)
    sheet = Image.new("RGB", (width, _SCALE_HEIGHT), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    left, right, top, bottom = 12, min(width - 12, 12 + 420), 26, 38
    color, alpha = _colors(np.linspace(-1, 1, right - left)[:, None])
    colors = alpha * color + (1 - alpha) * _GREY
    bar = np.broadcast_to(colors.round().astype(np.uint8), (bottom - top, right - left, 3))
    sheet.paste(Image.fromarray(np.ascontiguousarray(bar)), (left, top))
    text = f"{title} {middle:.2f}; cells {cells.min():.2f} to {cells.max():.2f}"
    draw.text((left, 5), text, _INK, font)
    ends = ((left, middle - reach, "la"), ((left + right) / 2, middle, "ma"), (right, middle + reach, "ra"))
    for x, value, anchor in ends:
        word = {"la": "worse ", "ra": "better "}.get(anchor, "")
        draw.text((x, bottom + 4), f"{word}{np.clip(value, 0, 1):.2f}", _INK, font, anchor=anchor)
    return sheet
