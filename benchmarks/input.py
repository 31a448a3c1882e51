"""How fast crop pairs come, against a plain single-thread Pillow loop that does the same work, timed in turns with it.

    python benchmarks/input.py                              # scikit-image's photographs
    python benchmarks/input.py PHOTOS MORE_PHOTOS           # folders of images
    python benchmarks/input.py --train                      # also the share of a demo training step spent waiting

Each folder is read as files, and as ArrayRecord made of the same files in a temporary directory; without the cache of
decoded photos, and with it. Memory is what the process holds after the first epoch and after the last (cache off).
"""

import argparse
import gc
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from qualiclip_jax import cli
from qualiclip_jax.data.pristine import crop_pairs, open_source
from qualiclip_jax.data.sources import SampleSource
from qualiclip_jax.images import list_images

BATCH = 16


def plain_loop(paths: list[Path], crop_size: int, scale_range: tuple[float, float]) -> Callable[[int], None]:
    """The baseline: one thread, the whole photo decoded and resized, both crops cut, the batch stacked."""
    rng = np.random.default_rng(0)

    def make(pairs: int) -> None:
        for _ in range(pairs // BATCH):
            np.stack([_plain_pair(paths[rng.integers(len(paths))], rng, crop_size, scale_range) for _ in range(BATCH)])

    return make


def _plain_pair(path: Path, rng: np.random.Generator, crop_size: int, scale_range: tuple[float, float]) -> np.ndarray:
    with Image.open(path) as file:
        photo = file.convert("RGB")
    low, high = (max(bound, crop_size / min(photo.size)) for bound in scale_range)
    factor = rng.uniform(low, high)
    size = tuple(max(crop_size, round(side * factor)) for side in photo.size)
    if size != photo.size:
        photo = photo.resize(size, Image.Resampling.LANCZOS)
    reach = crop_size // 2
    corners = np.array([rng.integers(side - crop_size + 1) for side in size])
    others = [rng.integers(max(0, c - reach), min(side - crop_size, c + reach) + 1) for c, side in zip(corners, size)]
    return np.stack([np.asarray(photo.crop((x, y, x + crop_size, y + crop_size))) for x, y in (corners, others)])


def make_array_record(paths: list[Path], data_dir: str) -> str:
    """Writes the files, as they are, into a tfds data set; returns its spec."""
    import tensorflow_datasets as tfds

    class Photos(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"image": tfds.features.Image()})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, path in enumerate(paths):
                yield i, {"image": str(path)}

    tfds.disable_progress_bar()
    Photos(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return f"tfds:photos@{data_dir}"


def timed(make: Callable[[int], None], pairs: int) -> tuple[float, float]:
    """(pairs/s, milliseconds of processor time a pair, over all threads)."""
    wall, cpu = time.perf_counter(), time.process_time()
    make(pairs)
    return pairs / (time.perf_counter() - wall), (time.process_time() - cpu) / pairs * 1e3


def resident_mb() -> float:
    """Memory of this process in MB (10**6 bytes), where the system tells it (Linux); otherwise NaN."""
    gc.collect()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * 4096 / 1e6


def measure(title: str, paths: list[Path], specs: dict[str, str], args: argparse.Namespace) -> None:
    fields = {"batch_size": BATCH, "crop_size": args.crop_size, "scale_range": args.scale, "threads": args.threads}
    plain = plain_loop(paths, args.crop_size, args.scale)
    print(f"{title}: {len(paths)} images, crops of {args.crop_size} px, scale {args.scale[0]:g}..{args.scale[1]:g}")
    for kind, spec in specs.items():
        for cache_mb in (0, 256):
            source = open_source(spec)
            with crop_pairs(source, seed=0, cache_mb=cache_mb, **fields) as batches:

                def make(pairs: int, batches=batches) -> None:
                    for _ in range(pairs // BATCH):
                        next(batches)

                make(max(args.pairs // 4, BATCH * (len(source) // BATCH + 3)))  # warm-up: one epoch and what is ready
                before = resident_mb()
                turns = [(*timed(make, args.pairs), *timed(plain, args.pairs // 4)) for _ in range(3)]
                after = resident_mb()
            ours, cpu, theirs, their_cpu = np.median(turns, axis=0)
            memory = f"   memory {before:.0f} -> {after:.0f} MB" if not cache_mb else ""
            print(
                f"  {kind:11s} cache {cache_mb:3d} MB {ours:6.0f} pairs/s {cpu:5.2f} ms CPU a pair   "
                f"plain loop {theirs:4.0f} pairs/s {their_cpu:5.2f} ms   ratio {ours / theirs:5.2f}{memory}"
            )


def measure_waiting(steps: int) -> None:
    """Trains the demo for a few steps and reads from its metrics what share of a step the loop waited for crops."""
    from qualiclip_jax import storage
    from qualiclip_jax.training.loop import train

    config = runpy.run_path(str(Path(__file__).parents[1] / "configs" / "demo.py"))["get_config"]()
    config.steps, config.log_every = steps, max(1, steps // 4)
    config.eval.photos, config.checkpoint.every = "", steps
    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir)
        rows = storage.read_jsonl(Path(workdir, "metrics.jsonl"))
    rows = [row for row in rows if "data_wait_seconds" in row][1:]  # without the first, which compiles
    step, wait = (float(np.mean([row[name] for row in rows])) for name in ("step_seconds", "data_wait_seconds"))
    print(f"demo training: step {step * 1e3:.0f} ms, waiting for crops {wait * 1e3:.1f} ms = {wait / step:.1%}")


def main(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="*", default=["sample"], help="folders of images; `sample` by default")
    parser.add_argument("--crop-size", type=int, default=224, help="px")
    parser.add_argument("--scale", type=float, nargs=2, default=(1.0, 1.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--pairs", type=int, default=1600, help="a timed turn; three are made, the median counts")
    parser.add_argument("--threads", type=int, help="one a core by default")
    parser.add_argument("--train", action="store_true", help="measure the demo's waiting too")
    parser.add_argument("--train-steps", type=int, default=60)
    args = parser.parse_args(argv)
    args.scale = tuple(args.scale)
    for folder in args.folder:
        source = SampleSource() if folder == "sample" else None
        paths = list_images(folder) if source is None else source.paths
        with tempfile.TemporaryDirectory() as data_dir:
            files = "sample" if source is not None else f"folder:{folder}"
            measure(folder, paths, {"files": files, "ArrayRecord": make_array_record(paths, data_dir)}, args)
    if args.train:
        measure_waiting(args.train_steps)


if __name__ == "__main__":
    sys.exit(cli.run(main))
