"""Several models on the same sets, with tables of scores in place of models."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from qualiclip_jax import cli, evaluate
from qualiclip_jax.data import rated
from qualiclip_jax.evaluation import comparison
from qualiclip_jax.evaluation.run import slugs

N = 40
MOS = np.arange(N) + np.random.default_rng(0).normal(size=N)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Forty images, ratings of them, and tables of scores that agree with them more and less."""
    place = tmp_path_factory.mktemp("comparison")
    generator = np.random.default_rng(1)
    tables = {"bad": 60 * generator.normal(size=N), "good": MOS + generator.normal(size=N), "set": MOS}
    tables |= {f"net-seed{i}": MOS + 9 * generator.normal(size=N) for i in range(2)}
    for name, values in tables.items():
        rows = "".join(f"{index}.png,{value}\n" for index, value in enumerate(values))
        (place / f"{name}.csv").write_text(f"image,{'mos' if name == 'set' else 'score'}\n{rows}")
    for index in range(N):
        Image.new("RGB", (8, 8)).save(place / f"{index}.png")
    return place


def srcc(place, name):
    scores = [float(line.split(",")[1]) for line in (place / f"{name}.csv").read_text().splitlines()[1:]]
    return stats.spearmanr(scores, MOS).statistic


def test_models_by_sets(place, monkeypatch):
    names = ["bad", "good", "net-seed0", "net-seed1"]
    ratings = rated.load(f"csv:{place}/set.csv")
    clive = dataclasses.replace(ratings, name="clive")
    models = [place / f"{name}.csv" for name in names]
    found = list(comparison.evaluate_all(models, [ratings, clive], resamples=100, splits=0))
    head, lines = comparison.table(found)
    cells = {line[0]: line[1:] for line in lines}
    assert head == ["", f"set, whole set ({N})", f"clive, whole set ({N})"]
    assert (
        list(cells) == [*names, "net, 2 seeds", "CLIP-IQA (published)", "QualiCLIP (published)"][:5] + list(cells)[5:]
    )
    for name in names:
        assert cells[name][0].startswith(f"{srcc(place, name):.4f} [")
    assert cells["good"][0].endswith("] +")  # against the first, which is noise
    assert cells["bad"][0].endswith("]")  # the baseline itself
    seeds = [srcc(place, name) for name in names[2:]]
    assert cells["net, 2 seeds"][0] == f"{np.mean(seeds):.4f} ± {np.std(seeds, ddof=1):.4f}"
    assert cells["CLIP-IQA (published)"] == ["", "0.696"]
    assert cells["QualiCLIP (published)"] == ["", "0.725?"]  # by which protocol is not known


def test_the_command_compares(place, tmp_path, capsys):
    models = ",".join(str(place / f"{name}.csv") for name in ("good", "bad"))
    command = ["--checkpoint", models, "--dataset", f"csv:{place}/set.csv", "--out", str(tmp_path)]
    command += ["--resamples", "100"]
    assert cli.run(evaluate.main, command) == 0
    output = capsys.readouterr().out
    assert "Baseline: good. SRCC" in output
    stored = json.loads((tmp_path / "comparison.json").read_text())["comparison"]
    assert [one["model"]["name"] for one in stored] == ["good", "bad"]
    assert stored[1]["sets"][f"csv:{place}/set.csv"]["result"]["whole"]["srcc"] == pytest.approx(srcc(place, "bad"))
    assert "| bad |" in (tmp_path / "comparison.md").read_text()
    assert len(list(tmp_path.glob("*/report.html"))) == 2
    assert cli.run(evaluate.main, [*command, "--baseline", "none"]) == 0
    assert "Baseline:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "kind"),
    [("comparison.json", "a comparison"), ("comparison.md", "a comparison"), ("{}/scores.csv", "an evaluation")],
)
def test_a_file_of_another_kind_is_left_alone(place, tmp_path, capsys, monkeypatch, name, kind):
    file = tmp_path / name.format(slugs([str(place / "bad.csv")])[0])
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    monkeypatch.setattr(comparison, "evaluate", lambda *_, **__: pytest.fail("refused after the work"))
    models = f"{place}/good.csv,{place}/bad.csv"
    command = ["--checkpoint", models, "--dataset", f"csv:{place}/set.csv", "--out", str(tmp_path)]
    assert cli.run(evaluate.main, command) == cli.FAILED
    assert f"{file.name} is not of {kind}" in capsys.readouterr().err
    assert file.read_text() == "mine"
