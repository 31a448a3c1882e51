"""The synthetic benchmark: does a model score photos lower, the more they are degraded?

It needs no human opinion. Pristine photos are degraded in 24 ways at 5 levels. The two crops of a photo are always the
same, and the degradations are drawn from a key that depends only on the seed, the name of the photo and the type. So
the result depends neither on the order of the photos nor on what ran before, and results of different calls compare.

    result = synthetic.run(model.score, photos)
    print(synthetic.table(result))
"""

import functools
import math
import zlib
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qualiclip_jax import degradations
from qualiclip_jax.degradations.catalog import GROUPS, TYPES
from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import correlation

CROP = 224  # px, the default side of the crops
LEVELS = (0, 1, 2, 3, 4, 5)  # 0 is the pristine crop
_EXAMPLES = 8  # (photo, type) pairs degraded at once; divides 24
_IMAGES = 128  # crops scored at once, at most, by default

ScoreFunction = Callable[[jax.Array], "jax.Array | np.ndarray"]
Photo = tuple[str, np.ndarray]


@dataclass(frozen=True)
class SyntheticResult:
    """The scores of one run and what follows from them.

    Attributes:
      names: of the N crops, two per photo.
      types: the T degradation types.
      scores: float64 [N, T, 6], of the pristine crop and of levels 1..5.
      crop: side of the crops in px.
      seed: of the degradations.
    """

    names: tuple[str, ...]
    types: tuple[str, ...]
    scores: np.ndarray
    crop: int
    seed: int

    @functools.cached_property
    def crop_srcc(self) -> np.ndarray:
        """Spearman's correlation of level (1..5) and score in each crop, [N, T]; NaN where all 5 scores are equal."""
        rows = self.scores[..., 1:].reshape(-1, 5)
        levels = np.tile(np.arange(1.0, 6.0), (len(rows), 1))
        return correlation.rows("srcc", levels, rows).reshape(self.scores.shape[:2])

    @functools.cached_property
    def srcc(self) -> dict[str, float]:
        """Type -> mean of `crop_srcc` over the crops: -1 for a perfect model, 0 for one that sees no order.

        A crop whose five scores are equal counts as 0. A type for which that is so in every crop is NaN, "undefined".
        """
        undefined = np.all(np.isnan(self.crop_srcc), axis=0)
        means = np.where(undefined, np.nan, np.nan_to_num(self.crop_srcc).mean(axis=0))
        return dict(zip(self.types, means.tolist()))

    @property
    def mean(self) -> float:
        """Mean of `srcc` over the types, undefined ones counted as 0; NaN when all are undefined."""
        values = np.array(list(self.srcc.values()))
        return math.nan if np.all(np.isnan(values)) else float(np.nan_to_num(values).mean())

    @functools.cached_property
    def order(self) -> np.ndarray:
        """[T, T]: of two versions of a crop, type a at level i and type b at level j > i, how often a scores higher.

        The diagonal is the order within a type, the rest is the order across types; 1 is perfect, 0.5 is chance; equal
        scores count one half.
        """
        milder, stronger = np.triu_indices(5, 1)
        a = self.scores[:, :, None, 1:][..., milder]  # [N, T, 1, 10]
        b = self.scores[:, None, :, 1:][..., stronger]  # [N, 1, T, 10]
        return np.asarray(np.mean((a > b) + 0.5 * (a == b), axis=(0, 3)))

    @property
    def order_within(self) -> float:
        """Share of pairs of levels of one type that are in the right order."""
        return float(np.diag(self.order).mean())

    @property
    def order_across(self) -> float:
        """Share of pairs of levels of two different types that are in the right order; NaN for a single type."""
        n = len(self.types)
        return float((self.order.sum() - np.trace(self.order)) / (n * (n - 1))) if n > 1 else math.nan

    @property
    def curves(self) -> np.ndarray:
        """Mean score over the crops, [T, 6], pristine and levels 1..5."""
        return np.asarray(self.scores.mean(axis=0))

    def groups(self) -> dict[str, tuple[str, ...]]:
        """The groups of degradations, with those of their types that were run."""
        kept = {group: tuple(t for t in types if t in self.types) for group, types in GROUPS.items()}
        return {group: types for group, types in kept.items() if types}

    def summary(self) -> dict[str, Any]:
        """All figures as plain numbers for a JSON file; None where undefined."""

        def plain(value: float) -> float | None:
            return None if math.isnan(value) else value

        return {
            "crops": len(self.names),
            "crop_size": self.crop,
            "seed": self.seed,
            "mean_srcc": plain(self.mean),
            "order_within_types": self.order_within,
            "order_across_types": plain(self.order_across),
            "types": {
                name: {"srcc": plain(self.srcc[name]), "mean_scores": self.curves[index].tolist()}
                for index, name in enumerate(self.types)
            },
        }


def run(
    score_fn: ScoreFunction,
    photos: Sequence[Photo],
    *,
    types: Sequence[str] = TYPES,
    seed: int = 0,
    crop: int | None = None,
    batch_size: int | None = None,
    done: MutableMapping[str, np.ndarray] | None = None,
    advance: Callable[[int], None] = lambda photos: None,
) -> SyntheticResult:
    """Scores the degraded versions of photos.

    Degrading compiles once per crop size, and every call of `score_fn` has the same shape.

    Args:
      score_fn: float32 [n, H, W, 3] in [0, 1] -> scores [n], higher is better.
      photos: (name, uint8 [H, W, 3]) each, names unique.
      types: of `degradations.TYPES`; all 24 by default.
      seed: of the random degradations.
      crop: side of the two crops cut from each photo, px; by default 224, or the shortest side where that is smaller.
      batch_size: n above; by default what divides the work for one photo best, at most 128.
      done: scores of photos by name, [2, T, 6] each: those in it are not computed again, those computed are put in.
      advance: called with 1 when a photo is done.

    Raises:
      UserError: no photos, a photo smaller than the crop, an unknown type.
    """
    types = tuple(types)
    crop = check(photos, types, crop)
    done = {} if done is None else done
    batch_size = batch_size or _even_batch(2 * (1 + 5 * len(types)))
    for name, photo in photos:
        if name not in done:
            done[name] = _score_photo(score_fn, name, cut(photo, crop), types, seed, batch_size)
        advance(1)
    names = tuple(f"{name} {part}" for name, _ in photos for part in ("a", "b"))
    return SyntheticResult(names, types, np.concatenate([done[name] for name, _ in photos]), crop, seed)


def check(photos: Sequence[Photo], types: Sequence[str], crop: int | None) -> int:
    """Checks the input of `run` and returns the side of the crops."""
    if not photos:
        raise UserError("no photos for the synthetic benchmark")
    unknown = [name for name in types if name not in TYPES]
    if unknown or not types:
        raise UserError(f"no degradation {', '.join(unknown) or 'chosen'}; there are {', '.join(TYPES)}")
    smallest = min(photos, key=lambda photo: min(photo[1].shape[:2]))
    shortest = min(smallest[1].shape[:2])
    crop = min(CROP, shortest) if crop is None else crop
    if crop < 32 or crop > shortest:
        raise UserError(
            f"crops of {crop} px do not fit: they must be 32 px or more, and no larger than the smallest photo "
            f"({smallest[0]}, shortest side {shortest} px)"
        )
    return crop


def cut(photo: np.ndarray, crop: int) -> np.ndarray:
    """Two crops of a photo [H, W, 3], a quarter of the free space from either end: [2, crop, crop, 3]."""
    height, width = photo.shape[:2]
    quarters = [((height - crop) * k // 4, (width - crop) * k // 4) for k in (1, 3)]
    return np.stack([photo[top : top + crop, left : left + crop] for top, left in quarters])


def _score_photo(
    score_fn: ScoreFunction, name: str, crops: np.ndarray, types: tuple[str, ...], seed: int, batch_size: int
) -> np.ndarray:
    """Scores of both crops, pristine and degraded: [2, T, 6]."""
    indices = [TYPES.index(kind) for kind in types]
    padded = indices + [0] * (-len(indices) % _EXAMPLES)  # one shape, one compilation
    keys = _keys(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), jnp.array(padded))
    pixels = jnp.asarray(crops)
    parts = [
        _degrade(pixels, jnp.array(padded[start : start + _EXAMPLES]), keys[start : start + _EXAMPLES])
        for start in range(0, len(padded), _EXAMPLES)
    ]
    degraded = jnp.concatenate(parts)[: len(types)]  # [T, 5, 2, crop, crop, 3]
    images = jnp.concatenate([_to_float(pixels), degraded.reshape(-1, *degraded.shape[3:])])
    scores = _score_in_batches(score_fn, images, batch_size)
    pristine, rest = scores[:2], scores[2:].reshape(len(types), 5, 2)
    pristine = np.broadcast_to(pristine, (len(types), 1, 2))
    return np.concatenate([pristine, rest], axis=1).transpose(2, 0, 1)


@jax.jit
def _degrade(crops: jax.Array, type_index: jax.Array, keys: jax.Array) -> jax.Array:
    pairs = jnp.broadcast_to(crops, (len(type_index), *crops.shape))
    degraded: jax.Array = degradations.degrade_pairs(pairs, type_index, keys)
    return degraded  # [B, 5, 2, crop, crop, 3]


@jax.jit
def _keys(key: jax.Array, indices: jax.Array) -> jax.Array:
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


@jax.jit
def _to_float(crops: jax.Array) -> jax.Array:
    return crops.astype(jnp.float32) / 255 if crops.dtype == jnp.uint8 else crops


def _score_in_batches(score_fn: ScoreFunction, images: jax.Array, batch_size: int) -> np.ndarray:
    """All scores, float64 [n]; the last batch is filled up with copies of its first image."""
    scores = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        short = batch_size - len(batch)
        if short:
            batch = jnp.concatenate([batch, jnp.broadcast_to(batch[:1], (short, *batch.shape[1:]))])
        scores.append(np.asarray(score_fn(batch), np.float64)[: batch_size - short])
    return np.concatenate(scores)


def _even_batch(total: int) -> int:
    return math.ceil(total / math.ceil(total / _IMAGES))


def table(
    result: SyntheticResult, before: SyntheticResult | None = None, names: tuple[str, str] = ("before", "after")
) -> str:
    """A text table, one line a type: Spearman of level and score, before and after, and the mean score at each level.

    Args:
      result: of the model.
      before: of the same photos before training, or of another model.
      names: heads of the columns of `before` and `result`.
    """
    columns = f"{names[0]:>8s}{names[1]:>8s}" if before else f"{'SRCC':>8s}"
    head = f"{'':26s}{columns}   mean score at level 0 to 5"
    lines = [head, "-" * len(f"{'':26s}{columns}" + " " * 38)]
    for group, types in result.groups().items():
        lines.append(group)
        for name in types:
            curve = " ".join(f"{value:.3f}" for value in result.curves[result.types.index(name)])
            lines.append(f"  {name:24s}{_cells(result.srcc[name], before.srcc[name] if before else None)}   {curve}")
    lines.append(lines[1])
    lines.append(f"{'mean over types':26s}{_cells(result.mean, before.mean if before else None)}   perfect is -1")
    for title, name in (("order within a type", "order_within"), ("order across types", "order_across")):
        cells = _cells(getattr(result, name), getattr(before, name) if before else None)
        lines.append(f"{title:26s}{cells}   perfect is 1, chance 0.5")
    return "\n".join(lines)


def _cells(value: float, before: float | None) -> str:
    values = (value,) if before is None else (before, value)
    return "".join(f"{cell(v):>8s}" for v in values)


def cell(value: float) -> str:
    """A figure of a result as text."""
    return "undef." if math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"  # no minus before a zero
