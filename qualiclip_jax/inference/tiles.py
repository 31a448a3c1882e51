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


def layout(size: tuple[int, int], tokens: tuple[int, int], halo: int, tile_pixels: float) -> Layout:
    """The cut of an image that computes the fewest pixels twice.

    Args:
      size: height and width of the image.
      tokens: how many it has along either side; the last may stand for fewer than 32 pixels.
      halo: tokens beside a cut edge that are not kept.
      tile_pixels: the most pixels a tile may have; exceeded where even the smallest sensible tile has more.
    """
    choices = []
    by_rows, by_columns = (
        [(n, _tile_side(length, count, n, halo)) for n in _splits(count, halo)] for length, count in zip(size, tokens)
    )
    for rows, height in by_rows:
        for columns, width in by_columns:
            area = height * width
            choices.append((area if area > tile_pixels else 0, rows * columns * area, rows, columns, height, width))
    *_, rows, columns, height, width = min(choices)
    return Layout(
        height,
        width,
        _pieces(size[0], tokens[0], rows, halo, height),
        _pieces(size[1], tokens[1], columns, halo, width),
    )


def _splits(tokens: int, halo: int) -> range:
    """Into how many pieces a side may be cut: a piece keeps at least half as many tokens as its two halos have."""
    return range(1, 1 + max(1, tokens // max(1, halo)))


def _tile_side(length: int, tokens: int, pieces: int, halo: int) -> int:
    if pieces == 1:
        return -(-length // STRIDE) * STRIDE
    return min(-(-length // STRIDE), -(-tokens // pieces) + min(pieces - 1, 2) * halo + 1) * STRIDE


def _pieces(length: int, tokens: int, pieces: int, halo: int, side: int) -> tuple[Piece, ...]:
    bounds = [round(tokens * k / pieces) for k in range(pieces + 1)]
    result = []
    for first, last in itertools.pairwise(bounds):
        start = max(0, min(first - halo, -(-length // STRIDE) - side // STRIDE)) * STRIDE
        result.append(Piece(start, min(side, length - start), first - start // STRIDE, first, last))
    return tuple(result)
