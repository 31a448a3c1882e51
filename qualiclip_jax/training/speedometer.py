"""How fast a run is."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from qualiclip_jax.training import flops


class Speedometer:
    """Measures images per second, step time and time spent waiting for data, without the pauses.

    Args:
      batch_size: images a step.
      dtype: what the encoder computes in; "float32" or "bfloat16".
    """

    def __init__(self, batch_size: int, dtype: str):
        self._batch_size, self._dtype = batch_size, dtype
        self.flops_per_step: float | None = None
        self._peak = 0.0
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begins anew, at a step."""
        self._step, self._start, self._waited, self._excluded = step, time.perf_counter(), 0.0, 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out (evaluation, checkpoints)."""
        start = time.perf_counter()
        yield
        self._excluded += time.perf_counter() - start

    def estimate_flops(self, step: Callable[..., Any], *arguments: Any) -> None:
        """Counts the operations of a step, and measures the rate that the device reaches."""
        with self.paused():
            self.flops_per_step = flops.count(step, *arguments)
            self._peak = flops.matmul_rate(self._dtype)

    def read(self, step: int) -> dict[str, float]:
        """Returns the figures since the last reading, and begins anew."""
        steps = step - self._step
        seconds = max(time.perf_counter() - self._start - self._excluded, 1e-9)
        values = {
            "images_per_second": steps * self._batch_size / seconds,
            "step_seconds": seconds / steps,
            "data_wait_seconds": self._waited / steps,
        }
        if self.flops_per_step:
            values["flops_utilisation"] = self.flops_per_step * steps / seconds / self._peak
        self.restart(step)
        return values
