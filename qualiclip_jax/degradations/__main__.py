"""qualiclip degradations: look at the 24 degradations of a photograph, or at a camera's faults, or write one type."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qualiclip_jax import cli, storage
from qualiclip_jax.degradations.catalog import LEVELS, TYPES
from qualiclip_jax.errors import UserError


def main(argv: Sequence[str]) -> int | None:
    """Writes a contact sheet, of the types or with `--camera` of a camera's faults, or with `--type` one photograph."""
    parser = argparse.ArgumentParser(
        prog=cli.program("degradations"),
        description=__doc__.split(": ")[1],
        epilog=f"types: {', '.join(TYPES)}",
    )
    parser.add_argument("photo", help="image file")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="what to write (default: PHOTO_degradations.png, PHOTO_camera.png, PHOTO_TYPE_LEVEL.png)",
    )
    parser.add_argument("--type", metavar="NAME", help="write the photo degraded by this type, at its own size")
    parser.add_argument("--camera", action="store_true", help="a sheet of the faults of a camera instead")
    parser.add_argument("--level", type=int, metavar="K", help=f"with --type: 1 (mild) to {LEVELS} (default: 3)")
    parser.add_argument(
        "--size", type=int, default=224, metavar="PX", help="of the square that the sheet shows degraded (default: 224)"
    )
    parser.add_argument("--tile", type=int, default=160, metavar="PX", help="of the sheet, shown size (default: 160)")
    parser.add_argument("--seed", type=int, default=0, help="of whatever is random (default: 0)")
    arguments = parser.parse_args(argv)
    _check(arguments)

    from qualiclip_jax.degradations import gallery
    from qualiclip_jax.images import read_image, write_image

    photo = read_image(arguments.photo)
    if arguments.type is None:
        sheet = gallery.camera_sheet if arguments.camera else gallery.contact_sheet
        image = sheet(photo, arguments.size, arguments.tile, arguments.seed)
    else:
        image = gallery.degrade_photo(photo, arguments.type, arguments.level, arguments.seed)
    try:
        write_image(arguments.out, image)
    except OSError as error:
        raise UserError(f"{arguments.out}: cannot be written ({error.strerror or error})") from None
    print(f"wrote {arguments.out} ({image.shape[1]} x {image.shape[0]} px)")
    return cli.DONE


def _check(arguments: argparse.Namespace) -> None:
    """Fills in what was left out, and raises UserError before any work is done in vain."""
    if arguments.type is not None and arguments.type not in TYPES:
        raise UserError(f"--type {arguments.type}: no such degradation; there are {', '.join(TYPES)}")
    if arguments.camera and arguments.type is not None:
        raise UserError("--camera is a sheet, --type one photo: keep one")
    if arguments.level is not None and arguments.type is None:
        raise UserError("--level goes with --type; the sheet shows all levels")
    if arguments.level is not None and not 1 <= arguments.level <= LEVELS:
        raise UserError(f"--level {arguments.level}: levels go from 1 to {LEVELS}")
    arguments.level = arguments.level or 3
    if arguments.out is None:
        sheet = "camera" if arguments.camera else "degradations"
        kind = sheet if arguments.type is None else f"{arguments.type}_{arguments.level}"
        arguments.out = Path(f"{Path(arguments.photo).stem}_{kind}.png")
    storage.check_new_picture(arguments.out)


if __name__ == "__main__":
    sys.exit(cli.run(main))
