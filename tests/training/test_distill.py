"""Distillation: the loss against scipy, and a run from the teacher's own weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import expit, rel_entr

from qualiclip_jax import QualiCLIP, checkpoint, cli, models, prompts, quality, train
from qualiclip_jax.errors import UserError
from qualiclip_jax.storage import read_jsonl
from qualiclip_jax.training import build, checks, distill
from qualiclip_jax.training import config as config_lib
from tests.training.test_config import TINY

PAIR = prompts.PAIRS[:1]
pytestmark = pytest.mark.usefixtures("plain_runs")


def test_the_loss_is_the_divergence_of_the_scores():
    student, teacher = np.random.default_rng(0).normal(0, 3, (2, 50)).astype(np.float32)
    expected = rel_entr(expit(teacher), expit(student)) + rel_entr(expit(-teacher), expit(-student))
    loss_and_slope = jax.jit(jax.vmap(jax.value_and_grad(distill.loss)))
    loss, slope = loss_and_slope(student, teacher)
    np.testing.assert_allclose(loss, expected, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(slope, expit(student) - expit(teacher), atol=1e-6)
    assert np.isfinite(loss_and_slope(np.full(50, 300, np.float32), np.full(50, -300, np.float32))).all()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A checkpoint, of another architecture than the student's in TINY."""
    image = models.ViTConfig(layers=1, width=16, heads=2, patch_size=8, image_size=32)
    clip = models.CLIP(models.CLIPConfig(8, image), rngs=nnx.Rngs(7))
    features = prompts.random_text_features(1, 8, seed=1)
    path = tmp_path_factory.mktemp("teacher") / "model"
    checkpoint.save_model(path, models.Model(clip, PAIR, features, 30.0, {"weights": "ours", "licence": "CC"}))
    return path


@pytest.mark.parametrize("bias", [None, -3.0])
def test_a_teacher_says_what_it_scores(teacher, bias):
    """By softmax over the pair, or by sigmoids as a SigLIP."""
    model = dataclasses.replace(checkpoint.load_model(teacher), bias=bias)
    one = distill.Teacher.of(model, 1.0, None)
    images = np.random.default_rng(0).random((1, 2, 2, 32, 32, 3), np.float32)
    said = one.logits(one.parameters, jnp.asarray(images))
    scores = QualiCLIP.of(model).attributes(images.reshape(-1, 32, 32, 3))
    np.testing.assert_allclose(expit(said).reshape(4, 1), scores, atol=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher, tmp_path):
    """Begun with pmap; fsdp goes on from its checkpoint."""
    arguments = [
        "--config", TINY, "--workdir", str(tmp_path), f"--config.model.weights={teacher}", "--config.temperature=30.0",
        f"--config.distillation.teacher={teacher}", "--config.loss.weight_consistency=0.0",
        "--config.loss.weight_positive=0.0", "--config.loss.weight_negative=0.0", "--config.data.source=sample:test",
        '--config.optimizer.parameters=((".*", "constant", 1.0),)', "--config.learning_rate=0.05",
        "--config.batch_size=4", "--config.model.position=interpolate",
    ]  # fmt: skip
    with jax.numpy_dtype_promotion("standard"):
        assert cli.run(train.main, [*arguments, "--config.steps=2"]) in (0, None)
        assert cli.run(train.main, [*arguments, "--config.steps=3", "--config.parallel=fsdp"]) in (0, None)
    first, *others = read_jsonl(tmp_path / "metrics.jsonl")
    assert abs(first["distillation"]) < 1e-5
    assert first["agreement"] > 0.9999
    assert first["loss"] == pytest.approx(first["distillation"], abs=1e-7)
    assert [row["step"] for row in others] == [2, 3]  # it goes on; Adam's first step of 0.05 went astray
    assert all(row["distillation"] > 1e-4 for row in others)
    end = tmp_path / "checkpoints" / "3"
    saved = checkpoint._restore_numpy(end / "training", checkpoint._metadata(end / "training"))
    assert not [name for name in saved if "teacher" in name]
    assert checkpoint.load_model(end).provenance["teacher"] == {"weights": "ours", "licence": "CC"}


def test_what_cannot_be_distilled_is_refused(teacher, tmp_path):
    config = config_lib.ratings_config("koniq10k")
    config.distillation.teacher = str(teacher)
    with pytest.raises(UserError, match=r"config.distillation.teacher is .* with ratings.source"):
        checks.check(config)
    arguments = ["--config", TINY, f"--config.distillation.teacher={teacher}", '--config.prompts=("a", "b")']
    config, *_ = train.parse(arguments)
    model = build.build_model(config)
    with pytest.raises(UserError, match="no text encoder, and knows only Good photo. / Bad photo."):
        build.build_recipe(config, model, 1)
    fused = dataclasses.replace(checkpoint.load_model(teacher), magnitude=quality.Magnitude(0.6, -1.0, 0.1))
    checkpoint.save_model(tmp_path / "fused", fused)
    config.prompts, config.distillation.teacher = PAIR[0], str(tmp_path / "fused")
    with pytest.raises(UserError, match="config.distillation.teacher .*: its scores count the magnitude"):
        build.build_recipe(config, model, 1)
