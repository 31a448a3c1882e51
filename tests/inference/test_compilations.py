"""How often XLA compiles: once a shape in a run over 200 sizes, and not at all in the next run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qualiclip_jax import compilation
from qualiclip_jax.inference import machine
from qualiclip_jax.models import backbones

RUN = """
import collections, json, sys
import jax, numpy as np
events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name]))
from qualiclip_jax import QualiCLIP
from qualiclip_jax.inference import buckets

model = QualiCLIP.load(sys.argv[1])
model._encoder.costs = buckets.Costs(compile=6e4, call=1e3, batch=1e5)
rng = np.random.default_rng(0)
images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in rng.integers(32, 96, (200, 2))]
model.attributes(images[0])  # what is compiled whatever the sizes
events.clear()
scores = model.score(images)
print(json.dumps({
    "shapes": len(model._encoder.compiled) - 1,
    "sizes": len({image.shape for image in images}),
    "compiled": events["/jax/compilation_cache/cache_misses"],
    "from cache": events["/jax/compilation_cache/cache_hits"],
    "mean": float(scores.mean()),
}))
"""


def without_cache() -> dict[str, str]:
    """The environment without the cache that the tests share."""
    return {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"JAX_PLATFORMS": "cpu"}


def test_one_compilation_a_shape_and_none_in_the_next_run(vit, tmp_path):
    vit.save(tmp_path / "model")
    environment = without_cache() | {"XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run() -> dict:
        command = [sys.executable, "-c", RUN, str(tmp_path / "model")]
        return json.loads(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)

    first = run()
    assert first["sizes"] > 190
    assert 2 <= first["shapes"] <= 8
    assert first["compiled"] == first["shapes"]
    second = run()
    assert second["compiled"] == 0
    assert second["from cache"] == first["shapes"]
    assert second["mean"] == first["mean"]
    assert any((tmp_path / "cache" / "qualiclip_jax" / "compiled").iterdir())


def test_tells_when_it_compiles(resnet, monkeypatch):
    told = []

    def compiled(state, images, sizes):
        told.append(resnet.compiling)
        return np.zeros((len(images), 3), np.float32)

    monkeypatch.setitem(vars(resnet._encoder), "_compiled_attributes", compiled)
    monkeypatch.setattr(resnet._encoder, "compiled", set())
    images = [np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40, 3), np.float32)]
    for image in images:
        resnet.score(image)
    assert told == [True, False, True]
    assert not resnet.compiling


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_compiler_options_are_exact_here(kind, photos, request, monkeypatch):
    model = request.getfixturevalue(kind)
    usual = model.attributes(photos[:3])
    plain = type(model)(model.clip, model.prompts, model.prompt_features, model.temperature)
    monkeypatch.setattr(machine, "compiler_options", lambda config: {})
    np.testing.assert_allclose(plain.attributes(photos[:3]), usual, atol=2e-6)


def test_an_unknown_compiler_option_is_left_out(monkeypatch):
    monkeypatch.setattr(machine, "_FAST_CPU", {"xla_no_such_option": True})
    machine._products.cache_clear()
    try:
        assert machine.compiler_options(backbones.get("RN50")) == {}
    finally:
        machine._products.cache_clear()


def test_an_existing_cache_is_honoured(monkeypatch, tmp_path):
    """In a process of its own: the cache is set once."""
    code = (
        "import jax, warnings; from qualiclip_jax import compilation; compilation.keep_compilations();"
        "print(jax.config.jax_compilation_cache_dir);"
        "warnings.warn(\"Error reading persistent compilation cache entry for 'jit_f': it is cut off\")"
    )

    def result(**variables: str) -> tuple[str, bool]:
        environment = without_cache() | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | variables
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
        return done.stdout.strip(), "Error reading" in done.stderr

    assert result() == (str(tmp_path / "cache" / "qualiclip_jax" / "compiled"), False)  # what is damaged is no concern
    assert result(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")) == (str(tmp_path / "own"), True)
    assert result(JAX_ENABLE_COMPILATION_CACHE="false")[0] == "None"


def test_multiplications_are_those_of_the_papers():
    """RN50 of CLIP: 6.1e9 multiplications at 224 px; ViT-B/32: 4.4e9 (open_clip's profile of the image towers)."""
    for name, multiplications in (("RN50", 6.1e9), ("ViT-B/32", 4.4e9)):
        assert 0.6 < backbones.get(name).image.multiplications * 224**2 / multiplications < 1.4


def test_cache_directory_is_the_users(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert compilation.cache_directory() == Path.home() / ".cache" / "qualiclip_jax"
