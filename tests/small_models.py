"""Small models with weights that are anything but special: BatchNorm statistics included."""

import jax
import numpy as np
from flax import nnx

from qualiclip_jax import QualiCLIP
from qualiclip_jax.models import CLIP, CLIPConfig, EfficientNetConfig, ResNetConfig, ViTConfig

PROMPTS = [("Good photo.", "Bad photo."), ("Sharp image.", "Blurry image."), ("Noise-free image.", "Noisy image.")]
RESNET = CLIPConfig(embed_dim=32, image=ResNetConfig(layers=(1, 2, 1, 1), width=8, heads=4))
VIT = CLIPConfig(embed_dim=32, image=ViTConfig(layers=2, width=32, heads=2, patch_size=16, image_size=64))
SIGLIP = CLIPConfig(
    embed_dim=32,
    image=ViTConfig(
        layers=2, width=32, heads=2, patch_size=16, image_size=64, activation="gelu_tanh", pre_norm=False, pool="map",
        pixels="inception",
    ),
    logit_bias=True,
)  # fmt: skip
EFFICIENTNET = CLIPConfig(
    embed_dim=32,
    image=EfficientNetConfig(
        stem=8,
        channels=(8, 12, 12, 16),
        layers=(1, 2, 2, 1),
        kernels=(3, 3, 5, 3),
        strides=(1, 2, 2, 2),
        expansions=(1, 3, 4, 4),
        head=24,
        pooled=(0, 2, 4, 5),
    ),
)


def make_model(config: CLIPConfig, seed: int = 0, **others) -> QualiCLIP:
    """A model whose attribute scores spread over (0, 1), not saturated: the temperature sees to it."""
    rng = np.random.default_rng(seed)
    clip = CLIP(config, rngs=nnx.Rngs(seed))
    graph, parameters, statistics, rest = nnx.split(clip, nnx.Param, nnx.BatchStat, ...)
    parameters = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), parameters)
    statistics = jax.tree.map(lambda x: x + 0.2 * rng.random(x.shape, np.float32), statistics)
    features = rng.normal(size=(len(PROMPTS), 2, config.embed_dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    clip = nnx.merge(graph, parameters, statistics, rest)
    return QualiCLIP(clip, PROMPTS, features, **({"temperature": 10.0} | others))
