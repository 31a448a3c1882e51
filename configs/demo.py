"""The demo: a small CLIP from scratch on the photographs that scikit-image installs, in minutes on two cores.

    python -m qualiclip_jax.train --config configs/demo.py

No weights and no data are fetched. Fixed random unit vectors take the place of the prompts' features.
"""

from qualiclip_jax.training.config import default_config


def get_config():
    """A ResNet of 0.5 M parameters, BatchNorm left at the identity, random prompt features, crops of 96 pixels,
    one to three degradations an image, parameters averaged."""
    c = default_config()
    c.steps = 900
    c.batch_size = 8
    c.log_every = 20
    c.learning_rate = 2e-3
    c.temperature = 10.0  # features from scratch are further apart than CLIP's: this keeps scores off 0 and 1
    c.prompts = ("Good photo.", "Bad photo.")
    c.data.source = "sample:train"
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
    c.optimizer.warmup_steps = 50
    c.optimizer.clip_norm = 10.0
    c.optimizer.ema_decay = 0.99
    c.checkpoint.every = 100
    c.eval.every = 300
    return c
