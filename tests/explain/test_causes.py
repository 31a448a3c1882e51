"""Causes: the faults that stand out against a folder, or by themselves, in words."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import data

from qualiclip_jax import cli, score
from qualiclip_jax.explain import causes
from qualiclip_jax.inference.files import Row

PROMPTS = (
    ("Good photo.", "Bad photo."),
    ("Sharp image.", "Blurry image."),
    ("Noise-free image.", "Noisy image."),
    ("Natural colors.", "Unnatural colors."),
)


def rows(changes, count=20):
    """Photos whose attributes lie about 0.8, but for `changes`: photo -> {attribute: value}."""
    values = np.random.default_rng(0).uniform(0.78, 0.82, (count, len(PROMPTS)))
    for photo, change in changes.items():
        for attribute, value in change.items():
            values[photo, attribute] = value
    return [Row(str(k), 0.5, tuple(line)) for k, line in enumerate(values)]


def test_words_are_those_of_the_negative_prompts():
    assert causes.words(PROMPTS, 1) == [None, "blurry", "noisy", "unnatural colors"]
    assert causes.words([("A good photo.", "A bad photo."), ("Fine", "low-quality picture!")], 0) == [
        None,
        "low-quality",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "none"),
        ({1: 0.3}, "blurry"),
        ({1: 0.3, 2: 0.35}, "blurry, noisy"),
        ({1: 0.35, 2: 0.3, 3: 0.35}, "noisy, "),  # two at most
        ({1: 0.1, 2: 0.77}, "blurry"),
        ({1: 0.99}, "none"),
        ({0: 0.1}, "none"),  # the score itself is no cause
    ],
)
def test_the_one_or_two_that_stand_out(change, told):
    found = causes.explain(rows({3: change}), PROMPTS, 1)
    assert found[3].startswith(told)
    assert len(found[3].split(", ")) <= 2
    assert sum(text == "none" for text in found) >= 19


def test_faulty_photos_hide_nothing_as_long_as_they_are_the_fewer():
    found = causes.explain(rows({k: {2: 0.2} for k in range(8)}), PROMPTS, 1)
    assert found == ["noisy"] * 8 + ["none"] * 12


def test_rows_without_scores_and_small_folders():
    failed = Row("x", error="damaged")
    assert causes.explain([failed, *rows({0: {1: 0.2}})], PROMPTS, 1)[:2] == [None, "blurry"]
    assert causes.explain(rows({0: {1: 0.2}}, causes.FEWEST - 1), PROMPTS, 1) == [None] * 4
    assert causes.explain(rows({}, 5), PROMPTS, 1) == ["none"] * 5


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


FAULTS = {  # by other code than that which the readout was fitted with
    "none": lambda x: x,
    "blurry": lambda x: ndimage.gaussian_filter(x, (3, 3, 0)),
    "noisy": lambda x: np.clip(x + np.random.default_rng(0).normal(0, 30, x.shape), 0, 255).astype(np.uint8),
    "underexposed": lambda x: np.round(255 * ((x / 255) ** 2.2 / 8) ** (1 / 2.2)).astype(np.uint8),
    "overexposed": lambda x: np.round(255 * np.minimum(4 * (x / 255) ** 2.2, 1) ** (1 / 2.2)).astype(np.uint8),
    "hazy": lambda x: np.uint8(0.45 * x + 0.55 * 210),
    "compressed": lambda x: jpeg(x, 10),
}


def test_the_packaged_model_tells_faults_of_one_photo_alone(tmp_path):
    """Also when a table that was made without causes goes on with them."""
    photo = data.astronaut()[:256, 96:352]
    for name, fault in FAULTS.items():
        Image.fromarray(fault(photo)).save(tmp_path / f"{name}.png")
    Image.fromarray(ndimage.gaussian_filter(jpeg(photo, 8), (2, 2, 0))).save(tmp_path / "two.png")
    table = tmp_path / "scores.csv"
    for options in ([], ["--explain"]):
        arguments = ["--checkpoint", "tiny", str(tmp_path), "--output", str(table), *options]
        assert cli.run(score.main, arguments) == cli.DONE
    with table.open() as file:
        told = {Path(row["path"]).stem: row["causes"] for row in csv.DictReader(file)}
    assert told == {name: name for name in FAULTS} | {"two": "blurry, compressed"}


def test_no_more_than_two_causes_and_no_weak_second_one():
    tell = causes.Teller(None, ["a", "b", "c"], np.array([0, 0.5, 0], np.float32))
    size = (160, 200)
    assert tell(np.array([9, 9, -1, -1, -1.0]), size) == "none"
    assert tell(np.array([9, 9, 1, 0.5, 0.9]), size) == "a, b"
    assert tell(np.array([9, 9, 1, -0.4, 0.4]), size) == "a"
    assert tell(np.array([9, 9, -1, 0.5, 0.4]), size) == "b"
    assert tell(np.array([9, 9, 1, 0.5, 0.9]), (159, 300)) == "too small"
