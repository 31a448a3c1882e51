"""The twenty steps of tiny_vit.py, in a loop of their own that also keeps the degraded pixels."""

import contextlib
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from qualiclip_jax import train
from qualiclip_jax.data import pristine
from qualiclip_jax.training import build, loop, parallel
from qualiclip_jax.training import step as step_module
from qualiclip_jax.training.state import create_state
from qualiclip_jax.training.step import degrade_batch

CONFIG = str(Path(__file__).with_name("tiny_vit.py"))
KEPT = ("loss", "consistency", "parameter_norm")


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


def run(name):
    """Trains in the way `name`: "1" or "4" for pmap on so many devices, "fsdp" for all, "fsdp:2" for two to a state.

    Returns:
      A dict of `loss NAME` and the others of `KEPT` [steps], and of `pixels NAME` [steps, B, L, 2, H, W, 3] (none by
      fsdp).
    """
    kind, _, shards = name.partition(":")
    if kind == "fsdp":
        spread, step = parallel.Fsdp(int(shards or 0)), step_module.train_step
    else:
        spread = parallel.Pmap(jax.local_devices()[: int(name)] if parallel.is_alone() else None)
        step = step_with_pixels
    config, _, _ = train.parse(["--config", CONFIG])
    recipe, params, batch_stats = build.build_recipe(config, build.build_model(config), config.steps)
    state = spread.put_state(create_state(params, batch_stats, recipe))
    step = spread.compile(step, recipe)
    rows, pixels = [], []
    with contextlib.closing(loop._open_batches(config, pristine.open_source(config.data.source), 0)) as batches:
        for _ in range(config.steps):
            state, metrics, *degraded = step(state, spread.put_batch(next(batches)))
            rows.append(jax.device_get([metrics[name] for name in KEPT]))
            pixels.extend(jax.device_get(degraded))
    values = dict(zip(KEPT, np.array(rows).T)) | {"pixels": np.array(pixels)}
    return {f"{key} {name}": value for key, value in values.items()}
