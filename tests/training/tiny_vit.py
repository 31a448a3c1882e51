"""A run for the tests of several devices and processes: an encoder that compiles fast, twenty steps of four images."""

from qualiclip_jax.training.config import default_config


def get_config():
    """One transformer block, two levels; a step that does not blow up rounding differences."""
    c = default_config()
    c.steps = 20
    c.batch_size = 4
    c.log_every = 1
    c.tensorboard = False
    c.learning_rate = 1e-3
    c.prompts = ("Good photo.", "Bad photo.")
    c.data.crop_size = 32
    c.data.threads = 1
    c.model.weights = "random"
    c.model.embed_dim = 16
    c.model.image.patch_size = 16
    c.model.image.layers = 1
    c.model.image.width = 16
    c.model.image.heads = 2
    c.model.image.image_size = 32
    c.degradations.levels = 3
    c.degradations.types = ("motion_blur", "white_noise")  # all 24 take long to compile
    c.checkpoint.every = 5
    c.eval.every = 0
    c.eval.photos = ""
    c.loss.weight_across = 0.3  # the one loss that looks across devices
    c.loss.weight_triplets = 1.0
    return c
