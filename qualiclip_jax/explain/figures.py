"""The figures of the paper's analyses: scores against intensity, and features in two dimensions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qualiclip_jax.evaluation.synthetic import LEVELS, SyntheticResult

# Okabe and Ito, without black and yellow: told apart by all eyes, on white and on dark grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8a8a8a")
MARKERS = "osD^vPX"
Z = 1.96  # of a 95 % interval


def intervals(result: SyntheticResult) -> tuple[np.ndarray, np.ndarray]:
    """Mean score by type and level, and half the width of its 95 % interval over photos, both float64 [T, 6].

    The two crops of a photo are averaged first: they are not independent.
    """
    count, types, levels = result.scores.shape
    photos = result.scores.reshape(count // 2, 2, types, levels).mean(1)
    spread = photos.std(0, ddof=1) if len(photos) > 1 else np.full((types, levels), math.nan)
    return photos.mean(0), Z * spread / math.sqrt(len(photos))


def intensity_figure(results: Mapping[str, SyntheticResult]) -> Any:
    """Score against intensity, a panel for each type and a line with its interval for each model.

    Args:
      results: of each model by its name, on the same photos and types.

    Returns:
      A matplotlib figure.
    """
    from matplotlib.figure import Figure

    first = next(iter(results.values()))
    columns = min(4, len(first.types))
    rows = math.ceil(len(first.types) / columns)
    figure = Figure(figsize=(3.2 * columns + 0.4, 2.7 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for place, (axis, kind) in enumerate(zip(axes, first.types)):
        for (name, result), color, marker in zip(results.items(), COLORS, MARKERS):
            mean, half = (values[place] for values in intervals(result))
            axis.plot(LEVELS, mean, color=color, marker=marker, markersize=4, linewidth=1.8, label=name)
            axis.fill_between(LEVELS, mean - half, mean + half, color=color, alpha=0.22, linewidth=0)
        axis.set_title(kind.replace("_", " "), fontsize=10)
        axis.set_xticks(LEVELS)
        if place + columns >= len(first.types):
            axis.tick_params(labelbottom=True)
            axis.set_xlabel("intensity (level, 0 is pristine)")
        if place % columns == 0:
            axis.set_ylabel("mean score")
    for axis in axes[len(first.types) :]:
        axis.set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Score against intensity, {len(first.names) // 2} photos, 95 % intervals", fontsize=12)
    return figure


def embedding_figure(points: np.ndarray, kinds: Sequence[str], levels: np.ndarray, method: str) -> Any:
    """Features in two dimensions: coloured by the group of the degradation, and by its level.

    Args:
      points: [N, 2].
      kinds: group of each image; "pristine" for none.
      levels: int [N], 0 for pristine.
      method: what made the points, for the axes.

    Returns:
      A matplotlib figure.
    """
    import matplotlib.colors
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    by_kind, by_level = figure.subplots(1, 2, sharex=True, sharey=True)
    ink = matplotlib.rcParams["text.color"]
    on_dark = matplotlib.colors.to_rgb(matplotlib.rcParams["axes.facecolor"])[0] < 0.5
    names = [name for name in dict.fromkeys(kinds) if name != "pristine"]
    chosen = np.array(kinds)
    for name, color, marker in zip(names, COLORS, MARKERS):
        here = points[chosen == name]
        by_kind.scatter(
            *here.T, s=16, color=color, marker=marker, linewidths=0, alpha=0.75, label=name.replace("_", " ")
        )
    by_kind.scatter(*points[chosen == "pristine"].T, s=42, color=ink, marker="*", linewidths=0, label="pristine")
    by_kind.set_title("by group of degradations")
    by_kind.legend(frameon=False, fontsize=8, markerscale=1.4, loc="center left", bbox_to_anchor=(1, 0.5))
    shown = by_level.scatter(
        *points.T, s=16, c=levels, cmap="viridis" if on_dark else "viridis_r", vmin=0, vmax=5, linewidths=0, alpha=0.85
    )
    by_level.set_title("by level")
    figure.colorbar(shown, ax=by_level, ticks=range(6), label="level (0 is pristine)")
    for axis in (by_kind, by_level):
        axis.set_xlabel(f"{method}, first axis")
        axis.set_xticks([])
        axis.set_yticks([])
    by_kind.set_ylabel(f"{method}, second axis")
    return figure
