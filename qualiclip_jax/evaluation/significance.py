"""Does model A really agree better with human opinion than model B? Two tests on the same images."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import correlation

STEIGER_MIN = 4  # images


@dataclass(frozen=True)
class Comparison:
    """The outcome of `compare`.

    Attributes:
      statistic: "srcc", "plcc" or "krcc".
      difference: that of A minus that of B.
      interval: bootstrap interval of the difference.
      p_bootstrap: two-sided, from the paired bootstrap; at least 1 / (resamples + 1).
      z_steiger: Steiger's Z; None for "krcc", which it does not cover, and for 3 images, which are too few.
      p_steiger: its two-sided p value.
    """

    statistic: str
    difference: float
    interval: tuple[float, float]
    p_bootstrap: float
    z_steiger: float | None
    p_steiger: float | None


def compare(
    a: ArrayLike, b: ArrayLike, y: ArrayLike, *, statistic: str = "srcc", level: float = 0.95, resamples: int = 1000,
    seed: int = 0,
) -> Comparison:  # fmt: skip
    """Compares two sets of predictions of the same images.

    Args:
      a: predictions of model A [N].
      b: predictions of model B [N], of the same images in the same order, the same direction as `a`.
      y: opinions [N].
      statistic: "srcc", "plcc" or "krcc".
      level: coverage of the interval.
      resamples: of the paired bootstrap (the same images are drawn for A and B).
      seed: of the resampling.

    Raises:
      UserError: a correlation is undefined (see `correlation`).
    """
    a, b, y = _triples(a, b, y)
    measure = correlation.STATISTICS[statistic]
    r_ay, r_by = measure(a, y), measure(b, y)
    differences = np.concatenate(
        [
            correlation.rows(statistic, a[drawn], y[drawn]) - correlation.rows(statistic, b[drawn], y[drawn])
            for drawn in correlation.resampled_rows(len(y), resamples, seed)
        ]
    )
    interval = correlation.interval_of(differences, level)
    z, p = (None, None)
    if statistic != "krcc" and len(y) >= STEIGER_MIN:
        z, p = steiger(r_ay, r_by, measure(a, b), len(y))
    return Comparison(statistic, r_ay - r_by, interval, _two_sided(differences), z, p)


def steiger(r_ay: float, r_by: float, r_ab: float, n: int) -> tuple[float, float]:
    """Steiger's test that two correlations with the same variable are equal.

    Source: Steiger, "Tests for comparing elements of a correlation matrix", Psychological Bulletin 87, 1980: Fisher's z
    of both, and their covariance with the pooled correlation in it. The test assumes
    Pearson's correlation and many images; for SRCC it is the customary approximation.

    Args:
      r_ay: correlation of A with the opinions.
      r_by: correlation of B with the opinions.
      r_ab: correlation of A with B.
      n: number of images, at least 4.

    Returns:
      (Z, two-sided p). Z > 0 when A correlates more. Equal predictions give (0, 1).
    """
    if n < STEIGER_MIN:
        raise UserError(f"{n} images are too few for Steiger's test, at least {STEIGER_MIN} needed")
    if r_ay == r_by:
        return 0.0, 1.0
    mean = (r_ay + r_by) / 2
    rest = 1 - mean**2
    covariance = (r_ab * (1 - 2 * mean**2) - mean**2 * (1 - 2 * mean**2 - r_ab**2) / 2) / rest**2
    spread = math.sqrt(max(2 - 2 * covariance, 1e-15))
    with np.errstate(divide="ignore"):
        z = float((np.arctanh(r_ay) - np.arctanh(r_by)) * math.sqrt(n - 3) / spread)
    return z, float(2 * stats.norm.sf(abs(z)))


def _two_sided(differences: np.ndarray) -> float:
    """Twice the smaller share of resampled differences on one side of zero, each with one count added."""
    differences = differences[np.isfinite(differences)]
    below, above = np.sum(differences <= 0), np.sum(differences >= 0)
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1)))


def _triples(a: ArrayLike, b: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b, y = (
        correlation.check_values(values, what)
        for values, what in ((a, "predictions of A"), (b, "predictions of B"), (y, "opinions"))
    )
    if not len(a) == len(b) == len(y):
        raise UserError(f"{len(a)} and {len(b)} predictions for {len(y)} opinions: one for each is needed")
    for values, what in ((a, "predictions of A"), (b, "predictions of B"), (y, "opinions")):
        correlation.check_varies(values, what)
    order = np.lexsort((b, a, y))
    return a[order], b[order], y[order]
