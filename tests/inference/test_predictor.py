"""`QualiCLIP`: the score of an image is its own, whatever else is scored, and however it is computed."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_models import RESNET, make_model

from qualiclip_jax import QualiCLIP, models, quality
from qualiclip_jax.errors import UserError
from qualiclip_jax.inference import buckets, compiled, machine
from qualiclip_jax.models import CLIPConfig, ViTConfig, layers


@nnx.jit
def encode(clip, images):
    return clip.encode_image(models.normalise(images))


def plain_attributes(model: QualiCLIP, image: np.ndarray) -> np.ndarray:
    """Attribute scores [P] straight from the CLIP: no padding, no folding, no batch."""
    features = encode(model.clip, np.float32(image[None] / 255))
    return np.asarray(quality.attribute_scores(features, model.prompt_features, model.temperature))[0]


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_mixed_sizes_score_as_each_image_alone_in_any_order(kind, photos, request):
    model = request.getfixturevalue(kind)
    together = model.attributes(photos)
    assert together.shape == (len(photos), 3)
    assert together.std(0).min() > 1e-3  # the images do differ
    expected = np.stack([plain_attributes(model, photo) for photo in photos])
    np.testing.assert_allclose(together, expected, atol=1e-5)
    np.testing.assert_allclose(model.attributes(photos[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([model.attributes(p) for p in photos[:3]]), together[:3], atol=1e-5)
    np.testing.assert_allclose(model.score(photos), together.mean(-1), atol=1e-7)


def test_a_vit_attends_in_slices_where_tokens_are_many(vit, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (816, 656, 3), dtype=np.uint8)
    assert layers.MANY_TOKENS < 51 * 41
    sliced = vit.attributes(image)[0]
    monkeypatch.setattr(layers, "MANY_TOKENS", 10_000)
    np.testing.assert_allclose(sliced, plain_attributes(vit, image), atol=1e-5)


def test_a_native_vit_takes_its_own_size_only(photos):
    config = CLIPConfig(32, ViTConfig(layers=1, width=32, heads=2, patch_size=8, image_size=40), position="native")
    model = make_model(config)
    image = photos[3][:40, :40]
    np.testing.assert_allclose(model.attributes(image)[0], plain_attributes(model, image), atol=1e-5)
    with pytest.raises(UserError, match="takes only 40 x 40"):
        model.score(photos[0])


def test_a_vit_says_when_an_image_has_too_many_tokens(vit, photos, monkeypatch):
    monkeypatch.setattr(machine, "most_pixels", lambda config: 8000)
    with pytest.raises(UserError, match="more than this model takes here"):
        vit.score(photos[3])


def test_early_stages_in_slices_score_the_same(convolutional, photos, monkeypatch):
    plain = convolutional.attributes([photos[0], photos[2]] * 3)
    sliced = dataclasses.replace(convolutional)
    monkeypatch.setattr(compiled, "_program", compiled._program.__wrapped__)  # traced anew
    monkeypatch.setattr(machine, "slice_images", lambda pixels: 4)  # of 6: three slices of two
    np.testing.assert_allclose(sliced.attributes([photos[0], photos[2]] * 3), plain, atol=1e-5)


def test_apply_equals_score_and_has_finite_gradients(resnet, photos):
    stack = np.stack([photos[0], photos[2], np.zeros_like(photos[0]), np.full_like(photos[0], 255)]) / np.float32(255)
    np.testing.assert_allclose(resnet.apply(jnp.asarray(stack)), resnet.score(stack), atol=1e-5)
    value, gradient = jax.jit(jax.value_and_grad(lambda images: resnet.apply(images).sum()))(stack)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient[:2]).max((1, 2, 3)) > 0).all()


def test_apply_is_a_loss_that_gradient_ascent_raises(resnet, photos):
    step = jax.jit(lambda x: jnp.clip(x + 0.5 * jnp.sign(jax.grad(resnet.apply)(x)) / 255, 0, 1))
    image = before = jnp.asarray(photos[0], jnp.float32) / 255
    for _ in range(3):
        image = step(image)
    assert resnet.apply(image).shape == ()
    assert resnet.apply(image) > resnet.apply(before) + 1e-3


def test_apply_agrees_with_finite_differences(resnet, photos):
    image = jnp.asarray(photos[0], jnp.float32) / 255 * 0.5 + 0.25
    score = jax.jit(resnet.apply)
    gradient = jax.jit(jax.grad(resnet.apply))(image)
    direction = gradient / jnp.abs(gradient).max()
    step = 1e-4  # small: the network has a kink at every ReLU
    slope = (score(image + step * direction) - score(image - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), slope, rtol=0.01)


def test_saved_and_loaded_gives_the_same_bits(resnet, photos, tmp_path):
    resnet.save(tmp_path / "model")
    loaded = QualiCLIP.load(tmp_path / "model")
    assert loaded.fingerprint == resnet.fingerprint
    assert loaded.prompts == resnet.prompts
    sizes = [photo.shape[:2] for photo in photos]
    for (i, ours), (k, theirs) in zip(resnet.run([sizes], photos.__getitem__), loaded.run([sizes], photos.__getitem__)):
        assert i == k
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UserError, match="exists"):
        resnet.save(tmp_path / "model")


def test_load_says_what_is_wrong_with_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no such file or directory"):
        QualiCLIP.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint in"):
        QualiCLIP.load(tmp_path / "empty")


@pytest.mark.parametrize("name", ["model/manifest.ocdbt", "model/d", "model/_METADATA", "meta"])
def test_load_names_what_a_checkpoint_lacks(resnet, tmp_path, name):
    resnet.save(tmp_path / "model")
    gone = tmp_path / "model" / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(UserError, match=f"is incomplete: .*{name}.* missing"):
        QualiCLIP.load(tmp_path / "model")


def test_load_refuses_a_checkpoint_cut_short(resnet, tmp_path):
    resnet.save(tmp_path / "model")
    data = max((tmp_path / "model" / "model" / "d").iterdir(), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(UserError, match="is incomplete or damaged"):
        QualiCLIP.load(tmp_path / "model")


def test_single_images_are_not_padded_to_a_batch_for_ever(photos):
    """A batch is compiled first; single images use its shape for a while, then get one of their own."""
    model = make_model(RESNET)
    model._encoder.costs = buckets.Costs(compile=5e4, call=1e2, batch=1e6)
    batch = np.stack([photos[0]] * 8)
    together = model.score(batch)
    shapes = set()
    for _ in range(4):
        np.testing.assert_allclose(model.score(photos[0]), together[:1], atol=1e-5)
        shapes.add(frozenset(model._encoder.compiled))
    assert shapes == {frozenset({(8, 64, 64)}), frozenset({(8, 64, 64), (1, 64, 64)})}
