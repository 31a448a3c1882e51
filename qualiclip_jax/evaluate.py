"""Judge a model: python -m qualiclip_jax.evaluate --checkpoint DIR --dataset koniq10k,clive,synthetic --out DIR"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualiclip_jax import cli
from qualiclip_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from qualiclip_jax.evaluation.results import SetResult, SyntheticSet
    from qualiclip_jax.evaluation.scores import Kept

SYNTHETIC, DEFAULT_SOURCE = "synthetic", "sample:test"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="qualiclip evaluate",
        description="Measures how well quality scores agree with human opinion, and with levels of degradation.",
        epilog="Scores are kept in the output folder as they come: an interrupted or repeated command goes on.",
    )
    parser.add_argument("--checkpoint", metavar="DIR", help="a model (default: the small one of the package)")
    parser.add_argument("--scores", type=Path, metavar="CSV", help="judge these scores (columns image, score) instead")
    parser.add_argument("--lower-is-better", action="store_true", help="of --scores: a lower score is better")
    parser.add_argument(
        "--dataset", action="append", metavar="NAME,...", dest="datasets",
        help="prepared sets, csv:FILE[@FOLDER], synthetic[:SOURCE] (default: synthetic:sample:test)",
    )  # fmt: skip
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where prepared sets lie")
    parser.add_argument("--allow-missing", action="store_true", help="leave out images of a CSV that are not there")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), metavar="DIR", help="default: ./evaluation")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where scores are kept (default: OUT/cache)")
    parser.add_argument(
        "--baseline", default="auto", metavar="DIR",
        help="checkpoint to compare with, a CSV of scores, or none (default: the model before its training, if known)",
    )  # fmt: skip
    parser.add_argument("--baseline-lower-is-better", action="store_true", help="of a CSV given as --baseline")
    parser.add_argument("--splits", type=_count, default=10, metavar="K", help="random test splits (10; 0 for none)")
    parser.add_argument("--resamples", type=_count, default=1000, metavar="R", help="of the bootstrap (1000)")
    parser.add_argument("--seed", type=_count, default=0, help="of splits, bootstrap and degradations (0)")
    parser.add_argument("--photos", type=_count, default=32, metavar="N", help="at most, for synthetic (32; 0: all)")
    parser.add_argument("--crop", type=_count, metavar="PX", help="side of the crops for synthetic (224, or what fits)")
    args = parser.parse_args(argv)
    from qualiclip_jax.evaluation import correlation  # scipy is slow to import: not before --help

    if args.scores and args.checkpoint:
        parser.error("give --checkpoint or --scores, not both")
    if args.lower_is_better and not args.scores:
        parser.error("--lower-is-better goes with --scores")
    names = [name.strip() for given in args.datasets or [SYNTHETIC] for name in given.split(",")]
    args.datasets = list(dict.fromkeys(filter(None, names)))
    if not args.datasets:
        parser.error("--dataset names no set")
    if args.baseline_lower_is_better and not args.baseline.endswith(".csv"):
        parser.error("--baseline-lower-is-better goes with a --baseline that is a CSV of scores")
    if 0 < args.resamples < correlation.MIN_RESAMPLES:
        parser.error(f"--resamples {args.resamples}: {correlation.MIN_RESAMPLES} or more (0 for no intervals)")
    return args


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more, below 2**63")
    return int(text)


def main(argv: Sequence[str]) -> int:
    """Evaluates; see `--help`. Returns an exit status."""
    args = parse(argv)
    rated_names = [name for name in args.datasets if not _is_synthetic(name)]
    sources = [name.partition(":")[2] or DEFAULT_SOURCE for name in args.datasets if _is_synthetic(name)]
    if args.scores and sources:
        raise UserError("--scores are of given images: the synthetic benchmark needs a --checkpoint")

    from qualiclip_jax.data import rated

    sets = [rated.load(name, args.data_dir, args.allow_missing) for name in rated_names]
    _make_folder(args.out)
    model, baseline, note = _contestants(args)

    from qualiclip_jax.evaluation import report
    from qualiclip_jax.evaluation.results import Results

    try:
        found = Results(
            model=model.facts,
            baseline=baseline and baseline.facts,
            note=note,
            sets=[_judge(args, rated_set, slug, model, baseline) for rated_set, slug in zip(sets, _slugs(rated_names))],
            synthetic=[_benchmark(args, s, slug, model, baseline) for s, slug in zip(sources, _slugs(sources))],
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the scores so far are kept, the same command goes on from there") from None
    files = report.write(found, args.out)
    print(report.text(found))
    print(f"\nwrote {', '.join(file.name for file in files[:-1])}\nopen  {files[-1]}")
    return cli.IN_PART if any(entry.rated.missing for entry in found.sets) and args.allow_missing else cli.DONE


def _is_synthetic(name: str) -> bool:
    return name == SYNTHETIC or name.startswith(f"{SYNTHETIC}:")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {folder}: cannot write there ({error.strerror})") from None


class Checkpoint:
    """A model that scores images, and where its scores are kept."""

    def __init__(self, path: str, cache: Path):
        from qualiclip_jax.evaluation.scores import Kept
        from qualiclip_jax.inference.predictor import QualiCLIP
        from qualiclip_jax.version import __version__

        self.model = QualiCLIP.load(path)
        self.kept = Kept(cache / f"{self.model.fingerprint}-{__version__}.jsonl")
        self.facts: dict[str, Any] = {
            "name": path,
            "fingerprint": self.model.fingerprint,
            "temperature": self.model.temperature,
            "prompts": len(self.model.prompts),
        } | self.model.provenance

    def scores(self, rated_set: Any, title: str) -> "np.ndarray":
        """Scores of a rated set, float64 [N]."""
        from qualiclip_jax.evaluation.scores import score_set

        return score_set(self.model, rated_set, self.kept, title)


class ScoresFile:
    """Scores of any metric, from a file."""

    def __init__(self, path: Path, lower_is_better: bool):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        self.path, self.lower_is_better = path, lower_is_better
        self.facts: dict[str, Any] = {"name": path.stem, "scores": str(path), "lower is better": lower_is_better}

    def scores(self, rated_set: Any, title: str) -> "np.ndarray":
        """Scores of a rated set, float64 [N], higher is better."""
        from qualiclip_jax.evaluation.scores import read_scores

        return read_scores(self.path, rated_set, self.lower_is_better)


Contestant = Checkpoint | ScoresFile


def _contestants(args: argparse.Namespace) -> tuple[Contestant, Contestant | None, str]:
    """The model, its baseline or None, and why there is none."""
    cache = args.cache or args.out / "cache"
    if args.scores:
        model: Contestant = ScoresFile(args.scores, args.lower_is_better)
    else:
        if args.checkpoint is None:
            print('no --checkpoint given: judging "tiny", the small model of the package', file=sys.stderr)
        model = Checkpoint(args.checkpoint or "tiny", cache)
    if args.baseline == "none":
        return model, None, ""
    if args.baseline != "auto":
        path = Path(args.baseline)
        if path.suffix == ".csv":
            return model, ScoresFile(path, args.baseline_lower_is_better), ""
        return model, Checkpoint(args.baseline, cache), ""
    initial = None if args.scores or args.checkpoint is None else _initial(Path(args.checkpoint))
    if initial is None:
        return model, None, "No baseline: the model before training is not known here; name one with --baseline."
    return model, Checkpoint(str(initial), cache), ""


def _initial(checkpoint: Path) -> Path | None:
    """The model before training that belongs to a checkpoint: training keeps it beside its checkpoints."""
    from qualiclip_jax.checkpoint import INITIAL

    for folder in (checkpoint / "checkpoints", checkpoint.resolve().parent):
        if (folder / INITIAL).is_dir() and checkpoint.resolve() != (folder / INITIAL).resolve():
            return folder / INITIAL
    return None


def _judge(
    args: argparse.Namespace, rated_set: Any, slug: str, model: Contestant, baseline: Contestant | None
) -> "SetResult":
    """One rated set: scores, protocols, comparison with the baseline."""
    from qualiclip_jax.evaluation import protocol, published, significance
    from qualiclip_jax.evaluation.results import SetResult
    from qualiclip_jax.images import decode_size

    def judged(contestant: Contestant, title: str) -> "tuple[np.ndarray, protocol.Judgement]":
        scores = contestant.scores(rated_set, title)
        try:
            judgement = protocol.judge(
                rated_set.ids, scores, rated_set.mos, split=rated_set.split, reference=rated_set.reference,
                distortion=rated_set.distortion, splits=args.splits, resamples=args.resamples, seed=args.seed,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"{title}: {error}") from None
        return scores, judgement

    scores, judgement = judged(model, slug)
    longest = max(decode_size(rated_set.image_bytes(0), rated_set.ids[0]))
    beside = [
        entry
        for name in (protocol.WHOLE, protocol.OFFICIAL_TEST)
        for entry in published.comparable(rated_set.name, name, longest)
        if not rated_set.missing
    ]
    if baseline is None:
        return SetResult(rated_set, slug, scores, judgement, published=beside)
    baseline_scores, baseline_judgement = judged(baseline, f"{slug}, baseline")
    tests = [
        significance.compare(
            scores, baseline_scores, rated_set.mos, statistic=name, resamples=args.resamples or 1000, seed=args.seed
        )
        for name in ("srcc", "plcc")
    ]
    return SetResult(rated_set, slug, scores, judgement, baseline_scores, baseline_judgement, tests, beside)


def _benchmark(
    args: argparse.Namespace, source: str, slug: str, model: Checkpoint, baseline: Contestant | None
) -> "SyntheticSet":
    """The synthetic benchmark on one source of photos."""
    import jax

    from qualiclip_jax.data import pristine
    from qualiclip_jax.evaluation import synthetic
    from qualiclip_jax.evaluation.results import SyntheticSet
    from qualiclip_jax.progress import Progress

    if isinstance(baseline, ScoresFile):
        raise UserError("--baseline is a file of scores: the synthetic benchmark needs a checkpoint")
    photos = pristine.photos(source, limit=args.photos or None)
    crop = synthetic.check(photos, synthetic.TYPES, args.crop)

    def run(contestant: Checkpoint, title: str) -> synthetic.SyntheticResult:
        done = _KeptPhotos(contestant.kept, photos, crop, args.seed)
        with Progress(len(photos), title, "photo") as progress:
            return synthetic.run(
                jax.jit(contestant.model.apply), photos, crop=crop, seed=args.seed, done=done, advance=progress.advance
            )

    result = run(model, f"{SYNTHETIC}:{source}")
    if baseline is None:
        return SyntheticSet(source, slug, result, names=("", "model"))
    names = ("before", "after") if args.baseline == "auto" else ("baseline", "model")
    return SyntheticSet(source, slug, result, run(baseline, f"{SYNTHETIC}:{source}, baseline"), names)


class _KeptPhotos(dict):
    """Scores of photos by name for `synthetic.run`; those of earlier runs are in it, new ones are kept."""

    def __init__(self, kept: "Kept", photos: Sequence[tuple[str, Any]], crop: int, seed: int):
        import numpy as np

        from qualiclip_jax.evaluation import synthetic
        from qualiclip_jax.evaluation.scores import content_key

        self._kept = kept
        self._keys = {
            name: f"synthetic/{content_key(synthetic.cut(photo, crop).tobytes())}/{name}/{seed}"
            for name, photo in photos
        }
        super().__init__({name: np.array(kept[key]) for name, key in self._keys.items() if key in kept})

    def __setitem__(self, name: str, scores: "np.ndarray") -> None:
        super().__setitem__(name, scores)
        self._kept.put(self._keys[name], scores.tolist())


def _slugs(names: Sequence[str]) -> list[str]:
    """Names fit for files, each different."""
    slugs: list[str] = []
    for name in names:
        base = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(name.partition("@")[0]).stem if "csv:" in name else name).strip(
            "-"
        )
        slug, number = base or "set", 2
        while slug in slugs:
            slug, number = f"{base}-{number}", number + 1
        slugs.append(slug)
    return slugs


if __name__ == "__main__":
    sys.exit(cli.run(main))
