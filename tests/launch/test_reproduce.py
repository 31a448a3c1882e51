"""launch/reproduce.py, from data to the table, on miniatures."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from qualiclip_jax import cli
from qualiclip_jax.data.builders import IMAGE_SETS
from tests.data.builders import miniatures

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests/training/tiny_vit.py")


@pytest.fixture(scope="module")
def reproduce():
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "launch/reproduce.py")
    module = sys.modules["reproduce"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["reproduce"]


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Three sets as they are downloaded, of a few pictures that can be scored."""
    generator = np.random.default_rng(0)

    def picture(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), np.uint8)).save(path)

    monkeypatch.setattr(miniatures, "picture", picture)
    for name in ("kadis700k", "agiqa3k"):
        records = getattr(miniatures, name)(tmp_path / "downloads" / name)
        monkeypatch.setitem(IMAGE_SETS, name, dataclasses.replace(IMAGE_SETS[name], images=len(records)))
    (tmp_path / "downloads/clive").mkdir()  # nothing in it
    return tmp_path / "downloads"


def in_process(command):
    """Runs a `qualiclip` command here, so that the miniatures are taken for the whole sets."""
    module = f"qualiclip_jax.{command[0]}" + (".__main__" if command[0] in cli.PACKAGES else "")
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        return cli.run(importlib.import_module(module).main, command[1:])


def test_from_data_to_the_table(reproduce, downloads, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", "elsewhere")
    ran = []

    def run(command):
        ran.append(command[:3])
        return in_process(command)

    command = ["--downloads", str(downloads), "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    command += ["--train", TINY, "--seeds", "1", "--models", "tiny", "--sets", "agiqa3k,clive", "--"]
    command += ["--config.steps=2", "--config.data.small_images=enlarge"]
    assert reproduce.main(command, run) == cli.IN_PART
    said = capsys.readouterr().err
    assert "not done: prepare clive; the same command tries them again" in said
    table = (tmp_path / "out/evaluation/comparison.md").read_text()
    assert "| tiny |" in table
    assert f"| {tmp_path / 'out/tiny_vit-seed0'} |" in table
    assert "agiqa3k" in table
    assert "QualiCLIP (published)" in table
    stored = json.loads((tmp_path / "out/evaluation/comparison.json").read_text())["comparison"]
    assert [len(one["sets"]) for one in stored] == [1, 1]

    ran.clear()
    assert reproduce.main(command, run) == cli.IN_PART
    assert ran == [("data", "prepare", "clive")]  # all else is done


def test_dry_run(reproduce, downloads, tmp_path, capsys):
    command = ["--downloads", str(downloads), "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert reproduce.main([*command, "--dry-run"], run=None) == cli.DONE
    lines = capsys.readouterr().out.splitlines()
    states = {line[:24].strip(): line[45:] for line in lines}
    assert states["prepare kadis700k"] == states["prepare agiqa3k"] == states["train vitb-seed2"] == "to do"
    assert states["prepare koniq10k"].startswith("left out: KonIQ-10k: download ")
    assert "fetch qualiclip" in states
    assert "to do: about " in lines[-1]
    assert not (tmp_path / "out").exists()
    assert reproduce.main(["--data-dir", str(tmp_path), "--dry-run"], run=None) == cli.DONE
    assert "no photos to train on" in capsys.readouterr().out


def test_an_interrupted_stage_ends_it_all_and_a_failed_one_does_not(reproduce, downloads, tmp_path, capsys):
    command = ["--downloads", str(downloads), "--data-dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    command += ["--train", TINY, "--seeds", "2", "--models", "tiny,other", "--sets", "agiqa3k,synthetic"]
    states = {"fetch other": 1, f"train {Path(TINY).stem}-seed1": 130}

    def run(command):
        ran.append(command)
        name = Path(command[4]).name if command[0] == "train" else command[2]
        return states.get(f"{'train' if command[0] == 'train' else 'fetch'} {name}", 0)

    ran = []
    assert cli.run(lambda argv: reproduce.main(argv, run), command) == cli.INTERRUPTED
    assert "the same command goes on from here" in capsys.readouterr().err
    states.popitem()
    ran.clear()
    assert reproduce.main(command, run) == cli.IN_PART
    assert [step[:3] for step in ran[:1]] == [("models", "--fetch", "other")]  # tried again
    evaluate = dict(zip(ran[-1][1::2], ran[-1][2::2]))
    assert evaluate["--dataset"] == "agiqa3k,synthetic"
    runs = [str(tmp_path / f"out/tiny_vit-seed{seed}") for seed in range(2)]
    assert evaluate["--checkpoint"] == ",".join(["tiny", *runs])
