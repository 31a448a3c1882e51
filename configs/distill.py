"""Distillation: the demo's small encoder learns what the packaged model says of photos and their degraded versions.

    python -m qualiclip_jax.train --config configs/distill.py --workdir runs/distill --config.data.source=folder:YOURS

No score of a person is read, and no label: any photos will do, of any quality. The teacher is any model that
`qualiclip models` lists, a checkpoint, or a repository: `--config.distillation.teacher=qualiclip`. It must know the
prompts of the run, or have a text encoder and a tokenizer. What came of it: docs/training.md.
"""

from qualiclip_jax.training.config import default_config


def get_config():
    """A ResNet of 0.5 M parameters from scratch, crops of 96 pixels; the margin losses have no weight."""
    c = default_config()
    c.steps = 600
    c.batch_size = 8
    c.log_every = 20
    c.learning_rate = 2e-3
    c.temperature = 10.0
    c.prompts = ("Good photo.", "Bad photo.")
    c.distillation.teacher = "tiny"
    c.loss.weight_consistency = 0.0
    c.loss.weight_positive = 0.0
    c.loss.weight_negative = 0.0
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
    c.degradations.camera = 1.0
    c.degradations.continuous = True
    c.optimizer.warmup_steps = 50
    c.optimizer.clip_norm = 10.0
    c.optimizer.ema_decay = 0.99
    c.checkpoint.every = 100
    c.eval.every = 300
    return c
