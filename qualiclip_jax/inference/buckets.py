"""Which images are scored together, and padded to which shape.

XLA compiles a program per shape, so images of many sizes share a few shapes: each is padded at the right and bottom,
and the encoder masks the padding, so that the score is that of the unpadded image. Pure NumPy; knows no models.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that go through the encoder together.

    Attributes:
      indices: which images, at most `count`.
      count: images in the compiled shape; the rest is blank.
      height, width: the shape that each is padded to.
    """

    indices: tuple[int, ...]
    count: int
    height: int
    width: int


def plan(sizes: Sequence[tuple[int, int]], batch_pixels: float) -> list[Batch]:
    """Groups images into batches of few shapes.

    Args:
      sizes: height and width of each image.
      batch_pixels: the most pixels in a batch, unless a single image has more.

    Returns:
      Batches that hold every image once.
    """
    batches = []
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    shapes, member = np.unique(sizes, axis=0, return_inverse=True)
    for k, (height, width) in enumerate(shapes.tolist()):
        indices = np.flatnonzero(member.reshape(-1) == k).tolist()
        most = max(1, int(batch_pixels // (height * width)))
        count = min(most, len(indices))
        for start in range(0, len(indices), count):
            batches.append(Batch(tuple(indices[start : start + count]), count, height, width))
    return batches
