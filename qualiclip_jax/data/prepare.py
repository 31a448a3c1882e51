"""Preparing a published image set, and what is prepared already."""

import dataclasses
import os
import shutil
from pathlib import Path

from qualiclip_jax import storage
from qualiclip_jax.data import store
from qualiclip_jax.data.builders import IMAGE_SETS
from qualiclip_jax.data.builders.archive import Archive
from qualiclip_jax.data.builders.image_set import ImageSet
from qualiclip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` did or found.

    Attributes:
      folder: where the set lies.
      images: how many images it holds.
      missing: how many of the published ones it lacks.
      lacking: the missing ones, a line each; empty where the set was there before.
      label_files: where the ratings come from.
      was_there: nothing had to be done.
    """

    folder: Path
    images: int
    missing: int
    lacking: tuple[str, ...] = ()
    label_files: tuple[str, ...] = ()
    was_there: bool = False


def find(name: str) -> ImageSet:
    """The description of the set called `name`.

    Raises:
      UserError: there is none.
    """
    if name not in IMAGE_SETS:
        raise UserError(f"no image set {name!r}; known are {', '.join(IMAGE_SETS)}")
    return IMAGE_SETS[name]


def status(image_set: ImageSet, data_dir: str | os.PathLike[str] | None = None) -> Prepared | None:
    """What is prepared of `image_set`; None if it is not."""
    folder = store.set_dir(image_set.name, data_dir)
    if not folder.is_dir():
        return None
    return dataclasses.replace(_read(folder), was_there=True)


def prepare(
    image_set: ImageSet,
    manual_dir: str | os.PathLike[str] | None,
    data_dir: str | os.PathLike[str] | None = None,
    allow_missing: bool = False,
) -> Prepared:
    """Writes the images and ratings of a set as ArrayRecord files; does nothing if that is done already.

    The work goes on in a temporary folder, renamed when all is there: an interrupted preparation leaves nothing that
    looks finished, and the next one removes what it left.

    Args:
      image_set: which set (`find`).
      manual_dir: the folder with the authors' archive, extracted or not.
      data_dir: where prepared sets lie (`store.data_dir`).
      allow_missing: go on without missing or unreadable images and without missing ratings.

    Raises:
      UserError: no `manual_dir`, label files or images are missing or damaged, another process is at it.
    """
    done = status(image_set, data_dir)
    if done:
        return done
    if manual_dir is None:
        raise UserError(f"{image_set.how_to_get()}, then say --manual-dir FOLDER")
    manual_dir = Path(manual_dir).expanduser()
    if not manual_dir.is_dir():
        raise UserError(f"{manual_dir}: no such folder. {image_set.how_to_get()}")
    folder = store.set_dir(image_set.name, data_dir)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder.parent}: cannot be written ({error.strerror})") from None
    try:
        with storage.lock(folder), Archive(manual_dir) as archive:
            missing = _build(image_set, archive, folder, allow_missing)
    except storage.Busy:
        raise UserError(f"{image_set.name} is being prepared by another process, in {folder.parent}") from None
    return dataclasses.replace(_read(folder), lacking=tuple(missing))


def _read(folder: Path) -> Prepared:
    stored = store.read_labels(folder)
    files = tuple(stored["source"]["label_files"])
    return Prepared(folder, len(stored["labels"]["id"]), stored["missing"], label_files=files)


def _build(image_set: ImageSet, archive: Archive, folder: Path, allow_missing: bool) -> list[str]:
    """Writes to a temporary folder beside `folder` and renames that, or leaves nothing."""
    from qualiclip_jax.data.builders.builder import build

    for leftover in folder.parent.glob("incomplete.*"):  # of preparations that were killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.parent / f"incomplete.{os.getpid()}"
    try:
        temporary.mkdir()
        missing = build(image_set, archive, temporary, allow_missing)
        os.replace(temporary, folder)
    except OSError as error:  # the disk is full, say
        raise UserError(f"{folder.parent}: cannot be written ({error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return missing
