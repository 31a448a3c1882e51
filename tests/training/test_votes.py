"""Votes: the loss against loops in NumPy with scipy, and steps that are the same on any devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.special import expit
from scipy.stats import norm

from qualiclip_jax import models, prompts, train
from qualiclip_jax.errors import UserError
from qualiclip_jax.training import build, checks, parallel
from qualiclip_jax.training import config as config_lib
from qualiclip_jax.training.state import create_state
from qualiclip_jax.training.step import train_step
from qualiclip_jax.training.votes import Voters
from tests.training.test_config import TINY
from tests.training.test_step import Tiny


@pytest.fixture(scope="module")
def voters():
    """A small encoder, whose score is that of the first of two pairs of prompts."""
    image = models.ViTConfig(layers=1, width=16, heads=2, patch_size=16, image_size=32)
    clip = models.CLIP(models.CLIPConfig(8, image), rngs=nnx.Rngs(7))
    model = models.Model(clip, prompts.PAIRS[:2], prompts.random_text_features(2, 8, seed=1), 30.0)
    return Voters.of(model, 20.0, None, scored=1, majority=0.7)


def expected(similarity, ballots, majority):
    """(loss, decided, agreement) of similarities [B, 2, P, 2] and scores of views [B, V], pair by pair."""
    score = expit((similarity[:, :, 0, 0] - similarity[:, :, 0, 1]) * 100 / 20.0).mean(1)
    z = (score - score.mean()) / score.std()
    losses, right = [], []
    for i in range(len(score)):
        for j in range(len(score)):
            won = [float(a > b) + 0.5 * float(a == b) for a in ballots[i] for b in ballots[j]]
            if i != j and np.mean(won) >= majority:
                better, truly = np.clip(norm.cdf((z[i] - z[j]) / np.sqrt(2)), 1e-4, 1 - 1e-4), 1 - 1e-4
                losses.append(1 - np.sqrt(better * truly) - np.sqrt((1 - better) * (1 - truly)))
                right.append(score[i] > score[j])
    return np.mean(losses), len(losses) / (len(score) * (len(score) - 1) / 2), np.mean(right)


def test_the_loss_is_that_of_the_pairs_with_a_clear_majority(voters):
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-0.1, 0.1, (6, 3, 2, 2, 2)).astype(np.float32)
    taught = (rng.normal(size=(6, 1, 1, 2)) + rng.normal(size=(6, 1, 4, 2))).astype(np.float32)
    taught[1] = taught[0]  # even votes
    loss, metrics = jax.jit(lambda *both: voters.compare(*both, None))(similarity, taught)
    wanted = expected(similarity[:, 0].astype(np.float64), taught[:, 0, :, 0], 0.7)
    np.testing.assert_allclose([loss, metrics["decided"], metrics["agreement"]], wanted, rtol=1e-4)
    assert 0 < metrics["decided"] < 1


@pytest.mark.parametrize("taught", [np.zeros((4, 1, 4, 2), np.float32), np.full((4, 1, 4, 2), 300, np.float32)])
def test_without_a_majority_there_is_nothing_to_learn(voters, taught):
    """Nor is the gradient NaN where all scores are equal."""
    learn = jax.jit(jax.value_and_grad(lambda x, said: voters.compare(x, said, None)[0]))
    value, slope = learn(jnp.zeros((4, 1, 2, 2, 2)), taught)
    assert value == 0
    assert not slope.any()
    taught = taught + np.arange(4, dtype=np.float32)[:, None, None, None] / 10
    for same in (jnp.zeros((4, 1, 2, 2, 2)), jnp.arange(4.0)[:, None, None, None, None] * jnp.eye(2)):
        assert np.isfinite(learn(same, taught)[1]).all()


def test_the_views_are_the_first_level_and_its_mirror_image(voters):
    images = np.random.default_rng(0).random((2, 3, 2, 32, 32, 3), np.float32)
    logits = jax.jit(lambda images: voters.logits(voters.parameters, images))
    said = np.asarray(logits(images))
    assert said.shape == (2, 1, 4, 2)
    mirrored = images[..., ::-1, :].copy()
    mirrored[:, 1:] = 0
    np.testing.assert_allclose(said, np.asarray(logits(mirrored))[:, :, [2, 3, 0, 1]], atol=1e-5)


def test_several_devices_take_the_step_of_one(voters, darkened):
    config, *_ = train.parse(["--config", TINY, "--config.distillation.weight=2.0", "--config.degradations.levels=2"])
    recipe, *_ = build.build_recipe(config, build.build_model(config), 10)
    graphdef, params, statistics = nnx.split(Tiny(), nnx.Param, nnx.BatchStat)
    one_pair = dataclasses.replace(voters, prompt_features=voters.prompt_features[:1])
    recipe = dataclasses.replace(recipe, graphdef=graphdef, optimizer=optax.sgd(1.0), teacher=one_pair)
    crops = np.random.default_rng(0).integers(0, 256, (4, 2, 32, 32, 3), np.uint8)
    crops[2:] //= 3
    batch = {"crops": crops, "example": np.arange(4, dtype=np.uint32)}
    found = []
    for spread in (parallel.Pmap(jax.devices()[:1]), parallel.Pmap(), parallel.Fsdp()):
        state = jax.tree.map(jnp.copy, create_state(params, statistics, recipe))
        step = spread.compile(train_step, recipe)
        state, metrics = jax.device_get(step(spread.put_state(state), spread.put_batch(batch)))
        found.append([float(metrics[name]) for name in ("votes", "decided", "agreement", "loss", "gradient_norm")])
        assert metrics["votes"] > 0
        parts = metrics["consistency"] + metrics["positive"] + metrics["negative"]
        assert metrics["loss"] == pytest.approx(parts + 2 * metrics["votes"], rel=1e-5)
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"distillation.by": "marks"}, "'scores' or 'votes'"),
        ({"distillation.majority": 0.5}, "above 0.5, at most 1"),
        ({"optimizer.accumulate": 2}, "1 with distillation.by 'votes'"),
        ({"batch_size": 2}, "3 or more with distillation.by 'votes'"),
    ],
)
def test_what_cannot_be_voted_on_is_refused(change, named):
    config = config_lib.default_config()
    config.distillation.teacher, config.distillation.by = "tiny", "votes"
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=f"config.{next(iter(change))} is .* must be {named}"):
        checks.check(config)
