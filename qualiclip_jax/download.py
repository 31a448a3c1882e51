"""Files that others publish, fetched once: from the Hugging Face hub, and from a project's releases.

What arrives is checked before it counts as there. A download that breaks off is kept and goes on with the next call.
"""

import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qualiclip_jax import storage
from qualiclip_jax.compilation import cache_directory
from qualiclip_jax.errors import UserError
from qualiclip_jax.progress import Progress
from qualiclip_jax.version import __version__

MIRROR = "QUALICLIP_RELEASES"  # environment variable: where release files are fetched instead, a URL of their folder
MEGABYTE = 1 << 20
TRIES, PAUSE, TIMEOUT = 5, 2.0, 30.0  # without a byte of progress; seconds between them; seconds of silence
WAIT = 3600.0  # seconds that one process waits for another, which fetches the same


def sha256(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def from_hub(
    repository: str, revision: str | None, choose: Callable[[Sequence[str]], Sequence[str]], asked: str, hint: str
) -> Path:
    """The files of a repository of the Hugging Face hub, downloaded where they are not in its cache yet.

    HF_ENDPOINT (a mirror), HF_HUB_OFFLINE, HF_HOME and HF_TOKEN mean what they mean to huggingface_hub. Without a
    network, the cache serves.

    Args:
      repository: owner/name.
      revision: a branch, tag or commit; None for the main branch.
      choose: picks from the names of all files those that are needed; none if the repository is of no use. The first
        is fetched last: where it is in the cache, the rest is.
      asked: what the user called it, for messages.
      hint: arguments of `hf download`, after the repository, that fetch the same.

    Returns:
      The folder of this revision in the cache. It may hold more than what `choose` picks now.

    Raises:
      UserError: it cannot be had, or holds nothing that is needed.
    """
    import huggingface_hub
    from huggingface_hub import constants

    named = f"{asked} ({repository})" if asked != repository else repository
    try:
        listing = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=20).siblings or []
        names = [file.rfilename for file in listing]
        wanted = choose(names)
        paths = [_hub_file(repository, name, revision) for name in reversed(wanted)]
    except Exception as error:  # no network, no such repository, no permission, no space ...
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    else:
        if wanted:
            return Path(str(paths[-1]).removesuffix(wanted[0].replace("/", os.sep)))
        raise UserError(f"no weights {named}: none of its files is known here: {', '.join(names[:8]) or 'it has none'}")
    cache = Path(constants.HF_HUB_CACHE)
    snapshot = _snapshot(cache, repository, revision or "main")
    if snapshot is not None and choose(_names(snapshot)):
        return snapshot
    at = f" --revision {revision}" if revision else ""
    raise UserError(
        f"no weights {named}: not in the cache {cache}, no directory of that name, and the Hugging Face hub gave: "
        f"{reason}. Where there is a network, run `hf download {repository} {hint}{at}` and copy the cache; or name a "
        "local directory or file: --config.model.weights=PATH (training), SOURCE (convert)"
    )


def _hub_file(repository: str, name: str, revision: str | None) -> Path:
    """One file, downloaded if need be; what was downloaded is what the hub says it is."""
    import huggingface_hub

    cached = isinstance(huggingface_hub.try_to_load_from_cache(repository, name, revision=revision), str)
    path = Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    blob = path.resolve()  # large files are named after their SHA-256
    if not cached and re.fullmatch("[0-9a-f]{64}", blob.name) and sha256(blob) != blob.name:
        forget(path)
        raise UserError(f"{name} arrived damaged and was removed")
    return path


def forget(path: Path) -> None:
    """Removes a downloaded file, so that the next call fetches it again."""
    blob = path.resolve()
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


def _snapshot(cache: Path, repository: str, revision: str) -> Path | None:
    folder = cache / f"models--{repository.replace('/', '--')}"
    with contextlib.suppress(OSError):  # no such file: then it is a commit
        revision = (folder / "refs" / revision).read_text().strip()
    snapshot = folder / "snapshots" / revision
    return snapshot if snapshot.is_dir() else None


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def release_file(url: str) -> Path:
    """Where `from_release` keeps a file."""
    return cache_directory() / "downloads" / url.rpartition("/")[2]


def from_release(url: str, check: Callable[[Path], Any]) -> Path:
    """A file of a release, downloaded if it is not in the cache yet.

    The environment variable `MIRROR` names another place to fetch it from. HF_HUB_OFFLINE keeps from fetching. The
    SHA-256 is kept beside the file, in the format of `sha256sum`: another file under the same name is refused later.

    Args:
      url: where it is published.
      check: raises a `UserError` if the content is not as it should be.

    Raises:
      UserError: it cannot be had, is another file than the one first seen, or `check` does not pass.
    """
    from huggingface_hub import constants

    target = release_file(url)
    if target.is_file():
        return target
    mirror = os.environ.get(MIRROR)
    address = f"{mirror.rstrip('/')}/{target.name}" if mirror else url
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{url} is not in the cache, and HF_HUB_OFFLINE is set: unset it, or put the file at {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with storage.lock(target, wait=WAIT):
            if not target.is_file():
                part = target.with_name(f"{target.name}.part")
                _fetch(address, part)
                _accept(part, target, check)
    except OSError as error:
        raise UserError(f"{target}: {error.strerror or error}") from None
    return target


def _accept(part: Path, target: Path, check: Callable[[Path], Any]) -> None:
    """Gives a complete download its name if it is what it should be, else removes it."""
    record, digest = target.with_name(f"{target.name}.sha256"), sha256(part)
    first = record.read_text().partition(" ")[0] if record.is_file() else digest
    try:
        if digest != first:
            raise UserError(
                f"{target.name} is another file than the one first seen: SHA-256 {digest} instead of {first}; if that "
                f"is right, remove {record}"
            )
        check(part)
    except UserError:
        part.unlink()
        raise
    storage.write_bytes(record, f"{digest}  {target.name}\n".encode())
    os.replace(part, target)


class _Cut(Exception):
    """The connection broke; what has arrived is kept."""


def _fetch(url: str, part: Path) -> None:
    """Downloads to `part`, going on with what is there; tries again as long as something arrives."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _fetch_from(url, part, before)
        except (_Cut, urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            done = part.stat().st_size if part.exists() else 0
            failures = 0 if done > before else failures + 1
            if failures == TRIES:
                reason = str(getattr(error, "reason", None) or error) or type(error).__name__
                kept = f"; {done / MEGABYTE:.1f} MB are kept, the same command goes on from there" if done else ""
                raise UserError(f"{url}: {reason}{kept}. Another place to fetch it from goes into ${MIRROR}") from None
            time.sleep(PAUSE)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(f"{part}: no space left on the disk; what has arrived is kept") from None


def _fetch_from(url: str, part: Path, start: int) -> None:
    tag = part.with_name(f"{part.name}.etag")  # of the file that the part belongs to
    headers = {"User-Agent": f"qualiclip_jax/{__version__}", "Accept-Encoding": "identity"}
    if start and tag.is_file():
        headers |= {"Range": f"bytes={start}-", "If-Range": tag.read_text()}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is no part of what is there now
            part.unlink()
            raise _Cut("the file has changed") from None
        if error.code in (408, 429) or error.code >= 500:
            raise _Cut(f"{error.code} {error.reason}") from None
        raise UserError(
            f"{url}: {error.code} {error.reason}; another place to fetch it from goes into ${MIRROR}"
        ) from None
    with response:
        if "html" in response.headers.get("Content-Type", ""):
            raise UserError(f"{url}: a web page came instead of the file (a proxy, or a login?)")
        range_start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        start = start if response.status == 206 and range_start and int(range_start[1]) == start else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise UserError(
                f"{part}: {(total - start) / MEGABYTE:.0f} MB are to come, and the disk has {free / MEGABYTE:.0f} left"
            )
        if etag := response.headers.get("ETag"):
            tag.write_text(etag)
        else:
            tag.unlink(missing_ok=True)
        megabytes = None if total is None else -(-total // MEGABYTE)
        with (
            part.open("ab" if start else "wb") as file,
            Progress(megabytes, f"downloading {part.stem}", "megabyte", start // MEGABYTE) as progress,
        ):
            while block := response.read(MEGABYTE):
                file.write(block)
                shown, start = start // MEGABYTE, start + len(block)
                progress.advance((megabytes or 0 if start == total else start // MEGABYTE) - shown)
        if total is not None and start != total:
            raise _Cut(f"the connection broke at {start / MEGABYTE:.1f} of {total / MEGABYTE:.1f} MB")
    tag.unlink(missing_ok=True)
