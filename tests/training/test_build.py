"""What a run starts from: checkpoints of this project as `model.weights`."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from qualiclip_jax import checkpoint, models, prompts, train, zoo
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import lite
from qualiclip_jax.models.clip_config import image_config
from qualiclip_jax.models.tree import Skeleton
from qualiclip_jax.training import build, loop
from tests.training.test_config import TINY

PAIRS = prompts.PAIRS[:3]
TEXT = models.TextConfig(layers=1, width=16, heads=2)
pytestmark = pytest.mark.usefixtures("plain_runs")


@pytest.fixture(scope="module", params=[None, TEXT], ids=["image encoder alone", "with text encoder"])
def saved(request, tmp_path_factory):
    """A checkpoint as `convert` writes it, and where it lies."""
    image = models.ResNetConfig(layers=(1, 1, 1, 1), width=4, heads=2, image_size=32)
    config = models.CLIPConfig(embed_dim=16, image=image, text=request.param, position="none")
    clip = models.CLIP(config, rngs=nnx.Rngs(7))
    features = prompts.text_features(clip, PAIRS) if config.text else prompts.random_text_features(3, 16, seed=1)
    model = models.Model(clip, PAIRS, np.asarray(features), 3.0, {"weights": "ours"})
    path = tmp_path_factory.mktemp("saved") / "model"
    checkpoint.save_model(path, model)
    return model, path


def config_from(path, *arguments):
    return train.parse(["--config", TINY, f"--config.model.weights={path}", *arguments])[0]


def assert_same_weights(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(ours)), nnx.to_pure_dict(nnx.state(theirs)))


def test_a_checkpoint_is_what_training_starts_from(saved):
    model, path = saved
    started = build.build_model(config_from(path, "--config.model.compute_dtype=bfloat16"))
    assert started.clip.config == dataclasses.replace(model.clip.config, text=None, compute_dtype="bfloat16")
    for ours, theirs in zip(
        jax.tree.leaves(nnx.state(started.clip.image)), jax.tree.leaves(nnx.state(model.clip.image))
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert started.prompts == PAIRS[:1]
    np.testing.assert_array_equal(started.prompt_features, model.prompt_features[:1])
    assert started.provenance == {"weights": str(path), "seed": 0, "start": {"weights": "ours"}}


def test_prompts_are_looked_up_by_name(saved):
    model, path = saved
    config = config_from(path)
    config.prompts = tuple(text for pair in PAIRS[::-1] for text in pair)
    np.testing.assert_array_equal(build.build_model(config).prompt_features, model.prompt_features[::-1])


def test_other_prompts_need_the_text_encoder(saved):
    model, path = saved
    config = config_from(path)
    config.prompts = prompts.PAIRS[5]
    if model.clip.config.text:
        features = build.build_model(config).prompt_features
        np.testing.assert_allclose(features, prompts.text_features(model.clip, prompts.PAIRS[5:6]), rtol=0, atol=1e-6)
    else:
        with pytest.raises(UserError, match="no text encoder, and knows only Good photo. / Bad photo., Sharp image. "):
            build.build_model(config)


def test_a_run_starts_from_the_best_checkpoint_of_another(tmp_path):
    loop.train(train.parse(["--config", TINY.replace("tiny", "tiny_vit"), "--config.steps=2"])[0], tmp_path)
    trained = checkpoint.load_model(tmp_path / "checkpoints/2")
    initial = build.build_model(config_from(tmp_path, "--config.model.position=interpolate"))
    assert initial.clip.config == trained.clip.config
    assert_same_weights(initial.clip, trained.clip)


def test_an_image_classifier_gets_a_random_head(tmp_path):
    """From a directory like timm's on the hub."""
    config = config_from(tmp_path)
    fields = {"channels": (8, 8), "layers": (1, 2), "kernels": (3, 5), "strides": (1, 2), "expansions": (1, 2)}
    config.model.image = fields | {"stem": 8, "head": 16, "pooled": (0, 2)}
    shape = image_config({"kind": "efficientnet", **config.model.image, "pooled": (3,)})
    rng, tensors = np.random.default_rng(0), {}
    for path, leaf in Skeleton(models.CLIPConfig(16, shape)).shapes.items():
        unit, _, rest = path.removeprefix("image/").rpartition("/")
        unit, _, part = unit.rpartition("/")
        if (names := lite.units(shape, timm=True).get(unit)) is not None:
            name = f"{names[0]}.weight" if part == "conv" else f"{names[1]}.{lite.NORM[rest]}"
            leaf = tuple(leaf[axis] for axis in (3, 2, 0, 1)) if part == "conv" else leaf
            tensors[name] = np.abs(rng.standard_normal(leaf)).astype(np.float32)
    save_file(tensors | {"classifier.weight": np.zeros((3, 16), np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "tf_efficientnet_lite0", "pretrained_cfg": {}}')

    model, again = build.build_model(config), build.build_model(config)
    assert_same_weights(model.clip, again.clip)
    assert model.provenance["random"] == "projection and prompt features"
    np.testing.assert_allclose(np.linalg.norm(model.prompt_features, axis=-1), 1, rtol=1e-6)
    stem = model.clip.image.stem.conv.kernel[...].transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(stem, tensors["conv_stem.weight"])
    assert model.clip.image.head is None  # behind the last pooled level
    with pytest.raises(UserError, match=r"an image classifier, .* train it with --config.model.weights="):
        zoo.load(tmp_path)
    del tensors["blocks.1.1.bn3.running_var"]
    save_file(tensors | {"extra": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: blocks.1.1.bn3.running_var; not used: extra"):
        build.build_model(config)


def test_a_damaged_checkpoint_is_refused_not_taken_for_something_else(tmp_path):
    (tmp_path / "checkpoint/meta").mkdir(parents=True)
    with pytest.raises(UserError, match="is incomplete: its description"):
        build.build_model(config_from(tmp_path / "checkpoint"))
