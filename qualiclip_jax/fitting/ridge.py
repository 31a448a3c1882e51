"""Ridge regression whose penalty is chosen by cross-validation, both in closed form."""

import dataclasses

import numpy as np

PENALTIES = np.logspace(-3, 4, 29)  # in units of the mean square of a row of features


@dataclasses.dataclass(frozen=True, eq=False)
class Ridge:
    """A linear function of features [N, F], fitted.

    Attributes:
      weights: float64 [F].
      bias: a number.
      penalty: the one of `PENALTIES` that was chosen.
    """

    weights: np.ndarray
    bias: float
    penalty: float


def fit(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> Ridge:
    """Fits a ridge regression with a free constant and the penalty of the least cross-validated error.

    What a fit to the other folds predicts for one fold follows from the fit to all: with hat matrix H and residuals r,
    the residuals of the rows b that were left out are (I - H_bb)^-1 r_b. So one decomposition serves all penalties and
    all folds.

    Args:
      x: float [N, F], of comparable scales.
      y: float64 [N].
      folds: int [N], in which fold of the cross-validation each row is.

    Source: Hastie, Tibshirani and Friedman, "The elements of statistical learning", 7.10, for blocks of rows.
    """
    x = np.asarray(x, np.float64)
    center_x, center_y = x.mean(0), float(y.mean())
    centered, residuals = x - center_x, y - center_y
    vectors, squares = _decomposed(centered)
    unit = squares.sum() / len(x)
    rotated = vectors.T @ residuals
    blocks = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]

    def error(penalty: float) -> float:
        """Sum of the squared errors of each block, predicted from the others."""
        shrunk = squares / (squares + penalty * unit)
        rest = residuals - vectors @ (shrunk * rotated)
        total = 0.0
        for rows in blocks:
            hat = (vectors[rows] * shrunk) @ vectors[rows].T + 1 / len(x)  # the constant is free
            total += float(np.sum(np.linalg.solve(np.eye(len(rows)) - hat, rest[rows]) ** 2))
        return total

    best = min(PENALTIES[::-1].tolist(), key=error)  # of equal ones the largest
    weights = centered.T @ (vectors @ (rotated / (squares + best * unit)))
    return Ridge(weights, float(center_y - center_x @ weights), best)


def _decomposed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors [N, R] and squared singular values [R] of x [N, F], R at most N and F."""
    if len(x) <= x.shape[1]:
        squares, vectors = np.linalg.eigh(x @ x.T)
        return vectors, np.maximum(squares, 0)
    squares, right = np.linalg.eigh(x.T @ x)
    kept = squares > squares[-1] * 1e-12
    return (x @ right[:, kept]) / np.sqrt(squares[kept]), squares[kept]
