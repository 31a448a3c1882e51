"""The training step: one pure function from (state, batch) to (state, metrics)."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from qualiclip_jax import degradations, models, objective, quality
from qualiclip_jax.training.state import Recipe, TrainState

# One stream of random keys for each purpose, folded from the seed.
STREAM_TYPES, STREAM_DEGRADATIONS = 0, 1
NO_DEGRADATION = -1


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

    def one_image(key):
        types = degradations.sample_types(key, 1, recipe.composed, recipe.types)[0]
        if recipe.fewest == recipe.composed:
            return types
        count = jax.random.randint(jax.random.fold_in(key, 1), (), recipe.fewest, recipe.composed + 1)
        return jnp.where(jnp.arange(recipe.composed) < count, types, NO_DEGRADATION)

    return jax.vmap(one_image)(example_keys(recipe.seed, STREAM_TYPES, example))


def degrade_batch(crops: jax.Array, example: jax.Array, recipe: Recipe) -> jax.Array:
    """Degrades each image by types of its own at all levels.

    Args:
      crops: uint8 [B, 2, H, W, 3].
      example: integer [B], position in the stream.
      recipe: gives seed, levels and the number of composed degradations.

    Returns:
      float32 [B, L, 2, H, W, 3] in [0, 1].
    """
    types = draw_types(example, recipe)
    keys = example_keys(recipe.seed, STREAM_DEGRADATIONS, example)
    return degradations.degrade_pairs(crops, types, keys, levels=recipe.levels)


def loss_fn(params: nnx.State, batch_stats: nnx.State, images: jax.Array, recipe: Recipe, axis_name: str | None):
    """The objective on degraded crops.

    Args:
      params: of the image encoder.
      batch_stats: of its BatchNorm layers.
      images: float32 [B, L, 2, H, W, 3] in [0, 1].
      recipe: the constants of the run.
      axis_name: device axis over which batch statistics are averaged; None on a single device.

    Returns:
      The loss, averaged over images, and (metrics, new batch_stats).
    """
    clip = recipe.merge(params, batch_stats)
    if recipe.train_batch_norm:
        clip.batch_norm_mode(training=True, axis_name=axis_name)
    flat = models.normalise(images.reshape(-1, *images.shape[-3:]))
    features = clip.encode_image(flat).reshape(*images.shape[:3], -1)  # [B, L, 2, D]
    similarity = quality.similarities(features, recipe.prompt_features)  # [B, L, 2, P, 2]
    sim_pos, sim_neg = similarity[..., 0], similarity[..., 1]
    losses = {name: value.mean() for name, value in objective.margin_losses(sim_pos, sim_neg, **recipe.margins).items()}
    if recipe.weights["across"]:
        losses["across"] = _across_images(sim_pos, sim_neg, recipe, axis_name).mean()
    loss = sum(recipe.weights[name] * value for name, value in losses.items())
    metrics = {
        "loss": loss,
        **losses,
        "rank_accuracy": objective.rank_accuracy(sim_pos, sim_neg).mean(),
        "similarity_positive": sim_pos.mean((0, 2, 3)),  # [L]
        "similarity_negative": sim_neg.mean((0, 2, 3)),  # [L]
    }
    return loss, (metrics, nnx.state(clip, nnx.BatchStat))


def _across_images(sim_pos: jax.Array, sim_neg: jax.Array, recipe: Recipe, axis_name: str | None) -> jax.Array:
    """`objective.across_images_loss` [b] of this device's images against those of all devices."""
    every, first = (sim_pos, sim_neg), 0
    if axis_name is not None:
        every = jax.lax.all_gather(every, axis_name, tiled=True)
        first = jax.lax.axis_index(axis_name) * len(sim_pos)
    return objective.across_images_loss(sim_pos, sim_neg, *every, first, recipe.margins["margin_rank"])


def gradients(state: TrainState, batch: dict[str, jax.Array], recipe: Recipe, axis_name: str | None):
    """Gradient, metrics and new batch statistics on this device's part of the batch, in `accumulate` micro-batches."""

    def micro_step(batch_stats, micro):
        images = degrade_batch(micro["crops"], micro["example"], recipe)
        gradient_fn = jax.grad(loss_fn, has_aux=True)
        gradient, (metrics, batch_stats) = gradient_fn(state.params, batch_stats, images, recipe, axis_name)
        return batch_stats, (gradient, metrics)

    if recipe.accumulate == 1:
        batch_stats, result = micro_step(state.batch_stats, batch)
        return *result, batch_stats

    def add_micro(carry, micro):
        batch_stats, total = carry
        batch_stats, result = micro_step(batch_stats, micro)
        return (batch_stats, jax.tree.map(jnp.add, total, result)), None

    micro_batches = jax.tree.map(lambda x: x.reshape(recipe.accumulate, -1, *x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(lambda: micro_step(state.batch_stats, first)[1])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (batch_stats, total), _ = jax.lax.scan(add_micro, (state.batch_stats, zeros), micro_batches)
    return *jax.tree.map(lambda x: x / recipe.accumulate, total), batch_stats


def train_step(
    state: TrainState, batch: dict[str, jax.Array], *, recipe: Recipe, axis_name: str | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step.

    Args:
      state: before the step.
      batch: `crops` uint8 [b, 2, H, W, 3] and `example` integer [b], this device's part of the batch.
      recipe: the constants of the run.
      axis_name: name of the device axis (`jax.pmap`'s); None on a single device.

    Returns:
      The state after the step, and metrics averaged over all devices: `loss`, `consistency`, `positive`, `negative`,
      `rank_accuracy`, `gradient_norm`, `parameter_norm`, `update_norm`, `learning_rate` (scalars),
      `similarity_positive` and `similarity_negative` ([L]), and `across` where its weight is not 0.
    """
    gradient, metrics, batch_stats = gradients(state, batch, recipe, axis_name)
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
    new_state = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
    return new_state, metrics
