"""CLIP in Flax NNX: image and text encoders, their published configurations, and weights from the common formats."""

from qualiclip_jax.models import backbones, convert
from qualiclip_jax.models.clip import CLIP
from qualiclip_jax.models.clip_config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from qualiclip_jax.models.config_base import ImageConfig
from qualiclip_jax.models.config_efficientnet import EfficientNetConfig
from qualiclip_jax.models.fold import fold_batch_norm
from qualiclip_jax.models.model import Model
from qualiclip_jax.models.pixels import MEAN, STD, normalise
from qualiclip_jax.models.rating import Rating
from qualiclip_jax.models.tree import from_pure, to_pure

__all__ = [
    "CLIP",
    "MEAN",
    "STD",
    "CLIPConfig",
    "EfficientNetConfig",
    "ImageConfig",
    "Model",
    "Rating",
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
