"""Rated sets during training: what cannot be measured is said before it, or is NaN, never the end of a run."""

import types

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax.data import rated
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError
from qualiclip_jax.training import evals


@pytest.fixture
def place(tmp_path):
    """Five grey images, rated by their brightness."""
    rows = [f"{k}.png,{k}" for k in range(5)]
    (tmp_path / "set.csv").write_text("\n".join(["image,mos", *rows]))
    for k in range(5):
        Image.new("RGB", (40, 40), (50 * k,) * 3).save(tmp_path / f"{k}.png")
    return tmp_path


def scored_by(function):
    run = lambda windows, fetch, done: ((i, function(fetch(i))) for i in reversed(range(len(*windows))))
    return types.SimpleNamespace(run=run, score_of=np.mean, rating_of=lambda outputs: None)


def test_srcc_of_a_rated_set(place):
    checked = evals._checked(rated.load(f"csv:{place}/set.csv"))
    assert evals._srcc(scored_by(lambda image: -image.mean(keepdims=True)), *checked) == pytest.approx(-1)
    assert np.isnan(evals._srcc(scored_by(lambda image: np.ones(1)), *checked))


def test_images_and_opinions_are_checked_before_training(place):
    (place / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png: not an image"):
        evals._checked(rated.load(f"csv:{place}/set.csv"))
    (place / "set.csv").write_text("image,mos\n0.png,1\n1.png,1\n2.png,1\n")
    with pytest.raises(UserError, match="all 3 opinions of csv:.* equal 1"):
        evals._checked(rated.load(f"csv:{place}/set.csv"))


def test_an_image_that_cannot_be_scored_is_named(place):
    checked = evals._checked(rated.load(f"csv:{place}/set.csv"))
    with pytest.raises(UserError, match=r"set\.csv: \d\.png cannot be scored: truncated"):
        evals._srcc(scored_by(lambda image: ImageError("image", "truncated")), *checked)


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("synthetic", "synthetic"),
        ("srcc/csv:/photos/ratings.csv", "srcc/csv:/photos/ratings.csv"),
        ("ratings", "srcc/csv:/photos/ratings.csv"),
        ("srcc/ratings", "srcc/csv:/photos/ratings.csv"),
        ("koniq10k", "srcc/koniq10k"),
    ],
)
def test_the_best_metric_is_named_by_any_part_that_tells_it_apart(wanted, meant):
    names = ["synthetic", "srcc/koniq10k", "srcc/csv:/photos/ratings.csv"]
    assert evals.best_name(wanted, names) == meant
    with pytest.raises(UserError, match="config.eval.best is 'srcc', which means several: take one of srcc/koniq10k, "):
        evals.best_name("srcc", names)
    with pytest.raises(UserError, match="config.eval.best is '', which is not measured: take one of synthetic, "):
        evals.best_name("", names)
