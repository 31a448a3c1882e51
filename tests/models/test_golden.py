"""Golden features of two tiny random CLIPs, made by OpenAI's PyTorch code."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qualiclip_jax.models import convert

DATA = pathlib.Path(__file__).parents[1] / "data"
TOLERANCE = 5e-6


@pytest.fixture(scope="module", params=["resnet", "vit"])
def golden(request):
    with np.load(DATA / f"clip_{request.param}_tiny.npz") as arrays:
        return dict(arrays)


def state(golden):
    return {key.removeprefix("state/"): value for key, value in golden.items() if key.startswith("state/")}


@nnx.jit
def encode(clip, images):
    return clip.encode_image(images)


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def test_features(golden):
    features = {key: value for key, value in golden.items() if key.startswith("image_features/")}
    assert len(features) >= 3
    for position, ours in (("no_position", "none"), ("position", "native"), ("position", "interpolate")):
        clip = convert.from_state_dict(state(golden), position=ours)
        for key in (key for key in features if key.split("/")[1] == position):
            images = jnp.asarray(golden[f"images/{key.split('/')[2]}"].transpose(0, 2, 3, 1))
            assert relative(encode(clip, images), features[key]) <= TOLERANCE, (key, ours)
    text = nnx.jit(lambda clip, tokens: clip.encode_text(tokens))(clip, jnp.asarray(golden["tokens"]))
    assert relative(text, golden["text_features"]) <= TOLERANCE
    assert clip.logit_scale[...] == golden["state/logit_scale"]


def test_round_trip_is_bit_identical(golden):
    theirs = {key: value for key, value in state(golden).items() if "num_batches" not in key}
    back = convert.to_openai_state_dict(convert.from_state_dict(state(golden)))
    assert back.keys() == theirs.keys()
    for key, value in theirs.items():
        assert back[key].shape == value.shape, key
        np.testing.assert_array_equal(back[key], value, err_msg=key)
