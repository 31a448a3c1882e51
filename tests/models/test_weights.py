"""Weights from every format that is read, and every way in which they can be missing or faulty."""

import json
import subprocess
import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx, serialization
from safetensors.numpy import save_file

from qualiclip_jax import models
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import convert, weights

OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 300, "width": 64, "heads": 1, "layers": 2},
    }
}


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI's archives stay what they are
        torch.jit.script(root).save(str(tmp_path / "clip.pt"))
    assert_loaded(
        weights.load_clip(tmp_path / "clip.pt"),
        {key: value.astype(np.float16).astype(np.float32) for key, value in state.items()},
    )


def test_files_of_pytorch_need_no_pytorch(torch, tensors, state, tmp_path):
    torch.save(tensors, tmp_path / "a.pt")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from qualiclip_jax.models import weights\n"
        f"print(len(weights.read({str(tmp_path / 'a.pt')!r}).tensors))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(state)}\n"


def test_pickled_shards(torch, tensors, state, tmp_path):
    names = sorted(tensors)
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for shard, part in shards.items():
        torch.save({name: tensors[name] for name in part}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_loaded(weights.load_clip(tmp_path), state)


def test_flax_model(state, tmp_path):
    """What transformers 4 wrote with Flax: kernels are transposed, convolutions are [h, w, in, out]."""
    tower = {"embeddings": {"position_embedding": {"embedding": 0}}, "encoder": {"layers": {}}}
    tree = {name: json.loads(json.dumps(tower)) for name in ("vision_model", "text_model")}
    vision, text = tree["vision_model"], tree["text_model"]
    vision["embeddings"] |= {
        "class_embedding": state["visual.class_embedding"],
        "patch_embedding": {"kernel": state["visual.conv1.weight"].transpose(2, 3, 1, 0)},
        "position_embedding": {"embedding": state["visual.positional_embedding"]},
    }
    text["embeddings"] |= {
        "token_embedding": {"embedding": state["token_embedding.weight"]},
        "position_embedding": {"embedding": state["positional_embedding"]},
    }

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def dense(name):
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    for prefix, part in (("visual.", vision), ("", text)):
        for i in range(2):
            block = f"{prefix}transformer.resblocks.{i}"
            weight, bias = (np.split(state[f"{block}.attn.in_proj_{kind}"], 3) for kind in ("weight", "bias"))
            attention = {f"{n}_proj": {"kernel": w.T, "bias": b} for n, w, b in zip("qkv", weight, bias)}
            part["encoder"]["layers"][str(i)] = {
                "layer_norm1": norm(f"{block}.ln_1"),
                "layer_norm2": norm(f"{block}.ln_2"),
                "self_attn": attention | {"out_proj": dense(f"{block}.attn.out_proj")},
                "mlp": {"fc1": dense(f"{block}.mlp.c_fc"), "fc2": dense(f"{block}.mlp.c_proj")},
            }
    vision |= {"pre_layrnorm": norm("visual.ln_pre"), "post_layernorm": norm("visual.ln_post")}
    text["final_layer_norm"] = norm("ln_final")
    tree |= {"visual_projection": {"kernel": state["visual.proj"]}, "logit_scale": state["logit_scale"]}
    tree["text_projection"] = {"kernel": state["text_projection"]}
    content = serialization.msgpack_serialize(tree)
    (tmp_path / "flax_model.msgpack").write_bytes(content)
    assert_loaded(weights.load_clip(tmp_path), state)
    (tmp_path / "flax_model.msgpack").write_bytes(content[: len(content) // 2])
    assert "truncated, corrupt or not written by Flax" in refusal(tmp_path)


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
    assert "model type 'bert', none of clip" in refusal(tmp_path)


def test_directories_without_clear_weights(state, tmp_path):
    assert f"no checkpoint in {tmp_path}, and no weights: looked for" in refusal(tmp_path)
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
    assert "hf download timm/resnet50_clip.openai open_clip_model.safetensors open_clip_config.json`" in message
    assert "--config.model.weights=PATH" in message
    assert "*.json' --revision refs/pr/3`" in refusal("nobody/nothing@refs/pr/3")


REPOSITORY = "timm/vit_base_patch16_clip_224.openai"


@pytest.fixture(scope="module")
def content(state):
    return safetensors.numpy.save(state)


def test_a_repository_is_downloaded_without_what_is_not_needed(hub, state, content):
    names = ["README.md", "pytorch_model.bin", "model.safetensors", "config.json", "open_clip_pytorch_model.bin"]
    for repository in (REPOSITORY, "owner/name"):
        hub.files |= {f"{repository}/{name}": b"not this one" for name in names}
        hub.files[f"{repository}/open_clip_config.json"] = json.dumps(OPEN_CLIP).encode()
        hub.files[f"{repository}/open_clip_model.safetensors"] = content
        hub.files[f"{repository}/vocab.json"] = b"{}"
    assert_loaded(weights.load_clip("ViT-B/16"), state)
    weights.load_clip("hf-hub:owner/name@v2")
    fetched = sorted(
        path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "resolve" in path
    )
    assert fetched == sorted(2 * ["open_clip_config.json", "open_clip_model.safetensors", "vocab.json"])
    hub.files.clear()  # the network is gone
    assert_loaded(weights.load_clip("ViT-B/16"), state)
    assert "no weights owner/name: not in the cache" in refusal("owner/name")  # another revision is


def test_shards_are_downloaded_together(hub):
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name in ("model.safetensors.index.json", "config.json", *shards, "extra.safetensors"):
        hub.files[f"owner/name/{name}"] = b"{}"
    there = {path.name for path in weights.locate("owner/name").iterdir()}
    assert there == {"model.safetensors.index.json", "config.json", *shards}
