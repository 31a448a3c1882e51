"""The small models of the tests of scoring."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "inference"))
