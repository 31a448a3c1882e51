"""Trains for the steps of tiny_vit.py; saves losses and degraded pixels.

    python twenty_steps.py OUTPUT.npz RUN ...

RUN: "2" for pmap on two devices (in several processes: on all), "fsdp" for all devices, "fsdp:2" for two to a state.
Under fsdp the pixels are not saved.
"""

import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from qualiclip_jax import train
from qualiclip_jax.data import pristine
from qualiclip_jax.training import build, parallel
from qualiclip_jax.training import step as step_module
from qualiclip_jax.training.state import create_state
from qualiclip_jax.training.step import degrade_batch


def step_with_pixels(state, batch, *, recipe, axis_name):
    """A training step that also gives the degraded pixels it trains on, of the whole batch, [B, L, 2, H, W, 3]."""
    pixels = []

    def degrade_and_keep(crops, example, recipe):
        images, severities = degrade_batch(crops, example, recipe)
        pixels.append(images)
        return images, severities

    with mock.patch.object(step_module, "degrade_batch", degrade_and_keep):
        new_state, metrics = step_module.train_step(state, batch, recipe=recipe, axis_name=axis_name)
    return new_state, metrics, jax.lax.all_gather(pixels[0], axis_name, tiled=True)


def spread_as(name):
    """The way that a RUN names, and the step to take."""
    kind, _, shards = name.partition(":")
    if kind == "fsdp":
        return parallel.Fsdp(int(shards or 0)), step_module.train_step
    return parallel.Pmap(jax.local_devices()[: int(name)] if parallel.is_alone() else None), step_with_pixels


def run(spread, step):
    """Losses [steps] and pixels [steps, B, L, 2, H, W, 3]."""
    config, _, _ = train.parse(["--config", str(Path(__file__).with_name("tiny_vit.py"))])
    recipe, params, batch_stats = build.build_recipe(config, build.build_model(config), config.steps)
    state = spread.put_state(create_state(params, batch_stats, recipe))
    step = spread.compile(step, recipe)
    losses, pixels = [], []
    with pristine.crop_pairs(
        pristine.open_source(config.data.source),
        batch_size=config.batch_size,
        crop_size=config.data.crop_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    ) as batches:
        for _ in range(config.steps):
            state, metrics, *degraded = step(state, spread.put_batch(next(batches)))
            losses.append(jax.device_get(metrics["loss"]))
            pixels.extend(jax.device_get(degraded))
    return np.array(losses), np.array(pixels)


def main(output, *names):
    """Saves `losses RUN` and `pixels RUN` for each RUN."""
    parallel.initialize()
    arrays = {}
    for name in names:
        arrays[f"losses {name}"], arrays[f"pixels {name}"] = run(*spread_as(name))
    if parallel.is_primary():
        np.savez(output, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
