"""What a CLIP is made of: frozen dataclasses that go to JSON and back, so that a checkpoint describes itself."""

import dataclasses
from typing import Any

from qualiclip_jax.errors import UserError

POSITIONS = ("none", "native", "interpolate")
ACTIVATIONS = ("quick_gelu", "gelu")
COMPUTE_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """CLIP's modified ResNet.

    Attributes:
      layers: residual blocks in each of the four stages.
      width: channels of the first stage's narrow convolutions; the last stage puts out `32 * width`.
      heads: heads of the attention pool; must divide `32 * width`.
      image_size: side in pixels of the images it was trained on; sets the grid of the positional embedding, side / 32.
      batch_norm: False after `models.fold_batch_norm`: the convolutions carry biases and there is no BatchNorm.
    """

    layers: tuple[int, int, int, int]
    width: int
    heads: int
    image_size: int = 224
    batch_norm: bool = True

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        if len(self.layers) != 4 or min(self.layers) < 1:
            raise UserError(f"ResNetConfig: layers are the blocks of four stages, at least one each, got {self.layers}")
        if self.width < 2 or self.width % 2:
            raise UserError(f"ResNetConfig: width must be even and positive, got {self.width}")

    @property
    def features(self) -> int:
        """Channels that reach the attention pool."""
        return 32 * self.width

    @property
    def grid(self) -> int:
        """Side of the positional embedding's grid."""
        return self.image_size // 32


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """CLIP's vision transformer.

    Attributes:
      layers: transformer blocks.
      width: channels of a token.
      heads: attention heads; must divide `width`.
      patch_size: side of a patch in pixels.
      image_size: side in pixels of the images it was trained on; sets the grid of the positional embedding.
      mlp_width: hidden units of the blocks' perceptrons; `4 * width` if None.
      activation: "quick_gelu" (OpenAI) or "gelu" (the exact one; open_clip's own models).
      layer_norm_eps: added to the variance in LayerNorm.
    """

    layers: int
    width: int
    heads: int
    patch_size: int
    image_size: int = 224
    mlp_width: int | None = None
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @property
    def grid(self) -> int:
        """Side of the positional embedding's grid."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """CLIP's text transformer (causal).

    Attributes:
      layers: transformer blocks.
      width: channels of a token.
      heads: attention heads; must divide `width`.
      vocab_size: number of token ids.
      context_length: the most tokens a text may have, start and end included.
      end_token: the feature is read where this id first occurs; None reads it at the largest id, as OpenAI's code does.
      mlp_width, activation, layer_norm_eps: as in `ViTConfig`.
    """

    layers: int
    width: int
    heads: int
    vocab_size: int = 49408
    context_length: int = 77
    end_token: int | None = None
    mlp_width: int | None = None
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """An image encoder and, unless `text` is None, a text encoder into the same space.

    Attributes:
      embed_dim: dimensions D of the common space.
      image: the image encoder.
      text: the text encoder; None where only images are encoded (prompt features are then constants).
      position: positional embedding of the image encoder. "none" adds none (any image size; QualiCLIP's choice for
        ResNets), "native" adds it as it is (images of the training size only), "interpolate" resizes its grid to the
        image's (any size; equal to "native" at the training size). By default "none" for a ResNet, "interpolate" for a
        ViT.
      compute_dtype: "float32" or "bfloat16". Parameters and features are float32 either way.
      remat: recompute each block in the backward pass: less memory, about a third more time.

    Raises:
      UserError: position, compute_dtype or an activation is not known, heads do not divide the channels, or there are
        none of either.
    """

    embed_dim: int
    image: ResNetConfig | ViTConfig
    text: TextConfig | None = None
    position: str | None = None
    compute_dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        if self.position is None:
            default = "none" if isinstance(self.image, ResNetConfig) else "interpolate"
            object.__setattr__(self, "position", default)
        if self.embed_dim < 1:
            raise UserError(f"embed_dim must be positive, got {self.embed_dim}")
        _one_of("position", self.position, POSITIONS)
        _one_of("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        for part in (self.image, self.text):
            if part is None:
                continue
            if not isinstance(part, ResNetConfig):
                _one_of("activation", part.activation, ACTIVATIONS)
            width = part.features if isinstance(part, ResNetConfig) else part.width
            if width < 1 or part.heads < 1 or width % part.heads:
                raise UserError(f"{type(part).__name__}: {part.heads} heads do not divide {width} channels")

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON types; `from_dict` is its inverse."""
        fields = dataclasses.asdict(self)
        fields["image"] = {"kind": "resnet" if isinstance(self.image, ResNetConfig) else "vit", **fields["image"]}
        if isinstance(self.image, ResNetConfig):
            fields["image"]["layers"] = list(self.image.layers)
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "CLIPConfig":
        """Reads what `to_dict` wrote.

        Raises:
          UserError: on values that are not known.
          TypeError, KeyError: on fields that are not known or missing.
        """
        fields = dict(fields)
        image = dict(fields.pop("image"))
        kind = image.pop("kind")
        _one_of("image.kind", kind, ("resnet", "vit"))
        image = ResNetConfig(**image) if kind == "resnet" else ViTConfig(**image)
        text = fields.pop("text", None)
        return cls(image=image, text=None if text is None else TextConfig(**text), **fields)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
