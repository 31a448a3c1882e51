"""From a config to the things a run is made of: model, prompt features, recipe."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from qualiclip_jax import checkpoint, degradations, models, prompts
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import backbones, weights
from qualiclip_jax.models.config import image_config
from qualiclip_jax.training import optimizer
from qualiclip_jax.training.state import Recipe, TrainState

RANDOM = "random"


def build_model(config: ConfigDict) -> checkpoint.Model:
    """The model before training: image encoder with its weights, and the features of the prompts.

    Random initialisation happens only where `model.weights` says "random"; its prompt features are then fixed random
    unit vectors. A checkpoint of this project brings its prompt features along. Otherwise the text encoder makes them
    and is dropped.

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
    elif checkpoint.is_one(m.weights):
        start = checkpoint.load_model(m.weights)
        clip, prompt_features = _from_checkpoint(start, pairs, changes)
        provenance["start"] = start.provenance
    else:
        clip = weights.load_clip(m.weights, text=True, **changes)
        prompt_features = prompts.text_features(clip, pairs, tokenizer=m.weights)
        clip.drop_text_encoder()
    return checkpoint.Model(clip, pairs, jax.device_get(prompt_features), config.temperature, provenance)


def _from_checkpoint(
    model: checkpoint.Model, pairs: tuple[tuple[str, str], ...], changes: dict[str, Any]
) -> tuple[models.CLIP, np.ndarray]:
    """The CLIP of a checkpoint without its text encoder, and the features of `pairs`: stored ones, or made with it."""
    if set(pairs) <= set(model.prompts):
        prompt_features = model.prompt_features[[model.prompts.index(pair) for pair in pairs]]
    elif model.clip.config.text:
        prompt_features = prompts.text_features(model.clip, pairs)
    else:
        raise UserError(
            f"config.prompts: the checkpoint of config.model.weights has no text encoder, and knows only "
            f"{', '.join(' / '.join(pair) for pair in model.prompts)}: take those, or convert with --text-encoder"
        )
    model.clip.drop_text_encoder()
    config, arrays = models.to_pure(model.clip)
    return models.from_pure(config | changes, arrays), prompt_features


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


def build_recipe(config: ConfigDict, model: checkpoint.Model, steps: int) -> tuple[Recipe, nnx.State, nnx.State]:
    """The constants of the run, the parameters, and the BatchNorm statistics.

    Raises:
      UserError: if the optimizer's table does not fit the parameters.
    """
    graphdef, params, batch_stats = nnx.split(model.clip, nnx.Param, nnx.BatchStat)
    recipe = Recipe(
        graphdef=graphdef,
        prompt_features=model.prompt_features,
        optimizer=optimizer.make_optimizer(config, params, steps),
        learning_rate=optimizer.schedule(config, _first_schedule(config), 1.0, steps),
        seed=config.seed,
        levels=config.degradations.levels,
        types=tuple(config.degradations.types) or degradations.TYPES,
        composed=config.degradations.composed,
        fewest=config.degradations.fewest or config.degradations.composed,
        margins={
            "margin_consistency": config.loss.margin_consistency,
            "margin_rank": config.loss.margin_rank,
        },
        weights={name: config.loss[f"weight_{name}"] for name in ("consistency", "positive", "negative", "across")},
        ema_decay=config.optimizer.ema_decay,
        accumulate=config.optimizer.accumulate,
        train_batch_norm=config.model.batch_norm == "trained",
    )
    return recipe, params, batch_stats


def _first_schedule(config: ConfigDict) -> str:
    return next((kind for _, kind, _ in config.optimizer.parameters if kind != "frozen"), "constant")


def scoring_model(
    recipe: Recipe, state: TrainState, model: checkpoint.Model, provenance: dict[str, Any]
) -> checkpoint.Model:
    """The model that a state scores with, everything but the weights taken from `model`."""
    clip = recipe.merge(state.scoring_params, state.batch_stats)
    return dataclasses.replace(model, clip=clip, provenance=model.provenance | provenance)
