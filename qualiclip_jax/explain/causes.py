"""Which faults of a photo stand out against the folder it is in, in words."""

import re
from collections.abc import Sequence

import numpy as np

from qualiclip_jax.inference.files import Row

NONE = "none"
FEWEST = 5  # photos that can be compared
OUTSTANDING = 2.5  # robust standard deviations below the folder's median
SECOND = 0.5  # the second fault is told if it stands out half as much as the first
_LEAST_SPREAD = 0.05  # of logits: in a folder of equal photos nothing stands out
_NOUNS = re.compile(r"^(an?|the)\s+|\W*\b(image|photo|photograph|picture)s?\W*$", re.IGNORECASE)


def words(prompts: Sequence[tuple[str, str]], scored: int = 0) -> list[str | None]:
    """What a low score of each antonym pair says: "Blurry image." is "blurry".

    Args:
      prompts: P pairs, positive first.
      scored: how many pairs, the first ones, are the score itself and not a cause; 0 if all are both.

    Returns:
      P words; None for a pair that names no fault.
    """
    found: list[str | None] = []
    for index, (_, negative) in enumerate(prompts):
        word = _NOUNS.sub("", negative.strip()).strip(" .").lower() or None
        found.append(None if index < scored or word in ("bad", "low", "low quality") else word)
    return found


def explain(rows: Sequence[Row], prompts: Sequence[tuple[str, str]], scored: int = 0) -> list[str | None]:
    """The one or two faults of each photo that stand out against all of them.

    An attribute stands out if it lies `OUTSTANDING` standard deviations below the median of the photos. Logits are
    compared; the deviation is 1.4826 times the median absolute deviation, which faulty photos hardly change.

    Args:
      rows: what was scored, with attributes.
      prompts: of the model.
      scored: as in `words`.

    Returns:
      One for each row: "blurry", "blurry, noisy", "none"; None where there is no score, or fewer than `FEWEST` photos.
    """
    names = words(prompts, scored)
    known = [index for index, row in enumerate(rows) if row.attributes is not None]
    found: list[str | None] = [None] * len(rows)
    if len(known) < FEWEST:
        return found
    attributes = np.array([rows[index].attributes for index in known], np.float64)
    below = distances(attributes)
    for index, distance in zip(known, below):
        order = [k for k in np.argsort(-distance, kind="stable") if names[k] is not None]
        worst = [k for k in order[:2] if distance[k] >= max(OUTSTANDING, SECOND * distance[order[0]])]
        found[index] = ", ".join(str(names[k]) for k in worst) or NONE
    return found


def distances(attributes: np.ndarray) -> np.ndarray:
    """How many robust standard deviations each attribute [N, P] lies below the median of the N photos."""
    attributes = np.clip(attributes, 1e-6, 1 - 1e-6)
    logits = np.log(attributes) - np.log1p(-attributes)
    median = np.median(logits, axis=0)
    spread = 1.4826 * np.median(np.abs(logits - median), axis=0)
    return (median - logits) / np.maximum(spread, _LEAST_SPREAD)
