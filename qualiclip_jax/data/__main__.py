"""qualiclip data: list the published image sets, prepare them for evaluation and training, write sample photos."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from qualiclip_jax import cli

_SHOWN = 5  # of a list of files, how many are named


def main(argv: Sequence[str]) -> int | None:
    """Runs `list`, `prepare` or `sample`; returns 0, or 2 if a set was prepared without some of its images."""
    parser = argparse.ArgumentParser(prog=cli.program("data"), description=__doc__.split(": ")[1])
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|prepare|sample")

    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--data-dir", type=Path, help="prepared sets lie here (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)"
    )
    commands.add_parser("list", parents=[where], help="the sets, how large they are, which are prepared")
    prepare = commands.add_parser("prepare", parents=[where], help="turn a downloaded archive into a prepared set")
    prepare.add_argument("name", help="a name that `list` shows, e.g. koniq10k")
    prepare.add_argument("--manual-dir", type=Path, help="folder with the authors' archive, extracted or not")
    prepare.add_argument(
        "--allow-missing", action="store_true", help="go on without missing or unreadable images, and say how many"
    )
    sample = commands.add_parser("sample", help="write two photos and degraded versions of them, to try scoring with")
    sample.add_argument("folder", type=Path, help="where to; files that exist are kept")
    arguments = parser.parse_args(argv)
    return {"list": _list, "prepare": _prepare, "sample": _sample}[arguments.command](arguments)


def _list(arguments: argparse.Namespace) -> None:
    from qualiclip_jax.data.builders import IMAGE_SETS
    from qualiclip_jax.data.prepare import status

    lines = [("name", "images", "ratings", "prepared", "tried on", "licence or terms")]
    for image_set in IMAGE_SETS.values():
        done = status(image_set, arguments.data_dir)
        state = "no" if done is None else "yes" if not done.missing else f"{done.images} of {image_set.images}"
        tried = "real files" if image_set.tried_on_real_files else "miniatures"
        lines.append((image_set.name, f"{image_set.images:,}", image_set.rated_text(), state, tried, image_set.terms))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    for line in lines:
        cells = [
            cell.rjust(width) if k == 1 else cell.ljust(width) for k, (cell, width) in enumerate(zip(line, widths))
        ]
        print("  ".join([*cells, line[-1]]))


def _prepare(arguments: argparse.Namespace) -> int:
    from qualiclip_jax.data.prepare import find, prepare

    image_set = find(arguments.name)
    done = prepare(image_set, arguments.manual_dir, arguments.data_dir, arguments.allow_missing)
    count = f"{done.images} images" if not done.missing else f"{done.images} of {image_set.images} images"
    if done.was_there:
        print(f"{image_set.name} is prepared already, {count}: {done.folder} (remove this folder to prepare it again)")
        return cli.DONE
    left_out = Counter(done.lacking)
    for line, times in list(left_out.items())[:_SHOWN]:
        print(f"left out: {line}{f', {times} times' if times > 1 else ''}", file=sys.stderr)
    if len(left_out) > _SHOWN:
        print(f"left out: {len(left_out) - _SHOWN} more", file=sys.stderr)
    print(f"{image_set.name} is prepared, {count}: {done.folder}")
    if done.label_files:
        print(f"labels from {', '.join(done.label_files[:_SHOWN])}{', ...' if len(done.label_files) > _SHOWN else ''}")
    if image_set.note:
        print(image_set.note)
    return cli.IN_PART if done.missing else cli.DONE


def _sample(arguments: argparse.Namespace) -> None:
    from qualiclip_jax.data.sample import write_photos

    files = write_photos(arguments.folder)
    print(f"{len(files)} photos and degraded versions are in {arguments.folder}")


if __name__ == "__main__":
    sys.exit(cli.run(main))
