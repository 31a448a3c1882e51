"""Settings for all tests: four CPU devices, strict types, no network, programs compiled once, long files first."""

import os
import shutil
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# Compiled programs go into the virtual environment: for all processes of this session, and for the next one.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(sys.prefix, "compiled"))
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false" if sys.prefix == sys.base_prefix else "true"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")

MOST_COMPILED = 2 * 2**30  # bytes

# The files that take longest when nothing is compiled yet, the longest first: begun early, they keep no core waiting.
LONGEST = (
    "training/test_processes.py",
    "training/test_resume.py",
    "degradations/test_pipeline.py",
    "models/test_encoders.py",
    "training/test_devices.py",
    "inference/test_predictor.py",
)


def pytest_configure(config):
    """Removes the compiled programs once they are many: most are of old code."""
    compiled = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    if alone and compiled.is_dir() and sum(file.stat().st_size for file in compiled.iterdir()) > MOST_COMPILED:
        shutil.rmtree(compiled, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Puts the longest files first (with xdist: --dist loadfile --no-loadscope-reorder)."""
    root = Path(__file__).parent
    place = {root / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))
