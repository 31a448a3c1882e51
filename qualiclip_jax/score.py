"""Score image files: python -m qualiclip_jax.score [--checkpoint MODEL] PATH... [--output FILE]"""

import argparse
import functools
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from qualiclip_jax import cli
from qualiclip_jax.errors import UserError, printable

SHARDS = (".tar", ".parquet")
HINT = "scores go from 0 to 1, higher is better"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog=cli.program("score"),
        description=f"Scores the quality of image files without a reference: {HINT}.",
        epilog="Exit status: 0 all files scored, 2 some not, 1 none.",
    )
    add = parser.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="image, folder (with all below), pattern, or - for a list; or shards, .tar or .parquet, as paths or URLs "
        "('s3://bucket/{0000..0999}.tar')",
    )
    add(
        "--checkpoint",
        metavar="MODEL",
        help="a name (`qualiclip models` lists them), path or hub repository (default: tiny)",
    )
    add("--output", metavar="FILE", help="a .csv, .jsonl or .parquet; of shards, a folder; repeat to go on")
    add("--attributes", action="store_true", help="also a score for sharpness, noise, resolution ...")
    add("--report", type=Path, metavar="FILE", help="also a page of thumbnails sorted by score, .html")
    add(
        "--sort",
        choices=("score", "path", "none"),
        help="order of the table: score (best first, the default on a terminal), path, or none (as given)",
    )
    add("--max-side", type=cli.positive, metavar="PX", help="score at this size: larger images are shrunk to it")
    photos = parser.add_argument_group("for photographers")
    add = photos.add_argument
    add("--explain", action="store_true", help="say which faults stand out, e.g. blurry (column causes)")
    add("--maps", action="store_true", help="show in the report where the faults are")
    add("--worst", type=cli.positive, metavar="N", help="print, report and copy the N lowest only")
    add("--best", type=cli.positive, metavar="N", help="... the N highest (with --worst, both)")
    add("--below", type=_number, metavar="X", help="... those below X")
    where = photos.add_mutually_exclusive_group()
    where.add_argument("--copy-to", type=Path, metavar="DIR", help="copy these photos there; nothing is overwritten")
    where.add_argument("--link-to", type=Path, metavar="DIR", help="hard-link them there")
    add("--bursts", action="store_true", help="group photos of one moment that look alike, and rank them")
    add("--burst-gap", type=_positive_number, metavar="S", help="seconds between two of them, at most (3)")
    add("--xmp", action="store_true", help="write 1 to 5 stars by percentile into sidecars (PHOTO.xmp)")
    add("--keep-ratings", action="store_true", help="with --xmp: not where there is a rating")
    add = parser.add_argument
    large = parser.add_argument_group("for large sets")
    add = large.add_argument
    add("--format", choices=("parquet", "csv", "jsonl"), default="parquet", help="of the tables of shards (parquet)")
    add("--engine", choices=("local", "ray"), default="local", help="ray: score shards on a Ray cluster")
    add("--address", metavar="HOST:PORT", help="of the cluster, or auto; else Ray is started on this machine")
    add("--dry-run", action="store_true", help="score a sample of 200, and tell what all will take")
    add("--price", type=_positive_number, metavar="DOLLARS", help="with --dry-run: of an hour of this machine")
    add = parser.add_argument
    add("-0", "--null", action="store_true", help="the list on standard input is separated by NUL (find -print0)")
    add("--part", type=_part, default=_own_part(), metavar="K/N", help="be one of N processes with the same list")
    args = parser.parse_args(argv)
    if args.keep_ratings and not args.xmp:
        parser.error("--keep-ratings goes with --xmp")
    if args.price is not None and not args.dry_run:
        parser.error("--price goes with --dry-run")
    if args.burst_gap is not None and not args.bursts:
        parser.error("--burst-gap goes with --bursts")
    return args


def _part(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with 1 <= K <= N, e.g. 2/4")
    return int(part), int(parts)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return number


def _positive_number(text: str) -> float:
    number = _number(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _own_part() -> tuple[int, int]:
    """Which of how many processes this is, if `launch/local.py` started it."""
    processes = int(os.environ.get("QUALICLIP_PROCESSES", "1"))
    return int(os.environ.get("QUALICLIP_PROCESS", "0")) + 1, processes


def main(argv: Sequence[str]) -> int:
    """Scores files; see `--help`. Returns an exit status."""
    args = parse(argv)
    shards = any(path.lower().endswith(SHARDS) for path in args.paths)
    if args.dry_run:
        return _estimate(args, shards)
    if shards:
        return _score_shards(args)
    for name, usual in (("format", "parquet"), ("engine", "local"), ("address", None)):
        if getattr(args, name) != usual:
            raise UserError(f"--{name} is for shards (.tar, .parquet)")

    from qualiclip_jax.inference import scoring  # slow to import: not before --help
    from qualiclip_jax.inference.selection import Selection

    outcome = scoring.score_arguments(
        args.paths,
        args.checkpoint,
        output=None if args.output is None else Path(args.output),
        report=args.report,
        attributes=args.attributes,
        part=args.part,
        sort=args.sort,
        null=args.null,
        max_side=args.max_side,
        explain=args.explain,
        bursts=(args.burst_gap or 3.0) if args.bursts else None,
        maps=args.maps,
        selection=Selection(args.worst, args.best, args.below),
        copy_to=args.copy_to,
        link_to=args.link_to,
        rate=args.xmp,
        keep_ratings=args.keep_ratings,
    )
    if outcome.rows is None:
        print("this part is done; the last of the others writes the output", file=sys.stderr)
    else:
        wrote = f"wrote {printable(str(args.output))}: " if args.output and outcome.rows else ""
        print(f"{wrote}{scoring.summary(outcome)}; {HINT}", file=sys.stderr)
    if outcome.failed == outcome.undone == 0:
        return cli.DONE
    return cli.IN_PART if outcome.scored or outcome.rows is None else cli.FAILED


def _estimate(args: argparse.Namespace, shards: bool) -> int:
    from qualiclip_jax.inference import arguments, estimate, scoring, urls

    if shards:
        _check_shards(args)
        names = [shard for path in args.paths for shard in urls.expand(path)]
    else:
        names, problems = arguments.collect(args.paths, args.null)
        for problem in problems:
            print(printable(str(problem)), file=sys.stderr)
    if not (names := names[args.part[0] - 1 :: args.part[1]]):
        raise UserError("there are no images to sample")
    model = scoring.load(args.checkpoint)
    found = estimate.of_shards(model, names) if shards else estimate.of_files(model, names, args.max_side)
    print(found.text(args.price))
    return cli.DONE if found.failed < found.sampled else cli.FAILED


def _check_shards(args: argparse.Namespace) -> None:
    """Raises UserError where there are photos among shards, or options that are not for them."""
    if others := [path for path in args.paths if not path.lower().endswith(SHARDS)]:
        raise UserError(f"{others[0]} is no shard, and others are: score them one after the other")
    photographers = ("report", "sort", "max_side", "explain", "maps", "worst", "best", "below", "copy_to", "link_to")
    for name in (*photographers, "bursts", "xmp", "null"):
        if getattr(args, name) not in (None, False):
            raise UserError(f"--{name.replace('_', '-')} is not for shards")


def _score_shards(args: argparse.Namespace) -> int:
    from qualiclip_jax.inference import scoring, shards

    _check_shards(args)
    if args.output is None:
        raise UserError("shards need an --output: a folder, where each gets a table of its own")
    engine: shards.Engine = shards.score_to_tables
    if args.engine == "ray":
        import jax

        from qualiclip_jax.inference import ray

        jax.config.update("jax_platforms", "cpu")  # the accelerators are for the actors
        engine = functools.partial(ray.score_to_tables, checkpoint=args.checkpoint or "tiny", address=args.address)
    elif args.address is not None:
        raise UserError("--address goes with --engine ray")
    model = scoring.load(args.checkpoint)
    outcome = shards.score_shards(
        model,
        args.paths,
        args.output,
        attributes=args.attributes,
        part=args.part,
        suffix=f".{args.format}",
        engine=engine,
    )
    wrote = f"wrote {printable(args.output)}: " if outcome.scored or outcome.failed else ""
    print(f"{wrote}{shards.summary(outcome)}; {HINT}", file=sys.stderr)
    if not outcome.failed and not outcome.broken:
        return cli.DONE
    return cli.IN_PART if outcome.scored or outcome.earlier else cli.FAILED


if __name__ == "__main__":
    sys.exit(cli.run(main))
