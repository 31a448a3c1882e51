"""What scoring a large set will take: time, data and money, by scoring a sample of it."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from qualiclip_jax.errors import UserError
from qualiclip_jax.inference import shards, urls
from qualiclip_jax.inference.files import Row, score_files
from qualiclip_jax.progress import plural, rate

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP

SAMPLE = 200  # images
MOST_SHARDS = 10  # that the sample is taken from


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run will take on this machine.

    Attributes:
      sampled, failed: how many images were sampled, and how many of them cannot be scored.
      images: how many there are in all, exactly or about.
      bytes: what is read of them.
      seconds: for one image.
    """

    sampled: int
    failed: int
    images: int
    bytes: float
    seconds: float

    def text(self, price: float | None) -> str:
        """The estimate in a few lines; with the costs at so many dollars an hour."""
        hours = self.images * self.seconds / 3600
        failed = f", {self.failed} of them cannot be scored" if self.failed else ""
        lines = [
            f"{self.sampled} of {self.images:,d} {plural(self.images, 'image')} sampled{failed}",
            f"rate  {rate(1000, 1000 * self.seconds, 'image')} on this machine, compiling left out",
            f"time  {hours:.2f} hours" if hours >= 0.1 else f"time  {60 * hours:.1f} minutes",
            f"read  {self.bytes / 2**30:.2f} GiB",
        ]
        if price is not None:
            million = price * self.seconds * 1e6 / 3600
            lines.append(f"cost  ${million:.2f} per million images, ${price * hours:.2f} in all, at ${price:g} an hour")
        return "\n".join(lines)


def of_files(model: "QualiCLIP", paths: Sequence[str], max_side: int | None = None) -> Estimate:
    """Scores a sample of image files, spread evenly over a list.

    Args:
      model: a `QualiCLIP`.
      paths: the list.
      max_side: as in `files.score_files`.
    """
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(SAMPLE, len(paths))).astype(int)]
    rows, seconds = _timed(lambda: score_files(model, chosen, max_side=max_side))
    size = sum(row.bytes or 0 for row in rows) / len(rows)
    return _estimate(rows, seconds, len(paths), size * len(paths))


def of_shards(model: "QualiCLIP", names: Sequence[str]) -> Estimate:
    """Scores a sample of the images of shards, the first ones of a few of them.

    Args:
      model: a `QualiCLIP`.
      names: the shards.

    Raises:
      UserError: one that cannot be read, or no images in those of the sample.
    """
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(MOST_SHARDS, len(names))).astype(int)]
    most = -(-SAMPLE // len(chosen))
    with ThreadPoolExecutor(16) as pool:
        sizes = dict(zip(names, pool.map(urls.size, names)))
    about = [shards.count_about(name, sizes[name], most) for name in chosen]

    def scored() -> Iterator[Row]:
        for _, rows in shards.score(model, chosen, most=most):
            if isinstance(rows, UserError):
                raise rows
            yield from rows

    rows, seconds = _timed(scored)
    total = sum(sizes.values())
    images = round(total * sum(about) / sum(sizes[name] for name in chosen))
    each = sum(row.bytes or 0 for row in rows) / max(1, len(rows))
    return _estimate(rows, seconds, images, max(total, each * images))  # images may lie beside the shards


def _timed(run: Callable[[], Iterator[Row]]) -> tuple[list[Row], float]:
    """What a run gives, and how many seconds it takes once all is compiled."""
    list(run())
    start = time.perf_counter()
    rows = list(run())
    return rows, time.perf_counter() - start


def _estimate(rows: Sequence[Row], seconds: float, images: int, size: float) -> Estimate:
    if not rows:
        raise UserError("there are no images to sample")
    return Estimate(len(rows), sum(row.error is not None for row in rows), images, size, seconds / len(rows))
