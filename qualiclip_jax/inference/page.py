"""The report of a scoring run: one self-contained page of thumbnails sorted by score."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from qualiclip_jax import html, storage
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError, read_image
from qualiclip_jax.inference.files import Row
from qualiclip_jax.inference.formats import printable
from qualiclip_jax.inference.output import refuse_to_replace
from qualiclip_jax.progress import track

# The most images, and the longest side in pixels that they are shown with: the page stays below about 20 MB.
_PREVIEWS = ((100, 800), (300, 512), (1000, 320))
_MOST = _PREVIEWS[-1][0]
_BINS = 24
_GENERATOR = "qualiclip score"


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
    path: Path, rows: Sequence[Row], columns: Sequence[str], about: str, problems: Sequence[ImageError] = ()
) -> None:
    """Writes the report, whole or not at all.

    Args:
      path: the page.
      rows: what was scored; rows with an error are listed apart.
      columns: names of the attributes.
      about: the model, one line of plain text.
      problems: folders and patterns that gave no images, and why.
    """
    scored = sorted((row for row in rows if row.score is not None), key=lambda row: row.score or 0)
    failed = [(error.path, error.reason) for error in problems]
    failed += [(row.path, row.error or "") for row in rows if row.score is None]
    chosen = scored if len(scored) <= _MOST else [*scored[: _MOST // 2], *scored[-_MOST // 2 :]]
    side = next(side for most, side in _PREVIEWS if len(chosen) <= most)
    scores = np.array([row.score for row in scored], np.float64)
    edges = _bin_edges(scores)
    page = html.render(
        "scores.html.j2",
        title="Image quality",
        generator=_GENERATOR,
        about=about,
        scored=len(scored),
        distribution=_distribution(scores),
        chart=_chart(scores, edges),
        cards=[
            {
                "bin": _bin(row.score, edges),
                "path": printable(row.path),
                "name": printable(Path(row.path).name),
                "score": row.score,
                "uri": uri,
            }
            for row, uri in zip(chosen, _previews([row.path for row in chosen], side))
        ],
        facts=[_facts(row, columns, path) for row in chosen],
        failed=[
            {"path": printable(name), "link": html.link(name, path), "error": printable(error)}
            for name, error in failed
        ],
    )
    storage.write_bytes(path, page)


def _previews(paths: Sequence[str], side: int) -> list[str]:
    """Data URIs of small versions; empty where a file cannot be read any more."""

    def preview(path: str) -> str:
        try:
            return html.thumbnail_uri(read_image(path), side)
        except ImageError:
            return ""

    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        return list(track(pool.map(preview, paths), len(paths), "report", "image"))


def _facts(row: Row, columns: Sequence[str], page: Path) -> dict[str, str]:
    """What the enlarged view tells."""
    attributes = zip(columns, row.attributes or ())
    return {
        "path": printable(row.path),
        "link": html.link(row.path, page),
        "score": f"{row.score:.4f}",
        "size": f"{row.width} x {row.height}",
        "attributes": " \u00b7 ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in attributes),
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
