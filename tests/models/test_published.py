"""Other libraries' config files."""

import json

import pytest

from qualiclip_jax.errors import UserError
from qualiclip_jax.models import backbones, published

HUGGING_FACE_B16 = {"model_type": "clip", "projection_dim": 512, "vision_config": {"patch_size": 16}, "text_config": {}}


def test_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    text, vision = transformers.CLIPTextConfig().to_dict(), transformers.CLIPVisionConfig().to_dict()
    assert {key: text[key] for key in published.TEXT_DEFAULTS} == published.TEXT_DEFAULTS
    assert {key: vision[key] for key in published.VISION_DEFAULTS} == published.VISION_DEFAULTS
    assert transformers.CLIPConfig().projection_dim == 512
    text, vision = transformers.SiglipTextConfig().to_dict(), transformers.SiglipVisionConfig().to_dict()
    assert {key: text[key] for key in published.SIGLIP_TEXT_DEFAULTS} == published.SIGLIP_TEXT_DEFAULTS
    assert {key: vision[key] for key in published.SIGLIP_VISION_DEFAULTS} == published.SIGLIP_VISION_DEFAULTS


def test_a_config_of_transformers_is_read_as_transformers_means_it():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPConfig(
        projection_dim=24,
        vision_config={"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 100, "hidden_act": "gelu"},
        text_config={"num_hidden_layers": 3, "layer_norm_eps": 1e-6, "eos_token_id": 7, "vocab_size": 9},
    )
    ours = published.from_hugging_face(json.loads(theirs.to_json_string()))
    assert ours.embed_dim == 24
    assert (ours.image.width, ours.image.heads, ours.image.mlp_width) == (96, 6, 100)
    assert (ours.image.activation, ours.text.activation) == ("gelu", "quick_gelu")
    assert (ours.text.layers, ours.text.layer_norm_eps, ours.text.end_token, ours.text.vocab_size) == (3, 1e-6, 7, 9)


def test_legacy_fields():
    text = {"eos_token_id": 2}
    fields = {**HUGGING_FACE_B16, "vision_config_dict": {"patch_size": 32}, "text_config": text}
    config = published.from_hugging_face(fields)
    assert config.text.end_token is None  # the largest id, as OpenAI's code does
    assert config.image.patch_size == 32  # transformers: the legacy dict wins


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "blip"}, "'blip', not 'clip' or 'siglip'"),
        ({"model_type": "siglip2"}, "naflex"),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, "without an attention pool"),
        ({"model_type": "siglip", "text_config": {"projection_size": 8}}, "gives 768 features, not 8"),
        ({"model_type": "clip", "vision_config": {"num_channels": 1}}, "1 channels"),
        ({"model_type": "clip", "vision_config": {"hidden_act": "relu"}}, "activation"),
    ],
)
def test_other_models_are_refused(fields, named):
    with pytest.raises((ValueError, UserError), match=named):
        published.from_hugging_face(fields)


def open_clip(**model):
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    return {"model_cfg": {"embed_dim": 1024, "quick_gelu": True, "text_cfg": text, **model}}


def test_open_clip_configs():
    vision = {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None}
    assert published.from_open_clip(open_clip(vision_cfg=vision)).image == backbones.get("RN50").image
    vision = {"image_size": 224, "layers": 48, "width": 1664, "head_width": 104, "mlp_ratio": 4.9231, "patch_size": 14}
    config = published.from_open_clip(open_clip(vision_cfg=vision, quick_gelu=False))
    assert config.image == backbones.get("ViT-bigG-14").image
    assert config.text.activation == "gelu"
    vision = {
        "no_ln_pre": True,
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
        "pool_type": "tok",
    }
    text = {"no_causal_mask": True, "proj_bias": True, "pool_type": "argmax", "proj_type": "linear"}
    fields = open_clip(vision_cfg=vision, text_cfg=text, quick_gelu=False, init_logit_bias=-10)
    config = published.from_open_clip(fields | {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}})
    image, text = config.image, config.text
    assert (image.pre_norm, image.layer_norm_eps, image.activation, image.pixels) == (
        False,
        1e-6,
        "gelu_tanh",
        "inception",
    )
    assert (text.causal, text.projection_bias, text.activation, config.logit_bias) == (False, True, "gelu", True)


def test_open_clip_models_of_another_kind_are_refused():
    for model, named in (
        (
            {"vision_cfg": {"timm_model_name": "convnext_base", "timm_pool": ""}},
            "timm_model_name: an image encoder of timm",
        ),
        ({"vision_cfg": {}, "multimodal_cfg": {"layers": 12}}, "multimodal_cfg: a CoCa"),
        ({"vision_cfg": {}, "text_cfg": {"hf_model_name": "roberta-base"}}, "hf_model_name: a text encoder of Hugging"),
        ({"vision_cfg": {"image_size": [200, 224]}}, "200 x 224"),
        ({"vision_cfg": {"pool_type": "avg"}}, "pool_type to 'avg', not 'tok'"),
        ({"vision_cfg": {"ls_init_value": 1e-4}}, "vision_cfg sets ls_init_value"),
        ({"vision_cfg": {"norm_kwargs": {"elementwise_affine": False}}}, "sets norm_kwargs to"),
        ({"vision_cfg": {}, "text_cfg": {"pool_type": "eos"}}, "pool_type to 'eos', not 'argmax'"),
    ):
        with pytest.raises(ValueError, match=named):
            published.from_open_clip(open_clip(**model))
    with pytest.raises(ValueError, match="pixels normalised with mean"):
        published.from_open_clip(open_clip(vision_cfg={}) | {"preprocess_cfg": {"mean": [0.4, 0.4, 0.4]}})
