"""What a quality loss does to photos: restoring noisy, blurred and compressed ones by changing their pixels.

    python benchmarks/restoration.py --photos folder:PHOTOS --judge OTHER_MODEL --picture docs/images/loss.webp

Adam changes the pixels of degraded photos for --steps steps, to make the loss small, under several settings. For each
are printed: PSNR and GMSD to the pristine photo (they tell whether the photo got better), the score of the model in the
loss (which any setting raises), the score of --judge, which the loss does not know, the norm of the gradient at the
start, and the time of a step relative to that of the naive loss. --ensemble: a second model for one of the settings.

--network: instead, a small network learns to restore crops of --train, with the pristine crop as the reference of the
loss, and is tried on those of --photos.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image

from qualiclip_jax import QualiCLIP, cli, degradations, fidelity
from qualiclip_jax.data.sources import open_source
from qualiclip_jax.loss import QualityLoss

FAULTS = (("white_noise", 5), ("gaussian_blur", 3), ("jpeg", 4))
NAIVE = {"views": 0, "fidelity": 0.0, "drift": 0.0}
SETTINGS: dict[str, dict[str, object]] = {
    "naive: 1 - score": NAIVE,
    "4 views, cropped and flipped": NAIVE | {"views": 4},
    "4 views, also shrunk to 0.8": NAIVE | {"views": 4, "scale": 0.8},
    "drift 10": NAIVE | {"drift": 10.0, "margin": 0.01},
    "fidelity 10": NAIVE | {"fidelity": 10.0},
    "fidelity 30": NAIVE | {"fidelity": 30.0},
    "views, drift, fidelity 10": {"drift": 10.0, "margin": 0.01, "fidelity": 10.0},
}

PICTURED = ("naive: 1 - score", "4 views, cropped and flipped", "fidelity 10", "fidelity 30")
NETWORKS: dict[str, dict[str, object] | None] = {
    "network: L1 alone": None,
    "network: L1 x 30 + naive": NAIVE | {"fidelity": 30.0},
    "network: L1 x 30 + 4 views": {"fidelity": 30.0},
    "network: L1 x 5 + naive": NAIVE | {"fidelity": 5.0},
    "network: L1 x 5 + 4 views": {"fidelity": 5.0},
}


def crops(spec: str, count: int, side: int, first: int = 1) -> np.ndarray:
    """Centre crops of photos at half their size, float32 [count, side, side, 3]."""
    source, found = open_source(spec), []
    for k in range(count):
        photo = Image.fromarray(source[(2 * k + first) * len(source) // (2 * count)])
        photo.thumbnail((photo.width // 2, photo.height // 2), Image.Resampling.LANCZOS)
        top, left = ((size - side) // 2 for size in (photo.height, photo.width))
        found.append(np.asarray(photo)[top : top + side, left : left + side])
    return np.stack(found).astype(np.float32) / 255


def psnr(images: jax.Array, reference: jax.Array) -> jax.Array:
    return -10 * jnp.log10(jnp.square(images - reference).mean((1, 2, 3)))


def restored(loss: QualityLoss, start: jax.Array, steps: int) -> tuple[jax.Array, float, float]:
    """The images after Adam, the mean norm of an image's first gradient, and the seconds of a step."""
    optimizer = optax.adam(2 / 255)

    def total(images: jax.Array, key: jax.Array) -> jax.Array:
        return loss(images, start, key) * len(start)  # each image gets its own gradient, whatever the others

    @jax.jit
    def step(images, state, key):
        gradient = jax.grad(total)(images, key)
        updates, state = optimizer.update(gradient, state)
        norms = jnp.sqrt(jnp.square(gradient).sum((1, 2, 3)))
        return jnp.clip(optax.apply_updates(images, updates), 0, 1), state, norms.mean()

    images, state, keys = start, optimizer.init(start), jax.random.split(jax.random.key(0), steps)
    first, seconds = 0.0, []
    for k in range(steps):
        begin = time.perf_counter()
        images, state, norm = jax.block_until_ready(step(images, state, keys[k]))
        seconds.append(time.perf_counter() - begin)
        first = first or float(norm)
    return images, first, float(np.median(seconds))


class Restorer(nnx.Module):
    """Four convolutions whose result is added to the image."""

    def __init__(self, rngs: nnx.Rngs):
        widths = (3, 24, 24, 24, 3)
        self.layers = nnx.List(nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in zip(widths, widths[1:]))

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images - 0.5
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return images + 0.1 * self.layers[-1](x)


def trained(loss: QualityLoss | None, pristine: jax.Array, steps: int, batch: int = 8) -> Restorer:
    """A network after so many steps; without a loss, by the mean absolute difference alone."""
    network = Restorer(nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, optax.adam(1e-3), wrt=nnx.Param)
    degraded = degrade(pristine)
    pairs = np.random.default_rng(0).integers(0, len(degraded), (steps, batch))

    @nnx.jit
    def step(network, optimizer, images, reference, key):
        def value(network):
            found = network(images)
            return jnp.abs(found - reference).mean() if loss is None else loss(found, reference, key)

        optimizer.update(network, nnx.grad(value)(network))

    for k, chosen in enumerate(pairs):
        step(network, optimizer, degraded[chosen], pristine[chosen % len(pristine)], jax.random.key(k))
    return network


def degrade(pristine: jax.Array) -> jax.Array:
    """All faults, one after the other, [faults * N, side, side, 3]."""
    return jnp.concatenate([degradations.degrade(name, pristine, level, jax.random.key(7)) for name, level in FAULTS])


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", required=True, metavar="SOURCE", help="pristine photos, e.g. folder:PATH")
    parser.add_argument("--checkpoint", default="tiny", metavar="MODEL", help="in the loss (default: tiny)")
    parser.add_argument("--judge", required=True, metavar="MODEL", help="another model, which the loss does not know")
    parser.add_argument("--ensemble", metavar="MODEL", help="a second model for the loss")
    parser.add_argument("--count", type=int, default=6, help="photos (default: 6)")
    parser.add_argument("--side", type=int, default=112, help="of a crop, px (default: 112)")
    parser.add_argument("--steps", type=int, default=100, help="of Adam, 2/255 each (default: 100)")
    parser.add_argument("--network", action="store_true", help="train a small network in place of pixels")
    parser.add_argument("--train", metavar="SOURCE", help="photos for the network")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draws the first photo under some settings")
    args = parser.parse_args(argv)
    pristine = jnp.asarray(crops(args.photos, args.count, args.side))
    start, reference = degrade(pristine), jnp.concatenate([pristine] * len(FAULTS))
    judges = [QualiCLIP.load(args.checkpoint), QualiCLIP.load(args.judge)]
    settings = dict(SETTINGS)
    if args.ensemble:
        settings["the same, two models"] = settings["views, drift, fidelity 10"] | {
            "models": (args.checkpoint, args.ensemble)
        }

    def line(title: str, images: jax.Array, *rest: str) -> None:
        cells = []
        for value in (psnr(images, reference), fidelity.gmsd(images, reference)):
            by_fault = value.reshape(len(FAULTS), -1).mean(1)
            cells.append(" / ".join(f"{each:.1f}" if each > 1 else f"{each:.3f}" for each in by_fault))
        cells += [f"{judge.score(np.asarray(images)).mean():.3f}" for judge in judges]
        print("| " + " | ".join([title, *cells, *rest]) + " |", flush=True)

    names = " / ".join(name for name, _ in FAULTS)
    head = ["loss", f"PSNR, dB: {names}", f"GMSD (0 is best): {names}", "score in the loss", "score of another model"]
    head += ["first gradient", "time"]
    print("| " + " | ".join(head) + " |\n" + len(head) * "|---" + "|")
    line("pristine", reference, "", "")
    line("degraded", start, "", "")
    if args.network:
        examples = jnp.asarray(crops(args.train, 64, args.side, 0))
        for title, options in NETWORKS.items():
            loss = None if options is None else QualityLoss(**({"models": (args.checkpoint,)} | options))
            line(title, jnp.clip(trained(loss, examples, args.steps)(start), 0, 1), "", "")
        return
    pictures, naive = [("pristine", reference), ("degraded", start)], 0.0
    for title, options in settings.items():
        images, norm, seconds = restored(QualityLoss(**({"models": (args.checkpoint,)} | options)), start, args.steps)
        naive = naive or seconds
        line(title, images, f"{norm:.3f}", f"{seconds / naive:.1f}")
        pictures += [(title, images)] if title in PICTURED else []
    if args.picture:
        draw(args.picture, pictures, args.count)


def draw(path: Path, pictures: Sequence[tuple[str, jax.Array]], count: int) -> None:
    """The first photo with each fault (rows), under some settings (columns), enlarged to twice its side."""
    rows = [np.hstack([np.asarray(images[fault * count]) for _, images in pictures]) for fault in range(len(FAULTS))]
    picture = Image.fromarray(np.round(255 * np.clip(np.vstack(rows), 0, 1)).astype(np.uint8))
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(path, quality=90)
    print(f"{path}: " + ", ".join(title for title, _ in pictures))


if __name__ == "__main__":
    sys.exit(cli.run(main))
