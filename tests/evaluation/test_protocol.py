"""Protocols: what is measured on which images, whatever their order."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from qualiclip_jax.degradations.catalog import GROUPS
from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import literature, protocol


@pytest.fixture(scope="module")
def rated():
    """240 images of 12 references, three distortions and the originals, an official split."""
    generator = np.random.default_rng(0)
    n = 240
    opinions = generator.uniform(1, 5, n)
    return {
        "ids": [f"{k:03d}.png" for k in generator.permutation(n)],
        "opinions": opinions,
        "scores": 1 / (1 + np.exp(3 - opinions)) + generator.normal(0, 0.1, n),
        "reference": [f"r{k % 12}" for k in range(n)],
        "distortion": [("gaussian_blur", "jpeg", "contrast_change", "")[k % 4] for k in range(n)],
        "split": [("train", "validation", "test")[k % 3] for k in range(n)],
    }


@pytest.fixture(scope="module")
def judgement(rated):
    return protocol.judge(**rated, resamples=100)


def test_whole_set_official_split_and_distortions(rated, judgement):
    scores, opinions = rated["scores"], rated["opinions"]
    assert judgement.whole.images == 240
    assert judgement.whole.srcc == pytest.approx(stats.spearmanr(scores, opinions).statistic, abs=1e-12)
    assert judgement.whole.srcc_interval[0] < judgement.whole.srcc < judgement.whole.srcc_interval[1]
    test = np.array(rated["split"]) == "test"
    assert judgement.official.images == 80
    assert judgement.official.krcc == pytest.approx(stats.kendalltau(scores[test], opinions[test]).statistic, abs=1e-12)
    assert set(judgement.distortions) == {"gaussian_blur", "jpeg", "contrast_change"}
    jpeg = np.array(rated["distortion"]) == "jpeg"
    expected = stats.pearsonr(scores[jpeg], opinions[jpeg]).statistic
    assert judgement.distortions["jpeg"].plcc == pytest.approx(expected, abs=1e-12)
    assert set(judgement.groups) == {"blur", "compression", "sharpness_contrast"}


def test_mapping_straightens_the_relation(judgement):
    for parameters in (4, 5):
        assert judgement.whole.mapped[parameters].plcc > judgement.whole.plcc
    assert judgement.whole.failures == ()


def test_order_changes_no_digit(rated, judgement):
    order = np.random.default_rng(1).permutation(240)
    shuffled = {name: np.asarray(column, object)[order] for name, column in rated.items()}
    assert dataclasses.asdict(protocol.judge(**shuffled, resamples=100)) == dataclasses.asdict(judgement)


def test_medians_of_splits_by_hand():
    """Four images a reference, five references: a test split of 0.2 is one reference."""
    reference = np.repeat(["a", "b", "c", "d", "e"], 5)
    opinions = np.tile([1.0, 2.0, 3.0, 4.0, 5.0], 5)
    swapped = ([1, 2, 3, 4, 5], [2, 1, 3, 4, 5], [2, 1, 4, 3, 5], [3, 2, 1, 4, 5], [5, 4, 3, 2, 1])
    scores = np.concatenate(swapped).astype(float)
    splits = protocol.random_splits(scores, opinions, reference, count=25, share=0.2)
    possible = [stats.spearmanr(row, [1, 2, 3, 4, 5]).statistic for row in swapped]
    assert np.abs(np.array(possible) - splits.medians["srcc"]).min() < 1e-12  # odd count: the median is one of them
    assert splits.by_reference
    whole = protocol.random_splits(scores, opinions, None, count=5, share=1.0)
    assert whole.medians["srcc"] == pytest.approx(stats.spearmanr(scores, opinions).statistic, abs=1e-12)
    assert whole.spreads["srcc"] == pytest.approx(0, abs=1e-12)


def test_images_without_a_reference_are_their_own():
    generator = np.random.default_rng(2)
    scores, opinions = generator.normal(size=(2, 60))
    alone = protocol.random_splits(scores, opinions, [""] * 60, count=3, share=0.5)
    assert alone.medians["srcc"] is not None


def test_a_split_without_an_answer_is_left_out_of_the_median():
    reference = np.repeat(["flat", "good"], 6)
    scores = np.concatenate([np.ones(6), np.arange(6.0)])
    opinions = np.tile(np.arange(6.0), 2)
    splits = protocol.random_splits(scores, opinions, reference, count=20, share=0.5)
    assert splits.medians["srcc"] == pytest.approx(1)
    assert protocol.random_splits(np.ones(12), opinions, reference, count=3, share=0.5).medians["srcc"] is None


def test_what_is_too_small_or_undefined_is_left_out():
    scores, opinions = np.arange(8.0), np.arange(8.0) ** 2
    judged = protocol.judge(
        [f"{k}" for k in range(8)], scores, opinions, distortion=["jpeg"] * 2 + ["odd"] * 6, resamples=0
    )
    assert judged.splits is None  # test splits of two images
    assert judged.distortions["jpeg"] is None
    assert judged.groups == {"compression": None, "other": judged.distortions["odd"]}
    assert judged.whole.srcc_interval is None


def test_one_reference_is_no_split_and_few_have_their_own_share():
    scores, opinions = np.random.default_rng(4).normal(size=(2, 20))
    assert protocol.random_splits(scores, opinions, ["r"] * 20) is None
    assert protocol.random_splits(scores, opinions, ["r", "s"] * 10).share == 0.5


def test_weighted_mean():
    small = protocol.judge([f"{k}" for k in range(10)], np.arange(10.0), np.arange(10.0), resamples=0, splits=0)
    large = protocol.judge([f"{k}" for k in range(30)], np.arange(30.0), -np.arange(30.0), resamples=0, splits=0)
    assert protocol.weighted_mean({"a": small, "b": large})["srcc"] == pytest.approx((10 * 1 + 30 * -1) / 40)
    with pytest.raises(UserError, match="no sets"):
        protocol.weighted_mean({})


def test_constant_scores_are_an_error():
    with pytest.raises(UserError, match="their correlation is undefined"):
        protocol.judge(["a", "b", "c", "d"], np.ones(4), np.arange(4.0))


def test_groups_name_every_known_distortion():
    from qualiclip_jax.data.builders import artificial

    names = {*artificial.KADID10K_DISTORTIONS, *artificial.TID2013_DISTORTIONS}
    names |= {name for name, _ in artificial.LIVE_FOLDERS.values()} | {
        n for _, n in artificial.CSIQ_DISTORTIONS.values()
    }
    assert sorted(names - set(protocol.GROUP_OF)) == []
    assert set(protocol.GROUP_OF.values()) == set(GROUPS)


def test_published_numbers_stand_only_beside_the_same():
    found = literature.comparable("koniq10k", protocol.OFFICIAL_TEST, 512)
    assert {entry.metric: entry.srcc for entry in found} == {
        "BRISQUE": 0.2300,
        "NIQE": 0.3769,
        "IL-NIQE": 0.5510,
        "CLIP-IQA": 0.6572,
    }
    assert literature.comparable("koniq10k", protocol.OFFICIAL_TEST, 1024) == []  # the same photos at another size
    assert literature.comparable("koniq10k", protocol.WHOLE, 512) == []
    assert all(entry.protocol is None for entry in literature.UNCHECKED)
    assert all(entry.source for entry in literature.TABLE + literature.UNCHECKED)
