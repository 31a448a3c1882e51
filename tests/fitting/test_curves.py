"""Curves from scores to ratings: they rise, they are what other code fits, and they never change an order."""

import numpy as np
import pytest
from scipy import optimize, special

from qualiclip_jax.fitting import curves
from qualiclip_jax.models.rating import broken_line

RNG = np.random.default_rng(0)
SCORES = RNG.uniform(0.3, 0.7, 200)
FOLDS = np.arange(200) % 10


def rated(curve, noise=0.3):
    return curve(SCORES) + noise * np.random.default_rng(1).normal(size=len(SCORES))


def bend(x):
    return 1 + 4 * special.expit((x - 0.5) / 0.02)


def test_the_line_is_that_of_least_squares():
    y = rated(lambda x: 3 * x + 1)
    slope, level = np.polyfit(SCORES, y, 1)
    at = np.array([0.1, 0.5, 0.9])  # beyond both ends as well
    np.testing.assert_allclose(broken_line(at, curves.line(SCORES, y)), slope * at + level, rtol=1e-9)


def test_the_logistic_is_that_of_a_general_optimiser():
    y = rated(bend)
    formula = lambda x, top, foot, center, width: foot + (top - foot) * special.expit((x - center) / width)
    found, _ = optimize.curve_fit(formula, SCORES, y, (5, 1, 0.5, 0.03))
    at = np.linspace(SCORES.min(), SCORES.max(), 500)
    np.testing.assert_allclose(broken_line(at, curves.logistic(SCORES, y)), formula(at, *found), atol=0.01)


def test_isotonic_steps_have_the_means_of_pooled_neighbours():
    x, y = np.arange(7.0), np.array([1, 3, 2, 4, 7, 6, 8.0])  # pools (3, 2) and (7, 6)
    np.testing.assert_allclose(curves.isotonic(x, y), [[0, 1], [1.5, 2.5], [3, 4], [4.5, 6.5], [6, 8]])


@pytest.mark.parametrize("curve", [curves.line, curves.logistic, curves.isotonic])
@pytest.mark.parametrize("truth", [bend, np.sqrt, lambda x: -x, np.ones_like], ids=["bend", "root", "falls", "flat"])
def test_every_curve_keeps_the_order(curve, truth):
    knots = curve(SCORES, rated(truth))
    assert (np.diff(knots, axis=0) > 0).all()
    mapped = broken_line(np.linspace(0, 1, 1000), knots)
    assert (np.diff(mapped) > 0).all()


@pytest.mark.parametrize(("truth", "kind"), [(lambda x: 9 * x, "line"), (lambda x: 400 * (x - 0.5) ** 3, "isotonic")])
def test_the_curve_that_predicts_best_is_taken(truth, kind):
    assert curves.fit(SCORES, rated(truth, 0.1), FOLDS)[1] == kind


def test_one_score_for_all_images_gives_the_mean():
    knots = curves.line(np.full(30, 0.5), np.arange(30.0))
    np.testing.assert_allclose(broken_line(np.array([0.5]), knots), 14.5)
