"""What an EfficientNet is made of."""

import dataclasses
import math
from typing import ClassVar

from qualiclip_jax.errors import UserError
from qualiclip_jax.models.config_base import MOST_BLOCKS, ImageConfig


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig(ImageConfig):
    """EfficientNet-Lite, pooled at several levels; by default Lite0.

    Level 0 is the stem, levels 1 to S are the S stages, level S + 1 is the head, a 1 x 1 convolution. Levels behind the
    last pooled one do not exist. Of every pooled level, the channel means and standard deviations are features: by
    default of those before each halving of the resolution, and of the head: 2 * 1824 features.

    Attributes:
      stem: channels of the first convolution, 3 x 3 with stride 2.
      channels: that each stage puts out.
      layers: blocks of each stage.
      kernels: side of the depthwise kernels of each stage.
      strides: of the first block of each stage, 1 or 2; at most four are 2.
      expansions: how many times wider a stage's blocks are inside.
      head: channels of the head.
      pooled: levels that are pooled, in ascending order.
      pixel_mean, pixel_deviation: what the weights expect pixels in [0, 1] to be normalised with.
      batch_norm_eps: added to the variance in BatchNorm.
      image_size: side in pixels of the images it was trained on.
      batch_norm: False after `models.fold_batch_norm`.

    Raises:
      UserError: as `ResNetConfig`.
    """

    kind: ClassVar[str] = "efficientnet"
    positions: ClassVar[tuple[str, ...]] = ("none",)

    stem: int = 32
    channels: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    layers: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    kernels: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    expansions: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    head: int = 1280
    pooled: tuple[int, ...] = (0, 1, 2, 3, 5, 7, 8)
    pixel_mean: float = 127 / 255
    pixel_deviation: float = 128 / 255
    batch_norm_eps: float = 1e-3
    image_size: int = 224
    batch_norm: bool = True

    def __post_init__(self) -> None:
        by_stage = ("channels", "layers", "kernels", "strides", "expansions")
        for name in (*by_stage, "pooled"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or not values:
                raise UserError(f"EfficientNetConfig: {name} must be a list of integers, got {values!r:.60}")
            object.__setattr__(self, name, tuple(values))
        super().__post_init__()
        if len({len(getattr(self, name)) for name in by_stage}) > 1:
            raise UserError(f"EfficientNetConfig: {', '.join(by_stage)} must have one value for each stage")
        if sum(self.layers) > MOST_BLOCKS:
            raise UserError(f"EfficientNetConfig: {sum(self.layers)} blocks, more than {MOST_BLOCKS}")
        if any(size % 2 == 0 for size in self.kernels):
            raise UserError(f"EfficientNetConfig: kernels must be odd, got {self.kernels}")
        if max(self.strides) > 2 or self.strides.count(2) > 4:
            raise UserError(f"EfficientNetConfig: strides must be 1 or 2, and 2 at most four times, got {self.strides}")
        if list(self.pooled) != sorted(set(self.pooled)) or self.pooled[-1] > len(self.layers) + 1:
            last = len(self.layers) + 1
            raise UserError(f"EfficientNetConfig: pooled must be ascending levels up to {last}, got {self.pooled}")

    @property
    def stages(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """Kernel, stride, expansion, channels and layers of the stages that exist."""
        every = zip(self.kernels, self.strides, self.expansions, self.channels, self.layers, strict=True)
        return tuple(every)[: self.pooled[-1]]

    @property
    def levels(self) -> int:
        """How many levels exist."""
        return self.pooled[-1] + 1

    @property
    def has_head(self) -> bool:
        """Whether the head is one of them."""
        return self.levels == len(self.layers) + 2

    @property
    def early_levels(self) -> int:
        """How many levels have a resolution of 1 / 8 or more."""
        return sum(self.reduction(level) <= 8 for level in range(self.levels))

    def reduction(self, level: int) -> int:
        """How many pixels one position of a level's feature map stands for, along each side."""
        return 2 * math.prod(self.strides[:level])

    @property
    def pooled_channels(self) -> tuple[int, ...]:
        """Channels of the pooled levels."""
        every = (self.stem, *self.channels, self.head)
        return tuple(every[level] for level in self.pooled)

    @property
    def stride(self) -> int:
        """32 pixels a token, whichever levels exist."""
        return 32

    def tokens(self, side: int) -> int:
        """The last square may be smaller."""
        return -(-side // 32)

    @property
    def features(self) -> int:
        """Numbers of a token: means and variances, and a count for each pooled level."""
        return 2 * sum(self.pooled_channels) + len(self.pooled)

    @property
    def halo(self) -> int:
        """How many tokens beside a cut edge differ from those of the whole image; see `ResNetConfig.halo`."""
        wrong, most = 1, 1  # the stem; what differs is counted in positions of the level, then in tokens
        for level, (size, stride, _, _, layers) in enumerate(self.stages, 1):
            wrong = -(-(wrong + size // 2) // stride) + (layers - 1) * (size // 2)
            most = max(most, -(-wrong * self.reduction(level) // 32))
        return most

    @property
    def multiplications(self) -> float:
        """Multiplications of a ResNet that take as long, per pixel: 2.5 for each, as each number serves few."""
        total, into = 27 * self.stem / 4, self.stem
        for level, (size, stride, expansion, out, layers) in enumerate(self.stages, 1):
            for layer in range(layers):
                wide, area = expansion * into, self.reduction(level) ** 2
                expanded = area if layer else area / stride**2
                total += into * wide / expanded * (expansion > 1) + wide * (size**2 + out) / area
                into = out
        return 2.5 * (total + self.has_head * into * self.head / self.reduction(self.levels - 1) ** 2)

    @property
    def bytes_per_pixel(self) -> float:
        """Memory for activations per pixel, at the peak: the widest map, as it is and padded, and a tenth more."""
        widest, into = self.stem / 4, self.stem
        for level, (_, stride, expansion, out, _) in enumerate(self.stages, 1):
            widest = max(widest, expansion * into * stride**2 / self.reduction(level) ** 2)
            into = out
        return 2.2 * 4 * widest

    def describe(self) -> str:
        """E.g. "EfficientNet 1-2-2-3-3-4-1, pooled at levels 0-1-2-3-5-7-8"."""
        built = [layers for *_, layers in self.stages]
        layers, pooled = ("-".join(map(str, values)) for values in (built, self.pooled))
        return f"EfficientNet {layers}, pooled at levels {pooled}"
