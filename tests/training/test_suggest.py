"""Names that are no fields: what other projects write, and slips of the hand."""

import pytest

from qualiclip_jax.training import config, suggest

FIELDS = list(config.fields(config.default_config()))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lr", "learning_rate"),
        ("LR", "learning_rate"),
        ("optimizer.lr", "learning_rate"),
        ("bs", "batch_size"),
        ("batchsize", "batch_size"),
        ("batch", "batch_size"),
        ("wd", "optimizer.weight_decay"),
        ("weight_decay", "optimizer.weight_decay"),
        ("num_steps", "steps"),
        ("max_iterations", "steps"),
        ("num_epochs", "epochs"),
        ("warmup", "optimizer.warmup_steps"),
        ("grad_clip", "optimizer.clip_norm"),
        ("dataset", "data.source"),
        ("data.crop", "data.crop_size"),
        ("dtype", "model.compute_dtype"),
        ("data.num_workers", "data.threads"),
        ("sedd", "seed"),
        ("zzz", ""),
    ],
)
def test_the_field_that_is_meant(name, meant):
    assert suggest.field(name, dict(FIELDS)) == meant
