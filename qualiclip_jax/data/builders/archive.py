"""The manual directory: what its user downloaded, extracted or still in zip and tar files, as one tree of files."""

import csv
import dataclasses
import io
import os
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from qualiclip_jax.errors import UserError

_UNREADABLE = (".rar", ".7z", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip.001", ".z01")


@dataclasses.dataclass(frozen=True)
class _Entry:
    path: str  # with "/", below the manual directory; inside an archive its path goes on
    read: Callable[[], bytes]
    packed: bool


class Archive:
    """Files by the last parts of their paths, whatever folder or archive they lie in.

    Upper and lower case are the same (authors mix them). An extracted file goes before one inside a zip, a shallow one
    before a deep one.

    Args:
      root: the manual directory.

    Raises:
      UserError: no such folder, nothing in it, or a damaged zip or tar file.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"{root}: no such folder")
        self._entries: dict[str, list[_Entry]] = {}
        self._unreadable: list[str] = []
        for path in _walk(self.root):
            self._add(path)

    def _add(self, path: Path) -> None:
        name = path.relative_to(self.root).as_posix()
        if name.lower().endswith(_UNREADABLE):
            self._unreadable.append(name)
        elif name.lower().endswith(".zip"):
            self._add_zip(path, name)
        elif name.lower().endswith(".tar"):
            self._add_tar(path, name)
        else:
            self._index(_Entry(name, path.read_bytes, packed=False))

    def _add_zip(self, path: Path, name: str) -> None:
        try:
            file = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not a whole zip file ({error}); download it again") from None
        for member in file.infolist():
            if not member.is_dir():
                self._index(_Entry(f"{name}/{member.filename}", lambda m=member: file.read(m), packed=True))

    def _add_tar(self, path: Path, name: str) -> None:
        try:
            file = tarfile.open(path, "r:")  # noqa: SIM115  (stays open for reading members)
            members = file.getmembers()
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"{path}: not a whole tar file ({error}); download it again") from None
        lock = threading.Lock()  # one file position for all members

        def read(member: tarfile.TarInfo) -> bytes:
            with lock:
                return file.extractfile(member).read()

        for member in members:
            if member.isfile():
                self._index(_Entry(f"{name}/{member.name}", lambda m=member: read(m), packed=True))

    def _index(self, entry: _Entry) -> None:
        name = entry.path.rpartition("/")[2]
        if not name.startswith(".") and "__MACOSX/" not in entry.path:
            self._entries.setdefault(name.lower(), []).append(entry)

    def __contains__(self, path: str) -> bool:
        return bool(self._matches(path))

    def _matches(self, path: str) -> list[_Entry]:
        tail = "/" + path.lower()
        return [e for e in self._entries.get(tail.rpartition("/")[2], ()) if f"/{e.path.lower()}".endswith(tail)]

    def _find(self, path: str) -> _Entry:
        matches = self._matches(path)
        if not matches:
            packed = f" ({self._unreadable[0]} cannot be read here: extract it first)" if self._unreadable else ""
            raise UserError(f"no {path} in {self.root}{packed}")
        matches.sort(key=lambda e: (e.packed, e.path.count("/"), e.path))
        first, second = matches[0], matches[1] if len(matches) > 1 else None
        if second and (first.packed, first.path.count("/")) == (second.packed, second.path.count("/")):
            raise UserError(f"{self.root} holds both {first.path} and {second.path}: leave only one of them there")
        return first

    def locate(self, path: str) -> str:
        """Where below the manual directory the file lies that `path` names.

        Raises:
          UserError: no such file, or several that could be meant.
        """
        return self._find(path).path

    def read(self, path: str) -> bytes:
        """The bytes of the file whose path ends in `path`; may be called from several threads.

        Raises:
          UserError: no such file, several that could be meant, or damaged inside its archive.
        """
        entry = self._find(path)
        try:
            return entry.read()
        except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.root / entry.path}: cannot be read ({error})") from None

    def images(self, pattern: str) -> set[str]:
        """All paths, relative to the manual directory, whose end matches `pattern` (from a separator on)."""
        regex = re.compile(f"(?:^|/)(?:{pattern})$", re.IGNORECASE)
        return {e.path for entries in self._entries.values() for e in entries if regex.search(e.path)}

    def rows(self, path: str, columns: tuple[str, ...], delimiter: str = ",") -> Iterator[tuple[str, dict[str, str]]]:
        """Rows of a text table with a header line.

        Args:
          path: the file.
          columns: those that must be there.
          delimiter: between two columns.

        Yields:
          (file and line, for error messages; the row as a dict).
        """
        text = io.StringIO(self.read(path).decode("utf-8-sig", errors="replace"), newline="")
        reader = csv.DictReader(text, delimiter=delimiter, skipinitialspace=True)
        missing = [c for c in columns if c not in (reader.fieldnames or ())]
        if missing:
            there = ", ".join(reader.fieldnames or ["none"])
            raise UserError(f"{self.locate(path)}: no column {', '.join(missing)} (it has {there})")
        for row in reader:
            where = f"{self.locate(path)}, line {reader.line_num}"
            if any(row[c] is None for c in columns):
                raise UserError(f"{where}: too few columns")
            yield where, row


def _walk(root: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        for name in sorted(names):
            yield Path(parent, name)
