"""Where the numbers of a run go: JSON lines always, TensorBoard when installed, one short line for people."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qualiclip_jax import storage
from qualiclip_jax.errors import UserError

STEPS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"


class MetricsWriter:
    """Appends one JSON object per logged step to `metrics.jsonl`, and one per evaluation to `evaluations.jsonl`.

    The scalars of both go to TensorBoard too, if tensorboardX is installed.

    Args:
      workdir: where the files lie and `tensorboard/` is made.
      last_step: the step the run goes on from; later lines, left by a run that was killed, are removed.
      tensorboard: False leaves TensorBoard out.
    """

    def __init__(self, workdir: Path, last_step: int, tensorboard: bool = True):
        self._files = {name: _open_after(workdir / name, last_step) for name in (STEPS, EVALUATIONS)}
        self._board = _event_writer(workdir, last_step) if tensorboard else None

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes scalars and short lists of a step under their names; a number that is not finite becomes null.

        Raises:
          UserError: if the file cannot be written.
        """
        self._append(STEPS, step, values)

    def write_evaluation(self, step: int, values: dict[str, Any]) -> None:
        """The same for what was measured at a step."""
        self._append(EVALUATIONS, step, values)

    def _append(self, name: str, step: int, values: dict[str, Any]) -> None:
        row = {"step": step} | {name: _plain(value) for name, value in values.items()}
        try:
            self._files[name].append(row)
        except OSError as error:
            raise UserError(
                f"step {step}: {self._files[name].path} cannot be written ({error.strerror or error}); the checkpoints "
                "are whole: make room and run the same command again"
            ) from None
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the files; on a full disk what was not written by now is lost."""
        for closing in (*self._files.values(), *([self._board] if self._board is not None else [])):
            with contextlib.suppress(OSError):
                closing.close()


def _event_writer(workdir: Path, last_step: int) -> Any:
    """The writer of TensorBoard's events; None without tensorboardX."""
    try:
        from tensorboardX import SummaryWriter  # seconds, where PyTorch is installed: it imports that as well
    except ImportError:
        return None
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=last_step + 1)


def _open_after(path: Path, last_step: int) -> storage.JsonLines:
    """Opens a file to append to, without its lines of steps after `last_step`."""
    kept = [json.dumps(row) for row in storage.read_jsonl(path) if row["step"] <= last_step]
    storage.write_bytes(path, "".join(line + "\n" for line in kept).encode())
    return storage.JsonLines(path)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        return [_plain(x) for x in value]
    value = float(value)
    return value if math.isfinite(value) else None


def check_finite(first_step: int, rows: list[dict[str, np.ndarray]]) -> None:
    """Stops the run at the first step with a metric that is not finite.

    Args:
      first_step: number of the step the first row belongs to.
      rows: metrics of consecutive steps.

    Raises:
      UserError: naming the step and the metric.
    """
    for step, row in enumerate(rows, first_step):
        for name, value in row.items():
            if not np.all(np.isfinite(value)):
                raise UserError(
                    f"step {step}: {name} is not finite ({np.asarray(value).tolist()}): training stopped. "
                    "Lower config.learning_rate, or set config.optimizer.clip_norm"
                )


def device_memory() -> dict[str, float]:
    """Peak memory of the first local device in GiB, where the device tells it (GPU, TPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"device_memory_gib": stats["peak_bytes_in_use"] / 2**30} if "peak_bytes_in_use" in stats else {}
