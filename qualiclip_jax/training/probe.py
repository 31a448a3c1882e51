"""A linear probe: the projection of a pretrained encoder in closed form, before anything is trained by gradients.

Ours, not the paper's. Crops are degraded as in training. For each pair of prompts, ridge regression predicts how severe
the faults of a crop are from the encoder's frozen features, and the projection is set to give that prediction. It takes
minutes where training takes hours, and it leaves the features as general as the pretraining made them (Kumar et al.,
"Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022).

A pair that is ranked by all factors learns `fidelity.gmsd` between the degraded and the pristine crop: what is seen of
the faults. GMSD compares edges, so it hardly knows tone and colour; `config.probe.tones` adds the strengths of `TONES`.
A pair with factors of its own learns the sum of their strengths: what was done.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qualiclip_jax import fidelity, models, storage
from qualiclip_jax.data.pristine import CropPairs
from qualiclip_jax.degradations.catalog import factor_matrix
from qualiclip_jax.errors import UserError
from qualiclip_jax.models.efficientnet import EfficientNet
from qualiclip_jax.training.state import Recipe
from qualiclip_jax.training.step import degrade_batch

CONSTANT = 10.0  # the last dimension of the features, beside predictions of deviation 1: cosines stay nearly linear
SAVE_EVERY = 10  # batches
TONES = ("exposure", "white_balance", "saturation")  # factors that leave most edges as they are


@dataclasses.dataclass
class Moments:
    """The sums over crops that ridge regression needs.

    Attributes:
      batches: how many have been added.
      count: crops.
      x, y: sums of the features [F] and the targets [P], float64.
      xx, xy, yy: sums of products, [F, F], [F, P] and (of each target with itself) [P].
    """

    batches: int
    count: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    @classmethod
    def zeros(cls, features: int, targets: int) -> "Moments":
        """Nothing added yet."""
        f, p = features, targets
        return cls(0, 0, np.zeros(f), np.zeros(p), np.zeros((f, f)), np.zeros((f, p)), np.zeros(p))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Adds a batch: features [n, F] and targets [n, P]."""
        x, y = x.astype(np.float64), y.astype(np.float64)
        self.batches, self.count = self.batches + 1, self.count + len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += (y * y).sum(0)

    def solve(self, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights [F, P] and biases [P] that predict the negated targets, with mean 0 and deviation 1 on these crops.

        Args:
          ridge: the penalty on the weights of features that are scaled to deviation 1, in units of a mean square.

        Raises:
          UserError: a target that is the same for all crops.
        """
        mean_x, mean_y = self.x / self.count, self.y / self.count
        covariance = self.xx / self.count - np.outer(mean_x, mean_x)
        deviation = np.sqrt(np.maximum(np.diag(covariance), 0)) + 1e-3
        for pair in np.flatnonzero(self.yy / self.count - mean_y**2 <= 1e-12):
            raise UserError(f"config.loss.factors: pair {pair + 1} of the prompts: none of these photos got its faults")
        scaled = covariance / np.outer(deviation, deviation)
        target = -(self.xy / self.count - np.outer(mean_x, mean_y)) / deviation[:, None]
        weights = np.linalg.solve(scaled + ridge * np.eye(len(scaled)), target)
        weights /= np.sqrt(np.einsum("fp,fg,gp->p", weights, scaled, weights))
        weights /= deviation[:, None]
        return weights, -mean_x @ weights

    def save(self, path: Path) -> None:
        """Writes all sums, whole or not at all."""
        with storage.replacing(path) as file:
            np.savez(file, **dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Moments":
        """Reads what `save` wrote."""
        with np.load(path) as arrays:
            sums = {name: arrays[name] for name in arrays.files}
        return cls(int(sums.pop("batches")), int(sums.pop("count")), **sums)


def fit(
    clip: models.CLIP,
    recipe: Recipe,
    batches: Callable[[int], CropPairs],
    *,
    count: int,
    ridge: float,
    tones: float,
    path: Path,
    advance: Callable[[int], object] = lambda batches: None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Sets the projection of an encoder that pools moments, so that it predicts how good crops are.

    Dimension p of the new features is the quality that pair p measures, for `prompt_features`.

    Args:
      clip: is changed. Its features have one dimension more than there are pairs of prompts.
      recipe: says how crops are degraded, and which factors each pair is ranked by.
      batches: opens the stream of batches (`crops` uint8 [B, 2, H, W, 3], `example` [B]) at a number.
      count: batches to use.
      ridge: see `Moments.solve`.
      tones: weight of the strengths of `TONES`, beside GMSD.
      path: a file that keeps the sums from time to time, so that a process that was killed goes on from there.
      advance: called with the number of batches done.
      stopping: whether to stop after this batch.

    Raises:
      KeyboardInterrupt: it was asked to stop; the sums so far are kept.
    """
    pairs = len(recipe.factors)
    assert isinstance(clip.image, EfficientNet)  # `prompt_features` has seen to it
    moments = Moments.load(path) if path.is_file() else None
    if moments is None or moments.xy.shape != (clip.image.pool.projection.in_features, pairs):
        moments = Moments.zeros(clip.image.pool.projection.in_features, pairs)
    graph, state = nnx.split(clip.image)
    measure = jax.jit(lambda state, batch: _measure(nnx.merge(graph, state), batch, recipe, tones))
    advance(moments.batches)
    with contextlib.closing(batches(moments.batches)) as stream:
        while moments.batches < count:
            x, y = jax.device_get(measure(state, next(stream)))
            moments.add(x, y)
            advance(1)
            if moments.batches % SAVE_EVERY == 0 or moments.batches == count or stopping():
                moments.save(path)
            if stopping():
                raise KeyboardInterrupt("the probe's sums are kept, the same command goes on from there")
    weights, biases = moments.solve(ridge)
    kernel = np.concatenate([weights, np.zeros_like(weights[:, :1])], axis=1)
    projection = clip.image.pool.projection
    assert projection.bias is not None
    projection.kernel.set_value(jnp.asarray(kernel, jnp.float32))
    projection.bias.set_value(jnp.asarray([*biases, CONSTANT], jnp.float32))


def prompt_features(clip: models.CLIP, pairs: int) -> np.ndarray:
    """What the features of `fit` are compared with: dimension p and its opposite, float32 [P, 2, D].

    Raises:
      UserError: an encoder of another kind; D is not P + 1.
    """
    if not isinstance(clip.image, EfficientNet):
        raise UserError("config.probe.images needs an EfficientNet, e.g. model.weights = 'efficientnet-lite0'")
    embed_dim = clip.config.embed_dim
    if embed_dim != pairs + 1:
        raise UserError(
            f"config.model.embed_dim is {embed_dim}: with probe.images, {pairs} pairs of prompts need {pairs + 1}"
        )
    positive = np.eye(pairs, embed_dim, dtype=np.float32)
    return np.stack([positive, -positive], axis=1)


def _measure(
    image: EfficientNet, batch: dict[str, jax.Array], recipe: Recipe, tones: float
) -> tuple[jax.Array, jax.Array]:
    """Features [B * L * 2, F] of degraded crops, as the projection gets them, and targets [B * L * 2, P]."""
    crops = batch["crops"].astype(jnp.float32) / 255
    images, severities = degrade_batch(batch["crops"], batch["example"], recipe)
    toned = severities @ factor_matrix(["+".join(TONES)])[0]
    seen = fidelity.gmsd(images, crops[:, None]) + tones * toned[..., None]  # [B, L, 2]
    done = jnp.einsum("blk,pk->blp", severities, recipe.factors)[:, :, None]  # [B, L, 1, P]
    targets = jnp.where(recipe.factors.all(-1), seen[..., None], done)
    flat = models.normalise(images.reshape(-1, *images.shape[-3:]))
    features = image.pool.standardised(image.late(*image.early(flat))[0])
    return features, targets.reshape(len(features), -1)
