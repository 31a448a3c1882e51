"""Judge a model: python -m qualiclip_jax.evaluate --checkpoint DIR --dataset koniq10k,clive,synthetic --out DIR"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualiclip_jax import cli, storage, tabular
from qualiclip_jax.errors import UserError

if TYPE_CHECKING:
    from qualiclip_jax.evaluation.results import Results


ANALYSES = ("intensity", "embedding", "gradcam", "gmad")  # commands of `explain.analyses`


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog=cli.program("evaluate"),
        description="Measures how well quality scores agree with human opinion, and with levels of degradation.",
        epilog="Scores are kept in the output folder as they come. The same command goes on after an interruption. "
        f"Further analyses: {', '.join(ANALYSES)} (%(prog)s gradcam --help).",
    )
    parser.add_argument(
        "--checkpoint", action="append", metavar="MODEL,...", dest="checkpoints",
        help="names (`qualiclip models` lists them), paths or repositories of the Hugging Face hub (default: tiny); "
        "several are compared",
    )  # fmt: skip
    parser.add_argument("--scores", type=Path, metavar="FILE", help="judge a table of scores (columns image, score)")
    parser.add_argument("--lower-is-better", action="store_true", help="in --scores a lower score means a better image")
    parser.add_argument(
        "--dataset", action="append", metavar="NAME,...", dest="datasets",
        help="prepared sets, csv:FILE[@FOLDER], synthetic[:SOURCE] (default: synthetic:sample:test)",
    )  # fmt: skip
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of the prepared sets")
    parser.add_argument("--allow-missing", action="store_true", help="leave out rated images that are not there")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), metavar="DIR", help="default: ./evaluation")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder that keeps scores (default: OUT/cache)")
    parser.add_argument(
        "--baseline", default="auto", metavar="DIR|FILE",
        help="a model or a table of scores to compare with, or none (default: the model before its training, if known; "
        "of several models the first)",
    )  # fmt: skip
    parser.add_argument(
        "--baseline-lower-is-better", action="store_true", help="the same for a table given as --baseline"
    )
    parser.add_argument("--splits", type=_count, default=10, metavar="K", help="random test splits (10; 0 for none)")
    parser.add_argument("--resamples", type=_count, default=1000, metavar="R", help="resamples of the bootstrap (1000)")
    parser.add_argument("--seed", type=_count, default=0, help="for splits, bootstrap and degradations (0)")
    parser.add_argument(
        "--photos", type=_count, default=32, metavar="N", help="most photos for synthetic (32; 0 for all)"
    )
    parser.add_argument(
        "--crop", type=_count, metavar="PX", help="side of the crops for synthetic (224, or less if photos are small)"
    )
    args = parser.parse_args(argv)
    from qualiclip_jax.evaluation import correlation  # scipy is slow to import: not before --help

    if args.scores and args.checkpoints:
        parser.error("give --checkpoint or --scores, not both")
    if args.lower_is_better and not args.scores:
        parser.error("--lower-is-better goes with --scores")
    args.datasets = _names(args.datasets or ["synthetic"])
    args.checkpoints = _names(args.checkpoints or [])
    if not args.datasets:
        parser.error("--dataset names no set")
    if args.baseline_lower_is_better and not tabular.is_table(args.baseline):
        parser.error("--baseline-lower-is-better goes with a --baseline that is a table of scores")
    if 0 < args.resamples < correlation.MIN_RESAMPLES:
        parser.error(f"--resamples {args.resamples}: {correlation.MIN_RESAMPLES} or more (0 for no intervals)")
    return args


def _names(arguments: Sequence[str]) -> list[str]:
    """The names in arguments: those between commas, unless they are part of the name of a file; each once."""
    parts = [[given] if Path(given.removeprefix("csv:")).exists() else given.split(",") for given in arguments]
    return list(dict.fromkeys(filter(None, (name.strip() for names in parts for name in names))))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more, below 2**63")
    return int(text)


def main(argv: Sequence[str]) -> int:
    """Evaluates; see `--help`. Returns an exit status."""
    if argv and argv[0] in ANALYSES:
        from qualiclip_jax.explain import analyses

        return analyses.main(argv)
    args = parse(argv)
    from qualiclip_jax.data import rated
    from qualiclip_jax.evaluation import report
    from qualiclip_jax.evaluation.contestants import ScoresTable
    from qualiclip_jax.evaluation.run import evaluate, is_synthetic

    if args.scores and any(map(is_synthetic, args.datasets)):
        raise UserError("--scores are of given images: the synthetic benchmark needs a --checkpoint")
    baseline = None if args.baseline == "none" else args.baseline
    if tabular.is_table(args.baseline):
        baseline = ScoresTable(args.baseline, args.baseline_lower_is_better)
    datasets = [
        name if is_synthetic(name) else rated.load(name, args.data_dir, args.allow_missing) for name in args.datasets
    ]
    for rated_set in datasets:
        for note in getattr(rated_set, "notes", ()):
            print(f"{rated_set.name}: {note}", file=sys.stderr)
    if not args.checkpoints and not args.scores:
        print('no --checkpoint given: judging "tiny", the model of the package', file=sys.stderr)
    options = {
        "baseline": baseline, "cache": args.cache or args.out / "cache", "splits": args.splits,
        "resamples": args.resamples, "seed": args.seed, "photos": args.photos, "crop": args.crop,
    }  # fmt: skip
    try:
        if len(args.checkpoints) > 1:
            found = _several(args, datasets, options)
        else:
            (name,) = args.checkpoints or ["tiny"]
            model = ScoresTable(args.scores, args.lower_is_better) if args.scores else name
            with report.reserved(args.out, [path for path in (args.scores, args.baseline) if path]):
                found = [evaluate(model, datasets, **options)]
                files = report.write(found[0], args.out)
            print(report.text(found[0]))
            print(f"\nwrote {', '.join(file.name for file in files[:-1])}\nopen  {files[-1]}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the scores so far are kept, the same command goes on from there") from None
    missing = any(entry.rated.missing for entry in found[0].sets)
    return cli.IN_PART if missing and args.allow_missing else cli.DONE


def _several(args: argparse.Namespace, datasets: Sequence[Any], options: dict[str, Any]) -> "list[Results]":
    """Evaluates several models: a report of each in a folder of its own, and the table of all."""
    from qualiclip_jax.evaluation import comparison, report
    from qualiclip_jax.evaluation.run import slugs

    found = []
    with storage.lock(_folder(args.out) / comparison.FILES[0]):
        comparison.check(args.out)
        folders = [args.out / slug for slug in slugs(args.checkpoints)]
        for folder in folders:  # refused before the work, not after it
            with report.reserved(folder):
                pass
        for one, folder in zip(comparison.evaluate_all(args.checkpoints, datasets, **options), folders):
            with report.reserved(folder):
                print(f"{one.model['name']}: {report.write(one, folder)[-1]}")
            found.append(one)
        files = comparison.write(found, args.out)
    print(f"\n{comparison.text(found)}\n\nwrote {', '.join(map(str, files))}")
    return found


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: cannot write there ({error.strerror or error})") from None
    return path


if __name__ == "__main__":
    sys.exit(cli.run(main))
