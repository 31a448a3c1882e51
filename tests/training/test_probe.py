"""The linear probe: its algebra against NumPy, and a run that starts with it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from qualiclip_jax import QualiCLIP, checkpoint, degradations, train
from qualiclip_jax.errors import UserError
from qualiclip_jax.training import build, loop, probe
from qualiclip_jax.training.signals import StopSignals
from qualiclip_jax.training.step import draw_types
from tests.training.test_config import TINY

PAIRS = ("Good photo.", "Bad photo.", "Sharp image.", "Blurry image.")
pytestmark = pytest.mark.usefixtures("plain_runs")


def config_of(**fields):
    config, _, _ = train.parse(["--config", TINY])
    config.steps, config.prompts, config.scored, config.temperature = 0, PAIRS, 1, 10.0
    config.loss.factors = ("all", "defocus+motion+shrink")
    config.degradations.levels = 3
    config.probe.images = 16
    config.model.embed_dim = 3
    config.model.image = {
        "kind": "efficientnet", "stem": 8, "channels": (8, 16), "layers": (1, 1), "kernels": (3, 3), "strides": (1, 2),
        "expansions": (1, 2), "head": 16, "pooled": (0, 2),
    }  # fmt: skip
    config.update(fields)
    return config


def test_sums_give_ridge_regression_of_standardised_features():
    rng = np.random.default_rng(0)
    x = rng.normal(3, [0.1, 1, 5, 2], (60, 4))
    y = x @ rng.normal(size=(4, 2)) + rng.normal(size=(60, 2))
    moments = probe.Moments.zeros(4, 2)
    for part in range(0, 60, 20):
        moments.add(x[part : part + 20], y[part : part + 20])
    weights, biases = moments.solve(ridge=0.5)
    z = (x - x.mean(0)) / (x.std(0) + 1e-3)
    rows = np.concatenate([z, np.sqrt(0.5 * len(z)) * np.eye(4)])  # the penalty as four more observations
    expected = z @ np.linalg.lstsq(rows, np.concatenate([y.mean(0) - y, np.zeros((4, 2))]), rcond=None)[0]
    np.testing.assert_allclose(x @ weights + biases, expected / expected.std(0), atol=1e-9)


def test_a_target_without_variation_is_named():
    moments = probe.Moments.zeros(1, 2)
    moments.add(np.array([[1.0], [2.0]]), np.array([[1.0, 0.0], [3.0, 0.0]]))
    with pytest.raises(UserError, match=r"pair 2 .*none of these photos"):
        moments.solve(1.0)


def test_tones_add_the_strength_of_exposure_and_colour():
    config = config_of()
    model = build.build_model(config)
    recipe, _, _ = build.build_recipe(config, model, 1)
    recipe = dataclasses.replace(recipe, types=("darken", "motion_blur"))
    crops = np.random.default_rng(0).integers(0, 256, (4, 2, 32, 32, 3), np.uint8)
    batch = {"crops": crops, "example": np.arange(4)}
    measure = jax.jit(lambda batch, tones: probe._measure(model.clip.image, batch, recipe, tones)[1])
    plain, toned = (np.asarray(measure(batch, tones)) for tones in (0.0, 0.5))
    types = jax.jit(lambda example: draw_types(example, recipe))(batch["example"])
    darkened = np.asarray(types) == degradations.TYPES.index("darken")
    assert 0 < darkened.sum() < 4
    levels = np.repeat(np.arange(1, config.degradations.levels + 1) / 5, 2)  # of both crops
    expected = np.where(darkened[:, None], 0.5 * levels, 0)
    np.testing.assert_allclose((toned - plain)[:, 0].reshape(4, -1), expected, atol=1e-6)
    np.testing.assert_array_equal(toned[:, 1], plain[:, 1])


@pytest.fixture(autouse=True, scope="module")
def _as_optax_needs_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, plain_runs):
    """The working directory of a run that is nothing but a probe."""
    directory = tmp_path_factory.mktemp("probe") / "run"
    assert loop.train(config_of(), directory).step == 0
    return directory


def test_a_run_of_no_steps_leaves_a_model(run):
    model = QualiCLIP.load(run)
    assert (model.prompts, model.scored) == ((PAIRS[:2], PAIRS[2:]), 1)
    images = np.random.default_rng(1).random((2, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(model.score(images), model.attributes(images)[:, 0])
    initial = checkpoint.load_model(run / "checkpoints" / checkpoint.INITIAL)
    assert np.ptp(QualiCLIP.of(initial).score(images) - model.score(images)) > 0
    assert json.loads((run / "config.json").read_text())["probe"]["images"] == 16


def test_a_probe_that_was_stopped_goes_on_to_the_same_bits(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(StopSignals, "received", lambda _: True)
        with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
            loop.train(config_of(), tmp_path)
    assert probe.Moments.load(tmp_path / "probe.npz").batches == 1
    loop.train(config_of(), tmp_path)
    again, whole = (checkpoint.load_model(path).fingerprint for path in (tmp_path, run))
    assert again == whole


def test_adapters_start_from_the_probe(run, tmp_path):
    loop.train(config_of(**{"model": {"adapter_rank": 2}}), tmp_path)
    adapted, plain = (checkpoint.load_model(path).fingerprint for path in (tmp_path, run))
    assert adapted == plain  # adapters add nothing before the first step


def test_the_encoder_must_pool_moments(tmp_path):
    config = config_of()
    config.model.image = {"layers": (1, 1, 1, 1), "width": 4, "heads": 2}
    with pytest.raises(UserError, match="needs an EfficientNet"):
        loop.train(config, tmp_path)
    with pytest.raises(UserError, match="2 pairs of prompts need 3"):
        loop.train(config_of(**{"model": {"embed_dim": 4}}), tmp_path)
    assert not (tmp_path / "config.json").exists()  # nor does it keep another config from the folder
