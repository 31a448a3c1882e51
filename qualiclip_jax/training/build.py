"""From a config to the things a run is made of: model, prompt features, recipe."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from qualiclip_jax import degradations, download, models, prompts, zoo
from qualiclip_jax.degradations.catalog import factor_matrix
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import backbones, lite, weights
from qualiclip_jax.models.clip_config import image_config
from qualiclip_jax.training import distill, optimizer, probe, votes
from qualiclip_jax.training.adapters import Adapted
from qualiclip_jax.training.ratings import Objective, PromptLearner
from qualiclip_jax.training.state import Parameters, Recipe, TrainState

RANDOM = "random"
LOSSES = ("consistency", "positive", "negative", "across", "triplets")  # each has a weight in `config.loss`
CLASSIFIER_DIM = 64  # of the common space, for an image classifier, if the config does not say


def build_model(config: ConfigDict) -> models.Model:
    """The model before training: image encoder with its weights, and the features of the prompts.

    Random initialisation happens only where `model.weights` says "random"; its prompt features are then fixed random
    unit vectors. So they are for an image classifier, whose projection is random, too. `zoo.load` tells what else it
    may say. A checkpoint brings its prompt features along; otherwise the text encoder makes them and is dropped.

    Raises:
      UserError: if the weights are not there, or the config does not say which.
    """
    m = config.model
    pairs = prompts.check_prompts(config.prompts)
    provenance = {"weights": m.weights, "seed": config.seed}
    if not m.weights:
        raise UserError('config.model.weights is empty: name pretrained weights, or say "random" to start from scratch')
    changes = {"compute_dtype": m.compute_dtype, "remat": m.remat} | ({"position": m.position} if m.position else {})
    if m.weights == RANDOM:
        clip_config = dataclasses.replace(_described(m), text=None, **changes)
        clip = models.CLIP(clip_config, rngs=nnx.Rngs(config.seed))
        prompt_features = prompts.random_text_features(len(pairs), clip_config.embed_dim, config.seed)
    else:
        try:
            start = zoo.build(m.weights, prompts=pairs, text_encoder=_learns_prompts(config), **changes)
            clip, prompt_features = start.clip, start.prompt_features
            provenance["start"] = start.provenance
        except weights.ClassifierError as error:
            dim = len(pairs) + 1 if config.probe.images else CLASSIFIER_DIM
            found, clip_config = error.weights, dataclasses.replace(_classifier(m, dim), **changes)
            clip = lite.from_tensors(found.tensors, clip_config, seed=config.seed, name=found.name)
            prompt_features = prompts.random_text_features(len(pairs), clip_config.embed_dim, config.seed)
            provenance |= {"random": "projection and prompt features", "sha256": _digests(found)}
    if config.probe.images:
        prompt_features = probe.prompt_features(clip, len(pairs))
        provenance |= {"random": "none", "probe": config.probe.to_dict()}
    return models.Model(clip, pairs, jax.device_get(prompt_features), config.temperature, provenance, config.scored)


def _learns_prompts(config: ConfigDict) -> bool:
    return bool(config.ratings.source) and not config.model.adapter_rank


def _described(m: ConfigDict) -> models.CLIPConfig:
    """The architecture that the config names or spells out."""
    if m.backbone and m.image:
        raise UserError("config.model.backbone and config.model.image are both given: keep one")
    if m.backbone:
        return backbones.get(m.backbone)
    if not m.image or not m.embed_dim:
        raise UserError("config.model.weights is 'random': give model.backbone, or model.image and model.embed_dim")
    try:
        return models.CLIPConfig(m.embed_dim, image_config(m.image.to_dict()))
    except UserError as error:
        raise UserError(f"config.model: {error}") from None


def _classifier(m: ConfigDict, embed_dim: int) -> models.CLIPConfig:
    """What to build on the weights of an image classifier; `embed_dim` is the default."""
    if m.backbone:
        raise UserError(
            f"config.model.backbone is given, and so are the weights of a classifier, {m.weights}: keep one"
        )
    try:
        image = image_config({"kind": models.EfficientNetConfig.kind} | m.image.to_dict())
        return models.CLIPConfig(m.embed_dim or embed_dim, image)
    except UserError as error:
        raise UserError(f"config.model: {error}") from None


def _digests(found: weights.Weights) -> dict[str, str]:
    return {file.name: download.sha256(file) for file in found.files}


def build_trained(config: ConfigDict, model: models.Model) -> models.CLIP | Adapted | PromptLearner:
    """What is trained: the CLIP of a model itself, or adapters or prompts beside it, which stays frozen.

    Raises:
      UserError: if this CLIP has nothing to adapt, nothing of such a rank, or no text encoder for prompts.
    """
    if config.model.adapter_rank:
        return Adapted(model.clip, config.model.adapter_rank, config.seed)
    if _learns_prompts(config):
        return PromptLearner(model.clip, model.prompts, config.ratings.context, config.seed)
    return model.clip


def build_recipe(config: ConfigDict, model: models.Model, steps: int) -> tuple[Recipe, Parameters, Parameters]:
    """The constants of the run, the parameters, and the BatchNorm statistics.

    Raises:
      UserError: if the optimizer's table does not fit the parameters, or the teacher is not there.
    """
    trained = build_trained(config, model)
    frozen = "" if trained is model.clip else "clip/.*"
    objective, r = None, config.ratings
    if r.source:
        weights = {name: r[f"weight_{name}"] for name in ("mse", "plcc", "fidelity")}
        objective = Objective(model.temperature, model.scored, weights, r.weight_degradations)
    graphdef, params, *rest = nnx.split(trained, nnx.Param, nnx.BatchStat)
    (batch_stats,) = rest
    recipe = Recipe(
        graphdef=graphdef,
        prompt_features=model.prompt_features,
        optimizer=optimizer.make_optimizer(config, params, steps, frozen),
        learning_rate=optimizer.schedule(config, _first_schedule(config), 1.0, steps),
        seed=config.seed,
        levels=config.degradations.levels,
        types=tuple(config.degradations.types) or degradations.TYPES,
        composed=config.degradations.composed,
        fewest=config.degradations.fewest or config.degradations.composed,
        factors=factor_matrix(tuple(config.loss.factors) or ("all",) * len(model.prompts)),
        camera=config.degradations.camera,
        continuous=config.degradations.continuous,
        local=config.degradations.local,
        alone=config.degradations.alone,
        margins={
            "margin_consistency": config.loss.margin_consistency,
            "margin_rank": config.loss.margin_rank,
        },
        weights={
            **{name: config.loss[f"weight_{name}"] for name in LOSSES},
            **dict.fromkeys(("distillation", "votes"), config.distillation.weight),
        },
        margin_triplets=config.loss.margin_triplets,
        ema_decay=config.optimizer.ema_decay,
        accumulate=config.optimizer.accumulate,
        train_batch_norm=config.model.batch_norm == "trained",
        ratings=objective,
        teacher=_teacher(config, model.bias),
    )
    return recipe, params, batch_stats


def _teacher(config: ConfigDict, student_bias: float | None) -> distill.Teacher | None:
    """The teacher that the config names, for the prompts of the run."""
    name = config.distillation.teacher
    if not name:
        return None
    pairs, compute_dtype = prompts.check_prompts(config.prompts), config.model.compute_dtype
    model = zoo.build(name, prompts=pairs, compute_dtype=compute_dtype)
    if model.magnitude is not None:
        raise UserError(
            f"config.distillation.teacher {name}: its scores count the magnitude of features, which is not taught: "
            "take the model that it was converted from"
        )
    if config.distillation.by == "votes":
        options = {"scored": config.scored, "majority": config.distillation.majority}
        return votes.Voters.of(model, config.temperature, student_bias, **options)
    return distill.Teacher.of(model, config.temperature, student_bias)


def _first_schedule(config: ConfigDict) -> str:
    return next((kind for _, kind, _ in config.optimizer.parameters if kind != "frozen"), "constant")


def scoring_model(recipe: Recipe, state: TrainState, model: models.Model, provenance: dict[str, Any]) -> models.Model:
    """The model that a state scores with, everything but the weights (and learned prompts) taken from `model`."""
    trained = recipe.merge(state.scoring_params, state.batch_stats)
    clip, features = trained, model.prompt_features
    if isinstance(trained, PromptLearner | Adapted):
        clip, learned = trained.parts(features)
        clip.drop_text_encoder()
        features = np.asarray(learned)
    if recipe.teacher is not None:
        provenance = provenance | {"teacher": recipe.teacher.provenance}
    return dataclasses.replace(
        model, clip=clip, prompt_features=features, provenance=model.provenance | provenance, rating=None
    )
