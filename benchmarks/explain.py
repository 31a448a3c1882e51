"""Where and which the faults are: fits the readout of quality maps, and prints the tables of docs/explain.md.

    python benchmarks/explain.py fit --photos folder:free502,folder:free644small,folder:kodak24   # writes readout.npz
    python benchmarks/explain.py fit-causes --photos folder:free502,folder:kodak24 --crops 700    # adds to readout.npz
    python benchmarks/explain.py maps --photos folder:PHOTOS                                      # not trained on
    python benchmarks/explain.py causes --photos folder:PHOTOS

`fit` takes the photos that the packaged model was trained on. A part of each gets faults of a camera, and the readout
is fitted to tell the cells of that part from the rest. `fit-causes` (needs scikit-learn) degrades whole crops by one
fault each, and fits which it is. Put the file into qualiclip_jax/explain/. `maps` degrades a part of other photos and
prints the AUC of the cells, how far their mean is from the score, and the time of a map. `causes` degrades photos by
one fault of a camera each, and prints what `score --explain` says of them.
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
from qualiclip_jax.progress import track
from qualiclip_jax.training.probe import Moments

CROP, CELL = 256, 32
ALONE = 0.6  # share of the crops with a single fault
RIDGE, CAUSES_RIDGE = 1.0, 0.3
IMPORTANCE = {"underexposure": 2.0, "overexposure": 0.5, "noise": 1.3, "white_balance": 0.5, "saturation": 0.5}
SEED = 0
CAUSES = {  # what `score --explain` says, and the faults that are meant
    "underexposed": ("underexposure",),
    "overexposed": ("overexposure",),
    "blurry": ("defocus", "motion", "shrink"),
    "noisy": ("noise",),
    "hazy": ("haze", "contrast"),
    "compressed": ("jpeg",),
    "unnatural colors": ("white_balance", "saturation"),
}
CAUSES_CROP, CAUSES_SEED, FAULTS_SEED = 320, 1, 8
HELD_OUT, FALSE_ALARMS = 0.2, 0.04  # shares: of the crops, for the threshold; of the pristine ones among them

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


def one_fault_each(model: QualiCLIP, source: str, crops: int) -> tuple[np.ndarray, np.ndarray]:
    """What the last layer reads of crops, pristine and with each fault: [n, 1 + K, F], and strengths [n, 1 + K, K]."""
    count, names = model.clip.image.readout.in_features, columns()
    wide, rng = model.widened(np.eye(count, dtype=np.float32)), np.random.default_rng(CAUSES_SEED)
    seen, done = [], []
    stream = pristine.crop_pairs(
        pristine.open_source(source), batch_size=1, crop_size=CAUSES_CROP, seed=CAUSES_SEED, scale_range=(0.5, 1.0),
        detail=0.5,
    )  # fmt: skip
    order = [0, *range(2, len(names)), 1]  # overexposure last
    with stream:
        for number in track(range(crops), crops, "degrading", "crop"):
            key = jax.random.fold_in(jax.random.key(FAULTS_SEED), number)
            images, strengths = [next(stream)["crops"][0, 0]], np.zeros((1 + len(names), len(names)), np.float32)
            faults = camera.draw(key)
            for turn, column in enumerate(order):
                strength = strengths[1 + turn, column] = rng.uniform(camera.WEAKEST, 1)
                signed = np.zeros(len(FACTORS), np.float32)
                factor = "exposure" if names[column].endswith("exposure") else names[column]
                signed[FACTORS.index(factor)] = -strength if column == 0 else strength
                settings = faults._replace(strengths=jnp.asarray(signed)).at(1.0)
                images.append(np.asarray(degrade(images[0], settings, jax.random.fold_in(key, turn))))
            found = dict(wide.run([[image.shape[:2] for image in images]], images.__getitem__))
            seen.append([found[k][-count:] for k in range(len(images))])
            done.append(strengths)
    return np.array(seen, np.float32), np.array(done)


def linear(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of [..., K] on [..., F], whose deviations are about 1: weights [F, K] and bias [K]."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    mean = x.mean(0)
    covariance = np.float64((x - mean).T @ (x - mean)) / len(x)
    weights = np.linalg.solve(covariance + CAUSES_RIDGE * np.eye(len(mean)), np.float64((x - mean).T @ y) / len(x))
    return weights, y.mean(0) - mean @ weights


def fit_causes(seen: np.ndarray, strengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [F, C] and biases [C] of `CAUSES`: positive for what is to be told.

    Ridge regression gives the strengths of the faults; that of four parts of the crops each from the three others.
    Logistic regression then tells from these which cause it is, if any. The threshold is that which `FALSE_ALARMS` of
    the pristine crops exceed.
    """
    from sklearn.linear_model import LogisticRegression

    label = [0] + [1 + k for name in columns() for k, names in enumerate(CAUSES.values()) if name in names]
    label = np.array(label)[np.where(strengths.any(-1), strengths.argmax(-1) + 1, 0)]
    count = round(len(seen) * (1 - HELD_OUT))
    mean, deviation = seen[:count].mean((0, 1)), seen[:count].std((0, 1)) + 1e-3
    seen = (seen - mean) / deviation
    part = np.arange(count) * 4 // count
    given = np.empty((count, *strengths.shape[1:]))
    for k in range(4):
        weights, bias = linear(seen[:count][part != k], strengths[:count][part != k])
        given[part == k] = seen[:count][part == k] @ weights + bias
    weights, bias = linear(seen[:count], strengths[:count])
    flat, unit = given.reshape(-1, given.shape[-1]), given.std((0, 1))
    kind = label[:count].ravel()
    judge = LogisticRegression(C=0.1, max_iter=500)
    judge.fit(flat / unit, kind, sample_weight=np.where(kind == 0, len(columns()), 1))
    against_none = (judge.coef_[1:] - judge.coef_[0]).T / unit[:, None], judge.intercept_[1:] - judge.intercept_[0]
    fine = np.concatenate([given[:, 0], seen[count:, 0] @ weights + bias]) @ against_none[0] + against_none[1]
    threshold = np.quantile(fine.max(-1), 1 - FALSE_ALARMS)
    whole = (weights @ against_none[0]) / deviation[:, None]
    return whole, bias @ against_none[0] + against_none[1] - threshold - mean @ whole


def add_causes(model: QualiCLIP, source: str, crops: int, out: Path) -> None:
    """Fits what tells causes, and writes it beside what the readout has."""
    weights, biases = fit_causes(*one_fault_each(model, source, crops))
    with readout.packaged() as stored:
        found = {name: stored[name] for name in stored.files}
    found |= {"causes": np.array([*CAUSES]), "cause_weights": np.float16(weights), "cause_biases": np.float32(biases)}
    with storage.replacing(out) as file:
        np.savez_compressed(file, **found)
    print(f"wrote {out}: {crops} crops")


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
    """Prints which causes are told of photos with one fault, and how well the strongest cause tells them from pristine.

    AUC is the probability that it is stronger in a faulty photo than in a pristine one of another scene.
    """
    side = min(320, *(min(image.shape[:2]) for _, image in photos))
    good = np.stack([synthetic.cut(image, side)[0] for _, image in photos])
    teller = explaining.Teller.find(model)
    assert teller is not None, "no causes are known for this model"
    heads = [*teller.causes, explaining.NONE]
    lines = []
    pristine_strengths = np.zeros(0)
    for number, (name, _, field, levels, others) in enumerate([("(pristine)", "", "", (0.0,), {}), *CAMERA]):
        settings = camera.Settings(**({field: levels[-1]} if field else {}), **others)
        bad = good if not field else np.asarray(degrade(good, settings, jax.random.key(number)))
        found = [outputs for _, outputs in teller.model.run([[image.shape[:2] for image in bad]], bad.__getitem__)]
        told = [teller(outputs, bad.shape[1:3]).split(", ")[0] for outputs in found]
        strengths = (np.stack(found)[:, -len(teller.causes) :] + teller.biases).max(1)
        pristine_strengths = pristine_strengths if field else strengths
        found_by = (
            f"{stats.mannwhitneyu(strengths, pristine_strengths).statistic / len(good) ** 2:.3f}" if field else ""
        )
        lines.append([name, *(f"{told.count(word) / len(good):.0%}" for word in heads), found_by])
    show(f"First cause told: {len(good)} photos, {side} px", ["", *heads, "AUC"], lines)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("fit", "fit-causes", "maps", "causes"))
    parser.add_argument("--checkpoint", default="tiny", metavar="MODEL", help="the model (default: tiny)")
    parser.add_argument("--photos", required=True, metavar="SOURCE", help="pristine photos, e.g. folder:PATH")
    parser.add_argument("--most", type=int, default=60, metavar="N", help="maps, causes: photos (default: 60)")
    parser.add_argument("--crops", type=int, default=1500, metavar="N", help="fit: crops (default: 1500)")
    parser.add_argument("--out", type=Path, default=Path("readout.npz"), metavar="FILE", help="default: readout.npz")
    args = parser.parse_args(argv)
    model = QualiCLIP.load(args.checkpoint)
    if args.what.startswith("fit"):
        (fit if args.what == "fit" else add_causes)(model, args.photos, args.crops, args.out)
    else:
        {"maps": maps, "causes": causes}[args.what](model, pristine.photos(args.photos, limit=args.most))


if __name__ == "__main__":
    sys.exit(cli.run(main))
