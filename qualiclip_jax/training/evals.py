"""Evaluation during training: the synthetic benchmark on held-out photos, and rated sets."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from ml_collections import ConfigDict

from qualiclip_jax import models, quality
from qualiclip_jax.data import rated
from qualiclip_jax.data.rated import RatedSet
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import decode_size
from qualiclip_jax.inference.stream import score_images
from qualiclip_jax.training import build
from qualiclip_jax.training.ratings import VALIDATION
from qualiclip_jax.training.state import Parameters, Recipe, TrainState

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP


class Evaluator:
    """Measures a state on what the config names; holds the photos and the compiled score.

    Args:
      config: a training config; used are the section `eval` and `temperature`.
      recipe: the constants of the run.
      model: gives prompts and architecture.
      validation: a further rated set, measured as `srcc/validation`.

    Raises:
      UserError: if photos or sets are not there or cannot be read, if a photo is smaller than the crops, if a set's
        opinions are constant or not finite, or if `eval.best` names none of the metrics.
    """

    def __init__(self, config: ConfigDict, recipe: Recipe, model: models.Model, validation: RatedSet | None = None):
        from qualiclip_jax.data import pristine

        self._config, self._recipe, self._model = config, recipe, model
        self._photos = pristine.photos(config.eval.photos, limit=config.eval.max_photos) if config.eval.photos else []
        if self._photos:
            _check_crop(self._photos, config.eval.crop_size)
        self._rated = {name: _checked(rated.load(name)) for name in config.eval.rated}
        if validation is not None:
            self._rated[VALIDATION] = _checked(validation)

        @jax.jit
        def score(params: Parameters, batch_stats: Parameters, images: jax.Array) -> jax.Array:
            # images float [N, H, W, 3] in [0, 1]
            features = recipe.merge(params, batch_stats).encode_image(models.normalise(images))
            return model.score_of(quality.attribute_scores(features, recipe.prompt_features, config.temperature))

        self._score = score
        self._judge: QualiCLIP | None = None  # of the last state
        self.best = best_name(config.eval.best, self.names()) if self.names() else ""

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Returns the metrics by name; NaN where scores are constant.

        `synthetic` is the mean over the 24 types of the Spearman correlation of level and score (best -1), `srcc/NAME`
        that of score and opinion of a rated set (best 1).
        """
        params, batch_stats = jax.device_get((state.scoring_params, state.batch_stats))
        results = {}
        if self._photos:
            from qualiclip_jax.evaluation import synthetic

            params, batch_stats = jax.device_put((params, batch_stats))
            result = synthetic.run(
                lambda images: np.asarray(self._score(params, batch_stats, images)),
                self._photos,
                crop=self._config.eval.crop_size,
            )
            results["synthetic"] = result.mean
        for name, rated_set in self._rated.items():
            state = dataclasses.replace(state, params=params, batch_stats=batch_stats, ema=None)
            results[f"srcc/{name}"] = _srcc(self._scorer(state), *rated_set)
        return {name: float(value) for name, value in results.items()}

    def _scorer(self, state: TrainState) -> "QualiCLIP":
        """The model of a state, compiled at the first call alone."""
        from qualiclip_jax.inference.predictor import QualiCLIP

        model = build.scoring_model(self._recipe, state, self._model, {})
        if self._judge is None:
            self._judge = QualiCLIP.of(model)
        else:
            self._judge._encoder.take(model)
        return self._judge

    def names(self) -> list[str]:
        """Returns the names of the metrics."""
        return [*(["synthetic"] if self._photos else []), *(f"srcc/{name}" for name in self._rated)]


def _checked(rated_set: RatedSet) -> tuple[RatedSet, list[tuple[int, int]]]:
    """Returns a set and the sizes of its images, after checking that it can be measured."""
    from qualiclip_jax.evaluation import correlation

    opinions = correlation.check_values(rated_set.mos, f"opinions of {rated_set.name}")
    correlation.check_varies(opinions, f"opinions of {rated_set.name}")
    return rated_set, [decode_size(rated_set.image_bytes(i), rated_set.ids[i]) for i in range(len(rated_set))]


def _srcc(model: "QualiCLIP", rated_set: RatedSet, sizes: list[tuple[int, int]]) -> float:
    from qualiclip_jax.evaluation import correlation

    scores = np.full(len(sizes), np.nan)
    for scored in score_images(model, [sizes], rated_set.image):
        if scored.error is not None:
            raise UserError(f"{rated_set.name}: {rated_set.ids[scored.index]} cannot be scored: {scored.error}")
        scores[scored.index] = scored.score
    return correlation.srcc(scores, rated_set.mos) if np.ptp(scores) > 0 else np.nan


def _check_crop(photos: list[tuple[str, np.ndarray]], crop_size: int) -> None:
    name, photo = min(photos, key=lambda item: min(item[1].shape[:2]))
    shortest = min(photo.shape[:2])
    if crop_size > shortest:
        raise UserError(
            f"config.eval.crop_size is {crop_size}, larger than the smallest photo of config.eval.photos ({name}, "
            f"shortest side {shortest} px): choose a smaller one"
        )


def best_name(wanted: str, names: Sequence[str]) -> str:
    """Returns the metric that `config.eval.best` means: by its name, its short name, or a part that no other has.

    The short name of "srcc/csv:photos/ratings.csv" is "srcc/ratings".

    Raises:
      UserError: if none or several of `names` are meant.
    """
    short = {name: f"srcc/{rated.short_name(name.removeprefix('srcc/'))}" for name in names}
    meant = (
        [name for name in names if name == wanted]
        or [name for name in names if short[name] == wanted]
        or [name for name in names if wanted and wanted in name]
    )
    if len(meant) != 1:
        several = "means several" if meant else "is not measured"
        raise UserError(f"config.eval.best is {wanted!r}, which {several}: take one of {', '.join(meant or names)}")
    return meant[0]


def best_metric(best: str, results: dict[str, float]) -> float | None:
    """Returns the number that picks the best checkpoint, higher is better; None if it is not measured or not defined.

    Args:
      best: name of the metric (`best_name`).
      results: what an `Evaluator` returned.
    """
    value = results.get(best)
    if value is None or not np.isfinite(value):
        return None
    return -value if best == "synthetic" else value
