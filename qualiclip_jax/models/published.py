"""Architectures as other libraries write them down: Hugging Face's `config.json`, open_clip's
`open_clip_config.json`.
"""

import math
from typing import Any

import numpy as np

from qualiclip_jax.models.clip_config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from qualiclip_jax.models.config_base import ImageConfig
from qualiclip_jax.models.pixels import PIXELS

HUGGING_FACE_KINDS = ("clip", "metaclip_2", "siglip", "siglip2")
# What transformers.CLIPConfig assumes where a config.json is silent.
TEXT_DEFAULTS = {
    "num_hidden_layers": 12,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
VISION_DEFAULTS = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "patch_size": 32,
    "image_size": 224,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# The same for transformers.SiglipConfig, which the fixed-size models of SigLIP 2 have, too, and for Siglip2Config.
SIGLIP_TEXT_DEFAULTS = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 32000,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
SIGLIP_VISION_DEFAULTS = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "patch_size": 16,
    "image_size": 224,
    "num_channels": 3,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}
NAFLEX_PATCHES = 256  # on the positional embedding's grid, which Siglip2Config tells in place of an image size
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh"}  # transformers' name -> ours, where they differ
LEGACY_END_TOKEN = 2  # older configs carry it by mistake; transformers then looks for the largest id, as OpenAI does


def from_hugging_face(fields: dict[str, Any]) -> CLIPConfig:
    """The architecture in the fields of a `config.json` of model type "clip", "metaclip_2", "siglip" or "siglip2"
    (NaFlex).

    Source: CLIPConfig of transformers, legacy `text_config_dict` and `vision_config_dict` included; MetaClip2Config;
    SiglipConfig; Siglip2Config.

    Raises:
      ValueError, UserError: another model type, or something that this package does not build.
    """
    kind = fields.get("model_type")
    if kind not in HUGGING_FACE_KINDS:
        raise ValueError(f"model type {kind!r}, none of {', '.join(HUGGING_FACE_KINDS)}")

    def part(name: str, defaults: dict[str, Any]) -> dict[str, Any]:
        return defaults | (fields.get(f"{name}_config") or {}) | (fields.get(f"{name}_config_dict") or {})

    def blocks(part: dict[str, Any]) -> dict[str, Any]:
        return {
            "layers": part["num_hidden_layers"],
            "width": part["hidden_size"],
            "heads": part["num_attention_heads"],
            "mlp_width": part["intermediate_size"],
            "activation": ACTIVATIONS.get(part["hidden_act"], part["hidden_act"]),
            "layer_norm_eps": part["layer_norm_eps"],
        }

    siglip, naflex, metaclip = kind.startswith("siglip"), kind == "siglip2", kind == "metaclip_2"
    text = part("text", SIGLIP_TEXT_DEFAULTS if siglip else TEXT_DEFAULTS)
    vision = part("vision", SIGLIP_VISION_DEFAULTS if siglip else VISION_DEFAULTS)
    if vision["num_channels"] != 3:
        raise ValueError(f"images of {vision['num_channels']} channels")
    image = {**blocks(vision), "patch_size": vision["patch_size"], "image_size": vision["image_size"]}
    if naflex:
        patches = vision.get("num_patches", NAFLEX_PATCHES)
        if type(patches) is not int or patches < 1 or (side := math.isqrt(patches)) ** 2 != patches:
            raise ValueError(f"num_patches must be a square, got {patches!r:.60}")
        image |= {"image_size": side * vision["patch_size"], "resampling": "bilinear"}
    texts = {**blocks(text), "vocab_size": text["vocab_size"], "context_length": text["max_position_embeddings"]}
    if siglip:
        if not vision["vision_use_head"]:
            raise ValueError("a SigLIP without an attention pool")
        embed_dim = text.get("projection_size") or text["hidden_size"]
        return CLIPConfig(
            embed_dim,
            ViTConfig(**image, pre_norm=False, pool="map", pixels="inception"),
            TextConfig(**texts, causal=False, pool="last", projection_bias=True),
            logit_bias=True,
        )
    end_token = text["eos_token_id"]
    texts |= {"end_token": None if end_token == LEGACY_END_TOKEN and not metaclip else end_token}
    texts |= {"tokenizer": "own"} if metaclip else {}
    return CLIPConfig(fields.get("projection_dim", 512), ViTConfig(**image), TextConfig(**texts))


# The fields of open_clip's configs, with the values that are built here. None is any value: the field is read below, or
# it changes no feature of a trained model. (): the field must be empty, since any value makes another model.
_ANY_BLOCK = ("layers", "width", "mlp_ratio", "ls_init_value", "final_ln_after_pool", "output_tokens")
_BLOCK: dict[str, tuple[Any, ...] | None] = {
    **dict.fromkeys((*_ANY_BLOCK, "act_kwargs", "norm_kwargs")),
    "block_type": ("default", "custom"),  # the same, as long as it sets none of the following
    **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner"), (False,)),
    **dict.fromkeys(("scale_attn", "scale_fc"), (False,)),
}
OPEN_CLIP_FIELDS: dict[str, dict[str, tuple[Any, ...] | None]] = {
    "model_cfg": {
        **dict.fromkeys(("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "output_dict")),
        **dict.fromkeys(("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale")),
        "multimodal_cfg": (),
    },
    "vision_cfg": {
        **_BLOCK,
        **dict.fromkeys(("image_size", "head_width", "patch_size", "patch_dropout", "no_ln_pre")),
        "pool_type": ("tok", "avg"),
        "pos_embed_type": ("learnable", "sin_cos_2d"),
        "attentional_pool": (False,),
        **dict.fromkeys(("attn_pooler_queries", "attn_pooler_heads")),
        "timm_model_name": (),
        **dict.fromkeys(("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop")),
        "timm_drop_path": None,
    },
    "text_cfg": {
        **_BLOCK,
        **dict.fromkeys(("context_length", "vocab_size", "heads", "no_causal_mask", "proj_bias", "pad_id", "eos_id")),
        "pool_type": ("argmax", "eos", "last", "first"),
        "proj_type": ("linear",),
        "embed_cls": (False,),
        **dict.fromkeys(("hf_tokenizer_name", "tokenizer_kwargs")),
        "tokenizer_mode": (),
        "hf_model_name": (),
        **dict.fromkeys(("hf_model_pretrained", "hf_proj_type", "hf_pooler_type")),
    },
}
NEVER_NULL = ("pool_type", "pos_embed_type", "proj_type")  # null is not the default there
OTHERS = {
    "timm_model_name": "an image encoder of timm",
    "hf_model_name": "a text encoder of Hugging Face",
    "multimodal_cfg": "a CoCa",
    "embed_cls": "the text encoder of a CoCa",
}
TEXT_POOLS = {"argmax": "end", "eos": "end", "last": "last", "first": "first"}  # open_clip's name -> ours
PIXEL_TOLERANCE = 1e-3  # of the means and deviations in a config, which may be rounded


def from_open_clip(fields: dict[str, Any]) -> CLIPConfig:
    """The architecture in the fields of an `open_clip_config.json`.

    Source: open_clip's CLIPVisionCfg and CLIPTextCfg.

    Raises:
      ValueError: it sets something that this package does not build.
    """
    model = fields["model_cfg"]
    _check_fields("model_cfg", model)
    vision, text = model["vision_cfg"], model["text_cfg"]
    _check_fields("vision_cfg", vision)
    _check_fields("text_cfg", text)
    quick = bool(model.get("quick_gelu"))
    size, width = vision.get("image_size", 224), _number(vision, "width", 768)
    head_width = _number(vision, "head_width", 64)
    if isinstance(size, list) and len(size) == 2:
        if size[0] != size[1]:
            raise ValueError(f"images of {size[0]} x {size[1]} pixels, which are not square")
        size = size[0]
    late = vision.get("final_ln_after_pool")
    layers, pixels = vision.get("layers", 12), _pixels(fields.get("preprocess_cfg") or {})
    if isinstance(layers, list):
        if pixels != "clip":
            raise ValueError(f"a ResNet for pixels normalised as {pixels!r}, not as CLIP's")
        image: ImageConfig = ResNetConfig(tuple(layers), width, 32 * width // head_width, size)
    else:
        image = ViTConfig(
            layers=layers,
            width=width,
            heads=width // head_width,
            patch_size=vision.get("patch_size", 16),
            image_size=size,
            mlp_width=int(width * _number(vision, "mlp_ratio", 4)),
            pre_norm=not vision.get("no_ln_pre"),
            pool="token" if vision.get("pool_type", "tok") == "tok" else "mean" if late else "norm_mean",
            pixels=pixels,
            **_functions("vision_cfg", vision, quick),
        )
    width = _number(text, "width", 512)
    pool = text.get("pool_type", "argmax")
    return CLIPConfig(
        embed_dim=model["embed_dim"],
        image=image,
        text=TextConfig(
            layers=text.get("layers", 12),
            width=width,
            heads=text.get("heads", 8),
            vocab_size=text.get("vocab_size", 49408),
            context_length=text.get("context_length", 77),
            mlp_width=int(width * _number(text, "mlp_ratio", 4)),
            end_token=text.get("eos_id", 2) if pool == "eos" else None,
            causal=not text.get("no_causal_mask"),
            pool=TEXT_POOLS[pool],
            tokenizer=_tokenizer(text),
            projection_bias=bool(text.get("proj_bias")),
            **_functions("text_cfg", text, quick),
        ),
        logit_bias=model.get("init_logit_bias") is not None,
    )


def _check_fields(name: str, part: dict[str, Any]) -> None:
    """Raises a ValueError that names all that is set in a part of a config and not built here."""
    known, faults = OPEN_CLIP_FIELDS[name], []
    for key, value in sorted(part.items()):
        allowed = known.get(key)
        if key not in known:
            faults.append(f"{key} to {value!r:.60}, which open_clip does not know")
        elif key in OTHERS and value:
            faults.append(f"{key} to {value!r:.60}: {OTHERS[key]}, which is not built here")
        elif allowed is not None and value not in allowed and (value is not None or key in NEVER_NULL):
            faults.append(f"{key} to {value!r:.60}, not {' or '.join(map(repr, allowed)) or None}")
    if faults:
        raise ValueError(f"{name} sets {'; '.join(faults)}")


def _tokenizer(text: dict[str, Any]) -> str:
    """Whose tokens a text encoder takes, by the names of `TextConfig`."""
    options = text.get("tokenizer_kwargs") or {}
    bare = options.get("strip_sep_token", False)
    if text.get("hf_tokenizer_name"):
        if options.keys() <= {"strip_sep_token", "clean"} and options.get("clean", "whitespace") == "whitespace":
            return "clipa" if bare else "own"
    elif not options:
        return "clip"
    raise ValueError(f"text_cfg sets tokenizer_kwargs to {options!r:.60}, which is not built here")


def _functions(name: str, part: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Activation and LayerNorm of a transformer, by the names of our fields."""
    norm, act = part.get("norm_kwargs") or {}, part.get("act_kwargs") or {}
    if norm.keys() - {"eps"}:
        raise ValueError(f"{name} sets norm_kwargs to {norm!r:.60}; only eps is built here")
    if act not in ({}, {"approximate": "none"}, {"approximate": "tanh"}):
        raise ValueError(f"{name} sets act_kwargs to {act!r:.60}, which no GELU here takes")
    if quick and act:
        raise ValueError(f"{name} sets act_kwargs to {act!r:.60}, which QuickGELU does not take")
    activation = "quick_gelu" if quick else "gelu_tanh" if act.get("approximate") == "tanh" else "gelu"
    return {"activation": activation, "layer_norm_eps": norm.get("eps", 1e-5)}


def _pixels(preprocessing: dict[str, Any]) -> str:
    """The name of the values that pixels are normalised with; CLIP's where none are given."""
    default = PIXELS["clip"]
    given = [preprocessing.get(name) or values for name, values in zip(("mean", "std"), default)]
    for name, values in PIXELS.items():
        if all(np.allclose(a, b, rtol=0, atol=PIXEL_TOLERANCE) for a, b in zip(given, values)):
            return name
    raise ValueError(f"pixels normalised with mean {given[0]} and deviation {given[1]}")


def _number(part: dict[str, Any], name: str, default: int) -> Any:
    """A field to compute with: a number. Its range is checked where it is used."""
    value = part.get(name, default)
    if type(value) not in (int, float):
        raise ValueError(f"{name} must be a number, got {value!r:.60}")
    return value
