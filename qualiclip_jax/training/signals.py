"""Signals that ask a run to stop."""

import signal
from types import FrameType, TracebackType
from typing import Any

from qualiclip_jax.training import parallel


class StopSignals:
    """While entered, the first SIGTERM or Ctrl-C only asks the loop to save and stop; a second Ctrl-C stops at once.

    Several processes must stop at the same step: there JAX's preemption service takes SIGTERM, also for Ctrl-C.
    """

    def __init__(self) -> None:
        self._alone = parallel.is_alone()
        self._name = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._name and number == signal.SIGINT:
            raise KeyboardInterrupt("at once; the same command goes on from the last checkpoint")
        self._name = signal.Signals(number).name
        if not self._alone:
            signal.raise_signal(signal.SIGTERM)

    def received(self) -> bool:
        """Whether this process got a signal that asks it to stop."""
        return bool(self._name)

    def asked(self, step: int) -> str:
        """The name of the signal that asks to stop at this step, else ""; to be called at every step."""
        if self._alone:
            return self._name
        return (self._name or "SIGTERM") if parallel.preempted(step) else ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
