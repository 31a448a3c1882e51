"""Ridge regression in closed form against least squares with the penalty as further rows, fold by fold."""

import numpy as np
import pytest

from qualiclip_jax.fitting import ridge


def plain(x, y, penalty):
    """Weights and constant by least squares on rows that stand for the penalty; the constant is not penalised."""
    count = x.shape[1]
    rows = np.vstack([np.column_stack([x, np.ones(len(x))]), np.sqrt(penalty) * np.eye(count, count + 1)])
    solution = np.linalg.lstsq(rows, np.concatenate([y, np.zeros(count)]), rcond=None)[0]
    return solution[:-1], solution[-1]


@pytest.mark.parametrize("shape", [(24, 60), (60, 7)], ids=["wide", "tall"])
def test_the_penalty_of_the_least_error_on_left_out_folds(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) + 3
    y = x[:, :3].sum(1) + rng.normal(size=len(x)) + 50
    folds = rng.integers(0, 5, len(x))
    unit = np.sum((x - x.mean(0)) ** 2) / len(x)
    errors = []
    for penalty in ridge.PENALTIES:
        total = 0
        for fold in range(5):
            out = folds == fold
            weights, bias = plain(x[~out], y[~out], penalty * unit)
            total += np.sum((x[out] @ weights + bias - y[out]) ** 2)
        errors.append(total)
    best = ridge.PENALTIES[np.argmin(errors)]
    found = ridge.fit(x, y, folds)
    assert found.penalty == best
    weights, bias = plain(x, y, best * unit)
    np.testing.assert_allclose(found.weights, weights, atol=1e-9)
    np.testing.assert_allclose(found.bias, bias, atol=1e-7)
