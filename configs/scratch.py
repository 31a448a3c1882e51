"""From scratch, for comparison: how the packaged model of version 0.1 was made.

    python -m qualiclip_jax.train --config configs/scratch.py

in a folder that has KODAK, with the 24 photos of the Kodak PhotoCD set, and AGIQA, with the images of AGIQA-3K; or
with --config.data.source=folder:YOURS. No weights are fetched, no human score is read. It takes about 40 minutes.

A ResNet of 0.5 M parameters learns to rank crops with one to three of 13 degradations that photos really have, within
an image and across images. On 300 photos of CLIVE it reached an SRCC of 0.46; `configs/tiny.py` reaches more, sooner.
"""

from qualiclip_jax.training.config import default_config

GENERATORS = ("DALLE2_normal", "midjourney_normal", "sd1.5_highcorr", "sd1.5_lowcorr")
TYPES = (
    "gaussian_blur",
    "lens_blur",
    "motion_blur",
    "hsv_saturation",
    "jpeg2000",
    "jpeg",
    "white_noise",
    "ycbcr_noise",
    "multiplicative_noise",
    "brighten",
    "darken",
    "pixelate",
    "nonlinear_contrast",
)


def get_config():
    """A ResNet of 0.5 M parameters, crops of 96 pixels, one to three degradations an image."""
    c = default_config()
    c.steps = 5000
    c.batch_size = 8
    c.log_every = 20
    c.learning_rate = 2e-3
    c.temperature = 10.0  # features from scratch are further apart than CLIP's: this keeps scores off 0 and 1
    c.prompts = ("Good photo.", "Bad photo.")
    generated = ",".join(f"folder:AGIQA/{name}_*[02468].jpg" for name in GENERATORS)
    c.data.source = f"8*folder:KODAK,{generated},8*sample:train"
    c.data.crop_size = 96
    c.data.scale_range = (0.3, 1.0)
    c.data.cache_mb = 1500.0
    c.data.threads = 1
    c.model.weights = "random"
    c.model.embed_dim = 64
    c.model.image.layers = (1, 1, 1, 1)
    c.model.image.width = 10
    c.model.image.heads = 5
    c.model.image.image_size = 96
    c.model.position = "none"
    c.degradations.types = TYPES
    c.degradations.composed = 3
    c.degradations.fewest = 1
    c.loss.weight_across = 0.5
    c.optimizer.warmup_steps = 100
    c.optimizer.clip_norm = 10.0
    c.optimizer.ema_decay = 0.998
    c.checkpoint.every = 500
    c.eval.every = 500
    return c
