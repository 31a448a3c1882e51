"""The published image sets that can be prepared, by name. Importing this imports no tfds."""

from qualiclip_jax.data.builders import authentic, generated, pristine, synthetic
from qualiclip_jax.data.builders.source import Source

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        pristine.KADIS700K,
        authentic.KONIQ10K,
        authentic.CLIVE,
        authentic.FLIVE,
        authentic.SPAQ,
        authentic.UHD_IQA,
        synthetic.KADID10K,
        synthetic.TID2013,
        synthetic.LIVE,
        synthetic.CSIQ,
        synthetic.PIPAL,
        synthetic.CIDIQ50,
        synthetic.CIDIQ100,
        generated.AGIQA1K,
        generated.AGIQA3K,
    )
}
