"""The photos that are wanted: the worst, the best, those below a score; and copies of them."""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from qualiclip_jax import storage
from qualiclip_jax.errors import UserError
from qualiclip_jax.inference.files import Row
from qualiclip_jax.progress import track


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which photos are wanted. One that any of the three names is in it.

    Attributes:
      worst, best: so many of the lowest, and of the highest scores.
      below: scores below it.
    """

    worst: int | None = None
    best: int | None = None
    below: float | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in dataclasses.astuple(self))

    def of(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that are wanted, in their order; all of them if nothing is asked for."""
        if not self:
            return list(rows)
        scores = [(row.score, index) for index, row in enumerate(rows) if row.score is not None]
        order = [index for _, index in sorted(scores)]
        wanted = set(order[: self.worst or 0]) | set(order[max(0, len(order) - (self.best or 0)) :])
        if self.below is not None:
            wanted |= {index for score, index in scores if score < self.below}
        return [rows[index] for index in sorted(wanted)]


def check_folder(folder: Path, option: str) -> None:
    """Raises a UserError if a folder cannot take copies; one that is not there is made later."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{option} {folder}: is no folder")
    if not folder.exists() and not folder.parent.is_dir():
        raise UserError(f"{option} {folder}: there is no folder {folder.parent}")


def gather(rows: Sequence[Row], folder: Path, link: bool) -> tuple[int, list[str]]:
    """Copies photos into a folder, or links them there. Nothing in it is overwritten.

    Files of one name from several folders become `name-2.jpg` ...; a file that is there already with the same content,
    or the same file, counts as done.

    Args:
      rows: the photos.
      folder: made if it is not there.
      link: hard links, which take no space; only within one file system.

    Returns:
      How many photos are there now, and a line for each that could not be brought there.
    """
    folder.mkdir(exist_ok=True)
    failed: list[str] = []
    for row in track(rows, len(rows), "linking" if link else "copying", "photo"):
        try:
            _bring(Path(row.path), folder, link)
        except OSError as error:
            reason = "on another file system: copy instead" if link and error.errno == 18 else error.strerror
            failed.append(f"{row.path}: {reason or error}")
    return len(rows) - len(failed), failed


def _bring(photo: Path, folder: Path, link: bool) -> None:
    number = 1
    while True:
        target = folder / (photo.name if number == 1 else f"{photo.stem}-{number}{photo.suffix}")
        number += 1
        if os.path.lexists(target):
            if _same(photo, target):
                return
            continue
        if link:
            os.link(photo, target)
            return
        with open(photo, "rb") as original:
            try:
                open(target, "xb").close()  # nobody else may take the name
            except FileExistsError:
                continue
            try:
                with storage.replacing(target) as copy:
                    shutil.copyfileobj(original, copy)
            except BaseException:
                target.unlink(missing_ok=True)
                raise
        shutil.copystat(photo, target)
        return


def _same(a: Path, b: Path) -> bool:
    """Whether two files have the same content."""
    try:
        if os.path.samefile(a, b):
            return True
        return a.stat().st_size == b.stat().st_size and a.read_bytes() == b.read_bytes()
    except OSError:
        return False
