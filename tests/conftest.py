"""Settings for all tests: four CPU devices, strict types, no network, programs compiled once, long files first."""

import gc
import os
import shutil
import signal
import sys
from pathlib import Path

# Four devices, and programs that compile in a fifth of the time (they run more slowly).
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["QUALICLIP_DEVICES"] = "1"  # to score on; training uses all four
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# Compiled programs go into the virtual environment: for all processes of this session, and for the next one.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(sys.prefix, "compiled"))
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false" if sys.prefix == sys.base_prefix else "true"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores Ctrl-C for what it starts in the background

# Python looks for garbage a hundred times less often: it took an eighth of the tests' time, for what JAX keeps anyway.
gc.freeze()
gc.set_threshold(50_000, 20, 100)

MOST_COMPILED = 2 * 2**30  # bytes

# The files that take longest when nothing is compiled yet, the longest first: begun early, they keep no core waiting.
LONGEST = (
    "inference/test_ray.py",
    "training/test_processes.py",
    "models/test_encoders.py",
    "degradations/test_pipeline.py",
    "training/test_resume.py",
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


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hugging Face hub and a host of releases on this machine; this process is set to use them, with empty caches."""
    import hub_server
    from huggingface_hub import close_session, constants

    from qualiclip_jax import download

    with hub_server.serve() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv(download.MIRROR, f"{server.url}/releases")
        monkeypatch.setattr(download, "PAUSE", 0.0)
        yield server
        close_session()
