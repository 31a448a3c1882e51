"""Architectures as other libraries write them down: Hugging Face's `config.json`, open_clip's
`open_clip_config.json`.
"""

from typing import Any

from qualiclip_jax.models.clip_config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from qualiclip_jax.models.config_base import ImageConfig

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
LEGACY_END_TOKEN = 2  # older configs carry it by mistake; transformers then looks for the largest id, as OpenAI does


def from_hugging_face(fields: dict[str, Any]) -> CLIPConfig:
    """The architecture in the fields of a `config.json` of model type "clip".

    Source: transformers.CLIPConfig, legacy `text_config_dict` and `vision_config_dict` included.

    Raises:
      ValueError, UserError: another model type, or something that this package does not build.
    """
    if fields.get("model_type") != "clip":
        raise ValueError(f"model type {fields.get('model_type')!r}, not 'clip'")

    def part(name: str, defaults: dict[str, Any]) -> dict[str, Any]:
        return defaults | (fields.get(f"{name}_config") or {}) | (fields.get(f"{name}_config_dict") or {})

    text, vision = part("text", TEXT_DEFAULTS), part("vision", VISION_DEFAULTS)
    if vision["num_channels"] != 3:
        raise ValueError(f"images of {vision['num_channels']} channels")
    return CLIPConfig(
        embed_dim=fields.get("projection_dim", 512),
        image=ViTConfig(
            layers=vision["num_hidden_layers"],
            width=vision["hidden_size"],
            heads=vision["num_attention_heads"],
            patch_size=vision["patch_size"],
            image_size=vision["image_size"],
            mlp_width=vision["intermediate_size"],
            activation=vision["hidden_act"],
            layer_norm_eps=vision["layer_norm_eps"],
        ),
        text=TextConfig(
            layers=text["num_hidden_layers"],
            width=text["hidden_size"],
            heads=text["num_attention_heads"],
            vocab_size=text["vocab_size"],
            context_length=text["max_position_embeddings"],
            end_token=None if text["eos_token_id"] == LEGACY_END_TOKEN else text["eos_token_id"],
            mlp_width=text["intermediate_size"],
            activation=text["hidden_act"],
            layer_norm_eps=text["layer_norm_eps"],
        ),
    )


# What of open_clip's configs is built here; anything else that is set makes another model.
OPEN_CLIP_FIELDS = {
    "model_cfg": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"},
    "vision_cfg": {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "hf_tokenizer_name"},
}


def from_open_clip(fields: dict[str, Any]) -> CLIPConfig:
    """The architecture in the fields of an `open_clip_config.json`.

    Raises:
      ValueError: it sets something that this package does not build.
    """
    model = fields["model_cfg"]
    vision, text = model["vision_cfg"], model["text_cfg"]
    for name, part in (("model_cfg", model), ("vision_cfg", vision), ("text_cfg", text)):
        unknown = sorted(key for key, value in part.items() if value and key not in OPEN_CLIP_FIELDS[name])
        if unknown:
            raise ValueError(f"{name} sets {', '.join(unknown)}")
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    size, width = vision.get("image_size", 224), _number(vision, "width", 768)
    head_width = _number(vision, "head_width", 64)
    if isinstance(size, list) and len(size) == 2:
        if size[0] != size[1]:
            raise ValueError(f"images of {size[0]} x {size[1]} pixels, which are not square")
        size = size[0]
    layers = vision.get("layers", 12)
    if isinstance(layers, list):
        image: ImageConfig = ResNetConfig(tuple(layers), width, 32 * width // head_width, size)
    else:
        mlp_width = int(width * _number(vision, "mlp_ratio", 4))
        image = ViTConfig(layers, width, width // head_width, vision.get("patch_size", 16), size, mlp_width, activation)
    width = _number(text, "width", 512)
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
            activation=activation,
        ),
    )


def _number(part: dict[str, Any], name: str, default: int) -> Any:
    """A field to compute with: a number. Its range is checked where it is used."""
    value = part.get(name, default)
    if type(value) not in (int, float):
        raise ValueError(f"{name} must be a number, got {value!r:.60}")
    return value
