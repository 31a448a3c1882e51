"""The training step: one pure function from (state, batch) to (state, metrics)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from qualiclip_jax import degradations, models, objective, quality
from qualiclip_jax.degradations import camera
from qualiclip_jax.degradations.catalog import FACTORS
from qualiclip_jax.training import ratings
from qualiclip_jax.training.state import AxisName, Parameters, Recipe, TrainState

# One stream of random keys for each purpose, folded from the seed.
STREAM_TYPES, STREAM_DEGRADATIONS, STREAM_CAMERA = 0, 1, 2
NO_DEGRADATION = -1
Batch = dict[str, jax.Array]
Gradients = Callable[
    [Parameters, Parameters, Parameters | None, Batch], tuple[Parameters, dict[str, jax.Array], Parameters]
]


def example_keys(seed: int, stream: int, example: jax.Array) -> jax.Array:
    """A key for each example, the same whichever device or process it is on.

    Args:
      seed: of the run.
      stream: what the key is for.
      example: integer [B], position in the run's stream of examples (step * batch size + index in the batch).

    Returns:
      keys [B].
    """
    stream_key = jax.random.fold_in(jax.random.key(seed), stream)
    return jax.vmap(lambda position: jax.random.fold_in(stream_key, position))(example)


def draw_types(example: jax.Array, recipe: Recipe) -> jax.Array:
    """The degradations of each image: `recipe.fewest` to `recipe.composed` types of distinct groups.

    Args:
      example: integer [B], position in the stream.
      recipe: gives seed and numbers.

    Returns:
      int32 [B] or (with several degradations an image) [B, D], indices into `degradations.TYPES`, -1 for none.
    """

    def one_image(key: jax.Array) -> jax.Array:
        types = degradations.sample_types(key, 1, recipe.composed, recipe.types)[0]
        if recipe.fewest == recipe.composed:
            return types
        count = jax.random.randint(jax.random.fold_in(key, 1), (), recipe.fewest, recipe.composed + 1)
        return jnp.where(jnp.arange(recipe.composed) < count, types, NO_DEGRADATION)

    return jax.vmap(one_image)(example_keys(recipe.seed, STREAM_TYPES, example))


def drawn_for_camera(example: jax.Array, recipe: Recipe) -> jax.Array:
    """Which images the camera's chain degrades: bool [B], with probability `recipe.camera`. The others get types."""
    keys = example_keys(recipe.seed, STREAM_CAMERA, example)
    return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0)) < recipe.camera)(keys)


def degrade_batch(crops: jax.Array, example: jax.Array, recipe: Recipe) -> tuple[jax.Array, jax.Array]:
    """Degrades each image by types, or by faults of a camera, of its own at all levels.

    Args:
      crops: uint8 [B, 2, H, W, 3].
      example: integer [B], position in the stream.
      recipe: gives seed, levels, the number of composed types and the share of images for the camera.

    Returns:
      Images float32 [B, L, 2, H, W, 3] in [0, 1], and their severities float32 [B, L, K] by `camera.FACTORS`.
    """
    types = draw_types(example, recipe)
    keys = example_keys(recipe.seed, STREAM_DEGRADATIONS, example)
    if not recipe.camera:
        return _degrade_by_types(crops, types, keys, recipe), _severities(types, recipe)
    by_camera = drawn_for_camera(example, recipe)
    camera_keys = example_keys(recipe.seed, STREAM_CAMERA, example)
    levels = jnp.where(by_camera[:, None], _camera_levels(camera_keys, recipe), 0)  # at level 0 nothing is computed
    chain_keys = jax.vmap(jax.random.fold_in, (0, None))(camera_keys, 2)
    images, severities = camera.simulate(crops, chain_keys, levels, local=recipe.local, alone=recipe.alone)
    if recipe.camera == 1:
        return images, severities
    types = jnp.where(by_camera if types.ndim == 1 else by_camera[:, None], NO_DEGRADATION, types)
    of_types = _degrade_by_types(crops, types, keys, recipe)
    where = by_camera[:, None, None]
    images = jnp.where(where[..., None, None, None], images, of_types)
    return images, jnp.where(where, severities, _severities(types, recipe))


def _degrade_by_types(crops: jax.Array, types: jax.Array, keys: jax.Array, recipe: Recipe) -> jax.Array:
    return degradations.degrade_pairs(crops, types, keys, levels=recipe.levels, among=recipe.types)


def describe(example: np.ndarray, severities: np.ndarray, recipe: Recipe) -> list[str]:
    """What `degrade_batch` did to each image, for people: names of types, or of factors with their severity.

    Args:
      example: integer [B].
      severities: float [B, L, K] that `degrade_batch` gave.
      recipe: of the run.
    """
    types, by_camera = jax.jit(lambda x: (draw_types(x, recipe), drawn_for_camera(x, recipe)))(example)
    types = np.asarray(types).reshape(len(example), -1)
    names = []
    for row, drawn, worst in zip(types, by_camera, severities[:, -1]):
        factors = [f"{name} {value:.2f}" for name, value in zip(FACTORS, worst) if value]
        names.append("\n+ ".join(factors if drawn else [degradations.TYPES[t] for t in row if t >= 0]))
    return names


def _severities(types: jax.Array, recipe: Recipe) -> jax.Array:
    return camera.severities_of_types(types.reshape(len(types), -1), recipe.levels)


def _camera_levels(keys: jax.Array, recipe: Recipe) -> jax.Array:
    """Levels [B, L] for the camera: from 0 to 1, or as far apart from an offset that is drawn for each image."""
    number = jnp.arange(recipe.levels, dtype=jnp.float32)
    if not recipe.continuous:
        return jnp.broadcast_to(number / (recipe.levels - 1), (len(keys), recipe.levels))
    offset = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    return (number + offset[:, None]) / recipe.levels


def encode(
    params: Parameters, batch_stats: Parameters, images: jax.Array, recipe: Recipe, axis_name: AxisName
) -> tuple[jax.Array, Parameters]:
    """Features [B, L, 2, D] of degraded crops, and the new batch_stats.

    Args:
      params: of the image encoder.
      batch_stats: of its BatchNorm layers.
      images: float32 [B, L, 2, H, W, 3] in [0, 1].
      recipe: the constants of the run.
      axis_name: device axis over which batch statistics are averaged; None on a single device.
    """
    clip = recipe.merge(params, batch_stats)
    if recipe.train_batch_norm:
        clip.batch_norm_mode(training=True, axis_name=axis_name)
    flat = models.normalise(images.reshape(-1, *images.shape[-3:]))
    return clip.encode_image(flat).reshape(*images.shape[:3], -1), nnx.state(clip, nnx.BatchStat)


def loss_fn(
    params: Parameters,
    batch_stats: Parameters,
    images: jax.Array,
    severities: jax.Array,
    recipe: Recipe,
    axis_name: AxisName,
    across: "Across | None" = None,
    taught: jax.Array | None = None,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Parameters]]:
    """The objective on degraded crops.

    Args:
      params: of the image encoder.
      batch_stats: of its BatchNorm layers.
      images: float32 [B, L, 2, H, W, 3] in [0, 1].
      severities: float32 [B, L, K].
      recipe: the constants of the run.
      axis_name: device axis of the batch; None on a single device.
      across: the loss across images and its gradient, if these are not all images of this device.
      taught: what the teacher of a distillation says, see `Teacher.logits`.

    Returns:
      The loss, averaged over images, and (metrics, new batch_stats).
    """
    features, batch_stats = encode(params, batch_stats, images, recipe, axis_name)
    similarity = quality.similarities(features, recipe.prompt_features)  # [B, L, 2, P, 2]
    sim_pos, sim_neg = similarity[..., 0], similarity[..., 1]
    graded = None
    if not recipe.factors.all():
        graded = (_of_pairs(severities, recipe) > 0).any(1)  # [B, P]
    losses = objective.margin_losses(sim_pos, sim_neg, **recipe.margins, graded=graded)
    losses = {name: value.mean() for name, value in losses.items()}
    if recipe.weights["triplets"]:
        losses["triplets"] = objective.triplet_loss(features, recipe.margin_triplets).mean()
    if across is not None:
        losses["across"] = across.value + (across.gradient * (similarity - jax.lax.stop_gradient(similarity))).sum()
    elif recipe.weights["across"]:
        losses["across"] = _across_images(similarity, severities, recipe, axis_name)
    agreement: dict[str, jax.Array] = {}
    if taught is not None and recipe.teacher is not None:
        losses[recipe.teacher.loss_name], agreement = recipe.teacher.compare(similarity, taught, axis_name)
    loss = sum((recipe.weights[name] * value for name, value in losses.items()), start=jnp.zeros(()))
    metrics = {
        "loss": loss,
        **losses,
        **agreement,
        "rank_accuracy": objective.rank_accuracy(sim_pos, sim_neg, graded).mean(),
        "similarity_positive": sim_pos.mean((0, 2, 3)),  # [L]
        "similarity_negative": sim_neg.mean((0, 2, 3)),  # [L]
    }
    return loss, (metrics, batch_stats)


def rated_loss_fn(
    params: Parameters, batch_stats: Parameters, batch: Batch, recipe: Recipe, axis_name: AxisName
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Parameters]]:
    """`ratings.loss_fn`, with the objective on degradations of the same crops as a regulariser if that has a weight."""
    loss, (metrics, batch_stats) = ratings.loss_fn(params, batch_stats, batch, recipe, axis_name)
    assert recipe.ratings is not None
    if recipe.ratings.weight_degradations:
        images, severities = degrade_batch(batch["crops"], batch["example"], recipe)
        more, (other, _) = loss_fn(params, batch_stats, images, severities, recipe, axis_name)
        loss = loss + recipe.ratings.weight_degradations * more
        metrics = other | metrics | {"loss": loss, "degradations": more}
    return loss, (metrics, batch_stats)


class Across(NamedTuple):
    """The loss across all images of the batch, for a micro-batch that sees only some of them.

    Attributes:
      value: of the loss, a scalar.
      gradient: float32 [B, L, 2, P, 2], with respect to the similarities of the micro-batch.
    """

    value: jax.Array
    gradient: jax.Array


def _across_images(similarity: jax.Array, severities: jax.Array, recipe: Recipe, axis_name: AxisName) -> jax.Array:
    """`objective.across_images_loss` of the images of all devices: the same number on each."""
    batch = similarity, _of_pairs(severities, recipe)
    if axis_name is not None:
        batch = jax.lax.all_gather(batch, axis_name, tiled=True)
    similarity, severities = batch
    return objective.across_images_loss(
        similarity[..., 0], similarity[..., 1], severities, recipe.margins["margin_rank"]
    )


def _of_pairs(severities: jax.Array, recipe: Recipe) -> jax.Array:
    """Severities [B, L, P] for each pair of prompts: the sum over its factors."""
    return (severities[:, :, None] * recipe.factors).sum(-1)


def gradients(
    params: Parameters,
    batch_stats: Parameters,
    teacher: Parameters | None,
    batch: Batch,
    recipe: Recipe,
    axis_name: AxisName,
) -> tuple[Parameters, dict[str, jax.Array], Parameters]:
    """Gradient, metrics and new batch statistics on this device's part of the batch, in `accumulate` micro-batches.

    The loss across images compares all of them. With micro-batches it needs a forward pass of its own: similarities
    first, then the gradient with respect to these, which each micro-batch carries on to the parameters.
    """
    if recipe.ratings is not None:
        gradient_fn = jax.grad(rated_loss_fn, has_aux=True)
        gradient, (metrics, batch_stats) = gradient_fn(params, batch_stats, batch, recipe, axis_name)
        return gradient, metrics, batch_stats

    def micro_step(
        batch_stats: Parameters, micro: Batch, across: Across | None = None
    ) -> tuple[Parameters, tuple[Parameters, dict[str, jax.Array]]]:
        images, severities = degrade_batch(micro["crops"], micro["example"], recipe)
        taught = None if recipe.teacher is None else recipe.teacher.logits(teacher, images)
        gradient_fn = jax.grad(loss_fn, has_aux=True)
        gradient, (metrics, batch_stats) = gradient_fn(
            params, batch_stats, images, severities, recipe, axis_name, across, taught
        )
        return batch_stats, (gradient, metrics)

    if recipe.accumulate == 1:
        batch_stats, result = micro_step(batch_stats, batch)
        return *result, batch_stats

    def forward(micro: Batch) -> tuple[jax.Array, jax.Array]:
        images, severities = degrade_batch(micro["crops"], micro["example"], recipe)
        features, _ = encode(params, batch_stats, images, recipe, axis_name)
        return quality.similarities(features, recipe.prompt_features), severities

    def add_micro(
        carry: tuple[Parameters, Any], micro: tuple[Batch, Across | None]
    ) -> tuple[tuple[Parameters, Any], None]:
        batch_stats, total = carry
        batch_stats, result = micro_step(batch_stats, *micro)
        return (batch_stats, jax.tree.map(jnp.add, total, result)), None

    micro_batches = jax.tree.map(lambda x: x.reshape(recipe.accumulate, -1, *x.shape[1:]), batch)
    across = None
    if recipe.weights["across"]:
        similarity, severities = jax.lax.map(forward, micro_batches)  # [micro-batches, b, ...]
        flat = (x.reshape(-1, *x.shape[2:]) for x in (similarity, severities))
        value, gradient = jax.value_and_grad(_across_images)(*flat, recipe, axis_name)
        gradient = recipe.accumulate * gradient.reshape(similarity.shape)  # results are averaged below
        across = Across(jnp.broadcast_to(value, recipe.accumulate), gradient)
    first = jax.tree.map(lambda x: x[0], (micro_batches, across))
    shapes = jax.eval_shape(lambda: micro_step(batch_stats, *first)[1])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (batch_stats, total), _ = jax.lax.scan(add_micro, (batch_stats, zeros), (micro_batches, across))
    return *jax.tree.map(lambda x: x / recipe.accumulate, total), batch_stats


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    recipe: Recipe,
    axis_name: AxisName = None,
    over_devices: Callable[[Gradients], Gradients] | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step.

    Args:
      state: before the step.
      batch: `crops` uint8 [b, 2, H, W, 3] and `example` integer [b], this device's part of the batch.
      recipe: the constants of the run.
      axis_name: names the device axis, over which the step averages; None on a single device.
      over_devices: makes `gradients` of one device those of all, if the step itself sees all devices and the whole
        batch; they are averages then.

    Returns:
      The state after the step, and metrics averaged over all devices: `loss`, `consistency`, `positive`, `negative`,
      `rank_accuracy`, `gradient_norm`, `parameter_norm`, `update_norm`, `learning_rate` (scalars),
      `similarity_positive` and `similarity_negative` ([L]), `across` and `triplets` where their weights are not 0, and
      `distillation` (or `votes` and `decided`) and `agreement` where there is a teacher.
    """
    held = state.params, state.batch_stats, state.teacher
    on_device = functools.partial(gradients, recipe=recipe, axis_name=axis_name)
    if over_devices is not None:
        gradient, metrics, batch_stats = over_devices(on_device)(*held, batch)
    else:
        gradient, metrics, batch_stats = on_device(*held, batch)
        if axis_name is not None:
            gradient, metrics, batch_stats = jax.lax.pmean((gradient, metrics, batch_stats), axis_name)
    updates, opt_state = recipe.optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        ema = optax.incremental_update(params, ema, 1.0 - recipe.ema_decay)
    metrics |= {
        "gradient_norm": optax.tree.norm(gradient),
        "parameter_norm": optax.tree.norm(params),
        "update_norm": optax.tree.norm(updates),
        "learning_rate": recipe.learning_rate(state.step),
    }
    new_state = TrainState(state.step + 1, params, batch_stats, opt_state, ema, state.teacher)
    return new_state, metrics
