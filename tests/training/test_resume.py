"""Runs that are killed, interrupted and preempted, in processes of their own; and what ends or refuses one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from qualiclip_jax import checkpoint, cli, train
from qualiclip_jax.storage import read_jsonl

TINY = str(Path(__file__).with_name("tiny_vit.py"))
STEPS = 24
FIELDS = [f"--config.steps={STEPS}", "--config.checkpoint.every=3"]


@pytest.fixture(scope="module")
def environment():
    """One device."""
    return os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=1")}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 24 photos: one is broken, two are smaller than the crops."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k in range(24):
        side = 20 if k in (3, 4) else 40
        Image.fromarray(rng.integers(0, 256, (side, 40, 3), dtype=np.uint8)).save(folder / f"{k:02d}.png")
    broken = folder / "07.png"
    broken.write_bytes(broken.read_bytes()[:500])
    return folder


@pytest.fixture(scope="module")
def start(photos, environment):
    """A function that starts a run in a process of its own."""

    def start(workdir):
        command = [sys.executable, "-m", "qualiclip_jax.train", *arguments(workdir, photos)]
        return subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def arguments(workdir, photos, *fields):
    return ["--config", TINY, "--workdir", str(workdir), f"--config.data.source=folder:{photos}", *FIELDS, *fields]


def finish(process, status=0):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    assert "Traceback" not in output
    return output


def wait_for_step(process, workdir, step):
    """Returns as soon as the run has logged `step`."""
    while not any(row["step"] >= step for row in read_jsonl(workdir / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def arrays_of(folder):
    return checkpoint._restore_numpy(folder, checkpoint._metadata(folder))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, start):
    """The working directory and the output of a whole run."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, finish(start(workdir))


def test_killed_interrupted_and_preempted_it_ends_with_the_same_bits(tmp_path, start, uninterrupted):
    process = start(tmp_path)
    wait_for_step(process, tmp_path, 4)
    process.kill()
    process.communicate()
    for number, status, step in ((signal.SIGINT, 130, 8), (signal.SIGTERM, 0, 14)):
        process = start(tmp_path)
        wait_for_step(process, tmp_path, step)
        process.send_signal(number)
        output = finish(process, status)
        saved = max(int(entry.name) for entry in (tmp_path / "checkpoints").iterdir() if entry.name.isdigit())
        assert saved >= step
        assert f"step {saved} is saved" in output
    finish(start(tmp_path))
    ours, theirs = (arrays_of(d / "checkpoints" / str(STEPS) / "training") for d in (tmp_path, uninterrupted[0]))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    losses = [
        [(row["step"], row["loss"]) for row in read_jsonl(d / "metrics.jsonl")] for d in (tmp_path, uninterrupted[0])
    ]
    assert losses[0] == losses[1]


def test_photos_that_are_not_used_as_they_are_are_counted_at_the_end(uninterrupted):
    _, output = uninterrupted
    assert output.count("07.png") == 1
    assert f"photos     24 tried: 1 could not be read, 2 enlarged to the crop size\ndone: {STEPS} steps" in output


@pytest.fixture
def train_here(photos, capfd):
    """A function that runs the command in this process and gives its status and what it printed."""

    def train_here(workdir, *fields):
        with jax.numpy_dtype_promotion("standard"):  # optax needs it
            status = cli.run(train.main, arguments(workdir, photos, *fields))
        return status, "".join(capfd.readouterr())

    return train_here


def test_loss_that_is_not_finite_stops_the_run_and_saves_nothing_of_it(tmp_path, train_here):
    status, output = train_here(tmp_path, "--config.learning_rate=1e30")
    assert status == cli.FAILED
    assert "is not finite" in output
    assert "step " in output
    for entry in (tmp_path / "checkpoints").iterdir():
        arrays = arrays_of(entry / "model")
        assert np.all(np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(arrays)])))


def test_finished_run_is_left_alone_and_another_config_is_refused(train_here, uninterrupted):
    workdir, _ = uninterrupted
    before = sorted(path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*"))
    assert f"done: {STEPS} steps" in train_here(workdir)[1]
    assert sorted(path.stat().st_mtime_ns for path in (workdir / "checkpoints").rglob("*")) == before
    status, output = train_here(workdir, "--config.seed=5")
    assert status == cli.FAILED
    assert "seed: 0 -> 5" in output
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0


def test_workdir_that_cannot_be_written_is_said_first(tmp_path, train_here):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in train_here(tmp_path / "file" / "run")[1]
