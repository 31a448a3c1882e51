"""Pages, thumbnails and files of reports."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax import html


def test_pages_escape_what_they_show(tmp_path):
    values = dict.fromkeys(("headlines", "contestants", "sets", "synthetic", "published"), ())
    page = html.render(
        "evaluation.html.j2",
        title="a < b & c",
        generator="me",
        note="<b>",
        mean={"head": ["<i>"], "rows": [[3]]},
        **values,
    )
    text = page.decode()
    assert text.startswith("<!doctype html>")
    assert "<title>a &lt; b &amp; c</title>" in text
    assert '<p class="faint">&lt;b&gt;</p>' in text
    assert "<th>&lt;i&gt;</th>" in text
    assert "<td>3</td>" in text
    assert "http" not in text
    (tmp_path / "page.html").write_bytes(page)
    assert html.is_page(tmp_path / "page.html", "me")
    assert not html.is_page(tmp_path / "page.html", "m")


def test_links_lead_from_the_page_to_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert html.link("photos/a b.png", "report.html") == "photos/a%20b.png"
    assert html.link(tmp_path / "photos/#1?.png", "reports/report.html") == "../photos/%231%3F.png"
    assert html.link("javascript:alert(1)", "report.html") == "javascript%3Aalert%281%29"
    assert html.link("caf\udce9.png", "report.html") == "caf%E9.png"


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
