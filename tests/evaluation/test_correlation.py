"""Correlations against their definitions and scipy; logistic fits against known curves; intervals by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import correlation
from qualiclip_jax.evaluation.correlation import bootstrap_interval, fit_logistic, krcc, plcc, rmse, srcc

# A small pool of values makes ties common; the sixteenths keep constant-by-rounding inputs out.
VALUES = st.one_of(st.integers(-5, 5).map(float), st.integers(-1600, 1600).map(lambda k: k / 16))


@st.composite
def pairs(draw):
    n = draw(st.integers(3, 40))
    x, y = (draw(st.lists(VALUES, min_size=n, max_size=n).filter(lambda v: len(set(v)) > 1)) for _ in range(2))
    return np.array(x), np.array(y)


def tau_b(x, y):
    """Kendall's definition, over all pairs."""
    i, j = np.triu_indices(len(x), 1)
    a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
    return np.sum(a * b) / np.sqrt(np.sum(a != 0) * np.sum(b != 0))


@settings(max_examples=150, deadline=None)
@given(pairs())
def test_equal_to_scipy_and_to_the_definitions(xy):
    x, y = xy
    close = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(srcc(x, y), stats.spearmanr(x, y).statistic, **close)
    np.testing.assert_allclose(plcc(x, y), stats.pearsonr(x, y).statistic, **close)
    np.testing.assert_allclose(krcc(x, y), stats.kendalltau(x, y).statistic, **close)
    np.testing.assert_allclose(krcc(x, y), tau_b(x, y), **close)
    np.testing.assert_allclose(srcc(x, y), np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1], **close)
    np.testing.assert_allclose(rmse(x, y), np.linalg.norm(x - y) / len(x) ** 0.5, rtol=1e-12, atol=0)


@settings(max_examples=60, deadline=None)
@given(pairs(), st.randoms(use_true_random=False))
def test_order_changes_no_digit(xy, random):
    x, y = xy
    order = random.sample(range(len(x)), len(x))
    for statistic in correlation.STATISTICS.values():
        assert statistic(x, y) == statistic(x[order], y[order])
    assert bootstrap_interval("plcc", np.arange(9.0), np.arange(9.0) ** 2, resamples=50) == bootstrap_interval(
        "plcc", np.arange(9.0)[::-1], np.arange(9.0)[::-1] ** 2, resamples=50
    )


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_rows_agree_with_the_single_statistics(xy):
    x, y = xy
    for name, statistic in correlation.STATISTICS.items():
        np.testing.assert_allclose(correlation.rows(name, x[None], y[None]), [statistic(x, y)], atol=1e-12)


def test_rows_mark_constant_resamples():
    constant, varied = np.ones((1, 4)), np.arange(4.0)[None]
    for name in ("srcc", "plcc", "krcc"):
        assert np.isnan(correlation.rows(name, constant, varied)).all()


@pytest.mark.parametrize("statistic", [srcc, plcc, krcc, fit_logistic])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "all 3 predictions equal 1: their correlation is undefined"),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], "all 3 opinions equal 2"),
        ([1.0, np.nan, 3.0], [1.0, 2.0, 3.0], "1 of 3 predictions are not finite, the first at position 1"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, np.inf], "1 of 3 opinions are not finite"),
        ([1.0, 2.0], [1.0, 2.0], "2 images are too few"),
        ([1.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0], "3 predictions for 4 opinions"),
        ([[1.0], [2.0], [4.0]], [1.0, 2.0, 3.0], "one number per image"),
    ],
)
def test_no_answer_is_a_clear_error(statistic, x, y, message):
    with pytest.raises(UserError, match=message) as error:
        statistic(x, y)
    assert "\n" not in str(error.value)


CURVES = [
    (1.0, 0.0, 0.5, 0.1),
    (4.7, 1.2, 0.45, 0.06),
    (20.0, 80.0, 0.6, 0.2),  # falling: the opinions run the other way
    (100.0, 0.0, 300.0, 80.0),  # predictions far from [0, 1]
]


@pytest.mark.parametrize("curve", CURVES)
def test_four_parameters_recover_a_known_curve(curve):
    b1, b2, b3, b4 = curve
    x = np.random.default_rng(0).uniform(b3 - 5 * b4, b3 + 5 * b4, 200)
    fit = fit_logistic(x, b2 + (b1 - b2) / (1 + np.exp(-(x - b3) / b4)), 4)
    np.testing.assert_allclose(fit.parameters, curve, rtol=1e-6, atol=1e-6 * abs(b1 - b2))


@pytest.mark.parametrize(
    "curve", [(2.0, 12.0, 0.5, 0.7, 1.0), (-30.0, 8.0, 0.4, -20.0, 60.0), (3.0, 0.05, 250.0, 0.004, 1)]
)
def test_five_parameters_recover_a_known_curve(curve):
    b1, b2, b3, b4, b5 = curve
    x = np.random.default_rng(1).uniform(b3 - 5 / b2, b3 + 5 / b2, 200)
    y = b1 * (0.5 - 1 / (1 + np.exp(b2 * (x - b3)))) + b4 * x + b5
    fit = fit_logistic(x, y, 5)
    np.testing.assert_allclose(fit(x), y, atol=1e-6 * np.ptp(y))
    np.testing.assert_allclose(fit.parameters, curve, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("parameters", [4, 5])
def test_a_noisy_fit_is_a_least_squares_fit(parameters):
    generator = np.random.default_rng(2)
    x = generator.uniform(0, 1, 300)
    y = 1 / (1 + np.exp(-(x - 0.5) / 0.1)) + generator.normal(0, 0.1, 300)
    fit = fit_logistic(x, y, parameters)
    cost = rmse(fit(x), y)
    for index in range(parameters):  # no neighbour is better
        for factor in (0.99, 1.01):
            moved = list(fit.parameters)
            moved[index] *= factor
            assert rmse(type(fit)(tuple(moved))(x), y) >= cost - 1e-12
    assert cost < 0.11
    assert plcc(fit(x), y) > plcc(x, y)


@pytest.mark.parametrize("parameters", [4, 5])
def test_a_straight_line_is_fitted(parameters):
    x = np.linspace(0.2, 0.9, 50)
    assert plcc(fit_logistic(x, 3 * x + 1, parameters)(x), 3 * x + 1) > 0.9999


def test_a_failed_fit_is_an_error_not_a_number():
    with pytest.raises(correlation.FitError, match="4 images are too few to fit 4 parameters"):
        fit_logistic([1, 2, 3, 4], [1, 2, 3, 5], 4)
    x = np.tile([0.0, 1.0, 2.0], 4)
    y = np.repeat([0.0, 1.0, 2.0, 3.0], 3)  # every x has the same opinions: the best curve is flat
    with pytest.raises(correlation.FitError, match="flat"):
        fit_logistic(x, y, 4)


@pytest.mark.parametrize("statistic", ["srcc", "plcc"])
def test_intervals_cover_the_truth_about_95_percent_of_the_time(statistic):
    rho, n, trials = 0.8, 80, 300
    truth = rho if statistic == "plcc" else 6 / np.pi * np.arcsin(rho / 2)  # of the bivariate normal
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(trials):
        x, noise = generator.normal(size=(2, n))
        low, high = bootstrap_interval(statistic, x, rho * x + (1 - rho**2) ** 0.5 * noise, resamples=300, seed=trial)
        covered += low <= truth <= high
    assert (
        0.90 <= covered / trials <= 0.985
    )  # 95 % +- 4 standard errors of 300 trials, on the side of the percentile method


def test_bootstrap_of_nearly_constant_predictions_is_an_error():
    with pytest.raises(UserError, match="too few images or resamples for a bootstrap interval"):
        bootstrap_interval("srcc", [1.0, 1.0, 2.0], [1.0, 2.0, 3.0], resamples=20)


def test_numbers_beyond_floating_point_are_an_error_not_a_number():
    with pytest.raises(UserError, match="too large for floating-point"):
        rmse([1e308, -1e308, 1e308], [0.0, 0.0, 0.0])
    for x in ([0, 0, 0, 0, 0, 5e-324], [1e308, -1e308, 1e308, 0, 1, 2]):
        with pytest.raises(correlation.FitError, match="beyond floating-point"):
            fit_logistic(x, range(6))
    with pytest.raises(UserError, match="predictions are not all numbers"):
        srcc(["0.1", "good", "0.3"], [1, 2, 3])
