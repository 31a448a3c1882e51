"""Scoring the files that a user names: progress, errors, a table, a report."""

import contextlib
import dataclasses
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qualiclip_jax import tabular
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError
from qualiclip_jax.inference import formats, page
from qualiclip_jax.inference.arguments import collect
from qualiclip_jax.inference.files import Row, score_files
from qualiclip_jax.inference.output import RATING, Merged, Table, attribute_columns, ordered
from qualiclip_jax.progress import Progress, plural

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP

_ERRORS_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out of a run.

    Attributes:
      rows: one for each file, in the order of the list; None while other processes are still at work on theirs.
      problems: folders that could not be read, and folders and patterns without an image.
      kept: how many rows of other files the output holds, from earlier runs.
    """

    rows: list[Row] | None
    problems: list[ImageError]
    kept: int = 0

    @property
    def scored(self) -> int:
        """How many files have a score."""
        return sum(row.error is None for row in self.rows or ())

    @property
    def failed(self) -> int:
        """How many files have none, and how many folders and patterns gave no files."""
        return sum(row.error is not None for row in self.rows or ()) + len(self.problems)


def score_arguments(
    arguments: Sequence[str],
    checkpoint: str | None = None,
    *,
    output: Path | None = None,
    report: Path | None = None,
    attributes: bool = False,
    part: tuple[int, int] = (1, 1),
    sort: str | None = None,
    null: bool = False,
) -> Outcome:
    """Scores files and writes what was asked for; without `output`, prints the table.

    Args:
      arguments: files, folders, patterns, or `-`; see `arguments.collect`.
      checkpoint: a model; the small one of the package if None.
      output: a table to write, or to go on with; see `output.Table`.
      report: a page to write.
      attributes: whether the table has a column for each antonym pair.
      part: (K, N): be number K of N processes that share the list.
      sort: order of the table, see `output.ordered`; by default "score" on a terminal, else "none".
      null: whether a list on standard input is separated by NUL characters.

    Raises:
      UserError: what cannot be done, before any work: no files, an output that must not be written, no such model.
    """
    if output is None and part != (1, 1):
        raise UserError("several processes need an --output, where their parts are put together")
    with contextlib.ExitStack() as held:
        table = None if output is None else held.enter_context(Table(output, *part))
        if report is not None:
            page.check(report)
            if part == (1, 1):
                held.enter_context(page.reserve(report))
        paths, problems = collect(arguments, null)
        for error in problems[:_ERRORS_SHOWN]:
            print(formats.printable(str(error)), file=sys.stderr)
        if not paths:
            return Outcome([], problems)
        model = _load(checkpoint)
        columns = attribute_columns(model.prompts)
        if table is None:
            outcome = Outcome(_score_and_print(model, paths, columns if attributes else [], sort), problems)
        else:
            known = table.begin(model.fingerprint, columns, paths, attributes, model.rating is not None)
            merged = _score_to_table(model, paths, table, known, sort or "none")
            outcome = Outcome(merged.rows, problems, merged.kept) if merged else Outcome(None, problems)
        if report is not None and outcome.rows is not None:
            if part != (1, 1):  # of processes that share a list, the last one
                held.enter_context(page.reserve(report))
            about = f"Model {checkpoint or 'tiny'} ({model.fingerprint}), temperature {model.temperature:g}"
            page.write_report(report, outcome.rows, columns, about, problems)
    return outcome


def _load(checkpoint: str | None) -> "QualiCLIP":
    from qualiclip_jax.inference.predictor import QualiCLIP

    if checkpoint is None:
        print('no --checkpoint given: scoring with "tiny", the model of the package', file=sys.stderr)
    return QualiCLIP.load(checkpoint or "tiny")


def _score_and_print(model: "QualiCLIP", paths: Sequence[str], columns: Sequence[str], sort: str | None) -> list[Row]:
    """Scores files and prints the table; when interrupted, of what was scored by then."""
    place = {path: i for i, path in enumerate(paths)}
    rows: list[Row] = []
    try:
        rows.extend(_score(model, paths))
    finally:
        rows.sort(key=lambda row: place[row.path])
        if rows:
            shown = ordered(rows, sort or ("score" if sys.stdout.isatty() else "none"))
            show(shown, columns, model.rating is not None)
    return rows


def _score_to_table(
    model: "QualiCLIP", paths: Sequence[str], table: Table, known: Mapping[str, Row], sort: str
) -> Merged | None:
    """Scores this process's share of the files, except those that are known; None while others are at work."""
    share = paths[table.part - 1 :: table.parts]
    if known:
        print(f"an earlier run scored {len(known)} of {len(share)} {plural(len(share), 'image')}", file=sys.stderr)
    try:
        with contextlib.closing(_score(model, share, known)) as rows:  # its progress ends before an error is told
            table.append(rows)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None
    return table.finish(sort)


def _score(
    model: "QualiCLIP", paths: Sequence[str], known: Mapping[str, Row] | None = None
) -> Generator[Row, None, None]:
    """Scores files with a progress bar, except those `known` from an earlier run."""
    failed = 0
    status = lambda: "compiling ..." if model.compiling else ""
    with Progress(len(paths), "scoring", "image", done=len(known or ()), status=status) as progress:
        for row in score_files(model, paths, known):
            if row.error is not None:
                failed += 1
                if failed <= _ERRORS_SHOWN:
                    progress.write(formats.printable(f"{row.path}: {row.error}"))
                elif failed == _ERRORS_SHOWN + 1:
                    progress.write("(further errors are only counted here; the table has them all)")
            progress.advance(1, f"{failed} failed" if failed else "")
            yield row


def show(rows: Sequence[Row], columns: Sequence[str], rating: bool = False) -> None:
    """Prints a table, with the `rating` if the model rates: for people on a terminal, else CSV."""
    rated = RATING if rating else ()
    names = ["score", *rated, *columns, "path"]
    values = [
        [row.score, *(row.rating or [None] * len(rated)), *(row.attributes or [None] * len(columns))[: len(columns)]]
        for row in rows
    ]
    if not sys.stdout.isatty():
        lines = ([*cells, row.path, row.error] for cells, row in zip(values, rows))
        sys.stdout.flush()
        sys.stdout.buffer.write(tabular.to_csv([*names, "error"], lines))
        sys.stdout.buffer.flush()
        return
    widths = [max(6, len(name)) for name in names[:-1]]
    print("  ".join([*(name.rjust(width) for name, width in zip(names, widths)), "path"]))
    for row, scores in zip(rows, values):
        cells = ["failed" if value is None else f"{value:.4f}" for value in scores]
        line = "  ".join([*(cell.rjust(width) for cell, width in zip(cells, widths)), formats.printable(row.path)])
        print(line if row.error is None else f"{line}: {formats.printable(row.error)}")


def summary(outcome: Outcome) -> str:
    """How many files were scored, in a few words."""
    problems = len(outcome.problems)
    words = f"{outcome.scored} scored, {outcome.failed - problems} failed"
    if problems:
        words += f", {problems} {'folder or pattern' if problems == 1 else 'folders or patterns'} gave no images"
    return words + (f"; {outcome.kept} {plural(outcome.kept, 'row')} of other files kept" if outcome.kept else "")
