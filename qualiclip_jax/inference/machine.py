"""What depends on the machine: compiler options, memory, and what things cost."""

import functools
import os
import platform
import sys

import jax
import numpy as np

from qualiclip_jax.errors import UserError
from qualiclip_jax.inference.buckets import Costs
from qualiclip_jax.models import CLIPConfig, EfficientNetConfig
from qualiclip_jax.models.backbones import TABLE

# 1 x 1 convolutions and other matrix products through a library of kernels, experimental. On x86, ResNets and ViTs are
# 10 to 25 % faster, but an EfficientNet 15 % slower: its products are small, and no longer fused with what follows.
_FAST_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
_CPU_MEMORY = 3e9  # bytes; with what is not counted here, an image of 100 megapixels stays below 4 GiB


def devices() -> list[jax.Device]:
    """The devices that share the work: all of this process; with QUALICLIP_DEVICES=N the first N of them."""
    local, wanted = jax.local_devices(), os.environ.get("QUALICLIP_DEVICES", "")
    if not wanted:
        return local
    if not wanted.isdigit() or not 1 <= int(wanted) <= len(local):
        raise UserError(f"QUALICLIP_DEVICES={wanted}: there are 1 to {len(local)} devices to choose from")
    return local[: int(wanted)]


def compiler_options(config: CLIPConfig) -> dict[str, str]:
    """XLA options that make this model faster on the default backend, if this XLA knows them."""
    return {} if isinstance(config.image, EfficientNetConfig) else _products()


@functools.cache
def _products() -> dict[str, str]:
    """Options for fast matrix products, if they pass a check of exactness here."""
    if jax.default_backend() != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return {}
    a = np.arange(64 * 96, dtype=np.float32).reshape(64, 96) % 7 - 3
    b = np.arange(96 * 32, dtype=np.float32).reshape(96, 32) % 5 - 2  # small integers: products are exact
    try:
        product = jax.jit(lambda x, y: jax.numpy.maximum(x @ y, 0), compiler_options=_FAST_CPU)(a, b)
    except Exception:  # unknown option, or one that this processor does not support
        return {}
    return _FAST_CPU if np.array_equal(product, np.maximum(a @ b, 0)) else {}


def prefers_winograd(config: CLIPConfig) -> bool:
    """Whether `models.winograd` is faster here: in float32 on a CPU."""
    return jax.default_backend() == "cpu" and config.compute_dtype == "float32"


def slice_images(pixels: int) -> int:
    """How many images of so many pixels the early part of an encoder takes at once."""
    return max(1, 210_000 // pixels) if jax.default_backend() == "cpu" else sys.maxsize


def costs(config: CLIPConfig) -> Costs:
    """What compiling and calling cost in pixels, for `buckets.plan`.

    Measured with RN50 on two x86 cores: 1 s a megapixel; 2 s to compile a shape, 0.2 s to load it from the cache, which
    is what counts there, since most shapes come again. On accelerators, pixels are cheap and compilations long.
    """
    relative = config.image.multiplications / TABLE["RN50"].config.image.multiplications
    if jax.default_backend() == "cpu":
        return Costs(0.2e6 / relative, 0.025e6 / relative, batch=0.5e6, devices=len(devices()))
    return Costs(5e8 / relative, 0.3e6 / relative, batch=16e6, devices=len(devices()))


def whole_image_pixels(config: CLIPConfig, pixels: int) -> float:
    """How many pixels of an image of `pixels` are encoded at once where tiles are possible; more go in tiles."""
    kept = pixels * (3 + 4 * config.image.features / config.image.stride**2)  # the image, and its tokens
    return max((_memory() - kept) / config.image.bytes_per_pixel, 1e6)


def most_pixels(config: CLIPConfig) -> float:
    """How many pixels an image may have where tiles are not possible."""
    memory = _memory()
    if jax.default_backend() == "cpu" and hasattr(os, "sysconf"):
        memory = max(memory, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2)
    return memory / config.image.bytes_per_pixel


def pixels_at_once(config: CLIPConfig) -> float:
    """The most pixels that batches computed side by side may have together. One alone may have more."""
    if jax.default_backend() != "cpu":
        return float("inf")  # computed one after the other
    return whole_image_pixels(config, 0) if config.can_tile else most_pixels(config)


@functools.cache
def _memory() -> float:
    """Bytes for activations."""
    if jax.default_backend() == "cpu":
        return _CPU_MEMORY
    statistics = jax.local_devices()[0].memory_stats() or {}
    return float(statistics.get("bytes_limit", 16e9)) / 2
