"""CLIP in Flax NNX: image and text encoders, their published configurations, and weights from the common formats."""

from qualiclip_jax.models import backbones, convert
from qualiclip_jax.models.clip import CLIP, MEAN, STD, from_pure, normalise, to_pure
from qualiclip_jax.models.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from qualiclip_jax.models.fold import fold_batch_norm

__all__ = [
    "CLIP",
    "MEAN",
    "STD",
    "CLIPConfig",
    "ResNetConfig",
    "TextConfig",
    "ViTConfig",
    "backbones",
    "convert",
    "fold_batch_norm",
    "from_pure",
    "normalise",
    "to_pure",
]
