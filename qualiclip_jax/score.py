"""Score image files: python -m qualiclip_jax.score [--checkpoint DIR] PATH... [--output FILE]"""

import argparse
import glob
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qualiclip_jax import cli
from qualiclip_jax.errors import UserError

if TYPE_CHECKING:
    from qualiclip_jax.inference.files import Row
    from qualiclip_jax.inference.predictor import QualiCLIP
    from qualiclip_jax.inference.table import Table

HINT = "scores go from 0 to 1, higher is better"
ERRORS_SHOWN = 20


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="qualiclip score",
        description=f"Scores the quality of image files without a reference: {HINT}.",
        epilog="Exit status: 0 all files scored, 2 some not, 1 none.",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="image, folder (with all below), pattern, or - for a list"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="MODEL",
        help="a name (`qualiclip models` lists them), path or hub repository (default: tiny)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="a .csv, .jsonl or .parquet; repeat to go on")
    parser.add_argument("--attributes", action="store_true", help="also a score for sharpness, noise, resolution ...")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also a page of thumbnails sorted by score, .html")
    parser.add_argument(
        "--part", type=_part, default=_own_part(), metavar="K/N", help="be one of N processes with the same list"
    )
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
    paths = collect(args.paths)
    if args.output is None and args.part != (1, 1):
        raise UserError("several processes need an --output, where their parts are put together")

    from qualiclip_jax.inference import report
    from qualiclip_jax.inference.predictor import QualiCLIP
    from qualiclip_jax.inference.table import Table, attribute_columns

    if args.report is not None:
        report.check(args.report)
    if args.checkpoint is None:
        print('no --checkpoint given: scoring with "tiny", the small model of the package', file=sys.stderr)
    model = QualiCLIP.load(args.checkpoint or "tiny")
    columns = attribute_columns(model.prompts)
    if args.output is None:
        order = {path: i for i, path in enumerate(paths)}
        rows = sorted(score(model, paths), key=lambda row: order[row.path])
        show(rows, columns if args.attributes else [])
    else:
        table = Table(args.output, model.fingerprint, columns, args.attributes, *args.part)
        rows = score_to_table(model, paths, table)
    if args.report is not None and rows is not None:
        name = args.checkpoint or "tiny"
        about = f"Model {name} ({model.fingerprint}), temperature {model.temperature:g}"
        report.write_report(args.report, rows, columns, about)
    return summary(rows, args.output)


def collect(arguments: Sequence[str]) -> list[str]:
    """The files meant by the arguments, each once, in order.

    Raises:
      UserError: a folder or pattern without an image, or nothing on standard input.
    """
    from qualiclip_jax.images import list_images

    names = [name for argument in arguments for name in (_standard_input() if argument == "-" else [argument])]
    found: dict[str, None] = {}
    for name in names:
        if os.path.isdir(name) or (not os.path.lexists(name) and glob.has_magic(name)):
            found |= dict.fromkeys(map(str, list_images(name)))
        else:
            found[name] = None  # a file; if it does not exist, that is its error
    if not found:
        raise UserError("no file names on standard input")
    return list(found)


def _standard_input() -> list[str]:
    return [line for line in sys.stdin.read().splitlines() if line.strip()]


def score(model: "QualiCLIP", paths: Sequence[str], known: Mapping[str, "Row"] | None = None) -> Iterator["Row"]:
    """Scores files with a progress bar, except those `known` from an earlier run."""
    from qualiclip_jax.inference.files import score_files
    from qualiclip_jax.inference.table import printable
    from qualiclip_jax.progress import Progress

    failed = 0
    with Progress(len(paths), "scoring", "image", done=len(known or ())) as progress:
        for row in score_files(model, paths, known):
            if row.error is not None:
                failed += 1
                if failed <= ERRORS_SHOWN:
                    progress.write(printable(f"{row.path}: {row.error}"))
                elif failed == ERRORS_SHOWN + 1:
                    progress.write("(further errors are only counted here; the table has them all)")
            progress.advance(1, f"{failed} failed" if failed else "")
            yield row


def score_to_table(model: "QualiCLIP", paths: Sequence[str], table: "Table") -> list["Row"] | None:
    """Scores this process's share of the files, except what the table knows already.

    Returns:
      All rows; None while other processes are still at work.
    """
    table.check()
    share = paths[table.part - 1 :: table.parts]
    mine = set(share)
    known = {path: row for path, row in table.known().items() if path in mine}
    if known:
        print(f"{len(known)} of {len(share)} were scored by an earlier run", file=sys.stderr)
    table.start(list(known.values()))
    try:
        table.append(score(model, share, known))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None
    return table.finish(paths)


def show(rows: Sequence["Row"], columns: Sequence[str]) -> None:
    """Prints a table: for people on a terminal, else CSV."""
    from qualiclip_jax.inference.table import printable, to_bytes

    names = ["score", *columns, "path"]
    values = [[row.score, *(row.attributes or [None] * len(columns))][: 1 + len(columns)] for row in rows]
    if not sys.stdout.isatty():
        records = [dict(zip(names, [*v, row.path])) | {"error": row.error} for v, row in zip(values, rows)]
        sys.stdout.buffer.write(to_bytes(records, ".csv", [*names, "error"]))
        sys.stdout.buffer.flush()
        return
    widths = [max(6, len(name)) for name in names[:-1]]
    print("  ".join([*(name.rjust(width) for name, width in zip(names, widths)), "path"]))
    for row, scores in zip(rows, values):
        cells = ["failed" if value is None else f"{value:.4f}" for value in scores]
        print("  ".join([*(cell.rjust(width) for cell, width in zip(cells, widths)), printable(row.path)]))


def summary(rows: Sequence["Row"] | None, output: Path | None) -> int:
    """Prints how many files were scored. Returns the exit status."""
    if rows is None:
        print("this part is done; the last of the others writes the output", file=sys.stderr)
        return cli.DONE
    failed = sum(row.error is not None for row in rows)
    written = "" if output is None else f"wrote {output}: "
    print(f"{written}{len(rows) - failed} scored, {failed} failed; {HINT}", file=sys.stderr)
    return cli.DONE if not failed else cli.FAILED if failed == len(rows) else cli.IN_PART


if __name__ == "__main__":
    sys.exit(cli.run(main))
