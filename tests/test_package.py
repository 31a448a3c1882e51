"""Importing the package."""

import re
import subprocess
import sys
from pathlib import Path

from qualiclip_jax import __version__

ROOT = Path(__file__).parents[1]


def test_importing_the_package_imports_nothing_heavy():
    """Not even JAX: the commands' help and messages come at once."""
    code = (
        "import sys, qualiclip_jax, qualiclip_jax.cli\n"
        "heavy = {'jax', 'flax', 'numpy', 'transformers', 'tensorflow', 'tensorflow_datasets', 'matplotlib', 'torch'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_version_is_one_and_has_a_dated_entry():
    released = re.search(r"^## (\d\S*) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = (ROOT / "CITATION.cff").read_text()
    assert released[1] == __version__
    assert f"version: {released[1]}\ndate-released: {released[2]}\n" in cited
