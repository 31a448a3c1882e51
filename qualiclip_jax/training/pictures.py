"""Pictures a run leaves in its working directory: the degradations it trains on, and its curves."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from qualiclip_jax import html, storage
from qualiclip_jax.images import write_image

GAP, LINE, LABEL, SMALLEST = 6, 15, 150, 160  # px: between crops, of text, of the first column, of a crop


def save_degraded_examples(path: Path, crops: np.ndarray, degraded: np.ndarray, titles: list[str]) -> None:
    """Draws, for each image, both crops as they are and at every level: an early look at what the step sees.

    Args:
      path: PNG file. Its crops have the pixels of the arrays, each repeated where they are smaller than `SMALLEST`.
      crops: uint8 [N, 2, H, W, 3].
      degraded: float [N, L, 2, H, W, 3] in [0, 1].
      titles: N names of the degradations.
    """
    rounded = (np.clip(degraded, 0, 1) * 255 + 0.5).astype(np.uint8)
    tiles = np.concatenate([crops[:, None], rounded], axis=1)  # [N, 1 + L, 2, H, W, 3]
    for axis in (3, 4):
        tiles = tiles.repeat(-(-SMALLEST // crops.shape[2]), axis)
    rows, columns, _, height, width, _ = tiles.shape
    image_height = LINE + 2 * (height + GAP)
    picture = Image.new("RGB", (LABEL + columns * (width + GAP), rows * image_height), "white")
    write = ImageDraw.Draw(picture).text
    for i, title in enumerate(titles):
        top = i * image_height + LINE
        for column in range(columns):
            left = LABEL + column * (width + GAP)
            write((left, top - LINE), f"level {column}" if column else "pristine", "black")
            for crop in range(2):
                picture.paste(Image.fromarray(tiles[i, column, crop]), (left, top + crop * (height + GAP)))
        for crop in range(2):
            write((GAP, top + crop * (height + GAP)), f"{title}\ncrop {crop + 1}", "black")
    write_image(path, np.asarray(picture))


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
    rows, height = (2, 6.4) if ranked else (1, 3.4)
    figure = Figure(figsize=(11, height))
    edges = {"left": 0.08, "right": 0.99, "bottom": 0.5 / height, "top": 1 - 0.3 / height}
    axes = figure.subplots(rows, 2, squeeze=False, gridspec_kw=edges | {"hspace": 0.3, "wspace": 0.18})
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
