"""Training: qualiclip train --config FILE [--workdir DIR] [--config.a.b=v] [--overwrite]"""

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qualiclip_jax import cli
from qualiclip_jax.training.command_line import parse

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from qualiclip_jax.training.loop import Result

USAGE = """usage: PROGRAM --config FILE [--workdir DIR] [--config.FIELD=VALUE ...] [--overwrite]

  --config FILE           a Python file with get_config(), e.g. configs/demo.py
  --config.FIELD=VALUE    changes one field, e.g. --config.batch_size=8 --config.data.source=folder:photos
  --workdir DIR           where the run lives (default: runs/NAME for a config NAME.py)
  --overwrite             removes an earlier run there first

The same command goes on from the last checkpoint. All fields, with their defaults: qualiclip_jax/training/config.py
"""


def main(argv: Sequence[str]) -> int:
    """Trains; returns the exit status."""
    if not argv or "-h" in argv or "--help" in argv:
        print(USAGE.replace("PROGRAM", cli.program("train")), end="")
        return cli.DONE if argv else cli.FAILED
    config, workdir, overwrite = parse(argv)

    from qualiclip_jax import compilation
    from qualiclip_jax.training import parallel

    compilation.keep_compilations()
    parallel.initialize()
    if parallel.is_alone():
        return _train(config, workdir, overwrite)
    status = _one_of_several(lambda: _train(config, workdir, overwrite))
    return status if status == cli.DONE else parallel.leave(status)


def _train(config: "ConfigDict", workdir: str, overwrite: bool) -> int:
    from qualiclip_jax.training import loop, parallel

    result = loop.train(config, workdir, overwrite)
    if parallel.is_primary():
        print(f"{_photos(result.photos)}{_ending(result, workdir)}", flush=True)
    return cli.INTERRUPTED if result.stopped_by == "SIGINT" else cli.DONE


def _one_of_several(run: Callable[[], int]) -> int:
    """What `run` returns, or the exit status of the error it raises, which is printed."""
    from qualiclip_jax.training import parallel

    try:
        return cli.run(lambda _: run(), ())
    except Exception as error:
        if parallel.lost_others(error):
            reason = str(error).splitlines()[0][:200]
            print(
                f"error: another process of the run has ended; what it printed says why ({reason}). "
                "The same command in all processes goes on from the last checkpoint",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
        return cli.FAILED


def _photos(count: dict[str, int]) -> str:
    """A line on the photos that were not used as they are, if there are any."""
    told = {"corrupt": "could not be read", "skipped": "skipped as too small", "enlarged": "enlarged to the crop size"}
    parts = [f"{count[name]} {what}" for name, what in told.items() if count[name]]
    return f"photos     {count['tried']} tried: {', '.join(parts)}\n" if parts else ""


def _ending(result: "Result", workdir: str) -> str:
    """The last line: how the run ended, what was measured, and where everything lies."""
    if result.stopped_by:
        how = "interrupted" if result.stopped_by == "SIGINT" else f"stopped by {result.stopped_by}"
        if not result.step:
            return f"{how} before the first step: nothing to save"
        return f"{how}: step {result.step} is saved in {workdir}/checkpoints; the same command goes on from there"
    measured = "".join(f", {name} {value:.3f}" for name, value in result.evaluation.items())
    return f"done: {result.step} steps{measured}; checkpoints in {workdir}/checkpoints, curves in {workdir}/curves.png"


if __name__ == "__main__":
    sys.exit(cli.run(main))
