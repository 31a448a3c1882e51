"""Prompt learning (QualiCLIP+) against PyTorch: the loss, its gradient and three steps of Adam on a tiny CLIP."""

import functools
import math

import jax
import numpy as np
import pytest

from qualiclip_jax import models, prompts
from qualiclip_jax.models import convert
from qualiclip_jax.training import build
from qualiclip_jax.training.config import ratings_config
from qualiclip_jax.training.state import create_state
from qualiclip_jax.training.step import train_step

STEPS, IMAGES, CONTEXT = 3, 4, 16


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        yield


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    one = lambda: {
        "crops": rng.integers(0, 64, (IMAGES, 2, 64, 64, 3), np.uint8)
        + rng.choice([0, 96, 192], (IMAGES, 1, 1, 1, 3)).astype(np.uint8),
        "value": rng.random(IMAGES, np.float32),
        "example": np.arange(IMAGES, dtype=np.uint32),
    }
    return [one() for _ in range(STEPS)]


@pytest.fixture(scope="module")
def theirs(torch, disturb, batches):
    """Features of its images differ far more than by rounding: no biases but the last, which makes their mean 0."""
    from torch_clip import CLIP

    clip = CLIP(16, (1, 1, 1, 1), 8, 4, 32, 1, 64, 1, prompts.END + 1).eval().requires_grad_(False)
    disturb(clip.transformer)
    for linear in clip.visual.attnpool.children():
        linear.bias.zero_()
    images = np.concatenate([batch["crops"][:, 0] for batch in batches])
    clip.visual.attnpool.c_proj.bias -= clip.encode_image(pixels(torch, images), False).mean(0)
    return clip


@pytest.fixture(scope="module")
def ours(theirs):
    """Recipe and state before the first step."""
    clip = convert.from_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    model = models.Model(clip, prompts.PAIRS, np.eye(14, 16, dtype=np.float32).reshape(7, 2, 16), temperature=2.0)
    config = ratings_config("unused")
    recipe, params, batch_stats = build.build_recipe(config, model, STEPS)
    return recipe, create_state(params, batch_stats, recipe), model


def pixels(torch, images):
    mean, std = (torch.tensor(values)[:, None, None] for values in (models.MEAN, models.STD))
    return (torch.tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std


def torch_score(torch, clip, context, crops):
    """Scores [N] of images; literally as it is described, all 77 tokens long."""
    half, texts = CONTEXT // 2, []
    tokens = torch.tensor(prompts.tokenize(prompts.PAIRS).reshape(14, 77).astype(np.int64))
    embedded = clip.token_embedding(tokens)
    for k in range(14):
        end = int(tokens[k].argmax())
        parts = [embedded[k, :1], context[k, :half], embedded[k, 1:end], context[k, half:], embedded[k, end:]]
        texts.append(torch.cat(parts)[:77])
    x = torch.stack(texts) + clip.positional_embedding
    mask = torch.full((77, 77), float("-inf")).triu(1)
    for block in clip.transformer.resblocks:
        x = block(x, mask)
    x = clip.ln_final(x)[torch.arange(14), tokens.argmax(-1) + CONTEXT] @ clip.text_projection
    seen = clip.encode_image(pixels(torch, crops), False)
    unit = lambda y: y / y.norm(dim=-1, keepdim=True)
    logits = 100 * unit(seen) @ unit(x).T / 2
    return logits.reshape(-1, 7, 2).softmax(-1)[..., 0].mean(1)


def torch_loss(torch, score, rating):
    pearson = torch.corrcoef(torch.stack([score, rating]))[0, 1]
    return ((score - rating) ** 2).mean() + 1 - pearson


def close(ours, theirs, tolerance=1e-5):
    theirs = np.asarray(theirs)
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max())


def test_three_steps(torch, theirs, ours, batches):
    recipe, state, _ = ours
    step = jax.jit(functools.partial(train_step, recipe=recipe))
    context = torch.tensor(np.asarray(state.params["context"][...])).requires_grad_()
    assert tuple(context.shape) == (14, CONTEXT, 64)
    assert 0.018 < float(context.detach().std()) < 0.022
    adam = torch.optim.Adam([context], lr=2e-3)
    frozen = jax.device_get(state.params)
    for number, batch in enumerate(batches):
        loss = torch_loss(
            torch, torch_score(torch, theirs, context, batch["crops"][:, 0]), torch.tensor(batch["value"])
        )
        adam.param_groups[0]["lr"] = 2e-3 * (1 + math.cos(math.pi * number / STEPS)) / 2
        adam.zero_grad()
        loss.backward()
        state, metrics = step(state, batch)
        adam.step()
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == context.shape]  # of the gradients
        for name, moment, power in zip(("exp_avg", "exp_avg_sq"), moments, (1, 2), strict=True):
            scale = float(adam.state[context][name].abs().max())
            close(moment / scale, adam.state[context][name].numpy() / scale, power * 1e-5)  # a square: twice the error
        close(metrics["loss"], loss.detach())
        close(state.params["context"][...], context.detach())
    moved = [
        path for (path, before), after in zip(
            jax.tree_util.tree_leaves_with_path(frozen), jax.tree.leaves(jax.device_get(state.params))
        )
        if not np.array_equal(before, after)
    ]  # fmt: skip
    assert len(moved) == 1


def test_the_model_to_score_with_has_the_learned_prompts(torch, theirs, ours, batches):
    recipe, state, model = ours
    found = build.scoring_model(recipe, state, model, {})
    assert found.clip.text is None
    images = batches[0]["crops"][:, 0]
    from qualiclip_jax import QualiCLIP

    with torch.no_grad():
        context = torch.tensor(np.asarray(state.params["context"][...]))
        close(QualiCLIP.of(found).score(images), torch_score(torch, theirs, context, images))
