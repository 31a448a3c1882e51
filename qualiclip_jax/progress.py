"""Progress on long work: a bar on a terminal, plain lines now and then in a log file."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Progress:
    """A bar on a terminal; elsewhere a line every `every` seconds, and one at the end.

        with Progress(total=120, title="scoring", unit="image") as progress:
            progress.advance(8, note="3 failed")

    Args:
      total: how many units the whole work has; None if unknown.
      title: what is being done, one or two words.
      unit: what is counted, singular.
      done: how many units an earlier run had done already (they do not count for the speed).
      every: seconds between two lines where there is no terminal.
      show: False shows nothing (another process of the same run does).
      status: what the work is held up by at the moment it is called, e.g. "compiling ..."; "" for nothing.
    """

    def __init__(
        self,
        total: int | None,
        title: str,
        unit: str = "it",
        done: int = 0,
        every: float = 10.0,
        show: bool = True,
        status: Callable[[], str] = str,
    ):
        self._total, self._title, self._unit, self._every = total, title, unit, every
        self._count, self._first, self._note, self._status = done, done, "", status
        self._start = self._last = time.monotonic()
        self._bar, self._show = None, show
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=title, unit=unit, initial=done, dynamic_ncols=True, file=sys.stderr)
        self._printing, self._ended = threading.Lock(), threading.Event()
        self._clock = threading.Thread(target=self._tick, name="progress", daemon=True)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Counts `units` more; `note` is shown beside the bar."""
        self._count += units
        self._note = note or self._note
        if self._bar is not None:
            self._bar.set_postfix_str(self._beside(), refresh=False)
            self._bar.update(units)
        else:
            self._print_if_due()

    def write(self, line: str) -> None:
        """Prints a line above the bar (or as it is, where there is none)."""
        if not self._show:
            return
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def _tick(self) -> None:
        """Goes on showing how things stand while no unit is finished for long."""
        shown = ""
        while not self._ended.wait(min(self._every, 0.5)):
            if self._bar is None:
                self._print_if_due()
            elif self._beside() != shown:
                shown = self._beside()
                self._bar.set_postfix_str(shown)

    def _beside(self) -> str:
        return "  ".join(filter(None, (self._note, self._status())))

    def _print_if_due(self) -> None:
        with self._printing:
            if time.monotonic() - self._last >= self._every:
                self._print()

    def _print(self) -> None:
        if not self._show:
            return
        self._last = now = time.monotonic()
        done = str(self._count) if self._total is None else f"{self._count} of {self._total}"
        unit = plural(self._count if self._total is None else self._total, self._unit)
        parts = [f"{self._title}: {done} {unit}"]
        if self._count > self._first:
            parts.append(rate(self._count - self._first, now - self._start, self._unit))
        beside = self._beside()
        print(", ".join(parts) + (f"  {beside}" if beside else ""), file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        if self._show:
            self._clock.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._ended.set()
        if self._clock.is_alive():
            self._clock.join()
        if self._bar is not None:
            self._bar.close()
        elif self._count > self._first:
            self._print()


def track(items: Iterable[T], total: int | None, title: str, unit: str = "it") -> Iterator[T]:
    """Iterates over `items` with a `Progress` beside it."""
    with Progress(total, title, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def plural(number: int, unit: str) -> str:
    """The unit as it follows a number: "image" after 1, "images" after any other; "batches"."""
    return unit if number == 1 else f"{unit}{'es' if unit.endswith('ch') else 's'}"


def rate(units: int, seconds: float, unit: str) -> str:
    """How fast things go, in the way that reads best: "2.5 images/s", or "40 s/image"."""
    speed = units / max(seconds, 1e-9)
    if speed >= 1:
        return f"{speed:.1f} {plural(2, unit)}/s"
    pace = 1 / speed
    return f"{pace:.1f} s/{unit}" if pace < 10 else f"{pace:.0f} s/{unit}"
