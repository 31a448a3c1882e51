"""Choose images by their scores: python -m qualiclip_jax.select TABLE... --top 30% --out FILE"""

import argparse
import sys
from collections.abc import Sequence

from qualiclip_jax import cli
from qualiclip_jax.errors import UserError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog=cli.program("select"),
        description="Chooses images by the tables that `qualiclip score` wrote, and shows how the scores are spread.\n"
        "What is chosen becomes a list, or new shards.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  qualiclip select scores.csv --above 0.5 --out good.txt\n"
        "  qualiclip select 'scores/*.parquet' --top 30% --out good.csv\n"
        "  qualiclip select 'scores/*.parquet' --top 30% --shards 'in/{0000..0999}.tar' --out good/",
    )
    add = parser.add_argument
    add("tables", nargs="+", metavar="TABLE", help="tables of scores, paths or URLs, or quoted patterns of them")
    add("--top", type=_count, metavar="N", help="the N best, or a share of all: 30%%")
    add("--above", type=float, metavar="X", help="those of X or more (with --top: both must hold)")
    add("--by", default="score", metavar="COLUMN", help="the column to judge by: score (default), mos, sharp_image ...")
    add("--per", metavar="COLUMN", help="choose within each group that this column names")
    add("--shards", action="append", default=[], metavar="PATTERN", help="the shards that the tables are of")
    add("--out", metavar="PATH", help="a list, .txt .csv or .jsonl; with --shards, a folder for new shards")
    return parser.parse_args(argv)


def _count(text: str) -> tuple[float, bool]:
    """A number and whether it is a percentage."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = -1.0
    share = text.endswith("%")
    if not 0 < number < float("inf") or (share and number > 100) or (not share and number != int(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number of 1 or more nor a share such as 30%")
    return number, share


def main(argv: Sequence[str]) -> int:
    """Selects; see `--help`. Returns an exit status."""
    args = parse(argv)
    from qualiclip_jax.inference import curation

    if args.out is not None and args.top is None and args.above is None:
        raise UserError("say which images to choose: --top or --above")
    if args.shards and args.out is None:
        raise UserError("--shards are copied in part to a folder: name it with --out")
    tables = curation.find(args.tables)
    scores = curation.Scores.read(tables, args.by, args.per)
    chosen = scores.choose(args.top, args.above)
    print(scores.histogram(chosen))
    if args.shards:
        curation.write_shards(args.shards, tables, chosen, args.out)
    elif args.out is not None:
        curation.write_list(tables, chosen, args.by, args.out)
    words = f"{sum(int(mask.sum()) for mask in chosen)} of {scores.count} chosen"
    print(f"wrote {args.out}: {words}" if args.out is not None else words, file=sys.stderr)
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))
