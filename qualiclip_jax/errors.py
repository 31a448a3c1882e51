"""Errors that a user can fix share one class, with one clear line: what, where, what to do."""


class UserError(Exception):
    """Something outside the program is wrong: a path, a file, a field. The message is one line, ready to be printed.

    Entry points print it without a traceback and exit with status 1 (see `qualiclip_jax.cli`).
    """
