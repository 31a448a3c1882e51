"""Runs that are killed, interrupted and preempted; and what ends or refuses one."""

import contextlib
import io
import json
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
from qualiclip_jax.training import loop

TINY = str(Path(__file__).with_name("tiny_vit.py"))
STEPS = 24
FIELDS = [f"--config.steps={STEPS}", "--config.checkpoint.every=3"]


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
def arguments(photos):
    """A function that gives the arguments of the command."""
    fixed = ["--config", TINY, f"--config.data.source=folder:{photos}", *FIELDS]
    return lambda workdir, *fields: [*fixed, "--workdir", str(workdir), *fields]


@pytest.fixture(scope="module")
def start(arguments):
    """A function that starts a run in a process of its own."""

    def start(workdir):
        command = [sys.executable, "-m", "qualiclip_jax.train", *arguments(workdir)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    return start


@pytest.fixture(scope="module")
def train_here(arguments):
    """A function that runs the command in this process and gives its status and what it printed."""

    def train_here(workdir, *fields):
        printed, promotion = io.StringIO(), jax.numpy_dtype_promotion("standard")  # optax needs it
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), promotion:
            return cli.run(train.main, arguments(workdir, *fields)), printed.getvalue()

    return train_here


def finish(process, status):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    assert "Traceback" not in output
    return output


def wait_for_step(process, workdir, step):
    """Returns as soon as the run has logged `step`."""
    while not any(row["step"] >= step for row in read_jsonl(workdir / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def saved_steps(workdir):
    return [int(entry.name) for entry in (workdir / "checkpoints").iterdir() if entry.name.isdigit()]


def arrays_of(folder):
    return checkpoint._restore_numpy(folder, checkpoint._metadata(folder))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, train_here):
    """The working directory and the output of a whole run."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    status, output = train_here(workdir)
    assert status == cli.DONE
    return workdir, output


def test_killed_interrupted_and_preempted_it_ends_with_the_same_bits(
    tmp_path, start, train_here, uninterrupted, monkeypatch
):
    """The first two in processes of their own."""
    process = start(tmp_path)
    wait_for_step(process, tmp_path, 4)
    process.kill()
    process.communicate()

    process = start(tmp_path)
    wait_for_step(process, tmp_path, 8)
    process.send_signal(signal.SIGINT)
    output = finish(process, cli.INTERRUPTED)
    saved = max(saved_steps(tmp_path))
    assert 8 <= saved < STEPS
    assert f"step {saved} is saved" in output

    log = loop._Run.log
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "log", lambda run, step: signal.raise_signal(signal.SIGTERM) or log(run, step))
        status, output = train_here(tmp_path)
    assert status == cli.DONE
    assert max(saved_steps(tmp_path)) == saved + 1
    assert f"going on from step {saved};" in output
    assert f"stopped by SIGTERM: step {saved + 1} is saved" in output

    assert train_here(tmp_path)[0] == cli.DONE
    ours, theirs = (arrays_of(d / "checkpoints" / str(STEPS) / "training") for d in (tmp_path, uninterrupted[0]))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    losses = [
        [(row["step"], row["loss"]) for row in read_jsonl(d / "metrics.jsonl")] for d in (tmp_path, uninterrupted[0])
    ]
    assert losses[0] == losses[1]


def test_a_run_leaves_its_files(uninterrupted):
    names = {path.name for path in uninterrupted[0].iterdir()}
    assert names == {
        "checkpoints",
        "config.json",
        "curves.png",
        "degradations.png",
        "evaluations.jsonl",
        "metrics.jsonl",
    }


def test_photos_that_are_not_used_as_they_are_are_counted_at_the_end(uninterrupted):
    _, output = uninterrupted
    assert output.count("07.png") == 1
    assert f"photos     24 tried: 1 could not be read, 2 enlarged to the crop size\ndone: {STEPS} steps" in output


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
