"""RN50 of full size against PyTorch."""

import dataclasses

import numpy as np
import pytest

from qualiclip_jax import models
from qualiclip_jax.models import backbones, convert


@pytest.fixture(scope="module")
def theirs(torch, disturb):
    from torch_clip import CLIP

    config = backbones.get("RN50")
    image, text = config.image, config.text
    return disturb(
        CLIP(
            config.embed_dim,
            image.layers,
            image.width,
            image.heads,
            image.image_size,
            text.layers,
            text.width,
            text.heads,
            text.vocab_size,
        )
    )


@pytest.fixture(scope="module")
def ours(theirs):
    clip = convert.from_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    assert clip.config == backbones.get("RN50")  # read off the shapes
    return clip


def test_native_size_with_position(ours, theirs, images, assert_parity):
    native = models.from_pure(dataclasses.replace(ours.config, position="native"), models.to_pure(ours)[1])
    assert_parity(native, images(224, 224), lambda x: theirs.encode_image(x, position=True))


def test_another_size_without_position(ours, theirs, images, assert_parity):
    assert_parity(ours, images(161, 224), lambda x: theirs.encode_image(x, position=False))


def test_text(ours, theirs, tokens, assert_parity):
    assert_parity(ours, tokens, theirs.encode_text)


def test_round_trip_is_bit_identical(ours, theirs):
    back = convert.to_openai_state_dict(ours)
    parameters = {name: value for name, value in theirs.state_dict().items() if "num_batches" not in name}
    assert back.keys() == parameters.keys()
    assert all(np.array_equal(back[name], value.numpy()) for name, value in parameters.items())
