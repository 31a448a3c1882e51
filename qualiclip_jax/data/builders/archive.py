"""The manual directory: what its user downloaded, extracted or still in zip and tar files, as one tree of files."""

import contextlib
import dataclasses
import os
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from qualiclip_jax import tabular
from qualiclip_jax.data.builders.label_files import mat_variables, read_member, sheet_rows
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import IMAGE_EXTENSIONS, is_system_folder, walk
from qualiclip_jax.images.error import first_line

T = TypeVar("T")
_UNREADABLE = (".rar", ".7z", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip.001", ".z01")


MOST_BYTES = 64 << 20  # of an unpacked file; the largest one of any published set is a third of it


@dataclasses.dataclass(frozen=True)
class _Entry:
    path: str  # with "/", below the manual directory; inside an archive its path goes on
    size: Callable[[], int]  # bytes, unpacked, as its archive declares them
    read: Callable[[], bytes]  # no more bytes than that
    packed: bool


class Archive:
    """Files by the last parts of their paths, whatever folder or archive they lie in.

    Upper and lower case are the same (authors mix them). An extracted file goes before one inside a zip, a shallow one
    before a deep one. An archive that cannot be read counts as not there; `hint` names it.

    A context manager: it holds zip and tar files open.

    Args:
      root: the manual directory.

    Attributes:
      label_files: paths of the tables read so far.

    Raises:
      UserError: no such folder.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"{root}: no such folder")
        self.label_files: list[str] = []
        self._entries: dict[str, list[_Entry]] = {}  # by file name, in lower case
        self._unreadable: list[str] = []
        self._open_files = contextlib.ExitStack()
        try:
            for path in walk(self.root, lambda error: self._unreadable.append(str(error)), follow_links=True):
                self._add(path)
        except BaseException:
            self._open_files.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open_files.close()

    def _add(self, path: Path) -> None:
        name = path.relative_to(self.root).as_posix()
        if name.lower().endswith(_UNREADABLE):
            self._unreadable.append(f"{name} cannot be read here: extract it first")
        elif name.lower().endswith(".zip"):
            self._add_zip(path, name)
        elif name.lower().endswith(".tar"):
            self._add_tar(path, name)
        else:
            self._index(_Entry(name, lambda: path.stat().st_size, path.read_bytes, packed=False))

    def _add_zip(self, path: Path, name: str) -> None:
        try:
            file = self._open_files.enter_context(zipfile.ZipFile(path))
        except (OSError, zipfile.BadZipFile) as error:
            self._unreadable.append(f"{name} is not a whole zip file ({error}): download it again, or extract it")
            return

        def entry(member: zipfile.ZipInfo) -> _Entry:
            inner = f"{name}/{member.filename}"
            return _Entry(inner, lambda: member.file_size, lambda: read_member(file, member), packed=True)

        self._index(*(entry(member) for member in file.infolist() if not member.is_dir()))

    def _add_tar(self, path: Path, name: str) -> None:
        try:
            file = self._open_files.enter_context(tarfile.open(path, "r:"))  # noqa: SIM115
            members = file.getmembers()
        except (OSError, tarfile.TarError) as error:
            self._unreadable.append(f"{name} is not a whole tar file ({error}): download it again, or extract it")
            return
        lock = threading.Lock()  # one file position for all members

        def read(member: tarfile.TarInfo) -> bytes:
            with lock:
                content = file.extractfile(member)
                return content.read() if content else b""

        def entry(member: tarfile.TarInfo) -> _Entry:
            return _Entry(f"{name}/{member.name}", lambda: member.size, lambda: read(member), packed=True)

        self._index(*(entry(member) for member in members if member.isfile()))

    def _index(self, *entries: _Entry) -> None:
        for entry in entries:
            if any(part != "." and is_system_folder(part) for part in entry.path.split("/")):
                continue
            name = entry.path.rpartition("/")[2].lower()
            if name.endswith((*_UNREADABLE, ".zip", ".tar")):
                self._unreadable.append(f"{entry.path} is packed twice: extract the outer one first")
            self._entries.setdefault(name, []).append(entry)

    def __contains__(self, path: str) -> bool:
        return bool(self._matches(path))

    def _matches(self, path: str) -> list[_Entry]:
        tail = "/" + path.lower()
        return [e for e in self._entries.get(tail.rpartition("/")[2], ()) if f"/{e.path.lower()}".endswith(tail)]

    def hint(self) -> str:
        """Names an archive that could not be read, to end a message about a missing file; "" if there is none."""
        return f" ({self._unreadable[0]})" if self._unreadable else ""

    def _find(self, path: str) -> _Entry:
        matches = self._matches(path)
        if not matches:
            raise UserError(f"no {path} in {self.root}{self.hint()}")
        ranks = sorted((e.packed, e.path.count("/"), not f"/{e.path}".endswith("/" + path), e.path) for e in matches)
        if len(ranks) > 1 and ranks[0][:3] == ranks[1][:3]:
            raise UserError(f"{self.root} holds both {ranks[0][3]} and {ranks[1][3]}: leave only one of them there")
        return next(e for e in matches if e.path == ranks[0][3])

    def one_of(self, *paths: str) -> str:
        """The first of `paths` that is there.

        Raises:
          UserError: none is.
        """
        for path in paths:
            if path in self:
                return path
        raise UserError(f"no {' and no '.join(paths)} in {self.root}{self.hint()}")

    def locate(self, path: str) -> str:
        """Where below the manual directory the file lies that `path` names.

        Raises:
          UserError: no such file, or several that could be meant.
        """
        return self._find(path).path

    def size(self, path: str) -> int:
        """Bytes of the file that `path` names, unpacked.

        Raises:
          UserError: as `read`, as far as that is known without reading.
        """
        entry = self._find(path)
        with self._errors_of(entry):
            size = entry.size()
        if size > MOST_BYTES:
            raise UserError(
                f"{self.root / entry.path}: would unpack to {size / 1e6:,.0f} MB, "
                "far more than any file of these sets: taken for a decompression bomb"
            )
        return size

    def read(self, path: str) -> bytes:
        """The bytes of the file whose path ends in `path`; may be called from several threads.

        Raises:
          UserError: no such file, several that could be meant, damaged inside its archive, or too large.
        """
        self.size(path)
        entry = self._find(path)
        with self._errors_of(entry):
            return entry.read()

    @contextlib.contextmanager
    def _errors_of(self, entry: _Entry) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.root / entry.path}: cannot be read ({error})") from None

    def names(self, pattern: str) -> list[str]:
        """Ends of paths, from a separator on, that match the regular expression `pattern`, ignoring case; sorted."""
        regex = re.compile(f"(?:^|/)({pattern})$", re.IGNORECASE)
        matches = (regex.search(e.path) for entries in self._entries.values() for e in entries)
        return sorted({match[1] for match in matches if match})

    def images_beside(self, paths: set[str]) -> set[str]:
        """All image files of the folders in which the files `paths` (as `locate` gives them) lie."""
        folders = {path.rpartition("/")[0] for path in paths}
        return {
            e.path
            for name, entries in self._entries.items()
            if name.endswith(IMAGE_EXTENSIONS)
            for e in entries
            if e.path.rpartition("/")[0] in folders
        }

    def lines(self, path: str) -> Iterator[tuple[str, str]]:
        """Lines of a text file that are not blank, each with file and line for error messages."""
        text = self._read_labels(path).decode("utf-8-sig", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"{self.locate(path)}, line {number}", line.strip()

    def rows(self, path: str, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
        """Yields the rows of a CSV file: file and line, for error messages, and the fields of `columns` by name."""
        table = tabular.parse(self._read_labels(path), self.locate(path), *((name.lower(),) for name in columns))
        for index, fields in enumerate(zip(*(table.labels(name.lower()) for name in columns))):
            yield table.where(index), dict(zip(columns, fields))

    def sheet(
        self, path: str, columns: tuple[str, ...], sheet: str | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Like `rows`, for an Excel workbook: its first sheet or the one named, below the row that has `columns`."""
        above: list[Any] = []  # the first row, of a sheet that turns out to lack the columns
        names: tuple[Any, ...] | None = None
        for number, row in enumerate(self._parsed(path, "an Excel workbook", sheet_rows, sheet), 1):
            if names is None:
                names = row if set(columns) <= set(row) else None
                above = above or [str(cell) for cell in row if cell is not None]
            elif (cells := dict(zip(names, row)))[columns[0]] is not None:
                yield f"{self.locate(path)}, row {number}", cells
        if names is None:
            self._check_columns(path, columns, above)

    def mat(self, path: str, variables: tuple[str, ...]) -> list[Any]:
        """The named variables of a MATLAB file, each flat: numbers as an array, cells as a list of strings."""
        content = dict(self._parsed(path, "a MATLAB file", mat_variables, variables))
        self._check_columns(path, variables, list(content))
        return [content[name].reshape(-1) for name in variables]

    def _parsed(self, path: str, kind: str, parse: Callable[..., Iterable[T]], *arguments: Any) -> Iterator[T]:
        """Yields what `parse` reads in a label file; whatever it raises for a damaged one becomes a UserError."""
        data = self._read_labels(path)
        try:
            yield from parse(data, *arguments)
        except Exception as error:
            raise UserError(f"{self.locate(path)}: cannot be read as {kind} ({first_line(error)})") from None

    def _check_columns(self, path: str, needed: tuple[str, ...], there: list[str]) -> None:
        missing = [name for name in needed if name not in there]
        if missing:
            raise UserError(
                f"{self.locate(path)}: no {', '.join(missing)} in it (it has {', '.join(there) or 'nothing'})"
            )

    def _read_labels(self, path: str) -> bytes:
        self.label_files.append(self.locate(path))
        return self.read(path)
