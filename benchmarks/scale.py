"""How large sets are scored: memory, speed beside decoding and computing alone, workers, and PyTorch with a DataLoader.

    python benchmarks/scale.py                              # all of it
    python benchmarks/scale.py memory --images 20000 200000 # parts: memory, workers, devices, torch

memory: shards of small JPEG crops of scikit-image's photographs, scored by the model of the package: the peak memory of
a process of its own for each number of images, and its speed beside that of the same files held in memory, decoded and
scored in one go, in turns. workers: one process on one core, and two on a core each, which share shards by --part.
devices: images of 224 x 224 on one device of a process, and on all of them (GPUs; virtual devices of a CPU share its
cores, and gain nothing). torch: a folder of JPEG files of many sizes, CLIP's RN50 with random weights, against the same
network in PyTorch fed by a DataLoader: files of mixed sizes one by one, and resized to 224 x 224 in batches, as is
often done for speed, though these are other scores.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import score
from PIL import Image

from qualiclip_jax import QualiCLIP, cli

PARTS = ("memory", "workers", "devices", "torch")
CROP, SHARDS, DISTINCT = 64, 100, 2000
ROUNDS = 3


def crops(count: int) -> list[bytes]:
    """JPEG files of crops of real photographs."""
    from skimage import data

    photos = [getattr(data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")]
    rng, found = np.random.default_rng(0), []
    for k in range(count):
        photo = photos[k % len(photos)]
        top, left = (int(rng.integers(side - CROP)) for side in photo.shape[:2])
        buffer = io.BytesIO()
        Image.fromarray(photo[top : top + CROP, left : left + CROP]).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def make_shards(folder: Path, images: int, shards: int = SHARDS) -> None:
    """Tar files that hold so many images together."""
    files = crops(min(images, DISTINCT))
    for shard, numbers in enumerate(np.array_split(np.arange(images), shards)):
        with tarfile.open(folder / f"{shard:04}.tar", "w") as archive:
            for number in numbers.tolist():
                info = tarfile.TarInfo(f"{number:08}.jpg")
                info.size = len(data := files[number % len(files)])
                archive.addfile(info, io.BytesIO(data))


def alone(folder: str, rounds: int) -> None:
    """What `memory` runs: scores the shards, then, in turns, a few of them and the same files from memory."""
    from qualiclip_jax.images import decode_image
    from qualiclip_jax.inference import buckets, shards, stream

    model = QualiCLIP.load()
    names = sorted(map(str, Path(folder).glob("*.tar")))
    with contextlib.redirect_stderr(io.StringIO()):
        outcome = shards.score_shards(model, names, f"{folder}/scores")
    told = {"images": outcome.scored, "GiB": score.peak_memory()}
    part = names[: max(1, 3 * len(names) * DISTINCT // outcome.scored)]
    data = [member.data for name in part for member in shards.members(name)]
    seconds: dict[str, list[tuple[float, float]]] = {"shards": [], "alone": []}
    for turn in range(rounds + 1):  # the first one compiles
        for way in seconds:
            start, processor = time.perf_counter(), time.process_time()
            if way == "shards":
                with contextlib.redirect_stderr(io.StringIO()):
                    shards.score_shards(model, part, f"{folder}/scores{turn}")
            else:
                windows = buckets.windows([(CROP, CROP)] * len(data))
                for _ in stream.score_images(model, windows, lambda i: decode_image(data[i])):
                    pass
            if turn:
                seconds[way].append((time.perf_counter() - start, time.process_time() - processor))
    for way, values in seconds.items():
        told[way], told[f"{way}, processor"] = (len(data) / np.median(values, axis=0)).tolist()
    print(json.dumps(told))


def memory(counts: list[int]) -> None:
    """The peak memory of scoring so many images."""
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            make_shards(Path(folder), count)
            command = [sys.executable, __file__, "--alone", folder, "--rounds", str(ROUNDS)]
            found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        print(
            f"{found['images']:7d} images in {SHARDS} shards: peak memory {found['GiB']:.3f} GiB, "
            f"{found['shards']:.0f} images/s, decode and compute alone {found['alone']:.0f}, "
            f"ratio {found['shards'] / found['alone']:.3f}, "
            f"of processor time {found['shards, processor'] / found['alone, processor']:.3f}",
            flush=True,
        )


def workers(images: int) -> None:
    """One process on a core, and two on a core each; the seconds from the first score on, by the slower of them."""
    with tempfile.TemporaryDirectory() as folder:
        make_shards(Path(folder), images, 8)
        rates = {}
        for count in (1, 2):
            command = [sys.executable, "-m", "qualiclip_jax.score", f"{folder}/*.tar", "--output", f"{folder}/{count}"]
            cores = sorted(os.sched_getaffinity(0))[:count]
            running = [
                subprocess.Popen(
                    ["taskset", "-c", str(core), *command, "--part", f"{k}/{count}"], stderr=subprocess.DEVNULL
                )
                for k, core in enumerate(cores, 1)
            ]
            for process in running:
                process.wait()
            written = sorted(path.stat().st_mtime for path in Path(folder, str(count)).iterdir())
            first = written[count - 1]  # each has written a table by then
            rates[count] = sum(moment > first for moment in written) * images / 8 / (written[-1] - first)
            print(f"{count} {'worker' if count == 1 else 'workers'}: {rates[count]:.0f} images/s", flush=True)
        print(f"ratio {rates[2] / rates[1]:.2f}")


def devices(images: int) -> None:
    """RN50 on one device and on all of this process, in turns."""
    import jax

    ways, count = {}, jax.local_device_count()
    given = np.stack([score.photo(224, 224, k) for k in range(32)])
    many = given[np.arange(images) % len(given)]
    for used in dict.fromkeys((1, count)):
        os.environ["QUALICLIP_DEVICES"] = str(used)
        ways[used] = functools.partial(score.our_model().score, many)
    median, scores = score.in_turns(ways)
    for used, seconds in median.items():
        rate, difference = images / seconds, np.abs(scores[used] - scores[1]).max()
        line = f"{used} of {count} devices: {rate:.1f} images/s, ratio {median[1] / seconds:.2f}"
        print(f"{line}, largest difference of a score {difference:.1e}", flush=True)


def torch(images: int) -> None:
    """A folder against PyTorch with a DataLoader."""
    model = score.our_model()
    theirs = score.torch_scorer(model)
    rng = np.random.default_rng(0)
    sizes = [score.COMMON[k] for k in rng.integers(len(score.COMMON), size=images)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{k}.jpg" for k in range(images)]
        for k, (path, size) in enumerate(zip(paths, sizes)):
            Image.fromarray(score.photo(*size, k)).save(path, quality=90)
        mixed, resized = loader(Files(paths, None), 1), loader(Files(paths, 224), 32)
        ways = {
            "ours": lambda: model.score_files(paths),
            "mixed, 1": lambda: np.concatenate([theirs(batch) for batch in mixed]),
            "224, 32": lambda: np.concatenate([theirs(batch) for batch in resized]),
        }
        median, scores = score.in_turns(ways)
    for name, seconds in median.items():
        line = f"{name:10s} {images / seconds:7.2f} images/s   ratio {seconds / median['ours']:.2f}"
        print(f"{line}   largest difference of a score {np.abs(scores[name] - scores['ours']).max():.1e}", flush=True)


class Files:
    """Image files as a DataLoader takes them, uint8 [H, W, 3], resized to a square if there is a side."""

    def __init__(self, paths: list[str], side: int | None):
        self.paths, self.side = paths, side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        image = Image.open(self.paths[index]).convert("RGB")
        return np.array(image if self.side is None else image.resize((self.side, self.side), Image.Resampling.BICUBIC))


def loader(files: Files, batch: int) -> Iterable[np.ndarray]:
    """Batches uint8 [N, H, W, 3] that processes decode; they stay from one round to the next."""
    from torch.utils.data import DataLoader

    workers = {"num_workers": os.cpu_count() or 1, "multiprocessing_context": "spawn", "persistent_workers": True}
    return DataLoader(files, batch, collate_fn=np.stack, **workers)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--images", type=int, nargs="+", help="how many; for memory, several numbers")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.alone:
        return alone(args.alone, args.rounds)
    parts = args.parts or PARTS
    if "memory" in parts:
        memory(args.images or [20_000, 200_000])
    if "workers" in parts:
        workers((args.images or [8000])[0])
    if "devices" in parts:
        devices((args.images or [2048])[0])
    if "torch" in parts:
        torch((args.images or [32])[0])
    return None


if __name__ == "__main__":
    sys.exit(cli.run(main))
