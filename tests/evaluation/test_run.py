"""Judging from Python, with tables of scores in place of models."""

import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from qualiclip_jax.data import rated
from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import report, results
from qualiclip_jax.evaluation.contestants import ScoresTable
from qualiclip_jax.evaluation.run import evaluate

N = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Twelve images, a set of ratings of them, and two tables of scores."""
    place = tmp_path_factory.mktemp("run")
    for index in range(N):
        Image.new("RGB", (8, 8)).save(place / f"{index}.png")
    generator = np.random.default_rng(0)
    for name, column in (("set", "mos"), ("a", "score"), ("b", "score")):
        rows = "".join(f"{index}.png,{value}\n" for index, value in enumerate(generator.normal(size=N) + np.arange(N)))
        (place / f"{name}.csv").write_text(f"image,{column}\n{rows}")
    return place


def column(path, name):
    return np.array([float(row[name]) for row in np.genfromtxt(path, delimiter=",", names=True, encoding="utf-8")])


def test_figures_are_those_of_scipy(place):
    mos, a, b = column(place / "set.csv", "mos"), column(place / "a.csv", "score"), column(place / "b.csv", "score")
    found = evaluate(str(place / "a.csv"), [f"csv:{place}/set.csv"], baseline=place / "b.csv", resamples=100)
    (entry,) = found.sets
    assert (found.model["name"], found.baseline["name"], entry.slug) == ("a", "b", "set")
    assert entry.judgement.whole.srcc == pytest.approx(stats.spearmanr(a, mos).statistic, abs=1e-12)
    assert entry.baseline.whole.plcc == pytest.approx(stats.pearsonr(b, mos).statistic, abs=1e-12)
    difference = stats.spearmanr(a, mos).statistic - stats.spearmanr(b, mos).statistic
    assert entry.comparisons[0].difference == pytest.approx(difference, abs=1e-12)


def test_a_set_may_be_loaded_and_lower_may_be_better(place):
    mos, a = column(place / "set.csv", "mos"), column(place / "a.csv", "score")
    ratings = rated.load(f"csv:{place}/set.csv")
    found = evaluate(ScoresTable(place / "a.csv", True), [ratings, ratings], baseline=None, resamples=0, splits=0)
    assert [entry.slug for entry in found.sets] == ["set", "set-2"]
    assert found.sets[0].judgement.whole.srcc == pytest.approx(-stats.spearmanr(a, mos).statistic, abs=1e-12)
    assert (found.baseline, found.note) == (None, "")


def test_a_table_is_judged_though_an_image_is_damaged(place, tmp_path):
    for index in range(N):
        shutil.copy(place / f"{index}.png", tmp_path)
    (tmp_path / "0.png").write_bytes(b"no image")
    found = evaluate(place / "a.csv", [f"csv:{place}/set.csv@{tmp_path}"], baseline=None, resamples=0, splits=0)
    report.write(found, tmp_path)
    assert "0.png" in (tmp_path / "report.html").read_text()


def test_a_table_cannot_take_the_synthetic_benchmark(place):
    with pytest.raises(UserError, match=r"a\.csv: a table has no scores of degraded photos"):
        evaluate(place / "a.csv")


@pytest.mark.parametrize(
    ("name", "labels", "remark"),
    [
        ("split", ["test"] * 4 + ["train"] * 8, None),
        ("split", ["Test"] * 3 + ["train"] * 9, "3 images are marked as test: too few for the figures of an official"),
        ("split", ["train"] * 12, "no images are marked as test"),
        ("split", ["0", "1"] * 6, "column split: not known as train, validation or test, and left aside: 0, 1"),
        ("reference", ["r"] * 12, "all images have the same reference: there are no random test splits"),
        ("reference", ["r", "s"] * 6, None),
        ("distortion", ["Gaussian Blur", "JPEG"] * 6, None),
        ("distortion", ["jpeg", "rain", "fog"] * 4, "distortions that belong to no group of ours: fog, rain"),
        ("distorton", ["jpeg", "rain", "fog"] * 4, "columns not used: distorton (is distortion meant?)"),
        ("level", ["1", "2"] * 6, "column level: no figure of an evaluation depends on it"),
    ],
)
def test_labels_are_used_or_reported(place, tmp_path, name, labels, remark):
    lines = (place / "set.csv").read_text().splitlines()
    text = "\n".join([f"{lines[0]},{name}", *(f"{line},{label}" for line, label in zip(lines[1:], labels))])
    (tmp_path / "my.csv").write_text(text)
    found = evaluate(place / "a.csv", [f"csv:{tmp_path}/my.csv@{place}"], baseline=None, resamples=0, splits=0)
    said = results.remarks(found.sets[0])[:1]
    assert said == [] if remark is None else said[0].startswith(remark)
    judgement = found.sets[0].judgement
    if remark is None and name == "split":
        assert judgement.official.images == 4
    if remark is None and name == "distortion":
        assert set(judgement.groups) == {"blur", "compression"}


def test_samples_of_the_page(place, monkeypatch):
    """The two samples of docs/evaluation.md that need no model run as they are."""
    page = (Path(__file__).parents[2] / "docs/evaluation.md").read_text().partition("## From Python")[2]
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", page, re.MULTILINE)
    samples = [textwrap.dedent(block) for block in blocks if "import" in block]
    monkeypatch.chdir(place)
    for name, copy in (("set", "ratings"), ("a", "niqe"), ("b", "scores")):
        shutil.copy(f"{name}.csv", f"{copy}.csv")
    mos, a, b = column(place / "set.csv", "mos"), column(place / "a.csv", "score"), column(place / "b.csv", "score")
    names = {"mos": mos, "scores": a, "scores_of_another": b}
    for sample in samples[:2]:
        exec(sample, names)
    assert names["found"].sets[0].judgement.whole.srcc == pytest.approx(-stats.spearmanr(a, mos).statistic)
    assert (place / "report.html").exists()
