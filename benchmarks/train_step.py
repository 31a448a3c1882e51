"""Training step: time split into degradations, forward, backward and rest; images/s; share of the matmul rate.

    python benchmarks/train_step.py --config configs/vitb.py --config.model.weights=random \
        --config.model.backbone=ViT-B/16 --peer

--peer runs the same step in PyTorch too, in a process of its own, both on images that are degraded already. It also
compares loss and norm of the gradient, of the same weights on the same images.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from qualiclip_jax import train
from qualiclip_jax.degradations.catalog import FACTORS
from qualiclip_jax.errors import UserError
from qualiclip_jax.training import build, flops, metrics
from qualiclip_jax.training.state import create_state
from qualiclip_jax.training.step import degrade_batch, gradients, loss_fn, train_step

PEER = pathlib.Path(__file__).with_name("peer_torch.py")


def degraded_images(config):
    """Random images [B, L, 2, H, W, 3] in [0, 1], for us and for the peer."""
    b, size, levels = config.batch_size, config.data.crop_size, config.degradations.levels
    return np.random.default_rng(0).random((b, levels, 2, size, size, 3), np.float32)


def encoder_step(state, images, severities, *, recipe):
    """A training step on images that are degraded already: all of it but the degradations."""
    gradient, (values, _) = jax.grad(loss_fn, has_aux=True)(
        state.params, state.batch_stats, images, severities, recipe, None
    )
    updates, opt_state = recipe.optimizer.update(gradient, state.opt_state, state.params)
    state = state.replace(step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state)
    return state, {"loss": values["loss"], "gradient_norm": optax.tree.norm(gradient)}


def seconds(compiled, *args, repeats: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def steps(compiled, state, *args, repeats: int):
    """Median time of a step that takes the buffers of the state, and the metrics of the first one."""
    times, first = [], None
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, values = jax.block_until_ready(compiled(state, *args))
        times.append(time.perf_counter() - start)
        first = first or values
    return float(np.median(times[1:])), first


def compile_timed(function, *args, donate=()):
    """The compiled function, and how long that took."""
    start = time.perf_counter()
    return jax.jit(function, donate_argnums=donate).lower(*args).compile(), time.perf_counter() - start


class Run:
    """What a config asks for, ready to be timed on one device."""

    def __init__(self, config, repeats):
        self.config, self.repeats = config, repeats
        self.model = build.build_model(config)
        self.recipe, self.params, self.batch_stats = build.build_recipe(config, self.model, config.steps)
        self.rate = flops.matmul_rate(config.model.compute_dtype)

    def state(self):
        """A new one: a step takes its buffers."""
        return create_state(*jax.tree.map(jnp.copy, (self.params, self.batch_stats)), self.recipe)

    def encoder(self):
        """Times the step without degradations; a dict of numbers."""
        images = jnp.asarray(degraded_images(self.config))
        severities = jnp.ones((*images.shape[:2], len(FACTORS)))
        step = lambda *args: encoder_step(*args, recipe=self.recipe)
        state = self.state()
        operations = flops.count(step, state, images, severities)
        compiled, compile_s = compile_timed(step, state, images, severities, donate=0)
        step_s, first = steps(compiled, state, images, severities, repeats=self.repeats)
        told = {name: float(value) for name, value in first.items()}
        share = operations / step_s / self.rate
        return told | {"ms": 1e3 * step_s, "share": share, "compile_s": compile_s} | metrics.device_memory()

    def parts(self):
        """Times parts of the whole step, nested, so that differences are the parts.

        Returns:
          (name, seconds, seconds to compile) of each part, seconds of the step, and operations a second.
        """
        recipe, b, size = self.recipe, self.config.batch_size, self.config.data.crop_size
        crops = np.random.default_rng(0).integers(0, 256, (b, 2, size, size, 3), np.uint8)
        batch = {"crops": jnp.array(crops), "example": jnp.arange(b, dtype=jnp.uint32)}

        def degrade(batch):
            return degrade_batch(batch["crops"], batch["example"], recipe)

        def forward(params, batch_stats, batch):
            return loss_fn(params, batch_stats, *degrade(batch), recipe, None)[0]

        def backward(params, batch_stats, batch):
            return gradients(params, batch_stats, None, batch, recipe, None)[0]

        held = self.params, self.batch_stats, batch
        rows, before = [], 0.0
        for name, function, args in (
            ("degradations", degrade, (batch,)),
            ("forward", forward, held),
            ("backward", backward, held),
        ):
            compiled, compile_s = compile_timed(function, *args)
            jax.block_until_ready(compiled(*args))
            until_here = seconds(compiled, *args, repeats=self.repeats)
            rows.append((name, until_here - before, compile_s))
            before = until_here
        whole = lambda state, batch: train_step(state, batch, recipe=recipe)
        state = self.state()
        operations = flops.count(whole, state, batch)
        compiled, compile_s = compile_timed(whole, state, batch, donate=0)
        step_s, _ = steps(compiled, state, batch, repeats=self.repeats)
        rows.append(("rest", step_s - before, compile_s))
        return rows, step_s, operations / step_s


def run_peer(config_file, fields, repeats, timeout=None):
    """The peer's numbers, from a process of its own; a dict, or a string that says why there are none."""
    command = [sys.executable, str(PEER), "--config", config_file, "--repeats", str(repeats), *fields]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"no result in {timeout:.0f} s"
    if done.returncode:
        if "OutOfMemoryError" in done.stderr:
            return "out of memory"
        return (done.stderr.strip().splitlines() or ["failed"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def print_peer(ours, peer, device):
    """Both side by side."""
    if isinstance(peer, str):
        print(f"PyTorch: {peer}")
        return
    print(f"\nwithout degradations: {ours['ms']:.1f} ms a step, {ours['share']:.1%} of the rate of a matrix product")
    print(f"{peer['how']} on {peer['device']}: {peer['ms']:.1f} ms")
    if (device.platform == "cpu") != (peer["device"] == "cpu"):
        print("no ratio: PyTorch and JAX ran on different devices")
    else:
        print(f"ours is {peer['ms'] / ours['ms']:.2f} times as fast")
    for name in ("loss", "gradient_norm"):
        print(f"{name} of the first step: {ours[name]:.6g}, PyTorch {peer[name]:.6g}")


def main() -> None:
    """Times one step on one device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.py")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--peer", action="store_true", help="the same step in PyTorch, without degradations")
    parser.add_argument("--json", action="store_true", help="one line of JSON of the step without degradations alone")
    args, fields = parser.parse_known_args()
    if args.repeats < 1:
        parser.error("--repeats must be 1 or more")
    config, _, _ = train.parse(["--config", args.config, *fields])
    peer = run_peer(args.config, fields, args.repeats) if args.peer else None  # while the device is all its own
    run = Run(config, args.repeats)
    if args.json:
        print(json.dumps(run.encoder()))
        return
    device, b, levels = jax.devices()[0], config.batch_size, config.degradations.levels
    size = config.data.crop_size
    print(f"{args.config} on {device.device_kind}: {b} images x 2 crops x {levels} levels of {size} x {size}")
    print(f"{config.model.compute_dtype}, {sum(x.size for x in jax.tree.leaves(run.params)) / 1e6:.2f} M parameters\n")
    rows, step_s, achieved = run.parts()
    print(f"{'part':14s} {'ms':>10s} {'share':>7s} {'compile s':>10s}")
    for name, part, compile_s in rows:
        print(f"{name:14s} {1e3 * part:10.1f} {part / step_s:7.1%} {compile_s:10.1f}")
    print(f"{'step':14s} {1e3 * step_s:10.1f} {1:7.1%}\n")
    print(f"{b / step_s:.1f} images/s, {b * 2 * levels / step_s:.1f} crops/s")
    print(
        f"{achieved / 1e9:.1f} GFLOP/s of {run.rate / 1e9:.1f} measured in a matrix product: {achieved / run.rate:.1%}"
    )
    print(metrics.device_memory() or "device memory: not told by this device")
    if args.peer:
        print_peer(run.encoder(), peer, device)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
