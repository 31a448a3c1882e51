"""Training: python -m qualiclip_jax.train --config FILE [--workdir DIR] [--config.a.b=v] [--overwrite]"""

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from qualiclip_jax import cli
from qualiclip_jax.errors import UserError

USAGE = """usage: python -m qualiclip_jax.train --config FILE [--workdir DIR] [--config.FIELD=VALUE ...] [--overwrite]

  --config FILE           a Python file with get_config(), e.g. configs/demo.py
  --config.FIELD=VALUE    changes one field, e.g. --config.batch_size=8 --config.data.source=folder:photos
  --workdir DIR           where the run lives (default: runs/NAME for a config NAME.py)
  --overwrite             removes an earlier run there first

Running the same command again goes on from the last checkpoint. All fields: qualiclip_jax/training/config.py
"""

_WRAPPED = "Error whilst parsing config file"  # how ml_collections begins to tell of some errors


def parse(argv: Sequence[str]):
    """Reads the command line.

    Returns:
      (config, workdir, overwrite).

    Raises:
      UserError: naming the file, flag or field that is wrong.
    """
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    argv = ["train", *argv]
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "", flag_values=values)
    path = _config_path(argv)
    try:
        rest = values(argv)[1:]
    except Exception as error:  # get_config() may raise anything
        raise UserError(_what_is_wrong(error, path, argv)) from None
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag; fields are set as --config.FIELD=VALUE")
    config = values.config
    if not hasattr(config, "to_dict"):
        raise UserError(f"--config {path}: get_config() must return a ConfigDict, not {type(config).__name__}")
    return config, values.workdir or str(Path("runs") / path.stem), values.overwrite


def _config_path(argv: Sequence[str]) -> Path:
    """The config file; every one that is named must be there."""
    path = None
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            value = value if equals else (argv[i + 1] if i + 1 < len(argv) else "")
            path = Path(value.partition(":")[0])
            if not path.is_file():
                raise UserError(f"--config {value}: no such file")
    if path is None:
        raise UserError("which config? e.g. --config configs/demo.py (--help tells more)")
    return path


def _what_is_wrong(error: Exception, path: Path, argv: Sequence[str]) -> str:
    """One line on an error in a config file or a flag."""
    from absl import flags

    while _WRAPPED in str(error) and error.__context__:  # a whole traceback as a message: of what get_config() raised
        error = error.__context__
    if isinstance(error, flags.Error):
        return " ".join(str(error).split())
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    text = " ".join(str(error.args[0] if error.args else error).split())
    if not lines and "get_config" in text:
        return f"--config {path}: needs a function get_config() without arguments ({text})"
    if not lines and isinstance(error, (KeyError, AttributeError)):
        return _no_such_field(error, path, argv)
    line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
    text = re.sub(r"Other fields present.*?(?=Did you mean|$)", "", text)  # ml_collections lists the whole config
    return f"{path}, line {line}: {type(error).__name__}: {text}"


def _no_such_field(error: Exception, path: Path, argv: Sequence[str]) -> str:
    """One line that names the field, from what ml_collections says of it."""
    name = re.search(r"\w+", str(error.args[0])).group()
    argument = next((a for a in argv if re.match(rf"--config\.(\w+\.)*{name}\b", a)), f"--config.{name}")
    close = re.search(r'Did you mean "(\w+)"', str(error.args[0]))
    hint = f"; did you mean {close.group(1)!r}?" if close else ""
    return f"{argument.partition('=')[0]}: {path} has no such field{hint}"


def main(argv: Sequence[str]) -> int:
    """Trains; returns the exit status."""
    if not argv or "-h" in argv or "--help" in argv:
        print(USAGE, end="")
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


def _train(config, workdir: str, overwrite: bool) -> int:
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


def _ending(result, workdir: str) -> str:
    if result.stopped_by:
        how = "interrupted" if result.stopped_by == "SIGINT" else f"stopped by {result.stopped_by}"
        if not result.step:
            return f"{how} before the first step: nothing to save"
        return f"{how}: step {result.step} is saved in {workdir}/checkpoints; the same command goes on from there"
    measured = "".join(f", {name} {value:.3f}" for name, value in result.evaluation.items())
    return f"done: {result.step} steps{measured}; checkpoints in {workdir}/checkpoints, curves in {workdir}/curves.png"


if __name__ == "__main__":
    sys.exit(cli.run(main))
