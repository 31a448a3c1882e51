"""From data fetched by hand to the paper's table: prepares, trains and evaluates, and goes on where it was stopped.

    python launch/reproduce.py --downloads ~/downloads --dry-run      # what there is to do, hours, disk
    python launch/reproduce.py --downloads ~/downloads --out runs/reproduce

`--downloads` holds a folder for each set, named as `qualiclip data list` names it (`kadis700k`, `koniq10k` ...). Sets
that are not there are left out. Each stage is a `qualiclip` command, shown before it runs. Stages that are done are not
run again; training that was stopped goes on from its last checkpoint, and no image is scored twice. In the end
OUT/evaluation/comparison.md has the table: models by sets, with intervals, significance and published figures.

What follows `--` goes to every training, e.g. `-- --config.steps=1000`. See docs/reproduce.md.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from qualiclip_jax import cli, storage
from qualiclip_jax.data import store
from qualiclip_jax.data.builders import IMAGE_SETS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PHOTOS = "kadis700k"  # to train on
# Rated set -> gigabytes once prepared (those of the archives that IQA-PyTorch repacked, where it did).
RATED = {"koniq10k": 6.4, "clive": 0.4, "flive": 5.5, "spaq": 35.0, "kadid10k": 3.1, "tid2013": 1.3, "agiqa3k": 2.0}
# Config -> hours of training on one H200. Measured for vitb; from its operations for the others.
HOURS = {"vitb": 1.0, "rn50": 0.7, "rn50_paper": 3.0}
SYNTHETIC = "synthetic"
RUN_GIGABYTES = 2.0  # a run keeps its last two checkpoints, the best one and the model before training
MODEL_HOURS = 0.5  # to score all sets with one model
PHOTOS_GIGABYTES = 25.0

Runner = Callable[[Sequence[str]], int]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the work.

    Attributes:
      name: what it is called in the list, and in what is remembered.
      command: the arguments of `qualiclip`.
      hours, gigabytes: about how long it takes on one GPU, and what it leaves on the disk.
      gives: the rated set, or the model, that is there once it is done; "" for neither.
      lacking: why it cannot be run; "" if it can.
    """

    name: str
    command: tuple[str, ...]
    hours: float = 0.0
    gigabytes: float = 0.0
    gives: str = ""
    lacking: str = ""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="launch/reproduce.py", description="Reproduces the paper's table.", usage="%(prog)s [options] [-- FIELDS]"
    )
    parser.add_argument("--downloads", type=Path, metavar="DIR", help="what was fetched by hand, a folder for each set")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="prepared sets lie here (~/tensorflow_datasets)")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--train", default="rn50_paper,rn50,vitb", metavar="CONFIG,...",
        help="names in configs/, or files; empty for none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each config (3)")
    parser.add_argument("--photos", default=f"tfds:{PHOTOS}", metavar="SOURCE", help="to train on (%(default)s)")
    parser.add_argument(
        "--models", default="clip-iqa,RN50,qualiclip", metavar="NAME,...",
        help="published models to evaluate beside ours, the baseline first (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--sets",
        default=",".join([*RATED, SYNTHETIC]),
        metavar="NAME,...",
        help="to evaluate on (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the stages, hours and disk, and end")
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:end])
    args.fields = list(argv[end + 1 :])
    for name in ("train", "models", "sets"):
        setattr(args, name, [part.strip() for part in getattr(args, name).split(",") if part.strip()])
    if unknown := [name for name in args.sets if name not in RATED and name != SYNTHETIC]:
        parser.error(f"--sets {unknown[0]}: not one of {', '.join(RATED)}, {SYNTHETIC}")
    return args


def plan(args: argparse.Namespace) -> list[Stage]:
    """All stages but the evaluation, in order."""
    where = ["--data-dir", str(args.data_dir)] if args.data_dir else []
    stages = []
    needed = [PHOTOS] if args.train and args.photos == f"tfds:{PHOTOS}" else []
    for name in [*needed, *(name for name in args.sets if name != SYNTHETIC)]:
        folder = args.downloads and args.downloads / name
        command = ("data", "prepare", name, *where, *(("--manual-dir", str(folder)) if folder else ()))
        there = store.set_dir(name, args.data_dir).is_dir()
        lacking = "" if there or (folder and folder.is_dir()) else IMAGE_SETS[name].how_to_get()
        size = PHOTOS_GIGABYTES if name == PHOTOS else RATED.get(name, 1.0)
        stages.append(Stage(f"prepare {name}", command, size / 50, size, "" if name == PHOTOS else name, lacking))
    photos_lack = next((stage.lacking for stage in stages if stage.name == f"prepare {PHOTOS}"), "")
    stages += [Stage(f"fetch {name}", ("models", "--fetch", name), 0.1, 0.6, name) for name in args.models]
    for config in args.train:
        file = Path(config) if config.endswith(".py") else CONFIGS / f"{config}.py"
        lacking = "no photos to train on" if photos_lack else "" if file.is_file() else f"{file}: no such file"
        for seed in range(args.seeds):
            run = args.out / f"{file.stem}-seed{seed}"
            fields = (f"--config.seed={seed}", f"--config.data.source={args.photos}", *args.fields)
            command = ("train", "--config", str(file), "--workdir", str(run), *fields)
            hours = HOURS.get(file.stem, 1.0)
            stages.append(Stage(f"train {run.name}", command, hours, RUN_GIGABYTES, str(run), lacking))
    return stages


def evaluation(args: argparse.Namespace, stages: Sequence[Stage]) -> Stage:
    """The last stage: all models that are there on all sets that are there."""
    sets = [stage.gives for stage in stages if stage.gives in IMAGE_SETS] + [
        name for name in args.sets if name == SYNTHETIC
    ]
    models = [stage.gives for stage in stages if stage.gives and stage.gives not in IMAGE_SETS]
    where = ("--data-dir", str(args.data_dir)) if args.data_dir else ()
    lists = ("--checkpoint", ",".join(models), "--dataset", ",".join(sets))
    # A set that was prepared without some of its images is judged as it is; the report says how many are missing.
    command = ("evaluate", *lists, *where, "--allow-missing", "--out", str(args.out / "evaluation"))
    return Stage(
        "evaluate", command, MODEL_HOURS * len(models), 0.1, lacking="" if models and sets else "no model, or no set"
    )


def run_command(command: Sequence[str]) -> int:
    """Runs a `qualiclip` command in a process of its own; returns its exit status."""
    return subprocess.run([sys.executable, "-m", f"qualiclip_jax.{command[0]}", *command[1:]], check=False).returncode


def main(argv: Sequence[str], run: Runner = run_command) -> int:
    """Does what is to be done; see `--help`. Returns an exit status."""
    args = parse(argv)
    if args.data_dir:  # where training looks for its photos
        os.environ["TFDS_DATA_DIR"] = str(args.data_dir)
    memory = args.out / "stages.json"
    done: dict[str, list[str]] = json.loads(memory.read_text()) if memory.is_file() else {}
    stages = plan(args)
    if args.dry_run:
        show([*stages, evaluation(args, [stage for stage in stages if not stage.lacking])], done)
        return cli.DONE
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    with storage.lock(memory):
        for stage in stages:
            failed += _do(stage, done, memory, run)
        last = evaluation(args, [stage for stage in stages if stage.name not in failed])
        failed += _do(last, done, memory, run)
    if failed:
        print(f"not done: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
        return cli.FAILED if "evaluate" in failed else cli.IN_PART
    print(f"open {args.out / 'evaluation' / 'comparison.md'}")
    return cli.DONE


def _do(stage: Stage, done: dict[str, list[str]], memory: Path, run: Runner) -> list[str]:
    """Runs a stage if need be; its name if it could not be done."""
    if stage.lacking:
        print(f"== {stage.name}: left out. {stage.lacking}", file=sys.stderr)
        return [stage.name]
    if done.get(stage.name) == list(stage.command):
        print(f"== {stage.name}: done", file=sys.stderr)
        return []
    print(f"== {stage.name}: qualiclip {' '.join(stage.command)}", file=sys.stderr, flush=True)
    status = run(stage.command)
    if status == cli.INTERRUPTED:
        raise KeyboardInterrupt("the same command goes on from here")
    if status not in (cli.DONE, cli.IN_PART):
        return [stage.name]
    done[stage.name] = list(stage.command)
    storage.write_bytes(memory, json.dumps(done, indent=2).encode())
    return []


def show(stages: Sequence[Stage], done: dict[str, list[str]]) -> None:
    """Prints the stages, what each takes, and the sums of what is left to do."""
    hours = gigabytes = 0.0
    for stage in stages:
        finished = done.get(stage.name) == list(stage.command)
        state = f"left out: {stage.lacking}" if stage.lacking else "done" if finished else "to do"
        if state == "to do":
            hours, gigabytes = hours + stage.hours, gigabytes + stage.gigabytes
        print(f"{stage.name:24}  {stage.hours:5.1f} h  {stage.gigabytes:5.1f} GB  {state}")
    print(f"\nto do: about {hours:.1f} hours on one H200, {gigabytes:.0f} GB of disk beside the downloads")


if __name__ == "__main__":
    sys.exit(cli.run(main))
