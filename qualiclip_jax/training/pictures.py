"""Pictures a run leaves in its working directory: the degradations it trains on, and its curves."""

from pathlib import Path
from typing import Any

import numpy as np

from qualiclip_jax import html, storage


def save_degraded_examples(path: Path, crops: np.ndarray, degraded: np.ndarray, titles: list[str]) -> None:
    """Draws, for each image, both crops as they are and at every level: an early look at what the step sees.

    Args:
      path: PNG file.
      crops: uint8 [N, 2, H, W, 3].
      degraded: float [N, L, 2, H, W, 3] in [0, 1].
      titles: N names of the degradations.
    """
    from matplotlib.figure import Figure

    rows, columns = len(crops), degraded.shape[1] + 1
    figure = Figure(figsize=(1.7 * columns, 1.85 * rows * 2), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for i in range(rows):
        for crop in range(2):
            for level in range(columns):
                axis = axes[2 * i + crop, level]
                axis.imshow(crops[i, crop] if level == 0 else np.asarray(degraded[i, level - 1, crop]))
                axis.set_xticks([])
                axis.set_yticks([])
                if crop == 0:
                    axis.set_title("pristine" if level == 0 else f"level {level}", fontsize=8)
            axes[2 * i + crop, 0].set_ylabel(f"{titles[i]}\ncrop {crop + 1}", fontsize=8)
    storage.write_bytes(path, html.figure_png(figure, dpi=110))


PARTS = ("consistency", "positive", "negative", "mse", "plcc", "fidelity", "degradations")  # of losses


def save_curves(path: Path, trained: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> None:
    """Draws loss and parts and evaluations over the steps; of training on degradations, also how crops are ranked.

    Args:
      path: PNG file.
      trained: rows of `metrics.jsonl`.
      evaluations: rows of `evaluations.jsonl`.
    """
    from matplotlib.figure import Figure

    if not trained:
        return
    ranked = "rank_accuracy" in trained[0]
    figure = Figure(figsize=(11, 6.4 if ranked else 3.4), layout="constrained")
    axes = figure.subplots(2 if ranked else 1, 2, squeeze=False)
    steps, loss, evaluated = [row["step"] for row in trained], axes[0, 0], axes[-1, -1]
    for name in ("loss", *(part for part in PARTS if part in trained[0])):
        loss.plot(steps, [row[name] for row in trained], label=name, linewidth=2 if name == "loss" else 1)
    loss.set(title="Loss and its parts (lower is better)", ylim=(0, None), ylabel="loss")
    loss.legend(fontsize=8)
    if ranked:
        _draw_ranks(axes[0, 1], axes[1, 0], trained)
    names = sorted({name for row in evaluations for name in row} - {"step"})
    for name in names:
        points = [(row["step"], row[name]) for row in evaluations if row[name] is not None]
        label = "synthetic: level-score SRCC (best -1)" if name == "synthetic" else name
        evaluated.plot(*zip(*points) if points else ([], []), marker="o", label=label)
    evaluated.set(title="Evaluation", ylim=(-1.02, 1.02), ylabel="correlation")
    if names:
        evaluated.legend(fontsize=8)
    for axis in axes.flat:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    storage.write_bytes(path, html.figure_png(figure, dpi=110))


def _draw_ranks(accuracy: Any, similarity: Any, trained: list[dict[str, Any]]) -> None:
    """Rank accuracy, and similarity per level, over the steps; each on axes of its own."""
    from matplotlib import colormaps

    steps, levels = [row["step"] for row in trained], len(trained[0]["similarity_positive"])
    accuracy.plot(steps, [row["rank_accuracy"] for row in trained], color="tab:green")
    accuracy.axhline(0.5, color="grey", linestyle=":", linewidth=1)
    accuracy.set(title="Rank accuracy on training crops (0.5 is chance)", ylim=(0.4, 1.0), ylabel="share in order")
    for level in range(levels):
        style: dict[str, Any] = {
            "color": colormaps["viridis"](0.9 * level / max(1, levels - 1)),
            "marker": "osD^v"[level % 5],
        }
        style |= {"markevery": max(1, len(steps) // 12), "markersize": 4}  # told apart without colours, too
        quality = [row["similarity_positive"][level] - row["similarity_negative"][level] for row in trained]
        similarity.plot(steps, quality, label=f"level {level + 1}", **style)
    similarity.set(title="Positive minus negative similarity (levels should fan out)", ylabel="similarity")
    similarity.legend(fontsize=8)
