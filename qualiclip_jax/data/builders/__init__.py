"""The published image sets that can be prepared, by name. Importing this imports no tfds."""

from qualiclip_jax.data.builders import generated
from qualiclip_jax.data.builders.source import Source

SOURCES: dict[str, Source] = {source.name: source for source in (generated.AGIQA3K,)}
