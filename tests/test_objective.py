"""The objective against a worked example, loops written out, and finite differences."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qualiclip_jax import objective

MARGINS = {"margin_consistency": 0.02, "margin_rank": 0.1}
margin_losses = jax.jit(functools.partial(objective.margin_losses, **MARGINS))
rank_accuracy = jax.jit(objective.rank_accuracy)
across_images_loss = jax.jit(objective.across_images_loss)
triplet_loss = jax.jit(objective.triplet_loss)


def loops(sim_pos, sim_neg, margin_consistency, margin_rank):
    """The equations as they are written, one image and one prompt pair, in Python numbers."""
    levels = range(len(sim_pos))
    consistency = sum(max(0.0, abs(s[i][0] - s[i][1]) - margin_consistency) for i in levels for s in (sim_pos, sim_neg))
    pairs = [(i, j, a, b) for i, j in itertools.combinations(levels, 2) for a in (0, 1) for b in (0, 1)]
    positive = sum(max(0.0, sim_pos[j][b] - sim_pos[i][a] + margin_rank) for i, j, a, b in pairs)
    negative = sum(max(0.0, sim_neg[i][a] - sim_neg[j][b] + margin_rank) for i, j, a, b in pairs)
    return {"consistency": consistency, "positive": positive, "negative": negative}


def test_worked_example():
    # Two levels. Positive: crops agree within the margin at level 1, differ by 0.05 at level 2.
    sim_pos = jnp.array([[[0.30, 0.31], [0.10, 0.25]]])
    # Negative: rises by 0.2 for every pair of crops, the crops agree.
    sim_neg = jnp.array([[[0.10, 0.10], [0.30, 0.30]]])
    losses = margin_losses(sim_pos, sim_neg)
    # |0.30 - 0.31| is free; |0.10 - 0.25| - 0.02 = 0.13
    np.testing.assert_allclose(losses["consistency"], [0.13], atol=1e-7)
    # 0.25 against 0.30 falls by 0.05 of the 0.1 asked for, against 0.31 by 0.06: 0.05 + 0.04; 0.10 falls enough
    np.testing.assert_allclose(losses["positive"], [0.09], atol=1e-7)
    np.testing.assert_allclose(losses["negative"], [0.0], atol=1e-7)


@pytest.mark.parametrize(("levels", "pairs"), [(2, 1), (3, 3), (5, 2)])
def test_equals_the_written_out_loops(levels, pairs):
    sim_pos, sim_neg = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 20, levels, 2, pairs)).astype(np.float32)
    losses = margin_losses(sim_pos, sim_neg)
    for b in range(20):
        each = [
            loops(sim_pos[b, ..., p].tolist(), sim_neg[b, ..., p].tolist(), *MARGINS.values()) for p in range(pairs)
        ]
        for name, value in losses.items():
            np.testing.assert_allclose(value[b], np.mean([e[name] for e in each]), rtol=1e-5, atol=1e-6)


def test_no_pair_axis_is_one_pair():
    sim = jax.random.uniform(jax.random.key(0), (2, 4, 5, 2))
    with_axis = margin_losses(sim[0][..., None], sim[1][..., None])
    without = margin_losses(sim[0], sim[1])
    for name in without:
        np.testing.assert_array_equal(with_axis[name], without[name])


def test_gradient_is_finite_at_every_corner():
    constant = jnp.full((1, 5, 2), 0.2)  # equal crops, equal levels: |x| and the hinge are at their corners
    total = lambda s: sum(
        v.sum() for v in objective.margin_losses(s, s, margin_consistency=0.0, margin_rank=0.0).values()
    )
    assert np.all(np.isfinite(jax.jit(jax.grad(total))(constant)))


def test_rank_accuracy_counts_ordered_pairs():
    sim_pos = jnp.array([[[0.5, 0.4], [0.45, 0.1]]])  # of (0.5, 0.4) x (0.45, 0.1), three pairs are ordered rightly
    assert rank_accuracy(sim_pos, jnp.zeros_like(sim_pos)).tolist() == [0.75]
    assert rank_accuracy(jnp.zeros((1, 5, 2)), jnp.zeros((1, 5, 2))).tolist() == [0.0]


@pytest.mark.parametrize("shape", [(5, 2), (1, 5, 3), (1, 1, 2), (1, 5, 2, 1, 1)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="similarities must both be"):
        objective.margin_losses(jnp.zeros(shape), jnp.zeros(shape), **MARGINS)


def test_across_images_equals_the_written_out_loops():
    rng = np.random.default_rng(0)
    sim_pos, sim_neg = rng.uniform(-0.3, 0.3, (2, 4, 3, 2, 2)).astype(np.float32)
    severities = rng.uniform(0, 2.5, (4, 3, 2)).astype(np.float32)
    loss = across_images_loss(jnp.array(sim_pos), jnp.array(sim_neg), jnp.array(severities), 0.1)
    means = []
    for p in (0, 1):
        hinges = []
        for (k, i, a), (n, j, b) in itertools.product(itertools.product(range(4), range(3), range(2)), repeat=2):
            gap = severities[n, j, p] - severities[k, i, p]
            if k != n and gap > 0.3:
                positive = sim_pos[n, j, b, p] - sim_pos[k, i, a, p] + 0.1 * min(gap, 1.5)
                negative = sim_neg[k, i, a, p] - sim_neg[n, j, b, p] + 0.1 * min(gap, 1.5)
                hinges.append(max(0, positive) + max(0, negative))
        means.append(np.mean(hinges))
    np.testing.assert_allclose(loss, np.mean(means) * 3 * 4, rtol=1e-5)  # 3 pairs of levels, 4 of crops


def test_across_images_costs_nothing_where_nothing_is_to_be_ranked():
    sim = jax.random.uniform(jax.random.key(0), (2, 2, 3, 2, 1))
    alone, alike = jnp.array([[0.0, 0.5, 1.0]]), jnp.array([[0.2, 0.3, 0.4], [0.1, 0.3, 0.4]])
    assert across_images_loss(sim[0, :1], sim[1, :1], alone, 0.1) == 0
    assert across_images_loss(sim[0], sim[1], alike, 0.1) == 0
    quality = -alike[..., None, None] * jnp.ones((2, 3, 2, 1))  # what differs enough is in order, and far enough apart
    assert across_images_loss(9 * quality, -9 * quality, 9 * alike, 0.1) == 0


def test_only_graded_pairs_of_prompts_are_ranked():
    sim = jax.random.uniform(jax.random.key(0), (2, 3, 5, 2, 2))
    graded = jnp.array([[True, False], [True, True], [False, False]])
    losses = margin_losses(sim[0], sim[1], graded=graded)
    every = margin_losses(sim[0], sim[1])
    first = margin_losses(sim[0, ..., 0], sim[1, ..., 0])
    for name in ("positive", "negative"):
        np.testing.assert_allclose(losses[name], [first[name][0], every[name][1], 0], rtol=1e-6)
    np.testing.assert_array_equal(losses["consistency"], every["consistency"])
    accuracy = rank_accuracy(sim[0], sim[1], graded)
    np.testing.assert_allclose(accuracy[0], rank_accuracy(sim[0, ..., 0], sim[1, ..., 0])[0], rtol=1e-6)


def test_triplets_equal_pytorch():
    torch = pytest.importorskip("torch")
    features = np.random.default_rng(0).normal(1, 1, (3, 4, 2, 6)).astype(np.float32)
    loss, gradient = jax.jit(jax.value_and_grad(lambda f: objective.triplet_loss(f, 0.05)[1]))(features)
    leaf = torch.tensor(features, requires_grad=True)

    def of_image(f):
        triplets = [(f[i], f[j], f[k]) for i, j, k in itertools.combinations(range(4), 3)]  # each [2, 6]
        anchor, near, far = (torch.cat(part) for part in zip(*triplets))
        return torch.nn.functional.triplet_margin_with_distance_loss(
            anchor,
            near,
            far,
            distance_function=lambda u, v: 1 - torch.nn.functional.cosine_similarity(u, v),
            margin=0.05,
            reduction="sum",
        )

    of_image(leaf[1]).backward()
    np.testing.assert_allclose(loss, of_image(leaf[1]).item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, leaf.grad, atol=1e-6)
    assert gradient[1].any()
    assert not gradient[::2].any()  # an image is compared with itself alone


def test_triplets_cost_nothing_where_features_move_away_from_the_mildest_level():
    angle = jnp.deg2rad(jnp.array([0.0, 20.0, 40.0, 60.0, 80.0]))
    away = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)[None, :, None].repeat(2, 2)
    # of all triplets, j = i + 1 and k = i + 2 have the smallest gap: cos 20 - cos 40 = 0.174
    assert triplet_loss(3 * away, 0.17)[0] == 0
    assert triplet_loss(away, 0.18)[0] > 0
    assert triplet_loss(away[:, ::-1], 0.0)[0] == 0  # the same seen from the other end
    assert triplet_loss(away[:, jnp.array([0, 2, 1])], 0.0)[0] > 0
    assert triplet_loss(away[:, :2], 0.1).tolist() == [0]


summed = jax.jit(jax.value_and_grad(lambda f: objective.triplet_loss(f, 0.1).sum()))


@pytest.mark.parametrize(
    "features", [np.ones((1, 5, 2, 4), np.float32), np.zeros((1, 5, 2, 4), np.float32)], ids=["equal", "zero"]
)
def test_triplets_of_equal_features_have_a_finite_gradient(features):
    loss, gradient = summed(features)
    np.testing.assert_allclose(loss, 0.1 * 10 * 2, rtol=1e-5)  # ten triplets, two crops
    assert np.isfinite(gradient).all()
