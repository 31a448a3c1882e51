"""ONNX files give our scores in another runtime, at any size."""

import dataclasses

import numpy as np
import onnxruntime
import pytest
import skimage.data

from qualiclip_jax import QualiCLIP
from qualiclip_jax.errors import UserError
from qualiclip_jax.export import graph, onnx_file
from tests.small_models import VIT, make_model


def run(model, images):
    session = onnxruntime.InferenceSession(model if isinstance(model, str) else model.SerializeToString())
    return session.run(["score", "attributes"], {"images": images})


@pytest.mark.parametrize("name", ["resnet", "vit", "siglip", "efficientnet"])
@pytest.mark.parametrize("pixels", onnx_file.INPUTS)
def test_scores_are_ours_at_any_size(models, images, expected, name, pixels):
    exported = onnx_file.build(models[name], name, pixels)
    for batch, attributes in zip(images, expected[name]):
        score, found = run(exported, batch if pixels == "uint8" else batch / np.float32(255))
        np.testing.assert_allclose(found, attributes, atol=2e-6)
        np.testing.assert_allclose(score, models[name].score_of(attributes), atol=2e-6)


def test_the_packaged_model_on_photographs():
    model = QualiCLIP.load("tiny")
    photos = [skimage.data.chelsea()[:161, :240], skimage.data.coffee()[100:300, 100:277]]
    exported = onnx_file.build(model, "tiny")
    scores = [run(exported, photo[None])[0][0] for photo in photos]
    np.testing.assert_allclose(scores, model.score(photos), atol=1e-5)


def test_a_native_position_fixes_the_size():
    model = make_model(dataclasses.replace(VIT, position="native"))
    exported = onnx_file.build(model, "vit")
    assert [d.dim_value for d in exported.graph.input[0].type.tensor_type.shape.dim] == [0, 64, 64, 3]
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    np.testing.assert_allclose(run(exported, images)[1], model.attributes(images), atol=2e-6)


@pytest.mark.parametrize("pool", ["mean", "norm_mean"])
def test_other_activation_and_pools(pool):
    image = dataclasses.replace(VIT.image, activation="gelu", layers=1, pool=pool)
    model = make_model(dataclasses.replace(VIT, image=image, position="none"))
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 48, 3), np.uint8)
    np.testing.assert_allclose(run(onnx_file.build(model, "vit"), images)[1], model.attributes(images), atol=2e-6)


def test_eight_bits_keep_the_order(tmp_path):
    """The packaged model: levels of noise and of blur come out in the order of float32."""
    photo = skimage.data.coffee()[100:260, 100:260]
    rng = np.random.default_rng(0)
    noisy = [np.clip(photo + rng.normal(0, s, photo.shape), 0, 255).astype(np.uint8) for s in (8, 25, 60)]
    images = np.stack([photo, *noisy])
    whole, small = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    whole.write_bytes(onnx_file.build(QualiCLIP.load("tiny"), "tiny").SerializeToString())
    onnx_file.quantised(whole, [*images, skimage.data.chelsea()[:160, :160]], small)
    assert small.stat().st_size < 0.28 * whole.stat().st_size
    assert onnx_file.fingerprint(small) == onnx_file.fingerprint(whole)
    ours, theirs = run(str(whole), images)[0], run(str(small), images)[0]
    assert list(np.argsort(ours)) == list(np.argsort(theirs)) == [3, 2, 1, 0]
    np.testing.assert_allclose(ours, theirs, atol=0.1)


def test_a_file_tells_its_model(models, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_file.build(models["vit"], "vit").SerializeToString())
    assert onnx_file.fingerprint(path) == models["vit"].fingerprint
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        onnx_file.fingerprint(path)


def test_files_of_others_are_named(tmp_path):
    foreign = graph.Graph()
    foreign.add("Identity", "x", name="y")
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    path = tmp_path / "other.onnx"
    path.write_bytes(foreign.model([x], [y], {}, "").SerializeToString())
    with pytest.raises(UserError, match="names no fingerprint"):
        onnx_file.fingerprint(path)


def test_what_does_not_fit_into_a_file_is_refused(models, monkeypatch):
    monkeypatch.setattr(graph, "_MOST_BYTES", 1000)
    with pytest.raises(UserError, match="2 GB"):
        onnx_file.build(models["vit"], "vit")
