"""Runs that are killed, interrupted, preempted or broken, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax import checkpoint
from qualiclip_jax.storage import read_jsonl

TINY = str(Path(__file__).with_name("tiny.py"))
STEPS = 12
FIELDS = [f"--config.steps={STEPS}", "--config.checkpoint.every=3"]


@pytest.fixture(scope="module")
def environment():
    """One device."""
    return os.environ | {"XLA_FLAGS": ""}


def start(workdir, environment, *fields):
    command = [sys.executable, "-m", "qualiclip_jax.train", "--config", TINY, *FIELDS, *fields]
    command += ["--workdir", str(workdir)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


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
def uninterrupted(tmp_path_factory, environment):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    finish(start(workdir, environment))
    return workdir


def assert_same_end(workdir, uninterrupted):
    ours, theirs = (arrays_of(d / "checkpoints" / str(STEPS) / "training") for d in (workdir, uninterrupted))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    losses = [[(row["step"], row["loss"]) for row in read_jsonl(d / "metrics.jsonl")] for d in (workdir, uninterrupted)]
    assert losses[0] == losses[1]


def test_killed_twice_ends_with_the_same_bits(tmp_path, environment, uninterrupted):
    for step in (4, 10):
        process = start(tmp_path, environment)
        wait_for_step(process, tmp_path, step)
        process.kill()
        process.communicate()
    finish(start(tmp_path, environment))
    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signals_save_and_say_so(tmp_path, environment, uninterrupted, number, status):
    process = start(tmp_path, environment, "--config.checkpoint.every=1000")
    wait_for_step(process, tmp_path, 2)
    process.send_signal(number)
    output = finish(process, status)
    saved = max(int(entry.name) for entry in (tmp_path / "checkpoints").iterdir() if entry.name.isdigit())
    assert saved >= 2
    assert f"step {saved} is saved" in output
    finish(start(tmp_path, environment, "--config.checkpoint.every=1000"))
    assert_same_end(tmp_path, uninterrupted)


def test_loss_that_is_not_finite_stops_the_run_and_saves_nothing_of_it(tmp_path, environment):
    fields = ("--config.learning_rate=1e30", "--config.optimizer.clip_norm=0.0")
    output = finish(start(tmp_path, environment, *fields), 1)
    assert "is not finite" in output
    assert "step " in output
    for entry in (tmp_path / "checkpoints").iterdir():
        arrays = arrays_of(entry / "model")
        assert np.all(np.isfinite(np.concatenate([np.ravel(x) for x in _leaves(arrays)])))


def _leaves(tree):
    return [leaf for x in tree.values() for leaf in _leaves(x)] if isinstance(tree, dict) else [tree]


def test_finished_run_is_left_alone_and_another_config_is_refused(environment, uninterrupted):
    before = sorted(path.stat().st_mtime_ns for path in (uninterrupted / "checkpoints").rglob("*"))
    assert f"done: {STEPS} steps" in finish(start(uninterrupted, environment))
    assert sorted(path.stat().st_mtime_ns for path in (uninterrupted / "checkpoints").rglob("*")) == before
    output = finish(start(uninterrupted, environment, "--config.seed=5"), 1)
    assert "seed: 0 -> 5" in output
    assert json.loads((uninterrupted / "config.json").read_text())["seed"] == 0


def test_workdir_that_cannot_be_written_is_said_first(tmp_path, environment):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in finish(start(tmp_path / "file" / "run", environment), 1)


def test_photos_that_are_not_used_as_they_are_are_counted_at_the_end(tmp_path, environment):
    rng = np.random.default_rng(0)
    for k in range(24):
        side = 20 if k in (3, 4) else 40
        Image.fromarray(rng.integers(0, 256, (side, 40, 3), dtype=np.uint8)).save(tmp_path / f"{k:02d}.png")
    broken = tmp_path / "07.png"
    broken.write_bytes(broken.read_bytes()[:500])
    output = finish(start(tmp_path / "run", environment, f"--config.data.source=folder:{tmp_path}"))
    assert output.count("07.png") == 1
    assert "photos     24 tried: 1 could not be read, 2 enlarged to the crop size\ndone: 12 steps" in output
