"""Mean opinion scores of ratings by several people, each with a bias and an inconsistency of their own."""

from collections.abc import Sequence

import numpy as np

ITERATIONS, TOLERANCE = 1000, 1e-9
LEAST_SHARE = 1e-2  # an inconsistency is at least this share of all ratings' deviation: nobody counts alone


def opinions(images: Sequence[str], raters: Sequence[str], ratings: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Mean opinion scores by the subject model.

    A rating is the quality of the image, plus the bias of the rater, plus noise of a size that the rater has.
    Alternating projection: quality is the mean of ratings without their biases, weighted by 1 / inconsistency^2; a bias
    is the mean of a rater's residuals, an inconsistency their deviation. The biases have mean 0 over all ratings.

    Args:
      images: the image of each of N ratings.
      raters: who gave it.
      ratings: the ratings, finite.

    Returns:
      By image, in the order of their first ratings: its mean opinion score, and the standard deviation of its ratings
      without biases (NaN for one rating).

    Source: ITU-T Rec. P.910 (2023), Annex E, and P.913, 12.6; Li, Bampis, Krasula, Janowski and Katsavounidis, "A
    simple model for subject behavior in subjective experiments" (2020).
    """
    names, image = _codes(images)
    people, rater = _codes(raters)
    values = np.asarray(ratings, np.float64)
    bias, weight = np.zeros(len(people)), np.ones(len(people))
    spread = float(values.std()) or 1.0
    count = np.bincount(rater)
    quality = np.zeros(len(names))
    for _ in range(ITERATIONS):
        before = quality
        share = weight[rater]
        quality = np.bincount(image, share * (values - bias[rater])) / np.bincount(image, share)
        rest = values - quality[image]
        bias = np.bincount(rater, rest) / count
        bias -= bias[rater].mean()
        noise = np.sqrt(np.bincount(rater, (rest - bias[rater]) ** 2) / count)
        weight = 1 / np.maximum(noise, LEAST_SHARE * spread) ** 2
        if np.abs(quality - before).max() <= TOLERANCE * spread:
            break
    rest = values - bias[rater]
    each = np.bincount(image)
    mean = np.bincount(image, rest) / each
    squares = np.bincount(image, (rest - mean[image]) ** 2)
    deviation = np.sqrt(np.divide(squares, each - 1, out=np.full(len(names), np.nan), where=each > 1))
    return {name: (float(q), float(d)) for name, q, d in zip(names, quality, deviation)}


def _codes(labels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different labels in the order of their first occurrence, and the place among them of each label."""
    place: dict[str, int] = {}
    codes = np.array([place.setdefault(label, len(place)) for label in labels], np.int64)
    return list(place), codes
