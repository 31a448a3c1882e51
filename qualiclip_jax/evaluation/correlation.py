"""Agreement between predicted scores and human opinion: rank and linear correlation, logistic mapping, intervals.

Every function takes two sequences of the same length, the predictions `x` and the opinions `y`, and knows nothing of
images or models. The order of the pairs changes no digit of a result: pairs are sorted before they are summed or
resampled. What is undefined (fewer than 3 pairs, NaN, constant predictions) raises `UserError` and is never a number.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from qualiclip_jax.errors import UserError

MIN_PAIRS = 3
MIN_RESAMPLES = 20


class FitError(UserError):
    """The logistic mapping could not be fitted; the message says why."""


def srcc(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation (ties share their mean rank), in [-1, 1]. Raises UserError if it is undefined."""
    return float(stats.spearmanr(*_pairs(x, y)).statistic)


def plcc(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's linear correlation, in [-1, 1]. Raises UserError if it is undefined."""
    return _finite(float(stats.pearsonr(*_pairs(x, y)).statistic))


def krcc(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall's rank correlation tau-b, in [-1, 1]. Raises UserError if it is undefined."""
    return float(stats.kendalltau(*_pairs(x, y)).statistic)


def rmse(x: ArrayLike, y: ArrayLike) -> float:
    """Root of the mean squared difference. `x` must have the unit of `y`: map it first (`fit_logistic`)."""
    x, y = _pairs(x, y, constant_allowed=True)
    with np.errstate(over="ignore"):
        return _finite(float(np.sqrt(np.mean((x - y) ** 2))))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise UserError("the numbers are too large for floating-point arithmetic")
    return value


STATISTICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "srcc": srcc,
    "plcc": plcc,
    "krcc": krcc,
    "rmse": rmse,
}


@dataclass(frozen=True)
class Logistic:
    """A fitted mapping from predictions to opinions; call it on predictions.

    Attributes:
      parameters: (b1, b2, b3, b4) of b2 + (b1 - b2) / (1 + exp(-(x - b3) / b4)), b4 > 0 (VQEG, 2003), or
        (b1, ..., b5) of b1 (1/2 - 1 / (1 + exp(b2 (x - b3)))) + b4 x + b5, b2 > 0 (Sheikh, Sabir and Bovik, 2006).
    """

    parameters: tuple[float, ...]

    def __call__(self, x: ArrayLike) -> np.ndarray:
        return _CURVES[len(self.parameters)](np.asarray(x, np.float64), *self.parameters)


def _logistic4(x: np.ndarray, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
    return np.asarray(b2 + (b1 - b2) * special.expit((x - b3) / b4))


def _logistic5(x: np.ndarray, b1: float, b2: float, b3: float, b4: float, b5: float) -> np.ndarray:
    return np.asarray(b1 * (special.expit(b2 * (x - b3)) - 0.5) + b4 * x + b5)


_CURVES: dict[int, Callable[..., np.ndarray]] = {4: _logistic4, 5: _logistic5}


def fit_logistic(x: ArrayLike, y: ArrayLike, parameters: int = 4) -> Logistic:
    """Fits, by least squares, the mapping that is customary before PLCC and RMSE.

    Only the centre and the width of the bend are searched for, from the best point of a grid. For given ones, the other
    parameters are a linear least-squares problem. Bounds keep the bend in or near the data: its centre lies no further
    outside them than their range is wide, its width is between 1/30 and 30 standard deviations.

    Args:
      x: predictions [N].
      y: opinions [N], either direction.
      parameters: 4 or 5.

    Returns:
      The mapping.

    Raises:
      FitError: there are no more pairs than parameters, the search did not converge, or the best curve is flat.
      UserError: fewer than 3 pairs, numbers that are not finite, or constant ones.
    """
    x, y = _pairs(x, y)
    if parameters not in _CURVES:
        raise ValueError(f"parameters is {parameters}, 4 or 5 expected")
    if len(x) <= parameters:
        raise FitError(f"{len(x)} images are too few to fit {parameters} parameters")
    with np.errstate(over="ignore", invalid="ignore"):
        (x_mid, x_unit), (y_mid, y_unit) = ((float(np.mean(values)), float(np.std(values))) for values in (x, y))
    if not all(0 < unit < math.inf for unit in (x_unit, y_unit)):
        raise FitError(f"the {parameters}-parameter logistic fit is beyond floating-point arithmetic")
    u, v = (x - x_mid) / x_unit, (y - y_mid) / y_unit

    def linear(bend: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Residuals and coefficients of the best curve with a given bend (centre, log of the width)."""
        basis = _basis(u, bend, parameters)
        coefficients = np.linalg.lstsq(basis, v, rcond=None)[0]
        return basis @ coefficients - v, coefficients

    grid = [
        np.array((centre, np.log(width)))
        for centre in np.quantile(u, np.linspace(0.1, 0.9, 9))
        for width in (0.05, 0.1, 0.2, 0.5, 1, 3)
    ]
    start = min(grid, key=lambda bend: float(np.sum(linear(bend)[0] ** 2)))
    outside = float(np.ptp(u))
    bounds = [u.min() - outside, -np.log(30)], [u.max() + outside, np.log(30)]
    fit = optimize.least_squares(
        lambda bend: linear(bend)[0], start, bounds=bounds, method="dogbox", xtol=1e-9, ftol=1e-9
    )
    if fit.status <= 0:
        raise FitError(f"the {parameters}-parameter logistic fit did not converge")
    mapping = Logistic(_unstandardised(fit.x, linear(fit.x)[1], x_mid, x_unit, y_mid, y_unit))
    if np.ptp(mapping(x)) <= 1e-6 * y_unit:
        raise FitError(f"the {parameters}-parameter logistic fit is flat: the predictions explain nothing")
    return mapping


def _basis(u: np.ndarray, bend: np.ndarray, parameters: int) -> np.ndarray:
    """The functions that a curve of a given bend is a sum of, [N, 2] or [N, 3]."""
    step = special.expit((u - bend[0]) / np.exp(bend[1]))
    columns = (step, np.ones_like(u)) if parameters == 4 else (step - 0.5, u, np.ones_like(u))
    return np.stack(columns, axis=1)


def _unstandardised(
    bend: np.ndarray, coefficients: np.ndarray, x_mid: float, x_unit: float, y_mid: float, y_unit: float
) -> tuple[float, ...]:
    """The parameters of `Logistic` in the units of the data."""
    centre, width = x_mid + x_unit * bend[0], x_unit * np.exp(bend[1])
    if len(coefficients) == 2:
        height, foot = coefficients * y_unit
        values: tuple[float, ...] = (y_mid + foot + height, y_mid + foot, centre, width)
    else:
        height, rise, level = coefficients * y_unit
        values = (height, 1 / width, centre, rise / x_unit, y_mid + level - rise / x_unit * x_mid)
    return tuple(float(value) for value in values)


def bootstrap_interval(
    statistic: str, x: ArrayLike, y: ArrayLike, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic, resampling images with replacement.

    Args:
      statistic: a key of `STATISTICS`.
      x: predictions [N].
      y: opinions [N].
      level: coverage aimed at, in (0, 1).
      resamples: number of resamples; those in which the statistic is undefined are left out.
      seed: of the resampling; the same seed gives the same digits in any order of the pairs.

    Returns:
      (low, high).

    Raises:
      UserError: the statistic is undefined, or defined in too few resamples.
    """
    x, y = _pairs(x, y, constant_allowed=statistic == "rmse")
    values = np.concatenate([rows(statistic, x[drawn], y[drawn]) for drawn in resampled_rows(len(x), resamples, seed)])
    return interval_of(values, level)


def interval_of(values: np.ndarray, level: float) -> tuple[float, float]:
    """Returns the interval that holds the central `level` of resampled `values`; NaN among them are left out."""
    values = values[np.isfinite(values)]
    if len(values) < MIN_RESAMPLES:
        raise UserError(
            f"too few images or resamples for a bootstrap interval: the statistic is defined in {len(values)} "
            f"resamples, {MIN_RESAMPLES} are needed"
        )
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled_rows(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields blocks of indices [R, n] into n images, drawn with replacement, `resamples` rows in all."""
    generator = np.random.default_rng(seed)
    block = max(1, 2_000_000 // n)  # bounds the memory
    for start in range(0, resamples, block):
        yield generator.integers(0, n, (min(block, resamples - start), n))


def rows(statistic: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A statistic of each row of x, y [R, N] -> [R]; NaN where a row is constant."""
    if statistic == "rmse":
        return np.asarray(np.sqrt(np.mean((x - y) ** 2, axis=1)))
    if statistic == "krcc":
        return np.array([stats.kendalltau(a, b).statistic for a, b in zip(x, y)])
    if statistic == "srcc":
        x, y = stats.rankdata(x, axis=1), stats.rankdata(y, axis=1)
    elif statistic != "plcc":
        raise ValueError(f"no statistic {statistic!r}; there are {', '.join(STATISTICS)}")
    x, y = (values - values.mean(axis=1, keepdims=True) for values in (x, y))
    scale = np.sqrt(np.sum(x * x, axis=1) * np.sum(y * y, axis=1))
    return np.asarray(np.divide(np.sum(x * y, axis=1), scale, out=np.full(len(x), np.nan), where=scale > 0))


def check_values(values: ArrayLike, what: str) -> np.ndarray:
    """A sequence of finite numbers as float64 [N], at least 3 of them.

    Raises:
      UserError: too few, not finite, or no numbers; the message names `what` they are.
    """
    try:
        values = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{what} are not all numbers") from None
    if values.ndim != 1:
        raise UserError(f"{what} have shape {values.shape}, one number per image expected")
    if len(values) < MIN_PAIRS:
        raise UserError(f"{len(values)} images are too few for a correlation, at least {MIN_PAIRS} needed")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UserError(f"{len(bad)} of {len(values)} {what} are not finite, the first at position {bad[0]}")
    return values


def check_varies(values: np.ndarray, what: str) -> None:
    """Raises UserError when all `values` are equal: their correlation with anything is undefined."""
    if np.all(values == values[0]):
        raise UserError(f"all {len(values)} {what} equal {values[0]:g}: their correlation is undefined")


def _pairs(x: ArrayLike, y: ArrayLike, constant_allowed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as float64 [N], checked, and in an order that does not depend on the one given."""
    x, y = check_values(x, "predictions"), check_values(y, "opinions")
    if len(x) != len(y):
        raise UserError(f"{len(x)} predictions for {len(y)} opinions: one for each is needed")
    if not constant_allowed:
        check_varies(x, "predictions")
        check_varies(y, "opinions")
    order = np.lexsort((y, x))
    return x[order], y[order]
