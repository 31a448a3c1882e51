"""What one of two processes does for test_processes.py: python two_processes.py FOLDER"""

import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np

from qualiclip_jax import cli, train
from qualiclip_jax.errors import UserError
from qualiclip_jax.training import parallel, signals
from tests.training import twenty_steps


def fail():
    raise UserError("only the primary process knows")


def send():
    sent = {"text": "x" * parallel.PIECE, "numbers": [1.5, None]}
    assert parallel.from_primary(lambda: sent if parallel.is_primary() else 1 / 0) == sent
    try:
        parallel.from_primary(fail)
    except UserError as error:
        print(f"error: {error}", flush=True)


def loop_until_a_signal():
    step = 0
    with signals.StopSignals() as stop:
        print("ready", flush=True)
        while not (name := stop.asked(step)):
            parallel.from_primary(time.time)  # the processes go in step
            step += 1
            time.sleep(0.02)
    print(f"{name} at {step}", flush=True)


def main(folder):
    """Joins the other process; trains, sends, fails in one way, stops at a signal, and fails in another way."""
    parallel.initialize()
    runs = twenty_steps.run("4") | twenty_steps.run("fsdp")
    if parallel.is_primary():
        np.savez(folder / "runs.npz", **runs)
    send()
    (folder / "file").touch()
    command = ["--config", twenty_steps.CONFIG]
    with mock.patch.object(parallel, "leave", lambda status: status):
        status = train.main([*command, "--workdir", str(folder / "file" / "run")])
    print(f"status {status}", flush=True)
    loop_until_a_signal()
    if not parallel.is_primary():
        command.append(f"--config.data.source=folder:{folder / 'none'}")
    return train.main([*command, "--workdir", str(folder / "run")])


if __name__ == "__main__":
    sys.exit(cli.run(lambda argv: main(Path(*argv))))
