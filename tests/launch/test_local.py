"""launch/local.py with small commands: who gets which variables, output, signals, exit statuses."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

LOCAL = str(Path(__file__).parents[2] / "launch" / "local.py")


def start(*arguments, **variables):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | variables
    return subprocess.Popen(
        [sys.executable, LOCAL, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments, **variables):
    """(exit status, lines of output in any order, lines of errors)."""
    process = start(*arguments, **variables)
    output, errors = process.communicate(timeout=60)
    return process.returncode, sorted(output.splitlines()), errors.splitlines()


def shell(script):
    return ["--", "sh", "-c", script]


def test_each_process_knows_who_it_is_and_all_share_a_free_port():
    status, lines, errors = run("--processes", "3", *shell("echo $QUALICLIP_COORDINATOR $QUALICLIP_PROCESSES; exit 0"))
    addresses = {line.split()[1] for line in lines}
    assert (status, errors, len(lines), len(addresses)) == (0, [], 3, 1)
    assert [line.split()[0] for line in lines] == ["[0]", "[1]", "[2]"]
    assert all(line.endswith(" 3") for line in lines)
    host, port = addresses.pop().split(":")
    with socket.socket() as listener:
        listener.bind((host, int(port)))


def test_devices_on_a_cpu_replace_the_count_and_keep_other_flags():
    flags = "--xla_force_host_platform_device_count=7 --xla_cpu_enable_fast_math=false"
    _, lines, _ = run("--devices", "3", *shell("echo $QUALICLIP_PROCESS $XLA_FLAGS"), XLA_FLAGS=flags)
    expected = "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=3"
    assert lines == [f"[{k}] {k} {expected}" for k in range(2)]


def test_gpus_are_split():
    script = shell("echo $CUDA_VISIBLE_DEVICES $JAX_PLATFORMS")
    variables = {"CUDA_VISIBLE_DEVICES": "4,5,6,7,8", "JAX_PLATFORMS": ""}
    assert run("--devices", "2", *script, **variables)[1] == ["[0] 4,5", "[1] 6,7"]
    status, _, errors = run("--devices", "3", *script, **variables)
    assert status == 1
    assert errors == [
        "error: 2 processes x 3 devices need 6 GPUs, but 5 are visible: lower --processes or --devices, "
        "or take --platform cpu"
    ]
    assert run("--platform", "cpu", *script, **variables)[1] == ["[0] 4,5,6,7,8 cpu", "[1] 4,5,6,7,8 cpu"]


def test_gpus_are_asked_of_the_driver(tmp_path):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    driver.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JAX_PLATFORMS": ""}
    assert run(*shell("echo $CUDA_VISIBLE_DEVICES"), **variables)[1] == ["[0] 0", "[1] 1"]


def test_dry_run_prints_what_a_shell_can_run():
    status, lines, _ = run("--dry-run", "--devices", "2", *shell('echo "a b"; exit 3'))
    assert (status, len(lines)) == (0, 2)
    again = subprocess.run(["sh", "-c", lines[1]], capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (3, "a b\n")
    assert "QUALICLIP_PROCESS=1 " in lines[1]


def test_first_failure_stops_the_others_and_gives_the_status():
    begin = time.monotonic()
    status, _, errors = run("--processes", "3", *shell("[ $QUALICLIP_PROCESS = 1 ] && exit 7; exec sleep 60"))
    assert (status, errors) == (7, ["[local] process 1 ended with status 7; stopping the others"])
    assert time.monotonic() - begin < 50  # they did not sleep on


def test_processes_that_ignore_sigterm_are_killed():
    script = "trap '' TERM; [ $QUALICLIP_PROCESS = 1 ] && kill -9 $$; while :; do sleep 0.1; done"
    status, _, errors = run("--grace", "0.5", *shell(script))
    assert (status, errors) == (137, ["[local] process 1 was killed by SIGKILL; stopping the others"])


def test_a_process_that_is_done_in_part_leaves_the_others_alone():
    status, lines, _ = run(*shell("[ $QUALICLIP_PROCESS = 0 ] && exit 2; sleep 0.2; echo finished"))
    assert (status, lines) == (2, ["[1] finished"])


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "INT"), (signal.SIGTERM, "TERM")])
def test_signals_reach_every_process_once(number, name):
    script = f"trap 'echo {name}; exit 0' {name}; echo ready; while :; do sleep 0.1; done"
    process = start("--processes", "3", *shell(script))
    assert sorted(process.stdout.readline() for _ in range(3)) == [f"[{k}] ready\n" for k in range(3)]
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert sorted(output.splitlines()) == [f"[{k}] {name}" for k in range(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no command given"),
        (("--", "no-such-program"), "no such command: no-such-program"),
        (("--processes", "0", "--", "true"), "'0' is not a number of 1 or more"),
    ],
)
def test_mistakes_are_named(arguments, message):
    status, _, errors = run(*arguments)
    assert status == 2
    assert message in errors[-1]
