"""The synthetic benchmark: what the figures mean, and that they depend on nothing but photos, model and seed."""

import numpy as np
import pytest

from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import figures, synthetic
from qualiclip_jax.evaluation.synthetic import TYPES, SyntheticResult


def result_of(scores):
    names = tuple(f"photo {k}" for k in range(len(scores)))
    return SyntheticResult(names, TYPES[: scores.shape[1]], np.asarray(scores, float), 64, 0)


def falling(crops=2, types=24):
    return np.broadcast_to(1 - np.arange(6) / 10, (crops, types, 6))


def test_a_perfect_model_has_minus_one():
    result = result_of(falling())
    assert result.mean == pytest.approx(-1)
    assert set(result.srcc) == set(TYPES)
    assert result.order_within == 1
    assert result.order_across == 1
    assert result_of(1 - falling()).mean == pytest.approx(1)


def test_spearman_by_hand():
    scores = falling(2, 1).copy()
    scores[0, 0, 1:] = (0.9, 0.8, 0.6, 0.7, 0.5)  # one swap of neighbours in five: 1 - 6 * 2 / (5 * 24) = 0.9
    assert result_of(scores).srcc["gaussian_blur"] == pytest.approx((-0.9 - 1) / 2)
    assert result_of(scores).order_within == pytest.approx(1 - 0.1 / 2)


def test_order_across_types_is_not_the_order_within():
    scores = falling(1, 2).copy()
    scores[:, 1] -= 0.25  # the second type is judged worse at every level: right within, wrong across
    result = result_of(scores)
    assert result.order_within == 1
    # first type at level i against second at j > i: always right. The other way: right only if j - i > 2.5: 3 of 10.
    assert result.order_across == pytest.approx((1 + 0.3) / 2)


def test_constant_scores_are_undefined():
    scores = falling(2, 3).copy()
    scores[:, 0] = 0.5
    scores[0, 1] = 0.5
    result = result_of(scores)
    assert np.isnan(result.srcc["gaussian_blur"])
    assert result.srcc["lens_blur"] == pytest.approx(-0.5)  # a crop that shows no order counts as 0
    assert result.mean == pytest.approx((0 - 0.5 - 1) / 3)
    assert "undef." in synthetic.table(result)
    assert result.summary()["types"]["gaussian_blur"]["srcc"] is None
    assert np.isnan(result_of(np.full((1, 2, 6), 0.5)).mean)


def test_table_shows_before_and_after():
    text = synthetic.table(result_of(falling()), before=result_of(1 - falling()))
    lines = text.splitlines()
    assert any(line.split()[:3] == ["jpeg", "1.000", "-1.000"] for line in lines)
    assert sum(line.strip().split(" ")[0] in TYPES for line in lines) == 24
    assert max(map(len, lines)) <= 80


def test_figure_has_a_panel_for_each_group():
    figure = figures.synthetic_figure(result_of(falling()), result_of(1 - falling()), "photos")
    titles = [axis.get_title().splitlines() for axis in figure.axes if axis.get_visible()]
    assert [title[0] for title in titles][:2] == ["blur", "color distortion"]
    assert titles[-1] == ["all types", "SRCC 1.00 before, -1.00 after"]
    assert len(titles) == 8


def sharpness(images):
    """Mean absolute difference of neighbours: falls with blur, rises with noise."""
    images = np.asarray(images)
    return np.abs(np.diff(images, axis=2)).mean(axis=(1, 2, 3))


@pytest.fixture(scope="module")
def photos():
    generator = np.random.default_rng(0)
    smooth = generator.uniform(0, 255, (3, 6, 6, 3)).repeat(10, 1).repeat(10, 2)
    noisy = np.clip(smooth + generator.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    return [(f"photo {k}", image) for k, image in enumerate(noisy)]


KINDS = ("gaussian_blur", "white_noise", "jpeg")


@pytest.fixture(scope="module")
def measured(photos):
    return synthetic.run(sharpness, photos, types=KINDS, crop=40)


def test_run_scores_every_level_of_both_crops(photos, measured):
    assert measured.scores.shape == (6, 3, 6)
    assert measured.srcc["gaussian_blur"] == pytest.approx(-1)
    assert measured.srcc["white_noise"] == pytest.approx(1)
    crops = synthetic.cut(photos[1][1], 40)
    np.testing.assert_allclose(measured.scores[2:4, 0, 0], sharpness(crops / np.float32(255)), rtol=1e-6)


def test_run_depends_on_neither_order_nor_batches_nor_what_is_done(photos, measured):
    shapes = []

    def watched(images):
        shapes.append(images.shape)
        return sharpness(images)

    done = {}
    again = synthetic.run(watched, photos[::-1], types=KINDS, crop=40, batch_size=7, done=done)
    np.testing.assert_array_equal(again.scores.reshape(3, 2, 3, 6)[::-1].reshape(6, 3, 6), measured.scores)
    assert set(shapes) == {(7, 40, 40, 3)}  # one compilation, the tail filled up
    fail = lambda images: pytest.fail("scored again")
    np.testing.assert_array_equal(synthetic.run(fail, photos, types=KINDS, crop=40, done=done).scores, measured.scores)


def test_another_seed_changes_random_types_only(photos, measured):
    other = synthetic.run(sharpness, photos[:1], types=KINDS, crop=40, seed=1)
    np.testing.assert_array_equal(other.scores[:, 0], measured.scores[:2, 0])
    assert (other.scores[:, 1, 1:] != measured.scores[:2, 1, 1:]).all()


def test_bad_input_is_a_clear_error(photos):
    for arguments, message in (
        ({"photos": []}, "no photos"),
        ({"photos": photos, "types": ("fog",)}, "no degradation fog; there are gaussian_blur"),
        ({"photos": photos, "crop": 96}, "crops of 96 px do not fit: .* smallest photo .photo 0, shortest side 60 px"),
        ({"photos": photos, "crop": 16}, "32 px or more"),
    ):
        with pytest.raises(UserError, match=message):
            synthetic.run(sharpness, **arguments)
