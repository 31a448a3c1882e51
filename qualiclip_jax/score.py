"""Score image files: python -m qualiclip_jax.score [--checkpoint MODEL] PATH... [--output FILE]"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from qualiclip_jax import cli
from qualiclip_jax.errors import printable

HINT = "scores go from 0 to 1, higher is better"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog=cli.program("score"),
        description=f"Scores the quality of image files without a reference: {HINT}.",
        epilog="Exit status: 0 all files scored, 2 some not, 1 none.",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="image, folder (with all below), pattern, or - for a list")
    add(
        "--checkpoint",
        metavar="MODEL",
        help="a name (`qualiclip models` lists them), path or hub repository (default: tiny)",
    )
    add("--output", type=Path, metavar="FILE", help="a .csv, .jsonl or .parquet; repeat to go on")
    add("--attributes", action="store_true", help="also a score for sharpness, noise, resolution ...")
    add("--report", type=Path, metavar="FILE", help="also a page of thumbnails sorted by score, .html")
    add(
        "--sort",
        choices=("score", "path", "none"),
        help="order of the table: score (best first, the default on a terminal), path, or none (as given)",
    )
    add("-0", "--null", action="store_true", help="the list on standard input is separated by NUL (find -print0)")
    add("--part", type=_part, default=_own_part(), metavar="K/N", help="be one of N processes with the same list")
    return parser.parse_args(argv)


def _part(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with 1 <= K <= N, e.g. 2/4")
    return int(part), int(parts)


def _own_part() -> tuple[int, int]:
    """Which of how many processes this is, if `launch/local.py` started it."""
    processes = int(os.environ.get("QUALICLIP_PROCESSES", "1"))
    return int(os.environ.get("QUALICLIP_PROCESS", "0")) + 1, processes


def main(argv: Sequence[str]) -> int:
    """Scores files; see `--help`. Returns an exit status."""
    args = parse(argv)

    from qualiclip_jax.inference import scoring  # slow to import: not before --help

    outcome = scoring.score_arguments(
        args.paths,
        args.checkpoint,
        output=args.output,
        report=args.report,
        attributes=args.attributes,
        part=args.part,
        sort=args.sort,
        null=args.null,
    )
    if outcome.rows is None:
        print("this part is done; the last of the others writes the output", file=sys.stderr)
    else:
        wrote = f"wrote {printable(str(args.output))}: " if args.output and outcome.rows else ""
        print(f"{wrote}{scoring.summary(outcome)}; {HINT}", file=sys.stderr)
    if outcome.failed == 0:
        return cli.DONE
    return cli.IN_PART if outcome.scored or outcome.rows is None else cli.FAILED


if __name__ == "__main__":
    sys.exit(cli.run(main))
