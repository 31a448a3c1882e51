"""`qualiclip fit` end to end: a small model, forty images, and what becomes of them."""

import csv
import dataclasses

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax import QualiCLIP, cli, evaluate, fit, score
from qualiclip_jax.data.builders import IMAGE_SETS
from qualiclip_jax.data.prepare import prepare
from qualiclip_jax.evaluation import correlation
from qualiclip_jax.fitting import features
from qualiclip_jax.models import Rating
from tests.data.builders.miniatures import text
from tests.small_models import EFFICIENTNET, RESNET, SIGLIP, VIT, make_model

COUNT = 60
FEATURES_FILE = "features.sqlite"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, and images of noise that are rated by how strong the noise is."""
    place = tmp_path_factory.mktemp("fit")
    make_model(EFFICIENTNET).save(place / "start")
    rng = np.random.default_rng(0)
    rows = ["image,mos"]
    for k in range(COUNT):
        strength = rng.uniform(0, 60)
        pixels = np.clip(rng.normal(128, 1 + strength, (48, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{k}.png")
        rows.append(f"{k}.png,{5 - strength / 15}")
    (place / "my.csv").write_text("\n".join(rows))
    return place


@pytest.fixture(scope="module")
def fitted(place):
    assert run(place, "out", "--method", "head") == cli.DONE
    return place / "out"


def run(place, out, *more):
    arguments = ["--checkpoint", place / "start", "--ratings", f"csv:{place / 'my.csv'}", "--out", place / out, *more]
    return cli.run(fit.main, list(map(str, arguments)))


def test_score_has_the_rating_beside_the_old_score(place, fitted, tmp_path, capsys):
    table = tmp_path / "scores.csv"
    files = [str(place / f"{k}.png") for k in range(COUNT)]
    assert cli.run(score.main, ["--checkpoint", str(fitted), *files, "--output", str(table)]) == cli.DONE
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["path", "score", "mos", "mos_low", "mos_high"]
    before = QualiCLIP.load(place / "start").score_files(files)
    np.testing.assert_allclose([float(row["score"]) for row in rows], before, atol=1e-5)
    mos, low, high = ([float(row[name]) for row in rows] for name in ("mos", "mos_low", "mos_high"))
    with (place / "my.csv").open() as file:
        wanted = [float(row["mos"]) for row in csv.DictReader(file)]
    assert correlation.srcc(mos, wanted) > 0.9
    assert np.mean([a <= w <= b for a, b, w in zip(low, high, wanted)]) >= 0.85
    assert cli.run(score.main, ["--checkpoint", str(fitted), *files, "--output", str(table)]) == cli.DONE  # goes on
    page = tmp_path / "page.html"
    assert cli.run(score.main, ["--checkpoint", str(fitted), *files, "--report", str(page)]) == cli.DONE
    assert f'"MOS {float(rows[0]["mos"]):.3g} (' in page.read_text()
    printed = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["mos"] for row in printed] == [row["mos"] for row in rows]


def test_a_scale_alone_rates_when_it_is_loaded_again(place, tmp_path):
    start = QualiCLIP.load(place / "start")
    dataclasses.replace(start, rating=Rating("scale", np.array([[0, 1], [1, 5]]), 0.5)).save(tmp_path / "scale")
    image = np.asarray(Image.open(place / "0.png"))
    mos = 1 + 4 * start.score(image)
    found = QualiCLIP.load(tmp_path / "scale").rate(image)
    np.testing.assert_allclose(found, np.stack([mos, mos - 0.5, mos + 0.5], axis=-1), atol=1e-4)


def test_evaluate_judges_the_rating(place, fitted, tmp_path, capsys):
    arguments = ["--checkpoint", fitted, "--dataset", f"csv:{place / 'my.csv'}", "--out", tmp_path / "out"]
    assert cli.run(evaluate.main, [*map(str, arguments), "--splits", "0", "--resamples", "0"]) == cli.DONE
    with next((tmp_path / "out").glob("*scores*.csv")).open() as file:
        rows = list(csv.DictReader(file))
    images = [np.asarray(Image.open(place / f"{k}.png")) for k in range(3)]
    rated = QualiCLIP.load(fitted).rate(images)[:, 0]
    found = {row["image"]: float(row["score"]) for row in rows}
    np.testing.assert_allclose([found[f"{k}.png"] for k in range(3)], rated, atol=1e-3)


def test_a_folder_with_a_model_is_refused_and_stays(place, fitted, capsys):
    before = sorted(file.stat().st_mtime_ns for file in fitted.rglob("*"))
    assert run(place, "out", "--method", "head") == cli.FAILED
    assert "holds a model already" in capsys.readouterr().err
    assert sorted(file.stat().st_mtime_ns for file in fitted.rglob("*")) == before


def test_a_run_that_was_cut_goes_on_with_the_same_result(place, fitted, monkeypatch):
    put, puts = features.Arrays.put, []

    def cut(self, key, value):
        if len(puts) == 25:
            raise KeyboardInterrupt
        puts.append(key)
        put(self, key, value)

    monkeypatch.setattr(features.Arrays, "put", cut)
    assert run(place, "again", "--method", "head") == cli.INTERRUPTED
    monkeypatch.setattr(features.Arrays, "put", lambda self, key, value: (puts.append(key), put(self, key, value)))
    assert run(place, "again", "--method", "head") == cli.DONE
    assert len(set(puts)) == COUNT
    models = [QualiCLIP.load(place / out) for out in ("out", "again")]
    assert models[0].fingerprint == models[1].fingerprint


def test_a_model_that_contradicts_the_ratings_is_no_scale(place, fitted, capsys):
    """Its features are kept for another try."""
    images = [f"{k}.png" for k in range(COUNT)]
    scores = QualiCLIP.load(place / "start").score_files([str(place / image) for image in images])
    rows = [f"{image},{5 - 4 * score}" for image, score in zip(images, scores)]
    (place / "against.csv").write_text("\n".join(["image,mos", *rows]))
    (place / "against").mkdir()
    (place / "against" / FEATURES_FILE).write_bytes((fitted / FEATURES_FILE).read_bytes())
    assert run(place, "against", "--ratings", f"csv:{place / 'against.csv'}") == cli.FAILED
    assert "these ratings fall where the model's scores rise (SRCC -1.0" in capsys.readouterr().err
    assert (place / "against" / FEATURES_FILE).exists()
    assert not (place / "against" / "checkpoints").exists()


def test_the_test_part_of_a_prepared_set_is_only_tested_on(place, tmp_path, capsys):
    """KonIQ-10k, made of our images: fitted to its training and validation parts, as it is published."""
    parts = ["training"] * 30 + ["validation"] * 10 + ["test"] * 20
    with (place / "my.csv").open() as file:
        mos = [float(row["mos"]) for row in csv.DictReader(file)]
    lines = [f"{k}.jpg,0,0,0,1,0,105,{20 * mos[k]},0.5,{parts[k]}" for k in range(COUNT)]
    text(tmp_path / "koniq10k_distributions_sets.csv", "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set", *lines)
    (tmp_path / "1024x768").mkdir()
    for k in range(COUNT):
        Image.open(place / f"{k}.png").save(tmp_path / f"1024x768/{k}.jpg", quality=95, subsampling=0)
    prepare(dataclasses.replace(IMAGE_SETS["koniq10k"], images=COUNT), tmp_path, tmp_path / "data")
    arguments = ["--checkpoint", place / "start", "--ratings", "koniq10k", "--data-dir", tmp_path / "data"]
    arguments += ["--out", place / "split", "--method", "head"]
    assert cli.run(fit.main, list(map(str, arguments))) == cli.DONE
    printed = capsys.readouterr().out
    assert "40 ratings of koniq10k" in printed
    assert "test part, 20 images: SRCC" in printed
    assert QualiCLIP.load(place / "split").provenance["fit"]["images"] == 40


@pytest.mark.parametrize("config", [RESNET, VIT, SIGLIP, EFFICIENTNET], ids=["resnet", "vit", "siglip", "efficientnet"])
def test_columns_are_linear_in_what_the_last_layer_reads(config):
    """The features themselves are such columns; of an image with padding, too."""
    model = make_model(config)
    image = model.clip.image
    columns = np.eye(image.readout_width, dtype=np.float32)
    rating = Rating("all", np.array([[0, 0], [1, 1]]), 0.0, columns=columns, attributes=np.zeros(3))
    wide = QualiCLIP(model.clip, model.prompts, model.prompt_features, model.temperature, rating=rating)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, np.uint8) for size in ((64, 64, 3), (48, 64, 3))]
    outputs = wide._outputs(images)
    assert outputs.shape == (2, 3 + len(columns))
    kernel, bias = columns, 0  # a SigLIP has no last linear layer: columns are read from the features
    if config is not SIGLIP:
        kernel = np.asarray(image.readout.kernel[...])
        bias = 0 if image.readout.bias is None else np.asarray(image.readout.bias[...])
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    similarity = np.einsum("nd,pcd->npc", unit(outputs[:, 3:] @ kernel + bias), model.prompt_features)
    logits = (similarity[..., 0] - similarity[..., 1]) * 100 / model.temperature
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), outputs[:, :3], atol=1e-5)
