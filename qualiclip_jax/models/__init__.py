"""CLIP in Flax NNX: image and text encoders, their published configurations, and weights from the common formats."""

from qualiclip_jax.models.clip import MEAN, STD, CLIP, from_pure, normalise, to_pure
from qualiclip_jax.models.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig

__all__ = [
    "CLIP",
    "MEAN",
    "STD",
    "MEAN",
    "STD",
    "CLIPConfig",
    "ResNetConfig",
    "TextConfig",
    "ViTConfig",
    "from_pure",
    "normalise",
    "to_pure",
]
