"""Files wherever fsspec reaches: patterns of them, reading, and writing whole or not at all."""

import contextlib
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from qualiclip_jax import storage
from qualiclip_jax.errors import UserError


def expand(argument: str) -> list[str]:
    """The files that a pattern means, in order: braces as in a shell, then `*`, `?` and `[...]`.

    Args:
      argument: a path or URL, e.g. "s3://bucket/{0000..0999}.tar".

    Raises:
      UserError: no file fits, or nothing can read such a URL.
    """
    if (braces := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", argument)) is not None:
        first, last, words = braces.groups()
        if words is None:
            numbers = (
                range(int(first), int(last) + 1) if int(first) <= int(last) else range(int(first), int(last) - 1, -1)
            )
            parts = [str(number).zfill(len(first)) for number in numbers]
        else:
            parts = words.split(",")
        before, after = argument[: braces.start()], argument[braces.end() :]
        return [file for part in parts for file in expand(f"{before}{part}{after}")]
    if not re.search(r"[*?\[]", argument):
        return [argument]
    files, path = system(argument)
    with naming(argument):
        found = sorted(files.glob(path))
    if not found:
        raise UserError(f"{argument}: no file fits this pattern")
    return found if is_local(files) else [files.unstrip_protocol(name) for name in found]


def system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises UserError where nothing can read such a URL."""
    try:
        files, path = fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:  # an unknown protocol, or one whose package is missing
        raise UserError(f"{url}: {reason(error)}") from None
    return files, path


def is_local(files: Any) -> bool:
    """Whether a file system is that of this machine."""
    return isinstance(files, LocalFileSystem)


def exists(url: str) -> bool:
    """Whether there is a file. Raises UserError where that cannot be found out."""
    files, path = system(url)
    with naming(url):
        return bool(files.exists(path))


def size(url: str) -> int:
    """The size of a file in bytes. Raises UserError if it is not there, or cannot be found out."""
    files, path = system(url)
    with naming(url):
        return int(files.size(path) or 0)


@contextlib.contextmanager
def naming(url: str) -> Iterator[None]:
    """Turns whatever is wrong with a file into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{url}: no such file") from None
    except (OSError, EOFError, tarfile.TarError, ValueError, ImportError) as error:
        raise UserError(f"{url}: cannot be read ({reason(error)})") from None
    except Exception as error:  # clients of stores have classes of their own
        if type(error).__module__.partition(".")[0] in ("botocore", "aiohttp", "gcsfs", "google", "azure"):
            raise UserError(f"{url}: cannot be reached ({reason(error)})") from None
        raise


@contextlib.contextmanager
def reading(url: str) -> Iterator[BinaryIO]:
    """Opens a file; whatever is wrong with it, then or later in the block, becomes a UserError that names it."""
    with naming(url):
        files, path = system(url)
        with files.open(path, "rb") as file:
            yield file


@contextlib.contextmanager
def writing(url: str) -> Iterator[BinaryIO]:
    """Opens a new file that appears when the block ends, whole; if the block raises, it does not. Folders are made."""
    files, path = system(url)
    if is_local(files):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with storage.replacing(path) as file:
            yield file
        return
    with tempfile.TemporaryFile() as kept:  # closing a remote file would keep what was written before an error
        yield cast(BinaryIO, kept)
        kept.seek(0)
        try:
            with files.open(path, "wb") as file:
                while block := kept.read(2**24):
                    file.write(block)
        except OSError as error:
            raise UserError(f"{url}: cannot be written ({reason(error)})") from None


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0]
