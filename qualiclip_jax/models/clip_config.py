"""What a CLIP is made of: frozen dataclasses that go to JSON and back, so that a checkpoint describes itself."""

import dataclasses
from typing import Any, ClassVar, Self, TypeVar

from qualiclip_jax.errors import UserError
from qualiclip_jax.models.config_base import MOST_BLOCKS, ImageConfig, check_fields, one_of
from qualiclip_jax.models.config_efficientnet import EfficientNetConfig
from qualiclip_jax.models.pixels import PIXELS

POSITIONS = ("none", "native", "interpolate")
COMPUTE_DTYPES = ("float32", "bfloat16")
POOLS = ("token", "map", "mean", "norm_mean")
RESAMPLINGS = ("bicubic", "bilinear")
TEXT_POOLS = ("end", "last", "first")
TOKENIZERS = ("clip", "siglip", "own", "clipa")
# Fields that came later: not written where they hold the default, so that models keep their fingerprint.
LATER = ("pre_norm", "pool", "pixels", "resampling", "tokenizer", "causal", "projection_bias", "logit_bias")
ATTENTION_SLICE = 256  # queries that attend at once where tokens are many, see `layers.attention`


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ImageConfig):
    """CLIP's modified ResNet.

    Attributes:
      layers: residual blocks in each of the four stages.
      width: channels of the first stage's narrow convolutions; the last stage puts out `32 * width`.
      heads: heads of the attention pool; must divide `32 * width`.
      image_size: side in pixels of the images it was trained on; sets the grid of the positional embedding, side / 32.
      batch_norm: False after `models.fold_batch_norm`: the convolutions carry biases and there is no BatchNorm.

    Raises:
      UserError: a field is of another type or out of range, or heads do not divide the channels.
    """

    kind: ClassVar[str] = "resnet"
    positions: ClassVar[tuple[str, ...]] = POSITIONS

    layers: tuple[int, int, int, int]
    width: int
    heads: int
    image_size: int = 224
    batch_norm: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.layers, (list, tuple)) or len(self.layers) != 4:
            raise UserError(f"ResNetConfig: layers are the blocks of four stages, at least one each, got {self.layers}")
        object.__setattr__(self, "layers", tuple(self.layers))
        super().__post_init__()
        if sum(self.layers) > MOST_BLOCKS:
            raise UserError(f"ResNetConfig: {sum(self.layers)} residual blocks, more than {MOST_BLOCKS}")
        if self.width % 2:
            raise UserError(f"ResNetConfig: width must be even, got {self.width}")
        _check_heads(self, self.features, self.heads)

    @property
    def stride(self) -> int:
        """32 pixels a token."""
        return 32

    def tokens(self, side: int) -> int:
        """The first of five halvings rounds up, the others down."""
        return (side + 1) // 32

    @property
    def features(self) -> int:
        """Channels that reach the attention pool."""
        return 32 * self.width

    @property
    def grid(self) -> int:
        """Side of the positional embedding's grid."""
        return self.image_size // 32

    @property
    def halo(self) -> int:
        """How many tokens beside a cut edge differ from those of the whole image.

        Counts wrong values from the edge inwards: a 3 x 3 convolution adds one, halving the resolution halves them.
        """
        wrong = 1  # the stem's first convolution, which halves
        wrong = -(-(wrong + 2) // 2)  # two more, and a pool
        for stage, blocks in enumerate(self.layers):
            for block in range(blocks):
                wrong += 1
                if stage > 0 and block == 0:
                    wrong = -(-wrong // 2)
        return wrong

    @property
    def multiplications(self) -> float:
        """Multiplications per pixel, roughly; a block has 17 width^2 a token of its stage."""
        stem = (27 / 2 + 9 / 4 * self.width + 9 / 2 * self.width) * self.width / 4
        return stem + sum(self.layers) * 17 / 16 * self.width**2

    @property
    def bytes_per_pixel(self) -> float:
        """Memory for activations per pixel, at the peak; measured with RN50."""
        return 430 * self.width / 64

    def describe(self) -> str:
        """E.g. "ResNet 3-4-6-3 of width 64"."""
        return f"ResNet {'-'.join(map(str, self.layers))} of width {self.width}"


@dataclasses.dataclass(frozen=True)
class ViTConfig(ImageConfig):
    """CLIP's vision transformer, or SigLIP's.

    Attributes:
      layers: transformer blocks.
      width: channels of a token.
      heads: attention heads; must divide `width`.
      patch_size: side of a patch in pixels.
      image_size: side in pixels of the images it was trained on; sets the grid of the positional embedding.
      mlp_width: hidden units of the blocks' perceptrons; `4 * width` if None.
      activation: "quick_gelu" (OpenAI), "gelu" (the exact one; open_clip's own models) or "gelu_tanh" (its
        approximation by tanh; SigLIP).
      layer_norm_eps: added to the variance in LayerNorm.
      pre_norm: LayerNorm before the first block.
      pool: "token" reads the features at a class token and projects them. "mean" projects the mean of the patches
        instead, with the last LayerNorm behind the mean (CLIPA); "norm_mean" has it before. "map" is SigLIP's attention
        pool over the patches: there is no class token and no projection, and the patch embedding has a bias.
      pixels: what the weights expect pixels to be normalised with, a name of `pixels.PIXELS`. Images come normalised
        with CLIP's values all the same.
      resampling: how the positional embedding's grid is resized to that of an image: "bicubic" without antialiasing, or
        "bilinear" with it (SigLIP 2 NaFlex, which was trained so).

    Raises:
      UserError: as `ResNetConfig`.
    """

    kind: ClassVar[str] = "vit"
    positions: ClassVar[tuple[str, ...]] = ("interpolate", "none", "native")

    layers: int
    width: int
    heads: int
    patch_size: int
    image_size: int = 224
    mlp_width: int | None = None
    activation: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    pre_norm: bool = True
    pool: str = "token"
    pixels: str = "clip"
    resampling: str = "bicubic"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_heads(self, self.width, self.heads)
        one_of("pool", self.pool, POOLS)
        one_of("pixels", self.pixels, tuple(PIXELS))
        one_of("resampling", self.resampling, RESAMPLINGS)

    @property
    def class_tokens(self) -> int:
        """Tokens before those of the patches: 1 or 0."""
        return int(self.pool != "map")

    @property
    def stride(self) -> int:
        """The patch."""
        return self.patch_size

    @property
    def features(self) -> int:
        """Channels of a token."""
        return self.width

    @property
    def grid(self) -> int:
        """Side of the positional embedding's grid."""
        return self.image_size // self.patch_size

    @property
    def multiplications(self) -> float:
        """Multiplications per pixel, roughly: without the attention's own."""
        return (12 * self.layers * self.width + 3 * self.patch_size**2) * self.width / self.patch_size**2

    @property
    def bytes_per_pixel(self) -> float:
        """Memory for activations per pixel: one slice of the attention, and what a block computes of each token."""
        return 4 * (3 * ATTENTION_SLICE * self.heads + 12 * self.width) / self.patch_size**2

    def describe(self) -> str:
        """E.g. "ViT of 12 layers, width 768, patches of 16"."""
        pool = {"token": "", "map": ", with an attention pool"}.get(self.pool, ", read by the mean of its patches")
        return f"ViT of {self.layers} layers, width {self.width}, patches of {self.patch_size}{pool}"


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """CLIP's text transformer, or SigLIP's.

    Attributes:
      layers: transformer blocks.
      width: channels of a token.
      heads: attention heads; must divide `width`.
      vocab_size: number of token ids.
      context_length: the most tokens a text may have, start and end included.
      end_token: the feature is read where this id first occurs; None reads it at the largest id, as OpenAI's code does.
      mlp_width, activation, layer_norm_eps: as in `ViTConfig`.
      causal: a token attends only to those before it.
      pool: "end" reads the feature at the end token. "last" reads it at the last token: all texts are filled up to
        `context_length` (SigLIP). "first" reads it at the first one.
      projection_bias: the projection has a bias.
      tokenizer: whose tokens it takes: those of "clip"; of "siglip", as it is where `pool` is "last"; those that the
        tokenizer beside the weights gives ("own"), or these without the separator ("clipa").

    Raises:
      UserError: as `ResNetConfig`.
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
    causal: bool = True
    pool: str = "end"
    projection_bias: bool = False
    tokenizer: str = "clip"

    def __post_init__(self) -> None:
        check_fields(self)
        _check_heads(self, self.width, self.heads)
        one_of("pool", self.pool, TEXT_POOLS)
        one_of("tokenizer", self.tokenizer, TOKENIZERS)
        if self.pool == "last" and self.tokenizer == "clip":
            object.__setattr__(self, "tokenizer", "siglip")


TransformerConfig = ViTConfig | TextConfig
IMAGE_KINDS: dict[str, type[ImageConfig]] = {
    config.kind: config for config in (ResNetConfig, ViTConfig, EfficientNetConfig)
}


def image_config(fields: dict[str, Any]) -> ImageConfig:
    """The config of an image encoder from its fields.

    Args:
      fields: of one of the classes in `IMAGE_KINDS`, and "kind". Without a kind, "patch_size" makes it a ViT, else it
        is a ResNet.

    Raises:
      UserError: the kind or a field is not known, missing, of another type or out of range.
    """
    kind = fields.get("kind", "vit" if "patch_size" in fields else "resnet")
    one_of("image.kind", kind, tuple(IMAGE_KINDS))
    return _built(IMAGE_KINDS[kind], {name: value for name, value in fields.items() if name != "kind"})


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
        ViT ("" is replaced by it).
      compute_dtype: "float32" or "bfloat16". Parameters and features are float32 either way.
      remat: recompute each block in the backward pass: less memory, about a third more time.
      logit_bias: beside its scale, there is a bias of the logits, for sigmoids (SigLIP).

    Raises:
      UserError: a field is of another type, out of range or not known.
    """

    embed_dim: int
    image: ImageConfig
    text: TextConfig | None = None
    position: str = ""
    compute_dtype: str = "float32"
    remat: bool = False
    logit_bias: bool = False

    def __post_init__(self) -> None:
        if not self.position:
            object.__setattr__(self, "position", self.image.positions[0])
        check_fields(self)
        one_of("position", self.position, tuple(name for name in POSITIONS if name in self.image.positions))
        one_of("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        if isinstance(self.image, ViTConfig) and self.image.pool == "map" and self.embed_dim != self.image.width:
            raise UserError(f"CLIPConfig: an attention pool gives {self.image.width} features, not {self.embed_dim}")

    @property
    def can_tile(self) -> bool:
        """Whether a large image may be encoded tile by tile."""
        return self.image.halo is not None and self.position != "native"

    def to_dict(self) -> dict[str, Any]:
        """A dict of JSON types; `from_dict` is its inverse."""
        fields, image = _fields(self), _fields(self.image)
        image = {name: list(value) if isinstance(value, tuple) else value for name, value in image.items()}
        text = None if self.text is None else _fields(self.text)
        return fields | {"image": {"kind": self.image.kind, **image}, "text": text}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
          UserError: on fields that are not known, missing, of another type or out of range.
        """
        image, text = fields.get("image"), fields.get("text")
        if not isinstance(image, dict) or not isinstance(text, dict | None):
            raise UserError(f"{cls.__name__}: image and text are groups of fields, got {image!r:.60} and {text!r:.60}")
        parts = {"image": image_config(image), "text": None if text is None else _built(TextConfig, text)}
        return _built(cls, fields | parts)


def _fields(config: Any) -> dict[str, Any]:
    """The fields of a dataclass, without those of `LATER` that hold the default."""
    fields = {field.name: (getattr(config, field.name), field.default) for field in dataclasses.fields(config)}
    return {name: value for name, (value, default) in fields.items() if name not in LATER or value != default}


_Config = TypeVar("_Config", bound="ImageConfig | TextConfig | CLIPConfig")


def _built(config: type[_Config], fields: dict[str, Any]) -> _Config:
    known = {field.name: field for field in dataclasses.fields(config)}
    required = {name for name, field in known.items() if field.default is dataclasses.MISSING}
    for fault, names in (("does not know", fields.keys() - known.keys()), ("lacks", required - fields.keys())):
        if names:
            raise UserError(f"{config.__name__} {fault} {', '.join(sorted(map(str, names)))[:200]}")
    return config(**fields)


def _check_heads(config: Any, width: int, heads: int) -> None:
    if width % heads:
        raise UserError(f"{type(config).__name__}: {heads} heads do not divide {width} channels")
