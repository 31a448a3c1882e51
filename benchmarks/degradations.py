"""Degradations: ms per 224 x 224 crop, each type, the mixed batch and the camera's chain, and compile time.

    python benchmarks/degradations.py

The strategies of `degrade_pairs` are "scan" and "levels" (see its docstring). "select" is the baseline, what `jax.vmap`
makes of `jax.lax.switch`: every type is computed for every image and one result kept. It is timed on two images, for
its memory. All are timed in turns in this one run, on the same draws of types. The column PyTorch has published figures
of the reference code (PyTorch and SciPy, 2 threads) on a machine of this kind; they are not timed here.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from qualiclip_jax import degradations
from qualiclip_jax.degradations import LEVELS, TYPES, camera

PYTORCH = {  # ms per crop
    "gaussian_blur": 7.8, "lens_blur": 4.8, "motion_blur": 3.4, "color_diffusion": 40, "color_shift": 7.6,
    "hsv_saturation": 2.2, "lab_saturation": 3.5, "jpeg2000": 24, "jpeg": 0.9, "white_noise": 0.6, "ycbcr_noise": 1.1,
    "multiplicative_noise": 1.1, "mean_shift": 0.25, "jitter": 41, "non_eccentricity_patch": 0.7, "pixelate": 0.2,
    "quantization": 2.5, "color_block": 0.4, "sharpen": 7.2, "linear_contrast": 5.8, "nonlinear_contrast": 0.6,
}  # fmt: skip
PYTORCH_MIXED = 7.5
SELECT_BATCH = 2
LEVELS_OF_CAMERA = (0.2, 0.4, 0.6, 0.8, 1.0)


def strategies() -> dict[str, Callable]:
    """(crops, types, keys) -> degraded pairs, by name."""
    one = lambda crops, kind, key: degradations.degrade_pairs(crops[None], kind[None], key[None], strategy="levels")[0]
    return {
        "scan": lambda *batch: degradations.degrade_pairs(*batch, strategy="scan"),
        "levels": lambda *batch: degradations.degrade_pairs(*batch, strategy="levels"),
        "select": jax.vmap(one),  # vmap turns the switch into "compute all, select"
    }


def seconds(compiled: Callable, *batch) -> float:
    start = time.perf_counter()
    jax.block_until_ready(compiled(*batch))
    return time.perf_counter() - start


def main() -> None:
    """Compiles every strategy once, then times mixed batches and single types."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="images, each two crops at five levels (default: 16)")
    parser.add_argument("--size", type=int, default=224, help="of a crop, px (default: 224)")
    parser.add_argument(
        "--rounds", type=int, default=10, help="mixed batches, each with types of its own (default: 10)"
    )
    args = parser.parse_args()
    device = jax.devices()[0]
    print(
        f"{device.platform} {device.device_kind}: {args.batch} images x 2 crops x {LEVELS} levels of {args.size} px\n"
    )

    def batch_of(name: str) -> int:
        return min(args.batch, SELECT_BATCH) if name == "select" else args.batch

    coarse = jax.random.uniform(jax.random.key(0), (args.batch, 2, 16, 16, 3))
    crops = jax.image.resize(coarse, (args.batch, 2, args.size, args.size, 3), "cubic").clip(0, 1) * 255
    crops = crops.astype(jnp.uint8)
    keys = jax.random.split(jax.random.key(1), args.batch)
    types = [degradations.sample_types(jax.random.key(round), args.batch) for round in range(args.rounds)]
    compiled, compile_seconds = {}, {}
    for name, function in strategies().items():
        b = batch_of(name)
        start = time.perf_counter()
        compiled[name] = jax.jit(function).lower(crops[:b], types[0][:b], keys[:b]).compile()
        compile_seconds[name] = time.perf_counter() - start
        seconds(compiled[name], crops[:b], types[0][:b], keys[:b])

    mixed = {name: [] for name in compiled}
    for drawn in types:
        for name, function in compiled.items():
            b = batch_of(name)
            mixed[name].append(seconds(function, crops[:b], drawn[:b], keys[:b]) / (b * 2 * LEVELS) * 1e3)
    base = np.median(mixed["select"])
    print(f"{'mixed batch':12s} {'ms/crop':>8s} {'ratio':>7s} {'compile s':>10s}")
    for name, times in mixed.items():
        print(f"{name:12s} {np.median(times):8.2f} {base / np.median(times):6.1f}x {compile_seconds[name]:10.1f}")
    print(f"{'PyTorch':12s} {PYTORCH_MIXED:8.2f}\n")

    for rate, title in ((camera.PROBABILITIES, "camera"), ((1.0,) * len(camera.FACTORS), "camera, all on")):
        simulate = jax.jit(
            lambda crops, keys, rate=rate: camera.simulate(crops, keys, LEVELS_OF_CAMERA, probabilities=rate)
        )
        start = time.perf_counter()
        run = simulate.lower(crops, keys).compile()
        print(f"{title:14s} {time.perf_counter() - start:6.1f} s to compile", end=", ")
        drawn = [jax.random.split(jax.random.key(round), args.batch) for round in range(args.rounds)]
        ms = np.median([seconds(run, crops, keys) for keys in drawn]) / (args.batch * 2 * LEVELS) * 1e3
        print(f"{ms:.2f} ms/crop")
    print()

    best = min(("scan", "levels"), key=lambda name: np.median(mixed[name]))
    print(f"{'type (' + best + ')':24s} {'ms/crop':>8s} {'PyTorch':>8s} {'ratio':>7s}")
    for kind, name in enumerate(TYPES):
        every = jnp.full(args.batch, kind)
        ms = min(seconds(compiled[best], crops, every, keys) for _ in range(3)) / (args.batch * 2 * LEVELS) * 1e3
        other = PYTORCH.get(name)
        print(f"{name:24s} {ms:8.2f}" + (f" {other:8.2f} {other / ms:6.1f}x" if other else ""))


if __name__ == "__main__":
    main()
