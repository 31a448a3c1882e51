"""Files wherever fsspec reaches: patterns of them, reading, and writing whole or not at all."""

import contextlib
import os
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
from qualiclip_jax.images import IMAGE_EXTENSIONS, ImageError


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
    if not re.search(r"[*?\[]", argument) or re.match("https?://", argument):  # there, a ? is no wildcard
        return [argument]
    files, path = system(argument)
    with naming(argument):
        found = sorted(files.glob(path))
    if not found:
        raise UserError(f"{argument}: no file fits this pattern")
    return found if is_local(files) else [files.unstrip_protocol(name) for name in found]


def is_url(name: str) -> bool:
    """Whether a name is that of a file somewhere else, e.g. "s3://bucket/photo.jpg"."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name) is not None and not os.path.lexists(name)


def images(argument: str) -> list[str]:
    """The images that a URL or a pattern of URLs means, sorted: files, and what lies below folders.

    Raises:
      UserError: as `expand`; a folder without an image.
    """
    found = []
    for url in expand(argument):
        files, path = system(url)
        with naming(url):
            if url.lower().endswith(IMAGE_EXTENSIONS) or not files.isdir(path):
                found.append(url)
            else:
                below = [name for name in files.find(path) if name.lower().endswith(IMAGE_EXTENSIONS)]
                found += map(files.unstrip_protocol, sorted(below))
    if not found:
        raise UserError(f"{argument}: no images there (looked for {' '.join(IMAGE_EXTENSIONS)})")
    return found


def state(url: str) -> dict[str, int | str | None]:
    """`bytes` and `modified` of a file, as far as its store tells them."""
    files, path = system(url)
    try:
        info = files.info(path)
    except Exception:  # the reason comes with reading it
        return {"bytes": None, "modified": None}
    modified = next((info[name] for name in ("LastModified", "mtime", "updated", "created") if info.get(name)), None)
    return {"bytes": info.get("size"), "modified": None if modified is None else str(modified)}


def fetch(url: str) -> bytes:
    """The content of an image file. Raises ImageError if it cannot be had."""
    try:
        with reading(url) as file:
            return file.read()
    except UserError as error:
        raise ImageError(url, str(error).removeprefix(f"{url}: ")) from None


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
