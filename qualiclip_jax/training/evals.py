"""Evaluation during training: the synthetic benchmark on held-out photos, and rated sets."""

import jax
import numpy as np
from ml_collections import ConfigDict

from qualiclip_jax import checkpoint, models, quality
from qualiclip_jax.images import decode_size
from qualiclip_jax.training.state import Recipe, TrainState


class Evaluator:
    """Measures a state on what the config names; holds the photos and the compiled score.

    Args:
      config: a training config; used are the section `eval` and `temperature`.
      recipe: the constants of the run.
      model: gives prompts and architecture.
    """

    def __init__(self, config: ConfigDict, recipe: Recipe, model: checkpoint.Model):
        from qualiclip_jax.data import pristine, rated

        self._config, self._recipe, self._model = config, recipe, model
        self._photos = pristine.photos(config.eval.photos, limit=config.eval.max_photos) if config.eval.photos else []
        self._rated = {name: rated.load(name) for name in config.eval.rated}

        @jax.jit
        def score(params, batch_stats, images):  # images float [N, H, W, 3] in [0, 1]
            features = recipe.merge(params, batch_stats).encode_image(models.normalise(images))
            return quality.quality_score(features, recipe.prompt_features, config.temperature)

        self._score = score

    def __call__(self, state: TrainState) -> dict[str, float]:
        """`synthetic`: mean over the 24 types of the Spearman correlation of level and score (best -1), and
        `srcc/NAME` for each rated set (best 1)."""
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
            from qualiclip_jax.evaluation import correlation
            from qualiclip_jax.inference.predictor import QualiCLIP

            clip = self._recipe.merge(params, batch_stats)
            model = QualiCLIP(clip, self._model.prompts, self._model.prompt_features, self._model.temperature)
            sizes = [decode_size(rated_set.image_bytes(i), rated_set.ids[i]) for i in range(len(rated_set))]
            scores = dict(model.run(sizes, rated_set.image))
            results[f"srcc/{name}"] = correlation.srcc([scores[i].mean() for i in range(len(sizes))], rated_set.mos)
        return {name: float(value) for name, value in results.items()}

    def names(self) -> list[str]:
        """The names of the metrics it gives."""
        return [*(["synthetic"] if self._photos else []), *(f"srcc/{name}" for name in self._rated)]


def best_metric(config: ConfigDict, results: dict[str, float]) -> float | None:
    """The number that picks the best checkpoint, higher is better; None if it was not measured or is not defined."""
    value = results.get(config.eval.best)
    if value is None or not np.isfinite(value):
        return None
    return -value if config.eval.best == "synthetic" else value
