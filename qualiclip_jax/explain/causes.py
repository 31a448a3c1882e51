"""Which faults of a photo stand out, in words: by the package's readout, or else against the folder it is in."""

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from qualiclip_jax.explain import readout
from qualiclip_jax.inference.files import Row

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP

NONE, TOO_SMALL = "none", "too small"
SMALLEST = 160  # px: of smaller pristine photos the readout finds faults in more than one of ten
FEWEST = 5  # photos that can be compared
OUTSTANDING = 2.5  # robust standard deviations below the folder's median
SECOND = 0.5  # the second fault is told if it stands out half as much as the first
_LEAST_SPREAD = 0.05  # of logits: in a folder of equal photos nothing stands out
_NOUNS = re.compile(r"^(an?|the)\s+|\W*\b(image|photo|photograph|picture)s?\W*$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, eq=False)
class Teller:
    """Tells the causes of a photo from what a model gives of it alone.

    Attributes:
      model: gives one more output for each cause, see `QualiCLIP.widened`.
      causes: words.
      biases: float32 [C]; a cause is told where its output and its bias have a positive sum.
    """

    model: "QualiCLIP"
    causes: list[str]
    biases: np.ndarray

    @classmethod
    def find(cls, model: "QualiCLIP") -> Self | None:
        """The teller for a model; None if the package has no readout for its encoder."""
        if (found := readout.find_causes(model)) is None:
            return None
        causes, weights, biases = found
        return cls(model.widened(weights), causes, biases)

    def __call__(self, outputs: np.ndarray, size: tuple[int, int]) -> str:
        """The one or two causes of a photo that stand out, the stronger one first; `NONE` if none does.

        Args:
          outputs: float32 [P + M + C], of `QualiCLIP.run`.
          size: height and width at which the photo was scored; `TOO_SMALL` if a side is below `SMALLEST`.
        """
        if min(size) < SMALLEST:
            return TOO_SMALL
        strengths = outputs[-len(self.causes) :] + self.biases
        first, second = np.argsort(-strengths, kind="stable")[:2]
        told = [k for k in (first, second) if strengths[k] > max(0, SECOND * strengths[first] * (k == second))]
        return ", ".join(self.causes[k] for k in told) or NONE


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
