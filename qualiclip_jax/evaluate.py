"""Judge a model: python -m qualiclip_jax.evaluate --checkpoint DIR --dataset koniq10k,clive,synthetic --out DIR"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qualiclip_jax import cli
from qualiclip_jax.errors import UserError


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
    names = [name.strip() for given in args.datasets or ["synthetic"] for name in given.split(",")]
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
    from qualiclip_jax.data import rated
    from qualiclip_jax.evaluation import report
    from qualiclip_jax.evaluation.contestants import ScoresTable, is_table
    from qualiclip_jax.evaluation.run import evaluate, is_synthetic

    if args.scores and any(map(is_synthetic, args.datasets)):
        raise UserError("--scores are of given images: the synthetic benchmark needs a --checkpoint")
    model = ScoresTable(args.scores, args.lower_is_better) if args.scores else args.checkpoint or "tiny"
    baseline = None if args.baseline == "none" else args.baseline
    if is_table(args.baseline):
        baseline = ScoresTable(args.baseline, args.baseline_lower_is_better)
    datasets = [
        name if is_synthetic(name) else rated.load(name, args.data_dir, args.allow_missing) for name in args.datasets
    ]
    for rated_set in datasets:
        for note in getattr(rated_set, "notes", ()):
            print(f"{rated_set.name}: {note}", file=sys.stderr)
    if model == "tiny" and args.checkpoint is None:
        print('no --checkpoint given: judging "tiny", the small model of the package', file=sys.stderr)
    with report.reserved(args.out, [path for path in (args.scores, args.baseline) if path]):
        try:
            found = evaluate(
                model, datasets, baseline=baseline, cache=args.cache or args.out / "cache", splits=args.splits,
                resamples=args.resamples, seed=args.seed, photos=args.photos, crop=args.crop,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the scores so far are kept, the same command goes on from there") from None
        files = report.write(found, args.out)
    print(report.text(found))
    print(f"\nwrote {', '.join(file.name for file in files[:-1])}\nopen  {files[-1]}")
    return cli.IN_PART if any(entry.rated.missing for entry in found.sets) and args.allow_missing else cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))
