"""What all entry points share: exit statuses, and errors as one line."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest

from qualiclip_jax import cli
from qualiclip_jax.errors import UserError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("mend this"), "error: mend this"),
        (
            UserError("two\nlines\x1b[0m\udce9.png: no file"),
            r"error: two\nlines\x1b[0m\xe9.png: no file",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "out.csv"), "error: out.csv: Permission denied"),
        (OSError("read timed out\nmore"), "error: read timed out"),
    ],
)
def test_what_a_user_can_mend_is_one_line(capsys, error, line):
    def main(_):
        raise error

    assert cli.run(main, ()) == cli.FAILED
    assert capsys.readouterr().err == f"{line}\n"


def test_mistakes_of_the_program_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda _: 1 / 0, ())


WAITS = """
import signal, sys, threading
from qualiclip_jax import cli
from qualiclip_jax.progress import Progress
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits "ignore"
def main(_):
    try:
        with Progress(2, "working") as bar:
            bar.write("started")
            threading.Event().wait()
    finally:
        threading.Event().wait()  # for a computation that cannot be stopped
sys.exit(cli.run(main, ()))
"""


def test_the_second_interrupt_ends_what_the_first_one_only_asked_to_end():
    with subprocess.Popen([sys.executable, "-c", WAITS], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert process.stderr.readline() == "stopping; Ctrl-C once more ends it at once\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
        assert process.wait() == cli.INTERRUPTED


def test_the_handler_of_interrupts_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    seen = []
    assert cli.run(lambda _: seen.append(signal.getsignal(signal.SIGINT)), ()) == cli.DONE
    assert seen[0] is not before
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_names_the_program_as_it_was_started(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/qualiclip", command, "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.console()
    assert not stop.value.code
    assert capsys.readouterr().out.startswith(f"usage: qualiclip {command} ")
    assert cli.program(command) == f"qualiclip {command}"
    sys.argv = ["/somewhere/qualiclip_jax/main.py"]
    assert cli.program(command) == f"python -m qualiclip_jax.{command}"


def test_closed_standard_streams_are_no_error(tmp_path):
    """As a scheduler may start a command. What is opened later does not take their numbers, and with them messages."""
    program = "import os, sys; from qualiclip_jax import cli; sys.exit(cli.run(lambda _: CALL, ()))"
    call = "(print(1), print(2, file=sys.stderr), os.fstat(os.open(sys.argv[1], os.O_RDONLY)), sys.exit(0))"
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        code = program.replace("CALL", call if closed != "<&-" else f"(print(sys.stdin.buffer.read()), {call})")
        command = f'"$0" -c "$1" "$2" {closed}'
        subprocess.run(["sh", "-c", command, sys.executable, code, str(tmp_path)], check=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full")
def test_messages_that_cannot_be_written_are_no_error():
    """The work goes on, as what it prints and writes is of use without them."""
    code = (
        "import sys; from qualiclip_jax import cli; from qualiclip_jax.progress import track;"
        "sys.exit(cli.run(lambda _: print([*track(range(3), 3, 'working')]), ()))"
    )
    done = subprocess.run(["sh", "-c", '"$0" -c "$1" 2>/dev/full', sys.executable, code], capture_output=True)
    assert (done.returncode, done.stdout) == (cli.DONE, b"[0, 1, 2]\n")
    done = subprocess.run(["sh", "-c", '"$0" -c "$1" >/dev/full', sys.executable, code], capture_output=True)
    assert done.returncode != cli.DONE  # a result that cannot be written is


def test_names_that_a_terminal_has_no_letters_for_are_no_error(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", screen)
    assert cli.run(lambda _: print("caf\xe9 \u2603 \udce9"), ()) == cli.DONE
    screen.flush()
    assert screen.buffer.getvalue() == b"caf\xe9 \\u2603 \\udce9\n"
