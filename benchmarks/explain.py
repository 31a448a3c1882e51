"""Where and which the faults are: fits the readout of quality maps, and prints the tables of docs/explain.md.

    python benchmarks/explain.py fit --photos folder:free502,folder:free644small,folder:kodak24   # writes readout.npz
    python benchmarks/explain.py maps --photos folder:PHOTOS                                      # not trained on
    python benchmarks/explain.py causes --photos folder:PHOTOS

`fit` takes the photos that the packaged model was trained on. A part of each gets faults of a camera, and the readout
is fitted to tell the cells of that part from the rest. Put the file into qualiclip_jax/explain/. `maps` degrades a
part of other photos and prints the AUC of the cells, how far their mean is from the score, and the time of a map.
`causes` degrades a fifth of the photos, each by one fault of a camera, and prints what `score --explain` says of them.
"""

import argparse
import functools
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from packaged import FAULTS as CAMERA
from packaged import Photos, degrade, show
from PIL import Image
from scipy import ndimage, stats
from score import in_turns, photo

from qualiclip_jax import QualiCLIP, cli, storage
from qualiclip_jax.data import pristine
from qualiclip_jax.degradations import camera
from qualiclip_jax.degradations.catalog import FACTORS
from qualiclip_jax.evaluation import synthetic
from qualiclip_jax.explain import causes as explaining
from qualiclip_jax.explain import readout, windows
from qualiclip_jax.explain.maps import Mapper
from qualiclip_jax.inference.files import Row
from qualiclip_jax.progress import track
from qualiclip_jax.training.probe import Moments

CROP, CELL = 256, 32
ALONE = 0.6  # share of the crops with a single fault
RIDGE = 1.0
IMPORTANCE = {"underexposure": 2.0, "overexposure": 0.5, "white_balance": 0.5, "saturation": 0.5}  # for the score
SEED = 0

Fault = Callable[[np.ndarray, np.random.Generator], np.ndarray]  # uint8 [H, W, 3] both


def part(size: Sequence[int], share: float, rng: np.random.Generator) -> np.ndarray:
    """A rectangle of `share` of either side somewhere in an image, bool [H, W]."""
    sides = [round(side * share) for side in size]
    top, left = (int(rng.integers(0, side - length + 1)) for side, length in zip(size, sides))
    mask = np.zeros(size, bool)
    mask[top : top + sides[0], left : left + sides[1]] = True
    return mask


def coverage(mask: np.ndarray) -> np.ndarray:
    """Which share of every cell a mask covers, float64 [h, w]."""
    rows, columns = (-(-side // CELL) for side in mask.shape)
    edges = [(0, rows * CELL - mask.shape[0]), (0, columns * CELL - mask.shape[1])]
    inside, total = (np.pad(x, edges).reshape(rows, CELL, columns, CELL).sum((1, 3)) for x in (mask, mask | True))
    return inside / total


def columns() -> tuple[str, ...]:
    """What the readout tells: the factors, exposure as two of them."""
    return ("underexposure", "overexposure", *(name for name in FACTORS if name != "exposure"))


def strengths_of(strengths: np.ndarray) -> np.ndarray:
    """Strengths of `columns()` from those of FACTORS."""
    exposure = strengths[FACTORS.index("exposure")]
    return np.array([max(-exposure, 0), max(exposure, 0), *np.delete(strengths, FACTORS.index("exposure"))])


def fit(model: QualiCLIP, source: str, crops: int, out: Path) -> None:
    """Fits the readout and writes it."""
    encoder, rng = model._encoder, np.random.default_rng(SEED)
    count = model.clip.image.pool.projection.in_features
    identity = jnp.eye(count)
    read = encoder.jit(lambda image, tokens, size: windows.pooled(image, tokens, size, identity))
    moments = Moments.zeros(count, len(columns()))
    stream = pristine.crop_pairs(
        pristine.open_source(source), batch_size=1, crop_size=CROP, seed=SEED, scale_range=(0.4, 1.0), detail=1.0
    )
    with stream:
        for number in track(range(crops), crops, "fitting", "crop"):
            crop = next(stream)["crops"][0, 0]
            key = jax.random.fold_in(jax.random.key(SEED), number)
            faults = camera.draw(key)
            strengths = np.array(faults.strengths)
            if rng.random() < ALONE:  # one fault, each as likely
                factor = max(0, rng.integers(-1, len(FACTORS)))
                strengths = np.float32(np.arange(len(FACTORS)) == factor) * np.float32(rng.uniform(camera.WEAKEST, 1))
                strengths[0] *= rng.choice((-1, 1))
            settings = faults._replace(strengths=jnp.asarray(strengths)).at(1.0)
            degraded = np.asarray(degrade(crop, settings, key))
            mask = part(crop.shape[:2], rng.uniform(0.3, 0.75), rng)
            tokens, size = encoder.tokens(np.where(mask[..., None], degraded, crop))
            seen = np.asarray(read(tokens, size)).reshape(-1, count)
            target = coverage(mask).reshape(-1, 1) * strengths_of(strengths)
            moments.add(seen - seen.mean(0), target - target.mean(0))
    weights = -moments.solve(RIDGE)[0] * [IMPORTANCE.get(name, 1.0) for name in columns()]
    found = {"encoder": readout.digest(model.clip), "columns": np.array(columns()), "weights": np.float16(weights)}
    with storage.replacing(out) as file:
        np.savez_compressed(file, **found)
    print(f"wrote {out}: {crops} crops, encoder {found['encoder']}")


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, (sigma, sigma, 0))


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def darkened(image: np.ndarray, stops: float) -> np.ndarray:
    return np.round(255 * ((image / 255) ** 2.2 * 2.0**-stops) ** (1 / 2.2)).astype(np.uint8)


# name, word of the prompts that should tell it, strength, what is done; not by the code that degrades in training
FAULTS: tuple[tuple[str, str, Fault], ...] = (
    ("blurred, sigma 2 px", "blur", lambda x, rng: blurred(x, 2)),
    ("blurred, sigma 3 px", "blur", lambda x, rng: blurred(x, 3)),
    ("noise of deviation 18 of 255", "nois", lambda x, rng: _rounded(x + rng.normal(0, 18, x.shape))),
    ("noise of deviation 25 of 255", "nois", lambda x, rng: _rounded(x + rng.normal(0, 25, x.shape))),
    ("JPEG of quality 12", "compress", lambda x, rng: compressed(x, 12)),
    ("darkened by 2 stops", "expos", lambda x, rng: darkened(x, 2)),
    ("darkened by 3 stops", "expos", lambda x, rng: darkened(x, 3)),
)


def _rounded(image: np.ndarray) -> np.ndarray:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def auc(cells: np.ndarray, faulty: np.ndarray) -> float:
    """How often a cell outside of the degraded part has a higher score than one in it."""
    good, bad = cells[~faulty], cells[faulty]
    return float(stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad)))


def maps(model: QualiCLIP, photos: Photos) -> None:
    """Prints the AUC of the maps beside that of pooled windows, and how long a map takes."""
    rng, texts = np.random.default_rng(SEED), [" ".join(pair).lower() for pair in model.prompts]
    without = Mapper(model)
    without._readout = None
    lines, farthest = [], 0.0
    for name, word, fault in FAULTS:
        place = next(k for k, text in enumerate(texts) if word in text)
        found: list[list[float]] = []
        for _, image in track(photos, len(photos), name, "photo"):
            mask = part(image.shape[:2], 0.5, rng)
            mixed = np.where(mask[..., None], fault(image, rng), image)
            faulty, ours, pooled = coverage(mask) >= 0.5, model.quality_map(mixed), without(mixed)
            cells = [ours.scores, ours.attribute_scores[..., place], pooled.scores, pooled.attribute_scores[..., place]]
            found.append([auc(x, faulty) for x in cells])
            farthest = max(farthest, abs(float(ours.scores.mean()) - float(model.score(mixed)[0])))
        lines.append([name, *(f"{x:.3f}" for x in np.mean(found, 0))])
    head = [
        "a quarter of the photo",
        "score",
        "its attribute",
        "score, pooled windows",
        "its attribute, pooled windows",
    ]
    show(f"AUC of the cells: {len(photos)} photos", head, lines)
    print(f"\nmean of the cells and score: farthest {farthest:.1e}")
    lines = []
    for height, width in ((512, 768), (1500, 2000)):
        image = photo(height, width, 0)
        ways = {"score": functools.partial(model.score, image), "map": lambda x=image: model.quality_map(x).scores}
        score, drawn = in_turns(ways)[0].values()
        lines.append([f"{width} x {height}", f"{score:.2f}", f"{drawn:.2f}", f"{drawn / score:.2f}"])
    show("Time of a map, s", ["pixels", "score", "map", "ratio"], lines)


def _logits(scores: np.ndarray) -> np.ndarray:
    scores = np.clip(scores.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(scores / (1 - scores))


def causes(model: QualiCLIP, photos: Photos) -> None:
    """Prints which causes are told of photos with one fault, in folders of which a fifth has it."""
    side = min(320, *(min(image.shape[:2]) for _, image in photos))
    good = np.stack([synthetic.cut(image, side)[0] for _, image in photos])
    fine, names = model.attributes(good), [word for word in explaining.words(model.prompts, model.scored) if word]
    heads = [*names, explaining.NONE]
    lines = []
    for number, (name, _, field, levels, others) in enumerate([("(pristine)", "", "", (0.0,), {}), *CAMERA]):
        settings = camera.Settings(**({field: levels[-1]} if field else {}), **others)
        bad = fine if not field else model.attributes(np.asarray(degrade(good, settings, jax.random.key(number))))
        counts = dict.fromkeys(heads, 0)
        for turn in range(5):
            faulty = np.arange(len(good)) % 5 == turn
            rows = [Row("", 0.0, tuple(values)) for values in np.where(faulty[:, None], bad, fine)]
            for told in np.array(explaining.explain(rows, model.prompts, model.scored))[faulty]:
                counts[told.split(", ")[0]] += 1
        lines.append([name, *(f"{counts[word] / len(good):.0%}" for word in heads)])
    show(f"First cause told: {len(good)} photos, {side} px, a fifth of a folder faulty", ["", *heads], lines)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("fit", "maps", "causes"))
    parser.add_argument("--checkpoint", default="tiny", metavar="MODEL", help="the model (default: tiny)")
    parser.add_argument("--photos", required=True, metavar="SOURCE", help="pristine photos, e.g. folder:PATH")
    parser.add_argument("--most", type=int, default=60, metavar="N", help="maps, causes: photos (default: 60)")
    parser.add_argument("--crops", type=int, default=1500, metavar="N", help="fit: crops (default: 1500)")
    parser.add_argument("--out", type=Path, default=Path("readout.npz"), metavar="FILE", help="default: readout.npz")
    args = parser.parse_args(argv)
    model = QualiCLIP.load(args.checkpoint)
    if args.what == "fit":
        fit(model, args.photos, args.crops, args.out)
    else:
        {"maps": maps, "causes": causes}[args.what](model, pristine.photos(args.photos, limit=args.most))


if __name__ == "__main__":
    sys.exit(cli.run(main))
