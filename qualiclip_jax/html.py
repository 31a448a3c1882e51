"""Self-contained HTML pages for reports: one file, system fonts, light and dark, nothing loaded from elsewhere."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

escape = html.escape

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --faint: #62676f; --back: #ffffff; --card: #f4f5f7; --line: #d9dce1;
  --accent: #0b62c4; --good: #1a7f37; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --faint: #9aa1ab; --back: #15181c; --card: #1e2227;
  --line: #363c44; --accent: #6cb0ff; --good: #57c773; --bad: #ff8f85; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1, h2, h3 { overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; } p { margin: .5rem 0; max-width: 50rem; } a { color: var(--accent); }
code { font: .9em ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; overflow-wrap: anywhere; }
.faint { color: var(--faint); } .good { color: var(--good); } .bad { color: var(--bad); }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: 600; font-size: .85rem; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
tbody tr:hover { background: var(--card); }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; border-radius: 6px; background: #ffffff; }
figcaption { color: var(--faint); font-size: .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .8rem; margin: .5rem 0; }
.card { background: var(--card); border-radius: 8px; overflow: hidden; font-size: .85rem; }
.card img { display: block; width: 100%; height: 8.5rem; object-fit: contain; background: #80808022; }
.card div { padding: .4rem .6rem .6rem; overflow-wrap: anywhere; }
.number { font-size: 1.05rem; font-weight: 600; font-variant-numeric: tabular-nums; }
"""


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole HTML document.

    Classes the style knows: `faint`, `good`, `bad`; `scroll` around a wide table; `cards` around `card`s.

    Args:
      title: plain text, of the window; the body brings its own h1.
      body: HTML; escape what comes from users with `escape`.
      style: more CSS, after the common one.
      script: JavaScript, run after the body is there.
    """
    script = f"<script>{script}</script>\n" if script else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n'
        f"<body>\n{body}\n{script}</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], text_columns: int = 1) -> str:
    """An HTML table that scrolls sideways where the window is too narrow.

    Args:
      head: plain text of the head cells.
      rows: plain text or numbers of the cells, escaped here.
      text_columns: how many columns from the left hold text and are set flush left.
    """

    def line(cells: Sequence[Any], tag: str) -> str:
        marks = [' class="text"' if column < text_columns else "" for column in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{m}>{escape(str(c))}</{tag}>" for m, c in zip(marks, cells)) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>\n<thead>{line(head, "th")}</thead>\n<tbody>\n{body}\n</tbody></table></div>'


def thumbnail_uri(image: np.ndarray, max_side: int = 240, quality: int = 80) -> str:
    """A small JPEG of an image as a data URI.

    Args:
      image: uint8 [H, W, 3].
      max_side: of the thumbnail, px; smaller images are left at their size.
      quality: of the JPEG, 1..95.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def figure_png(figure: Any, dpi: int = 144) -> bytes:
    """A matplotlib figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def png_uri(png: bytes) -> str:
    """The bytes of a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
