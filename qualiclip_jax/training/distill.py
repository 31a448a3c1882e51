"""Distillation: what a teacher's similarities say of the crops, for a student to learn.

The teacher is any model that scores. It runs in the step, frozen, on the same degraded crops as the student. No label
is read: the student learns from photos of any kind.

Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (1503.02531), with the score of an
antonym pair in place of the softmax over classes.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import numpy as np
from flax import nnx

from qualiclip_jax import models, quality

if TYPE_CHECKING:
    from qualiclip_jax.training.state import AxisName, Parameters


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen model, and how its similarities compare with the student's.

    Attributes:
      graphdef: structure of its image encoder.
      parameters: its weights. A step takes them from `TrainState.teacher`: as constants they would be compiled in.
      prompt_features: float32 [P, 2, D], of the student's pairs of prompts.
      temperature, bias: of its scores, see `quality.attribute_scores`.
      student_temperature, student_bias: of the student's.
      provenance: where it comes from, JSON-able.
      loss_name: what metrics call the loss.
    """

    loss_name: ClassVar[str] = "distillation"

    graphdef: nnx.GraphDef[Any]
    parameters: "Parameters"
    prompt_features: np.ndarray
    temperature: float
    bias: float | None
    student_temperature: float
    student_bias: float | None
    provenance: dict[str, Any]

    @classmethod
    def of(cls, model: models.Model, student_temperature: float, student_bias: float | None, **options: Any) -> Self:
        """The teacher that a model is; `options` are further attributes of a subclass."""
        graphdef, parameters = nnx.split(model.clip.image)
        scores = model.prompt_features, model.temperature, model.bias
        return cls(graphdef, parameters, *scores, student_temperature, student_bias, model.provenance, **options)

    def logits(self, parameters: "Parameters | None", images: jax.Array) -> jax.Array:
        """What the teacher says.

        Args:
          parameters: its weights, `TrainState.teacher`.
          images: float32 [B, L, 2, H, W, 3] in [0, 1].

        Returns:
          float32 [B, L, 2, P], the logits of the attribute scores, see `quality.attribute_scores`.
        """
        assert parameters is not None
        encoder = nnx.merge(self.graphdef, parameters, copy=True)
        features = encoder(models.normalise(images.reshape(-1, *images.shape[-3:])))
        similarity = quality.similarities(features.reshape(*images.shape[:3], -1), self.prompt_features)
        return quality.pair_logits(similarity, self.temperature, self.bias)

    def compare(
        self, similarity: jax.Array, taught: jax.Array, axis_name: "AxisName"
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The student's loss, a scalar, and metrics: `agreement` with the teacher.

        The agreement is Pearson's correlation of their logits over all crops, averaged over the pairs of prompts.

        Args:
          similarity: float [B, L, 2, P, 2], the student's similarities.
          taught: float [B, L, 2, P], the teacher's `logits`.
          axis_name: device axis of the batch; None on a single device.
        """
        logits = self.student_logits(similarity)
        return loss(logits, taught).mean(), {"agreement": _correlation(logits, taught)}

    def student_logits(self, similarity: jax.Array) -> jax.Array:
        """The student's logits [..., P] from its similarities [..., P, 2]."""
        return quality.pair_logits(similarity, self.student_temperature, self.student_bias)


def loss(logits: jax.Array, taught: jax.Array) -> jax.Array:
    """The Kullback-Leibler divergence of the student's scores from the teacher's, elementwise; 0 where they agree.

    Args:
      logits: float [...], of the student.
      taught: float [...], of the teacher.
    """
    log = jax.nn.log_sigmoid
    agreed = jax.nn.sigmoid(taught) * (log(taught) - log(logits))
    return agreed + jax.nn.sigmoid(-taught) * (log(-taught) - log(-logits))


def _correlation(x: jax.Array, y: jax.Array) -> jax.Array:
    x, y = (z - z.mean((0, 1, 2)) for z in (x, y))
    return ((x * y).sum((0, 1, 2)) * jax.lax.rsqrt((x * x).sum((0, 1, 2)) * (y * y).sum((0, 1, 2)) + 1e-12)).mean()
