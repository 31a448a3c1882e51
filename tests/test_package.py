"""Importing the package."""

import subprocess
import sys


def test_importing_the_package_imports_nothing_heavy():
    """Not even JAX: the commands' help and messages come at once."""
    code = (
        "import sys, qualiclip_jax, qualiclip_jax.cli\n"
        "heavy = {'jax', 'flax', 'numpy', 'transformers', 'tensorflow', 'tensorflow_datasets', 'matplotlib', 'torch'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
