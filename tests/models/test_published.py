"""Other libraries' config files."""

import dataclasses
import json
import re

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
    text, vision = transformers.Siglip2TextConfig().to_dict(), transformers.Siglip2VisionConfig().to_dict()
    assert {key: text[key] for key in published.SIGLIP_TEXT_DEFAULTS} == published.SIGLIP_TEXT_DEFAULTS
    shared = published.SIGLIP_VISION_DEFAULTS.keys() - {"image_size"}
    assert {key: vision[key] for key in shared} == {key: published.SIGLIP_VISION_DEFAULTS[key] for key in shared}
    assert vision["num_patches"] == published.NAFLEX_PATCHES


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
        ({"model_type": "blip"}, "'blip', none of clip, metaclip_2, siglip, siglip2"),
        ({"model_type": "siglip2", "vision_config": {"num_patches": 250}}, "num_patches must be a square, got 250"),
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
            "timm_model_name to 'convnext_base': an image encoder of timm",
        ),
        ({"vision_cfg": {}, "multimodal_cfg": {"layers": 12}}, "multimodal_cfg to .*: a CoCa"),
        ({"vision_cfg": {"image_size": [200, 224]}}, "200 x 224"),
        ({"vision_cfg": {"act_kwargs": {"approximate": "tanh"}}}, "act_kwargs to .*, which QuickGELU does not take"),
    ):
        with pytest.raises(ValueError, match=named):
            published.from_open_clip(open_clip(**model))
    with pytest.raises(ValueError, match="pixels normalised with mean"):
        published.from_open_clip(open_clip(vision_cfg={}) | {"preprocess_cfg": {"mean": [0.4, 0.4, 0.4]}})


# Every field of open_clip's CLIPVisionCfg and CLIPTextCfg with a value that is not the default: what of our config it
# changes (none of it: features are the same), or the refusal.
NO = "not False"
BLOCK = {
    **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner"), (True, NO)),
    **dict.fromkeys(("scale_attn", "scale_fc"), (True, NO)),
    "block_type": ("parallel", "to 'parallel', not 'default' or 'custom'"),
    "layers": (2, {"layers": 2}),
    "mlp_ratio": (2, {"mlp_width": 1024}),
    "ls_init_value": (1e-4, {}),  # in the weights: see `convert`
    "output_tokens": (True, {}),
    "act_kwargs": ({"approximate": "tanh"}, {"activation": "gelu_tanh"}),
    "norm_kwargs": ({"elementwise_affine": False}, "norm_kwargs to {'elementwise_affine': False}; only eps"),
}
FIELDS = {
    "vision_cfg": {
        **BLOCK,
        "width": (128, {"width": 128, "heads": 2, "mlp_width": 512}),
        "head_width": (32, {"heads": 16}),
        "patch_size": (32, {"patch_size": 32}),
        "image_size": (336, {"image_size": 336}),
        "patch_dropout": (0.5, {}),
        "no_ln_pre": (True, {"pre_norm": False}),
        "final_ln_after_pool": (True, {}),  # of one token
        "pool_type": ("none", "pool_type to 'none', not 'tok' or 'avg'"),
        "pos_embed_type": ("rope", "to 'rope', not 'learnable' or 'sin_cos_2d'"),
        "attentional_pool": ("parallel", "attentional_pool to 'parallel', not False"),
        "attn_pooler_queries": (1, {}),
        "attn_pooler_heads": (1, {}),
        "timm_model_name": ("vit", "timm_model_name to 'vit': an image encoder of timm"),
        **dict.fromkeys(("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias"), ("", {})),
        **dict.fromkeys(("timm_drop", "timm_drop_path"), (0.5, {})),
    },
    "text_cfg": {
        **BLOCK,
        "width": (64, {"width": 64, "mlp_width": 256}),
        "heads": (4, {"heads": 4}),
        "context_length": (32, {"context_length": 32}),
        "vocab_size": (99, {"vocab_size": 99}),
        "hf_tokenizer_name": ("xlm", {"tokenizer": "own"}),
        "tokenizer_mode": ("clips", "tokenizer_mode to 'clips'"),
        "tokenizer_kwargs": ({"clean": "canonicalize"}, "tokenizer_kwargs to {'clean': 'canonicalize'}"),
        "embed_cls": (True, "embed_cls to True: the text encoder of a CoCa"),
        "pad_id": (1, {}),
        "eos_id": (3, {}),
        "no_causal_mask": (True, {"causal": False}),
        "final_ln_after_pool": (True, {}),
        "pool_type": ("none", "to 'none', not 'argmax' or 'eos' or 'last' or 'first'"),
        "proj_bias": (True, {"projection_bias": True}),
        "proj_type": ("none", "proj_type to 'none', not 'linear'"),
        "hf_model_name": ("roberta", "hf_model_name to 'roberta': a text encoder of Hugging Face"),
        **dict.fromkeys(("hf_model_pretrained", "hf_proj_type", "hf_pooler_type"), ("", {})),
    },
}


@pytest.mark.parametrize("part", FIELDS)
def test_every_field_of_open_clip_is_built_or_refused(part):
    def build(**fields):
        config = published.from_open_clip({"model_cfg": {"embed_dim": 8, **base, part: base[part] | fields}})
        return config.image if part == "vision_cfg" else config.text

    base = {"vision_cfg": {"width": 512}, "text_cfg": {}}
    assert FIELDS[part].keys() == published.OPEN_CLIP_FIELDS[part].keys()  # and these are all, see the parity tests
    for field, (value, outcome) in FIELDS[part].items():
        if isinstance(outcome, str):
            with pytest.raises(ValueError, match=f"{part} sets .*{re.escape(outcome)}") as refusal:
                build(**{field: value})
            assert field in str(refusal.value)
        else:
            assert build(**{field: value}) == dataclasses.replace(build(), **outcome), field
    with pytest.raises(ValueError, match=f"{part} sets pool_type to None, not "):
        build(pool_type=None)
    with pytest.raises(ValueError, match=f"{part} sets novelty to 0, which open_clip does not know"):
        build(novelty=0)


def test_clipa_and_texts_read_elsewhere():
    vision = {"no_ln_pre": True, "pool_type": "avg"}
    text = {"hf_tokenizer_name": "bert", "tokenizer_kwargs": {"strip_sep_token": True}, "pool_type": "last"}
    config = published.from_open_clip(open_clip(vision_cfg=vision | {"final_ln_after_pool": True}, text_cfg=text))
    assert (config.image.pool, config.image.class_tokens, config.image.pre_norm) == ("mean", 1, False)
    assert (config.text.pool, config.text.tokenizer) == ("last", "clipa")
    text = {"hf_tokenizer_name": "xlm", "pool_type": "eos", "eos_id": 3}
    config = published.from_open_clip(open_clip(vision_cfg=vision, text_cfg=text))
    assert config.image.pool == "norm_mean"
    assert (config.text.pool, config.text.end_token, config.text.tokenizer) == ("end", 3, "own")
