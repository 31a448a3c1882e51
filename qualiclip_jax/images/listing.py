"""Finds image files in folders and by patterns."""

import glob
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from qualiclip_jax.errors import UserError
from qualiclip_jax.images.error import ImageError, first_line

IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif",
    ".avif", ".heic", ".heif",
)  # fmt: skip
_SYSTEM_FOLDERS = {  # thumbnails, bins and snapshots of macOS, Windows, Linux, Synology and QNAP; in lower case
    "__macosx", "$recycle.bin", "system volume information", "lost+found",
    "@eadir", "@tmp", "#recycle", "#snapshot", "@__thumb", "@recycle", "@recently-snapshot",
}  # fmt: skip
_STARS = re.compile(r"(^|/)\*\*(/|$)")
_log = logging.getLogger(__name__)


def list_images(where: str | os.PathLike[str], on_error: Callable[[ImageError], object] | None = None) -> list[Path]:
    """Lists the images of a folder and the folders in it, or those that a glob pattern matches.

    Files are chosen by extension (`IMAGE_EXTENSIONS`, upper or lower case). Names that begin with a dot and the system
    folders of `is_system_folder` are left out, unless `where` names them itself. A single existing file is listed
    whatever its extension. Links to folders are not followed.

    Args:
      where: a folder, a file, or a pattern such as `photos/**/*.jpg`.
      on_error: called with an `ImageError` for every folder that cannot be read; its `path` is the folder. By default
        the folders are logged as warnings.

    Returns:
      Sorted paths; at least one, unless `on_error` was called.

    Raises:
      UserError: there is no such folder or file, or no image in it.
    """
    failed: list[ImageError] = []
    if os.path.isfile(where):
        return [Path(where)]
    if os.path.isdir(where):
        found = _images_below(where, failed.append)
    elif glob.has_magic(str(where)):
        found = _matches(str(where), failed.append)
    else:
        raise UserError(f"{where}: no such file or folder")
    for error in failed:
        if on_error is not None:
            on_error(error)
        elif found:
            _log.warning("%s", error)
        else:
            raise error
    if not found and not failed:
        raise UserError(f"{where}: no images there (looked for {' '.join(IMAGE_EXTENSIONS)})")
    return sorted(set(found))


def is_system_folder(name: str) -> bool:
    """Whether a folder of this name holds what a system keeps for itself: hidden files, thumbnails, deleted files."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def walk(
    folder: str | os.PathLike[str], on_error: Callable[[ImageError], object], follow_links: bool = False
) -> Iterator[Path]:
    """All files of a folder and the folders in it, except system folders, sorted within each folder.

    Args:
      folder: where to begin.
      on_error: called for every folder that cannot be read.
      follow_links: whether to go into links to folders.
    """

    def report(error: OSError) -> None:
        on_error(_unreadable(error.filename, error))

    for parent, folders, names in os.walk(folder, onerror=report, followlinks=follow_links):
        folders[:] = sorted(name for name in folders if not is_system_folder(name))  # os.walk goes into what is left
        yield from (Path(parent, name) for name in sorted(names))


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_EXTENSIONS and not path.name.startswith(".")


def _images_below(folder: str | os.PathLike[str], on_error: Callable[[ImageError], object]) -> list[Path]:
    return [path for path in walk(folder, on_error) if _is_image_name(path)]


def _matches(pattern: str, on_error: Callable[[ImageError], object]) -> list[Path]:
    """The images that a pattern means: matching files, and everything below matching folders."""
    paths = [Path(match) for match in _expand(pattern)]
    found = [path for path in paths if path.suffix.lower() in IMAGE_EXTENSIONS and not os.path.isdir(path)]
    if "**" not in pattern:  # photos/* : the folders it matches are meant as a whole
        found += [image for path in paths if os.path.isdir(path) for image in _images_below(path, on_error)]
    parts = Path(pattern).parts
    parents = {folder for k in range(1, len(parts)) for folder in _expand(os.path.join(*parts[:k], ""))}
    for folder in sorted(parents):  # `glob` leaves out silently what it cannot look into
        try:
            os.scandir(folder).close()
            os.stat(os.path.join(folder, os.curdir))
        except OSError as error:
            on_error(_unreadable(folder, error))
    return found


def _expand(pattern: str) -> list[str]:
    """What matches a pattern, without what lies in system folders that the pattern does not name.

    `**` does not follow links to folders, as in a shell: two links to a folder above would never come to an end.
    """
    unnamed = _SYSTEM_FOLDERS - {part.lower() for part in Path(pattern).parts}
    stars = _STARS.search(pattern)
    if stars is None:
        return [match for match in glob.glob(pattern) if unnamed.isdisjoint(match.lower().split(os.sep))]
    above, below = pattern[: stars.end(1)], pattern[stars.end() :] if stars[2] else "*"
    folders = _expand(above) if above else [""]
    for folder in folders:  # grows
        for name in next(os.walk(folder or os.curdir), ("", [], []))[1]:
            path = os.path.join(folder, name, "")
            if not (name.startswith(".") or name.lower() in unnamed or os.path.islink(path[:-1])):
                folders.append(path)
    return [match for folder in folders for match in _expand(glob.escape(folder) + below)]


def _unreadable(folder: str | os.PathLike[str], error: OSError) -> ImageError:
    return ImageError(folder, f"the folder cannot be read ({first_line(error)})")
