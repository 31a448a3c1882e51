"""Training on one and four devices, and in two processes: the same numbers; stopped, killed, resumed, and failing."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from qualiclip_jax import checkpoint, cli, train
from qualiclip_jax.errors import UserError
from qualiclip_jax.storage import read_jsonl
from qualiclip_jax.training import parallel
from tests.training import twenty_steps

ROOT = Path(__file__).parents[2]
TRAIN = ["-m", "qualiclip_jax.train", "--config", twenty_steps.CONFIG]


def start(devices, *command):
    """The launcher of two processes of so many devices that each run `python COMMAND`."""
    launch = [sys.executable, ROOT / "launch" / "local.py", "--processes", 2, "--devices", devices, "--"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*map(str, [*launch, sys.executable, *command])],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    )


def finish(process, status):
    output = process.communicate(timeout=600)[0].decode()
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
def together(tmp_path_factory):
    """The output of two processes that run two_processes.py, and what `twenty_steps` gave there."""
    folder = tmp_path_factory.mktemp("together")
    process = start(2, Path(__file__).with_name("two_processes.py"), folder)
    lines = []
    while sum("ready" in line for line in lines) < 2:
        lines.append(process.stdout.readline().decode())  # unbuffered: the rest is left to `finish`
        assert lines[-1], lines
    time.sleep(0.3)
    for child in children(process):
        os.kill(child, signal.SIGINT)
    output = "".join(lines) + finish(process, 1)
    with np.load(folder / "runs.npz") as runs:
        return output, dict(runs)


@pytest.fixture(scope="module")
def runs(together):
    """`loss RUN` [20], `pixels RUN` [20, B, L, 2, H, W, 3] and so on of the RUNs of `twenty_steps`; "2x2": of two
    processes of two devices."""
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        single = [twenty_steps.run(name) for name in ("1", "4", "fsdp", "fsdp:2")]
    values = {f"{name} 2x2": value for name, value in together[1].items()}
    for one in single:
        values |= one
    return values


@pytest.mark.parametrize("devices", ["4", "4 2x2"])
def test_losses_do_not_depend_on_devices(runs, devices):
    assert runs["loss 1"].shape == (20,)
    assert len(np.unique(runs["loss 1"])) == 20  # it trains
    np.testing.assert_allclose(runs[f"loss {devices}"], runs["loss 1"], rtol=1e-5)


@pytest.mark.parametrize(("way", "pmap"), [("fsdp", "4"), ("fsdp:2", "4"), ("fsdp 2x2", "4 2x2")])
def test_fsdp_has_the_losses_of_pmap(runs, way, pmap):
    np.testing.assert_allclose(runs[f"loss {way}"], runs[f"loss {pmap}"], rtol=1e-6)


@pytest.mark.parametrize("devices", ["4", "4 2x2"])
def test_degraded_pixels_are_the_same_bit_for_bit(runs, devices):
    np.testing.assert_array_equal(runs[f"pixels {devices}"], runs["pixels 1"])
    assert not np.array_equal(runs["pixels 1"][0, :, 0], runs["pixels 1"][0, :, 1])  # levels differ


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """One run in three parts: two processes until SIGTERM to one; two until one is killed; this process to the end.

    By fsdp on two devices, by pmap on two, and by fsdp on four.
    Gives its working directory, the outputs of the parts and the checkpoints after each.
    """
    workdir = tmp_path_factory.mktemp("chain")
    command, fsdp = [*TRAIN, "--workdir", str(workdir)], "--config.parallel=fsdp"
    outputs, saved = [], []

    process = start(1, *command, fsdp)
    wait_for_step(process, workdir, 3)
    os.kill(children(process)[1], signal.SIGTERM)
    outputs.append(finish(process, 0))
    saved.append(saved_steps(workdir))

    process = start(1, *command)
    wait_for_step(process, workdir, max(saved[0]) + 2)
    os.kill(children(process)[1], signal.SIGKILL)
    outputs.append(finish(process, 137))
    saved.append(saved_steps(workdir))

    with contextlib.redirect_stdout(io.StringIO()) as output, jax.numpy_dtype_promotion("standard"):
        assert cli.run(train.main, [*command[2:], fsdp]) == cli.DONE
    outputs.append(output.getvalue())
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


def test_all_parts_together_are_the_run_of_one_process(chain, runs):
    workdir, outputs, saved = chain
    assert f"going on from step {max(saved[1])}" in outputs[2]
    rows = read_jsonl(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 21))
    for name in twenty_steps.KEPT:
        np.testing.assert_allclose([row[name] for row in rows], runs[f"{name} 4"], rtol=1e-5, atol=1e-6)


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


def test_interrupt_stops_all_at_the_same_step(together):
    output, _ = together
    assert sorted(re.findall(r"^\[(\d)\] error: only the primary process knows$", output, re.MULTILINE)) == ["0", "1"]
    stops = dict(re.findall(r"^\[(\d)\] SIGINT at (\d+)$", output, re.MULTILINE))
    assert set(stops) == {"0", "1"}
    assert stops["0"] == stops["1"]


def test_what_the_primary_process_cannot_do_fails_in_all(together):
    output, _ = together
    assert sorted(re.findall(r"^\[(\d)\] error: --workdir .* cannot be written", output, re.MULTILINE)) == ["0", "1"]
    assert sorted(re.findall(r"^\[(\d)\] status 1$", output, re.MULTILINE)) == ["0", "1"]


def test_what_one_process_cannot_do_ends_all(together):
    output, _ = together
    assert re.search(r"^\[1\] error: .*none", output, re.MULTILINE)
    assert "[local] process 1 ended with status 1; stopping the others" in output
