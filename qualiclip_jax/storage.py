"""How this project keeps files: written whole or not at all, grown line by line, one process at a time."""

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from qualiclip_jax.errors import UserError

StrPath = str | os.PathLike[str]
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")  # extensions of what `write_image` is asked for
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of file systems that have none


class Busy(UserError):
    """Another process holds a lock."""


def write_bytes(path: StrPath, data: bytes) -> None:
    """Writes a file, whole or not at all; see `replacing`."""
    with _named(path), replacing(path) as file:
        file.write(data)


def check_new_picture(path: Path) -> None:
    """Raises a UserError if `--out` is no name for a new picture: by its kind, or as it exists, or by its folder."""
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"--out {path}: the name must end in {', '.join(PICTURES[:-1])} or {PICTURES[-1]}")
    if os.path.lexists(path):
        raise UserError(f"--out {path}: exists already; choose another name, or remove it first")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--out {path}: no folder {path.parent} that can be written to")


@contextlib.contextmanager
def _named(path: StrPath) -> Iterator[None]:
    """Lets an error of the system name the file, as it does not when a disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


@contextlib.contextmanager
def replacing(path: StrPath) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` when the block ends, and is removed if the block raises.

    Where `path` is a link, the file that it leads to is replaced, not the link.
    """
    real = Path(os.path.realpath(path))
    temporary = real.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # there is no older file, or it belongs to somebody else
            os.chmod(temporary, real.stat().st_mode & 0o777)
        os.replace(temporary, real)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename, error.filename2 = os.fspath(path), None
        raise


def read_jsonl(path: StrPath, *, whole: bool = False) -> list[Any]:
    """Reads a file of JSON lines; where there is none, there are no values. See `parse_jsonl`."""
    try:
        return parse_jsonl(Path(path).read_bytes(), whole=whole)
    except (FileNotFoundError, NotADirectoryError):
        return []


def parse_jsonl(data: bytes, *, whole: bool = False) -> list[Any]:
    """Reads JSON lines.

    Args:
      data: the lines.
      whole: whether a line that is not JSON is an error. Otherwise it is left out: a process that is killed leaves
        its last line cut off.

    Raises:
      ValueError: naming the first line that is not JSON, if the file must be `whole`.
    """
    values = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError):
                if whole:
                    raise ValueError(f"line {number} is not JSON") from None
    return values


class JsonLines:
    """A file of JSON lines, open to be appended to. Each value is on its way to the disk when `append` returns.

    Args:
      path: the file; made if it is not there. A last line that is cut off is ended first.
    """

    def __init__(self, path: StrPath):
        self.path = Path(path)
        self._file = open(path, "ab+")  # noqa: SIM115  (closed by `close`)
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(end - 1, 0))
        if self._file.read(1) not in (b"", b"\n"):
            self._file.write(b"\n")

    def append(self, value: Any) -> None:
        """Writes one value, anything that JSON can hold, as one line."""
        with _named(self.path):
            self._file.write(json.dumps(value).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file; what a full disk did not take is tried once more."""
        with _named(self.path):
            self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def lock(path: StrPath, wait: float = 0.0) -> Iterator[None]:
    """Holds the right to write a file or a folder, which one process has at a time.

    The lock is a file beside it, `.NAME.lock`, which is removed in the end. The system takes the lock back when the
    process ends, however it ends; a lock file that was left behind bars nobody. Relative names and links to the
    same file are one lock. On a file system without locks there is none.

    Args:
      path: what is to be written; its folder must exist.
      wait: how many seconds to wait for another process.

    Raises:
      Busy: another process, or another thread of this one, holds the lock.
      UserError: the lock cannot be made there.
    """
    import filelock

    real = Path(os.path.realpath(path))
    lock_file = real.with_name(f".{real.name}.lock")
    held = filelock.FileLock(lock_file, timeout=wait, poll_interval=0.02, thread_local=False, fallback_to_soft=False)
    try:
        held.acquire()
    except filelock.Timeout:
        raise Busy(f"{path} is being written by another process: let it finish, or choose another name") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(f"{path}: cannot be written there ({error.strerror or error})") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove an open file
            lock_file.unlink()
        held.release()
