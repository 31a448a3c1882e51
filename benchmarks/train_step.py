"""Training step: time split into degradations, forward, backward and rest; images/s; share of the matmul rate."""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from qualiclip_jax import train
from qualiclip_jax.training import build, flops, metrics
from qualiclip_jax.training.state import create_state
from qualiclip_jax.training.step import degrade_batch, gradients, loss_fn, train_step


def seconds(compiled, *args, repeats: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Times parts of one step on one device, nested, so that differences are the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/demo.py")
    parser.add_argument("--repeats", type=int, default=10)
    args, fields = parser.parse_known_args()
    config, _, _ = train.parse(["--config", args.config, *fields])
    model = build.build_model(config)
    recipe, params, batch_stats = build.build_recipe(config, model, config.steps)
    state = create_state(params, batch_stats, recipe)
    b, size, levels = config.batch_size, config.data.crop_size, config.degradations.levels
    crops = np.random.default_rng(0).integers(0, 256, (b, 2, size, size, 3), np.uint8)
    batch = {"crops": jnp.array(crops), "example": jnp.arange(b, dtype=jnp.uint32)}

    def degrade(batch):
        return degrade_batch(batch["crops"], batch["example"], recipe)

    def forward(params, batch_stats, batch):
        return loss_fn(params, batch_stats, *degrade(batch), recipe, None)[0]

    def backward(params, batch_stats, batch):
        return gradients(params, batch_stats, None, batch, recipe, None)[0]

    programs = {
        "degradations": (degrade, (batch,)),
        "+ forward": (forward, (state.params, state.batch_stats, batch)),
        "+ backward": (backward, (state.params, state.batch_stats, batch)),
        "whole step": (lambda state, batch: train_step(state, batch, recipe=recipe), (state, batch)),
    }
    device = jax.devices()[0]
    print(f"{args.config} on {device.device_kind}: {b} images x 2 crops x {levels} levels of {size} x {size}")
    print(f"{model.clip.config.compute_dtype}, {sum(x.size for x in jax.tree.leaves(params)) / 1e6:.2f} M parameters\n")
    print(f"{'part':14s} {'ms':>10s} {'share':>7s} {'compile s':>10s}")
    rows, before = [], 0.0
    for name, (function, arguments) in programs.items():
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*arguments).compile()
        compile_seconds = time.perf_counter() - start
        jax.block_until_ready(compiled(*arguments))
        until_here = seconds(compiled, *arguments, repeats=args.repeats)
        rows.append((name.replace("whole step", "rest"), until_here - before, compile_seconds))
        before = until_here
        operations = flops.count(function, *arguments)
    for name, part, compile_seconds in rows:
        print(f"{name.removeprefix('+ '):14s} {1e3 * part:10.1f} {part / before:7.1%} {compile_seconds:10.1f}")
    print(f"{'step':14s} {1e3 * before:10.1f} {1:7.1%}\n")
    rate = flops.matmul_rate(config.model.compute_dtype)
    print(f"{b / before:.1f} images/s, {b * 2 * levels / before:.1f} crops/s")
    achieved = operations / before
    print(f"{achieved / 1e9:.1f} GFLOP/s of {rate / 1e9:.1f} measured in a matrix product: {achieved / rate:.1%}")
    print(metrics.device_memory() or "device memory: not told by this device")


if __name__ == "__main__":
    main()
