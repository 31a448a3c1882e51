"""What an evaluation found, and how it reads as JSON and as tables of text."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qualiclip_jax.evaluation import protocol
from qualiclip_jax.evaluation.literature import Published
from qualiclip_jax.evaluation.protocol import Agreement, Judgement
from qualiclip_jax.evaluation.significance import Comparison
from qualiclip_jax.evaluation.synthetic import SyntheticResult

SIGNIFICANT = 0.05
HEAD = ("", "images", "SRCC", "95 % interval", "PLCC", "KRCC", "PLCC fitted", "RMSE fitted")


@dataclass(frozen=True)
class SetResult:
    """A model, and perhaps its baseline, on one rated set.

    Attributes:
      rated: the `RatedSet`.
      slug: its name, fit for file names.
      scores: [N].
      judgement: of the model.
      baseline_scores, baseline: of the baseline, or None.
      comparisons: "srcc" and "plcc" of model against baseline.
      published: results that may stand beside these.
    """

    rated: Any
    slug: str
    scores: np.ndarray
    judgement: Judgement
    baseline_scores: np.ndarray | None = None
    baseline: Judgement | None = None
    comparisons: Sequence[Comparison] = ()
    published: Sequence[Published] = ()

    def residuals(self) -> np.ndarray:
        """How much too high each image is scored, [N], in the unit of the opinions; in ranks, 0..1, without a fit."""
        mapped = self.judgement.whole.mapped[4] or self.judgement.whole.mapped[5]
        if mapped is not None:
            return np.asarray(mapped.curve(self.scores) - self.rated.mos)
        ranks = [np.argsort(np.argsort(values)) / (len(values) - 1) for values in (self.scores, self.rated.mos)]
        return ranks[0] - ranks[1]


@dataclass(frozen=True)
class SyntheticSet:
    """The synthetic benchmark on one source of photos, of the model and perhaps of its baseline.

    Attributes:
      source: of the photos.
      slug: its name, fit for file names.
      result: of the model.
      before: of the baseline, or None.
      names: what `before` and `result` are called.
    """

    source: str
    slug: str
    result: SyntheticResult
    before: SyntheticResult | None = None
    names: tuple[str, str] = ("before", "after")


@dataclass(frozen=True)
class Results:
    """A whole evaluation.

    Attributes:
      model: what was judged, JSON-able: "name", and for a checkpoint its facts.
      baseline: the same of the baseline; None without one.
      note: why there is no baseline, "" otherwise.
      sets: rated sets.
      synthetic: sources of pristine photos.
    """

    model: dict[str, Any]
    baseline: dict[str, Any] | None
    note: str
    sets: Sequence[SetResult]
    synthetic: Sequence[SyntheticSet]

    def weighted_mean(self) -> dict[str, float] | None:
        """Of several rated sets; None of one."""
        named = {found.slug: found.judgement for found in self.sets}
        return protocol.weighted_mean(named) if len(named) > 1 else None


def to_json(results: Results) -> dict[str, Any]:
    """Every figure as plain numbers; None where undefined."""
    sets = {}
    for found in results.sets:
        sets[found.rated.name] = {
            "images": len(found.scores),
            "missing": found.rated.missing,
            "result": _plain(found.judgement),
            "baseline": _plain(found.baseline),
            "comparisons": _plain(list(found.comparisons)),
            "published": _plain(list(found.published)),
        }
    synthetic = {
        found.source: {
            "result": found.result.summary(),
            "baseline": found.before.summary() if found.before else None,
        }
        for found in results.synthetic
    }
    return {
        "model": results.model,
        "baseline": results.baseline,
        "sets": sets,
        "weighted_mean": results.weighted_mean(),
        "synthetic": synthetic,
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def rows(found: SetResult, model: str, baseline: str) -> list[list[str]]:
    """The main table of a set under `HEAD`, cells as text: by protocol the model, its baseline, published results."""
    lines = []
    for name, attribute in ((protocol.WHOLE, "whole"), (protocol.OFFICIAL_TEST, "official")):
        for label, judgement in ((model, found.judgement), (baseline, found.baseline)):
            measured = getattr(judgement, attribute) if judgement else None
            if measured is not None:
                lines.append([f"{label}, {name}", *cells(measured)])
        lines += [
            [f"{entry.metric} (published), {name}", "", _number(entry.srcc), "", _number(entry.plcc),
             _number(entry.krcc), "", ""]
            for entry in found.published
            if entry.protocol == name
        ]  # fmt: skip
    for label, judgement in ((model, found.judgement), (baseline, found.baseline)):
        splits = judgement and judgement.splits
        if splits:
            by = "by reference, " if splits.by_reference else ""
            srcc, plcc, krcc, fitted = (_number(splits.medians[name]) for name in protocol.MEDIANS)
            name = f"{label}, {by}median of {splits.count} test splits"
            lines.append([name, f"{splits.share:.0%}", srcc, "", plcc, krcc, fitted, ""])
    return lines


def cells(measured: Agreement) -> list[str]:
    """The cells of one agreement, under `HEAD` but its first."""
    fitted = measured.mapped[4]
    interval = measured.srcc_interval
    return [
        f"{measured.images:,}",
        _number(measured.srcc),
        f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "",
        _number(measured.plcc),
        _number(measured.krcc),
        _number(fitted.plcc) if fitted else "no fit",
        _number(fitted.rmse) if fitted else "no fit",
    ]


def distortion_rows(found: SetResult) -> list[list[str]]:
    """Distortion or group, images, SRCC, SRCC of the baseline; groups first."""
    lines = []
    for attribute, mark in (("groups", "group "), ("distortions", "")):
        table = getattr(found.judgement, attribute)
        if set(table) == {protocol.OTHER}:
            continue
        before = getattr(found.baseline, attribute) if found.baseline else {}
        for name, measured in table.items():
            line = [f"{mark}{name}", f"{measured.images:,}" if measured else "", _srcc(measured)]
            lines.append(line + ([_srcc(before.get(name))] if found.baseline else []))
    return lines


def _srcc(measured: Agreement | None) -> str:
    return _number(measured.srcc) if measured else "undefined"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def gains(found: SetResult) -> list[str]:
    """A sentence for each comparison with the baseline."""
    sentences = []
    for test in found.comparisons:
        p_steiger = math.nan if test.p_steiger is None else test.p_steiger
        p_values = f"paired bootstrap p {_p(test.p_bootstrap)}, Steiger p {_p(p_steiger)}"
        verdict = "a real difference" if is_real(test) else "not a significant difference"
        sentences.append(
            f"{test.statistic.upper()} {test.difference:+.4f} against the baseline "
            f"(95 % interval {test.interval[0]:+.4f} to {test.interval[1]:+.4f}; {p_values}): {verdict}"
        )
    return sentences


def is_real(test: Comparison) -> bool:
    """Whether a difference is significant by both tests."""
    return test.p_bootstrap < SIGNIFICANT and test.p_steiger is not None and test.p_steiger < SIGNIFICANT


def _p(value: float) -> str:
    if math.isnan(value):
        return "undefined"
    return "< 0.0001" if value < 1e-4 else f"= {value:.4f}"


def remarks(found: SetResult) -> list[str]:
    """What a reader must know: images left out, labels that could not be used, fits that failed."""
    notes = list(found.rated.notes)
    if found.rated.missing:
        notes.append(
            f"{found.rated.missing} images or ratings of the set are missing: these are numbers of a part of it"
        )
    notes += _label_remarks(found)
    for label, judgement in (("", found.judgement), ("baseline: ", found.baseline)):
        if judgement is None:
            continue
        notes += [f"{label}{failure}" for failure in judgement.whole.failures]
        fitted = judgement.whole.mapped[4]
        if fitted and fitted.curve.parameters[0] < fitted.curve.parameters[1]:
            notes.append(f"{label}the fitted curve falls: better scores go with worse opinions")
    return notes


def _label_remarks(found: SetResult) -> list[str]:
    """Labels of a set from which no figure follows."""
    rated, notes = found.rated, []
    if rated.split is not None and found.judgement.official is None:
        marked = rated.split.count("test") or "no"
        notes.append(f"{marked} images are marked as test: too few for the figures of an official test split")
    if rated.reference is not None and len(set(rated.reference)) == 1 and rated.reference[0]:
        notes.append("all images have the same reference: there are no random test splits")
    unknown = sorted({name for name in rated.distortion or () if protocol.group_of(name) == protocol.OTHER})
    if unknown:
        notes.append(f"distortions that belong to no group of ours: {', '.join(unknown)}")
    return notes


def to_text(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table for a terminal, the first column flush left."""
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]

    def pad(line: Sequence[str]) -> str:
        return "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])

    return "\n".join([pad(head).rstrip(), "-" * len(pad(head)), *(pad(line).rstrip() for line in lines)])


def to_markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (head, *lines)]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (escaped[0], rule, *escaped[1:]))
