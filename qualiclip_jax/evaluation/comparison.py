"""Several models on the same sets: one table, models by sets, with what others have published beside.

from qualiclip_jax.evaluation import comparison

found = list(comparison.evaluate_all(["clip-iqa", "runs/vitb"], ["koniq10k", "clive"], cache="scores"))
print(comparison.text(found))
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qualiclip_jax import storage
from qualiclip_jax.data import rated
from qualiclip_jax.data.rated import RatedSet
from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import literature, protocol, results
from qualiclip_jax.evaluation.contestants import Contestant
from qualiclip_jax.evaluation.results import Results, SetResult
from qualiclip_jax.evaluation.run import AUTO, Model, as_contestant, evaluate, is_synthetic

FILES = ("comparison.json", "comparison.md")
ATTRIBUTES = {protocol.WHOLE: "whole", protocol.OFFICIAL_TEST: "official"}
SEED = re.compile(r"[-_]seed\d+$")  # ends the names of runs that differ in nothing else
LEGEND = (
    "SRCC of score and opinion, with its 95 % bootstrap interval; on the synthetic benchmark the mean correlation of "
    "score and level, where -1 is best. + or - marks a real difference from the baseline on the whole set (paired "
    "bootstrap and Steiger's test, both below 0.05), = none. Published figures are of others, by the same protocol on "
    "the same images; ? marks those whose protocol is not known."
)


def evaluate_all(
    models: Sequence[Model],
    datasets: Sequence[str | RatedSet],
    *,
    baseline: "Model | None" = AUTO,
    cache: str | Path | None = None,
    **options: Any,
) -> Iterator[Results]:
    """Evaluates models one after the other; each is `run.evaluate`, with the same baseline for all.

    Args:
      models: as `run.evaluate` takes them.
      datasets: likewise.
      baseline: likewise; "auto" for the first of the models.
      cache: folder where scores are kept for the next time; None to keep none.
      options: the others of `run.evaluate`.

    Yields:
      What was found of each model, in order.

    Raises:
      UserError: as `run.evaluate`.
    """
    cache = None if cache is None else Path(cache)
    sets = [rated.load(name) if isinstance(name, str) and not is_synthetic(name) else name for name in datasets]
    against: Contestant | None = None
    if baseline is not None:
        against = as_contestant(models[0] if baseline == AUTO else baseline, cache)
    for index, model in enumerate(models):
        one = against if against and baseline == AUTO and index == 0 else as_contestant(model, cache)
        yield evaluate(one, sets, baseline=None if one is against else against, cache=cache, **options)


def table(found: Sequence[Results]) -> tuple[list[str], list[list[str]]]:
    """Models by sets as cells of text: the head, and a line for each model, for each group of seeds, and of others."""
    columns = _columns(found)
    head = ["", *(label for label, _, _ in columns), *(entry.slug for entry in found[0].synthetic)]
    lines = []
    for one in found:
        cells = [_cell(one.sets[index], protocol_name) for _, index, protocol_name in columns]
        lines.append([str(one.model["name"]), *cells, *(f"{entry.result.mean:.4f}" for entry in one.synthetic)])
    lines += _seeds(found, columns)
    for metric in dict.fromkeys(entry.metric for _, index, name in columns for entry in _published(found, index, name)):
        cells = []
        for _, index, name in columns:
            entry = next((e for e in _published(found, index, name) if e.metric == metric), None)
            cells.append("" if entry is None else f"{entry.srcc:.3f}{'' if entry.protocol else '?'}")
        lines.append([f"{metric} (published)", *cells, *("" for _ in found[0].synthetic)])
    return head, lines


def _columns(found: Sequence[Results]) -> list[tuple[str, int, str]]:
    """(label, index of the set, protocol) of each column that rated sets have."""
    columns = []
    for index, entry in enumerate(found[0].sets):
        for name, attribute in ATTRIBUTES.items():
            if (measured := getattr(entry.judgement, attribute)) is not None:
                columns.append((f"{entry.slug}, {name} ({measured.images:,})", index, name))
    return columns


def _cell(entry: SetResult, name: str) -> str:
    measured = getattr(entry.judgement, ATTRIBUTES[name])
    interval = f" [{measured.srcc_interval[0]:.3f}, {measured.srcc_interval[1]:.3f}]" if measured.srcc_interval else ""
    test = next((test for test in entry.comparisons if test.statistic == "srcc"), None)
    mark = ""
    if test is not None and name == protocol.WHOLE:
        mark = (" +" if test.difference > 0 else " -") if results.is_real(test) else " ="
    return f"{measured.srcc:.4f}{interval}{mark}"


def _seeds(found: Sequence[Results], columns: Sequence[tuple[str, int, str]]) -> list[list[str]]:
    """A line for each group of runs that differ in their seed: mean and standard deviation."""
    groups: dict[str, list[Results]] = {}
    for one in found:
        groups.setdefault(SEED.sub("", str(one.model["name"])), []).append(one)
    lines = []
    for name, runs in groups.items():
        if len(runs) > 1:
            rows = [[getattr(run.sets[i].judgement, ATTRIBUTES[p]).srcc for _, i, p in columns] for run in runs]
            rows = [row + [entry.result.mean for entry in run.synthetic] for row, run in zip(rows, runs)]
            mean, deviation = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)
            lines.append([f"{name}, {len(runs)} seeds", *(f"{m:.4f} ± {d:.4f}" for m, d in zip(mean, deviation))])
    return lines


def _published(found: Sequence[Results], index: int, name: str) -> list[literature.Published]:
    entry = found[0].sets[index]
    beside = [row for row in entry.published if row.protocol == name]
    if name == protocol.WHOLE and not entry.rated.missing:
        beside += [row for row in literature.UNCHECKED if row.dataset == entry.rated.name]
    return beside


def text(found: Sequence[Results]) -> str:
    """The table for the screen."""
    return f"{results.to_text(*table(found))}\n\n{_baseline(found)}{LEGEND}"


def _baseline(found: Sequence[Results]) -> str:
    name = next((one.baseline["name"] for one in found if one.baseline), None)
    return f"Baseline: {name}. " if name is not None else ""


def check(folder: Path) -> None:
    """Raises UserError if `write` would overwrite a file in the folder that is not of a comparison."""
    there = [folder / name for name in FILES if (folder / name).exists()]
    if there and not (there[0].name == FILES[0] and there[0].read_bytes().startswith(b'{\n  "comparison":')):
        raise UserError(f"{there[0]} is not of a comparison: choose another folder")


def write(found: Sequence[Results], folder: Path) -> list[Path]:
    """Writes the table as Markdown, and everything as JSON; each file whole or not at all.

    Args:
      found: of the same sets.
      folder: where to; it exists.

    Raises:
      UserError: as `check`.
    """
    check(folder)
    page = f"# Comparison\n\n{results.to_markdown(*table(found))}\n\n{_baseline(found)}{LEGEND}\n"
    sources = sorted({row.source for _, i, name in _columns(found) for row in _published(found, i, name)})
    page += "".join(f"\n- {source}" for source in sources) + ("\n" if sources else "")
    content = json.dumps({"comparison": [results.to_json(one) for one in found]}, indent=2) + "\n"
    for file, data in zip(FILES, (content, page)):
        storage.write_bytes(folder / file, data.encode())
    return [folder / file for file in FILES]
