"""What all entry points share: exit statuses, and errors as one line."""

import errno

import pytest

from qualiclip_jax import cli
from qualiclip_jax.errors import UserError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("mend this"), "error: mend this"),
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
