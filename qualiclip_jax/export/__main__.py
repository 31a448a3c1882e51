"""The model elsewhere: python -m qualiclip_jax.export MODEL --format onnx --out DIR"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qualiclip_jax import cli
from qualiclip_jax.errors import UserError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog=cli.program("export"),
        description="Writes a model for programs without Python or this package: images [N, H, W, 3] to scores.",
    )
    parser.add_argument("model", metavar="MODEL", help="a name (`qualiclip models` lists them) or a path")
    parser.add_argument("--format", choices=("onnx", "stablehlo"), default="onnx", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="DIR", help="must not exist yet")
    parser.add_argument(
        "--input",
        choices=("uint8", "float32"),
        default="uint8",
        help="type of the pixels: uint8 from 0 to 255, float32 from 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--int8",
        metavar="SOURCE",
        help="writes a second file of ONNX with 8 bits, calibrated on photos: folder:PATH, tfds:NAME or sample",
    )
    parser.add_argument(
        "--platforms",
        type=lambda text: tuple(text.split(",")),
        metavar="NAME,...",
        help="where StableHLO is to run (default: cpu,cuda,tpu)",
    )
    parser.add_argument("--check", type=Path, metavar="PATH", help="only tells whether these files are of MODEL")
    args = parser.parse_args(argv)
    if (args.out is None) == (args.check is None):
        parser.error("one of --out DIR and --check PATH is needed")
    return args


def main(argv: Sequence[str]) -> None:
    """Exports a model, or checks what was exported; see `--help`."""
    args = parse(argv)
    if args.format != "onnx" and args.int8:
        raise UserError("--int8 is for --format onnx")
    if args.format != "stablehlo" and args.platforms:
        raise UserError("--platforms is for --format stablehlo")

    from qualiclip_jax.export import folder

    if args.check is not None:
        print(f"{args.check}: of {args.model}, fingerprint {folder.check(args.check, args.model)}")
        return
    options = {"platforms": args.platforms} if args.platforms else {}
    request = folder.Request(args.model, args.format, args.input, args.int8, **options)
    model = folder.write(request, args.out)
    print(f"{args.out}: {args.model}, fingerprint {model.fingerprint}; {args.out / 'README.md'} shows how to use it")


if __name__ == "__main__":
    sys.exit(cli.run(main))
