"""What docs/datasets.md says of the sets is what the code knows of them."""

import re
from pathlib import Path

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
