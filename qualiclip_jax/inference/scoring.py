"""Scoring the files that a user names: progress, errors, a table, a report."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualiclip_jax import tabular
from qualiclip_jax.errors import UserError
from qualiclip_jax.explain import causes
from qualiclip_jax.images import ImageError
from qualiclip_jax.inference import formats, page, urls, xmp
from qualiclip_jax.inference.arguments import collect
from qualiclip_jax.inference.files import Row, score_files, shrunk
from qualiclip_jax.inference.output import FOUND, RATING, Merged, Table, attribute_columns, ordered
from qualiclip_jax.inference.selection import Selection, check_folder, gather
from qualiclip_jax.progress import Progress, plural

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP

_ERRORS_SHOWN = 20
BURST_GAP = 3.0  # seconds


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came out of a run.

    Attributes:
      rows: one for each file, in the order of the list; None while other processes are still at work on theirs.
      problems: folders that could not be read, and folders and patterns without an image.
      kept: how many rows of other files the output holds, from earlier runs.
      undone: how many copies and ratings could not be written.
    """

    rows: list[Row] | None
    problems: list[ImageError]
    kept: int = 0
    undone: int = 0

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
    max_side: int | None = None,
    explain: bool = False,
    bursts: float | None = None,
    maps: bool = False,
    selection: Selection = Selection(),  # noqa: B008  (frozen)
    copy_to: Path | None = None,
    link_to: Path | None = None,
    rate: bool = False,
    keep_ratings: bool = False,
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
      max_side: larger images are shrunk to it before they are scored; see `files.score_files`.
      explain: whether the faults that stand out are told in words; the table then has the attributes, too.
      bursts: seconds, at most, between two photos of a burst; None to look for none.
      maps: whether the report has quality maps.
      selection: the photos that are printed, reported, copied and linked; the table and the ratings have all.
      copy_to, link_to: a folder for copies, or for hard links, of the selected photos.
      rate: whether ratings of 1 to 5 stars are written into sidecars of all photos, see `xmp`.
      keep_ratings: whether those that are there stay.

    Raises:
      UserError: what cannot be done, before any work: no files, an output that must not be written, no such model.
    """
    if output is None and part != (1, 1):
        raise UserError("several processes need an --output, where their parts are put together")
    if maps and report is None:
        raise UserError("--maps are shown in the --report: name one, or draw one photo with `qualiclip map`")
    for folder, option in ((copy_to, "--copy-to"), (link_to, "--link-to")):
        if folder is not None:
            check_folder(folder, option)
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
        if (report or copy_to or link_to or rate or bursts is not None) and any(map(urls.is_url, paths)):
            raise UserError("--report, --copy-to, --link-to, --xmp and --bursts are for local files, not for URLs")
        model = load(checkpoint)
        columns = attribute_columns(model.prompts)
        if table is None:
            teller = causes.Teller.find(model) if explain else None
            find = functools.partial(_find, model, explain=explain and teller is None, gap=bursts)
            shown = columns if attributes else []
            outcome = Outcome(_score_and_print(model, paths, shown, sort, max_side, find, selection, teller), problems)
        else:
            name = model.fingerprint if max_side is None else f"{model.fingerprint}@{max_side}"
            told = explain or "causes" in table.found
            teller = causes.Teller.find(model) if told else None
            with_all = attributes or explain
            known = table.begin(name, columns, paths, with_all, model.rating is not None, teller is not None)
            gap = bursts if bursts is not None or "burst" not in table.found else BURST_GAP
            find = functools.partial(_find, model, explain=told and teller is None, gap=gap)
            merged = _score_to_table(model, paths, table, known, sort or "none", max_side, find, teller)
            outcome = Outcome(merged.rows, problems, merged.kept) if merged else Outcome(None, problems)
            if selection and outcome.rows:
                show(selection.of(ordered(outcome.rows, sort or "score")), [], model.rating is not None)
        if outcome.rows is None:
            return outcome
        chosen = selection.of(outcome.rows)
        if report is not None:
            if part != (1, 1):  # of processes that share a list, the last one
                held.enter_context(page.reserve(report))
            about = f"Model {checkpoint or 'tiny'} ({model.fingerprint}), temperature {model.temperature:g}"
            about += "" if max_side is None else f", photos shrunk to at most {max_side} px"
            drawn = (lambda image: model.quality_map(shrunk(image, max_side))) if maps else None
            page.write_report(report, chosen, columns, about, problems, drawn)
        undone = 0
        for folder, link in ((copy_to, False), (link_to, True)):
            if folder is not None:
                undone += _gather([row for row in chosen if row.score is not None], folder, link)
        if rate:
            undone += _rate(outcome.rows, keep_ratings)
    return dataclasses.replace(outcome, undone=undone)


def load(checkpoint: str | None) -> "QualiCLIP":
    """The model of that name; without one, that of the package, and says so."""
    from qualiclip_jax.inference.predictor import QualiCLIP

    if checkpoint is None:
        print('no --checkpoint given: scoring with "tiny", the model of the package', file=sys.stderr)
    return QualiCLIP.load(checkpoint or "tiny")


def _find(model: "QualiCLIP", rows: list[Row], *, explain: bool, gap: float | None) -> list[Row]:
    """Fills in what concerns all rows together: causes that are told by comparison, and bursts."""
    if explain:
        told = causes.explain(rows, model.prompts, model.scored)
        if rows and not any(told):
            print(f"--explain compares photos: it needs {causes.FEWEST} or more that have a score", file=sys.stderr)
        rows = [dataclasses.replace(row, causes=text) for row, text in zip(rows, told)]
    if gap is None:
        return rows
    from qualiclip_jax.explain import bursts

    return bursts.ranked(model, rows, gap)


def _gather(rows: Sequence[Row], folder: Path, link: bool) -> int:
    """Copies or links photos; returns how many could not be."""
    done, failed = gather(rows, folder, link)
    for line in failed[:_ERRORS_SHOWN]:
        print(formats.printable(line), file=sys.stderr)
    print(
        f"{done} of {len(rows)} {plural(len(rows), 'photo')} {'linked' if link else 'copied'} to {folder}",
        file=sys.stderr,
    )
    return len(failed)


def _rate(rows: Sequence[Row], keep: bool) -> int:
    """Writes ratings beside the photos; returns how many could not be written."""
    scored = [(row.path, row.score) for row in rows if row.score is not None]
    failed, kept = 0, 0
    for (path, _), rating in zip(scored, xmp.stars([score for _, score in scored])):
        try:
            kept += not xmp.rate(xmp.sidecar(path), rating, keep)
        except UserError as error:
            failed += 1
            if failed <= _ERRORS_SHOWN:
                print(formats.printable(str(error)), file=sys.stderr)
    others = f", {kept} had a rating and kept it" if kept else ""
    print(
        f"{len(scored) - failed - kept} {plural(len(scored) - failed - kept, 'rating')} written{others}",
        file=sys.stderr,
    )
    return failed


def _score_and_print(
    model: "QualiCLIP",
    paths: Sequence[str],
    columns: Sequence[str],
    sort: str | None,
    max_side: int | None,
    find: Callable[[list[Row]], list[Row]],
    selection: Selection,
    teller: causes.Teller | None,
) -> list[Row]:
    """Scores files and prints the table; when interrupted, of what was scored by then."""
    place = {path: i for i, path in enumerate(paths)}
    rows: list[Row] = []
    order = sort or ("score" if selection or sys.stdout.isatty() else "none")
    try:
        rows.extend(_score(model, paths, max_side=max_side, teller=teller))
        rows.sort(key=lambda row: place[row.path])
        rows = find(rows)
    finally:
        if rows:
            shown = ordered(selection.of(sorted(rows, key=lambda row: place[row.path])), order)
            show(shown, columns, model.rating is not None)
    return rows


def _score_to_table(
    model: "QualiCLIP",
    paths: Sequence[str],
    table: Table,
    known: Mapping[str, Row],
    sort: str,
    max_side: int | None,
    find: Callable[[list[Row]], list[Row]],
    teller: causes.Teller | None,
) -> Merged | None:
    """Scores this process's share of the files, except those that are known; None while others are at work."""
    share = paths[table.part - 1 :: table.parts]
    if known:
        print(f"an earlier run scored {len(known)} of {len(share)} {plural(len(share), 'image')}", file=sys.stderr)
    try:
        with contextlib.closing(
            _score(model, share, known, max_side, teller)
        ) as rows:  # its progress ends before an error is told
            table.append(rows)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from here") from None
    return table.finish(sort, find)


def _score(
    model: "QualiCLIP",
    paths: Sequence[str],
    known: Mapping[str, Row] | None = None,
    max_side: int | None = None,
    teller: causes.Teller | None = None,
) -> Generator[Row, None, None]:
    """Scores files with a progress bar, except those `known` from an earlier run."""
    failed, model = 0, model if teller is None else teller.model
    status = lambda: "compiling ..." if model.compiling else ""
    with Progress(len(paths), "scoring", "image", done=len(known or ()), status=status) as progress:
        options: dict[str, Any] = {} if max_side is None else {"max_side": max_side}
        options |= {} if teller is None else {"tell": teller}
        for row in score_files(model, paths, known, **options):
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
    found = [name for name in FOUND if any(getattr(row, name) is not None for row in rows)]
    names = ["score", *rated, *columns, *found, "path"]
    values = [
        [
            row.score,
            *(row.rating or [None] * len(rated)),
            *(row.attributes or [None] * len(columns))[: len(columns)],
            *(getattr(row, name) for name in found),
        ]
        for row in rows
    ]
    if not sys.stdout.isatty():
        lines = ([*cells, row.path, row.error] for cells, row in zip(values, rows))
        sys.stdout.flush()
        sys.stdout.buffer.write(tabular.to_csv([*names, "error"], lines))
        sys.stdout.buffer.flush()
        return
    texts = [[_cell(value, row.error) for value in cells] for cells, row in zip(values, rows)]
    widths = [max(6, *map(len, column)) for column in zip(names[:-1], *texts)]
    print("  ".join([*(name.rjust(width) for name, width in zip(names, widths)), "path"]))
    for row, cells in zip(rows, texts):
        line = "  ".join([*(cell.rjust(width) for cell, width in zip(cells, widths)), formats.printable(row.path)])
        print(line if row.error is None else f"{line}: {formats.printable(row.error)}")


def _cell(value: Any, error: str | None) -> str:
    if value is None:
        return "failed" if error else ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def summary(outcome: Outcome) -> str:
    """How many files were scored, in a few words."""
    problems = len(outcome.problems)
    words = f"{outcome.scored} scored, {outcome.failed - problems} failed"
    if problems:
        words += f", {problems} {'folder or pattern' if problems == 1 else 'folders or patterns'} gave no images"
    return words + (f"; {outcome.kept} {plural(outcome.kept, 'row')} of other files kept" if outcome.kept else "")
