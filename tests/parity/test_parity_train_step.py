"""The training step against the same step in PyTorch, which the benchmark runs beside it."""

import functools
import importlib
import pathlib

import jax
import numpy as np
import pytest

from qualiclip_jax import train
from qualiclip_jax.training import build
from qualiclip_jax.training.state import create_state

ROOT = pathlib.Path(__file__).parents[2]
TINY_VIT, DEMO = str(ROOT / "tests/training/tiny_vit.py"), str(ROOT / "configs/demo.py")
OTHERS = ("--config.loss.weight_across=0.0", "--config.loss.weight_triplets=0.0")
DEGRADED = ("--config.degradations.composed=1", '--config.degradations.types=("motion_blur", "white_noise")')
OPTIMIZER = ("--config.optimizer.clip_norm=0.0", "--config.optimizer.warmup_steps=0", "--config.learning_rate=1e-3")
KINDS = {
    "vit": ("--config", TINY_VIT, "--config.data.crop_size=32", *OTHERS),
    "resnet": ("--config", DEMO, "--config.data.crop_size=64", "--config.batch_size=2", *DEGRADED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_pytorch(torch, monkeypatch, kind):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ours, theirs = importlib.import_module("train_step"), importlib.import_module("peer_torch")
    config, _, _ = train.parse([*KINDS[kind], *OPTIMIZER])
    model = build.build_model(config)
    recipe, params, batch_stats = build.build_recipe(config, model, 10)
    images = ours.degraded_images(config)
    peer = theirs.Step(config, model)
    step = jax.jit(functools.partial(ours.encoder_step, recipe=recipe))
    state, severities = create_state(params, batch_stats, recipe), np.ones((*images.shape[:2], 1), np.float32)
    for _ in range(2):  # the second step sees what the first did to the parameters
        with jax.numpy_dtype_promotion("standard"):  # of optax
            state, told = step(state, images, severities)
        loss, norm = peer(peer.put(images))
        np.testing.assert_allclose(told["loss"], float(loss), rtol=1e-5)
        np.testing.assert_allclose(told["gradient_norm"], float(norm), rtol=1e-4)
