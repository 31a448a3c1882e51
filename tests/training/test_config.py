"""Configs: every file in configs/ is valid, and every mistake is one line that names the field."""

import json
import sys
from pathlib import Path

import pytest

from qualiclip_jax import train
from qualiclip_jax.errors import UserError
from qualiclip_jax.training import checks, evals
from qualiclip_jax.training import config as config_lib

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
TINY = str(Path(__file__).with_name("tiny.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_files_are_valid(path):
    config, workdir, overwrite = train.parse(["--config", str(path), "--config.seed=7"])
    checks.check(config)
    assert (config.seed, workdir, overwrite) == (7, f"runs/{path.stem}", False)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.sedd=3", r"--config.sedd: .*tiny.py has no such field; did you mean 'seed'\?"),
        ("--config.data.sourc=x", r"--config.data.sourc: .* did you mean 'source'\?"),
        ("--config.model.image.wdth=3", r"--config.model.image.wdth: .* did you mean 'width'\?"),
        ("--config.ratings.rank=4", r"--config.ratings.rank: .* did you mean 'model.adapter_rank'\?"),
        ("--config.ratings.method=adapter", r"--config.ratings.method: .* did you mean 'model.adapter_rank'\?"),
        ("--config.lr=3", r"--config.lr: .*; did you mean 'learning_rate'\?"),
        ("--config.weight_decay=3", r"--config.weight_decay: .*; did you mean 'optimizer.weight_decay'\?"),
        ("--lr=3", r"--lr: no such flag; did you mean 'learning_rate'\?"),
        ("--workdr=x", r"--workdr: no such flag; did you mean 'workdir'\?"),
        ("--config.seed=abc", "--config.seed=abc: must be an integer, like the default 0$"),
        ("--config.learning_rate=fast", "--config.learning_rate=fast: must be a float, like the default 1e-05$"),
        ("--config.data.flip=maybe", "--config.data.flip=maybe: must be True or False, like the default True$"),
        ("--config=no_such.py", "no_such.py: no such file"),
        ("stray", "'stray' is not a flag"),
    ],
)
def test_mistakes_on_the_command_line(argument, message):
    with pytest.raises(UserError, match=message) as error:
        train.parse(["--config", TINY, argument])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def get_config(:", "line 1: SyntaxError"),
        ("def get_config():\n  return 3", "must return a ConfigDict, not int"),
        ("import math\ndef get_config():\n  return math.nothing", "line 3: AttributeError"),
        (
            "from qualiclip_jax.training.config import default_config\ndef get_config():\n  c = default_config()\n"
            "  c.stepz = 3\n  return c",
            'line 4: AttributeError: .*Did you mean "steps"',
        ),
        (
            "from qualiclip_jax.training.config import default_config\ndef get_config():\n  c = default_config()\n"
            "  c.ratings.method = 'adapter'\n  return c",
            "line 4: AttributeError: there is no field 'method'; did you mean 'model.adapter_rank'",
        ),
        (
            "from qualiclip_jax.training.config import default_config\ndef get_config():\n  c = default_config()\n"
            "  c.steps = 'many'\n  return c",
            "line 4: TypeError: .*steps",
        ),
        ("def config():\n  return 3", r"needs a function get_config\(\)"),
        ("def get_config(size):\n  return 3", r"needs a function get_config\(\)"),
    ],
)
def test_mistakes_in_the_file(tmp_path, monkeypatch, code, message):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # what an earlier file left
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(UserError, match=message) as error:
        train.parse(["--config", str(path)])
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)


def test_differences_name_nested_fields():
    old = {"seed": 0, "data": {"source": "a", "flip": True}, "gone": 1}
    new = {"seed": 0, "data": {"source": "b", "flip": True}}
    assert config_lib.differences(old, new) == ["data.source: 'a' -> 'b'", "gone: 1 -> '(absent)'"]


@pytest.mark.parametrize("method", ["prompts", "adapter", ""])
def test_configs_of_earlier_versions_say_the_same(method):
    """Those from before adapters had a field of their own; "" learns from degradations."""
    made = {"prompts": config_lib.ratings_config, "adapter": config_lib.adapter_config}
    config = made[method]("koniq10k") if method else config_lib.default_config()
    new = json.loads(config_lib.to_json(config))
    old = json.loads(config_lib.to_json(config))
    del old["model"]["adapter_rank"], old["loss"]["weight_triplets"]
    old["ratings"] |= {"method": method or "prompts", "rank": 4}
    if method:
        learned = {"prompts": "context", "adapter": "(down|up)/.*"}[method]
        old["optimizer"]["parameters"] = [[learned, "cosine", 1.0], [".*", "frozen", 1.0]]
    assert config_lib.differences(config_lib.with_defaults(old), new) == []


def test_crops_larger_than_the_held_out_photos_name_the_field():
    config = train.parse(["--config", TINY, "--config.eval.photos=sample:test", "--config.eval.crop_size=301"])[0]
    with pytest.raises(UserError, match=r"config\.eval\.crop_size is 301, larger than .*chelsea, shortest side 300 px"):
        evals.Evaluator(config, recipe=None, model=None)
