"""Which images are scored together, and padded to which shape.

XLA compiles a program per shape, so images of many sizes share a few shapes: each is padded at the right and bottom,
and the encoder masks the padding, so that the score is that of the unpadded image. Padding costs time, and so does
compiling: `plan` weighs one against the other. Pure NumPy; knows no models.
"""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

Size = tuple[int, int]  # height, width
Shape = tuple[int, int, int]  # images, height, width
MOST_SHAPES = 64  # that one plan adds
MOST_PROGRAMS = 128  # once so many shapes are compiled, no further one saves padding
MANY_SIZES = 512  # more distinct sizes are rounded up before planning
FIRST_WINDOW, WINDOW, WINDOW_PIXELS = 125, 2000, 4e8  # how many images, and pixels, are planned together

_FORBIDDING = 1e15  # pixels

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Costs:
    """What things cost, in pixels: one pixel is the time that the encoder takes for it.

    Attributes:
      compile: to compile one more shape (more exactly: what a plan may spend on padding to save one).
      call: to run the encoder once, whatever the batch.
      batch: the most pixels in a batch on one device, unless a single image has more.
      devices: how many devices share a batch. A batch of one image, or of a number that they cannot share evenly, is
        computed by one of them.
    """

    compile: float
    call: float
    batch: float
    devices: int = 1


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that go through the encoder together.

    Attributes:
      indices: which images; the rest of the compiled shape is blank.
      shape: images, height and width that are compiled.
    """

    indices: tuple[int, ...]
    shape: Shape

    @property
    def pixels(self) -> int:
        """Of the compiled shape."""
        return self.shape[0] * self.shape[1] * self.shape[2]


def windows(sizes: Iterable[Size | T], first: int = FIRST_WINDOW) -> Iterator[list[Size | T]]:
    """Yields images in lists that are planned one after the other, so that memory does not grow with their number.

    Args:
      sizes: height and width of each image; or anything else for one that has none.
      first: the most images in the first list: few, so that scoring begins at once. Each further list has up to twice
        as many, but never more than `WINDOW` images or about `WINDOW_PIXELS` pixels.
    """
    window, pixels, most = list[Size | T](), 0, first
    for size in sizes:
        window.append(size)
        pixels += size[0] * size[1] if isinstance(size, tuple) else 0
        if len(window) >= most or pixels >= WINDOW_PIXELS:
            yield window
            window, pixels, most = [], 0, min(2 * most, WINDOW)
    if window:
        yield window


def plan(sizes: Sequence[Size], costs: Costs, compiled: Collection[Shape] = ()) -> list[Batch]:
    """Groups images into batches of few shapes, large ones first.

    Args:
      sizes: height and width of each image.
      costs: of computing and compiling.
      compiled: shapes that cost nothing to compile any more.

    Returns:
      Batches that hold every image once.
    """
    if not len(sizes):
        return []
    if len(compiled) >= MOST_PROGRAMS:
        costs = dataclasses.replace(costs, compile=_FORBIDDING)
    padded = _padded_sizes(np.asarray(sizes, np.int64).reshape(-1, 2), costs, sorted({shape[1:] for shape in compiled}))
    shapes, member = np.unique(padded, axis=0, return_inverse=True)
    batches = []
    for k, (height, width) in enumerate(shapes.tolist()):
        indices = np.flatnonzero(member.reshape(-1) == k).tolist()
        count = _batch_size(len(indices), height, width, costs, compiled)
        for start in range(0, len(indices), count):
            batches.append(Batch(tuple(indices[start : start + count]), (count, height, width)))
    return sorted(batches, key=lambda batch: batch.shape[1] * batch.shape[2], reverse=True)


def rungs(largest: int) -> np.ndarray:
    """The side lengths that padded shapes prefer, from 32 to `largest` or beyond: steps of 32, then about an eighth."""
    ladder = [32]
    while ladder[-1] < largest:
        ladder.append(ladder[-1] + max(32, 2 ** int(np.log2(ladder[-1])) // 8))
    return np.array(ladder)


def _padded_sizes(sizes: np.ndarray, costs: Costs, compiled: list[Size]) -> np.ndarray:
    """The shape [N, 2] that each image is padded to.

    Greedy: from what is compiled and one shape that holds the rest, adds the shape that saves the most padding, as long
    as that is more than a compilation costs. Candidates are the rungs, and the most frequent sizes as they are.
    """
    ladder = rungs(sizes.max())
    on_rungs = ladder[np.searchsorted(ladder, sizes)]
    distinct, member, count = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
    frequent = distinct[np.argsort(-count * distinct.prod(1), kind="stable")[:MOST_SHAPES]]
    if len(distinct) > MANY_SIZES:  # rare sizes are as good as their rungs
        is_frequent = (sizes[:, None] == frequent[None]).all(-1).any(-1)
        sizes = np.where(is_frequent[:, None], sizes, on_rungs)
        distinct, member, count = np.unique(sizes, axis=0, return_inverse=True, return_counts=True)
    grid = np.meshgrid(np.unique(on_rungs[:, 0]), np.unique(on_rungs[:, 1]), indexing="ij")
    candidates = np.concatenate([frequent, np.stack(grid, -1).reshape(-1, 2)])  # [F, 2]
    area = candidates.prod(1).astype(np.float64)
    covers = (candidates[:, None] >= distinct[None]).all(-1)  # [F, K]

    opened: list[Size] = []
    choice = np.full(len(distinct), -1)  # which of `opened` each distinct size is padded to
    current = np.full(len(distinct), np.inf)  # and the area of that

    def add(shape: Size) -> None:
        better = (np.array(shape) >= distinct).all(1) & (shape[0] * shape[1] < current)
        choice[better], current[better] = len(opened), shape[0] * shape[1]
        opened.append(shape)

    for shape in compiled:
        add(shape)
    if (choice < 0).any():
        add(tuple(ladder[np.searchsorted(ladder, distinct[choice < 0].max(0))].tolist()))
    for _ in range(MOST_SHAPES):
        gain = (np.maximum(current - area[:, None], 0) * covers) @ count - costs.compile
        if gain.max() <= 0:
            break
        add(tuple(candidates[gain.argmax()].tolist()))
    padded: np.ndarray = np.array(opened)[choice[member.reshape(-1)]]
    return padded


def _batch_size(images: int, height: int, width: int, costs: Costs, compiled: Collection[Shape]) -> int:
    """How many images a batch should have: the cheapest, counting blank ones, calls, and compiling."""
    together = costs.devices if images > 1 else 1
    most = max(1, min(-(-images // together), int(costs.batch // (height * width))))  # on each device
    done = {shape[0] for shape in compiled if shape[1:] == (height, width)}
    sizes = np.array(sorted({*range(together, together * most + 1, together), *done}))
    calls = -(-images // sizes)
    in_turn = np.where(sizes % costs.devices, sizes, sizes // costs.devices)  # images that one device computes
    cost = calls * (in_turn * height * width + costs.call) + costs.compile * np.array(
        [size not in done for size in sizes]
    )
    return int(sizes[cost.argmin()])
