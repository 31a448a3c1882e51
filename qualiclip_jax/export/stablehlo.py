"""Models as programs of StableHLO, serialized by `jax.export`."""

import datetime

import jax
import jax.numpy as jnp
from jax import export

from qualiclip_jax import models
from qualiclip_jax.errors import UserError
from qualiclip_jax.inference import pure

PLATFORMS = ("cpu", "cuda", "tpu")
MONTHS = 6  # for which JAX promises to read what it wrote


def build(model: models.Model, pixels: str, platforms: tuple[str, ...] = PLATFORMS) -> bytes:
    """A program that `jax.export.deserialize` reads: images [N, H, W, 3] -> (score [N], attributes [N, P]), float32.

    N, H and W are symbolic (H and W at least 32); with a native positional embedding, H and W are those of the
    training.

    Args:
      model: what to write; its weights are in the program.
      pixels: "uint8" (0 to 255), or "float32" (0 to 1).
      platforms: where it is to run.

    Raises:
      UserError: a platform that JAX does not know.
    """
    if unknown := set(platforms) - {*PLATFORMS, "rocm"}:
        raise UserError(f"no platform {', '.join(sorted(unknown))}: cpu, cuda, rocm and tpu are known")
    judge = pure.judge(model)

    def scores(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, attributes = judge(images)
        return model.score_of(attributes), attributes

    config = model.clip.config
    least = max(32, config.image.stride)
    count, height, width = export.symbolic_shape("n, h, w", constraints=(f"h >= {least}", f"w >= {least}"))
    if config.position == "native":
        height = width = config.image.image_size
    shape = jax.ShapeDtypeStruct((count, height, width, 3), jnp.dtype(pixels))
    return bytes(export.export(jax.jit(scores), platforms=platforms)(shape).serialize())


def expiry(today: datetime.date) -> datetime.date:
    """Until when newer versions of JAX are sure to read a program that is written today."""
    months = today.month - 1 + MONTHS
    return datetime.date(today.year + months // 12, months % 12 + 1, min(today.day, 28))
