"""The stream of crop pairs that training reads: shuffled, repeated, resumable, the same on any number of processes.

What lies at a position of the stream is a pure function of (seed, position). Each `len(source)` positions are an epoch,
which shows every photo once, in an order of its own. Step s of the training uses positions s * batch_size ..
(s + 1) * batch_size - 1, and each process takes a contiguous part of these. So the state of the stream is the step.
"""

import logging
import math
import os
import sys
import threading
from collections.abc import Callable
from functools import lru_cache, partial

import grain
import numpy as np
from PIL import Image

from qualiclip_jax.data.crops import Pair, cut_pair, draw_pair
from qualiclip_jax.data.detail import detail_maps
from qualiclip_jax.data.sources import Source, open_source
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError

__all__ = ["CropPairs", "crop_pairs", "open_source", "photos", "require_large_enough"]

MAX_CORRUPT = 0.05  # share of the photos tried that may fail to decode
MAPS_MB = 64  # of detail maps kept; that of a photo of 12 MP takes 0.06
JUDGED_AFTER = 100  # photos to try before that share is judged; until then, failures are held against all photos

_log = logging.getLogger(__name__)


def crop_pairs(
    source: Source,
    *,
    batch_size: int,
    crop_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    min_overlap: float = 0.5,
    scale_range: tuple[float, float] = (1.0, 1.0),
    short_side: tuple[int, int] = (0, 0),
    flip: bool = True,
    detail: float = 0.0,
    small: str = "enlarge",
    values: np.ndarray | None = None,
    threads: int | None = None,
    prefetch: int = 2,
    cache_mb: float = 256,
    warn: Callable[[str], None] = _log.warning,
) -> "CropPairs":
    """An endless iterator over batches of two overlapping crops of one photo.

    A photo that cannot be decoded is named once through `warn` and replaced by another one, drawn from (seed,
    position): the same in every run, on any number of processes. So is one that is too small, with `small="skip"`.

    Args:
      source: what `open_source` gave.
      batch_size: images per step over all processes.
      crop_size: side of the crops in px.
      seed: of the order, the crops and the replacements, in 0..2**64 - 1.
      start_step: the first step to deliver; the stream is the one that an uninterrupted run would see.
      process_index: which of the processes this is.
      process_count: how many processes share a batch.
      min_overlap: in [0, 1]: the crops overlap by at least this share of the side, on each axis.
      scale_range: each photo is first shrunk by a factor uniform in (low, high), in (0, 1], where the crop still fits.
      short_side: if above 0, each photo is resized instead so that its shorter side is uniform in (low, high), px.
      flip: mirror half of the pairs, both crops together.
      detail: exponent of the detail by which crops are drawn, see `draw_pair`; 0 draws them anywhere.
      small: what becomes of photos smaller than the crop: "enlarge" (Lanczos, just enough) or "skip". At least one
        must be as large.
      values: float32 [len(source)], a number for each photo that goes along as `value`; None for none.
      threads: that decode; None is one for each core this process may use, 16 at most.
      prefetch: batches made ready in the background.
      cache_mb: MB (10**6 bytes) of decoded photos kept in memory: the first ones seen, until it is full.
      warn: is given a line for each photo that cannot be read, from any thread.

    Returns:
      An iterator of `crops` uint8 [b, 2, crop_size, crop_size, 3] and `example` uint32 [b], the positions in the
      stream, and perhaps `value` float32 [b]; b = batch_size / process_count. To be closed: `with`, or `close()`.

    Raises:
      UserError: a field out of range, or no photo as large as the crop; while iterating, if more than 5 % of the photos
        cannot be decoded: of those tried, once they are 100, else of all.
      ValueError: `process_index` or `start_step` makes no sense.
    """
    if not 0 <= process_index < process_count or start_step < 0:
        raise ValueError(f"process {process_index} of {process_count}, from step {start_step}")
    _check_fields(batch_size, crop_size, seed, process_count, min_overlap, scale_range, detail, small)
    require_large_enough(source, crop_size)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or min(16, cores)
    draw = partial(
        draw_pair, crop_size=crop_size, min_overlap=min_overlap, scale_range=scale_range, short_side=short_side,
        flip=flip, detail=detail,
    )  # fmt: skip
    library = Library(source, crop_size=crop_size, small=small, cache_mb=cache_mb, warn=warn)

    share = batch_size // process_count

    def example(local: int) -> dict[str, np.ndarray]:
        step, row = divmod(local, share)
        position = step * batch_size + process_index * share + row
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))
        epoch, turn = divmod(position, len(source))
        index, photo = library.usable(int(_order(len(source), seed, epoch)[turn]), rng)
        pair: Pair = draw(rng, photo.shape[:2], maps=library.maps(index, photo) if detail else ())
        record = {"crops": cut_pair(photo, pair, crop_size), "example": np.asarray(position % 2**32, np.uint32)}
        return record if values is None else record | {"value": np.asarray(values[index], np.float32)}

    batches = (
        grain.MapDataset.range(start_step * share, sys.maxsize)
        .map(example)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch * share))
        .batch(share)
    )
    return CropPairs(iter(batches), library)


class CropPairs:
    """The iterator that `crop_pairs` returns.

    Attributes:
      counters: how many distinct photos were `tried`, were `corrupt`, `enlarged` or `skipped` as too small so far. A
        few more than were delivered: photos are read ahead.
    """

    def __init__(self, batches: grain.DatasetIterator, library: "Library"):
        self._batches, self._library = batches, library
        batches.start_prefetch()

    @property
    def counters(self) -> dict[str, int]:
        return self._library.counters

    def __iter__(self) -> "CropPairs":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def close(self) -> None:
        """Stops reading ahead."""
        self._batches.close()

    def __enter__(self) -> "CropPairs":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_UNTRIED, _USED, _ENLARGED, _SKIPPED, _CORRUPT = range(5)


class Library:
    """The photos of a source with a note on each: used, enlarged, skipped as too small, or corrupt. Thread-safe."""

    def __init__(self, source: Source, *, crop_size: int, small: str, cache_mb: float, warn: Callable[[str], None]):
        self._source, self._crop_size, self._small, self._warn = source, crop_size, small, warn
        self._notes = bytearray(len(source))
        self._lock = threading.Lock()
        self._cache: dict[int, np.ndarray] = {}
        self._cache_left = cache_mb * 1e6  # bytes
        self._maps: dict[int, tuple[np.ndarray, ...]] = {}
        self._maps_left = MAPS_MB * 1e6

    @property
    def counters(self) -> dict[str, int]:
        count = self._notes.count
        return {
            "tried": len(self._notes) - count(_UNTRIED),
            "corrupt": count(_CORRUPT),
            "enlarged": count(_ENLARGED),
            "skipped": count(_SKIPPED),
        }

    def usable(self, index: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        """The index and photo uint8 [H, W, 3] that was asked for, or if it is of no use the first good one drawn."""
        while True:
            photo = self._cache.get(index)
            if photo is None and self._notes[index] in (_UNTRIED, _USED, _ENLARGED):
                photo = self._read(index)
            if photo is not None:
                return index, photo
            self._judge()
            index = int(rng.integers(len(self._notes)))

    def maps(self, index: int, photo: np.ndarray) -> tuple[np.ndarray, ...]:
        """The detail maps of a photo, kept for the next time while there is room."""
        maps = self._maps.get(index)
        if maps is None:
            maps = detail_maps(photo)
            size = sum(x.nbytes for x in maps)
            with self._lock:
                if index not in self._maps and size <= self._maps_left:
                    self._maps[index] = maps
                    self._maps_left -= size
        return maps

    def _read(self, index: int) -> np.ndarray | None:
        problem: str | None = None
        photo: np.ndarray | None = None
        try:
            photo = self._source[index]
        except ImageError as error:
            note, problem = _CORRUPT, str(error)
        else:
            too_small = min(photo.shape[:2]) < self._crop_size
            note = _USED if not too_small else _SKIPPED if self._small == "skip" else _ENLARGED
        with self._lock:
            is_news = self._notes[index] != note
            self._notes[index] = note
            keep = note in (_USED, _ENLARGED) and index not in self._cache
            if photo is not None and keep and photo.nbytes <= self._cache_left:
                self._cache[index] = photo
                self._cache_left -= photo.nbytes
        if problem and is_news:
            self._warn(f"skipped: {problem}")
        return photo if note in (_USED, _ENLARGED) else None

    def _judge(self) -> None:
        """Raises UserError if too many photos are corrupt, or none is left."""
        count, total = self.counters, len(self._notes)
        tried, corrupt, skipped = count["tried"], count["corrupt"], count["skipped"]
        if corrupt > MAX_CORRUPT * (tried if tried >= JUDGED_AFTER else total):
            of_all = "" if tried >= JUDGED_AFTER else f" of all {total}"
            raise UserError(
                f"{self._source.describe()}: {corrupt} of the {tried} photos tried cannot be read, more than "
                f"{MAX_CORRUPT:.0%}{of_all}; mend or remove them (each is named above)"
            )
        if corrupt + skipped == total:
            raise UserError(
                f"{self._source.describe()}: no photo left: {skipped} are smaller than data.crop_size = "
                f"{self._crop_size}, {corrupt} cannot be read"
            )


def photos(spec: str, limit: int | None = None, max_side: int | None = None) -> list[tuple[str, np.ndarray]]:
    """Whole photos, for evaluation on pristine images held out from training.

    Args:
      spec: as for `open_source`.
      limit: at most so many, the first readable ones; None for all.
      max_side: shrink a photo whose longer side is greater, to this many px (Lanczos).

    Returns:
      (name, uint8 [H, W, 3]) each. Photos that cannot be read are left out, with a warning in the log.

    Raises:
      UserError: as `open_source`.
    """
    source = open_source(spec, "photos")
    found: list[tuple[str, np.ndarray]] = []
    for index in range(len(source)):
        if limit is not None and len(found) >= limit:
            break
        try:
            photo = source[index]
        except ImageError as error:
            _log.warning("skipped: %s", error)
            continue
        height, width = photo.shape[:2]
        if max_side is not None and max(height, width) > max_side:
            factor = max_side / max(height, width)
            size = max(1, round(width * factor)), max(1, round(height * factor))
            photo = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))
        found.append((source.names[index], photo))
    return found


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The photos in the order of an epoch, int64 [count]; the highest bit of the key sets it apart from the positions'.

    Grain's own shuffle is not used: it takes milliseconds a draw where there are few photos.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, 2**63 + epoch], np.uint64))).permutation(count)


def _check_fields(
    batch_size: int,
    crop_size: int,
    seed: int,
    process_count: int,
    min_overlap: float,
    scale_range: tuple[float, float],
    detail: float,
    small: str,
) -> None:
    low, high = scale_range
    for field, value, fine, expected in (
        ("batch_size", batch_size, batch_size >= 1, "a positive number"),
        ("batch_size", batch_size, batch_size % process_count == 0, f"a multiple of the {process_count} processes"),
        ("seed", seed, 0 <= seed < 2**64, "0 or greater, below 2**64"),
        ("data.crop_size", crop_size, crop_size >= 1, "a positive number of px"),
        ("data.min_overlap", min_overlap, 0 <= min_overlap <= 1, "between 0 and 1"),
        ("data.scale_range", scale_range, 0 < low <= high <= 1, "(low, high) with 0 < low <= high <= 1"),
        ("data.detail", detail, 0 <= detail < math.inf, "0 or greater"),
        ("data.small_images", small, small in ("enlarge", "skip"), "'enlarge' or 'skip'"),
    ):
        if not fine:
            raise UserError(f"{field} is {value!r}, must be {expected}")


def require_large_enough(source: Source, crop_size: int) -> None:
    """Raises UserError if no photo is as large as the crop; reads headers until one is."""
    largest = 0
    for index in range(len(source)):
        try:
            largest = max(largest, min(source.size(index)))
        except ImageError:  # counted when its turn comes
            continue
        if largest >= crop_size:
            return
    raise UserError(
        f"data.crop_size is {crop_size}, larger than every image of {source.describe()}, whose shorter sides are "
        f"{largest} px at most: choose a smaller one"
    )
