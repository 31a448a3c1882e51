"""What changes from step to step, and what does not."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct

if TYPE_CHECKING:
    from qualiclip_jax.training.distill import Teacher
    from qualiclip_jax.training.ratings import Objective

Parameters = nnx.State[Any, Any]  # or statistics: arrays by path
AxisName = str | tuple[str, ...] | None  # of the axis, or axes, of devices that a batch is spread over


class TrainState(struct.PyTreeNode):
    """Everything a step changes; a pytree, replicated over the devices.

    Attributes:
      step: int32 [], steps done.
      params: parameters of the image encoder, and of adapters or learned prompts, float32.
      batch_stats: running statistics of its BatchNorm layers; empty for a ViT.
      opt_state: state of the optimizer.
      ema: exponential moving average of `params`; None if not used.
      teacher: weights of the teacher of a distillation; never changed, whole on every device, and not
        part of checkpoints.
    """

    step: jax.Array
    params: Parameters
    batch_stats: Parameters
    opt_state: Any
    ema: Parameters | None
    teacher: Parameters | None = None

    @property
    def scoring_params(self) -> Parameters:
        """The parameters to score with: the average where there is one."""
        return self.params if self.ema is None else self.ema


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything a step needs and does not change.

    Attributes:
      graphdef: structure of the image encoder (`nnx.merge(graphdef, params, batch_stats)` makes it).
      prompt_features: float32 [P, 2, D], unit length, positive first.
      optimizer: an optax transformation.
      learning_rate: the schedule that is reported.
      seed: root of all random draws.
      levels: L, how many levels each image is degraded at.
      types: names of the degradations that are drawn.
      composed: D, how many degradations an image gets at most.
      fewest: and at least.
      factors: float32 [P, K], 1 where a pair of prompts is ranked by one of `camera.FACTORS`.
      camera: share of the images degraded by the camera's chain instead.
      continuous: whether the chain's levels are drawn for each image.
      local: share of the chain's images with local faults.
      alone: share of the chain's images of which one fault alone follows the level.
      margins: keywords of `objective.margin_losses`.
      weights: of the losses, by their names.
      margin_triplets: of `objective.triplet_loss`.
      ema_decay: 0 for none.
      accumulate: micro-batches a step.
      train_batch_norm: whether BatchNorm layers use and learn batch statistics.
      ratings: how to learn from ratings, in place of degradations; None for these.
      teacher: whose similarities are learned; None for no distillation.
    """

    graphdef: nnx.GraphDef[Any]
    prompt_features: jax.Array | np.ndarray
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    seed: int
    levels: int
    types: tuple[str, ...]
    composed: int
    fewest: int
    factors: np.ndarray
    margins: dict[str, float]
    weights: dict[str, float]
    margin_triplets: float = 0.0
    camera: float = 0.0
    continuous: bool = False
    local: float = 0.0
    alone: float = 0.0
    ema_decay: float = 0.0
    accumulate: int = 1
    train_batch_norm: bool = False
    ratings: "Objective | None" = None
    teacher: "Teacher | None" = None

    def merge(self, params: Parameters, batch_stats: Parameters) -> Any:
        """The model with these weights: a `models.CLIP`, `adapters.Adapted` or `ratings.PromptLearner`."""
        return nnx.merge(self.graphdef, params, batch_stats, copy=True)  # a copy: training BatchNorm writes to it


def create_state(params: Parameters, batch_stats: Parameters, recipe: Recipe) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=recipe.optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if recipe.ema_decay else None,
        teacher=None if recipe.teacher is None else recipe.teacher.parameters,
    )
