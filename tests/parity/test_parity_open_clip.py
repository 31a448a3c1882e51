"""Models against open_clip, where it is installed (it brings torchvision and timm): of full size, and small ones."""

import pytest

from qualiclip_jax.models import convert, published


@pytest.fixture(scope="module")
def open_clip():
    return pytest.importorskip("open_clip", reason="open_clip_torch is not installed", exc_type=ImportError)


@pytest.mark.parametrize(("name", "activation"), [("RN50-quickgelu", None), ("ViT-B-32", "gelu")])
def test_open_clip(open_clip, disturb, images, tokens, assert_parity, name, activation):
    theirs = disturb(open_clip.create_model(name, pretrained=None))
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    ours = convert.from_state_dict(state, position="native", activation=activation)
    assert_parity(ours, images(224, 224), theirs.encode_image)
    assert_parity(ours, tokens, theirs.encode_text)


VISION = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8}
TEXT = {"layers": 2, "width": 32, "heads": 2}
NORM, TANH = {"norm_kwargs": {"eps": 1e-3}}, {"act_kwargs": {"approximate": "tanh"}}


@pytest.mark.parametrize(
    ("vision", "text", "model"),
    [
        ({"mlp_ratio": 2.5}, {}, {"quick_gelu": True}),
        ({"no_ln_pre": True, **NORM, **TANH}, {**NORM, **TANH}, {}),
        (
            {"pool_type": "tok"},
            {"no_causal_mask": True, "proj_bias": True},
            {"init_logit_bias": -10, "custom_text": True},
        ),
    ],
)
def test_plain_vits(open_clip, torch, disturb, images, tokens, assert_parity, vision, text, model):
    config = {"embed_dim": 24, "vision_cfg": VISION | vision, "text_cfg": TEXT | text, **model}
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    theirs = disturb(kind(**config))
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    ours = convert.from_state_dict(state, config=published.from_open_clip({"model_cfg": config}))
    assert_parity(ours, images(32, 32), theirs.encode_image)
    assert_parity(ours, tokens, theirs.encode_text)
