"""The command line of a training run: --config FILE [--config.a.b=v] [--workdir DIR] [--overwrite]"""

import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qualiclip_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_WRAPPED = "Error whilst parsing config file"  # how ml_collections begins its report of some errors


def parse(argv: Sequence[str]) -> tuple["ConfigDict", str, bool]:
    """Reads the command line.

    Args:
      argv: the arguments, without the program's name.

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
    """Returns the config file, after checking that every file named exists."""
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


def _what_is_wrong(error: BaseException, path: Path, argv: Sequence[str]) -> str:
    """Describes an error in the config file or in a flag, in one line."""
    from absl import flags

    while _WRAPPED in str(error) and error.__context__:  # its message is the traceback of what get_config() raised
        error = error.__context__
    if isinstance(error, flags.UnrecognizedFlagError):
        known = re.findall(r"Did you mean: (\w+)", str(error))
        return f"--{error.flagname}: no such flag{_hint(error.flagname, known)}"
    if isinstance(error, flags.IllegalFlagValueError):
        return _wrong_value(error)
    if isinstance(error, flags.Error):
        return " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"{error.filename or path}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    text = " ".join(str(error.args[0] if error.args else error).split())
    if not lines and "get_config" in text:
        return f"--config {path}: needs a function get_config() without arguments ({text})"
    if not lines and isinstance(error, (KeyError, AttributeError)):
        return _no_such_field(text, path, argv)
    text = re.sub(r"Other fields present.*?(?=Did you mean|$)", "", text)  # ml_collections lists the whole config
    if (unknown := re.match(r"\W*Key \"(\w+)\" does not exist", text)) and "Did you mean" not in text:
        text = f"there is no field {unknown[1]!r}{_hint(unknown[1], ())}"
    return f"{path}, line {lines[-1] if lines else '?'}: {type(error).__name__}: {text}"


def _wrong_value(error: Exception) -> str:
    """Names the field and the type that it needs: absl's message says what its own parser met."""
    from qualiclip_jax.training import config

    text = " ".join(str(error).split())
    given = re.match(r"flag (--config\.([\w.]+)=.*?): ", text)
    defaults = dict(config.fields(config.default_config()))
    if given is None or given[2] not in defaults:
        return text
    return f"{given[1]}: must be {config.kind(defaults[given[2]])}"


def _no_such_field(text: str, path: Path, argv: Sequence[str]) -> str:
    """Names the argument that sets a field which is not there; `text` is what ml_collections says of it."""
    found = re.search(r"\w+", text)
    name = found[0] if found else ""
    argument = next((a for a in argv if re.match(rf"--config\.(\w+\.)*{name}\b", a)), f"--config.{name}")
    flag = argument.partition("=")[0]
    known = re.findall(r'Did you mean "(\w+)"', text)
    return f"{flag}: {path} has no such field{_hint(flag, known)}"


def _hint(flag: str, known: Sequence[str]) -> str:
    """Returns "; did you mean ...?": one of `known`, else the field that the name is likely to mean; "" if none is."""
    from qualiclip_jax.training import config, suggest

    meant = known[0] if known else suggest.field(flag, dict(config.fields(config.default_config())))
    return f"; did you mean {meant!r}?" if meant else ""
