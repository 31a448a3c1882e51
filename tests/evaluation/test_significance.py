"""The two tests of "A beats B": silent where there is nothing, loud where there is something."""

import numpy as np
import pytest
from scipy import stats

from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation.significance import compare, steiger


def models(generator, n, noise_a, noise_b):
    y = generator.normal(size=n)
    shared = generator.normal(size=n)  # both models err together: the correlations are dependent
    a, b = (y + noise * (0.7 * shared + 0.7 * generator.normal(size=n)) for noise in (noise_a, noise_b))
    return a, b, y


def test_equal_models_are_rarely_told_apart():
    generator = np.random.default_rng(0)
    p_steiger, p_bootstrap = [], []
    for _ in range(300):
        a, b, y = models(generator, 100, 1.0, 1.0)
        outcome = compare(a, b, y, statistic="plcc", resamples=200)
        p_steiger.append(outcome.p_steiger)
        p_bootstrap.append(outcome.p_bootstrap)
    assert stats.kstest(p_steiger, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_bootstrap) < 0.05) < 0.11


@pytest.mark.parametrize("statistic", ["srcc", "plcc", "krcc"])
def test_a_better_model_is_found(statistic):
    a, b, y = models(np.random.default_rng(1), 400, 0.5, 1.0)
    outcome = compare(a, b, y, statistic=statistic, resamples=200)
    assert outcome.difference > 0.05
    assert outcome.interval[0] > 0
    assert outcome.p_bootstrap < 0.02
    reverse = compare(b, a, y, statistic=statistic, resamples=200)
    assert reverse.difference == -outcome.difference
    if statistic == "krcc":
        assert outcome.p_steiger is None
    else:
        assert outcome.p_steiger < 1e-6
        assert outcome.z_steiger > 0
        assert reverse.z_steiger == pytest.approx(-outcome.z_steiger)


def test_steiger_needs_less_when_the_models_agree():
    _, independent = steiger(0.6, 0.5, 0.1, 200)
    _, alike = steiger(0.6, 0.5, 0.95, 200)
    assert alike < 0.001 < independent
    # two independent correlations: the textbook test on Fisher's z, but for the covariance through the shared variable
    z, _ = steiger(0.01, -0.01, 0.0, 103)
    assert z == pytest.approx((np.arctanh(0.01) - np.arctanh(-0.01)) * 10 / 2**0.5)


def test_the_same_model_twice_is_no_difference():
    x = np.arange(10.0)
    outcome = compare(x, x, x**2)
    assert (outcome.difference, outcome.p_bootstrap, outcome.p_steiger) == (0.0, 1.0, 1.0)


def test_order_changes_no_digit():
    a, b, y = models(np.random.default_rng(2), 50, 0.5, 1.0)
    order = np.random.default_rng(3).permutation(50)
    assert compare(a, b, y, resamples=100) == compare(a[order], b[order], y[order], resamples=100)


def test_a_constant_model_is_a_clear_error():
    with pytest.raises(UserError, match="all 5 predictions of B equal 0.5"):
        compare(np.arange(5.0), np.full(5, 0.5), np.arange(5.0))
    with pytest.raises(UserError, match="3 images are too few for Steiger"):
        steiger(0.5, 0.4, 0.3, 3)


def test_three_images_are_compared_without_steiger():
    outcome = compare([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [1.0, 2.0, 4.0], resamples=100)
    assert outcome.difference == pytest.approx(0.5)
    assert outcome.z_steiger is None
    assert outcome.p_steiger is None
