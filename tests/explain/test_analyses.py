"""The analyses of the paper: pairs, intervals, pages."""

import csv

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from qualiclip_jax import cli, evaluate
from qualiclip_jax.degradations.catalog import TYPES
from qualiclip_jax.evaluation.synthetic import SyntheticResult
from qualiclip_jax.explain import analyses, figures, gmad

RNG = np.random.default_rng(0)


def test_pairs_are_equal_to_one_and_different_to_the_other():
    defender = RNG.permutation(200) / 10.0
    attacker = np.zeros(200)
    order = np.argsort(defender)
    attacker[order[100]], attacker[order[101]] = 5, -5  # in the middle
    attacker[order[3]], attacker[order[198]] = 50, -50  # not equal to the defender
    (low, middle, high) = gmad.pairs(defender, attacker + RNG.normal(0, 1e-6, 200), levels=3)
    assert {middle.better, middle.worse} == {order[100], order[101]}
    assert attacker[middle.better] > attacker[middle.worse]
    for pair in (low, middle, high):
        assert pair.defender_gap <= gmad.WINDOW + 0.01
    assert (low.level, high.level) == (1 / 6, 5 / 6)
    chosen = [image for pair in gmad.pairs(np.ones(12), RNG.normal(size=12)) for image in (pair.better, pair.worse)]
    assert len(chosen) == len(set(chosen))


def test_intervals_are_of_photos_not_of_crops():
    photos = RNG.normal(size=(400, 1, 1, 6))
    crops = np.broadcast_to(photos, (400, 2, 1, 6)).reshape(800, 1, 6)  # both crops alike: no more is known
    mean, half = figures.intervals(SyntheticResult(("x",) * 800, ("jpeg",), crops, 224, 0))
    low, high = stats.norm.interval(0.95, photos[:, 0].mean(0), stats.sem(photos[:, 0], axis=0))
    np.testing.assert_allclose(mean - half, low, atol=1e-4)
    np.testing.assert_allclose(mean + half, high, atol=1e-4)


@pytest.mark.parametrize("what", ["intensity", "embedding"])
def test_the_types_that_are_drawn_by_default_exist(what):
    assert set(analyses._parse([what]).types.split(",")) <= set(TYPES)


@pytest.mark.parametrize("kind", ["intensity", "embedding"])
def test_figures_have_titles_on_every_axis(kind):
    if kind == "intensity":
        result = SyntheticResult(("a", "b") * 2, ("jpeg", "darken"), RNG.random((4, 2, 6)), 224, 0)
        figure = figures.intensity_figure({"one": result, "two": result})
    else:
        kinds = ["pristine", *["noise"] * 5, *["blur"] * 4]
        figure = figures.embedding_figure(RNG.random((10, 2)), kinds, np.arange(10) % 6, "t-SNE")
    axes = [axis for axis in figure.axes if axis.get_visible() and axis.get_label() != "<colorbar>"]
    assert all(axis.get_xlabel() for axis in axes)
    assert axes[0].get_ylabel()


def test_gmad_of_two_tables_of_scores(tmp_path, capsys):
    for k in range(12):
        Image.fromarray(RNG.integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / f"{k}.png")
    for name in ("a", "b", "mos"):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            column = "mos" if name == "mos" else "score"
            csv.writer(file).writerows([("image", column), *((f"{k}.png", RNG.random()) for k in range(12))])
    command = ["gmad", "--checkpoint", f"{tmp_path}/a.csv,{tmp_path}/b.csv", "--dataset", f"csv:{tmp_path}/mos.csv"]
    for _ in range(2):  # an earlier page of its own is replaced
        assert cli.run(evaluate.main, [*command, "--out", f"{tmp_path}/out", "--levels", "2"]) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "gmad.csv").read_text().splitlines()))
    assert [(row["defender"], row["attacker"]) for row in rows] == [("a", "b")] * 2 + [("b", "a")] * 2
    page = (tmp_path / "out" / "gmad.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    (tmp_path / "gmad.csv").write_text("mine")
    assert cli.run(evaluate.main, [*command, "--out", str(tmp_path)]) == 1
    assert "gmad.csv is not of this analysis" in capsys.readouterr().err
    assert (tmp_path / "gmad.csv").read_text() == "mine"
    assert cli.run(evaluate.main, ["gmad", "--checkpoint", "tiny", "--dataset", "x"]) == 1
    assert "gmad compares two models" in capsys.readouterr().err
