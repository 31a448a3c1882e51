"""What the pages say is so: what docs/datasets.md tells of the sets, and where links lead."""

import re
from pathlib import Path

import pytest

from qualiclip_jax.data.builders import IMAGE_SETS

PAGE = (Path(__file__).parents[1] / "docs/datasets.md").read_text()


def test_table_of_sets():
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if re.match(r"\| `\w+`.*\]\(http", line)]
    said = {}
    for names, title, images, scale, *_ in rows:
        for name in re.findall(r"`(\w+)`", names):
            said[name] = (re.search(r"\((http[^)]*)\)", title)[1], images, scale)
    known = {s.name: (s.url, f"{s.images:,}", s.rated_text()) for s in IMAGE_SETS.values()}
    assert said == known


PAGES = [*Path(__file__).parents[1].glob("docs/*.md"), *Path(__file__).parents[1].glob("*.md")]


def anchor(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text()):
        name, _, part = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if part:
            assert part in [anchor(line.lstrip("#")) for line in target.read_text().splitlines() if line[:1] == "#"], (
                link
            )
