"""Bursts: photos of one scene, taken within moments. The best of each is told."""

import dataclasses
import datetime
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from qualiclip_jax.explain import embedding
from qualiclip_jax.images import ImageError, read_image
from qualiclip_jax.inference.files import Row
from qualiclip_jax.inference.stream import in_threads
from qualiclip_jax.progress import track

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP

SIDE = 224  # px, of the squares that photos are compared as
ALIKE = 0.6  # cosine of features, at least
_EXIF, _TAKEN, _CHANGED, _FRACTION = 0x8769, 36867, 306, 37521  # tags


def taken(path: str) -> float | None:
    """When a photo was taken, in seconds of a clock without a time zone; None if its EXIF data do not tell."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            tags = image.getexif()
        details = tags.get_ifd(_EXIF)
        text = str(details.get(_TAKEN) or tags.get(_CHANGED) or "").strip("\0 ")
        moment = datetime.datetime.strptime(text[:19], "%Y:%m:%d %H:%M:%S").replace(tzinfo=datetime.UTC)
        digits = str(details.get(_FRACTION) or "").strip("\0 ")
        return moment.timestamp() + (float(f"0.{digits}") if digits.isdigit() else 0.0)
    except Exception:  # Pillow raises many kinds; a photo without a time is in no burst
        return None


def group(
    times: Sequence[float | None],
    features: Callable[[Sequence[int]], np.ndarray],
    gap: float,
    alike: float = ALIKE,
) -> list[list[int]]:
    """Which photos belong together: each is alike to the one before it, and was taken soon after.

    Args:
      times: of each photo, seconds; None if it is not known.
      features: gives unit features [K, F] of photos by their numbers; asked once, for those that have a neighbour in
        time.
      gap: seconds.
      alike: least cosine.

    Returns:
      Bursts of two photos or more, each in the order of time.
    """
    order = sorted((time, index) for index, time in enumerate(times) if time is not None)
    near = [b[0] - a[0] <= gap for a, b in zip(order, order[1:])]
    asked = [index for k, (_, index) in enumerate(order) if (k and near[k - 1]) or (k < len(near) and near[k])]
    if not asked:
        return []
    known = dict(zip(asked, features(asked), strict=True))
    bursts: list[list[int]] = []
    for k, (_, index) in enumerate(order):
        before = order[k - 1][1] if k else index
        if k and near[k - 1] and float(known[before] @ known[index]) >= alike:
            bursts[-1].append(index)
        else:
            bursts.append([index])
    return [burst for burst in bursts if len(burst) > 1]


def ranked(model: "QualiCLIP", rows: Sequence[Row], gap: float) -> list[Row]:
    """The rows, with the number of its burst and the place in it filled in where a photo is in one.

    Args:
      model: whose features tell what is alike.
      rows: of photos.
      gap: seconds, at most, from one photo of a burst to the next.
    """
    scored = [index for index, row in enumerate(rows) if row.score is not None]
    times = [taken(rows[index].path) for index in scored]
    if scored and not any(time is not None for time in times):
        print("no photo tells when it was taken (EXIF): no bursts", file=sys.stderr)

    def square(index: int) -> np.ndarray:
        return embedding.square(read_image(rows[scored[index]].path), SIDE)

    def features(numbers: Sequence[int]) -> np.ndarray:
        found = in_threads(square, numbers)
        read = list(track(found, len(numbers), "bursts", "photo"))
        squares = [np.zeros((SIDE, SIDE, 3), np.uint8) if isinstance(one, ImageError) else one for one in read]
        return embedding.encoder(model)(np.stack(squares))

    result = list(rows)
    for number, burst in enumerate(group(times, features, gap), 1):
        members = [scored[index] for index in burst]
        for rank, index in enumerate(sorted(members, key=lambda k: -(rows[k].score or 0)), 1):
            result[index] = dataclasses.replace(rows[index], burst=number, burst_rank=rank)
    return result
