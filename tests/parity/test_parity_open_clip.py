"""Models against open_clip, where it is installed (it brings torchvision and timm): of full size, and small ones."""

import dataclasses

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
CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
CLIPA_TEXT = {"no_causal_mask": True, "pool_type": "last", "hf_tokenizer_name": "bert"}


@pytest.mark.parametrize(
    ("vision", "text", "model"),
    [
        ({"mlp_ratio": 2.5}, {"pool_type": "eos", "eos_id": 49407, "hf_tokenizer_name": "xlm"}, {"quick_gelu": True}),
        ({"no_ln_pre": True, **NORM, **TANH}, {**NORM, **TANH, "final_ln_after_pool": True}, {}),
        (
            {"pool_type": "tok", "final_ln_after_pool": True, "block_type": "custom"},
            {"no_causal_mask": True, "proj_bias": True},
            {"init_logit_bias": -10, "custom_text": True, "nonscalar_logit_scale": True},
        ),
        (CLIPA, CLIPA_TEXT, {}),
        (
            {"pool_type": "avg", "ls_init_value": 0.5, "pos_embed_type": "sin_cos_2d"},
            {"ls_init_value": 0.5, "pool_type": "first"},
            {},
        ),
    ],
)
def test_plain_vits(open_clip, torch, disturb, images, tokens, assert_parity, vision, text, model):
    config = {"embed_dim": 24, "vision_cfg": VISION | vision, "text_cfg": TEXT | text, **model}
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    theirs = disturb(kind(**config))
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            if name.endswith("gamma"):
                tensor.uniform_(0.2, 1)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    ours = convert.from_state_dict(state, config=published.from_open_clip({"model_cfg": config}))
    assert_parity(ours, images(32, 32), theirs.encode_image)
    assert_parity(ours, tokens, theirs.encode_text)


def test_every_field_of_open_clip_is_known(open_clip):
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    for name, theirs in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        assert {field.name for field in dataclasses.fields(theirs)} == published.OPEN_CLIP_FIELDS[name].keys()
