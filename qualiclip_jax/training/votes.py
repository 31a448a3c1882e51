"""Pseudo-ranks by votes: which of two photos a frozen model finds better, several times, for a student to learn.

No label is read. A voter sees several views of each photo. One vote compares a view of one photo with a view of
another. The majority decides which photo is better, and pairs without a clear majority are left out. The student, which
may have begun as the voter itself, learns to prefer the winners.

Source: after "Self-evolving vision-language models for image quality assessment via voting and ranking" (EvoQuality,
2509.25787), whose model is asked about a pair several times and learns by reinforcement. Here views take the place of
repeated answers, and gradients that of rewards.
"""

import dataclasses

import jax
import jax.numpy as jnp

from qualiclip_jax.training import ratings
from qualiclip_jax.training.distill import Teacher
from qualiclip_jax.training.state import AxisName, Parameters


@dataclasses.dataclass(frozen=True, eq=False)
class Voters(Teacher):
    """A teacher that only says which of two images is better.

    Attributes:
      scored: the score of an image is the mean over so many pairs of prompts, the first ones; 0 is all.
      majority: the share of the votes that decides a pair, above 0.5 and at most 1.
    """

    scored: int = 0
    majority: float = 0.75

    loss_name = "votes"

    def logits(self, parameters: Parameters | None, images: jax.Array) -> jax.Array:
        """What the teacher says of the views: the two crops at the first level, and their mirror images.

        Args:
          parameters: its weights, `TrainState.teacher`.
          images: float32 [B, L, 2, H, W, 3] in [0, 1].

        Returns:
          float32 [B, 1, 4, P], the logits of the attribute scores.
        """
        first = images[:, :1]
        return super().logits(parameters, jnp.concatenate([first, first[..., ::-1, :]], axis=2))

    def compare(
        self, similarity: jax.Array, taught: jax.Array, axis_name: AxisName
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The student's loss over all pairs of images on all devices, the same number on each, and metrics.

        The metrics are `decided`, the share of pairs with a clear majority, and `agreement`, the share of these that
        the student ranks as the majority does.

        Args:
          similarity: float [B, L, 2, P, 2], the student's similarities.
          taught: float [B, 1, 4, P], the teacher's `logits`.
          axis_name: device axis of the batch; None on a single device.
        """
        of_crops = self.student_logits(similarity[:, 0])  # [B, 2, P]
        seen = self._scores(of_crops).mean(-1), self._scores(taught[:, 0])
        score, views = seen if axis_name is None else jax.lax.all_gather(seen, axis_name, tiled=True)
        won = (votes(views) >= self.majority).astype(jnp.float32)  # [N, N]
        share = won / jnp.maximum(won.sum(), 1)
        loss = (share * ratings.fidelity(ratings.preferred(score), 1.0)).sum()
        agreement = (share * (score[:, None] > score)).sum()
        pairs = len(score) * (len(score) - 1) / 2
        return loss, {"decided": won.sum() / pairs, "agreement": agreement}

    def _scores(self, logits: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(logits[..., : self.scored or logits.shape[-1]]).mean(-1)


def votes(views: jax.Array) -> jax.Array:
    """The share of the votes that image i gets against image j; an equal pair of views is half a vote for each.

    Args:
      views: float [N, V], scores of the views of each image. Each view of one is compared with each of the other.

    Returns:
      float32 [N, N]; the shares of i against j and of j against i sum to 1.
    """
    difference = views[:, None, :, None] - views[None, :, None, :]  # [N, N, V, V]
    return (0.5 + 0.5 * jnp.sign(difference)).mean((2, 3))
