"""Sweep of what may make a training step faster: batch, remat, XLA's flags; a row each, PyTorch beside them.

    python benchmarks/sweep.py                    on a GPU: all that fits into ten minutes
    python benchmarks/sweep.py --only rn50 vitl
    python benchmarks/sweep.py --only tiny        on a CPU, to see that it works

Each row is a process of its own, since XLA reads its flags at the start: one that fails or runs out of memory says so,
and the others go on. All are steps without degradations. `--list` prints the names of the rows.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import NamedTuple

import train_step

# XLA's flags, added to XLA_FLAGS, with what each gave. They serve `qualiclip train` in the same way. If one is to be
# recommended, it is here, and the figure beside it.
FLAGS = {
    "latency hiding": "--xla_gpu_enable_latency_hiding_scheduler=true",  # not measured; meant for several GPUs
    "no Triton products": "--xla_gpu_enable_triton_gemm=false",  # not measured; cuBLAS alone
    "no command buffers": "--xla_gpu_enable_command_buffer=",  # not measured; a launch for each kernel
    "all tilings": "--xla_gpu_exhaustive_tiling_search=true",  # not measured; compiles for long
    "no autotuning": "--xla_gpu_autotune_level=0",  # not measured; expected to lose
}


def random(file, backbone, *more):
    """Arguments of a config with random weights."""
    return (
        "--config",
        f"configs/{file}.py",
        "--config.model.weights=random",
        f"--config.model.backbone={backbone}",
        *more,
    )


CONFIGS = {
    "vitb": random("vitb", "ViT-B/16"),
    "rn50": random("rn50", "RN50"),
    "vitl": random("vitl", "ViT-L/14"),
    "tiny": ("--config", "configs/demo.py", "--config.batch_size=2"),
}


class Row(NamedTuple):
    """One line of the table: a config, fields of it that are changed, and XLA's flags."""

    config: str
    name: str
    fields: tuple[str, ...] = ()
    flags: str = ""
    peer: bool = False


def batch(size):
    """A field that sets the batch."""
    return (f"--config.batch_size={size}",)


# The most telling first: those at the end wait for a second call.
ROWS = [
    Row("vitb", "baseline"),
    Row("vitb", "PyTorch", peer=True),
    Row("vitb", "batch 128", batch(128)),
    Row("rn50", "baseline"),
    Row("rn50", "PyTorch", peer=True),
    Row("vitl", "baseline"),
    Row("vitl", "PyTorch", peer=True),
    Row("vitl", "no remat", ("--config.model.remat=False",)),
    *(Row("vitb", name, flags=flags) for name, flags in FLAGS.items()),
    Row("vitb", "batch 32", batch(32)),
    Row("vitb", "remat", ("--config.model.remat=True",)),
    Row("rn50", "batch 128", batch(128)),
    *(Row("rn50", name, flags=flags) for name, flags in FLAGS.items()),
    Row("vitl", "batch 64", batch(64)),
    Row("tiny", "baseline"),
    Row("tiny", "PyTorch", peer=True),
    Row("tiny", "unknown flag", flags="--xla_no_such_flag=1"),
]


def measure(row, repeats, timeout):
    """The numbers of a row, or a string that says why there are none."""
    arguments = [*CONFIGS[row.config], *row.fields]
    if row.peer:
        return train_step.run_peer(arguments[1], arguments[2:], repeats, timeout)
    command = [sys.executable, train_step.__file__, "--json", "--repeats", str(repeats), *arguments]
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {row.flags}".strip()}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        return f"no result in {timeout:.0f} s"
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if "RESOURCE_EXHAUSTED" in done.stderr or "out of memory" in done.stderr.lower():
        return "out of memory"
    if "Unknown flag" in done.stderr:
        return "this XLA does not know the flag"
    return (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1][:100]


def images_a_step(row):
    """The batch of a row, read from its config."""
    config, _, _ = train_step.train.parse([*CONFIGS[row.config], *row.fields])
    return config.batch_size


def main():
    """Prints the table, a row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["vitb", "rn50", "vitl"], metavar="NAME", help="configs or rows")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=9.5, help="rows that do not fit are left out")
    parser.add_argument("--most", type=float, default=150, help="seconds for one row")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    names = {row: {row.config, row.name, f"{row.config} {row.name}"} for row in ROWS}
    rows = [row for row in ROWS if names[row] & set(args.only)]
    if unknown := set(args.only).difference(*names.values()):
        parser.error(f"no config or row {', '.join(sorted(unknown))}: --list prints them")
    if args.repeats < 1:
        parser.error("--repeats must be 1 or more")
    if args.list:
        print("\n".join(f"{row.config} {row.name}" for row in ROWS))
        return
    end = time.monotonic() + 60 * args.minutes
    baselines = {}
    print(
        "| config | row | images | ms a step | images/s | to baseline | share of matmul rate | peak GiB |\n|"
        + "---|" * 8
    )
    for row in rows:
        left = end - time.monotonic()
        told = measure(row, args.repeats, min(args.most, left)) if left > 20 else "no time left"
        images = images_a_step(row)
        if isinstance(told, str):
            cells = [told, *["-"] * 4]
        else:
            speed = 1e3 * images / told["ms"]
            if row.name == "baseline":
                baselines[row.config] = speed
            memory = told.get("device_memory_gib", told.get("memory_gib"))
            cells = [
                f"{told['ms']:.1f}",
                f"{speed:.1f}",
                f"{speed / baselines[row.config]:.3f}" if row.config in baselines else "-",
                f"{told['share']:.1%}" if "share" in told else "-",
                f"{memory:.1f}" if memory else "-",
            ]
        print("| " + " | ".join([row.config, row.name, str(images), *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
