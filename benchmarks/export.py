"""How near ONNX files come to this package: parity on photos of many sizes, and 8 bits on rated sets.

    pip install 'qualiclip_jax[onnx]'
    python benchmarks/export.py --photos folder:PHOTOS --rated csv:clive_dev.csv@images --most 300

--photos: 50 of them at random sizes from 32 to 640 pixels; 32 more calibrate the 8 bits. --rated: SRCC of 8 bits with
float32 on at most --most images, spread over the set, and the processor's time of both, in turns.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from qualiclip_jax import QualiCLIP, cli
from qualiclip_jax.data import rated
from qualiclip_jax.data.sources import open_source
from qualiclip_jax.evaluation import correlation
from qualiclip_jax.export import folder
from qualiclip_jax.progress import track

HEAD = (
    "set", "images", "SRCC of 8 bits with float32", "mean change", "largest change",
    "SRCC with opinion, float32 / 8 bits", "CPU seconds an image, float32 / 8 bits",
)  # fmt: skip


def parity(model: QualiCLIP, session: onnxruntime.InferenceSession, photos: str) -> None:
    """The largest difference of an attribute over 50 photos."""
    rng, source, images = np.random.default_rng(0), open_source(photos), []
    for k in range(50):
        photo = Image.fromarray(source[k * len(source) // 50])
        images.append(np.asarray(photo.resize(rng.integers(32, 641, 2).tolist(), Image.Resampling.LANCZOS)))
    theirs = [session.run(["attributes"], {"images": image[None]})[0][0] for image in images]
    difference = np.abs(np.array(theirs) - model.attributes(images)).max()
    print(
        f"{len(images)} photos of {len({image.shape for image in images})} sizes: largest difference {difference:.1e}"
    )


def eight_bits(sessions: Sequence[onnxruntime.InferenceSession], name: str, most: int) -> None:
    """How well 8 bits agree with float32 on a rated set, and how fast both are."""
    images = rated.load(name)
    chosen = np.unique(np.linspace(0, len(images.ids) - 1, most).astype(int))
    scores, seconds = np.zeros((2, len(chosen))), np.zeros((2, len(chosen)))
    for n, k in enumerate(track(chosen, len(chosen), "scoring", "image")):
        image = images.image(int(k))[None]
        for way, session in enumerate(sessions):
            start = time.process_time()
            scores[way, n] = session.run(["score"], {"images": image})[0][0]
            seconds[way, n] = time.process_time() - start
    change = scores[1] - scores[0]
    opinion = [correlation.srcc(images.mos[chosen], s) for s in scores]
    line = [rated.short_name(images.name), len(chosen), f"{correlation.srcc(*scores):.4f}", f"{change.mean():+.3f}"]
    line += [f"{np.abs(change).max():.3f}", " / ".join(f"{value:.3f}" for value in opinion)]
    line += [" / ".join(f"{np.median(each):.3f}" for each in seconds)]
    print("| " + " | ".join(map(str, line)) + " |", flush=True)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="tiny", metavar="MODEL")
    parser.add_argument("--photos", required=True, metavar="SOURCE", help="e.g. folder:PATH")
    parser.add_argument("--rated", action="append", default=[], metavar="SET", help="as `qualiclip evaluate --dataset`")
    parser.add_argument("--most", type=int, default=300, metavar="N", help="images of a rated set (default: 300)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "out")
        folder.write(folder.Request(args.checkpoint, "onnx", calibration=args.photos), out)
        files = [out / "model.onnx", out / "model_int8.onnx"]
        print(", ".join(f"{file.name} {file.stat().st_size / 1e6:.2f} MB" for file in files))
        sessions = [onnxruntime.InferenceSession(str(file)) for file in files]
        parity(QualiCLIP.load(args.checkpoint), sessions[0], args.photos)
        if args.rated:
            print("\n| " + " | ".join(HEAD) + " |\n" + len(HEAD) * "|---" + "|")
        for name in args.rated:
            eight_bits(sessions, name, args.most)


if __name__ == "__main__":
    sys.exit(cli.run(main))
