"""Where the numbers of a run go: JSON lines always, TensorBoard when installed, one short line for people."""

import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qualiclip_jax.errors import UserError


class MetricsWriter:
    """Appends one JSON object a logged step to `metrics.jsonl`, and the scalars to TensorBoard if it is there.

    Args:
      workdir: where `metrics.jsonl` lies and `tensorboard/` is made.
      last_step: the step the run goes on from; later lines, left by a run that was killed, are removed.
    """

    def __init__(self, workdir: Path, last_step: int):
        self._path = workdir / "metrics.jsonl"
        self._truncate(last_step)
        self._file = self._path.open("a", buffering=1)
        try:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=last_step + 1)
        except ImportError:
            self._board = None

    def _truncate(self, last_step: int) -> None:
        kept = [json.dumps(row) for row in read_metrics(self._path) if row["step"] <= last_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, self._path)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes scalars and short lists under their names; a number that is not finite becomes null."""
        row = {"step": step} | {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value):
        return [_plain(x) for x in value]
    value = float(value)
    return value if math.isfinite(value) else None


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line cut short by a crash is left out; [] if there is no file."""
    rows = []
    if Path(path).exists():
        for line in Path(path).read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


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
