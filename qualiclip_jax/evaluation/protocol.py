"""Protocols: on which images the agreement of a model with human opinion is measured, and how results are put together.

An opinion-unaware model has seen no rating, so the whole set is its test set. The other protocols exist so that its
numbers can stand beside those of models that were trained on a part of the set.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qualiclip_jax.degradations.catalog import GROUPS
from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import correlation

WHOLE, OFFICIAL_TEST = "whole set", "official test split"
OTHER = "other"  # group of distortions that none of ours is like
MEDIANS = ("srcc", "plcc", "krcc", "plcc_logistic")

GROUP_OF: dict[str, str] = {  # names of distortions, ours and those of rated sets -> our group
    **{name: group for group, types in GROUPS.items() for name in (group, *types)},
    **dict.fromkeys(("gblur", "out_of_focus"), "blur"),
    **dict.fromkeys(
        (
            "color_quantization",
            "color_quantization_with_dither",
            "color_saturation_1",
            "color_saturation_2",
            "color_saturation_change",
            "chromatic_aberrations",
        ),
        "color_distortion",
    ),
    **dict.fromkeys(
        (
            "awgn",
            "wn",
            "gaussian_noise",
            "additive_gaussian_noise",
            "additive_noise_in_color_components",
            "white_noise_in_color_component",
            "spatially_correlated_noise",
            "masked_noise",
            "high_frequency_noise",
            "multiplicative_gaussian_noise",
            "comfort_noise",
            "pink_noise",
            "poisson_noise",
            "denoise",
            "image_denoising",
        ),
        "noise",
    ),
    **dict.fromkeys(
        (
            "jp2k",
            "jpeg_2000",
            "jpeg_transmission_errors",
            "jpeg2000_transmission_errors",
            "lossy_compression_of_noisy_images",
            "fast_fading",
            "sparse_sampling_and_reconstruction",
        ),
        "compression",
    ),
    **dict.fromkeys(("non_eccentricity_pattern_noise", "local_blockwise_distortions", "quantization_noise"), "spatial"),
    **dict.fromkeys(("high_sharpen", "contrast", "contrast_change"), "sharpness_contrast"),
}


@dataclass(frozen=True)
class Mapped:
    """PLCC and RMSE after a logistic mapping.

    Attributes:
      plcc: of mapped predictions and opinions.
      rmse: in the unit of the opinions.
      curve: the mapping.
    """

    plcc: float
    rmse: float
    curve: correlation.Logistic


@dataclass(frozen=True)
class Agreement:
    """The agreement of predictions and opinions on some images.

    Attributes:
      images: how many.
      srcc, plcc, krcc: correlations of the predictions as they are.
      srcc_interval, plcc_interval: 95 % bootstrap intervals; None if not asked for.
      mapped: number of parameters -> `Mapped`; None where the fit failed.
      failures: why fits failed.
    """

    images: int
    srcc: float
    plcc: float
    krcc: float
    srcc_interval: tuple[float, float] | None
    plcc_interval: tuple[float, float] | None
    mapped: Mapping[int, Mapped | None]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """Medians over random test splits.

    Attributes:
      count: number of splits K.
      share: of the images (or references) in each test split.
      by_reference: whether all images of one reference fall on one side.
      medians: statistic of `MEDIANS` -> median over the splits in which it is defined (a fit may fail, scores may be
        constant); None if it is defined in none.
      spreads: statistic -> standard deviation over the splits.
    """

    count: int
    share: float
    by_reference: bool
    medians: Mapping[str, float | None]
    spreads: Mapping[str, float | None]


@dataclass(frozen=True)
class Judgement:
    """The agreement of one model with one rated set, by every protocol that the set allows.

    Attributes:
      whole: on all images.
      official: on the published test split, or None.
      splits: over random splits, or None if the set is too small.
      distortions: distortion -> agreement on its images; None where it is undefined.
      groups: group of distortions -> the same.
    """

    whole: Agreement
    official: Agreement | None = None
    splits: Splits | None = None
    distortions: Mapping[str, Agreement | None] = field(default_factory=dict)
    groups: Mapping[str, Agreement | None] = field(default_factory=dict)


def agreement(scores: np.ndarray, opinions: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Agreement:
    """Every statistic of one set of images.

    Args:
      scores: predictions [N].
      opinions: [N].
      resamples: of the bootstrap; 0 for no intervals.
      seed: of the bootstrap.

    Raises:
      UserError: the correlations are undefined (see `correlation`).
    """
    mapped: dict[int, Mapped | None] = {}
    failures = []
    for parameters in (4, 5):
        try:
            curve = correlation.fit_logistic(scores, opinions, parameters)
            fitted = curve(scores)
            mapped[parameters] = Mapped(correlation.plcc(fitted, opinions), correlation.rmse(fitted, opinions), curve)
        except correlation.FitError as error:
            mapped[parameters] = None
            failures.append(str(error))
    intervals = {
        name: correlation.bootstrap_interval(name, scores, opinions, resamples=resamples, seed=seed)
        if resamples
        else None
        for name in ("srcc", "plcc")
    }
    return Agreement(
        images=len(scores),
        srcc=correlation.srcc(scores, opinions),
        plcc=correlation.plcc(scores, opinions),
        krcc=correlation.krcc(scores, opinions),
        srcc_interval=intervals["srcc"],
        plcc_interval=intervals["plcc"],
        mapped=mapped,
        failures=tuple(failures),
    )


def judge(
    ids: Sequence[str],
    scores: np.ndarray,
    opinions: np.ndarray,
    *,
    split: Sequence[str] | None = None,
    reference: Sequence[str] | None = None,
    distortion: Sequence[str] | None = None,
    splits: int = 10,
    resamples: int = 1000,
    seed: int = 0,
) -> Judgement:
    """Measures one model on one rated set by every protocol that the set allows.

    Args:
      ids: unique names of the N images; the result does not depend on their order.
      scores: predictions [N], higher is better.
      opinions: [N], higher is better.
      split: N times "train", "validation", "test" or "".
      reference: N names of originals.
      distortion: N names of distortions, "" for none.
      splits: number of random splits; 0 for none.
      resamples: of the bootstrap; 0 for no intervals.
      seed: of random splits and bootstrap.
    """
    order = np.argsort(np.asarray(ids, object), kind="stable")

    def column(labels: Sequence[str] | None) -> np.ndarray | None:
        return None if labels is None else np.asarray(labels, object)[order]

    scores, opinions = np.asarray(scores, np.float64)[order], np.asarray(opinions, np.float64)[order]
    distortions, splits_of = column(distortion), column(split)
    groups = None if distortions is None else np.array([group_of(name) for name in distortions], object)
    official = None
    if splits_of is not None and np.sum(splits_of == "test") > correlation.MIN_PAIRS:
        test = splits_of == "test"
        official = agreement(scores[test], opinions[test], resamples=resamples, seed=seed)
    return Judgement(
        whole=agreement(scores, opinions, resamples=resamples, seed=seed),
        official=official,
        splits=random_splits(scores, opinions, column(reference), count=splits, seed=seed) if splits else None,
        distortions={} if distortions is None else _by_label(scores, opinions, distortions),
        groups={} if groups is None else _by_label(scores, opinions, groups),
    )


def random_splits(
    scores: np.ndarray, opinions: np.ndarray, reference: Sequence[str] | np.ndarray | None, *, count: int = 10,
    share: float = 0.2, seed: int = 0,
) -> Splits | None:  # fmt: skip
    """Medians over random test splits, drawn by reference where the set has references.

    Args:
      scores: predictions [N].
      opinions: [N].
      reference: N names of originals ("" for images that have none: each is its own), or None.
      count: number of splits.
      share: of the images, or references, in a test split.
      seed: of the splits; they depend on the order of the images, `judge` sorts them.

    Returns:
      None if there is only one reference, or if a test split would have fewer than 5 images.
    """
    if reference is None:
        units = np.arange(len(scores))
    else:
        own = [name or f"\0{index}" for index, name in enumerate(reference)]
        units = np.unique(own, return_inverse=True)[1]
    total = len(np.unique(units))
    if total < 2:
        return None
    number = max(1, round(share * total))
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        chosen = generator.permutation(total)[:number]
        test = np.isin(units, chosen)
        if np.sum(test) < 5:
            return None
        try:
            measured = agreement(scores[test], opinions[test], resamples=0)
        except UserError:
            rows.append((np.nan,) * len(MEDIANS))
            continue
        mapped = measured.mapped[4]
        rows.append((measured.srcc, measured.plcc, measured.krcc, np.nan if mapped is None else mapped.plcc))
    columns = {name: column[np.isfinite(column)] for name, column in zip(MEDIANS, np.array(rows).T)}
    return Splits(
        count=count,
        share=number / total,
        by_reference=reference is not None,
        medians={name: float(np.median(column)) if len(column) else None for name, column in columns.items()},
        spreads={name: float(np.std(column)) if len(column) else None for name, column in columns.items()},
    )


def group_of(distortion: str) -> str:
    """The group of a distortion ("Gaussian blur" is like "gaussian_blur"), `OTHER` if none knows it, "" for none."""
    return GROUP_OF.get(re.sub(r"[\W_]+", "_", distortion.strip().lower()), OTHER) if distortion else ""


def _by_label(scores: np.ndarray, opinions: np.ndarray, labels: np.ndarray) -> dict[str, Agreement | None]:
    """Agreement on the images of each label but ""; None where it is undefined."""
    found: dict[str, Agreement | None] = {}
    for label in sorted(set(labels) - {""}):
        chosen = labels == label
        try:
            found[label] = agreement(scores[chosen], opinions[chosen], resamples=0)
        except UserError:
            found[label] = None
    return found


def weighted_mean(judgements: Mapping[str, Judgement]) -> dict[str, float]:
    """Returns the means of SRCC, PLCC and KRCC over sets, each set weighted by its number of images.

    Raises:
      UserError: no sets.
    """
    if not judgements:
        raise UserError("no sets to take a mean over")
    images = [judgement.whole.images for judgement in judgements.values()]
    return {
        name: float(np.average([getattr(judgement.whole, name) for judgement in judgements.values()], weights=images))
        for name in ("srcc", "plcc", "krcc")
    }
