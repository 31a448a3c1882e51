"""Rising curves from scores to ratings: a line, a logistic, or an isotonic one; all as knots of a broken line."""

import numpy as np
from scipy import optimize, stats

from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import correlation
from qualiclip_jax.models.rating import broken_line

FEWEST_FOR_ISOTONIC = 100
FLAT = 1e-6  # rise over the scores' range, in deviations of the ratings, where nothing rises


def fit(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, str]:
    """Fits the curve that predicts best in cross-validation.

    Args:
      x: float64 [N], scores.
      y: float64 [N], ratings.
      folds: int [N], in which fold of the cross-validation each is.

    Returns:
      Knots float64 [K, 2] for `Rating`, and the name of the curve: "line", "logistic" or "isotonic".
    """
    kinds = {"line": line, "logistic": logistic}
    if len(x) >= FEWEST_FOR_ISOTONIC:
        kinds["isotonic"] = isotonic
    errors = dict.fromkeys(kinds, 0.0)
    for fold in np.unique(folds):
        out = folds == fold
        for name, curve in kinds.items():
            errors[name] += float(np.sum((broken_line(x[out], curve(x[~out], y[~out])) - y[out]) ** 2))
    best = min(errors, key=errors.__getitem__)  # of equal ones the simplest
    return kinds[best](x, y), best


def line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The straight line of least squares; nearly flat where it would fall."""
    deviation = float(x.std())
    slope = float(np.mean((x - x.mean()) * (y - y.mean()))) / deviation**2 if deviation else 0.0
    least = FLAT * (float(y.std()) or 1.0) / (float(np.ptp(x)) or 1.0)
    low, high = _ends(x)
    return np.array([[at, y.mean() + max(slope, least) * (at - x.mean())] for at in (low, high)])


def logistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The logistic of four parameters, see `correlation.fit_logistic`; the line where that falls or does not exist."""
    try:
        curve = correlation.fit_logistic(x, y, 4)
    except UserError:
        return line(x, y)
    top, foot, center, width = curve.parameters
    if top <= foot:
        return line(x, y)
    low, high = _ends(x)
    reach = high - low
    at = np.concatenate([np.linspace(low - reach, high + reach, 61), center + width * np.linspace(-6, 6, 61)])
    return _rising(np.unique(at), curve)


def _rising(at: np.ndarray, curve: correlation.Logistic) -> np.ndarray:
    """Knots of a logistic, without those where it does not rise any more in float64."""
    values = curve(at)
    unit = float(np.ptp(values)) * 1e-9
    kept = [0]
    for index in range(1, len(at)):
        if values[index] - values[kept[-1]] > unit and at[index] - at[kept[-1]] > 0:
            kept.append(index)
    return np.stack([at[kept], values[kept]], axis=1)


def isotonic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Isotonic regression, its steps joined at their centres, so that different scores keep different ratings.

    Source: Oron and Flournoy, "Centered isotonic regression" (2017).
    """
    at, place = np.unique(x, return_inverse=True)
    weights = np.bincount(place).astype(np.float64)
    values = np.bincount(place, y) / weights
    blocks = optimize.isotonic_regression(values, weights=weights).blocks
    if len(blocks) < 4:  # fewer than 3 steps
        return line(x, y)
    mass = np.add.reduceat(weights, blocks[:-1])
    centers = np.add.reduceat(weights * at, blocks[:-1]) / mass
    steps = np.add.reduceat(weights * values, blocks[:-1]) / mass
    knots = np.stack([centers, steps], axis=1)
    rise = float(np.ptp(y)) * 1e-3  # across the outer halves of the first and the last step, which are flat
    low, high = _ends(x)
    first = [[low, steps[0] - rise]] if low < centers[0] else []
    last = [[high, steps[-1] + rise]] if high > centers[-1] else []
    return np.array([*first, *knots.tolist(), *last])


def _ends(x: np.ndarray) -> tuple[float, float]:
    low, high = float(x.min()), float(x.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def falls(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether ratings fall where scores rise, beyond chance (Spearman, 1 %)."""
    return bool(np.ptp(x) > 0 and stats.spearmanr(x, y, alternative="less").pvalue < 0.01)
