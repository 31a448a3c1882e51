"""Errors that a user can fix: one class, with one clear line that says what, where and what to do."""


class UserError(Exception):
    """Something outside the program is wrong: a path, a file, a field.

    The message is one line, except for what is in the names of files. Entry points print it without a
    traceback and exit with status 1 (see `qualiclip_jax.cli`).
    """


def printable(text: str) -> str:
    """Text for people, on one line: control characters and bytes that are not UTF-8 become escapes such as `\\xe9`."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code < 0xDD00 else character.encode("unicode_escape").decode()
