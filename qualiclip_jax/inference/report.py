"""The report of a scoring run: one self-contained page of thumbnails sorted by score."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from qualiclip_jax import html, storage
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError, read_image
from qualiclip_jax.inference.files import Row
from qualiclip_jax.inference.table import printable
from qualiclip_jax.progress import track

# The most images, and the longest side in pixels that they are shown with: the page stays below about 20 MB.
_PREVIEWS = ((100, 800), (300, 512), (1000, 320))
_MOST = _PREVIEWS[-1][0]
_BINS = 24

_STYLE = """
.bar { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; margin: 1rem 0; }
.bar button, .bar input { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: .3rem .7rem; } .bar input { flex: 1 1 12rem; max-width: 24rem; }
.bar button:hover { border-color: var(--accent); cursor: pointer; }
button.card { font: inherit; color: inherit; text-align: left; border: 1px solid transparent; padding: 0;
  cursor: zoom-in; }
button.card:hover, button.card:focus-visible { border-color: var(--accent); outline: none; }
.card .name { display: block; font-size: .8rem; color: var(--faint); overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
svg { max-width: 100%; height: auto; } svg rect { fill: var(--accent); }
svg rect:hover { opacity: .7; cursor: pointer; }
svg text { fill: var(--faint); font-size: 12px; } svg line { stroke: var(--line); }
dialog { border: 0; padding: 0; margin: 0; width: 100vw; height: 100vh; max-width: none; max-height: none;
  background: #000000e6; color: #f2f2f2; }
dialog[open] { display: flex; flex-direction: column; align-items: center; }
dialog img { flex: 1 1 auto; min-height: 0; max-width: 100%; object-fit: contain; padding: 1rem 1rem .5rem;
  cursor: zoom-out; }
dialog p { flex: none; max-width: 90vw; margin: 0 0 1rem; text-align: center; overflow-wrap: anywhere; }
dialog .attributes { font-size: .85rem; color: #c9c9c9; font-variant-numeric: tabular-nums; }
"""

_SCRIPT = """
const cards = [...document.querySelectorAll('button.card')], grid = document.querySelector('.cards');
const view = document.querySelector('dialog'), find = document.querySelector('input');
let shown = cards.slice(), at = 0;
function show(k) {
  at = (k + shown.length) % shown.length;
  const card = shown[at], facts = IMAGES[card.dataset.image];
  view.querySelector('img').src = card.querySelector('img').src;
  view.querySelector('b').textContent = facts.score;
  view.querySelector('.path').textContent = facts.path + ' \\u00b7 ' + facts.size;
  view.querySelector('.attributes').textContent = facts.attributes;
  if (!view.open) view.showModal();
}
cards.forEach(card => card.onclick = () => show(shown.indexOf(card)));
view.onclick = () => view.close();
view.onkeydown = event => {
  if (event.key === 'ArrowRight') show(at + 1);
  if (event.key === 'ArrowLeft') show(at - 1);
};
function arrange() {
  const words = find.value.toLowerCase();
  shown = [...grid.children].filter(card => IMAGES[card.dataset.image].path.toLowerCase().includes(words));
  cards.forEach(card => card.hidden = true);
  shown.forEach(card => card.hidden = false);
}
find.oninput = arrange;
document.querySelector('#turn').onclick = event => {
  grid.append(...[...grid.children].reverse());
  event.target.textContent = event.target.textContent === 'Best first' ? 'Worst first' : 'Best first';
  arrange();
};
document.querySelectorAll('svg rect').forEach(bar => bar.onclick = () => {
  const card = document.querySelector('button.card[data-bin="' + bar.dataset.bin + '"]:not([hidden])');
  if (card) { card.scrollIntoView({ block: 'center' }); card.focus({ focusVisible: true }); }
});
"""


def check(path: Path) -> None:
    """Finds out before the work whether the report can be written.

    Raises:
      UserError: no such folder, or not a page by its name.
    """
    if path.suffix not in (".html", ".htm"):
        raise UserError(f"--report {path}: the report is a page, its name must end in .html")
    if not path.parent.is_dir():
        raise UserError(f"--report {path}: there is no folder {path.parent}")


def write_report(path: Path, rows: Sequence[Row], columns: Sequence[str], about: str) -> None:
    """Writes the report, whole or not at all.

    Args:
      path: the page.
      rows: what was scored; rows with an error are listed apart.
      columns: names of the attributes.
      about: the model, one line of plain text.
    """
    scored = sorted((row for row in rows if row.error is None), key=lambda row: row.score)
    failed = [row for row in rows if row.error is not None]
    chosen = scored if len(scored) <= _MOST else [*scored[: _MOST // 2], *scored[-_MOST // 2 :]]
    side = next(side for most, side in _PREVIEWS if len(chosen) <= most)
    previews = _previews([row.path for row in chosen], side)
    edges = _bin_edges([row.score for row in scored])
    cards = [_card(i, row, uri, edges) for i, (row, uri) in enumerate(zip(chosen, previews))]
    body = [
        "<h1>Image quality</h1>",
        f'<p class="faint">{html.escape(about)}. Scores go from 0 to 1, higher is better.</p>',
        f"<p>{_summary(scored, failed)}</p>",
    ]
    if scored:
        body += [_histogram([row.score for row in scored], edges), _toolbar(len(chosen), len(scored))]
        body += ['<div class="cards">', *cards, "</div>", _LIGHTBOX]
    if failed:
        body += [f"<h2>Not scored: {len(failed)}</h2>"]
        body += [html.table(["file", "why"], [[printable(row.path), row.error] for row in failed], text_columns=2)]
    facts = json.dumps([_facts(row, columns) for row in chosen]).replace("<", "\\u003c")
    script = f"const IMAGES = {facts};{_SCRIPT}" if scored else ""
    page = html.page("Image quality", "\n".join(body), style=_STYLE, script=script)
    storage.write_bytes(path, page.encode())


_LIGHTBOX = '<dialog><img alt=""><p><b></b> <span class="path"></span></p><p class="attributes"></p></dialog>'


def _previews(paths: Sequence[str], side: int) -> list[str]:
    """Data URIs of small versions; empty where a file cannot be read any more."""

    def preview(path: str) -> str:
        try:
            return html.thumbnail_uri(read_image(path), side)
        except ImageError:
            return ""

    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
        return list(track(pool.map(preview, paths), len(paths), "report", "image"))


def _card(i: int, row: Row, uri: str, edges: np.ndarray) -> str:
    path = html.escape(printable(row.path))
    image = f'<img src="{uri}" alt="">' if uri else '<img alt="cannot be read any more">'
    return (
        f'<button class="card" data-image="{i}" data-bin="{_bin(row.score, edges)}" title="{path}">{image}'
        f'<div><span class="number">{row.score:.3f}</span>'
        f'<span class="name">{html.escape(printable(Path(row.path).name))}</span></div></button>'
    )


def _facts(row: Row, columns: Sequence[str]) -> dict[str, str]:
    """What the enlarged view tells."""
    attributes = zip(columns, row.attributes or ())
    return {
        "path": printable(row.path),
        "score": f"{row.score:.4f}",
        "size": f"{row.width} x {row.height}",
        "attributes": " \u00b7 ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in attributes),
    }


def _summary(scored: Sequence[Row], failed: Sequence[Row]) -> str:
    if not scored:
        return f"No image was scored, {len(failed)} failed."
    scores = np.array([row.score for row in scored])
    low, median, high = np.quantile(scores, [0.1, 0.5, 0.9])
    return (
        f"<b>{len(scored)}</b> images scored, {len(failed)} failed. Median <b>{median:.3f}</b>, "
        f"mean {scores.mean():.3f}; 80 % lie between {low:.3f} and {high:.3f}."
    )


def _toolbar(shown: int, scored: int) -> str:
    note = f"<span class='faint'>The {shown // 2} lowest and the {shown // 2} highest are shown.</span>"
    return (
        '<div class="bar"><button id="turn">Best first</button>'
        '<input type="search" placeholder="Find by name" aria-label="Find by name">'
        f"{note if shown < scored else ''}</div>"
    )


def _bin_edges(scores: Sequence[float]) -> np.ndarray:
    """Bins of a round width that hold all scores."""
    if not scores:
        return np.array([0.0, 1.0])
    low, high = min(scores), max(scores)
    width = next(w for w in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05) if (high - low) / w <= _BINS)
    first, last = np.floor(low / width), np.floor(high / width) + 1
    return np.arange(first, last + 1) * width


def _bin(score: float, edges: np.ndarray) -> int:
    return int(np.clip(np.searchsorted(edges, score, "right") - 1, 0, len(edges) - 2))


def _histogram(scores: Sequence[float], edges: np.ndarray) -> str:
    """The distribution of the scores as inline SVG."""
    width, height, foot = 720, 150, 22
    bins = [_bin(score, edges) for score in scores]
    counts = np.bincount(bins, minlength=len(edges) - 1)
    step = width / len(counts)
    bars = [
        f'<rect data-bin="{k}" x="{k * step + 1:.1f}" y="{height - height * 0.9 * count / counts.max():.1f}" '
        f'width="{max(step - 2, 1):.1f}" height="{height * 0.9 * count / counts.max():.1f}">'
        f"<title>{edges[k]:.3f} to {edges[k + 1]:.3f}: {count}</title></rect>"
        for k, count in enumerate(counts.tolist())
        if count
    ]
    every = max(1, len(counts) // 8)
    labels = [
        f'<text x="{k * step:.1f}" y="{height + 16}" text-anchor="{_anchor(k, len(counts))}">{edges[k]:.3g}</text>'
        for k in range(0, len(edges), every)
    ]
    return (
        f'<svg viewBox="0 0 {width} {height + foot}" width="{width}" role="img" aria-label="Histogram of the scores">'
        f'<line x1="0" x2="{width}" y1="{height}" y2="{height}"/>{"".join(bars)}{"".join(labels)}</svg>'
    )


def _anchor(k: int, last: int) -> str:
    return "start" if k == 0 else "end" if k == last else "middle"
