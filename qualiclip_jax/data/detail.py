"""Where in a photo there is something to see: small maps of local detail, one for each scale of cropping."""

import numpy as np
from PIL import Image

CELL = 32  # px, the side of a cell of the map
COUNTED = 0.25  # a crop has as much detail as the cell below which this share of its cells lies
_LEAST = 1e-3  # added to every cell, in steps of 8 bits: no crop is out of the question


def detail_maps(photo: np.ndarray) -> tuple[np.ndarray, ...]:
    """Local detail at full size, half, a quarter and so on, down to two cells a side.

    Args:
      photo: uint8 [H, W, 3].

    Returns:
      float32 [rows, columns] each: the root of the mean squared Laplacian of cells of 32 x 32 px of the photo at that
      size, in steps of 8 bits. What does not fill a cell at the lower and right edge counts for the last one.
    """
    grey = np.asarray(Image.fromarray(photo).convert("L"), np.float32)
    maps = [_detail(grey)]
    while min(grey.shape) >= 4 * CELL:
        height, width = (side // 2 * 2 for side in grey.shape)
        grey = grey[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3))
        maps.append(_detail(grey))
    return tuple(maps)


def detail_of_crops(
    maps: tuple[np.ndarray, ...],
    photo_size: tuple[int, int],
    size: tuple[int, int],
    corners: np.ndarray,
    crop_size: int,
) -> np.ndarray:
    """The detail of crops of a resized photo, at about the size at which they are seen.

    Args:
      maps: what `detail_maps` gave for the photo.
      photo_size: (height, width) of the photo.
      size: (height, width) it is resized to.
      corners: int [..., 2], (top, left) of crops in the resized photo.
      crop_size: px.

    Returns:
      float32 [...]: a quarter of the cells of the crop have less.
    """
    octave = round(np.log2(min(photo_size) / min(size)))
    cells = maps[min(max(octave, 0), len(maps) - 1)]
    per_px = np.array(cells.shape) / size
    rows, columns = np.clip(np.round(crop_size * per_px).astype(int), 1, cells.shape)
    top, left = np.moveaxis(np.round(corners * per_px).astype(int), -1, 0)
    down = np.minimum(top, cells.shape[0] - rows)[..., None, None] + np.arange(rows)[:, None]
    right = np.minimum(left, cells.shape[1] - columns)[..., None, None] + np.arange(columns)
    inside = cells[down, right].reshape(*top.shape, -1)
    place = int(COUNTED * inside.shape[-1])
    return np.partition(inside, place, axis=-1)[..., place]


def _detail(grey: np.ndarray) -> np.ndarray:
    rows, columns = (np.arange(max(side // CELL, 1)) * CELL for side in grey.shape)
    bands = np.split(np.arange(1, grey.shape[0] - 1), rows[1:])  # inner rows; one band of cells after the other
    sums = np.zeros((len(rows), len(columns)), np.float32)
    for band, total in zip(bands, sums):
        if not len(band):
            continue
        part = grey[band[0] - 1 : band[-1] + 2]
        middle = part[1:-1, 1:-1]
        laplacian = part[:-2, 1:-1] + part[2:, 1:-1] + part[1:-1, :-2] + part[1:-1, 2:] - 4 * middle
        energy = np.square(laplacian).sum(0)
        if len(energy):
            total += np.add.reduceat(energy, columns) / len(band)
    widths = np.diff([*columns, max(grey.shape[1] - 2, 1)])
    return np.sqrt(sums / widths) + _LEAST
