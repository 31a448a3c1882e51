"""How much memory something takes, measured from outside."""

import os
import subprocess
import sys
from collections.abc import Sequence

_MEASURE = """
import resource, sys
{setup}
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
for argument in sys.argv[1:]:
    before = peak()
    said = call(argument)
    print(peak() - before, said)
"""


def growth(setup: str, arguments: Sequence[str]) -> list[tuple[int, str]]:
    """Runs `call(argument)`, which `setup` defines, for one argument after another in a process of its own.

    Returns:
      For each, by how many MiB the memory of the process has grown beyond what it ever was, and what `call` returned.
    """
    process = subprocess.run(
        [sys.executable, "-c", _MEASURE.format(setup=setup), *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    parts = (line.partition(" ") for line in process.stdout.splitlines())
    return [(int(mebibytes), said) for mebibytes, _, said in parts]
