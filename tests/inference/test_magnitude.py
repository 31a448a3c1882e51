"""Scores that count the magnitude of features: through all ways of scoring, and in a checkpoint."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import boxcox
from small_models import RESNET, make_model

from qualiclip_jax import QualiCLIP, checkpoint, cli, convert, models, quality
from qualiclip_jax.data import pristine
from qualiclip_jax.errors import UserError
from qualiclip_jax.export import onnx_file
from qualiclip_jax.inference import magnitude


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, and the path of the same one whose scores count the magnitude."""
    folder = tmp_path_factory.mktemp("magnitude")
    model = make_model(RESNET, seed=4)
    model.save(folder / "plain")
    arguments = [str(folder / "plain"), "--out", str(folder / "fused"), "--magnitude", "0.6"]
    assert cli.run(convert.main, arguments) in (0, None)
    return model, folder / "fused"


def features_of(model, images):
    encode = jax.jit(lambda x: model.clip.encode_image(models.normalise(x)))
    return np.concatenate([np.asarray(encode(image[None] / np.float32(255))) for image in images])


def test_scores_are_those_of_the_cosines_and_of_the_magnitude(saved, photos):
    plain, path = saved
    photos = [photos[0], photos[2], photos[1]]
    fused = QualiCLIP.load(path)
    weight, center, spread = fused.magnitude
    assert weight == 0.6
    size = boxcox(np.abs(features_of(plain, photos)), 0.5).mean(-1)
    expected = (plain.score(photos) + 0.6 * expit((size - center) / spread)) / 1.6
    np.testing.assert_allclose(fused.score(photos), expected, atol=1e-5)
    np.testing.assert_allclose(fused.apply(photos[0][None]), expected[:1], atol=1e-5)
    np.testing.assert_allclose(fused.score(photos[1]), expected[1:2], atol=1e-5)  # whatever else is scored
    assert np.abs(expected - plain.score(photos)).min() > 0.05


def test_constants_are_those_of_the_corners_of_photos(saved):
    plain, path = saved
    corners = []
    for _, photo in pristine.photos("sample:train"):
        corners += [photo[:224, :224], photo[:224, -224:], photo[-224:, :224], photo[-224:, -224:]]
    size = boxcox(np.abs(features_of(plain, corners)), 0.5).mean(-1)
    found = checkpoint.load_model(path).magnitude
    np.testing.assert_allclose([found.center, found.spread], [size.mean(), size.std()], rtol=5e-3)


def test_with_another_position_they_are_measured_anew(saved, tmp_path):
    plain, path = saved
    convert.main([str(path), "--out", str(tmp_path / "moved"), "--position", "interpolate"])
    moved = checkpoint.load_model(tmp_path / "moved")
    expected = magnitude.fused(dataclasses.replace(moved, magnitude=None), 0.6).magnitude
    assert moved.magnitude == expected != checkpoint.load_model(path).magnitude


def test_another_way_of_scoring_has_another_fingerprint(saved):
    plain, path = saved
    fused = checkpoint.load_model(path)
    more = dataclasses.replace(fused, magnitude=fused.magnitude._replace(weight=0.7))
    assert len({plain.fingerprint, fused.fingerprint, more.fingerprint}) == 3
    assert dataclasses.replace(fused, magnitude=None).fingerprint == plain.fingerprint


def test_what_cannot_be_had_is_refused(saved, tmp_path):
    plain, path = saved
    rating = models.Rating("scale", np.array([[0.0, 1], [1, 5]]), 1.0)
    with pytest.raises(UserError, match="a model fitted to ratings cannot count the magnitude"):
        magnitude.fused(dataclasses.replace(plain, rating=rating), 0.6)
    for wrong in ((-1.0, 0.0, 1.0), (1.0, np.nan, 1.0), (1.0, 0.0, 0.0)):
        with pytest.raises(UserError, match="must be positive and finite"):
            dataclasses.replace(plain, magnitude=quality.Magnitude(*wrong))
    with pytest.raises(UserError, match="--magnitude must be positive and finite, got 0.0"):
        convert.main([str(path), "--out", str(tmp_path / "x"), "--magnitude", "0"])
    with pytest.raises(UserError, match="tells its own activation: leave --activation out"):
        convert.main([str(path), "--out", str(tmp_path / "x"), "--activation", "gelu"])
    with pytest.raises(UserError, match="scores that count the magnitude are not exported to ONNX"):
        onnx_file.build(checkpoint.load_model(path), "fused")
    large = models.ViTConfig(layers=1, width=16, heads=2, patch_size=512, image_size=1536)
    with pytest.raises(UserError, match="no photo .* is as large as this model needs: 1536 x 1536 pixels"):
        magnitude.fused(make_model(models.CLIPConfig(8, large, position="native")), 0.6)
