"""ViT-B/16 of full size against transformers' CLIP."""

import pytest

from qualiclip_jax.models import backbones, convert, published


@pytest.fixture(scope="module")
def theirs(torch, disturb):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(vision_config={"patch_size": 16}, attn_implementation="eager")
    return disturb(transformers.CLIPModel(config))


@pytest.fixture(scope="module")
def ours(theirs):
    config = published.from_hugging_face(theirs.config.to_dict())
    return convert.from_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()}, config=config)


def image_features(theirs, pixels, interpolate):
    features = theirs.get_image_features(pixel_values=pixels, interpolate_pos_encoding=interpolate)
    return getattr(features, "pooler_output", features)


def test_architecture_is_the_published_one(ours):
    counts = [sum(leaf.size for leaf in convert.to_openai_state_dict(ours).values())]
    assert counts == [149_620_737]
    assert ours.config.image.patch_size == backbones.get("ViT-B/16").image.patch_size


def test_native_size(ours, theirs, images, assert_parity):
    assert_parity(ours, images(224, 224), lambda x: image_features(theirs, x, interpolate=False))


def test_another_size_with_interpolated_position(ours, theirs, images, assert_parity):
    assert_parity(ours, images(160, 272), lambda x: image_features(theirs, x, interpolate=True))


def test_text(ours, theirs, tokens, assert_parity):
    def features(ids):
        result = theirs.get_text_features(input_ids=ids)
        return getattr(result, "pooler_output", result)

    assert_parity(ours, tokens, features)
