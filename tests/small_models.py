"""Small models with weights that are anything but special: BatchNorm statistics included."""

import numpy as np

from qualiclip_jax import QualiCLIP
from qualiclip_jax.models import CLIP, CLIPConfig, EfficientNetConfig, ResNetConfig, ViTConfig
from qualiclip_jax.models.tree import Skeleton

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


def build_clip(config: CLIPConfig, seed: int = 0) -> CLIP:
    """A CLIP in which every parameter and every running statistic has an effect; drawn by NumPy: nothing to compile."""
    skeleton, rng = Skeleton(config), np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        noise, name = rng.standard_normal(shape).astype(np.float32), path.rpartition("/")[2]
        if name in ("var", "scale", "deviation"):
            return np.exp(0.2 * noise)
        gain = 2 if len(shape) == 4 else 1  # of convolutions, before a ReLU
        return noise * np.float32((gain / np.prod(shape[-4:-1])) ** 0.5 if name == "kernel" else 0.1)

    return skeleton.filled({path: draw(path, shape) for path, shape in skeleton.shapes.items()})


def make_model(config: CLIPConfig, seed: int = 0, **others) -> QualiCLIP:
    """A model whose attribute scores spread over (0, 1), not saturated: the temperature sees to it."""
    features = np.random.default_rng(seed).normal(size=(len(PROMPTS), 2, config.embed_dim)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    return QualiCLIP(build_clip(config, seed), PROMPTS, features, **({"temperature": 10.0} | others))
