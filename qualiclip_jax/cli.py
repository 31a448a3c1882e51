"""The console command `qualiclip` and what all entry points share: exit statuses and one-line errors.

Exit status: 0 done, 1 could not, 2 done in part, 130 interrupted.
"""

import argparse
import contextlib
import difflib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from qualiclip_jax.errors import UserError, printable
from qualiclip_jax.version import __version__

DONE, FAILED, IN_PART, INTERRUPTED = 0, 1, 2, 130

COMMANDS = {
    "train": "train on pristine images",
    "score": "score image files",
    "select": "choose images by their scores",
    "fit": "fit a model to ratings of your own",
    "map": "draw where a photo is good and where it is not",
    "evaluate": "correlation with human opinion, and the synthetic benchmark",
    "models": "list the models that have a name",
    "convert": "PyTorch or Hugging Face weights to a checkpoint of this project",
    "export": "a model as ONNX or StableHLO, for use without Python",
    "data": "list and prepare data sets",
    "degradations": "look at the 24 degradations",
}
PACKAGES = ("data", "degradations", "export", "models")  # commands whose module is a package: `__main__` runs


def run(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Calls `main(arguments)` and turns what comes out into an exit status.

    Args:
      main: takes the arguments without the program name, returns an exit status or None for `DONE`.
      argv: the arguments; `sys.argv[1:]` by default.

    Returns:
      0, 1, 2 or 130. A `UserError` or `OSError` is printed to standard error as one line, without a traceback; where
      messages cannot be written, e.g. to a full disk, the work goes on without them. The first Ctrl-C is a
      `KeyboardInterrupt`; a second one ends the process at once, whatever it still waits for.
    """
    _open_standard_streams()
    with _messages_that_may_fail():
        return _status(main, sys.argv[1:] if argv is None else argv)


def _status(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int:
    """Calls `main` and prints how it ended; see `run`."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal has no letters for is no error
    try:
        with _interrupts():
            return main(argv) or DONE
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return FAILED
    except SystemExit as stop:  # argparse ends with 2 after a wrong argument, which here means "in part"
        return FAILED if stop.code else DONE
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{f': {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # e.g. `qualiclip score ... | head`
        sys.stderr.close()
        return FAILED
    except OSError as error:  # e.g. a full disk
        reason = (error.strerror or str(error) or type(error).__name__).splitlines()[0]
        name = (
            f"{printable(os.fsdecode(error.filename))}: "
            if isinstance(error.filename, str | bytes | os.PathLike)
            else ""
        )
        print(f"error: {name}{reason}", file=sys.stderr)
        return FAILED


def _open_standard_streams() -> None:
    """Opens the null device in place of standard streams that are closed, as a scheduler may start a command.

    In their order: each then gets its own number, and no file that is opened later takes messages meant for a screen.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (as long as the process)


class _Messages:
    """A stream whose messages are lost where they cannot be written."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _messages_that_may_fail() -> Iterator[None]:
    """Lets no error of the system on standard error end the work, until the block ends."""
    stream = sys.stderr
    sys.stderr = cast(TextIO, _Messages(stream))
    try:
        yield
    finally:
        sys.stderr = stream
        try:
            stream.flush()
        except OSError:  # else Python tries once more as it ends, and exits with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except ValueError:  # closed
            pass


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Makes the second Ctrl-C final, until the block ends uninterrupted."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return

    def at_once(number: int, frame: FrameType | None) -> None:
        os._exit(INTERRUPTED)

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, at_once)
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping; Ctrl-C once more ends it at once\n")  # print may be what is interrupted
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is first:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def positive(text: str) -> int:
    """A whole number of 1 or more, as the `type` of an argument of `argparse`."""
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def program(command: str) -> str:
    """How a command was started, for its help: `qualiclip COMMAND` or `python -m qualiclip_jax.COMMAND`."""
    name = f"qualiclip {command}"
    return name if sys.argv[0] == name else f"python -m qualiclip_jax.{command}"


def console() -> NoReturn:
    """The console command: `qualiclip COMMAND ...` is `python -m qualiclip_jax.COMMAND ...`."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--version"]:
        print(f"qualiclip_jax {__version__}")
        sys.exit(DONE)
    if not arguments or arguments[0] not in COMMANDS:
        asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help", "help")
        stream = sys.stdout if asked_for_help else sys.stderr
        if arguments and not asked_for_help:
            close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            print(f"error: no command {arguments[0]!r}{hint}", file=stream)
        print("usage: qualiclip COMMAND ...   (qualiclip COMMAND --help tells more)\n", file=stream)
        for name, what in COMMANDS.items():
            print(f"  {name:13s} {what}", file=stream)
        sys.exit(DONE if asked_for_help else FAILED)
    command = arguments[0]
    module = f"qualiclip_jax.{command}"
    if command in PACKAGES:
        module += ".__main__"
    sys.argv = [f"qualiclip {command}", *arguments[1:]]
    sys.exit(run(importlib.import_module(module).main))
