"""Full-size models against open_clip, where it is installed (it brings torchvision and timm)."""

import pytest

from qualiclip_jax.models import convert


@pytest.mark.parametrize(("name", "activation"), [("RN50-quickgelu", None), ("ViT-B-32", "gelu")])
def test_open_clip(torch, disturb, images, tokens, assert_parity, name, activation):
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed", exc_type=ImportError)
    theirs = disturb(open_clip.create_model(name, pretrained=None))
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    ours = convert.from_state_dict(state, position="native", activation=activation)
    assert_parity(ours, images(224, 224), theirs.encode_image)
    assert_parity(ours, tokens, theirs.encode_text)
