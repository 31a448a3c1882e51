"""Errors of files that cannot be read."""

import os

from qualiclip_jax.errors import UserError


class ImageError(UserError):
    """One image, or one folder of images, cannot be read or scored.

    Attributes:
      path: the file or folder, as it was given.
      reason: what is wrong, without the path.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason


class Refused(Exception):
    """A decoder raises this for a file that may be sound, but is not decoded. Its text becomes the reason."""


def not_supported(what: str, advice: str = "") -> Refused:
    """The error for a kind of file that is known, but not decoded."""
    return Refused(f"{what} is not supported{advice and ': '}{advice}")


def first_line(error: BaseException) -> str:
    """What an exception of another library says, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
