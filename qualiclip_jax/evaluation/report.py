"""Writes an evaluation to a folder: results.json, results.md, scores.csv, pictures, and report.html with everything."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qualiclip_jax import html, storage, tabular
from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import figures, results, synthetic
from qualiclip_jax.evaluation.results import Results, SetResult, SyntheticSet
from qualiclip_jax.images import ImageError

SHOWN = 6  # images in each gallery
_LEGEND = (
    "SRCC, PLCC and KRCC are Spearman's, Pearson's and Kendall's correlation of score and mean opinion score, 1 is "
    "perfect. “Fitted” is after the customary 4-parameter logistic mapping of scores to opinions; RMSE is "
    "in the unit of the opinions. Intervals are 95 % bootstrap intervals of SRCC."
)
_SYNTHETIC_LEGEND = (
    "Pristine photos are degraded in 24 ways at 5 levels. For each type: Spearman's correlation of level and score "
    "within a crop, averaged over the crops; a perfect model has -1. The order of two versions is right if the one at "
    "the milder level has the higher score; 1 is perfect, 0.5 is chance."
)


FILES = ("results.json", "results.md", "scores.csv", "synthetic_scores.csv", "report.html")
_PICTURES = ("scatter-*.png", "synthetic.png", "synthetic-*.png")


@contextlib.contextmanager
def reserved(folder: Path, inputs: Sequence[str | os.PathLike[str]] = ()) -> Iterator[None]:
    """Holds a folder for the report of one evaluation; makes it if it is not there.

    Args:
      folder: where `write` shall write.
      inputs: files that are read, and must not be overwritten.

    Raises:
      UserError: the folder cannot be written to, another evaluation holds it, an input would be overwritten, or a file
        that is not of an earlier evaluation.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot write there ({error.strerror or error})") from None
    with storage.lock(folder / FILES[0]):
        there = [name for pattern in (*FILES, *_PICTURES) for name in sorted(folder.glob(pattern))]
        for name in there:
            if any(os.path.exists(given) and os.path.samefile(given, name) for given in inputs):
                raise UserError(f"--out {folder}: {name.name} is read and would be overwritten: choose another folder")
        if there and not _is_ours(folder / FILES[0]):
            raise UserError(f"--out {folder}: {there[0].name} is not of an evaluation: choose another folder")
        yield


def _is_ours(path: Path) -> bool:
    """Whether a results.json was written by `write`."""
    try:
        return {"model", "baseline", "sets", "synthetic"} <= set(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return False


def write(found: Results, folder: Path) -> list[Path]:
    """Writes all files of a report, each whole or not at all.

    Args:
      found: the evaluation.
      folder: where to; it exists.

    Returns:
      The files, the page to open last.
    """
    pictures = _pictures(found)
    files: dict[str, str | bytes] = {
        "results.json": json.dumps(results.to_json(found), indent=2) + "\n",
        "results.md": markdown(found),
    }
    if found.sets:
        files["scores.csv"] = scores_csv(found.sets)
    if found.synthetic:
        files["synthetic_scores.csv"] = synthetic_csv(found.synthetic)
    files |= pictures
    files["report.html"] = page(found, pictures)
    for name, content in files.items():
        storage.write_bytes(folder / name, content.encode("utf-8", "replace") if isinstance(content, str) else content)
    return [folder / name for name in files]


def text(found: Results) -> str:
    """The tables for the screen."""
    parts = []
    for entry in found.sets:
        table = results.to_text((entry.slug, *results.HEAD[1:]), results.rows(entry, *_labels(found)))
        lines = [f"  {line}" for line in results.gains(entry) + results.remarks(entry)]
        parts.append("\n".join([table, *lines]))
    mean = found.weighted_mean()
    if mean:
        numbers = ", ".join(f"{name.upper()} {value:.4f}" for name, value in mean.items())
        parts.append(f"mean over sets, weighted by images: {numbers}")
    for photos in found.synthetic:
        table = synthetic.table(photos.result, photos.before, photos.names)
        parts.append(f"synthetic benchmark, {photos.source}\n\n{table}")
    return "\n\n".join(parts + ([found.note] if found.note else []))


def markdown(found: Results) -> str:
    """results.md."""
    parts = [f"# Evaluation of {found.model['name']}"]
    for entry in found.sets:
        parts += [f"## {_title(entry)}", results.to_markdown(results.HEAD, results.rows(entry, *_labels(found)))]
        parts += [f"- {line}" for line in results.gains(entry) + results.remarks(entry)]
        if entry.judgement.distortions:
            parts.append(results.to_markdown(_distortion_head(entry), results.distortion_rows(entry)))
    mean = found.weighted_mean()
    if mean:
        parts.append("## Mean over sets, weighted by images")
        parts.append(results.to_markdown([name.upper() for name in mean], [[f"{v:.4f}" for v in mean.values()]]))
    for photos in found.synthetic:
        parts += [f"## Synthetic benchmark, {photos.source}", _SYNTHETIC_LEGEND]
        parts.append("```\n" + synthetic.table(photos.result, photos.before, photos.names) + "\n```")
    sources = sorted({entry.source for found_set in found.sets for entry in found_set.published})
    parts += [f"Published numbers: {source}." for source in sources]
    return "\n\n".join(parts + ([found.note] if found.note else [])) + "\n"


def scores_csv(sets: Sequence[SetResult]) -> bytes:
    """One line an image: scores, opinion, and residual after the mapping."""
    lines = []
    for entry in sets:
        before = [None] * len(entry.scores) if entry.baseline_scores is None else entry.baseline_scores.tolist()
        columns = (entry.rated.ids, entry.scores.tolist(), before, entry.rated.mos.tolist(), entry.residuals())
        lines += [[entry.rated.name, *line[:-1], f"{line[-1]:.6g}"] for line in zip(*columns)]
    return tabular.to_csv(("dataset", "image", "score", "baseline_score", "mos", "residual"), lines)


def synthetic_csv(sources: Sequence[SyntheticSet]) -> bytes:
    """One line a crop, type and level."""
    lines = []
    for entry in sources:
        for crop, type_, level in np.ndindex(entry.result.scores.shape):
            before = entry.before.scores[crop, type_, level] if entry.before else None
            name, score = entry.result.names[crop], entry.result.scores[crop, type_, level]
            lines.append([entry.source, name, entry.result.types[type_], level, score, before])
    return tabular.to_csv(("source", "crop", "type", "level", "score", "baseline_score"), lines)


def _pictures(found: Results, dark: bool = False) -> dict[str, bytes]:
    """File name -> PNG."""
    pictures = {}
    with figures.style(dark):
        for entry in found.sets:
            fitted = entry.judgement.whole.mapped[4]
            title = f"{found.model['name']} on {entry.slug}: SRCC {entry.judgement.whole.srcc:.3f}"
            figure = figures.scatter_figure(entry.scores, entry.rated.mos, fitted.curve if fitted else None, title)
            pictures[_scatter_name(entry)] = html.figure_png(figure)
        for source in found.synthetic:
            figure = figures.synthetic_figure(source.result, source.before, source.source, source.names)
            pictures[_synthetic_name(found, source)] = html.figure_png(figure)
    return pictures


def _scatter_name(entry: SetResult) -> str:
    return f"scatter-{entry.slug}.png"


def _synthetic_name(found: Results, entry: SyntheticSet) -> str:
    return "synthetic.png" if len(found.synthetic) == 1 else f"synthetic-{entry.slug}.png"


def page(found: Results, pictures: dict[str, bytes]) -> bytes:
    """report.html; `pictures` as the files that lie beside it."""
    dark = _pictures(found, dark=True)
    uris = {name: {"light": html.png_uri(light), "dark": html.png_uri(dark[name])} for name, light in pictures.items()}
    mean = found.weighted_mean()
    return html.render(
        "evaluation.html.j2",
        title=f"Evaluation of {found.model['name']}",
        generator="qualiclip evaluate",
        headlines=_headlines(found),
        contestants=[
            {
                "label": label,
                "name": facts["name"],
                "facts": "; ".join(f"{key} {_fact(value)}" for key, value in facts.items() if key != "name"),
            }
            for label, facts in (("Model", found.model), ("Baseline", found.baseline))
            if facts
        ],
        note=found.note,
        legend=_LEGEND,
        sets=[_set_section(found, entry, uris[_scatter_name(entry)]) for entry in found.sets],
        mean=_table([name.upper() for name in mean], [[f"{v:.4f}" for v in mean.values()]]) if mean else None,
        synthetic=[_synthetic_section(entry, uris[_synthetic_name(found, entry)]) for entry in found.synthetic],
        synthetic_legend=_SYNTHETIC_LEGEND,
        published=sorted({entry.source for found_set in found.sets for entry in found_set.published}),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {"head": head, "rows": rows}


def _headlines(found: Results) -> list[dict[str, Any]]:
    """For each set the one number to look at first."""
    cards = [
        {
            "name": entry.slug,
            "number": f"{entry.judgement.whole.srcc:.3f}",
            "before": f"{entry.baseline.whole.srcc:.3f}" if entry.baseline else None,
            "what": f"SRCC with opinion, {len(entry.scores):,} images",
        }
        for entry in found.sets
    ]
    return cards + [
        {
            "name": photos.source,
            "number": synthetic.cell(photos.result.mean),
            "before": synthetic.cell(photos.before.mean) if photos.before else None,
            "what": "SRCC with level of degradation, -1 is perfect",
        }
        for photos in found.synthetic
    ]


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _set_section(found: Results, entry: SetResult, picture: dict[str, str]) -> dict[str, Any]:
    marks = ["good" if t.interval[0] > 0 else "bad" if t.interval[1] < 0 else "faint" for t in entry.comparisons]
    residuals = entry.residuals()
    order = np.lexsort((entry.rated.ids, residuals))
    closest = order[np.argsort(np.abs(residuals[order]), kind="stable")]
    galleries = [
        ("Scored too high", order[::-1][:SHOWN]),
        ("Scored too low", order[:SHOWN]),
        ("Closest to the opinion", closest[:SHOWN]),
    ]
    by_distortion = entry.judgement.distortions
    return _table(results.HEAD, results.rows(entry, *_labels(found))) | {
        "title": _title(entry),
        "name": entry.slug,
        "gains": list(zip(marks, results.gains(entry))),
        "remarks": results.remarks(entry),
        "picture": picture,
        "distortions": _table(_distortion_head(entry), results.distortion_rows(entry)) if by_distortion else None,
        "galleries": [
            (heading, [_card(entry, i, residuals) for i in map(int, chosen)]) for heading, chosen in galleries
        ],
    }


def _card(entry: SetResult, index: int, residuals: np.ndarray) -> dict[str, Any]:
    try:
        uri = html.thumbnail_uri(entry.rated.image(index))
    except ImageError:  # scores of a table may be judged without it
        uri = ""
    return {
        "name": entry.rated.ids[index],
        "uri": uri,
        "score": entry.scores[index],
        "opinion": entry.rated.mos[index],
        "residual": residuals[index],
    }


def _synthetic_section(entry: SyntheticSet, picture: dict[str, str]) -> dict[str, Any]:
    runs = [run for run in (entry.before, entry.result) if run]
    names = entry.names[-len(runs) :]
    head = ["type", *(f"SRCC {name}" for name in names), *(f"level {k}" for k in synthetic.LEVELS)]
    lines = []
    for group, types in entry.result.groups().items():
        for name in types:
            curve = [f"{value:.3f}" for value in entry.result.curves[entry.result.types.index(name)]]
            lines.append([f"{name} ({group})", *(synthetic.cell(run.srcc[name]) for run in runs), *curve])
    summary = [
        ["mean SRCC over types", *(synthetic.cell(run.mean) for run in runs)],
        ["order within a type", *(synthetic.cell(run.order_within) for run in runs)],
        ["order across types", *(synthetic.cell(run.order_across) for run in runs)],
    ]
    return {
        "title": entry.source,
        "picture": picture,
        "summary": _table(["", *names], summary),
        "types": _table(head, lines),
    }


def _labels(found: Results) -> tuple[str, str]:
    return found.model["name"], "baseline"


def _title(entry: SetResult) -> str:
    title = entry.rated.title
    return f"{entry.slug} ({title})" if title and title != entry.slug else entry.slug


def _distortion_head(entry: SetResult) -> list[str]:
    return ["distortion", "images", "SRCC", *(["SRCC of the baseline"] if entry.baseline else [])]
