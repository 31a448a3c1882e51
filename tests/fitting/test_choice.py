"""Which rung is taken, what it is told it will be off by, and what cannot be fitted."""

import math

import numpy as np
import pytest
from scipy import stats

from qualiclip_jax.errors import UserError
from qualiclip_jax.fitting import choice, rungs
from qualiclip_jax.fitting.features import Features


def problem(count, seed=0, hidden=0.0):
    """Features of images, and ratings that follow the score and, by `hidden`, one of the pooled features."""
    rng = np.random.default_rng(seed)
    judgement = rng.normal(size=count)
    pooled = rng.normal(size=(count, 30)).astype(np.float32)
    scores = 1 / (1 + np.exp(-0.3 * judgement))
    features = Features(scores, np.stack([0.3 * judgement, rng.normal(size=count)], 1), pooled, scored=1)
    return features, 3 + judgement + hidden * pooled[:, 4] + 0.5 * rng.normal(size=count)


def alone(count):
    return np.arange(count)


@pytest.mark.parametrize(("hidden", "taken"), [(0.0, "scale"), (1.5, "head")])
def test_auto_takes_the_head_where_features_know_more_than_the_score(hidden, taken):
    chosen = choice.choose(*problem(120, seed=3, hidden=hidden), alone(120))
    assert chosen.name == taken
    assert [tried.name for tried in chosen.table] == ["scale", "head"]


def test_the_simplest_within_a_standard_error_of_the_difference():
    """Squared errors of 100 images differ by d, and by chance with deviation 1: a standard error of 0.1."""
    chance = np.random.default_rng(0).permutation(np.repeat([-1.0, 1.0], 50))
    worse_by = lambda d: [np.sqrt(9 + d + chance), np.full(100, 3.0)]
    assert choice.simplest(worse_by(0.099), alone(100)) == 0
    assert choice.simplest(worse_by(0.101), alone(100)) == 1
    groups = np.where(chance > 0, 0, 1) * 25 + np.arange(100) % 25  # pairs of equal errors
    assert choice.simplest(worse_by(0.101), groups) == 0
    assert choice.simplest(worse_by(-1), alone(100)) == 0


def test_a_rung_that_needs_more_ratings_is_not_tried():
    ladder = rungs.RUNGS | {"head": rungs.Rung(31, rungs.head)}
    chosen = choice.choose(*problem(30), alone(30), ladder=ladder)
    assert [tried.name for tried in chosen.table] == ["scale"]


@pytest.mark.parametrize(("method", "draws"), [("scale", 2), ("head", 6)])
def test_intervals_cover_nine_in_ten_of_new_ratings(method, draws):
    new, ratings = problem(2000, seed=99, hidden=0.5)
    shares = []
    for seed in range(draws):
        chosen = choice.choose(*problem(60, seed, hidden=0.5), alone(60), method=method)
        assert chosen.rating.level == 0.9
        off = np.abs(rungs.predict(chosen.rating, new) - ratings)
        shares.append(np.mean(off <= chosen.rating.half_width))
    spread = math.sqrt(0.9 * 0.1 / 61)  # of the coverage, given one set of residuals (Vovk, 2012)
    assert abs(np.mean(shares) - 0.9) < 3 * spread / math.sqrt(draws)


def test_half_width_is_the_quantile_that_the_theorem_names():
    residuals = np.random.default_rng(0).permutation(np.arange(1, 100)) * np.tile([1, -1, 1], 33)
    assert choice.half_width(residuals, 0.9) == 90  # of the absolute values 1 to 99, the ceil(100 * 0.9)-th


def test_a_scale_changes_no_rank():
    features, mos = problem(200)
    chosen = choice.choose(features, mos, alone(200), method="scale")
    new, _ = problem(500, seed=5)
    assert stats.spearmanr(new.scores, rungs.predict(chosen.rating, new)).statistic == pytest.approx(1, abs=1e-12)
    assert chosen.table[0].srcc == pytest.approx(stats.spearmanr(features.scores, mos).statistic, abs=1e-12)


def test_no_group_is_in_two_folds_and_folds_are_of_equal_size():
    groups = np.random.default_rng(0).integers(0, 30, 300)
    folds = rungs.make_folds(groups, 10, seed=1)
    assert all(len(set(folds[groups == group])) == 1 for group in range(30))
    assert np.ptp(np.bincount(folds)) <= 6
    assert set(rungs.make_folds(np.arange(4), 10, 0)) == {0, 1, 2, 3}


def test_images_of_one_scene_teach_nothing_about_their_copies():
    """Ratings that belong to scenes alone: with copies on both sides, a head would seem to know them."""
    rng = np.random.default_rng(7)
    features, _ = problem(30)
    rows = np.repeat(np.arange(30), 4)
    mos = rng.normal(size=30)[rows]
    copies = features.of(rows)
    leaking, honest = (choice.choose(copies, mos, groups, method="head").table[0].rmse for groups in (alone(120), rows))
    assert leaking < 0.8 * mos.std()
    assert honest > 0.95 * mos.std()


@pytest.mark.parametrize(
    ("count", "change", "groups", "message"),
    [
        (12, lambda mos: mos, alone, "12 rated images are too few, 20 or more"),
        (30, np.zeros_like, alone, "all 30 ratings equal 0"),
        (60, lambda mos: -mos, alone, r"fall where the model's scores rise \(SRCC -0\.\d+, 60 images\).*dmos"),
        (60, lambda mos: mos, lambda count: np.arange(count) % 3, "of 3 groups .*, 5 or more"),
    ],
    ids=["few", "constant", "contradictory", "groups"],
)
def test_what_cannot_be_fitted_is_told_in_a_line(count, change, groups, message):
    features, mos = problem(count)
    with pytest.raises(UserError, match=message):
        choice.choose(features, change(mos), groups(count))
