"""Self-contained HTML pages and other texts, from the templates in `templates/`."""

import base64
import functools
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import jinja2


@functools.cache
def _templates() -> "jinja2.Environment":
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def render(template: str, *, title: str, generator: str, **values: Any) -> bytes:
    """A page as the bytes of a file.

    Args:
      template: name of a file in `templates/`. Pages extend `base.html.j2`.
      title: of the page, plain text.
      generator: what makes pages of this kind, e.g. "qualiclip score"; see `is_page`.
      values: what the template shows; text is escaped there.
    """
    page = _templates().get_template(template).render(title=title, generator=generator, **values)
    return page.lstrip().encode("utf-8", "backslashreplace")


def is_page(path: str | os.PathLike[str], generator: str) -> bool:
    """Whether a file is a page that `render` made for this generator."""
    with open(path, "rb") as file:
        return f'<meta name="generator" content="{generator}">'.encode() in file.read(1000)


def link(path: str | os.PathLike[str], page: str | os.PathLike[str]) -> str:
    """The address of a file, as it is written in a page: relative to the page where that is possible."""
    try:
        relative = os.path.relpath(path, os.path.dirname(page) or ".")
    except ValueError:  # on another drive of Windows
        return Path(path).absolute().as_uri()
    return quote(os.fsencode(relative.replace(os.sep, "/")))


def thumbnail(image: np.ndarray, max_side: int = 240, quality: int = 80) -> bytes:
    """A small JPEG of an image.

    Args:
      image: uint8 [H, W, 3].
      max_side: of the thumbnail, px; smaller images are left at their size.
      quality: of the JPEG, 1..95.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def thumbnail_uri(image: np.ndarray, max_side: int = 240, quality: int = 80) -> str:
    """`thumbnail` as a data URI."""
    return data_uri(thumbnail(image, max_side, quality), "jpeg")


def figure_png(figure: Any, dpi: int = 144) -> bytes:
    """A matplotlib figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def png_uri(png: bytes) -> str:
    """The bytes of a PNG file as a data URI."""
    return data_uri(png, "png")


def data_uri(data: bytes, kind: str) -> str:
    """The bytes of a picture as a data URI; `kind` as in its media type: "jpeg", "png", "webp"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
