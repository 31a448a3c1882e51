"""The report of a scoring run: one self-contained page of thumbnails sorted by score."""

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import numpy as np

from qualiclip_jax import html, storage
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError, read_image
from qualiclip_jax.inference.files import Row
from qualiclip_jax.inference.formats import printable
from qualiclip_jax.inference.output import refuse_to_replace
from qualiclip_jax.inference.stream import in_threads
from qualiclip_jax.progress import track

if TYPE_CHECKING:
    from qualiclip_jax.explain.maps import QualityMap

_PREVIEWS = ((100, 800), (300, 512), (1000, 320))  # the most images, and their longest side in pixels
_SMALLEST = 240  # px, of more images, whose pictures lie beside the page: it stays below 40 MB
_OVERLAY = 96  # px, the longest side of a map, which the browser enlarges
_BINS = 24
_GENERATOR = "qualiclip score"
_OF_PICTURE = re.compile(r"[0-9a-f]{16}\.(jpg|webp)")


def check(path: Path) -> None:
    """Makes sure, before the work, that the report can be written.

    Raises:
      UserError: no such folder, not a page by its name, or there is a file that is not such a report.
    """
    name, file = f"--report {path}", Path(os.path.realpath(path))
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{name}: the report is a page, its name must end in .html")
    if not file.parent.is_dir():
        raise UserError(f"{name}: there is no folder {file.parent}")
    refuse_to_replace(file, name)
    if file.exists() and file.stat().st_size and not html.is_page(file, _GENERATOR):
        raise UserError(f"{name}: the file is there and is not a report of this command; choose another one")
    folder = _folder_of(file)
    if os.path.lexists(folder) and not (
        folder.is_dir() and all(_OF_PICTURE.fullmatch(entry.name) for entry in folder.iterdir())
    ):
        raise UserError(f"{name}: {folder} is there and is not the folder of a report; choose another name")


@contextlib.contextmanager
def reserve(path: Path) -> Iterator[None]:
    """Holds the right to write the report, after a `check`.

    Raises:
      UserError: as `check`; or another run is writing it.
    """
    check(path)
    try:
        with storage.lock(path):
            yield
    except storage.Busy:
        name = f"--report {path}"
        raise UserError(f"{name} is being written by another run: let it finish, or choose another one") from None


def write_report(
    path: Path,
    rows: Sequence[Row],
    columns: Sequence[str],
    about: str,
    problems: Sequence[ImageError] = (),
    draw: Callable[[np.ndarray], "QualityMap"] | None = None,
) -> None:
    """Writes the report, whole or not at all.

    Pictures are in the page. If they are too many, they lie in a folder beside it, `NAME_files`, and the page shows
    them as it is scrolled.

    Args:
      path: the page.
      rows: what was scored; rows with an error are listed apart.
      columns: names of the attributes.
      about: the model, one line of plain text.
      problems: folders and patterns that gave no images, and why.
      draw: makes the quality map of an image; None for no maps.
    """
    scored = sorted((row for row in rows if row.score is not None), key=lambda row: row.score or 0)
    failed = [(error.path, error.reason) for error in problems]
    failed += [(row.path, row.error or "") for row in rows if row.score is None]
    side = next((side for most, side in _PREVIEWS if len(scored) <= most), _SMALLEST)
    scores = np.array([row.score for row in scored], np.float64)
    edges = _bin_edges(scores)
    with _Pictures(path, beside=len(scored) > _PREVIEWS[-1][0]) as pictures:
        cards, facts = [], []
        made = _previews([row.path for row in scored], side, draw)
        for (preview, overlay), row in zip(made, scored):  # in this order `made` comes to its end, and its progress
            name = {"path": printable(row.path), "name": printable(Path(row.path).name)}
            marks = {"bin": _bin(row.score, edges), "score": row.score, "best": row.burst_rank == 1}
            cards.append(name | marks | {"uri": pictures.add(preview, "jpg")})
            facts.append(_facts(row, columns, path) | {"map": pictures.add(overlay, "webp")})
        page = html.render(
            "scores.html.j2",
            title="Image quality",
            generator=_GENERATOR,
            about=about,
            scored=len(scored),
            distribution=_distribution(scores),
            chart=_chart(scores, edges),
            cards=cards,
            facts=facts,
            attributes=[name.replace("_", " ") for name in columns],
            causes=sorted({cause for row in scored for cause in (row.causes or "").split(", ") if cause}),
            bursts=any(row.burst for row in scored),
            maps=draw is not None,
            failed=[
                {"path": printable(name), "link": html.link(name, path), "error": printable(error)}
                for name, error in failed
            ],
        )
        storage.write_bytes(path, page)


class _Pictures:
    """Where the pictures of a page go: into it as data URIs, or into a folder beside it.

    Files have the name of their content. Those that the page does not show are removed when it has been written.
    """

    def __init__(self, page: Path, beside: bool):
        self._folder, self._beside = _folder_of(page), beside
        self._kept: set[str] = set()

    def add(self, data: bytes, suffix: str) -> str:
        """The address of a picture; empty for none."""
        if not data:
            return ""
        if not self._beside:
            return html.data_uri(data, "jpeg" if suffix == "jpg" else suffix)
        name = f"{hashlib.blake2b(data, digest_size=8).hexdigest()}.{suffix}"
        self._folder.mkdir(exist_ok=True)
        if name not in self._kept and not (self._folder / name).exists():
            storage.write_bytes(self._folder / name, data)
        self._kept.add(name)
        return quote(f"{self._folder.name}/{name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None and self._folder.is_dir():
            for file in self._folder.iterdir():
                if _OF_PICTURE.fullmatch(file.name) and file.name not in self._kept:
                    file.unlink(missing_ok=True)
            if not self._kept:
                with contextlib.suppress(OSError):
                    self._folder.rmdir()


def _folder_of(page: Path) -> Path:
    """The folder of a page's pictures."""
    return page.with_name(f"{page.stem}_files")


def _previews(
    paths: Sequence[str], side: int, draw: Callable[[np.ndarray], "QualityMap"] | None
) -> Iterator[tuple[bytes, bytes]]:
    """Small versions (JPEG) and maps (WebP) of images; empty where a file cannot be read any more, or has no map."""
    from qualiclip_jax.explain import drawing

    if draw is None:
        work = in_threads(lambda path: html.thumbnail(read_image(path), side), paths)
        for found in track(work, len(paths), "report", "image"):
            yield (b"" if isinstance(found, ImageError) else found), b""
        return
    for path in track(paths, len(paths), "maps", "image"):  # one by one: photos are large, and maps take the time
        preview, buffer = b"", io.BytesIO()
        with contextlib.suppress(UserError):
            image = read_image(path)
            preview = html.thumbnail(image, side)
            drawing.overlay(draw(image), side=_OVERLAY).save(buffer, "WebP", quality=60)
        yield preview, buffer.getvalue()


def _facts(row: Row, columns: Sequence[str], page: Path) -> dict[str, Any]:
    """What the enlarged view tells, and what is filtered by."""
    return {
        "path": printable(row.path),
        "link": html.link(row.path, page),
        "score": f"{row.score:.4f}",
        "mos": row.rating and "MOS {:.3g} ({:.3g} to {:.3g})".format(*row.rating),
        "size": f"{row.width} x {row.height}",
        "attributes": [round(value, 3) for value in row.attributes or ()],
        "causes": row.causes,
        "burst": row.burst,
        "rank": row.burst_rank,
    }


def _distribution(scores: np.ndarray) -> dict[str, float] | None:
    if not scores.size:
        return None
    low, median, high = np.quantile(scores, [0.1, 0.5, 0.9])
    return {"low": low, "median": median, "high": high, "mean": scores.mean()}


def _bin_edges(scores: np.ndarray) -> np.ndarray:
    """Bins of a round width that hold all scores, float64 [B + 1]."""
    if not scores.size:
        return np.array([0.0, 1.0])
    low, high = scores.min(), scores.max()
    width = next(w for w in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05) if (high - low) / w <= _BINS)
    first, last = np.floor(low / width), np.floor(high / width) + 1
    return np.arange(first, last + 1) * width


def _bin(scores: Any, edges: np.ndarray) -> Any:
    """In which bin scores lie."""
    return np.clip(np.searchsorted(edges, scores, "right") - 1, 0, len(edges) - 2)


def _chart(scores: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    """Where the parts of the histogram stand in its SVG, in px."""
    left, width, top, foot = 44.0, 720.0, 24.0, 174.0
    counts = np.bincount(_bin(scores, edges), minlength=len(edges) - 1)
    most, step = max(int(counts.max()), 1), (width - left - 10) / len(counts)
    every = max(1, len(counts) // 8)

    def y(count: int) -> float:
        return round(foot - (foot - top) * count / most, 1)

    bars = [
        {
            "bin": k,
            "x": round(left + k * step + 1, 1),
            "y": y(count),
            "width": round(max(step - 2, 1), 1),
            "height": round(foot - y(count), 1),
            "title": f"{edges[k]:.3f} to {edges[k + 1]:.3f}: {count}",
        }
        for k, count in enumerate(counts.tolist())
        if count
    ]
    return {
        "width": width,
        "height": foot + 46,
        "left": left,
        "foot": foot,
        "middle": (left + width) / 2,
        "marks": [{"y": y(count), "text": count} for count in sorted({0, most})],
        "bars": bars,
        "labels": [{"x": round(left + k * step, 1), "text": f"{edges[k]:.3g}"} for k in range(0, len(edges), every)],
    }
