"""Fit a model to ratings: python -m qualiclip_jax.fit --checkpoint MODEL --ratings csv:FILE[@FOLDER] --out DIR"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qualiclip_jax import cli

METHODS = {
    "auto": "scale,head: the head where that is clearly better in cross-validation",
    "scale": "a rising curve from score to rating; the order of images stays (20 ratings or more)",
    "head": "ridge regression on the frozen features, close to the score while ratings are few (20 or more)",
    "prompts": "QualiCLIP+, learned prompts; needs a model with a text encoder, and a GPU (200 or more)",
    "adapter": "low-rank changes of the image encoder, merged at the end; a GPU (200 or more)",
    "A,B,...": "the simplest of these that is about as good as the best, e.g. scale,head,adapter: with prompts or\n"
    "            adapter each is trained once, and judged by a fifth of the images that is put aside (300 or more)",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    methods = "\n".join(f"  {name:9s} {what}" for name, what in METHODS.items())
    parser = argparse.ArgumentParser(
        prog=cli.program("fit"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Fits a model to ratings of your own, so that it rates images on their scale.\n"
        "The new model is used as any other. `qualiclip score` then has the columns mos, mos_low and mos_high, the\n"
        "rating and an interval for it, beside the score, which stays.",
        epilog=f"methods:\n{methods}\n\n"
        "The CSV file has the columns image and mos (or dmos, lower is better). It may have\n"
        "  reference (or scene, group)  images that share it are never on both sides of a cross-validation\n"
        "  rater                        each row is one rating of one person\n"
        "  split                        images of the part test are only tested on\n"
        "docs/ratings.md says how many ratings pay.",
    )
    add = parser.add_argument
    add("--checkpoint", default="tiny", metavar="MODEL", help="a name, path or hub repository (default: tiny)")
    add("--ratings", required=True, metavar="SET", help="csv:FILE[@FOLDER of images], or the name of a prepared set")
    add("--out", required=True, type=Path, metavar="DIR", help="folder of the new model; a killed run goes on there")
    add("--method", default="auto", metavar="METHOD", help="see below (default: auto)")
    add("--data-dir", type=Path, metavar="DIR", help="folder of the prepared sets")
    add("--allow-missing", action="store_true", help="leave out rated images that are not there")
    add("--seed", type=int, default=0, help="of the folds of the cross-validation (0)")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Fits; see `--help`. Returns an exit status."""
    args = parse(argv)
    from qualiclip_jax.data import rated
    from qualiclip_jax.fitting import run

    run.rungs_of(args.method)  # tells of a wrong one before anything is read
    ratings = rated.load(args.ratings, args.data_dir, args.allow_missing)
    for note in ratings.notes:
        print(f"{ratings.name}: {note}", file=sys.stderr)
    try:
        fitted = run.fit(args.checkpoint, ratings, args.out, method=args.method, seed=args.seed)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the features so far are kept, the same command goes on from there") from None
    print(f"{run.text(fitted, ratings)}\n\nwrote {args.out}; rate images with: qualiclip score --checkpoint {args.out}")
    return cli.IN_PART if ratings.missing else cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))
