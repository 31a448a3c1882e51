"""Golden features of two tiny random CLIPs, made by OpenAI's PyTorch code."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qualiclip_jax.errors import UserError
from qualiclip_jax.models import convert, infer

DATA = pathlib.Path(__file__).parents[1] / "golden"
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


def test_wrappers_may_be_nested(golden):
    wrapped = {f"module.model.clip_model.{key}": value.astype(np.float16) for key, value in state(golden).items()}
    wrapped["module.model.prompts_features"] = np.zeros((14, 64), np.float32)
    back = convert.to_openai_state_dict(convert.from_state_dict(wrapped))
    for key, value in back.items():
        np.testing.assert_array_equal(value, state(golden)[key].astype(np.float16), err_msg=key)


KEYS = ("visual.conv1.weight", *infer.RESNET_KEYS, *infer.VIT_KEYS, *infer.TEXT_KEYS)


@pytest.mark.parametrize("missing", dict.fromkeys(KEYS))
def test_all_faults_are_named_though_a_tensor_that_tells_the_architecture_is_missing(golden, missing):
    tensors = state(golden)
    if missing not in tensors:
        pytest.skip("of the other family")
    del tensors[missing]
    tensors["more.weight"] = np.zeros(3, np.float32)
    tensors["ln_final.bias"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as refusal:
        convert.from_state_dict(tensors)
    message = str(refusal.value)
    assert f"missing: {missing}; not used: more.weight; of another shape: ln_final.bias (3,)" in message
    assert message.count(" instead of ") == 1


def test_values_that_are_not_finite_are_refused(golden):
    tensors = state(golden)
    tensors["visual.conv1.weight"] = tensors["visual.conv1.weight"].copy()
    tensors["visual.conv1.weight"][0] = np.nan
    with pytest.raises(UserError, match=r"not finite \(damaged\?\): visual.conv1.weight$"):
        convert.from_state_dict(tensors)
