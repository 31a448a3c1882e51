"""Low-rank adapters: what they add, and runs that learn them from degradations."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from qualiclip_jax import QualiCLIP, checkpoint, train
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import CLIP, CLIPConfig, EfficientNetConfig, ResNetConfig, ViTConfig
from qualiclip_jax.training import adapters, build, checks, loop
from tests.training.test_config import TINY

TINY_VIT = str(Path(TINY).with_name("tiny_vit.py"))
pytestmark = pytest.mark.usefixtures("plain_runs")
VIT = ViTConfig(layers=1, width=16, heads=2, patch_size=16, image_size=32)
LITE = EfficientNetConfig(
    stem=8, channels=(8, 16), layers=(1, 1), kernels=(3, 3), strides=(1, 2), expansions=(1, 2), head=16, pooled=(0, 2)
)


@pytest.mark.parametrize(
    ("image", "count"),
    [(VIT, 4), (ResNetConfig((1, 1, 1, 1), 4, 2, 32), 12), (LITE, 3)],
    ids=["vit", "resnet", "efficientnet"],
)
def test_adapters_add_products_to_the_kernels_and_to_nothing_else(image, count):
    clip = CLIP(CLIPConfig(embed_dim=8, image=image), rngs=nnx.Rngs(0))
    adapted = adapters.Adapted(clip, rank=2, seed=0)
    assert len(adapted.paths) == count
    before, start = (dict(nnx.to_flat_state(nnx.state(c))) for c in (clip, adapted.parts(None)[0]))
    assert all(np.array_equal(before[path][...], start[path][...]) for path in before)
    rng = np.random.default_rng(0)
    for up in adapted.up:
        up.set_value(jax.numpy.asarray(rng.normal(size=up.shape), jax.numpy.float32))
    after = dict(nnx.to_flat_state(nnx.state(adapted.parts(None)[0])))
    changes = {path: np.asarray(after[path][...]) - np.asarray(before[path][...]) for path in before}
    assert {path for path, change in changes.items() if change.any()} == {("image", *path) for path in adapted.paths}
    for path, down, up in zip(adapted.paths, adapted.down, adapted.up):
        change = changes["image", *path]
        product = np.einsum("...ir,...ro->...io", np.asarray(down[...]), np.asarray(up[...]))
        np.testing.assert_allclose(change, product, atol=1e-5)
        assert np.linalg.matrix_rank(change.reshape(-1, *change.shape[-2:])[0], tol=1e-4) == 2


def test_an_encoder_without_kernels_of_such_a_rank_is_refused():
    clip = CLIP(CLIPConfig(embed_dim=8, image=VIT), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="adapter_rank is 17, but no kernel here has a higher rank than 16"):
        adapters.Adapted(clip, rank=17, seed=0)
    del clip.image.transformer
    with pytest.raises(UserError, match="config.model.adapter_rank is 2, but this encoder has no kernels to adapt"):
        adapters.Adapted(clip, rank=2, seed=0)


def config_of(path, *fields):
    config, _, _ = train.parse(["--config", path, "--config.model.adapter_rank=2", "--config.steps=4", *fields])
    config.optimizer.parameters = ((".*", "constant", 1.0),)  # the length of the run may change
    return config


def arrays_of(folder):
    """Arrays by path of a model as it is scored with."""
    clip = checkpoint.load_model(folder).clip
    return {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(clip))}


@pytest.fixture(scope="module")
def run(tmp_path_factory, plain_runs):
    """The folder of a run of four steps, on four devices."""
    folder = tmp_path_factory.mktemp("run")
    with jax.numpy_dtype_promotion("standard"):
        loop.train(config_of(TINY_VIT), folder)
    return folder


def test_a_run_changes_the_adapted_kernels_alone_and_saves_a_plain_model(run):
    initial, trained = (arrays_of(run / "checkpoints" / name) for name in ("initial", "4"))
    adapted = adapters.Adapted(build.build_model(config_of(TINY_VIT)).clip, 2, 0)
    assert initial.keys() == trained.keys()
    changed = {name for name in initial if not np.array_equal(initial[name], trained[name])}  # to the last bit
    assert changed == {"/".join(map(str, ("image", *path))) for path in adapted.paths}
    for name in changed:
        change = (trained[name] - initial[name]).reshape(-1, *initial[name].shape[-2:])
        assert np.linalg.matrix_rank(change[0], tol=1e-5) == 2
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    before, after = (QualiCLIP.load(run / "checkpoints" / name).score(image) for name in ("initial", "4"))
    assert before != after


def test_only_adapters_have_moments():
    config = config_of(TINY_VIT)
    recipe, params, _ = build.build_recipe(config, build.build_model(config), 4)
    learned = sum(x.size for x in jax.tree.leaves([params["down"], params["up"]]))
    moments = jax.eval_shape(recipe.optimizer.init, params)
    assert sum(x.size for x in jax.tree.leaves(moments) if x.ndim) == 2 * learned
    assert learned < sum(x.size for x in jax.tree.leaves(params["clip"]))


def test_sharded_and_stopped_on_the_way_it_ends_with_the_same_model(run, tmp_path):
    for fields in (("--config.parallel=fsdp", "--config.steps=2"), ()):
        with jax.numpy_dtype_promotion("standard"):
            loop.train(config_of(TINY_VIT, *fields), tmp_path)
    ours, theirs = (arrays_of(folder / "checkpoints/4") for folder in (tmp_path, run))
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-5, err_msg=name)


def test_batch_statistics_cannot_be_trained():
    with pytest.raises(UserError, match="batch_norm is 'trained', but must be 'frozen' with model.adapter_rank"):
        checks.check(config_of(TINY, "--config.model.batch_norm=trained"))
