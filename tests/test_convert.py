"""The convert command, from published formats to a checkpoint and back."""

import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from qualiclip_jax import checkpoint, cli, convert, models, prompts, quality
from tests.small_models import build_clip

DATA = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "clip_resnet_tiny.npz") as arrays:
        return {key: arrays[key].copy() for key in arrays}


@pytest.fixture(scope="module")
def qualiclip(golden, tmp_path_factory):
    """A checkpoint as QualiCLIP's authors release theirs."""
    features = np.random.default_rng(0).standard_normal((14, 64)).astype(np.float32)
    state = {f"clip_model.{key.removeprefix('state/')}": golden[key] for key in golden if key.startswith("state/")}
    state["prompts_features"] = features / np.linalg.norm(features, axis=-1, keepdims=True)
    path = tmp_path_factory.mktemp("source") / "qualiclip.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def clip_with_vocabulary(tmp_path_factory):
    """A tiny CLIP with CLIP's vocabulary, under OpenAI's names."""
    config = models.CLIPConfig(8, models.ViTConfig(1, 64, 1, 16, 32), models.TextConfig(1, 64, 1))
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    save_file(convert.to_openai_state_dict(build_clip(config)), path)
    return path


def run(*arguments) -> int:
    return cli.run(convert.main, [str(argument) for argument in arguments])


def test_a_qualiclip_checkpoint_keeps_its_features_and_scores(qualiclip, golden, tmp_path, capsys):
    assert run(qualiclip, "--out", tmp_path / "model", "--temperature", 2) == 0
    assert "ResNet 1-2-1-1 of width 16, without text encoder" in capsys.readouterr().out
    model = checkpoint.load_model(tmp_path / "model")
    stored = load_file(qualiclip)["prompts_features"].reshape(7, 2, 64)
    np.testing.assert_allclose(model.prompt_features, stored, atol=1e-7)
    assert (model.prompts, model.temperature, model.clip.config.position) == (prompts.PAIRS, 2.0, "none")
    assert model.provenance["weights"] == str(qualiclip)
    assert len(model.provenance["sha256"][qualiclip.name]) == 64

    images = jnp.asarray(golden["images/64x64"].transpose(0, 2, 3, 1))
    features = nnx.jit(lambda clip: clip.encode_image(images))(model.clip)
    theirs = golden["image_features/no_position/64x64"].astype(np.float64)
    theirs /= np.linalg.norm(theirs, axis=-1, keepdims=True)
    logits = 50 * theirs @ stored.reshape(14, 64).T  # as the authors' port computes it: 100 / temperature
    pairs = np.exp(logits.reshape(2, 7, 2))
    wanted = (pairs[..., 0] / pairs.sum(-1)).mean(-1)
    scores = quality.quality_score(features, model.prompt_features, model.temperature)
    np.testing.assert_allclose(scores, wanted, atol=2e-6)


def test_features_in_a_wrapped_checkpoint_are_found(qualiclip, tmp_path):
    save_file({f"module.{key}": value for key, value in load_file(qualiclip).items()}, tmp_path / "a.safetensors")
    assert run(tmp_path / "a.safetensors", "--out", tmp_path / "model") == 0
    stored = load_file(qualiclip)["prompts_features"].reshape(7, 2, 64)
    np.testing.assert_allclose(checkpoint.load_model(tmp_path / "model").prompt_features, stored, atol=1e-7)


def test_prompts_are_encoded_and_the_text_encoder_is_kept_on_demand(clip_with_vocabulary, tmp_path):
    assert run(clip_with_vocabulary, "--out", tmp_path / "lean") == 0
    assert run(clip_with_vocabulary, "--out", tmp_path / "whole", "--text-encoder", "--position", "native") == 0
    lean, whole = (checkpoint.load_model(tmp_path / name) for name in ("lean", "whole"))
    assert lean.clip.text is None
    assert (lean.clip.config.position, whole.clip.config.position) == ("interpolate", "native")
    np.testing.assert_array_equal(lean.prompt_features, prompts.text_features(whole.clip))
    state = load_file(clip_with_vocabulary)
    back = convert.to_openai_state_dict(whole.clip)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[key], state[key]) for key in state)


def test_own_prompts(clip_with_vocabulary, tmp_path, capsys):
    texts = ["Sharp image.", "Blurry image.", "Good photo.", "Bad photo."]
    assert run(clip_with_vocabulary, "--out", tmp_path / "model", "--prompts", *texts) == 0
    assert checkpoint.load_model(tmp_path / "model").prompts == (prompts.PAIRS[1], prompts.PAIRS[0])
    assert run(clip_with_vocabulary, "--out", tmp_path / "odd", "--prompts", *texts[:3]) == 1
    assert "the last, 'Good photo.', has no antonym" in capsys.readouterr().err
    assert run(clip_with_vocabulary, "--out", tmp_path / "own", "--prompts", "Crisp.", "Dull.") == 1
    assert "no tokenizer in" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_what_cannot_be_converted_leaves_nothing_behind(qualiclip, clip_with_vocabulary, tmp_path, capsys):
    state = load_file(qualiclip)
    faulty = {
        "truncated": None,
        "misshapen": state | {"clip_model.visual.conv1.weight": np.zeros((8, 3, 1, 1), np.float32)},
        "features": state | {"prompts_features": state["prompts_features"][:13].copy()},
        "lengths": state | {"prompts_features": 3 * state["prompts_features"]},
    }
    images_only = {key: value for key, value in load_file(clip_with_vocabulary).items() if key.startswith("visual.")}
    faulty["images_only"] = images_only | {"logit_scale": np.ones((), np.float32)}
    messages = {
        "truncated": "truncated, corrupt or no safetensors file",
        "misshapen": "visual.conv1.weight (8, 3, 1, 1) instead of (8, 3, 3, 3)",
        "features": "prompts_features (13, 64) instead of (14, 64)",
        "lengths": "prompts_features are not of unit length",
        "images_only": "has neither a text encoder nor prompt features",
    }
    for name, tensors in faulty.items():
        source = tmp_path / f"{name}.safetensors"
        if tensors is None:
            source.write_bytes(qualiclip.read_bytes()[:-1000])
        else:
            save_file(tensors, source)
        assert run(source, "--out", tmp_path / "out" / name) == 1
        error = capsys.readouterr().err
        assert messages[name] in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_existing_target_is_left_alone(qualiclip, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    assert run(qualiclip, "--out", tmp_path / "there") == 1
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]


@pytest.mark.parametrize("temperature", ["0", "-1", "nan", "inf"])
def test_a_temperature_that_is_none_is_refused(qualiclip, tmp_path, capsys, temperature):
    assert run(qualiclip, "--out", tmp_path / "model", f"--temperature={temperature}") == 1
    assert "--temperature must be positive" in capsys.readouterr().err


def test_help_needs_no_jax():
    code = (
        "import sys; from qualiclip_jax import convert\n"
        "try: convert.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'flax', 'torch', 'transformers', 'numpy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--no-text-encoder" in done.stdout
