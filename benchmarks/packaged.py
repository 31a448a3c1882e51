"""How good a small model is, beside NIQE, BRISQUE and PIQE: the Markdown tables of docs/MODEL_CARD.md.

    pip install brisque[opencv-python-headless] pypiqe torch; pip install --no-deps --no-build-isolation basicsr
    python benchmarks/packaged.py --checkpoint M --against tiny --rated csv:clive_dev.csv@images --photos folder:DIR

--rated: agreement with human opinion, and how much scores change with the size of an image. --photos (pristine, not
used in training): simulated faults of a camera, and the sizes. --against: another model beside the first, and the speed
of both, timed in turns. The first line installs the other metrics; those that are missing are left out. Scores are kept
in --out as they come. Those of the other metrics also become tables there, to judge any model against:

    qualiclip evaluate --scores packaged/niqe.csv --lower-is-better --dataset csv:clive_dev.csv@images

NIQE is basicsr's, with its authors' parameters and MATLAB's results; scikit-video 1.1.11 gives others.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy import stats
from score import MEGAPIXELS_12, in_turns, photo

from qualiclip_jax import QualiCLIP, cli, storage, tabular
from qualiclip_jax.data import pristine, rated
from qualiclip_jax.degradations import camera
from qualiclip_jax.evaluation import comparison, correlation, results, synthetic
from qualiclip_jax.evaluation.contestants import ScoresTable
from qualiclip_jax.evaluation.scores import Kept, content_key
from qualiclip_jax.inference.output import attribute_columns
from qualiclip_jax.progress import track

Photos = Sequence[tuple[str, np.ndarray]]  # name, uint8 [H, W, 3]
Metric = Callable[[np.ndarray], float]  # of such an image, lower is better


# name, word of the prompts that should tell it, setting of the camera, levels (the last is to be found), other settings
FAULTS: tuple[tuple[str, str, str, tuple[float, ...], dict[str, float]], ...] = (
    ("underexposed by 2.5 stops", "expos", "exposure", (-0.6, -1.2, -1.8, -2.5), {}),
    ("overexposed by 2 stops", "expos", "exposure", (0.5, 1, 1.5, 2), {}),
    ("haze, 45 % of the light", "haz", "haze", (0.1, 0.2, 0.3, 0.45), {}),
    ("contrast x 0.4", "haz", "contrast", (0.85, 0.7, 0.55, 0.4), {}),
    ("out of focus, radius 3 px", "blur", "defocus", (0.75, 1.5, 2.25, 3), {}),
    ("moved by 10 px", "blur", "motion", (2.5, 5, 7.5, 10), {"angle": 30}),
    ("shrunk to 1/3 and enlarged", "blur", "shrink", (1.5, 2, 2.5, 3), {}),
    ("noise 0.6", "nois", "noise", (0.15, 0.3, 0.45, 0.6), {}),
    ("noise 0.6, denoised", "nois", "noise", (0.15, 0.3, 0.45, 0.6), {"denoise": 3}),
    ("JPEG of quality 15", "compress", "quality", (60, 40, 25, 15), {}),
    ("colour cast of 35 %", "color", "cast", (0.09, 0.17, 0.26, 0.35), {"hue": 30}),
    ("saturation x 0.2", "color", "saturation", (0.8, 0.6, 0.4, 0.2), {}),
)


def resized(image: np.ndarray, share: float) -> np.ndarray:
    """An image [H, W] or [H, W, 3] made smaller: bicubic, antialiased, as in MATLAB's imresize."""
    height, width = (round(side * share) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def niqe() -> Metric:
    folder = Path(str(importlib.metadata.distribution("basicsr").locate_file("")))
    for name in ("basicsr", "basicsr.utils", "basicsr.metrics"):  # the real ones import what torchvision has removed
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        package.__dict__["bgr2ycbcr"] = None  # of the utilities; not called for grey images
    from basicsr.metrics.niqe import calculate_niqe

    return lambda image: calculate_niqe(np.asarray(Image.fromarray(image).convert("L")), 0, "HW")


def brisque() -> Metric:
    from brisque import BRISQUE

    peer = BRISQUE(url=False)
    scale = peer.scale_features  # gets some of the features as arrays of one number, which NumPy 2.4 takes for none
    peer.scale_features = lambda features: scale([np.ravel(feature)[0] for feature in features])
    return lambda image: peer.score(image)


def piqe() -> Metric:
    from pypiqe import piqe

    return lambda image: piqe(image[..., ::-1].copy())[0]  # blue first, as OpenCV has it


PEERS = {"NIQE": ("basicsr", niqe), "BRISQUE": ("brisque", brisque), "PIQE": ("pypiqe", piqe)}


class Peer:
    """Another metric, lower is better; its scores are kept by the content of the image."""

    def __init__(self, name: str, package: str, metric: Metric, folder: Path):
        self.name, self._metric, self._path = name, metric, folder / f"{name.lower()}.csv"
        self._kept = Kept(folder / "cache" / f"{package}-{importlib.metadata.version(package)}.jsonl")

    def scores(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Scores of images uint8 [H, W, 3]; where there is none (of a black image), the median of the rest."""
        keys = []
        for image in images:
            keys.append(content_key(image.tobytes()))
            if keys[-1] not in self._kept:
                score = np.nan
                with warnings.catch_warnings(action="ignore"), contextlib.suppress(np.linalg.LinAlgError):
                    score = float(self._metric(image))
                self._kept.put(keys[-1], score)
        scores = np.array([self._kept[key] for key in keys])
        if none := np.sum(~np.isfinite(scores)):
            print(f"{self.name}: no score for {none} of {len(scores)} images, the median instead", file=sys.stderr)
        return np.where(np.isfinite(scores), scores, np.nanmedian(scores))

    def table(self, sets: Sequence[rated.RatedSet]) -> ScoresTable:
        """Scores of the images of rated sets, written to a file."""
        rows: list[tuple[str, str, float]] = []
        for rated_set in sets:
            images = track(map(rated_set.image, range(len(rated_set))), len(rated_set), self.name, "image")
            rows += zip([rated_set.name] * len(rated_set), rated_set.ids, self.scores(images))
        storage.write_bytes(self._path, tabular.to_csv(("dataset", "image", "score"), rows))
        return ScoresTable(self._path, lower_is_better=True)


def installed_peers(folder: Path) -> Iterator[Peer]:
    for name, (package, load) in PEERS.items():
        try:
            yield Peer(name, package, load(), folder)
        except ImportError as error:
            print(f"{name} is left out ({error}): the head of {__file__} tells what to install", file=sys.stderr)


def show(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    print(f"\n### {title}\n\n{results.to_markdown(head, lines)}", flush=True)


def opinions(checkpoint: str, others: Sequence[str | ScoresTable], sets: Sequence[rated.RatedSet], cache: Path) -> None:
    """Agreement with human opinion, and whether that of the others really differs."""

    def cell(value: float, bounds: tuple[float, float] | None, sign: str = "") -> str:
        return f"{value:{sign}.3f}" + (f" ({bounds[0]:{sign}.3f} to {bounds[1]:{sign}.3f})" if bounds else "")

    found = list(comparison.evaluate_all([checkpoint, *others], sets, cache=cache, splits=0))
    head = ["", "SRCC (95 % interval)", "PLCC", f"SRCC minus {checkpoint}'s", "PLCC likewise (* significant)"]
    for index, rated_set in enumerate(sets):
        lines = []
        for one in found:
            whole, tests = one.sets[index].judgement.whole, one.sets[index].comparisons
            own = [cell(whole.srcc, whole.srcc_interval), cell(whole.plcc, whole.plcc_interval)]
            beside = [cell(t.difference, t.interval, "+") + " *" * results.is_real(t) for t in tests] or ["", ""]
            lines.append([one.model["name"], *own, *beside])
        show(f"Human opinion: {found[0].sets[index].slug}, {len(rated_set)} images", head, lines)


degrade = jax.jit(lambda images, *how: jnp.round(255 * camera.apply(images / 255.0, *how)).astype(jnp.uint8))


def auc(good: np.ndarray, faulty: np.ndarray) -> str:
    """How often a good image has a higher score than a faulty one."""
    return f"{stats.mannwhitneyu(good, faulty).statistic / (len(good) * len(faulty)):.3f}"


def order(scores: np.ndarray) -> str:
    """Spearman's correlation of level and score, mean over the images; scores [L, N]."""
    levels = np.broadcast_to(np.arange(len(scores)), scores.T.shape)
    return f"{np.nan_to_num(correlation.rows('srcc', levels, scores.T)).mean():+.2f}"


def faults(model: QualiCLIP, peers: Sequence[Peer], photos: Photos) -> None:
    """What the score and the attributes tell of simulated faults."""
    side = min(320, *(min(image.shape[:2]) for _, image in photos))
    good = np.stack([synthetic.cut(image, side)[0] for _, image in photos])
    score, attributes, beside = model.score(good), model.attributes(good), [peer.scores(good) for peer in peers]
    texts = [" ".join(pair).lower() for pair in model.prompts]
    place = {word: k for _, word, *_ in FAULTS for k, text in reversed([*enumerate(texts)]) if word in text}
    names, places = attribute_columns(model.prompts), list(place.values())
    of_score, of_attributes, title = [], [], f"Simulated faults: {len(good)} photos, {side} px"
    for number, (name, word, field, levels, others) in enumerate(track(FAULTS, len(FAULTS), "faults", "fault")):
        settings = [camera.Settings(**{field: level}, **others) for level in levels]
        bad = [np.asarray(degrade(good, one, jax.random.key(number))) for one in settings]
        scores = np.stack([score, *map(model.score, bad)])  # [L, N]
        of_peers = [auc(-x, -peer.scores(bad[-1])) for x, peer in zip(beside, peers)]
        of_score.append([name, auc(score, scores[-1]), order(scores), *of_peers])
        if word in place:
            each = np.stack([attributes, *map(model.attributes, bad)])  # [L, N, P]
            own, below = each[..., place[word]], (each[-1] - np.median(attributes, 0)) / attributes.std(0)
            shares = [f"{np.mean(below[:, places].argmin(1) == k):.0%}" for k in range(len(places))]
            of_attributes.append([name, names[place[word]], auc(own[0], own[-1]), order(own), *shares])
    show(title, ["", "AUC", "SRCC with level", *(f"AUC of {peer.name}" for peer in peers)], of_score)
    if of_attributes:
        head = ["", "attribute", "AUC", "SRCC with level", *(f"lowest: {names[k]}" for k in places)]
        show(f"{title}; lowest is counted in standard deviations from the median of the good ones", head, of_attributes)


def sizes(model: QualiCLIP, title: str, photos: Photos) -> None:
    """How much scores and ranks change when images are made smaller."""
    names, images = zip(*photos)
    full, lines = model.score(images), []
    for name, share in (("3/4", 3 / 4), ("1/2", 1 / 2), ("1/3", 1 / 3)):
        scores = model.score([resized(image, share) for image in images])
        change, rank = np.abs(scores - full), [stats.rankdata(x) / len(full) for x in (full, scores)]
        means = [f"{scores.mean():.3f}", f"{change.mean():.3f}", f"{np.abs(rank[0] - rank[1]).mean():.1%}"]
        worst = f"{full[k := change.argmax()]:.2f} to {scores[k]:.2f} ({names[k]})"
        lines.append([name, *means, f"{correlation.srcc(full, scores):.3f}", worst])
    head = ["size", "mean score", "mean change", "mean change of rank", "SRCC with full size", "largest change"]
    show(f"Sizes: {title}, {len(images)} images, mean score at full size {full.mean():.3f}", head, lines)


def speed(models: dict[str, QualiCLIP]) -> None:
    """Images a second of two models, timed in turns."""
    lines = []
    for title, shapes in (("500 x 500 px, 8 at once", [(500, 500)] * 8), ("12 megapixels", [MEGAPIXELS_12])):
        images = [photo(*shape, k) for k, shape in enumerate(shapes)]
        first, second = in_turns({k: functools.partial(m.score, images) for k, m in models.items()})[0].values()
        lines.append([title, f"{len(images) / first:.2f}", f"{len(images) / second:.2f}", f"{second / first:.2f}"])
    show("Speed: images a second, without decoding", ["", *models, "ratio"], lines)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="tiny", metavar="MODEL", help="the model (default: tiny)")
    parser.add_argument("--against", metavar="MODEL", help="another one, to be compared with")
    parser.add_argument("--rated", action="append", default=[], metavar="SET", help="as `qualiclip evaluate --dataset`")
    parser.add_argument("--photos", metavar="SOURCE", help="pristine photos, e.g. folder:PATH")
    parser.add_argument("--most", type=int, default=100, metavar="N", help="images for faults and sizes (default: 100)")
    parser.add_argument("--out", type=Path, default=Path("packaged"), metavar="DIR", help="default: ./packaged")
    args = parser.parse_args(argv)
    model, sets = QualiCLIP.load(args.checkpoint), [rated.load(name) for name in args.rated]
    against = {args.against: QualiCLIP.load(args.against)} if args.against not in (None, args.checkpoint) else {}
    peers = list(installed_peers(args.out)) if sets or args.photos else []
    if sets:
        opinions(args.checkpoint, [*against, *(peer.table(sets) for peer in peers)], sets, args.out / "cache")
    if args.photos:
        photos = pristine.photos(args.photos, limit=args.most)
        faults(model, peers, photos)
        sizes(model, args.photos, photos)
    for rated_set in sets:
        images = [(name, rated_set.image(k)) for k, name in enumerate(rated_set.ids[: args.most])]
        sizes(model, rated.short_name(rated_set.name), images)
    if against:
        speed({args.checkpoint: model} | against)


if __name__ == "__main__":
    sys.exit(cli.run(main))
