"""Which rung to take, and how far its ratings are off: nested cross-validation."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import correlation
from qualiclip_jax.fitting import curves, rungs
from qualiclip_jax.fitting.features import Features
from qualiclip_jax.models import Rating
from qualiclip_jax.progress import plural

AUTO = "auto"
LEVEL = 0.9  # of intervals
FOLDS = 10
FEWEST_GROUPS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Tried:
    """How well a rung did on ratings that it was not fitted to.

    Attributes:
      name: of the rung.
      srcc, plcc: with the ratings; NaN if all predictions are equal. The SRCC of `scale` is that of the scores, whose
        order it keeps; curves of several folds, side by side, would not.
      rmse: in the unit of the ratings.
      half_width: of the interval that covers `LEVEL` of them.
    """

    name: str
    srcc: float
    plcc: float
    rmse: float
    half_width: float


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """A rung that was fitted to all ratings.

    Attributes:
      rating: what it gives, with its interval.
      name: of the rung.
      table: every rung that was tried, the simplest first.
      aside: how many ratings, put aside from all of them, the table is of; 0 if it is of a cross-validation.
    """

    rating: Rating
    name: str
    table: list[Tried]
    aside: int = 0


def check(mos: np.ndarray, groups: np.ndarray, fewest: int) -> None:
    """Raises a UserError if nothing can be learned from ratings: too few, all equal, or of too few groups."""
    if len(mos) < fewest:
        raise UserError(f"{len(mos)} rated images are too few, {fewest} or more are needed")
    correlation.check_varies(mos, "ratings")
    found = len(np.unique(groups))
    if found < FEWEST_GROUPS:
        raise UserError(
            f"the images are of {found} {plural(found, 'group')} (column reference), {FEWEST_GROUPS} or more are needed"
        )


def check_rises(scores: np.ndarray, mos: np.ndarray) -> None:
    """Raises a UserError if ratings [N] fall where scores [N] rise: no scale fits them."""
    if curves.falls(scores, mos):
        raise UserError(
            f"these ratings fall where the model's scores rise (SRCC {correlation.srcc(scores, mos):.2f}, "
            f"{len(mos)} images): if lower is better, call their column dmos; if the model does not fit these images, "
            "--method head learns from the features alone"
        )


def choose(
    features: Features,
    mos: np.ndarray,
    groups: np.ndarray,
    *,
    method: str = AUTO,
    seed: int = 0,
    ladder: Mapping[str, rungs.Rung] = rungs.RUNGS,
    advance: Callable[[int], object] = lambda rungs: None,
) -> Chosen:
    """Fits ratings by the simplest rung that is no worse than the best by more than a standard error (see `simplest`).

    Errors are of ratings left out in a cross-validation. Everything that a rung chooses itself (kind of curve, penalty)
    it chooses again within each part. The interval is split-conformal with the residuals of the same cross-validation
    (Barber et al., "Predictive inference with the jackknife+", 2021, section 3; there CV+).

    Args:
      features: of N images.
      mos: float64 [N], their ratings.
      groups: int [N]; images of one group are never on both sides.
      method: a rung by name, or "auto".
      seed: of the folds.
      ladder: the rungs by name, the simplest first.
      advance: called with 1 for each rung tried.

    Raises:
      UserError: the ratings are too few, constant, of too few groups, or fall where scores rise.
    """
    names = [name for name, rung in ladder.items() if method in (AUTO, name)]
    check(mos, groups, min(ladder[name].fewest for name in names))
    names = [name for name in names if len(mos) >= ladder[name].fewest]
    if "scale" in names:
        check_rises(features.scores, mos)
    folds = rungs.make_folds(groups, FOLDS, seed)
    residuals = {}
    for name in names:
        residuals[name] = rungs.held_out(ladder[name], features, mos, groups, folds) - mos
        advance(1)
    table = [tried(name, rest, mos, features.scores) for name, rest in residuals.items()]
    taken = table[simplest(list(residuals.values()), groups)]
    rating = ladder[taken.name].fit(features, mos, rungs.make_folds(groups, rungs.INNER_FOLDS, seed))
    return Chosen(dataclasses.replace(rating, half_width=taken.half_width, level=LEVEL), taken.name, table)


def simplest(residuals: Sequence[np.ndarray], groups: np.ndarray) -> int:
    """Which of some rungs to take: the first whose error exceeds the least by at most its standard error.

    That is the standard error of the difference of the two mean squared errors, images of a group taken together.

    Args:
      residuals: float64 [N] of each rung, the simplest first.
      groups: int [N].

    Returns:
      Its place.
    """
    squares = np.square(residuals)
    best = squares[int(np.argmin(squares.mean(1)))]
    place = np.unique(groups, return_inverse=True)[1]
    for index, more in enumerate(squares - best):
        sums = np.bincount(place, more - more.mean())
        if more.mean() <= np.sqrt(np.sum(sums**2)) / len(more):
            return index
    raise AssertionError("the best exceeds itself by nothing")


def half_width(residuals: np.ndarray, level: float = LEVEL) -> float:
    """Half the width of the interval that covers new values with probability `level`, from residuals of others [N].

    Source: split conformal prediction, Lei et al. (2018): the ceil((N + 1) level)-th smallest absolute residual.
    """
    place = min(math.ceil((len(residuals) + 1) * level), len(residuals))
    return float(np.sort(np.abs(residuals))[place - 1])


def tried(name: str, residuals: np.ndarray, mos: np.ndarray, scores: np.ndarray) -> Tried:
    """How well a rung did: residuals [N] on ratings [N] that it was not fitted to, of images with these scores [N]."""
    predicted = mos + residuals
    ranked = scores if name == "scale" else predicted
    srcc, plcc = (
        f(x, mos) if np.ptp(x) > 0 else math.nan for f, x in ((correlation.srcc, ranked), (correlation.plcc, predicted))
    )
    return Tried(name, srcc, plcc, correlation.rmse(predicted, mos), half_width(residuals))
