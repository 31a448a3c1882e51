"""The small model that comes with the package, from scratch, on the Kodak photos and those scikit-image installs.

    python -m qualiclip_jax.train --config configs/tiny.py --config.data.source=folder:KODAK,sample:train

KODAK is a folder with the 24 photos of the Kodak PhotoCD set (kodim01.png ...). No weights are fetched. One to three
degradations of distinct groups are composed, and photos are shrunk, because authentic photos carry several faults at
once and at many scales. The learning rate is constant and the parameters are averaged, so that a longer run only adds
steps. What came of it: docs/MODEL_CARD.md.
"""

from qualiclip_jax.training.config import default_config


def get_config():
    """A ResNet of 0.5 M parameters, crops of 96 pixels, one to three degradations an image."""
    c = default_config()
    c.steps = 5000
    c.batch_size = 8
    c.log_every = 20
    c.learning_rate = 2e-3
    c.temperature = 10.0  # features from scratch are further apart than CLIP's: this keeps scores off 0 and 1
    c.prompts = ("Good photo.", "Bad photo.")
    c.data.crop_size = 96
    c.data.scale_range = (0.45, 1.0)
    c.data.threads = 1
    c.model.weights = "random"
    c.model.embed_dim = 64
    c.model.image.layers = (1, 1, 1, 1)
    c.model.image.width = 10
    c.model.image.heads = 5
    c.model.image.image_size = 96
    c.model.position = "none"
    c.degradations.composed = 3
    c.degradations.fewest = 1
    c.optimizer.warmup_steps = 100
    c.optimizer.clip_norm = 10.0
    c.optimizer.parameters = ((".*", "constant", 1.0),)
    c.optimizer.ema_decay = 0.998
    c.checkpoint.every = 100
    c.eval.every = 500
    return c
