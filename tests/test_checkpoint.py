"""Checkpoints of half the size; absurd descriptions are refused before the arrays are read."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from qualiclip_jax import checkpoint
from qualiclip_jax.errors import UserError
from tests.small_models import RESNET, make_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    make_model(RESNET).save(path)
    return path


def image(**fields):
    return lambda meta: meta["clip"]["image"].update(fields)


def clip(**fields):
    return lambda meta: meta["clip"].update(fields)


def top(**fields):
    return lambda meta: meta.update(fields)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (image(layers=[1, 10**9, 1, 1]), "layers must be an integer from 1 to 256"),
        (image(layers=[1, 90, 10, 1]), "102 residual blocks, more than 100"),
        (
            image(layers=[1, 3, 1, 1], width=8192),
            "missing: image/stages/1/2/.* shape: .*image/pool/q/kernel",
        ),
        (image(width=10**7), "width must be an integer from 1 to 65536"),
        (image(width=16.0), "got 16.0"),
        (image(heads=-4), "heads must be"),
        (image(kind="cnn"), "image.kind must be one of resnet, vit"),
        (image(wdth=3), "ResNetConfig does not know wdth"),
        (image(batch_norm=False), "not used: .*norm"),
        (image(batch_norm="yes"), "batch_norm must be true or false"),
        (clip(image=None), "image and text are groups of fields"),
        (clip(text={"layers": 2, "width": 10**9, "heads": 1}), "TextConfig: width must be"),
        (clip(embed_dim=64), "of another shape: image/pool/out/bias"),
        (clip(embed_dim=float("nan")), "embed_dim must be an integer"),
        (clip(position="learned"), "position must be one of"),
        (top(temperature=0), "the temperature must be positive"),
        (top(temperature=float("nan")), "the temperature must be positive"),
        (top(temperature="warm"), "damaged"),
        (top(prompts=[["a", "b"]]), r"prompt_features \(3, 2, 32\) instead of \(1, 2, 32\)"),
        (top(prompts=[["a"]] * 3), "damaged"),
        (top(prompts=3), "damaged"),
        (top(provenance=3), "damaged"),
        (top(clip=[]), "damaged"),
        (top(format=2), "has the format 2"),
    ],
)
def test_absurd_descriptions(saved, tmp_path, monkeypatch, change, said):
    path = shutil.copytree(saved, tmp_path / "model")
    meta = json.loads((path / "meta" / "metadata").read_text())
    change(meta)
    (path / "meta" / "metadata").write_text(json.dumps(meta))
    if "temperature" not in said:
        monkeypatch.setattr(checkpoint, "_restore_numpy", lambda *_: pytest.fail("the arrays were read"))
    with pytest.raises(UserError, match=said) as error:
        checkpoint.load_model(path)
    assert str(error.value).startswith(f"{path} ")
    assert "\n" not in str(error.value)


def test_half_the_size(tmp_path):
    """Matrices and kernels come back as the nearest float16, all else bit for bit."""
    model = make_model(RESNET, provenance={"seed": 0})
    whole, half = tmp_path / "whole", tmp_path / "half"
    model.save(whole)
    model.save(half, store="float16")
    stored = checkpoint.load_model(half)
    assert stored.provenance == {"seed": 0, "stored": "float16"}
    np.testing.assert_array_equal(stored.prompt_features, model.prompt_features)
    differ = 0
    for ours, theirs in zip(jax.tree.leaves(nnx.state(stored.clip)), jax.tree.leaves(nnx.state(model.clip))):
        theirs = np.asarray(theirs)
        expected = theirs.astype(np.float16).astype(np.float32) if theirs.ndim > 1 else theirs
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, expected)
        differ += not np.array_equal(expected, theirs)
    assert differ > 10
    assert stored.fingerprint != model.fingerprint
    again = tmp_path / "again"
    checkpoint.save_model(again, stored, "float16")  # rounding twice changes nothing more
    assert checkpoint.load_model(again).fingerprint == stored.fingerprint
    size = {path: sum(file.stat().st_size for file in (path / "model").rglob("*")) for path in (whole, half)}
    assert size[half] < 0.7 * size[whole]


def test_what_cannot_be_stored(tmp_path):
    model = make_model(RESNET)
    with pytest.raises(UserError, match="store must be one of float32, float16, got 'int8'"):
        model.save(tmp_path / "model", store="int8")
    model.clip.image.stem1.conv.kernel[...] *= 1e6
    with pytest.raises(UserError, match="image/stem1/conv/kernel has values beyond float16"):
        model.save(tmp_path / "model", store="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["[" * 10_000 + "]" * 10_000, " " * 20_000_000, "[]", "", '{"clip": 3}'])
def test_descriptions_that_are_none(saved, tmp_path, content):
    path = shutil.copytree(saved, tmp_path / "model")
    (path / "meta" / "metadata").write_text(content)
    with pytest.raises(UserError, match=r"description \(meta/\)|describes itself|describe a QualiCLIP|has the format"):
        checkpoint.load_model(path)
