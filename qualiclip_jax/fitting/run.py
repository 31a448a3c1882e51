"""Fitting a model to the ratings of a set, and writing it: what `qualiclip fit` does.

from qualiclip_jax.data import rated
from qualiclip_jax.fitting import run

fitted = run.fit("tiny", rated.load("csv:my.csv"), "fitted")
fitted.model.rate(images)  # MOS and the ends of its interval
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qualiclip_jax import storage
from qualiclip_jax.data.rated import RatedSet, short_name
from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import correlation
from qualiclip_jax.fitting import choice, features, learn, rungs
from qualiclip_jax.inference.predictor import QualiCLIP
from qualiclip_jax.progress import Progress
from qualiclip_jax.storage import StrPath
from qualiclip_jax.training import ratings

FEATURES, CHECKPOINT, TRAINING = "features.sqlite", "checkpoints/0", "training"
LEARNED = ("prompts", "adapter")
LADDER = {  # the simplest rung first, and the fewest ratings that it needs
    **{name: rung.fewest for name, rung in rungs.RUNGS.items()},
    **dict.fromkeys(LEARNED, 200),
}
FEWEST_COMPARED = 300  # where one of `LEARNED` is compared with other rungs: a fifth is put aside


@dataclasses.dataclass(frozen=True)
class Tested:
    """How well a fitted model does on the published test part of a set, which it was not fitted to.

    Attributes:
      images: how many.
      before: SRCC of the starting model's scores.
      srcc, plcc: of the ratings that it gives.
      rmse: of these, in the unit of the set.
      covered: the share of test ratings within their intervals.
    """

    images: int
    before: float
    srcc: float
    plcc: float
    rmse: float
    covered: float


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A model that rates.

    Attributes:
      model: the model.
      images: how many ratings its scale was fitted to (of `LEARNED` those that were not learned from).
      before: SRCC of the starting model's scores with these.
      chosen: which rung was taken, and why.
      tested: on the set's test part; None if the set has none.
      path: the checkpoint.
    """

    model: QualiCLIP
    images: int
    before: float
    chosen: choice.Chosen
    tested: Tested | None
    path: Path


def fit(
    model: StrPath | QualiCLIP, rated: RatedSet, out: StrPath, *, method: str = choice.AUTO, seed: int = 0
) -> Fitted:
    """Fits a model to ratings and writes it.

    Where the set has a published test part, that is left out and the model is tested on it.

    Args:
      model: what `QualiCLIP.load` takes, or a `QualiCLIP`.
      rated: the ratings; images that share a reference are kept together in cross-validation.
      out: a folder for the checkpoint and for features on the way; a run that was killed goes on from these.
      method: a rung of `LADDER`; several, joined by commas, of which the simplest is taken that is about as good as
        the best; or "auto" for "scale,head".
      seed: of the folds, and of what is trained.

    Raises:
      UserError: nothing can be learned from the ratings (see `choice.choose`), an image cannot be read, or the folder
        holds a fitted model already or cannot be written.
    """
    names = rungs_of(method)
    trained = [name for name in names if name in LEARNED]
    compared = bool(trained) and len(names) > 1
    groups, mos = rated.groups, rated.mos
    test = np.array([part == "test" for part in rated.split or [""] * len(rated)])
    train = np.flatnonzero(~test)
    if not len(train):
        raise UserError(f"{rated.name}: all images are of its test part: nothing is left to fit to")
    choice.check(mos[train], groups[train], FEWEST_COMPARED if compared else min(LADDER[name] for name in names))
    aside, seen = learn.put_aside(rated, train, seed) if compared else (train[:0], rated)
    if trained:
        if isinstance(model, QualiCLIP):
            raise UserError(f"method {trained[0]} trains: give the model's name or path")
        if ratings.PROMPTS in trained:
            learn.require_text_encoder(model)
        _, validation = ratings.divided(seen, seed)
        choice.check(mos[validation], groups[validation], LADDER["scale"])  # now, not after the training
    with reserved(Path(out)) as folder:
        start = model if isinstance(model, QualiCLIP) else QualiCLIP.load(model)
        own = features.extract(start, rated, folder / FEATURES)
        if compared and "scale" in names:
            choice.check_rises(own.scores[train], mos[train])
        candidates = {name: learn.Candidate(name, own, np.setdiff1d(train, aside)) for name in names}
        for name in trained:
            assert not isinstance(model, QualiCLIP)
            learned, rows = learn.learn(name, model, start, seen, folder / TRAINING / name, seed)
            found = features.extract(learned, rated, folder / FEATURES, f"features, {name}")
            candidates[name] = learn.Candidate("scale", found, rows, learned)
        taken, table = learn.compare(candidates, mos, groups, aside, seed) if compared else (names[0], [])
        one = candidates[taken]
        train = train if one.learned is None else np.union1d(one.rows, aside)
        ladder = {name: rungs.RUNGS[name] for name in ([one.rung] if trained else names)}
        with Progress(len(ladder), "cross-validation", "rung") as progress:
            chosen = choice.choose(
                one.features.of(train), mos[train], groups[train], seed=seed, ladder=ladder, advance=progress.advance
            )
        if compared:
            chosen = dataclasses.replace(chosen, name=taken, table=table, aside=len(aside))
        rating = dataclasses.replace(chosen.rating, rater=one.learned)
        facts: dict[str, Any] = {
            "ratings": rated.name,
            "images": len(train),
            "method": rating.method if one.learned is None else f"{taken}, {rating.method}",
            "start": start.fingerprint,
            "tried": {tried.name: dataclasses.asdict(tried) for tried in chosen.table},
        }
        fitted = dataclasses.replace(start, rating=rating, provenance=start.provenance | {"fit": facts})
        fitted.save(folder / CHECKPOINT)
    left = np.flatnonzero(test)
    tested = _tested(own.scores[left], one.features.of(left), mos[left], chosen) if len(left) else None
    return Fitted(fitted, len(train), _srcc(own.scores[train], mos[train]), chosen, tested, folder / CHECKPOINT)


def rungs_of(method: str) -> list[str]:
    """The rungs that a method names, the simplest first.

    Raises:
      UserError: it names one that there is not.
    """
    if method == choice.AUTO:
        return list(rungs.RUNGS)
    wanted = [name.strip() for name in method.split(",")]
    for name in wanted:
        if name not in LADDER:
            raise UserError(f"no method {name!r}: there are {choice.AUTO}, {', '.join(LADDER)}, or several of these")
    return [name for name in LADDER if name in wanted]


@contextlib.contextmanager
def reserved(out: Path) -> Iterator[Path]:
    """Holds the right to write a fitted model to a folder; gives the folder, which is made.

    Raises:
      UserError: there is a model already, the folder cannot be written, or another process fits one there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror or error})") from None
    with storage.lock(out / FEATURES):
        taken = [name for name in ("checkpoints", "meta", "model") if (out / name).exists()]
        if taken:
            raise UserError(f"--out {out} holds a model already: choose another folder, or remove it first")
        yield out


def _tested(own: np.ndarray, found: features.Features, mos: np.ndarray, chosen: choice.Chosen) -> Tested:
    predicted = rungs.predict(chosen.rating, found)
    within = np.abs(predicted - mos) <= chosen.rating.half_width
    srcc, plcc, rmse = (f(predicted, mos) for f in (correlation.srcc, correlation.plcc, correlation.rmse))
    return Tested(len(mos), _srcc(own, mos), srcc, plcc, rmse, float(within.mean()))


def _srcc(x: np.ndarray, y: np.ndarray) -> float:
    return correlation.srcc(x, y) if np.ptp(x) > 0 else float("nan")


def text(fitted: Fitted, rated: RatedSet) -> str:
    """What came out, for people: the table of rungs, and what was taken."""
    low, high = float(rated.mos.min()), float(rated.mos.max())
    level, aside = round(100 * fitted.chosen.rating.level), fitted.chosen.aside
    where = f"{aside} ratings put aside" if aside else "ratings left out, in cross-validation"
    lines = [
        f"{fitted.images} ratings of {short_name(rated.name)}, {low:g} to {high:g}; the model's own score has SRCC "
        f"{fitted.before:.3f} with them",
        "",
        f"rung     SRCC    PLCC    RMSE     {level} % interval   (of {where})",
    ]
    for tried in fitted.chosen.table:
        taken = "   taken" if tried.name == fitted.chosen.name else ""
        lines.append(
            f"{tried.name:7s}  {tried.srcc:.3f}   {tried.plcc:.3f}   {tried.rmse:<7.3g}  "
            f"+- {tried.half_width:.3g}{taken}"
        )
    if len(fitted.chosen.table) > 1:
        lines += ["", "taken: the simplest that is worse than the best by no more than a standard error"]
    if (tested := fitted.tested) is not None:
        lines += [
            "",
            f"test part, {tested.images} images: SRCC {tested.srcc:.3f} (before {tested.before:.3f}), "
            f"PLCC {tested.plcc:.3f}, RMSE {tested.rmse:.3g}; {100 * tested.covered:.0f} % of its ratings are in their "
            "intervals",
        ]
    return "\n".join(lines)
