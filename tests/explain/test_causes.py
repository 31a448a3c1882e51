"""Causes: the faults that stand out against a folder, in words."""

import numpy as np
import pytest

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
