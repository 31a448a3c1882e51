"""Pages, thumbnails and files of reports."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax import html


def test_page_escapes_its_title_and_carries_everything_itself():
    page = html.page("a < b & c", "<h1>x</h1>", style=".k { color: red; }", script="let k = 1;")
    assert "<title>a &lt; b &amp; c</title>" in page
    assert "http" not in page
    assert page.index(".k { color: red; }") < page.index("<h1>x</h1>") < page.index("let k = 1;")


def test_table_escapes_cells():
    table = html.table(["name", "n"], [["<b>", 3]])
    assert '<td class="text">&lt;b&gt;</td><td>3</td>' in table


@pytest.mark.parametrize(("shape", "expected"), [((300, 600, 3), (240, 120)), ((50, 40, 3), (40, 50))])
def test_thumbnail_is_a_small_jpeg(shape, expected):
    uri = html.thumbnail_uri(np.full(shape, 90, np.uint8))
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (picture.format, picture.size) == ("JPEG", expected)
    assert abs(int(np.asarray(picture).mean()) - 90) <= 2


def test_figures_are_the_same_bytes_each_time():
    from matplotlib.figure import Figure

    def draw():
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([1, 2])
        return html.figure_png(figure)

    assert draw() == draw()
    assert html.png_uri(draw()).startswith("data:image/png;base64,iVBOR")
