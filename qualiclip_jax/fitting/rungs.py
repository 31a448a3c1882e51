"""The rungs in closed form: a curve over the score, or a linear head on frozen features."""

import dataclasses
from collections.abc import Callable

import numpy as np

from qualiclip_jax.fitting import curves, ridge
from qualiclip_jax.fitting.features import Features
from qualiclip_jax.models import Rating

SCORE_WEIGHT = 3.0  # of the score in a head's features; all pooled features together have 1
INNER_FOLDS = 10
IDENTITY = np.array([[0.0, 0.0], [1.0, 1.0]])


@dataclasses.dataclass(frozen=True)
class Rung:
    """A way to fit ratings.

    Attributes:
      fewest: ratings that it needs.
      fit: takes features of N images, their ratings [N] and folds [N] for choices within; gives a rating of width 0.
    """

    fewest: int
    fit: Callable[[Features, np.ndarray, np.ndarray], Rating]


def scale(features: Features, mos: np.ndarray, folds: np.ndarray) -> Rating:
    """A rising curve from score to rating: the order of images stays."""
    knots, kind = curves.fit(features.scores, mos, folds)
    return Rating(f"scale ({kind})", knots, 0.0)


def head(features: Features, mos: np.ndarray, folds: np.ndarray) -> Rating:
    """Ridge regression on the frozen pooled features, beside the model's own judgement.

    That is the mean logit of the pairs that the score is the mean of. It weighs more than any other feature, so that
    with few ratings the head stays close to the score.
    """
    judgement = features.judgement()
    center, unit = float(judgement.mean()), float(judgement.std()) or 1.0
    mean, deviation = features.pooled.mean(0, np.float64), features.pooled.std(0, np.float64)
    deviation = np.hypot(deviation, 0.3 * deviation.mean() or 1.0) * np.sqrt(len(deviation))
    share = np.sqrt(SCORE_WEIGHT) / unit
    x = np.column_stack([(features.pooled - mean) / deviation, (judgement - center) * share])
    found = ridge.fit(x, mos, folds)
    columns = found.weights[:-1] / deviation
    own = found.weights[-1] * share
    attributes = np.zeros(features.attributes.shape[1])
    attributes[: features.scored] = own / features.scored
    bias = float(found.bias - mean @ columns - own * center)
    return Rating("head", IDENTITY, 0.0, columns=columns[:, None], attributes=attributes, bias=bias)


RUNGS: dict[str, Rung] = {"scale": Rung(20, scale), "head": Rung(20, head)}  # the simplest first


def predict(rating: Rating, features: Features) -> np.ndarray:
    """The MOS that a rating gives images, float64 [N]."""
    if not rating.columns.size:
        return rating.mos(features.scores)
    return rating.mos(features.scores, features.attributes, features.pooled @ rating.columns[:, 0])


def make_folds(groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which of `count` folds each of N images is in, int [N]: of about equal sizes, no group in two of them.

    Args:
      groups: int [N], images of one group share it.
      count: of folds; fewer if there are fewer groups.
      seed: of the assignment.
    """
    found, place, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(found))
    order = order[np.argsort(-sizes[order], kind="stable")]  # the large ones first
    filled = np.zeros(min(count, len(found)), np.int64)
    fold_of = np.zeros(len(found), np.int64)
    for group in order:
        fold_of[group] = np.argmin(filled)
        filled[fold_of[group]] += sizes[group]
    return fold_of[place]


def held_out(rung: Rung, features: Features, mos: np.ndarray, groups: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """What a rung predicts for each fold when it is fitted to the others, all its choices included: float64 [N]."""
    predicted = np.empty(len(mos))
    for fold in np.unique(folds):
        out, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        inner = make_folds(groups[rest], INNER_FOLDS, int(fold))
        predicted[out] = predict(rung.fit(features.of(rest), mos[rest], inner), features.of(out))
    return predicted
