"""A run small enough for tests: an encoder of a few thousand parameters, crops of 32 pixels."""

from qualiclip_jax.training.config import default_config


def get_config():
    """Four steps of four images."""
    c = default_config()
    c.steps = 4
    c.batch_size = 4
    c.log_every = 1
    c.tensorboard = False
    c.learning_rate = 1e-3
    c.prompts = ("Good photo.", "Bad photo.")
    c.data.crop_size = 32
    c.data.threads = 1
    c.model.weights = "random"
    c.model.embed_dim = 16
    c.model.image.layers = (1, 1, 1, 1)
    c.model.image.width = 4
    c.model.image.heads = 2
    c.model.position = "none"
    c.optimizer.clip_norm = 1.0
    c.degradations.types = ("motion_blur", "white_noise")  # all 24 take long to compile
    c.checkpoint.every = 2
    c.eval.every = 0
    c.eval.photos = ""
    return c
