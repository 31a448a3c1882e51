"""Memory of a training step under fsdp: the state by its shapes, the rest as XLA plans it, also for TPUs not there.

    python benchmarks/memory.py
    python benchmarks/memory.py --backbones ViT-L/14 --topology v5e:2x4 --config.batch_size=32
    python benchmarks/memory.py --backbones TinyCLIP-8M-16 --devices 1 --run --config.batch_size=4

The first prints the state alone. With --topology the step is compiled for a TPU (needs the package libtpu). With --run
it is compiled for this CPU, and one step is taken, to compare the plan with the memory that the process takes.
--config.FIELD=VALUE changes a field of the recommended config; remat is on.
"""

import argparse
import dataclasses
import math
import os
import pathlib
import re

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from flax import nnx

from qualiclip_jax import models, prompts
from qualiclip_jax.models import backbones
from qualiclip_jax.training import build, parallel
from qualiclip_jax.training.command_line import parse
from qualiclip_jax.training.config import recommended_config
from qualiclip_jax.training.state import create_state
from qualiclip_jax.training.step import train_step

NAMES = ["RN50", "RN50x64", "ViT-B/16", "ViT-L/14", "ViT-H-14", "ViT-bigG-14", "siglip2-giant-opt-patch16-256"]
GIB = 2**30


def get_config():
    """The recommended config, with remat."""
    config = recommended_config()
    config.model.remat = True
    return config


def abstract_run(name, config):
    """Recipe and state of a backbone, without values."""
    m = config.model
    described = dataclasses.replace(backbones.get(name), text=None, compute_dtype=m.compute_dtype, remat=m.remat)
    clip = nnx.eval_shape(lambda: models.CLIP(described, rngs=nnx.Rngs(0)))
    pairs = prompts.check_prompts(config.prompts)
    features = prompts.random_text_features(len(pairs), described.embed_dim, 0)
    recipe, *parameters = build.build_recipe(config, models.Model(clip, pairs, features), config.steps)
    return recipe, jax.eval_shape(lambda *parameters: create_state(*parameters, recipe), *parameters)


def held(tree):
    """GiB that a device holds of placed arrays."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)) / GIB


def resident(field):
    """GiB of this process: VmRSS now, VmHWM at most."""
    return int(re.search(rf"{field}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 2**20


def taken(spread, step, state, batch):
    """GiB that a step takes beside the state, measured."""
    state = spread.put_state(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), state))
    batch = spread.put_batch({name: np.ones(x.shape, x.dtype) for name, x in batch.items()})
    jax.block_until_ready((state, batch))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = resident("VmRSS")
    jax.block_until_ready(step(state, batch))
    return resident("VmHWM") - before


def main():
    """Prints a row for each backbone and number of devices; GiB a device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=NAMES, metavar="NAME")
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 8], help="up to 8 each")
    parser.add_argument("--topology", help="of a TPU, e.g. v5e:2x4; all its devices")
    parser.add_argument("--run", action="store_true")
    args, fields = parser.parse_known_args()
    config, _, _ = parse(["--config", __file__, *fields])
    groups = [jax.devices()[:n] for n in args.devices]
    if args.topology:
        from jax.experimental import topologies

        groups = [topologies.get_topology_desc(args.topology, platform="tpu").devices]
    size, b = config.data.crop_size, config.batch_size
    batch = {
        "crops": jax.ShapeDtypeStruct((b, 2, size, size, 3), np.uint8),
        "example": jax.ShapeDtypeStruct((b,), np.uint32),
    }
    columns = ("backbone", "million", "devices", "parameters", "optimizer", "state", "working memory", "measured")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for name in args.backbones:
        recipe, state = abstract_run(name, config)
        million = sum(x.size for x in jax.tree.leaves(state.params)) / 1e6
        for devices in groups:
            spread = parallel.Fsdp(devices=list(devices))
            place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
            placed = jax.tree.map(place, state, spread.shardings(state))
            figures = [held(x) for x in (placed.params, placed.opt_state, placed)]
            if args.topology or args.run:
                step = spread.compile(train_step, recipe).lower(placed, batch).compile()
                figures.append(step.memory_analysis().temp_size_in_bytes / GIB)
            if args.run:
                figures.append(taken(spread, step, state, batch) / len(devices))
            cells = [name, f"{million:.0f}", f"{len(devices)}", *(f"{figure:.2f}" for figure in figures)]
            print("| " + " | ".join(cells + ["-"] * (len(columns) - len(cells))) + " |", flush=True)


if __name__ == "__main__":
    main()
