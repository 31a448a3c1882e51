"""An evaluation: a model, and perhaps a baseline beside it, on rated sets and on the synthetic benchmark.

from qualiclip_jax.evaluation import report, run

found = run.evaluate("runs/demo", ["csv:ratings.csv", "synthetic"], cache="scores")
found.sets[0].judgement.whole.srcc      # with the opinions of the first rated set
found.synthetic[0].result.mean          # with levels of degradation
report.write(found, Path("evaluation"))
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from qualiclip_jax import tabular
from qualiclip_jax.data import rated
from qualiclip_jax.data.rated import RatedSet
from qualiclip_jax.degradations.catalog import TYPES
from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import literature, protocol, significance, synthetic
from qualiclip_jax.evaluation.contestants import Contestant, ScoresTable, ScoringModel
from qualiclip_jax.evaluation.results import Results, SetResult, SyntheticSet
from qualiclip_jax.images import decode_size

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP

AUTO = "auto"
SYNTHETIC, DEFAULT_SOURCE = "synthetic", "sample:test"

Model: TypeAlias = "str | os.PathLike[str] | QualiCLIP | Contestant"


def evaluate(
    model: Model = "tiny",
    datasets: Sequence[str | RatedSet] = (SYNTHETIC,),
    *,
    baseline: "Model | None" = AUTO,
    cache: str | os.PathLike[str] | None = None,
    splits: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    photos: int = 32,
    crop: int | None = None,
) -> Results:
    """Measures how well scores agree with human opinion, and with levels of degradation.

    Args:
      model: what `QualiCLIP.load` takes, a `QualiCLIP`, or the file of a table of scores (by its extension); a
        `ScoresTable` where lower scores are better.
      datasets: what `rated.load` takes or gives, and "synthetic" or "synthetic:SOURCE" with the SOURCE of
        `pristine.photos`.
      baseline: to compare with, in the same forms; None for no comparison; "auto" for the model before its training,
        if `model` is the path of a training run that has kept it.
      cache: folder where scores of models are kept for the next time; None to keep none.
      splits: number of random test splits; 0 for none.
      resamples: of the bootstrap; 0 for no intervals.
      seed: of splits, bootstrap and degradations.
      photos: at most, of each source of the synthetic benchmark; 0 for all.
      crop: side of the crops of the synthetic benchmark, px; None for 224 or what fits.

    Returns:
      All figures; `report.write` makes files of them.

    Raises:
      UserError: a model, a set or a photo is missing or cannot be read, an image has no score, or a correlation is not
        defined.
    """
    sets = [rated.load(name) if isinstance(name, str) else name for name in datasets if not is_synthetic(name)]
    sources = [str(name).partition(":")[2] or DEFAULT_SOURCE for name in datasets if is_synthetic(name)]
    given = [model] if baseline is None else [model, before_training(model) if baseline == AUTO else baseline]
    contestants = [as_contestant(m, None if cache is None else Path(cache)) for m in given if m is not None]
    for contestant in contestants:
        if sources and isinstance(contestant, ScoresTable):
            contestant.benchmark((), 0, seed, "")  # raises
    unknown = "No baseline: the model before training is not known here; name one with --baseline."
    names = ("before", "after") if baseline == AUTO else ("baseline", "model")
    return Results(
        model=contestants[0].facts,
        baseline=contestants[1].facts if len(contestants) > 1 else None,
        note=unknown if len(contestants) < len(given) else "",
        sets=[
            _judge(rated_set, slug, contestants, splits=splits, resamples=resamples, seed=seed)
            for rated_set, slug in zip(sets, slugs([rated.short_name(rated_set.name) for rated_set in sets]))
        ],
        synthetic=[
            _benchmark(source, slug, contestants, names, photos=photos, crop=crop, seed=seed)
            for source, slug in zip(sources, slugs(sources))
        ],
    )


def is_synthetic(name: str | RatedSet) -> bool:
    """Whether `name` is that of the synthetic benchmark, and not a rated set."""
    return isinstance(name, str) and name.partition(":")[0] == SYNTHETIC


def as_contestant(given: Model, cache: Path | None) -> Contestant:
    """What `evaluate` takes for a model, ready to give scores; those of models are kept in `cache`."""
    from qualiclip_jax.inference.predictor import QualiCLIP

    if isinstance(given, str | os.PathLike):
        return ScoresTable(given) if tabular.is_table(given) else ScoringModel(given, cache)
    return ScoringModel(given, cache) if isinstance(given, QualiCLIP) else given


def before_training(model: Model) -> Path | None:
    """The model that a training run started from; the run keeps it beside its checkpoints."""
    from qualiclip_jax.checkpoint import INITIAL

    if isinstance(model, str | os.PathLike) and os.path.isdir(model):
        path = Path(model)
        for folder in (path / "checkpoints", path.resolve().parent):
            if (folder / INITIAL).is_dir() and path.resolve() != (folder / INITIAL).resolve():
                return folder / INITIAL
    return None


def _judge(
    rated_set: RatedSet, slug: str, contestants: Sequence[Contestant], *, splits: int, resamples: int, seed: int
) -> SetResult:
    """One rated set: scores, protocols, comparison of the first contestant with the second."""

    def judged(contestant: Contestant, title: str) -> tuple[np.ndarray, protocol.Judgement]:
        scores = contestant.scores(rated_set, title)
        try:
            return scores, protocol.judge(
                rated_set.ids, scores, rated_set.mos, split=rated_set.split, reference=rated_set.reference,
                distortion=rated_set.distortion, splits=splits, resamples=resamples, seed=seed,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"{title}: {error}") from None

    (scores, judgement), *others = [judged(c, t) for c, t in zip(contestants, (slug, f"{slug}, baseline"))]
    beside = _published(rated_set)
    if not others:
        return SetResult(rated_set, slug, scores, judgement, published=beside)
    before, baseline = others[0]
    tests = [
        significance.compare(scores, before, rated_set.mos, statistic=name, resamples=resamples or 1000, seed=seed)
        for name in ("srcc", "plcc")
    ]
    return SetResult(rated_set, slug, scores, judgement, before, baseline, tests, beside)


def _published(rated_set: RatedSet) -> list[literature.Published]:
    """Published results that may stand beside ours."""
    if rated_set.missing or rated_set.name not in {entry.dataset for entry in literature.TABLE}:
        return []
    longest = max(decode_size(rated_set.image_bytes(0), rated_set.ids[0]))
    protocols = (protocol.WHOLE, protocol.OFFICIAL_TEST)
    return [entry for name in protocols for entry in literature.comparable(rated_set.name, name, longest)]


def _benchmark(
    source: str, slug: str, contestants: Sequence[Contestant], names: tuple[str, str], *, photos: int, crop: int | None,
    seed: int,
) -> SyntheticSet:  # fmt: skip
    """The synthetic benchmark on one source of photos."""
    from qualiclip_jax.data import pristine  # imports grain

    images = pristine.photos(source, limit=photos or None)
    crop = synthetic.check(images, TYPES, crop)
    title = f"{SYNTHETIC}:{source}"
    result, *before = [
        contestant.benchmark(images, crop, seed, title)
        for contestant, title in zip(contestants, (title, f"{title}, baseline"))
    ]
    return SyntheticSet(source, slug, result, before[0] if before else None, names if before else ("", "model"))


def slugs(names: Sequence[str]) -> list[str]:
    """Names fit for files, each different."""
    slugs: list[str] = []
    for name in names:
        base = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-") or "set"
        slug, number = base, 2
        while slug in slugs:
            slug, number = f"{base}-{number}", number + 1
        slugs.append(slug)
    return slugs
