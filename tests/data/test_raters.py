"""Scores of several raters: biases are found, and careless raters count for less."""

import math

import numpy as np
from PIL import Image

from qualiclip_jax.data import rated, raters


def votes(rng, images=60, people=8, noise=None):
    """Qualities, and one rating of each image by every person, who has a bias and a noise."""
    quality, bias = rng.uniform(1, 5, images), rng.normal(size=people)
    bias -= bias.mean()
    noise = np.zeros(people) if noise is None else noise
    rows = [
        (f"{i}", f"p{k}", quality[i] + bias[k] + noise[k] * rng.normal()) for i in range(images) for k in range(people)
    ]
    return quality, rows


def test_biases_without_noise_are_removed_exactly_even_where_few_rate_an_image():
    rng = np.random.default_rng(0)
    quality, rows = votes(rng)
    for keep in (rows, [row for row in rows if rng.random() < 0.5 or row[1] in "p0p1"]):
        found = raters.opinions(*zip(*keep))
        error = np.array([found[f"{i}"][0] for i in range(60)]) - quality
        np.testing.assert_allclose(error - error.mean(), 0, atol=1e-6)


def test_careless_raters_count_for_less():
    noise = np.array([0.1] * 4 + [2.0] * 4)
    quality, rows = votes(np.random.default_rng(1), noise=noise)
    found = np.array([raters.opinions(*zip(*rows))[f"{i}"][0] for i in range(60)])
    means = np.array([row[2] for row in rows]).reshape(60, 8).mean(1)
    errors = [np.std(values - quality) for values in (found, means)]
    assert errors[0] < 0.15 < 0.3 < errors[1]


def test_deviation_is_that_of_ratings_without_biases():
    assert math.isnan(raters.opinions(["a"], ["x"], [3.0])["a"][1])
    found = raters.opinions(["a", "a", "b", "b"], ["x", "y", "x", "y"], [1, 3, 2, 4])
    np.testing.assert_allclose([found["a"], found["b"]], [(2, 0), (3, 0)], atol=1e-9)


def test_a_csv_with_raters_is_a_set_of_images(tmp_path):
    for name in "ab":
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
    lines = ["image,rater,mos,scene", "a.png,x,1,s", "b.png,x,2,s", "a.png,y,3,s", "b.png,y,4,s"]
    (tmp_path / "r.csv").write_text("\n".join(lines))
    loaded = rated.load(f"csv:{tmp_path / 'r.csv'}")
    assert loaded.ids == ["a.png", "b.png"]
    np.testing.assert_allclose(loaded.mos, [2, 3], atol=1e-9)
    assert loaded.reference == ["s", "s"]
    assert loaded.notes == ("column rater: 4 ratings by 2; scores are means without the biases of raters",)
