"""The architecture of a CLIP, read off the names and shapes of its tensors (OpenAI's names)."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from qualiclip_jax.errors import UserError
from qualiclip_jax.models.backbones import TABLE
from qualiclip_jax.models.clip_config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig

Shapes = Mapping[str, tuple[int, ...]]

# The tensors that tell the architecture.
RESNET_KEYS = (
    "visual.layer1.0.conv1.weight",
    "visual.attnpool.positional_embedding",
    "visual.attnpool.c_proj.weight",
)
VIT_KEYS = (
    "visual.conv1.weight",
    "visual.positional_embedding",
    "visual.transformer.resblocks.0.mlp.c_fc.weight",
    "visual.proj",
)
PROBE = "visual.attn_pool.probe"  # what SigLIP's attention pool asks with
TEXT_KEYS = ("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight")


def infer_config(tensors: Mapping[str, Any], name: str = "state dict", activation: str | None = None) -> CLIPConfig:
    """The architecture behind tensors with OpenAI's names.

    Where one that tells it is missing, the others tell what they can: the architecture then serves to name all that is
    wrong with the tensors.

    Shapes tell neither the number of heads nor the activation: both are those of the published model with the same
    shapes; failing that, heads are 64 wide and the activation is QuickGELU.

    Args:
      tensors: name -> array.
      name: what to call them in errors.
      activation: "quick_gelu" or "gelu" if known.

    Raises:
      UserError: they are no CLIP of a known kind: none of the tensors that would tell the architecture is there (those
        are named), or no architecture fits their shapes.
    """
    shapes = {key: np.shape(value) for key, value in tensors.items()}
    if PROBE in shapes:
        raise UserError(f"{name}: a SigLIP, whose shapes do not tell its heads: put its config.json beside the weights")
    is_resnet = any(key.startswith("visual.layer") for key in shapes)
    has_text = any(key.startswith(("token_embedding.", "transformer.")) for key in shapes)
    needed = (RESNET_KEYS if is_resnet else VIT_KEYS) + (TEXT_KEYS if has_text else ())
    missing = [key for key in needed if key not in shapes]
    if len(missing) < len(needed):
        shapes |= _stand_ins(shapes, missing)
    else:
        raise UserError(
            f"{name}: this is no CLIP that is known here: among its {len(shapes)} tensors "
            f"({', '.join(sorted(shapes)[:3])} ...) are missing: {', '.join(missing)}"
        )
    try:
        image = _resnet(shapes) if is_resnet else _vit(shapes)
        text = _text(shapes) if has_text else None
        embed_dim = shapes["visual.attnpool.c_proj.weight"][0] if is_resnet else shapes["visual.proj"][1]
        config = CLIPConfig(embed_dim, image, text)
    except (IndexError, ValueError, ZeroDivisionError, UserError):
        told = ", ".join(f"{key} {shapes[key]}" for key in needed)
        raise UserError(f"{name}: this is no CLIP that is known here: no architecture fits the shapes {told}") from None
    return _match(config, activation)


def _stand_ins(shapes: Shapes, missing: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes for tensors that are missing, as far as others tell them, else those of ViT-B/32 and RN50."""

    def size(*places: tuple[str, int], default: int) -> int:
        known = (shapes[key][axis] for key, axis in places if len(shapes.get(key, ())) > axis)
        return next(known, default)

    def hidden(tower: str, default: int) -> int:
        return size((f"{tower}transformer.resblocks.0.mlp.c_fc.bias", 0), default=default)

    embed_dim = size(("text_projection", 1), ("visual.attnpool.c_proj.bias", 0), default=512)
    width = size(("visual.class_embedding", 0), ("visual.ln_pre.weight", 0), default=768)
    text_width = size(("ln_final.weight", 0), ("text_projection", 0), default=512)
    shape = {
        "visual.layer1.0.conv1.weight": (size(("visual.bn3.weight", 0), default=64),),
        "visual.attnpool.positional_embedding": (50,),
        "visual.attnpool.c_proj.weight": (embed_dim,),
        "visual.conv1.weight": (width, 3, 32, 32),
        "visual.positional_embedding": (50,),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (hidden("visual.", 4 * width), width),
        "visual.proj": (width, embed_dim),
        "token_embedding.weight": (49408, text_width),
        "positional_embedding": (77,),
        "transformer.resblocks.0.mlp.c_fc.weight": (hidden("", 4 * text_width), text_width),
    }
    return {key: shape[key] for key in missing}


def _resnet(shapes: Shapes) -> ResNetConfig:
    width = shapes["visual.layer1.0.conv1.weight"][0]
    first, second, third, fourth = (_count(shapes, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    grid = round((shapes["visual.attnpool.positional_embedding"][0] - 1) ** 0.5)
    return ResNetConfig((first, second, third, fourth), width, heads=max(32 * width // 64, 1), image_size=32 * grid)


def _vit(shapes: Shapes) -> ViTConfig:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    grid = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
    layers = _count(shapes, r"visual\.transformer\.resblocks\.(\d+)\.")
    mlp_width = _mlp_width(shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"])
    return ViTConfig(layers, width, max(width // 64, 1), patch, patch * grid, mlp_width)


def _text(shapes: Shapes) -> TextConfig:
    vocab_size, width = shapes["token_embedding.weight"]
    return TextConfig(
        layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
        width=width,
        heads=max(width // 64, 1),
        vocab_size=vocab_size,
        context_length=shapes["positional_embedding"][0],
        mlp_width=_mlp_width(shapes["transformer.resblocks.0.mlp.c_fc.weight"]),
    )


def _mlp_width(shape: tuple[int, ...]) -> int | None:
    """None where it is the usual multiple of the width."""
    hidden, width = shape
    return None if hidden == 4 * width else hidden


def _count(shapes: Shapes, pattern: str) -> int:
    return 1 + max((int(found[1]) for found in (re.match(pattern, key) for key in shapes) if found), default=-1)


def _shape(config: ViTConfig) -> dict[str, Any]:
    """The fields that shapes tell."""
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in ("heads", "activation", "pixels")
    }


def _match(config: CLIPConfig, activation: str | None) -> CLIPConfig:
    """`config` with what shapes do not tell from the published backbone with the same shapes; `activation` wins."""
    image, text = config.image, config.text
    for backbone in TABLE.values():
        published = backbone.config.image
        if type(image) is type(published) is ViTConfig and _shape(published) == _shape(image):
            image = published
            activation = activation or published.activation
            break
    if activation is not None:
        image = dataclasses.replace(image, activation=activation) if isinstance(image, ViTConfig) else image
        text = text and dataclasses.replace(text, activation=activation)
    return dataclasses.replace(config, image=image, text=text)
