"""Huge images in bounded memory: the convolutions of an encoder run tile by tile, its pool over all tokens.

A token (what one 32 x 32 square becomes) sees only so far. Tiles begin at multiples of 32 and overlap by that reach,
the halo; of each tile only those tokens are kept that saw nothing beyond its cut edges. So the tokens, and the score,
are those of the whole image, up to rounding. Pure Python; knows no arrays and no models.
"""

import dataclasses
import itertools

STRIDE = 32  # pixels a token, in every encoder that takes tiles


@dataclasses.dataclass(frozen=True)
class Piece:
    """One piece of a line of pixels.

    Attributes:
      start: first pixel, a multiple of 32.
      length: pixels that exist, at most those of a tile.
      skip: tokens at its beginning that are not kept.
      first, last: the tokens of the whole line that it gives, `last` excluded.
    """

    start: int
    length: int
    skip: int
    first: int
    last: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an image is cut.

    Attributes:
      height, width: of every tile, pixels.
      rows, columns: the pieces of the two sides; the tiles are all pairs of them.
    """

    height: int
    width: int
    rows: tuple[Piece, ...]
    columns: tuple[Piece, ...]


def layout(height: int, width: int, halo: int, tile_pixels: float) -> Layout:
    """The cut of an image that computes the fewest pixels twice.

    Args:
      height, width: of the image.
      halo: tokens beside a cut edge that are not kept.
      tile_pixels: the most pixels a tile may have; exceeded where even the smallest sensible tile has more.
    """
    choices = []
    for rows in _splits(height, halo):
        for columns in _splits(width, halo):
            area = _tile_side(height, rows, halo) * _tile_side(width, columns, halo)
            choices.append((area if area > tile_pixels else 0, rows * columns * area, rows, columns))
    *_, rows, columns = min(choices)
    tile_height, tile_width = _tile_side(height, rows, halo), _tile_side(width, columns, halo)
    return Layout(
        tile_height, tile_width, _pieces(height, rows, halo, tile_height), _pieces(width, columns, halo, tile_width)
    )


def _splits(length: int, halo: int) -> range:
    """Into how many pieces a side may be cut: a piece keeps at least half as many tokens as its two halos have."""
    return range(1, 1 + max(1, length // STRIDE // max(1, halo)))


def _tile_side(length: int, pieces: int, halo: int) -> int:
    tokens = length // STRIDE
    if pieces == 1:
        return -(-length // STRIDE) * STRIDE
    return min(-(-length // STRIDE), -(-tokens // pieces) + min(pieces - 1, 2) * halo + 1) * STRIDE


def _pieces(length: int, pieces: int, halo: int, side: int) -> tuple[Piece, ...]:
    tokens = length // STRIDE
    bounds = [round(tokens * k / pieces) for k in range(pieces + 1)]
    result = []
    for first, last in itertools.pairwise(bounds):
        start = max(0, min(first - halo, -(-length // STRIDE) - side // STRIDE)) * STRIDE
        result.append(Piece(start, min(side, length - start), first - start // STRIDE, first, last))
    return tuple(result)
