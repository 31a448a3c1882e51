"""Runs a command as several JAX processes on this machine: N processes x M devices.

    python launch/local.py --processes 2 --devices 2 -- python -m qualiclip_jax.train --config configs/demo.py
    python launch/local.py --processes 4 -- python -m qualiclip_jax.score --output scores.csv photos

Each output line begins with the number of its process. Ctrl-C and SIGTERM go to all of them. When one fails, the others
are stopped. The exit status is that of the first process that failed. Needs nothing but Python.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import BinaryIO

DONE_IN_PART = 2  # an exit status after which the other processes go on
INTERRUPTED = 130


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/local.py",
        usage="%(prog)s [options] -- COMMAND ...",
        description="Runs COMMAND as several JAX processes on this machine.",
        epilog="The processes know each other by QUALICLIP_COORDINATOR, QUALICLIP_PROCESSES and QUALICLIP_PROCESS.",
    )
    parser.add_argument("--processes", type=_positive, default=2, metavar="N", help="how many processes (2)")
    parser.add_argument("--devices", type=_positive, default=1, metavar="M", help="devices of each process (1)")
    parser.add_argument(
        "--platform", choices=("cpu", "gpu"), help="virtual CPU devices or GPUs (GPUs, where there are some)"
    )
    parser.add_argument(
        "--grace", type=float, default=10.0, metavar="S", help="seconds from a failure until the others are killed (10)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and end")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.command = args.command[args.command[:1] == ["--"] :]
    if not args.command:
        parser.error("no command given, e.g. -- python -m qualiclip_jax.train --config configs/demo.py")
    if shutil.which(args.command[0]) is None:
        parser.error(f"no such command: {args.command[0]}")
    return args


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def environments(processes: int, devices: int, platform: str | None, base: dict[str, str]) -> list[dict[str, str]]:
    """What each process finds in its environment beyond `base`.

    Args:
      processes: N.
      devices: M, of each process.
      platform: "cpu", "gpu" or None (GPUs, where there are some).
      base: the environment that all of them inherit.

    Returns:
      N dicts of variables.

    Raises:
      ValueError: if there are fewer than N * M GPUs.
    """
    gpus = [] if platform == "cpu" else visible_gpus(base)
    if (platform == "gpu" or gpus) and len(gpus) < processes * devices:
        raise ValueError(
            f"{processes} processes x {devices} devices need {processes * devices} GPUs, but {len(gpus)} are visible: "
            "lower --processes or --devices, or take --platform cpu"
        )
    shared = {"QUALICLIP_COORDINATOR": f"127.0.0.1:{free_port()}", "QUALICLIP_PROCESSES": str(processes)}
    if not gpus:
        flag = "--xla_force_host_platform_device_count"
        others = re.sub(rf"{flag}=\S*", "", base.get("XLA_FLAGS", "")).split()
        shared |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*others, f"{flag}={devices}"])}
    return [
        shared
        | {"QUALICLIP_PROCESS": str(k)}
        | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus[k * devices : (k + 1) * devices])} if gpus else {})
        for k in range(processes)
    ]


def visible_gpus(base: dict[str, str]) -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES allows, else all that the driver lists; none where JAX_PLATFORMS is "cpu"."""
    if base.get("JAX_PLATFORMS") == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in base:
        return [gpu.strip() for gpu in base["CUDA_VISIBLE_DEVICES"].split(",") if gpu.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listing = subprocess.run(query, capture_output=True, text=True, check=False)
    return listing.stdout.split() if listing.returncode == 0 else []


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """The running processes; Ctrl-C, SIGTERM and SIGHUP go to all of them.

    Args:
      command: what each of them runs.
      extras: the variables to add to the environment of each.
      grace: seconds from the failure of one process until the others are killed.
    """

    def __init__(self, command: Sequence[str], extras: Sequence[dict[str, str]], grace: float):
        self._grace = grace
        self._lock = threading.Lock()  # one line at a time
        self._signals = 0  # forwarded so far
        self._ended: list[int] = []  # processes, in the order of their ends
        self._running: list[subprocess.Popen] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.forward)
        for extra in extras:
            if not self._signals:
                self._running.append(self._start(command, extra))
        self._readers = [
            threading.Thread(target=self._copy, args=(k, source, sink), daemon=True)
            for k, process in enumerate(self._running)
            for source, sink in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer))
        ]
        for reader in self._readers:
            reader.start()

    def _start(self, command: Sequence[str], extra: dict[str, str]) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            env=os.environ | extra,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C on the terminal reaches it once: through `forward`
        )

    def _copy(self, k: int, source: BinaryIO, sink: BinaryIO) -> None:
        for line in source:
            with self._lock:
                sink.write(f"[{k}] ".encode() + line.rstrip(b"\n") + b"\n")
                sink.flush()

    def say(self, line: str) -> None:
        """Prints a line of the launcher's own."""
        with self._lock:
            print(f"[local] {line}", file=sys.stderr, flush=True)

    def forward(self, number: int, frame: object = None) -> None:
        """Sends a signal to all that still run; the third one kills them."""
        self._signals += 1
        self._send(number if self._signals < 3 else signal.SIGKILL)

    def _send(self, number: int) -> None:
        for process in self._running:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process.pid, number)

    def wait(self) -> int:
        """Waits for all of them.

        Returns:
          The first exit status that is not 0 (128 + n after signal n), or 0.
        """
        deadline = None
        while len(self._ended) < len(self._running):
            for k, process in enumerate(self._running):
                if k not in self._ended and process.poll() is not None:
                    self._ended.append(k)
                    if deadline is None and self._failed(k):
                        deadline = time.monotonic() + self._grace
                        self._send(signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                self._send(signal.SIGKILL)
            time.sleep(0.05)
        for reader in self._readers:
            reader.join()
        codes = [self._running[k].returncode for k in self._ended]
        return next((code if code > 0 else 128 - code for code in codes if code), 0)

    def _failed(self, k: int) -> bool:
        """Whether process k ended in a way that leaves the others without hope; says so."""
        code = self._running[k].returncode
        if code in (0, DONE_IN_PART, INTERRUPTED) or self._signals:
            return False
        how = f"ended with status {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
        others = len(self._ended) < len(self._running)
        self.say(f"process {k} {how}{'; stopping the others' if others else ''}")
        return True


def main(argv: Sequence[str]) -> int:
    """Runs the processes; returns the exit status."""
    args = parse(argv)
    try:
        extras = environments(args.processes, args.devices, args.platform, dict(os.environ))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.dry_run:
        for extra in extras:
            variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in extra.items())
            print(f"{variables} {shlex.join(args.command)}")
        return 0
    return Processes(args.command, extras, args.grace).wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
