"""Cuts two random overlapping crops from a shrunk copy of a photo, of which it computes only the region they need.

`draw_pair` is where all randomness lies; `cut_pair` and `resize_region` are deterministic.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from qualiclip_jax.data.detail import detail_of_crops

CANDIDATES = 32  # pairs that `draw_pair` chooses from by their detail
_LANCZOS_SUPPORT = 3  # of the kernel, in px of the smaller image


@dataclass(frozen=True)
class Pair:
    """Where two crops lie.

    Attributes:
      size: (height, width) in px of the resized photo that the crops are cut from.
      corners: ((y, x), (y, x)), the top left corner of each crop in that photo.
      flip: mirror both crops left to right.
    """

    size: tuple[int, int]
    corners: tuple[tuple[int, int], tuple[int, int]]
    flip: bool


def draw_pair(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    crop_size: int,
    min_overlap: float = 0.5,
    scale_range: tuple[float, float] = (1.0, 1.0),
    short_side: tuple[int, int] = (0, 0),
    flip: bool = True,
    detail: float = 0.0,
    maps: tuple[np.ndarray, ...] = (),
) -> Pair:
    """Draws a resize factor, two crops of `crop_size` px a side that overlap, and a flip.

    On each axis the first crop lies anywhere in the photo, and the second anywhere within reach of it: the common part
    of the two is at least `min_overlap` of the side. With `detail`, the pair is drawn from 32 such pairs, with
    probabilities that go with the detail of the poorer crop.

    Args:
      rng: the only source of randomness; six numbers are drawn from it, and with `detail` 125 more.
      size: (height, width) of the photo.
      crop_size: side of the crops in px.
      min_overlap: in [0, 1], share of the side on each axis.
      scale_range: (low, high) of the uniform resize factor, in (0, 1]. Factors too small for the crop to fit are left
        out of the range; a photo smaller than the crop is enlarged just enough.
      short_side: if above 0, (low, high) of the shorter side in px after resizing, uniform; in place of `scale_range`.
      flip: whether to mirror half of the pairs.
      detail: exponent of the detail, >= 0; 0 draws crops anywhere.
      maps: of `detail.detail_maps`, if `detail` is not 0.
    """
    factor, *uniform, coin = rng.random(6).tolist()
    bounds = [side / min(size) for side in short_side] if short_side[0] else scale_range
    low, high = (max(bound, crop_size / min(size)) for bound in bounds)
    factor = low + (high - low) * factor
    new_size = tuple(max(crop_size, round(side * factor)) for side in size)
    reach = math.floor(crop_size * (1 - min_overlap) + 1e-9)

    def corners_at(uniform: np.ndarray) -> np.ndarray:
        """Corners int [N, crop, axis] from uniform numbers [N, 4]: first y, first x, second y, second x."""
        u, v = uniform[:, :2], uniform[:, 2:]
        last = np.array(new_size) - crop_size
        first = (u * (last + 1)).astype(int)
        nearest, farthest = np.maximum(first - reach, 0), np.minimum(first + reach, last)
        return np.stack([first, nearest + (v * (farthest - nearest + 1)).astype(int)], axis=1)

    corners = corners_at(np.array([uniform]))
    if detail:
        corners = np.concatenate([corners, corners_at(rng.random((CANDIDATES - 1, 4)))])
        seen = detail_of_crops(maps, size, new_size, corners, crop_size).min(1)
        shares = np.cumsum((seen / seen.max()) ** detail)
        drawn = int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))
        corners = corners[[min(drawn, CANDIDATES - 1)]]
    (y1, x1), (y2, x2) = corners[0].tolist()
    return Pair(new_size, ((y1, x1), (y2, x2)), flip and coin < 0.5)


def cut_pair(photo: np.ndarray, pair: Pair, crop_size: int) -> np.ndarray:
    """Cuts both crops, resizing only the smallest region that holds them.

    Args:
      photo: uint8 [H, W, 3].
      pair: what `draw_pair` drew for (H, W).
      crop_size: side of the crops in px.

    Returns:
      uint8 [2, crop_size, crop_size, 3].
    """
    (y1, x1), (y2, x2) = pair.corners
    top, left = min(y1, y2), min(x1, x2)
    height, width = abs(y1 - y2) + crop_size, abs(x1 - x2) + crop_size
    region = resize_region(photo, pair.size, (top, left, top + height, left + width))
    crops = [region[y - top : y - top + crop_size, x - left : x - left + crop_size] for y, x in pair.corners]
    return np.stack([crop[:, ::-1] if pair.flip else crop for crop in crops])


def resize_region(photo: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """A region of the photo resized to `size` (Lanczos, antialiased), at the cost of the region only.

    Equals `resize(photo, size)[top:bottom, left:right]` within 1 of 255.

    Args:
      photo: uint8 [H, W, 3].
      size: (height, width) of the whole photo after resizing.
      box: (top, left, bottom, right) of the region, in px of the resized photo.

    Returns:
      uint8 [bottom - top, right - left, 3].
    """
    top, left, bottom, right = box
    if size == photo.shape[:2]:
        return photo[top:bottom, left:right]
    rows, y_start, y_end = _reach(photo.shape[0], size[0], top, bottom)
    columns, x_start, x_end = _reach(photo.shape[1], size[1], left, right)
    part = Image.fromarray(np.ascontiguousarray(photo[rows, columns]))
    # Two calls, because the order of the passes matters (each is clipped to 0..255) and Pillow chooses it by the shape.
    across, down = (right - left, part.height), (right - left, bottom - top)
    part = part.resize(across, Image.Resampling.LANCZOS, (x_start, 0, x_end, part.height))
    return np.asarray(part.resize(down, Image.Resampling.LANCZOS, (0, y_start, part.width, y_end)))


def _reach(old: int, new: int, start: int, end: int) -> tuple[slice, float, float]:
    """Which px of an axis the kernel needs for px start..end of the resized axis, and where those lie in the slice."""
    ratio = old / new
    margin = _LANCZOS_SUPPORT * max(ratio, 1) + 1
    first = max(0, math.floor(start * ratio - margin))
    last = min(old, math.ceil(end * ratio + margin))
    return slice(first, last), start * ratio - first, min(end * ratio - first, last - first)
