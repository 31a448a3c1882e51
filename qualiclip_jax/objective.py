"""The training objective: a consistency loss and two ranking losses on cosine similarities (arXiv 2403.11176).

Similarities are indexed [image, level, crop] with level 1 (the mildest) first; a last axis of prompt pairs is averaged
over. All functions are pure and differentiable; the gradient of a hinge at its corner is 0.
"""

import itertools

import jax
import jax.numpy as jnp

ACROSS = 2  # levels between two images that `across_images_loss` compares


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
    s_i = falling[:, jnp.array(milder), :, None]  # [B, level pairs, crop a, 1]
    s_j = falling[:, jnp.array(stronger), None, :]  # [B, level pairs, 1, crop b]
    return jax.nn.relu(s_j - s_i + margin).sum((1, 2, 3))


def margin_losses(
    sim_pos: jax.Array, sim_neg: jax.Array, *, margin_consistency: float, margin_rank: float
) -> dict[str, jax.Array]:
    """The three losses of QualiCLIP, per image.

    Source: arXiv 2403.11176, equations for L_cons, L_pos and L_neg. The paper does not publish how several prompt
    pairs combine in training: here the losses are computed per pair and averaged over the pairs.

    Args:
      sim_pos: float [B, L, 2] or [B, L, 2, P], cosine similarities to the positive prompt of each of P pairs.
      sim_neg: the same for the negative prompts.
      margin_consistency: margin of the consistency loss.
      margin_rank: margin of the ranking losses.

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
    return {name: value.mean(-1) for name, value in losses.items()}


def across_images_loss(
    sim_pos: jax.Array,
    sim_neg: jax.Array,
    all_pos: jax.Array,
    all_neg: jax.Array,
    first: jax.Array | int,
    margin: float,
) -> jax.Array:
    """Ours, not the paper's: images are ranked against each other where their levels are at least `ACROSS` apart.

    The ranking losses compare an image with itself alone, so the score of one photo at level 2 may lie below that of
    another at level 5. CLIP's pretraining makes up for it; a network from scratch learns it here. Levels of different
    types are not equally bad: hence the distance.

    Args:
      sim_pos: float [B, L, 2, P], cosine similarities to the positive prompts.
      sim_neg: the same for the negative prompts.
      all_pos: float [N, L, 2, P], the positive similarities of the whole batch, images [first, first + B) being these.
      all_neg: the same for the negative prompts.
      first: index of the first image in the whole batch; may be traced.
      margin: as in `ranking_loss`.

    Returns:
      float [B]: for each image the sum over level and crop pairs, averaged over the other images and over the pairs of
      prompts, positive and negative added; 0 if there is no other image.
    """
    total = len(all_pos)
    other = jnp.arange(total) != jnp.arange(len(sim_pos))[:, None] + first  # [B, N]
    pairs = [(i, j) for i, j in itertools.combinations(range(sim_pos.shape[1]), 2) if j - i >= ACROSS]
    milder, stronger = (jnp.array(levels) for levels in zip(*pairs))

    def ranked(falling: jax.Array, all_falling: jax.Array) -> jax.Array:
        s_i = falling[:, None, milder, :, None]  # [B, 1, level pairs, crop a, 1, P]
        s_j = all_falling[None, :, stronger, None, :]  # [1, N, level pairs, 1, crop b, P]
        hinge = jax.nn.relu(s_j - s_i + margin).sum((2, 3, 4)).mean(-1)  # [B, N]
        return jnp.where(other, hinge, 0).sum(1) / max(total - 1, 1)

    return ranked(sim_pos, all_pos) + ranked(-sim_neg, -all_neg)


def rank_accuracy(sim_pos: jax.Array, sim_neg: jax.Array) -> jax.Array:
    """Share of (level pair, crop pair, prompt pair) that the quality direction s_p - s_n orders rightly.

    Args:
      sim_pos: float [B, L, 2] or [B, L, 2, P].
      sim_neg: the same for the negative prompts.

    Returns:
      float [B] in [0, 1]; 0.5 is chance, a tie counts as wrong.
    """
    quality = sim_pos - sim_neg
    if quality.ndim == 3:
        quality = quality[..., None]
    milder, stronger = zip(*itertools.combinations(range(quality.shape[1]), 2))
    s_i = quality[:, jnp.array(milder), :, None]
    s_j = quality[:, jnp.array(stronger), None, :]
    return (s_i > s_j).mean((1, 2, 3, 4), dtype=jnp.float32)
