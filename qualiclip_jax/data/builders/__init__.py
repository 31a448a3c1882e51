"""The published image sets that can be prepared, by name. Importing this imports no tfds."""

from qualiclip_jax.data.builders import artificial, authentic, generated, unrated
from qualiclip_jax.data.builders.image_set import ImageSet

IMAGE_SETS: dict[str, ImageSet] = {
    image_set.name: image_set
    for image_set in (
        unrated.KADIS700K,
        authentic.KONIQ10K,
        authentic.CLIVE,
        authentic.FLIVE,
        authentic.SPAQ,
        authentic.UHD_IQA,
        artificial.KADID10K,
        artificial.TID2013,
        artificial.LIVE,
        artificial.CSIQ,
        artificial.PIPAL,
        artificial.CIDIQ50,
        artificial.CIDIQ100,
        generated.AGIQA1K,
        generated.AGIQA3K,
    )
}
