"""The pictures that a run leaves: curves hold the numbers of their rows, examples the pixels of their crops."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qualiclip_jax import html
from qualiclip_jax.training import pictures


@pytest.fixture
def drawn(monkeypatch):
    """Collects the figures that are written."""
    figures = []
    to_png = html.figure_png
    monkeypatch.setattr(
        html, "figure_png", lambda figure, **options: figures.append(figure) or to_png(figure, **options)
    )
    return figures


def row(step):
    parts = {"loss": 3 / step, "consistency": 1 / step, "positive": 1.5 / step, "negative": 0.5 / step}
    levels = np.arange(5) / 10
    similarities = {"similarity_positive": list(levels * step), "similarity_negative": list(levels)}
    return {"step": step, "rank_accuracy": 1 - 1 / step} | parts | similarities


def curves(axis):
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}


def test_curves_hold_the_rows(tmp_path, drawn):
    rows = [row(step) for step in (2, 4, 8)]
    measured = [
        {"step": 0, "synthetic": -0.1, "srcc/koniq10k": None},
        {"step": 8, "synthetic": -0.8, "srcc/koniq10k": 0.5},
    ]
    pictures.save_curves(tmp_path / "curves.png", rows, measured)
    loss, accuracy, similarity, evaluated = map(curves, drawn[0].axes)
    assert set(loss) == {"loss", "consistency", "positive", "negative"}
    for name, curve in loss.items():
        assert curve == ([2, 4, 8], [r[name] for r in rows])
    assert ([2, 4, 8], [0.5, 0.75, 0.875]) in accuracy.values()
    assert list(similarity) == [f"level {level}" for level in range(1, 6)]
    assert similarity["level 3"][1] == pytest.approx([0.2, 0.6, 1.4])
    assert sorted(evaluated.values()) == [([0, 8], [-0.1, -0.8]), ([8], [0.5])]  # what was not defined is left out
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1210, 704)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_a_run_that_logged_nothing_draws_nothing(tmp_path):
    pictures.save_curves(tmp_path / "curves.png", [], [])
    assert list(tmp_path.iterdir()) == []


def test_examples_show_every_crop_at_every_level(tmp_path, monkeypatch):
    crops = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), np.uint8)
    degraded = np.random.default_rng(1).integers(0, 256, (2, 3, 2, 8, 8, 3), np.uint8)
    written = {}
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, color: written.update({place: text}))
    titles = ["jpeg", "blur\n+ noise"]
    pictures.save_degraded_examples(tmp_path / "degradations.png", crops, degraded / np.float32(255), titles)
    picture = Image.open(tmp_path / "degradations.png")
    assert picture.format == "PNG"
    shown, side = np.asarray(picture), pictures.SMALLEST
    across = side + pictures.GAP
    for i, crop, level in np.ndindex(2, 2, 4):
        top = i * (pictures.LINE + 2 * across) + pictures.LINE + crop * across
        left = pictures.LABEL + level * across
        expected = degraded[i, level - 1, crop] if level else crops[i, crop]
        tile = shown[top : top + side, left : left + side]
        np.testing.assert_array_equal(tile, expected.repeat(side // 8, 0).repeat(side // 8, 1))
        assert written[pictures.GAP, top] == f"{titles[i]}\ncrop {crop + 1}"
        assert crop or written[left, top - pictures.LINE] == (f"level {level}" if level else "pristine")
    assert shown.shape == (top + across, left + across, 3)
