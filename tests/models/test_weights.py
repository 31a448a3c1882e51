"""Weights from every format that is read, and every way in which they can be missing or faulty."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from qualiclip_jax import models
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import convert, weights

DATA = pathlib.Path(__file__).parents[1] / "golden"
OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 300, "width": 64, "heads": 1, "layers": 2},
    }
}


@pytest.fixture(scope="module")
def state():
    """A ViT under OpenAI's names."""
    with np.load(DATA / "clip_vit_tiny.npz") as golden:
        return {key.removeprefix("state/"): golden[key].copy() for key in golden if key.startswith("state/")}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch, an optional extra, is not installed")


@pytest.fixture
def tensors(torch, state):
    return {key: torch.tensor(value) for key, value in state.items()}


def assert_loaded(clip: models.CLIP, state: dict[str, np.ndarray]) -> None:
    """The CLIP holds exactly these tensors."""
    loaded = convert.to_openai_state_dict(clip)
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(loaded[key], value, err_msg=key)


def refusal(source, **options) -> str:
    """The message with which a source is refused: one line."""
    with pytest.raises(UserError) as error:
        weights.load_clip(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_safetensors_file_without_config(state, tmp_path):
    save_file(state, tmp_path / "clip.safetensors")
    clip = weights.load_clip(tmp_path / "clip.safetensors", position="none", compute_dtype="bfloat16", remat=True)
    assert_loaded(clip, state)
    assert (clip.config.position, clip.config.compute_dtype, clip.config.remat) == ("none", "bfloat16", True)
    assert clip.config.image.activation == "quick_gelu"
    assert (
        weights.load_clip(tmp_path, activation="gelu").config.text.activation == "gelu"
    )  # the only file of the directory
    assert weights.load_clip(tmp_path, text=False).text is None


def test_open_clip_directory_beside_the_files_of_another_library(state, tmp_path):
    save_file(state, tmp_path / "open_clip_model.safetensors")
    config = json.loads(json.dumps(OPEN_CLIP))
    config["model_cfg"]["quick_gelu"] = False
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"not for us")
    clip = weights.load_clip(tmp_path)
    assert_loaded(clip, state)
    assert clip.config.image.activation == "gelu"  # only the config tells


def test_custom_text_and_wrapped_names(state, tmp_path):
    towers = {key if key.startswith(("visual.", "logit")) else f"text.{key}": value for key, value in state.items()}
    save_file({f"module.{key}": value for key, value in towers.items()}, tmp_path / "a.safetensors")
    assert_loaded(weights.load_clip(tmp_path), state)
    quali = {f"clip_model.{key}": value for key, value in state.items()} | {"prompts_features": np.ones((14, 64), "f4")}
    save_file(quali, tmp_path / "b.safetensors")
    assert_loaded(weights.load_clip(tmp_path / "b.safetensors"), state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_directory_in_shards(torch, tmp_path, dtype):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = transformers.CLIPConfig(
        projection_dim=32,
        vision_config={**small, "patch_size": 16, "image_size": 64, "hidden_act": "gelu"},
        text_config={**small, "vocab_size": 60, "eos_token_id": 9, "bos_token_id": 8},
    )
    theirs = transformers.CLIPModel(config).eval().to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    clip = weights.load_clip(tmp_path)
    theirs = theirs.float()

    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    tokens = np.full((2, 77), 11, np.int32)  # larger ids than the end token lie behind it: only the config tells
    tokens[:, 0], tokens[0, 5], tokens[1, 9] = 8, 9, 9
    with torch.no_grad():
        image_features = theirs.get_image_features(pixel_values=torch.tensor(images.transpose(0, 3, 1, 2)))
        text_features = theirs.get_text_features(input_ids=torch.tensor(tokens, dtype=torch.int64))
    for ours, reference in (
        (nnx.jit(lambda clip: clip.encode_image(jnp.asarray(images)))(clip), image_features),
        (nnx.jit(lambda clip: clip.encode_text(jnp.asarray(tokens)))(clip), text_features),
    ):
        reference = getattr(reference, "pooler_output", reference).numpy()
        assert np.abs(np.asarray(ours) - reference).max() <= 5e-6 * np.abs(reference).max()

    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"shards are missing: {shard.name}" in refusal(tmp_path)


def test_pickled_state_dicts(torch, tensors, state, tmp_path):
    torch.save(tensors, tmp_path / "a.pt")
    assert_loaded(weights.load_clip(tmp_path / "a.pt"), state)
    training = {"epoch": 3, "name": "ViT", "state_dict": {f"module.{key}": value for key, value in tensors.items()}}
    torch.save(training, tmp_path / "b.pth")
    assert_loaded(weights.load_clip(tmp_path / "b.pth"), state)


def test_half_precision_torchscript_as_openai_publishes_it(torch, tensors, state, tmp_path):
    root = torch.nn.Module()
    for key, value in tensors.items():
        *parents, last = key.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, torch.nn.Module())
            module = getattr(module, parent)
        module.register_parameter(last, torch.nn.Parameter(value.half()))
    for name, value in (("input_resolution", 64), ("context_length", 77), ("vocab_size", 300)):
        root.register_buffer(name, torch.tensor(value))
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(root).save(str(tmp_path / "clip.pt"))
    assert_loaded(
        weights.load_clip(tmp_path / "clip.pt"),
        {key: value.astype(np.float16).astype(np.float32) for key, value in state.items()},
    )


class Harmful:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_nothing_is_unpickled_but_tensors(torch, tensors, tmp_path):
    torch.save({**tensors, "more": Harmful(tmp_path / "harm")}, tmp_path / "clip.pt")
    assert "holding more than tensors" in refusal(tmp_path / "clip.pt")
    assert not (tmp_path / "harm").exists()


def test_pickles_without_pytorch(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "clip.pt").write_bytes(b"any")
    assert "takes PyTorch (pip install torch)" in refusal(tmp_path / "clip.pt")


def test_damaged_files(torch, tensors, state, tmp_path):
    save_file(state, tmp_path / "whole.safetensors")
    torch.save(tensors, tmp_path / "whole.pt")
    for suffix in (".safetensors", ".pt"):
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        for name, content in (("half", whole[: len(whole) // 2]), ("empty", b""), ("text", b"<html>404</html>")):
            (tmp_path / f"{name}{suffix}").write_bytes(content)
            message = refusal(tmp_path / f"{name}{suffix}")
            assert "truncated, corrupt" in message
            assert str(tmp_path / f"{name}{suffix}") in message
    (tmp_path / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in refusal(tmp_path / "lfs.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    assert "no state dict" in refusal(tmp_path / "list.pt")


def test_every_faulty_tensor_is_named_at_once(state, tmp_path):
    faulty = {key: value for key, value in state.items() if key not in ("visual.proj", "ln_final.bias")}
    faulty["visual.proj"] = state["visual.proj"][:-1].copy()
    faulty["visual.head.weight"] = np.zeros((3, 2), np.float32)
    save_file(faulty, tmp_path / "faulty.safetensors")
    message = refusal(tmp_path / "faulty.safetensors")
    for named in (
        "missing: ln_final.bias",
        "not used: visual.head.weight",
        "visual.proj (127, 64) instead of (128, 64)",
    ):
        assert named in message


def test_no_clip_at_all(state, tmp_path):
    save_file({"classifier.weight": np.zeros((3, 3), np.float32)}, tmp_path / "other.safetensors")
    message = refusal(tmp_path / "other.safetensors")
    assert "no CLIP that is known here" in message
    assert "(classifier.weight ...) are missing: visual.conv1.weight, visual.positional_embedding" in message
    shapeless = {key: value[..., 0].copy() if value.ndim > 1 else value for key, value in state.items()}
    save_file(shapeless, tmp_path / "shapeless.safetensors")
    assert "no architecture fits the shapes visual.conv1.weight (128, 3, 16)" in refusal(
        tmp_path / "shapeless.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_file(state, tmp_path / "model.safetensors")
    assert "'bert', not 'clip'" in refusal(tmp_path)


def test_directories_without_clear_weights(state, tmp_path):
    assert "has none of them" in refusal(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file(state, tmp_path / name)
    assert "has a.safetensors, b.safetensors: name one of them" in refusal(tmp_path)


def test_paths_that_are_not_there(tmp_path):
    for source in (tmp_path / "nothing", "./nothing.pt", "nothing.safetensors", "RN51"):
        message = refusal(source)
        assert f"no weights at {source}: looked at " in message
        assert "RN50x64" in message


def test_repositories_that_cannot_be_had():
    message = refusal("RN50")
    assert "no weights RN50 (timm/resnet50_clip.openai): not in the cache /" in message
    assert "hf download timm/resnet50_clip.openai`" in message
    assert "--config.model.weights=PATH" in message
    assert "hf download nobody/nothing --revision refs/pr/3`" in refusal("nobody/nothing@refs/pr/3")


class Hub:
    """Stands in for the Hugging Face hub: a repository with these files."""

    def __init__(self, monkeypatch, tmp_path, files, online=True):
        import huggingface_hub

        self.downloads, self.path, self.files, self.online = [], tmp_path, files, online
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, repository, revision=None, timeout=None):
        import types

        if not self.online:
            raise ConnectionError("no network\nsecond line")
        return types.SimpleNamespace(siblings=[types.SimpleNamespace(rfilename=name) for name in self.files])

    def snapshot_download(self, repository, revision=None, allow_patterns=None, local_files_only=False):
        self.downloads.append((repository, revision, allow_patterns and sorted(allow_patterns)))
        return str(self.path)


def test_a_repository_is_downloaded_without_what_is_not_needed(state, tmp_path, monkeypatch):
    files = ["README.md", "pytorch_model.bin", "model.safetensors", "config.json", "open_clip_pytorch_model.bin"]
    hub = Hub(monkeypatch, tmp_path, [*files, "open_clip_config.json", "open_clip_model.safetensors", "vocab.json"])
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    assert_loaded(weights.load_clip("ViT-B/16"), state)
    weights.load_clip("hf-hub:owner/name@v2")
    wanted = sorted(["open_clip_config.json", "open_clip_model.safetensors", *weights.TOKENIZER_FILES])
    assert hub.downloads == [("timm/vit_base_patch16_clip_224.openai", None, wanted), ("owner/name", "v2", wanted)]


def test_shards_are_downloaded_together(tmp_path, monkeypatch):
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    hub = Hub(monkeypatch, tmp_path, ["model.safetensors.index.json", "config.json", *shards, "extra.safetensors"])
    weights.locate("owner/name")
    wanted = ["model.safetensors.index.json", "config.json", *shards, *weights.TOKENIZER_FILES]
    assert hub.downloads[0][2] == sorted(wanted)


def test_the_cache_serves_without_network(state, tmp_path, monkeypatch):
    Hub(monkeypatch, tmp_path, [], online=False)
    assert "the Hugging Face hub gave: no network. " in refusal("owner/name")  # only a tokenizer is cached, say
    save_file(state, tmp_path / "open_clip_model.safetensors")
    assert_loaded(weights.load_clip("owner/name"), state)
