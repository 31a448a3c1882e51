"""Training in two processes of two devices: stopped, killed, resumed, and failing."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from qualiclip_jax import checkpoint
from qualiclip_jax.errors import UserError
from qualiclip_jax.storage import read_jsonl
from qualiclip_jax.training import parallel

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LOCAL = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes", "2", "--devices", "2", "--"]
TRAIN = [sys.executable, "-m", "qualiclip_jax.train", "--config", str(HERE / "tiny_vit.py")]


@pytest.fixture(scope="module")
def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def start(command, environment):
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, status):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    assert "Traceback" not in output
    return output


def children(process):
    """The ids of the processes that launch/local.py started, in their order."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    return sorted(map(int, found.stdout.split()))


def wait_for_step(process, workdir, step):
    while not any(row["step"] >= step for row in read_jsonl(workdir / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def saved_steps(workdir):
    return sorted(int(entry.name) for entry in (workdir / "checkpoints").iterdir() if entry.name.isdigit())


@pytest.fixture(scope="module")
def chain(tmp_path_factory, environment):
    """One run in three parts: two processes until SIGTERM to one; two until one is killed; one process to the end.

    By fsdp, by pmap on as many devices, and by fsdp on one device.
    Gives its working directory, the outputs of the parts and the checkpoints after each.
    """
    workdir = tmp_path_factory.mktemp("chain")
    command = [*TRAIN, "--workdir", str(workdir)]
    fsdp = [*command, "--config.parallel=fsdp"]
    outputs, saved = [], []

    process = start([*LOCAL, *fsdp], environment)
    wait_for_step(process, workdir, 3)
    os.kill(children(process)[1], signal.SIGTERM)
    outputs.append(finish(process, 0))
    saved.append(saved_steps(workdir))

    process = start([*LOCAL, *command], environment)
    wait_for_step(process, workdir, max(saved[0]) + 2)
    os.kill(children(process)[1], signal.SIGKILL)
    outputs.append(finish(process, 137))
    saved.append(saved_steps(workdir))

    outputs.append(finish(start(fsdp, environment), 0))
    saved.append(saved_steps(workdir))
    return workdir, outputs, saved


def test_sigterm_to_one_process_saves_and_stops_all(chain):
    _, outputs, saved = chain
    [step] = re.findall(r"^\[0\] stopped by SIGTERM: step (\d+) is saved", outputs[0], re.MULTILINE)
    assert 3 <= int(step) < 20
    assert max(saved[0]) == int(step)


def test_a_killed_process_ends_the_others_with_a_clear_line(chain):
    _, outputs, saved = chain
    assert f"going on from step {max(saved[0])}" in outputs[1]
    assert "[local] process 1 was killed by SIGKILL; stopping the others" in outputs[1]
    assert max(saved[1]) >= max(saved[0])


def test_all_parts_together_are_the_run_of_one_process(chain, environment, tmp_path):
    workdir, outputs, saved = chain
    assert f"going on from step {max(saved[1])}" in outputs[2]
    finish(start([*TRAIN, "--workdir", str(tmp_path)], environment), 0)
    rows, expected = read_jsonl(workdir / "metrics.jsonl"), read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 21))
    for name in ("loss", "consistency", "parameter_norm"):
        np.testing.assert_allclose([row[name] for row in rows], [row[name] for row in expected], rtol=1e-5, atol=1e-6)


def test_checkpoints_of_several_processes_are_whole(chain):
    workdir, _, saved = chain
    assert {entry.name for entry in (workdir / "checkpoints").iterdir()} == {"initial", *map(str, saved[2])}
    assert max(saved[2]) == 20
    trained, initial = checkpoint.load_model(workdir), checkpoint.load_model(workdir / "checkpoints" / "initial")
    assert trained.fingerprint != initial.fingerprint


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"COORDINATOR": "127.0.0.1:9", "PROCESSES": "2"}, "QUALICLIP_PROCESS is ''"),
        ({"COORDINATOR": "127.0.0.1:9", "PROCESSES": "2", "PROCESS": "2"}, "from 0"),
        ({"COORDINATOR": "auto"}, "no TPU pod and no Slurm"),
    ],
)
def test_variables_that_do_not_say_who_the_processes_are(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(f"QUALICLIP_{name}", value)
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)  # other tests use devices
    with pytest.raises(UserError, match=message):
        parallel.initialize()


def test_interrupt_stops_all_at_the_same_step(environment):
    process = start([*LOCAL, sys.executable, str(HERE / "stop_together.py")], environment)
    lines = []
    while sum("ready" in line for line in lines) < 2:
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output = "".join(lines) + finish(process, 0)
    assert sorted(re.findall(r"^\[(\d)\] error: only the primary process knows$", output, re.MULTILINE)) == ["0", "1"]
    stops = dict(re.findall(r"^\[(\d)\] SIGINT at (\d+)$", output, re.MULTILINE))
    assert set(stops) == {"0", "1"}
    assert stops["0"] == stops["1"]


def test_what_the_primary_process_cannot_do_ends_all(environment, tmp_path):
    (tmp_path / "file").write_text("")
    output = finish(start([*LOCAL, *TRAIN, "--workdir", str(tmp_path / "file" / "run")], environment), 1)
    assert "[0] error: --workdir" in output
    assert "cannot be written" in output


def test_what_one_process_cannot_do_ends_all(environment, tmp_path):
    command = " ".join([*TRAIN, "--workdir", str(tmp_path / "run")])
    script = f"exec {command} $([ $QUALICLIP_PROCESS = 0 ] || echo --config.data.source=folder:{tmp_path}/none)"
    output = finish(start([*LOCAL, "sh", "-c", script], environment), 1)
    assert "[1] error: " in output
    assert "[local] process 1 ended with status 1; stopping the others" in output
