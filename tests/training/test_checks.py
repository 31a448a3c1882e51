"""Values out of range, and fields that are missing or made up: one line that names the field."""

import math

import pytest

from qualiclip_jax import train
from qualiclip_jax.errors import UserError
from qualiclip_jax.training.checks import check
from qualiclip_jax.training.config import default_config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("del c.log_every", "config.log_every is missing"),
        ("c.data = ConfigDict({'flip': True})", "config.data.cache_mb is missing"),
        ("c.stepz = 3", r"config.stepz: there is no such field; did you mean 'steps'\?"),
        ("c.steps = config_dict.placeholder(int)", "config.steps is None"),
        ("c.data.flip = 1", "config.data.flip is 1, but must be True or False, like the default True"),
    ],
)
def test_unlocked_configs_are_checked_field_by_field(tmp_path, change, message):
    path = tmp_path / "own.py"
    path.write_text(
        "from ml_collections import ConfigDict, config_dict\n"
        "from qualiclip_jax.training.config import default_config\n"
        f"def get_config():\n  c = ConfigDict(default_config().to_dict(), type_safe=False)\n  {change}\n  return c"
    )
    with pytest.raises(UserError, match=message):
        check(train.parse(["--config", str(path)])[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**63),
        ("batch_size", 0),
        ("log_every", 0),
        ("parallel", "zero"),
        ("shards", 2),
        ("epochs", math.nan),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("temperature", -1.0),
        ("data.crop_size", 31),
        ("data.min_overlap", 1.5),
        ("data.scale_range", (0.5,)),
        ("data.small_images", "stretch"),
        ("data.threads", -1),
        ("data.detail", -1.0),
        ("eval.max_photos", 0),
        ("loss.margin_rank", -0.1),
        ("loss.weight_positive", math.nan),
        ("loss.margin_triplets", -0.1),
        ("model.compute_dtype", "float16"),
        ("model.position", "learned"),
        ("model.batch_norm", "half"),
        ("model.adapter_rank", -1),
        ("degradations.types", ("jpg",)),
        ("degradations.levels", 6),
        ("degradations.composed", 8),
        ("degradations.camera", 1.5),
        ("degradations.continuous", True),
        ("degradations.local", 0.5),
        ("degradations.alone", 0.5),
        ("loss.factors", ("blur",)),
        ("loss.factors", ("all", "jpeg")),
        ("optimizer.name", "adam"),
        ("optimizer.ema_decay", 1.0),
        ("optimizer.accumulate", 3),
        ("optimizer.b1", 1.0),
        ("optimizer.warmup_steps", -5),
        ("optimizer.parameters", ((".*", "cosine", "1"),)),
        ("optimizer.parameters", ((".*", "cosine", -1.0),)),
        ("optimizer.parameters", ((".*", "linear", 1.0),)),
        ("optimizer.parameters", (("(", "cosine", 1.0),)),
        ("optimizer.parameters", ((1, "cosine", 1.0),)),
        ("optimizer.parameters", (3,)),
        ("optimizer.b1", 2.0),
        ("optimizer.warmup_steps", -1),
        ("optimizer.clip_norm", float("nan")),
        ("loss.margin_rank", float("nan")),
        ("data.scale_range", (0.5, "1")),
        ("eval.rated", (3,)),
        ("learning_rate", float("inf")),
        ("epochs", float("inf")),
        ("prompts", ("Good photo.",)),
        ("prompts", ("Good photo.", "")),
    ],
)
def test_values_out_of_range_name_the_field(field, value):
    config = default_config()
    section, _, name = field.rpartition(".")
    (config[section] if section else config)[name] = value
    with pytest.raises(UserError, match=field.split(".")[-1]) as error:
        check(config)
    assert "\n" not in str(error.value)
