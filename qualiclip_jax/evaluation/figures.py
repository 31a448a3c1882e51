"""The pictures of an evaluation: score against level of degradation, score against human opinion."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from qualiclip_jax.evaluation.correlation import Logistic
from qualiclip_jax.evaluation.synthetic import LEVELS, SyntheticResult

_BEFORE = "C5"  # of the cycle of colours; those before it are for types, as many as the largest group has
_LIGHT = {"ink": "#1c1e21", "faint": "#767c85", "grid": "#e6e8eb", "back": "#ffffff",
          "lines": ("#0b62c4", "#d97706", "#1a7f37", "#8250df", "#c2185b", "#c0392b")}  # fmt: skip
_DARK = {"ink": "#e6e8eb", "faint": "#9aa1ab", "grid": "#2c3138", "back": "#15181c",
         "lines": ("#6cb0ff", "#f0a142", "#57c773", "#b392f0", "#f277ab", "#ff8f85")}  # fmt: skip


@contextlib.contextmanager
def style(dark: bool = False) -> Iterator[None]:
    """Sets the colours of the figures that are made in the block: those of a light or of a dark page."""
    import matplotlib
    from cycler import cycler

    colors = _DARK if dark else _LIGHT
    settings: dict[Any, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), colors["ink"])
    settings |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), colors["faint"])
    settings |= dict.fromkeys(("figure.facecolor", "axes.facecolor"), colors["back"])
    settings |= dict.fromkeys(("axes.spines.top", "axes.spines.right"), False)
    settings |= {"axes.grid": True, "grid.color": colors["grid"], "grid.linewidth": 0.7}
    with matplotlib.rc_context(settings | {"axes.prop_cycle": cycler(color=colors["lines"])}):
        yield


def synthetic_figure(
    result: SyntheticResult, before: SyntheticResult | None = None, title: str = "",
    names: tuple[str, str] = ("before", "after"),
) -> Any:  # fmt: skip
    """Mean score against level: a panel for each group of degradations, and one for all types together.

    Thin lines are types, the thick line is their mean, the dashed one the mean before training.

    Args:
      result: of the model.
      before: of the same photos before training, or of another model.
      title: of the photos.
      names: what `before` and `result` are called.

    Returns:
      A matplotlib figure; `html.figure_png` makes a file of it.
    """
    from matplotlib.figure import Figure

    groups = result.groups()
    panels = len(groups) + 1
    columns = min(4, panels)
    rows = math.ceil(panels / columns)
    limits = _limits(result, before)
    figure = Figure(figsize=(3.3 * columns, 2.9 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axis, (group, types) in zip(axes, groups.items()):
        _panel(axis, group.replace("_", " "), types, result, before, names, limits)
    _panel(axes[len(groups)], "all types", result.types, result, before, names, limits, single=False)
    for axis in axes[panels:]:
        axis.set_visible(False)
    for axis in axes[max(0, panels - columns) : panels]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("level (0 is the pristine crop)")
    for axis in axes[:panels:columns]:
        axis.set_ylabel("score (higher is better)")
    crops = f"mean over {len(result.names)} crops of {result.crop} px"
    title = f"{title}: score" if title else "Score"
    figure.suptitle(f"{title} against level of degradation, {crops}", fontsize=12)
    return figure


def _panel(
    axis: Any, title: str, types: tuple[str, ...], result: SyntheticResult, before: SyntheticResult | None,
    names: tuple[str, str], limits: tuple[float, float], single: bool = True,
) -> None:  # fmt: skip
    import matplotlib

    low, high = limits
    rows = [result.types.index(name) for name in types]
    labels = []  # (height, text, color, weight), set beside the ends of the lines
    for k, (row, name) in enumerate(zip(rows, types)) if single else ():
        color = f"C{k}"
        axis.plot(LEVELS, result.curves[row], color=color, linewidth=1.2)
        labels.append((result.curves[row, -1], name.replace("_", " "), color, "normal"))
    if before is not None:
        curve = before.curves[rows].mean(axis=0)
        axis.plot(LEVELS, curve, color=_BEFORE, linewidth=1.6, linestyle="--")
        labels.append((curve[-1], f"mean {names[0]}", _BEFORE, "bold"))
    curve, ink = result.curves[rows].mean(axis=0), matplotlib.rcParams["text.color"]
    axis.plot(LEVELS, curve, color=ink, linewidth=2.6)
    labels.append((curve[-1], "mean", ink, "bold"))
    srcc = _mean_srcc(result, types)
    gain = f"{_mean_srcc(before, types)} {names[0]}, {srcc} {names[1]}" if before is not None else srcc
    axis.set_title(f"{title}\nSRCC {gain}", fontsize=9.5)
    _label_ends(axis, labels, low, high)
    axis.set_ylim(low, high)
    axis.set_xlim(-0.2, 8.6)  # room for the labels
    axis.set_xticks(LEVELS, ["0", *(str(level) for level in LEVELS[1:])], fontsize=8)
    axis.tick_params(labelsize=8)


def _limits(result: SyntheticResult, before: SyntheticResult | None) -> tuple[float, float]:
    """Common limits of the score axis, with a little room above and below."""
    curves = np.concatenate([run.curves for run in (result, before) if run is not None])
    low, high = float(curves.min()), float(curves.max())
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room


def _label_ends(axis: Any, labels: list[tuple[float, str, str, str]], low: float, high: float) -> None:
    """Texts beside the right ends of lines, moved apart where they would overlap."""
    gap = 0.072 * (high - low)
    labels = sorted(labels)
    heights = [label[0] for label in labels]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    heights[-1] = min(heights[-1], high - gap / 2)
    for i in reversed(range(len(heights) - 1)):
        heights[i] = min(heights[i], heights[i + 1] - gap)
    for height, (_, text, color, weight) in zip(heights, labels):
        axis.text(5.15, height, text, color=color, fontsize=7, va="center", fontweight=weight)


def _mean_srcc(result: SyntheticResult, types: tuple[str, ...]) -> str:
    values = np.array([result.srcc[name] for name in types])
    return "undefined" if np.all(np.isnan(values)) else f"{np.nan_to_num(values).mean():.2f}"


def scatter_figure(
    scores: np.ndarray, opinions: np.ndarray, curve: Logistic | None, title: str, score_name: str = "score"
) -> Any:
    """Human opinion against score, one dot an image, with the fitted logistic curve where there is one.

    Args:
      scores: [N].
      opinions: [N].
      curve: fitted mapping from scores to opinions, or None.
      title: of the figure.
      score_name: label of the horizontal axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axis = figure.subplots()
    size = float(np.clip(4000 / len(scores), 3, 24))
    axis.scatter(scores, opinions, s=size, color="C0", alpha=0.45, linewidths=0)
    if curve is not None:
        line = np.linspace(np.min(scores), np.max(scores), 300)
        axis.plot(line, curve(line), color="C1", linewidth=2.2, label="fitted 4-parameter logistic")
        axis.legend(frameon=False, loc="upper left", fontsize=9)
    axis.set_xlabel(f"{score_name} (higher is better)")
    axis.set_ylabel("mean opinion score (higher is better)")
    axis.set_title(title, fontsize=11)
    return figure
