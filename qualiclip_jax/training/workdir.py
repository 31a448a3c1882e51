"""The working directory of a run: whose it is, whether it can be written, what is removed by --overwrite."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from qualiclip_jax import checkpoint, storage
from qualiclip_jax.errors import UserError
from qualiclip_jax.training import config as config_lib

CONFIG = "config.json"
WRITTEN = (
    "metrics.jsonl",
    "evaluations.jsonl",
    "degradations.png",
    "curves.png",
    "probe.npz",
    CONFIG,
)  # the config goes last
FOLDERS = ("checkpoints", "tensorboard")
_OURS = {"steps", "data", "model", "degradations"}  # some fields of every config


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keeps other processes from training in the directory at the same time.

    Raises:
      UserError: if one does already, or if there cannot be such a directory.
    """
    with _write_errors(workdir):
        workdir.parent.mkdir(parents=True, exist_ok=True)
    with storage.lock(workdir):
        yield


def prepare(workdir: Path, config: ConfigDict, overwrite: bool, checkpoint_bytes: int) -> None:
    """Makes the directory this run's own.

    Args:
      workdir: made if it is not there.
      config: of the run; written to `config.json`.
      overwrite: remove an earlier run first.
      checkpoint_bytes: size of one checkpoint.

    Raises:
      UserError: if it cannot be written, lies on a disk without room for the checkpoints, holds files that a run would
        write but none wrote, or the run of another config, whose difference is shown. How it is spread over devices is
        none, nor is TensorBoard, nor are more steps under a constant schedule.
    """
    with _write_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        _refuse_files_of_others(workdir)
        if overwrite:
            _clear(workdir)
        _refuse_other_config(workdir / CONFIG, config)
        _check_space(workdir, checkpoint_bytes, config.checkpoint.keep_last)
        storage.write_bytes(workdir / CONFIG, f"{config_lib.to_json(config)}\n".encode())


@contextlib.contextmanager
def _write_errors(workdir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written: {error.strerror or error}") from None


def _refuse_files_of_others(workdir: Path) -> None:
    """Refuses a directory with files of the names of `WRITTEN` or `FOLDERS` that no training run wrote."""
    there = [name for name in (*WRITTEN, *FOLDERS) if (workdir / name).exists()]
    with contextlib.suppress(ValueError):  # no JSON: a damaged config is another error
        config = json.loads((workdir / CONFIG).read_bytes()) if CONFIG in there else {}
        if there and isinstance(config, dict) and not config.keys() >= _OURS:
            raise UserError(f"--workdir {workdir}: {there[0]} is there and not of a training run: choose another one")


def _refuse_other_config(path: Path, config: ConfigDict) -> None:
    if not path.exists():
        return
    new, length = json.loads(config_lib.to_json(config)), ("steps", "epochs")
    try:
        old = config_lib.with_defaults(json.loads(path.read_text()))
        longer = all(old[field] <= new[field] for field in length)
    except (ValueError, AttributeError, LookupError, TypeError):  # no JSON, or not what a run writes
        raise UserError(f"{path} is damaged: use a new --workdir, or --overwrite to start again") from None
    old |= {field: new[field] for field in ("parallel", "shards", "tensorboard")}  # the run is the same with any
    if longer and not config_lib.depends_on_length(config):
        old |= {field: new[field] for field in length}  # more steps only add to the run
    changed = config_lib.differences(old, new)
    if changed:
        shown = "; ".join(changed[:8]) + (f"; and {len(changed) - 8} more" if len(changed) > 8 else "")
        raise UserError(
            f"{path.parent} holds a run with another config ({shown}): use a new --workdir, "
            "or --overwrite to remove that run"
        )


def _clear(workdir: Path) -> None:
    checkpoint.remove(workdir / "checkpoints")
    shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
    for name in WRITTEN:
        (workdir / name).unlink(missing_ok=True)


def _check_space(workdir: Path, checkpoint_bytes: int, keep_last: int) -> None:
    """Checks that the checkpoints to be kept, and one being written, fit on the disk; those of this run are there."""
    number = keep_last + 3  # with the first, the best and the one being written
    there = sum(file.stat().st_size for file in (workdir / "checkpoints").rglob("*") if file.is_file())
    needed, free = checkpoint_bytes * number - there, shutil.disk_usage(workdir).free
    if needed > free:
        advice = "free some space" if there else "free some space, lower config.checkpoint.keep_last"
        raise UserError(
            f"--workdir {workdir} has {free / 2**20:,.0f} MiB free, but {number} checkpoints need "
            f"{needed / 2**20:,.0f}{' more' if there else ''}: {advice}, or take another --workdir"
        )
