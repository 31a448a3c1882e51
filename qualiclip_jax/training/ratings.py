"""Learning from ratings: QualiCLIP+, whose prompts carry learned context, and adapters of the image encoder.

Everything else is frozen. The loss compares scores with ratings that are normalised to [0, 1].
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qualiclip_jax import models, prompts, quality
from qualiclip_jax.data.rated import RatedSet
from qualiclip_jax.data.sources import RatedSource
from qualiclip_jax.errors import UserError
from qualiclip_jax.models.layers import normal
from qualiclip_jax.training.state import AxisName, Parameters, Recipe

TINY_VARIANCE = 1e-12  # keeps the correlation of constants finite: it is then 0
VALIDATION = "validation"
PROMPTS = "prompts"  # what is learned, if it is not adapters
FEWEST = 3  # images of a part: fewer have no correlation
Batch = dict[str, jax.Array]


class PromptLearner(nnx.Module):
    """A frozen CLIP, and context that is learned for each of its prompts.

    Attributes:
      clip: with a text encoder.
      context: nnx.Param [2 P, C, W], normal with deviation 0.02 at the start; half of it before the text of a prompt,
        half behind it.

    Source: Agnolucci et al., arXiv 2403.11176, and the options of QualiCLIP+ in IQA-PyTorch.
    """

    def __init__(self, clip: models.CLIP, pairs: tuple[tuple[str, str], ...], context: int, seed: int):
        text = clip.config.text
        if text is None or (text.pool, text.causal, text.tokenizer) != ("end", True, "clip"):
            raise UserError(
                "learned prompts need weights with a causal text encoder of CLIP's tokens, read at the end: these "
                "have none"
            )
        tokens = prompts.tokenize(pairs).reshape(2 * len(pairs), -1)
        ends = (tokens != 0).sum(1) - 2
        self.clip = clip
        self.tokens = tuple(map(tuple, tokens[:, : int(ends.max()) + 2].tolist()))  # what lies behind changes nothing
        self.lengths = tuple(ends.tolist())
        shape = (len(tokens), context, text.width)
        self.context = nnx.Param(normal(0.02)(jax.random.key(seed), shape, jnp.float32))

    def parts(self, _: object) -> tuple[models.CLIP, jax.Array]:
        """The CLIP, and features of the prompts with their context, float32 [P, 2, D], of unit length.

        Gradients reach the context alone.
        """
        frozen = self.frozen()
        return frozen.clip, frozen.prompt_features()

    def prompt_features(self) -> jax.Array:
        """Features of the prompts with their context, float32 [P, 2, D], of unit length."""
        assert self.clip.text is not None
        embedded = self.clip.text.tokens[...][np.array(self.tokens)]
        features = prompts.context_features(self.clip, embedded, self.lengths, self.context[...])
        return features.reshape(len(self.tokens) // 2, 2, -1)

    def frozen(self) -> "PromptLearner":
        """The same; gradients reach its context alone."""
        graph, *states = nnx.split(self, lambda path, _: path[0] == "context", ...)
        return nnx.merge(graph, states[0], jax.lax.stop_gradient(states[1]))


@dataclasses.dataclass(frozen=True)
class Objective:
    """How scores are compared with ratings.

    Attributes:
      temperature: of the scores.
      scored: as in `models.Model`.
      weights: of the losses by their names, see `losses`.
      weight_degradations: of the objective on degradations, computed for the same crops; 0 for none.
    """

    temperature: float
    scored: int
    weights: dict[str, float]
    weight_degradations: float = 0.0


def losses(score: jax.Array, rating: jax.Array) -> dict[str, jax.Array]:
    """Mean squared error, 1 - Pearson's correlation, and the fidelity loss over all pairs of images.

    The last compares probabilities that one image is better than the other, which follow from the difference of two
    scores, or two ratings, in standard deviations of the batch (Thurstone).

    Args:
      score: float32 [N].
      rating: float32 [N], in [0, 1].

    Returns:
      `mse`, `plcc` and `fidelity`, scalars.

    Source of the fidelity loss: Tsai et al., "FRank" (2007); Zhang, Ma, Zhai and Yang, "Uncertainty-aware blind image
    quality assessment in the laboratory and wild" (2021).
    """
    x, y = score - score.mean(), rating - rating.mean()
    correlation = (x * y).mean() * jax.lax.rsqrt((x * x).mean() * (y * y).mean() + TINY_VARIANCE)
    pairs = fidelity(preferred(score), preferred(rating))
    return {"mse": jnp.square(score - rating).mean(), "plcc": 1 - correlation, "fidelity": pairs.mean()}


def preferred(score: jax.Array) -> jax.Array:
    """The probability that image i is better than image j, [N, N], by the difference of scores [N] (Thurstone)."""
    z = score - score.mean()
    z = z * jax.lax.rsqrt((z * z).mean() + TINY_VARIANCE)
    return jax.scipy.stats.norm.cdf((z[:, None] - z) * 0.5**0.5)


def fidelity(better: jax.Array, truly: jax.Array | float) -> jax.Array:
    """The fidelity loss of probabilities, elementwise: 0 where they agree, 1 where they exclude each other."""
    better, truly = (jnp.clip(x, 1e-4, 1 - 1e-4) for x in (better, truly))  # the root has a gradient there
    return 1 - jnp.sqrt(better * truly) - jnp.sqrt((1 - better) * (1 - truly))


def loss_fn(
    params: Parameters, batch_stats: Parameters, batch: Batch, recipe: Recipe, axis_name: AxisName
) -> tuple[jax.Array, tuple[dict[str, jax.Array], Parameters]]:
    """The objective on rated crops; the losses are over the images of all devices, the same number on each.

    Args:
      params: of a `PromptLearner`, or of adapters.
      batch_stats: of its BatchNorm layers, frozen.
      batch: `crops` uint8 [b, 2, H, W, 3], the second of each pair not used, and `value` float32 [b].
      recipe: the constants of the run.
      axis_name: device axis of the batch; None on a single device.

    Returns:
      The loss, and (metrics, batch_stats).
    """
    objective = recipe.ratings
    assert objective is not None
    clip, prompt_features = recipe.merge(params, batch_stats).parts(recipe.prompt_features)
    features = clip.encode_image(models.normalise(batch["crops"][:, 0].astype(jnp.float32) / 255))
    attributes = quality.attribute_scores(features, prompt_features, objective.temperature)
    seen = attributes[:, : objective.scored or None].mean(-1), batch["value"]
    score, rating = seen if axis_name is None else jax.lax.all_gather(seen, axis_name, tiled=True)
    parts = {name: value for name, value in losses(score, rating).items() if objective.weights[name]}
    loss = sum((objective.weights[name] * value for name, value in parts.items()), start=jnp.zeros(()))
    return loss, ({"loss": loss, **parts}, batch_stats)


def divided(whole: RatedSet, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images to learn from, and which pick the best checkpoint: rows of a set, int [n] each.

    The published test part is neither. Where there is no validation part, a tenth of the rest is put aside, all images
    of a reference together.

    Raises:
      UserError: too few images are left.
    """
    split = np.array(whole.split or [""] * len(whole))
    train, validation = (np.flatnonzero(np.isin(split, names)) for names in (("train", ""), ("validation",)))
    if not len(validation):
        groups = whole.groups[train]
        order = np.random.default_rng(seed).permutation(np.unique(groups))
        aside = np.isin(groups, order[: max(1, round(0.1 * len(order)))])
        train, validation = train[~aside], train[aside]
    if min(len(train), len(validation)) < FEWEST:
        raise UserError(
            f"{whole.name}: {len(train)} images to learn from and {len(validation)} to validate by are too few"
        )
    return train, validation


def source(whole: RatedSet, rows: np.ndarray) -> RatedSource:
    """Some of the images of a set as training reads them, with ratings that are 0 to 1 over the set's scale.

    Raises:
      UserError: all ratings are equal.
    """
    low, high = whole.native_scale
    if not low < high:
        raise UserError(f"{whole.name}: all ratings are {low:g}")
    return RatedSource(whole.part(rows), ((whole.mos[rows] - low) / (high - low)).astype(np.float32))
