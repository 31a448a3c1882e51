"""The command from end to end, on a small random model and small pictures."""

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from qualiclip_jax import checkpoint, cli, evaluate, models, score, storage, tabular
from qualiclip_jax.evaluation import synthetic
from qualiclip_jax.inference import machine
from qualiclip_jax.inference.buckets import Costs
from qualiclip_jax.inference.predictor import QualiCLIP
from tests.small_models import build_clip

IMAGES = 24
CONFIG = models.CLIPConfig(
    embed_dim=16, image=models.ViTConfig(layers=1, width=16, heads=2, patch_size=16, image_size=48)
)


def save_random_model(path: Path, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(2, 2, 16)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    prompts = (("Good photo.", "Bad photo."), ("Sharp image.", "Blurry image."))
    checkpoint.save_model(
        path, models.Model(build_clip(CONFIG, seed), prompts, features, 20.0, {"weights": "random", "seed": seed})
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A training workdir with a trained and an initial model, rated pictures of three sizes, and pristine photos."""
    place = tmp_path_factory.mktemp("evaluate")
    save_random_model(place / "run/checkpoints/10", 1)
    save_random_model(place / "run/checkpoints/initial", 0)
    generator = np.random.default_rng(0)
    (place / "pictures").mkdir()
    (place / "photos").mkdir()
    with open(place / "set.csv", "w") as file:
        print("image,mos,reference,distortion,split", file=file)
        for k in range(IMAGES):
            side = (48, 56, 64)[k % 3]
            noise = generator.integers(0, 8 + 10 * k, (side, 48, 3)).astype(np.uint8)
            Image.fromarray(noise).save(place / f"pictures/{k:02d}.png")
            split = "test" if k % 2 else "train"
            print(
                f"{k:02d}.png,{generator.normal(k, 2):.3f},r{k % 4},{('jpeg', 'white_noise')[k % 2]},{split}", file=file
            )
    for k in range(2):
        photo = generator.integers(0, 255, (10, 12, 3)).astype(np.uint8).repeat(6, 0).repeat(6, 1)
        Image.fromarray(photo).save(place / f"photos/{k}.png")
    return place


def darker(crops, type_index, keys):
    """In place of the 24 types: darker by the level. Compiling the real ones is the business of another test."""
    levels = jnp.arange(1.0, 6.0, dtype=jnp.float32)[:, None, None, None, None]
    return jnp.broadcast_to(crops.astype(jnp.float32) / 255 * (1 - 0.1 * levels), (len(type_index), 5, *crops.shape))


def run(place, out, *more, dataset="csv:{}/set.csv@{}/pictures"):
    arguments = ["--dataset", dataset.format(place, place), "--out", str(out), "--resamples", "100", *map(str, more)]
    return cli.run(evaluate.main, arguments)


def outputs(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def report(place) -> Path:
    """The whole thing once, with the baseline that the workdir knows."""
    with pytest.MonkeyPatch.context() as patch:
        both = f"csv:{place}/set.csv@{place}/pictures,synthetic:folder:{place}/photos"
        patch.setattr(synthetic, "_degrade", darker)
        assert run(place, place / "out", "--checkpoint", place / "run", "--crop", 48, dataset=both) == cli.DONE
    return place / "out"


def test_results_hold_every_protocol(place, report):
    results = json.loads((report / "results.json").read_text())
    found = results["sets"][f"csv:{place}/set.csv@{place}/pictures"]
    assert found["images"] == IMAGES
    assert found["result"]["whole"]["images"] == IMAGES
    assert found["result"]["official"]["images"] == IMAGES // 2
    assert found["result"]["splits"]["by_reference"]
    assert set(found["result"]["distortions"]) == {"jpeg", "white_noise"}
    assert set(found["result"]["groups"]) == {"compression", "noise"}
    assert {test["statistic"] for test in found["comparisons"]} == {"srcc", "plcc"}
    assert results["baseline"]["seed"] == 0
    assert len(results["synthetic"][f"folder:{place}/photos"]["result"]["types"]) == 24


def test_scores_are_those_of_the_model(place, report):
    with open(report / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    expected = QualiCLIP.load(place / "run").score_files([place / "pictures" / row["image"] for row in rows])
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected, atol=1e-5)
    results = json.loads((report / "results.json").read_text())
    whole = next(iter(results["sets"].values()))["result"]["whole"]
    scores, mos = ([float(row[name]) for row in rows] for name in ("score", "mos"))
    assert whole["srcc"] == pytest.approx(stats.spearmanr(scores, mos).statistic, abs=1e-12)


def test_a_repeated_run_scores_nothing_and_changes_no_byte(place, report, monkeypatch):
    before = outputs(report)
    monkeypatch.setattr(QualiCLIP, "run", lambda *_: pytest.fail("scored again"))
    monkeypatch.setattr(synthetic, "_score_photo", lambda *_: pytest.fail("scored again"))
    both = f"csv:{place}/set.csv@{place}/pictures,synthetic:folder:{place}/photos"
    assert run(place, report, "--checkpoint", place / "run", "--crop", 48, dataset=both) == cli.DONE
    assert outputs(report) == before


SMALL_BATCHES = Costs(compile=1e3, call=10, batch=15e3)  # four or five pictures
KILLED = """
import os, signal, sys
from qualiclip_jax import evaluate
from qualiclip_jax.evaluation import scores
from qualiclip_jax.inference import machine
from qualiclip_jax.inference.buckets import Costs
machine.costs = lambda config: {costs}
put = scores.Kept.put
def put_or_die(self, key, value):
    put(self, key, value)
    if len(self._values) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
scores.Kept.put = put_or_die
evaluate.main(sys.argv[1:])
"""


def test_killed_half_way_the_second_run_does_the_rest_to_the_same_result(place, report, tmp_path, monkeypatch):
    def arguments(out):
        more = ["--out", str(tmp_path / out), "--resamples", "100", "--checkpoint", str(place / "run")]
        return ["--dataset", f"csv:{place}/set.csv@{place}/pictures", "--baseline", "none", *more]

    def result(out):
        return next(iter(json.loads((out / "results.json").read_text())["sets"].values()))["result"]

    code = KILLED.replace("{costs}", repr(SMALL_BATCHES))
    killed = subprocess.run([sys.executable, "-c", code, *arguments("cut")], capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert not (tmp_path / "cut/results.json").exists()

    fetched = []
    whole_run = QualiCLIP.run

    def watched(self, sizes, fetch, done=frozenset(), **more):
        return whole_run(self, sizes, lambda i: fetched.append(i) or fetch(i), done, **more)

    monkeypatch.setattr(QualiCLIP, "run", watched)
    monkeypatch.setattr(machine, "costs", lambda config: SMALL_BATCHES)
    assert cli.run(evaluate.main, arguments("cut")) == cli.DONE
    assert IMAGES - 10 <= len(fetched) < IMAGES - 5  # the rest, and what else is in the batch that was cut
    # the other results were made in larger batches: equal to the last bit or nearly so, whatever the processor does
    assert result(tmp_path / "cut")["whole"]["plcc"] == pytest.approx(result(report)["whole"]["plcc"], abs=1e-6)


def test_any_metric_can_be_judged(place, report, tmp_path, capsys):
    lines = (place / "set.csv").read_text().splitlines()[1:]
    rows = [line.split(",")[:2] for line in lines]
    text = "image,score\n" + "".join(f"{name},{-float(mos)}\n" for name, mos in rows)
    (tmp_path / "niqe.csv").write_text(text)
    more = ("--scores", tmp_path / "niqe.csv", "--lower-is-better", "--baseline", report / "scores.csv")
    assert run(place, tmp_path / "out", *more) == cli.DONE
    printed = capsys.readouterr().out
    assert re.search(r"niqe, whole set +24 +1\.0000", printed)
    facts = json.loads((report / "results.json").read_text())["sets"]
    own = next(iter(facts.values()))["result"]["whole"]["srcc"]
    assert re.search(rf"baseline, whole set +24 +{own:.4f}".replace(".", r"\."), printed)
    assert f"SRCC {1 - own:+.4f} against the baseline" in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset", "kadid11k"], "no rated image set 'kadid11k'"),
        (["--checkpoint", "nowhere"], "no model 'nowhere'"),
        (["--scores", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--dataset", "synthetic", "--scores", "scores.csv"], "the synthetic benchmark needs a --checkpoint"),
        (["--dataset", "synthetic:folder:nowhere"], "nowhere"),
        (["--dataset", ","], "--dataset names no set"),
        (["--resamples", "5"], "--resamples 5: 20 or more"),
        (["--seed", "99999999999999999999"], "below 2**63"),
        (["--baseline-lower-is-better"], "--baseline-lower-is-better goes with"),
        (["--scores", "constant.csv"], "set: all 12 predictions equal 1"),
        (["--cache", "scores.csv/cache"], "scores cannot be kept there"),
    ],
)
def test_errors_are_one_line(place, tmp_path, capsys, monkeypatch, more, message):
    (tmp_path / "scores.csv").write_text("image,score\n")
    (tmp_path / "constant.csv").write_text("image,score\n" + "".join(f"{k:02d}.png,1\n" for k in range(IMAGES)))
    monkeypatch.chdir(tmp_path)
    arguments = ["--out", str(tmp_path / "out"), "--checkpoint", str(place / "run")]
    if "--scores" in more:
        arguments = arguments[:2]
    if "--dataset" not in more:
        arguments += ["--dataset", f"csv:{place}/set.csv@{place}/pictures"]
    assert cli.run(evaluate.main, [*arguments, *more]) == cli.FAILED
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(("error: ", "python -m qualiclip_jax.evaluate: error: "))
    assert message in last


def score_table(path, name="image"):
    path.write_text(f"{name},score\n" + "".join(f"{k:02d}.png,{(7 * k) % 11}\n" for k in range(IMAGES)))
    return path


def test_two_evaluations_into_one_folder_are_refused(place, tmp_path, capsys):
    scores = score_table(tmp_path / "s.csv")
    (tmp_path / "out").mkdir()
    with storage.lock(tmp_path / "out/results.json"):  # as another process holds it
        assert run(place, tmp_path / "out", "--scores", scores) == cli.FAILED
    assert "results.json is being written by another process" in capsys.readouterr().err
    assert run(place, tmp_path / "out", "--scores", scores) == cli.DONE
    assert run(place, tmp_path / "out", "--scores", scores) == cli.DONE
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("scores.csv", None, "scores.csv is read and would be overwritten"),
        ("report.html", "<p>mine</p>", "report.html is not of an evaluation"),
        ("scatter-mine.png", "mine", "scatter-mine.png is not of an evaluation"),
        ("results.json", '{"model": "mine"}', "results.json is not of an evaluation"),
        ("results.json", "[1", "results.json is not of an evaluation"),
    ],
)
def test_files_of_others_are_not_overwritten(place, tmp_path, capsys, name, content, reason):
    scores = score_table(tmp_path / ("scores.csv" if content is None else "mine.csv"))
    if content is not None:
        (tmp_path / name).write_text(content)
    before = outputs(tmp_path)
    assert run(place, tmp_path, "--scores", scores) == cli.FAILED
    assert reason in capsys.readouterr().err.splitlines()[-1]
    assert outputs(tmp_path) == before


def test_what_score_writes_is_judged(place, tmp_path, capsys):
    """With a row of a file that could not be scored and that the set does not have; as scores and as a baseline."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/broken.png").write_bytes(b"no image")
    output = tmp_path / "own.csv"
    arguments = ["--checkpoint", str(place / "run"), "--output", str(output), str(tmp_path / "photos")]
    assert cli.run(score.main, [*arguments, str(place / "pictures")]) == cli.IN_PART
    records = list(tabular.records(output))
    assert len(records) == IMAGES + 1
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert run(place, tmp_path / "out", "--scores", output, "--baseline", tmp_path / "own.jsonl") == cli.DONE
    printed = capsys.readouterr().out
    assert re.search(r"own, whole set +24 ", printed)
    assert "SRCC +0.0000 against the baseline" in printed


def test_three_images_are_enough(place, tmp_path, capsys):
    lines = (place / "set.csv").read_text().splitlines()
    (tmp_path / "three.csv").write_text("\n".join(lines[:4]))
    (tmp_path / "scores.csv").write_text("image,score\n00.png,1\n01.png,2\n02.png,4\n")
    (tmp_path / "base.csv").write_text("image,score\n00.png,1\n01.png,5\n02.png,4\n")
    more = ("--scores", tmp_path / "scores.csv", "--baseline", tmp_path / "base.csv")
    assert run(place, tmp_path / "out", *more, dataset=f"csv:{tmp_path}/three.csv@{{}}/pictures") == cli.DONE
    printed = capsys.readouterr().out
    assert "Steiger p undefined" in printed
    assert "not a significant difference" in printed


def test_several_sets_and_their_mean(place, report, tmp_path, capsys):
    lines = (place / "set.csv").read_text().splitlines()
    (tmp_path / "half.csv").write_text("\n".join(lines[: 1 + IMAGES // 2]) + "\n")
    dataset = f"csv:{place}/set.csv@{place}/pictures,csv:{tmp_path}/half.csv@{place}/pictures"
    more = ("--checkpoint", place / "run", "--baseline", "none", "--splits", 0, "--cache", report / "cache")
    assert run(place, tmp_path / "out", *more, dataset=dataset) == cli.DONE
    results = json.loads((tmp_path / "out/results.json").read_text())
    whole, half = (found["result"]["whole"]["srcc"] for found in results["sets"].values())
    assert results["weighted_mean"]["srcc"] == pytest.approx((2 * whole + half) / 3)
    assert "mean over sets, weighted by images" in capsys.readouterr().out
    assert (tmp_path / "out/scatter-half.png").exists()


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its tags are closed in order."""

    VOID = ("meta", "link", "img", "br", "source")

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.links = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.images += [attrs["src"]] if tag == "img" else []
        self.links += [attrs[name] for name in ("src", "srcset", "href") if name in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained(report):
    page = Page((report / "report.html").read_text())
    assert len(page.images) == 2 + 3 * 6  # the figures and the galleries
    assert all(link.startswith("data:") for link in page.links)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>window.addEventListener("load", () => { document.title = JSON.stringify({
  broken: [...document.images].filter(image => !image.naturalWidth).length, images: document.images.length,
  sideways: document.documentElement.scrollWidth - window.innerWidth, errors: window.faults }); });</script>"""
EARLY = "<script>window.faults = 0; window.addEventListener('error', () => { window.faults += 1; });</script>"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page is not opened in a browser")
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_opens_in_a_browser(report, tmp_path, width):
    text = (report / "report.html").read_text()
    probed = text.replace("<head>", "<head>" + EARLY, 1).replace("</body>", PROBE + "</body>", 1)
    (tmp_path / "page.html").write_text(probed)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path / 'user'} --window-size={width},900"
    command = [CHROMIUM, *flags.split(), "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode()
    found = json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
    assert found == {"broken": 0, "images": 20, "sideways": found["sideways"], "errors": 0}
    assert found["sideways"] <= 0
