"""Compiled programs, kept on disk from one run to the next."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any


def keep_compilations() -> None:
    """Keeps compiled programs on disk, so that the next run does not compile them again.

    They go to `qualiclip_jax` in the user's cache directory. Does nothing where JAX has a compilation cache already
    (JAX_COMPILATION_CACHE_DIR), or where it is switched off (JAX_ENABLE_COMPILATION_CACHE=false).
    """
    import jax

    config: Any = jax.config  # its fields are made at run time
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    directory = cache_directory() / "compiled"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(directory, os.W_OK):
        config.update("jax_compilation_cache_dir", str(directory))
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        # A full disk or a killed process leaves entries cut off. Then JAX compiles anew: no trouble of the user's.
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")


def cache_directory() -> Path:
    """Where this package may keep what it can make again."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "qualiclip_jax"
