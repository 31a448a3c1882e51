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
METHODS = {  # and the fewest ratings
    choice.AUTO: min(rung.fewest for rung in rungs.RUNGS.values()),
    **{name: rung.fewest for name, rung in rungs.RUNGS.items()},
    **dict.fromkeys(LEARNED, 200),
}


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
      images: how many ratings its scale was fitted to (of `LEARNED` those that picked the checkpoint).
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
      method: a rung of `rungs.RUNGS`, "auto" for the best of them, or one of `LEARNED`.
      seed: of the folds.

    Raises:
      UserError: nothing can be learned from the ratings (see `choice.choose`), an image cannot be read, or the folder
        holds a fitted model already or cannot be written.
    """
    if method not in METHODS:
        raise UserError(f"no method {method!r}: there are {', '.join(METHODS)}")
    groups, mos = rated.groups, rated.mos
    test = np.array([part == "test" for part in rated.split or [""] * len(rated)])
    train = np.flatnonzero(~test)
    if not len(train):
        raise UserError(f"{rated.name}: all images are of its test part: nothing is left to fit to")
    choice.check(mos[train], groups[train], METHODS[method])
    if method in LEARNED:
        if isinstance(model, QualiCLIP):
            raise UserError(f"method {method} trains: give the model's name or path")
        _, validation = ratings.divided(rated, seed)
        choice.check(mos[validation], groups[validation], rungs.RUNGS["scale"].fewest)  # now, not after the training
    with reserved(Path(out)) as folder:
        start = judge = model if isinstance(model, QualiCLIP) else QualiCLIP.load(model)
        found = own = features.extract(start, rated, folder / FEATURES)
        if method in LEARNED and not isinstance(model, QualiCLIP):
            judge, train = learn.learn(method, model, start, rated, folder / TRAINING, seed)
            found = features.extract(judge, rated, folder / FEATURES)
        closed = "scale" if method in LEARNED else method
        with Progress(len(rungs.RUNGS) if method == choice.AUTO else 1, "cross-validation", "rung") as progress:
            chosen = choice.choose(
                found.of(train), mos[train], groups[train], method=closed, seed=seed, advance=progress.advance
            )
        before = _srcc(own.scores[train], mos[train])
        facts: dict[str, Any] = {
            "ratings": rated.name,
            "images": len(train),
            "method": f"{method}, {chosen.rating.method}" if method in LEARNED else chosen.rating.method,
            "start": start.fingerprint,
            "tried": {tried.name: dataclasses.asdict(tried) for tried in chosen.table},
        }
        fitted = dataclasses.replace(judge, rating=chosen.rating, provenance=judge.provenance | {"fit": facts})
        fitted.save(folder / CHECKPOINT)
    left = np.flatnonzero(test)
    tested = _tested(own.scores[left], found.of(left), mos[left], chosen) if len(left) else None
    return Fitted(fitted, len(train), before, chosen, tested, folder / CHECKPOINT)


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
    level = round(100 * fitted.chosen.rating.level)
    lines = [
        f"{fitted.images} ratings of {short_name(rated.name)}, {low:g} to {high:g}; the model's own score has SRCC "
        f"{fitted.before:.3f} with them",
        "",
        f"rung     SRCC    PLCC    RMSE     {level} % interval   (of ratings left out, in cross-validation)",
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
