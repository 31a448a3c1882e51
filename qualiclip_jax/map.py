"""Draw where a photo is good and where it is not: qualiclip map PHOTO [--out FILE]"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qualiclip_jax import cli, storage
from qualiclip_jax.errors import UserError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog=cli.program("map"),
        description="Draws a photo under its quality map: orange where it is worse than its score, blue where better.",
    )
    parser.add_argument("photo", help="image file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="what to write (default: PHOTO_map.png)")
    parser.add_argument("--checkpoint", default="tiny", metavar="MODEL", help="as for score (default: tiny)")
    parser.add_argument(
        "--attribute", metavar="NAME", help="the map of one attribute (sharp_image ...), not of the score"
    )
    parser.add_argument(
        "--side", type=int, default=1600, metavar="PX", help="longer side of the picture (default: 1600)"
    )
    args = parser.parse_args(argv)
    if args.out is None:
        args.out = Path(f"{Path(args.photo).stem}_{args.attribute or 'map'}.png")
    if args.side < 1:
        parser.error(f"--side {args.side}: 1 or more")
    return args


def main(argv: Sequence[str]) -> int:
    """Draws a map; see `--help`. Returns an exit status."""
    args = parse(argv)
    storage.check_new_picture(args.out)

    from qualiclip_jax.explain import drawing
    from qualiclip_jax.images import ImageError, read_image, write_image
    from qualiclip_jax.inference.output import attribute_columns
    from qualiclip_jax.inference.predictor import QualiCLIP

    try:
        photo = read_image(args.photo)
    except ImageError as error:
        raise UserError(str(error)) from None
    model = QualiCLIP.load(args.checkpoint)
    names = attribute_columns(model.prompts)
    if args.attribute is not None and args.attribute not in names:
        raise UserError(f"--attribute {args.attribute}: this model has {', '.join(names)}")
    found = model.quality_map(photo)
    chosen = None if args.attribute is None else names.index(args.attribute)
    title = "score" if chosen is None else names[chosen].replace("_", " ")
    write_image(args.out, drawing.draw(photo, found, chosen, title, args.side))
    cells = found.scores if chosen is None else found.attribute_scores[..., chosen]
    print(f"wrote {args.out}: {title} {cells.mean():.4f}, {cells.shape[0]} x {cells.shape[1]} cells of {found.cell} px "
          f"from {cells.min():.4f} to {cells.max():.4f}")  # fmt: skip
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))
