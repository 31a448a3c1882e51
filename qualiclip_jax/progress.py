"""Progress on long work: a bar on a terminal, plain lines now and then in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any


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
    """

    def __init__(
        self,
        total: int | None,
        title: str,
        unit: str = "it",
        done: int = 0,
        every: float = 10.0,
        show: bool = True,
    ):
        self._total, self._title, self._unit, self._every = total, title, unit, every
        self._count, self._first, self._note = done, done, ""
        self._start = self._last = time.monotonic()
        self._bar, self._show = None, show
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=title, unit=unit, initial=done, dynamic_ncols=True, file=sys.stderr)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Counts `units` more; `note` is shown beside the bar."""
        self._count += units
        self._note = note or self._note
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(units)
        elif time.monotonic() - self._last >= self._every:
            self._print()

    def write(self, line: str) -> None:
        """Prints a line above the bar (or as it is, where there is none)."""
        if not self._show:
            return
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def _print(self) -> None:
        if not self._show:
            return
        self._last = now = time.monotonic()
        speed = (self._count - self._first) / max(now - self._start, 1e-9)
        total = "" if self._total is None else f"/{self._total}"
        note = f"  {self._note}" if self._note else ""
        print(
            f"{self._title}: {self._count}{total} {self._unit}, {speed:.1f}/s{note}",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._count > self._first:
            self._print()


def track(items: Iterable, total: int | None, title: str, unit: str = "it") -> Iterator:
    """Iterates over `items` with a `Progress` beside it."""
    with Progress(total, title, unit) as progress:
        for item in items:
            yield item
            progress.advance()
