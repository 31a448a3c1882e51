"""Compression artefacts: JPEG and JPEG 2000, each in its own file."""

from qualiclip_jax.degradations.jpeg import jpeg
from qualiclip_jax.degradations.jpeg2000 import jpeg2000

__all__ = ["jpeg", "jpeg2000"]
