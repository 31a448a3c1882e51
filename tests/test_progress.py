"""Progress: lines in a log file, a bar on a terminal, and speeds that can be read."""

import io
import re
import sys
import threading

import pytest

from qualiclip_jax import progress
from qualiclip_jax.progress import Progress


class Screen(io.StringIO):
    """A standard error that may be a terminal, and on which one can wait for some text."""

    def __init__(self, terminal=False):
        super().__init__()
        self.terminal, self.written = terminal, threading.Condition()

    def isatty(self):
        return self.terminal

    def write(self, text):
        with self.written:
            super().write(text)
            self.written.notify_all()

    def wait_for(self, text):
        with self.written:
            assert self.written.wait_for(lambda: text in self.getvalue(), timeout=60), self.getvalue()


@pytest.fixture
def screen(monkeypatch):
    def make(**options):
        screen = Screen(**options)
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return make


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still, until it is set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_now_and_then_and_one_at_the_end(screen, clock):
    screen = screen()
    with Progress(3, "scoring", "image", every=10) as bar:
        for clock[0] in (2.0, 12.0, 16.0):
            bar.advance(note="1 failed" if clock[0] == 2 else "")
            bar.write(f"after {clock[0]:.0f} s")
    assert screen.getvalue().splitlines() == [
        "after 2 s",
        "scoring: 2 of 3 images, 6.0 s/image  1 failed",
        "after 12 s",
        "after 16 s",
        "scoring: 3 of 3 images, 5.3 s/image  1 failed",
    ]


def test_work_of_an_earlier_run_does_not_count_for_the_speed(screen, clock):
    screen = screen()
    with Progress(100, "training", "step", done=90) as bar:
        clock[0] = 5.0
        bar.advance(10)
    assert screen.getvalue() == "training: 100 of 100 steps, 2.0 steps/s\n"


def test_a_log_tells_what_holds_the_work_up(screen):
    screen = screen()
    with Progress(1, "scoring", "image", every=0.001, status=lambda: "compiling ..."):
        screen.wait_for("scoring: 0 of 1 image  compiling ...\n")


def test_a_bar_on_a_terminal_tells_it_too(screen):
    screen, status = screen(terminal=True), ["compiling ..."]
    with Progress(4, "scoring", "image", status=lambda: status[0]) as bar:
        screen.wait_for("compiling ...")
        bar.advance(2, "1 failed")
        status[0] = ""
        bar.write("a.png: damaged")
        bar.advance(2)
    lines = re.split(r"[\r\n]", screen.getvalue())
    assert "a.png: damaged" in [line.strip() for line in lines]
    assert re.match(r"scoring: 100%.* 4/4 .*1 failed", next(line for line in reversed(lines) if "4/4" in line))


def test_nothing_is_shown_where_nothing_is_to_be_shown(screen):
    for terminal in (False, True):
        silent = screen(terminal=terminal)
        with Progress(1, "scoring", every=0, show=False) as bar:
            bar.advance()
            bar.write("a line")
        assert silent.getvalue() == ""


def test_track_counts_what_it_passes_on(screen):
    screen = screen()
    assert list(progress.track(iter("abc"), 3, "degrading", "type")) == ["a", "b", "c"]
    assert screen.getvalue().startswith("degrading: 3 of 3 types, ")


@pytest.mark.parametrize(
    ("units", "seconds", "text"),
    [
        (5, 2, "2.5 images/s"),
        (1, 1, "1.0 images/s"),
        (1, 3, "3.0 s/image"),
        (1, 40, "40 s/image"),
        (0.5, 40, "80 s/image"),
    ],
)
def test_rates_that_can_be_read(units, seconds, text):
    assert progress.rate(units, seconds, "image") == text


def test_plural():
    assert [progress.plural(n, "image") for n in (0, 1, 2)] == ["images", "image", "images"]
    assert [progress.plural(n, "batch") for n in (1, 2)] == ["batch", "batches"]
