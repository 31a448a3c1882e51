"""The training objective: a consistency loss and two ranking losses on cosine similarities (arXiv 2403.11176).

Similarities are indexed [image, level, crop] with level 1 (the mildest) first; a last axis of prompt pairs is averaged
over. All functions are pure and differentiable; the gradient of a hinge at its corner is 0.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from qualiclip_jax import quality

LEAST_GAP = 0.3  # between the severities of two images that `across_images_loss` compares
WIDEST_GAP = 1.5  # beyond it the margin grows no further


def consistency_loss(similarity: jax.Array, margin: float) -> jax.Array:
    """Two crops degraded alike must be equally similar to a prompt.

    L_cons = sum_i max(0, |s[i, 1] - s[i, 2]| - margin), i over levels.

    Args:
      similarity: float [B, L, 2], cosine similarity of each crop to one prompt, in [-1, 1].
      margin: the difference that is free of charge.

    Returns:
      float [B], one loss an image.
    """
    difference = jnp.abs(similarity[..., 0] - similarity[..., 1])  # [B, L]
    return jax.nn.relu(difference - margin).sum(-1)


def ranking_loss(falling: jax.Array, margin: float) -> jax.Array:
    """A similarity must fall by at least `margin` from each level to every higher one, for all crops of both.

    L_rank = sum_{i < j} sum_{a, b} max(0, s[j, b] - s[i, a] + margin), i and j over levels, a and b over crops.

    Args:
      falling: float [B, L, 2], what must fall as the level rises (for one that must rise, give it negated).
      margin: the fall that is asked for.

    Returns:
      float [B], one loss an image.
    """
    milder, stronger = zip(*itertools.combinations(range(falling.shape[1]), 2))
    s_i = falling[:, np.array(milder), :, None]  # [B, level pairs, crop a, 1]
    s_j = falling[:, np.array(stronger), None, :]  # [B, level pairs, 1, crop b]
    return jax.nn.relu(s_j - s_i + margin).sum((1, 2, 3))


def margin_losses(
    sim_pos: jax.Array,
    sim_neg: jax.Array,
    *,
    margin_consistency: float,
    margin_rank: float,
    graded: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The three losses of QualiCLIP, per image.

    Source: arXiv 2403.11176, equations for L_cons, L_pos and L_neg. The paper does not publish how several prompt
    pairs combine in training: here the losses are computed per pair and averaged over the pairs.

    Args:
      sim_pos: float [B, L, 2] or [B, L, 2, P], cosine similarities to the positive prompt of each of P pairs.
      sim_neg: the same for the negative prompts.
      margin_consistency: margin of the consistency loss.
      margin_rank: margin of the ranking losses.
      graded: bool [B, P], the pairs of prompts that the ranking losses of an image are averaged over: those whose
        faults it has. None is all.

    Returns:
      `consistency`, `positive` and `negative`, each float [B].

    Raises:
      ValueError: if the shapes are not as said, or there are fewer than two levels.
    """
    if sim_pos.shape != sim_neg.shape or sim_pos.ndim not in (3, 4) or sim_pos.shape[2] != 2 or sim_pos.shape[1] < 2:
        raise ValueError(
            "similarities must both be [B, L, 2] or [B, L, 2, P] with L >= 2 levels, "
            f"got {sim_pos.shape} and {sim_neg.shape}"
        )
    if sim_pos.ndim == 3:
        sim_pos, sim_neg = sim_pos[..., None], sim_neg[..., None]

    def one_pair(s_p: jax.Array, s_n: jax.Array) -> dict[str, jax.Array]:
        return {
            "consistency": consistency_loss(s_p, margin_consistency) + consistency_loss(s_n, margin_consistency),
            "positive": ranking_loss(s_p, margin_rank),
            "negative": ranking_loss(-s_n, margin_rank),
        }

    losses = jax.vmap(one_pair, in_axes=-1, out_axes=-1)(sim_pos, sim_neg)  # each [B, P]
    return {name: _over_pairs(value, None if name == "consistency" else graded) for name, value in losses.items()}


def _over_pairs(values: jax.Array, graded: jax.Array | None) -> jax.Array:
    """The mean [B] of values [B, P] over the pairs of prompts, or over those that are graded (0 if none is)."""
    if graded is None:
        return values.mean(-1)
    return jnp.where(graded, values, 0).sum(-1) / jnp.maximum(graded.sum(-1, dtype=jnp.float32), 1)


def across_images_loss(sim_pos: jax.Array, sim_neg: jax.Array, severities: jax.Array, margin: float) -> jax.Array:
    """Ours, not the paper's: of two images, the one with the milder faults must score higher.

    The ranking losses compare an image with itself alone, so the score of one photo with slight faults may lie below
    that of another with severe ones. CLIP's pretraining makes up for it; a network from scratch learns it here.

    Each crop of each image at each level is compared with those of other images whose severity t is higher by more
    than `LEAST_GAP`. The hinge is max(0, s_j - s_i + margin min(t_j - t_i, `WIDEST_GAP`)), averaged over these pairs.

    Args:
      sim_pos: float [N, L, 2, P], cosine similarities to the positive prompts, of the whole batch.
      sim_neg: the same for the negative prompts.
      severities: float [N, L], or [N, L, P] for each pair of prompts; 1 is the severity of one fault at full strength.
      margin: for a difference in severity of 1.

    Returns:
      A scalar: the mean, positive and negative added, averaged over the pairs of prompts, and times the terms of a
      `ranking_loss`, so that equal weights weigh alike. 0 if no severities differ enough.
    """
    images, levels, crops, pairs = sim_pos.shape
    severities = severities.reshape(images, levels, 1, -1)
    t = jnp.broadcast_to(severities, sim_pos.shape).reshape(-1, pairs)  # [items, P]
    image = jnp.arange(images).repeat(levels * crops)
    gap = t[None] - t[:, None]  # [items, items, P], how much worse the second is
    counted = (gap > LEAST_GAP) & (image[None] != image[:, None])[..., None]
    drop = margin * jnp.minimum(gap, WIDEST_GAP)

    def ranked(falling: jax.Array) -> jax.Array:
        falling = falling.reshape(-1, pairs)
        return jnp.where(counted, jax.nn.relu(falling[None] - falling[:, None] + drop), 0).sum((0, 1))

    mean = (ranked(sim_pos) + ranked(-sim_neg)) / jnp.maximum(counted.sum((0, 1), dtype=jnp.float32), 1)
    return mean.mean() * (levels * (levels - 1) / 2 * crops**2)


def triplet_loss(features: jax.Array, margin: float) -> jax.Array:
    """The features of an image must move away from those of a milder level as the level rises.

    L_trip = sum_{i < j < k} sum_a max(0, d(f[i, a], f[j, a]) - d(f[i, a], f[k, a]) + margin), i, j and k over levels, a
    over crops, and d(u, v) = 1 - cos(u, v), which is half the squared distance on the unit sphere.

    Source: after TRIQA (Sureddi et al., arXiv 2507.12687), which pretrains an encoder by a contrastive loss on triplets
    of one image in the order of their distortion. Ours are this form of the hinge, the distance (its gradient is finite
    where features are equal), the choice of all triplets of levels, the margin, and the use beside other losses.

    Args:
      features: float [B, L, 2, D], not necessarily of unit length; the mildest level first.
      margin: how much further than level j level k must be, in 0..2.

    Returns:
      float [B], one loss an image; 0 if there are fewer than three levels.
    """
    unit = quality.unit(features)
    cosine = jnp.einsum("biad,bjad->baij", unit, unit, precision=jax.lax.Precision.HIGHEST)  # [B, 2, L, L]
    triplets = list(itertools.combinations(range(features.shape[1]), 3))
    i, j, k = np.array(triplets, int).reshape(-1, 3).T
    return jax.nn.relu(cosine[..., i, k] - cosine[..., i, j] + margin).sum((1, 2))


def rank_accuracy(sim_pos: jax.Array, sim_neg: jax.Array, graded: jax.Array | None = None) -> jax.Array:
    """Share of (level pair, crop pair, prompt pair) that the quality direction s_p - s_n orders rightly.

    Args:
      sim_pos: float [B, L, 2] or [B, L, 2, P].
      sim_neg: the same for the negative prompts.
      graded: as in `margin_losses`.

    Returns:
      float [B] in [0, 1]; 0.5 is chance, a tie counts as wrong.
    """
    quality = sim_pos - sim_neg
    if quality.ndim == 3:
        quality = quality[..., None]
    milder, stronger = zip(*itertools.combinations(range(quality.shape[1]), 2))
    s_i = quality[:, np.array(milder), :, None]
    s_j = quality[:, np.array(stronger), None, :]
    return _over_pairs((s_i > s_j).mean((1, 2, 3), dtype=jnp.float32), graded)
