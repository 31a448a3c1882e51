"""What the configs of all image encoders share, and the check of their fields."""

import dataclasses
from typing import Any, ClassVar

from qualiclip_jax.errors import UserError

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")

# The most that a field may be. All published models are far below; more is a damaged or malicious file.
MOST = {
    "embed_dim": 1 << 16,
    "layers": 256,
    "stem": 1 << 12,
    "channels": 1 << 12,
    "kernels": 15,
    "strides": 2,
    "expansions": 64,
    "head": 1 << 14,
    "pooled": 32,
    "width": 1 << 16,
    "heads": 1 << 12,
    "patch_size": 1 << 10,
    "image_size": 1 << 14,
    "mlp_width": 1 << 18,
    "vocab_size": 1 << 24,
    "context_length": 1 << 16,
    "end_token": 1 << 24,
}
MOST_BLOCKS = 100  # of a convolutional encoder; each is compiled
LEAST = {"end_token": 0, "pooled": 0}  # of a field, where it is not 1


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """What the config of every image encoder tells.

    Attributes:
      kind: its name in a checkpoint.
      positions: the positional embeddings that it may have (see `CLIPConfig`), the default first.
    """

    kind: ClassVar[str]
    positions: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images it was trained on."""
        raise NotImplementedError

    @property
    def stride(self) -> int:
        """Side in pixels of what becomes one token; also the smallest image side."""
        raise NotImplementedError

    @property
    def features(self) -> int:
        """Channels of a token."""
        raise NotImplementedError

    def tokens(self, side: int) -> int:
        """How many tokens a side of so many pixels gives."""
        return side // self.stride

    @property
    def halo(self) -> int | None:
        """How many tokens beside a cut edge differ from those of the whole image; None if all may."""
        return None

    @property
    def batch_norm(self) -> bool:
        """Whether there is BatchNorm that `models.fold_batch_norm` can fold."""
        return False

    @property
    def batch_norm_eps(self) -> float:
        """Added to the variance in BatchNorm."""
        return 1e-5

    @property
    def multiplications(self) -> float:
        """Multiplications per pixel, roughly."""
        raise NotImplementedError

    @property
    def bytes_per_pixel(self) -> float:
        """Memory for activations per pixel, at the peak."""
        raise NotImplementedError

    def describe(self) -> str:
        """The architecture in a few words."""
        raise NotImplementedError


def check_fields(config: Any) -> None:
    """Raises a UserError where a field of a config is of another type or out of range."""
    name = type(config).__name__
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in MOST and not (value is None and field.default is None):
            least, most = LEAST.get(field.name, 1), MOST[field.name]
            values = value if isinstance(value, tuple) else (value,)
            if not all(type(v) is int and least <= v <= most for v in values):
                raise UserError(f"{name}: {field.name} must be an integer from {least} to {most}, got {value!r:.60}")
        elif field.type is bool and type(value) is not bool:
            raise UserError(f"{name}: {field.name} must be true or false, got {value!r:.60}")
        elif field.name == "activation":
            one_of("activation", value, ACTIVATIONS)
        elif field.type is float and not (type(value) in (int, float) and 0 <= value < 1):
            raise UserError(f"{name}: {field.name} must be a number from 0 to 1, got {value!r:.60}")


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(allowed)}, got {value!r:.60}")
