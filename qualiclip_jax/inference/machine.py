"""What depends on the machine: compiler options, memory, and what things cost."""

import functools
import os
import platform
import sys

import jax
import numpy as np

from qualiclip_jax.inference.buckets import Costs
from qualiclip_jax.models import CLIPConfig, ResNetConfig
from qualiclip_jax.models.layers import SLICE

# 1 x 1 convolutions and other matrix products through a library of kernels: 10 to 25 % faster on x86, experimental.
_FAST_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
_CPU_MEMORY = 3e9  # bytes; with what is not counted here, an image of 100 megapixels stays below 4 GiB
_RN50_WIDTH = 64


@functools.cache
def compiler_options() -> dict[str, str]:
    """XLA options for the default backend: those that this XLA knows, and that pass a check of exactness."""
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
    """Whether `models.winograd` makes the encoder faster here: a float32 ResNet on a CPU."""
    on_cpu = jax.default_backend() == "cpu"
    return on_cpu and isinstance(config.image, ResNetConfig) and config.compute_dtype == "float32"


def slice_images(pixels: int) -> int:
    """How many images of so many pixels the early stages of a ResNet take at once."""
    return max(1, 210_000 // pixels) if jax.default_backend() == "cpu" else sys.maxsize


def costs(config: CLIPConfig) -> Costs:
    """What compiling and calling cost in pixels, for `buckets.plan`.

    Measured with RN50 on two x86 cores: 1 s a megapixel; 2 s to compile a shape, 0.2 s to load it from the cache, which
    is what counts there, since most shapes come again. On accelerators, pixels are cheap and compilations long.
    """
    relative = operations_per_pixel(config) / operations_per_pixel(
        CLIPConfig(1024, ResNetConfig((3, 4, 6, 3), _RN50_WIDTH, 32))
    )
    if jax.default_backend() == "cpu":
        return Costs(compile=0.2e6 / relative, call=0.025e6 / relative, batch=0.5e6)
    return Costs(compile=5e8 / relative, call=0.3e6 / relative, batch=16e6)


def operations_per_pixel(config: CLIPConfig) -> float:
    """Multiplications per pixel of the image encoder, roughly."""
    image = config.image
    if isinstance(image, ResNetConfig):
        stem = (27 / 2 + 9 / 4 * image.width + 9 / 2 * image.width) * image.width / 4
        return stem + sum(image.layers) * 17 / 16 * image.width**2  # a block: 17 width^2 multiplications a token
    return (12 * image.layers * image.width + 3 * image.patch_size**2) * image.width / image.patch_size**2


def whole_image_pixels(config: CLIPConfig, pixels: int) -> float:
    """How many pixels of an image of `pixels` a ResNet may take at once; a larger image is scored in tiles."""
    width = config.image.width
    kept = pixels * (3 + 4 * 32 * width / 32**2)  # the image, and its tokens
    return max((_memory() - kept) / (430 * width / _RN50_WIDTH), 1e6)


def most_tokens(config: CLIPConfig) -> int:
    """How many tokens of an image a ViT may take: one slice of its attention, and what a block computes of each."""
    memory = _memory()
    if jax.default_backend() == "cpu" and hasattr(os, "sysconf"):
        memory = max(memory, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2)
    return int(memory / (4 * (3 * SLICE * config.image.heads + 12 * config.image.width)))


def pixels_at_once(config: CLIPConfig) -> float:
    """The most pixels that batches computed side by side may have together. One alone may have more."""
    if jax.default_backend() != "cpu":
        return float("inf")  # computed one after the other
    if isinstance(config.image, ResNetConfig):
        return whole_image_pixels(config, 0)
    return most_tokens(config) * config.image.patch_size**2


@functools.cache
def _memory() -> float:
    """Bytes for activations."""
    if jax.default_backend() == "cpu":
        return _CPU_MEMORY
    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", 16e9) / 2
