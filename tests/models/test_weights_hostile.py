"""Model folders that are wrong on purpose: each is refused in one line, before anything is read or allocated."""

import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from qualiclip_jax.errors import UserError
from qualiclip_jax.models import weights

INDEX = "model.safetensors.index.json"
HUGGING_FACE = {"model_type": "clip", "projection_dim": 64, "vision_config": {}, "text_config": {}}
OPEN_CLIP = {"embed_dim": 64, "vision_cfg": {"layers": 2, "width": 64, "patch_size": 16}, "text_cfg": {"layers": 2}}
NESTED = "[" * 10_000 + "]" * 10_000


def refusal(source) -> str:
    with pytest.raises(UserError) as error:
        weights.read(source)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


@pytest.fixture
def secret(tmp_path):
    """A file outside the model folder, that would be read without complaint."""
    (tmp_path / "private").mkdir()
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "private" / "secret.safetensors")
    return tmp_path / "private" / "secret.safetensors"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


BAD_NAMES = ["../private/secret.safetensors", "PRIVATE", "sub/a.safetensors", "..", ".", "", "a\0b", "C:x", "..\\x"]


@pytest.mark.parametrize("name", [*BAD_NAMES, 7, None, True, "x" * 300])
def test_shards_are_plain_names(folder, secret, name):
    name = str(secret) if name == "PRIVATE" else name
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert "is not the name of a file in this folder" in refusal(folder)


@pytest.mark.parametrize(
    "content", [{"weight_map": ["a"]}, {"weight_map": {"a": ["b"]}}, {}, [], 3, None, NESTED, "{", " " * 20_000_000]
)
def test_an_index_that_is_none(folder, content):  # fmt: skip
    (folder / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))
    assert "not an index of shards" in refusal(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {}}))
    assert "it names none" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "open_clip_model.safetensors", "other.safetensors", "shard.safetensors"]
)
def test_links_that_lead_out_of_the_folder(folder, secret, name):  # fmt: skip
    (folder / name).symlink_to(secret)
    if name == "shard.safetensors":
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert f"{folder / name}: a link that leads out of its folder" in refusal(folder)


def test_a_link_that_the_user_names(folder, secret):
    (folder / "a.safetensors").symlink_to(secret)
    assert weights.read(folder / "a.safetensors").tensors.keys() == {"a"}


def test_links_within_a_folder_and_in_the_cache_of_the_hub(folder, secret):
    os.replace(secret, folder / "real")
    (folder / "model.safetensors").symlink_to("real")
    assert weights.read(folder).tensors.keys() == {"a"}
    snapshot = folder / "snapshots" / "0123"
    (folder / "blobs").mkdir()
    snapshot.mkdir(parents=True)
    os.replace(folder / "real", folder / "blobs" / "0")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0")
    assert weights.read(snapshot).tensors.keys() == {"a"}
    (snapshot / "config.json").symlink_to("config.json")
    assert weights.read(snapshot).config is None


def test_a_config_behind_a_link(folder, secret):
    save_file({"a": np.ones(3, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").symlink_to(secret)
    assert "a link that leads out" in refusal(folder)


def test_a_tensor_in_two_shards(folder):
    for name in ("1.safetensors", "2.safetensors"):
        save_file({"a": np.ones(3, np.float32), name: np.ones(2, np.float32)}, folder / name)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    assert "tensors are there twice, also in 2.safetensors: a" in refusal(folder)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("vision_config", "num_hidden_layers", 10**9), ("vision_config", "hidden_size", 10**7),
        ("vision_config", "hidden_size", 10**400), ("vision_config", "num_attention_heads", 0),
        ("vision_config", "image_size", 10**9), ("vision_config", "patch_size", 10**9),
        ("vision_config", "intermediate_size", 1e300), ("vision_config", "num_channels", 10**9),
        ("vision_config", "layer_norm_eps", float("inf")), ("text_config", "hidden_size", -1),
        ("text_config", "hidden_size", 768.0), ("text_config", "hidden_size", "768"),
        ("text_config", "hidden_size", float("nan")), ("text_config", "hidden_size", [1] * 1000),
        ("text_config", "vocab_size", 10**12), ("text_config", "layer_norm_eps", "x"),
        ("text_config", "hidden_act", None), ("text_config_dict", "vocab_size", True),
    ],
)  # fmt: skip
def test_absurd_configs_of_hugging_face(folder, part, name, value):
    (folder / "model.safetensors").write_bytes(b"is not looked at")
    (folder / "config.json").write_text(json.dumps(HUGGING_FACE | {part: {name: value}}))
    assert "not the config of a CLIP that can be built here" in refusal(folder)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("vision_cfg", "layers", 10**9), ("vision_cfg", "layers", [10**9] * 4), ("vision_cfg", "layers", [64] * 4),
        ("vision_cfg", "layers", [1] * 10**5), ("vision_cfg", "width", 10**7), ("vision_cfg", "width", "64"),
        ("vision_cfg", "mlp_ratio", 10**12), ("vision_cfg", "mlp_ratio", float("inf")), ("vision_cfg", "head_width", 0),
        ("vision_cfg", "image_size", []), ("vision_cfg", "image_size", [1, 2, 3]), ("text_cfg", "vocab_size", 10**12),
        ("text_cfg", "heads", 10**9), ("text_cfg", "width", [64]), ("text_cfg", "mlp_ratio", float("nan")),
        ("text_cfg", "layers", [1, 1, 1, 1]), ("text_cfg", "context_length", -77),
    ],
)  # fmt: skip
def test_absurd_configs_of_open_clip(folder, part, name, value):
    (folder / "open_clip_model.safetensors").write_bytes(b"is not looked at")
    model = OPEN_CLIP | {part: OPEN_CLIP[part] | {name: value}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    assert "not the config of a CLIP that can be built here" in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [
        NESTED,
        '{"model_type":' * 10_000,
        "[]",
        "null",
        "\ud800".encode("utf-8", "surrogatepass"),
        "{}",
        '{"model_cfg": 3}',
        " " * 20_000_000,
    ],
)
def test_configs_that_are_none(folder, content):  # fmt: skip
    (folder / "model.safetensors").write_bytes(b"is not looked at")
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "not the config of a CLIP that can be built here" in refusal(folder)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "bytes_", "said"),
    [
        (100 * 10**9, 0, "header too large"),
        ({"a": F32 | {"shape": [25 * 10**9], "data_offsets": [0, 10**11]}}, 8, "not fully covered"),
        ({"a": F32, "b": F32}, 8, "invalid offset"),
        ({"a": F32, "b": F32 | {"data_offsets": [4, 12]}}, 12, "invalid offset"),
        ({"a": F32 | {"shape": [2**63, 2]}}, 8, "overflow"),
        ({"a": F32 | {"dtype": "F8_E4M3", "data_offsets": [0, 2]}}, 2, "a (F8_E4M3): take the same weights in"),
        ({"a": F32 | {"dtype": "U3"}}, 8, "unknown variant"),
        ({"a": {"dtype": "F32", "shape": [25 * 10**9], "data_offsets": [0, 10**11]}}, 10**11, "numbers, so no CLIP"),
    ],
)  # fmt: skip
def test_safetensors_that_lie(folder, header, bytes_, said):
    with open(folder / "a.safetensors", "wb") as file:
        text = b"{}" if isinstance(header, int) else json.dumps(header).encode()
        file.write(struct.pack("<Q", header if isinstance(header, int) else len(text)) + text)
        file.truncate(8 + len(text) + bytes_)  # takes no space on the disk
    assert said in refusal(folder)


@pytest.mark.parametrize("dtype", ["float16", "float64", ml_dtypes.bfloat16])
def test_other_floating_point_types(folder, state, dtype):
    save_file({name: value.astype(dtype) for name, value in state.items()}, folder / "a.safetensors")
    clip = weights.load_clip(folder)
    expected = state["visual.proj"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(clip.image.projection.kernel[...], expected)


def test_values_that_are_no_weights(folder, state):
    for value, said in (
        (state["visual.proj"].astype(np.int8), r"no floating-point numbers \(quantised\?\): visual.proj \(int8\)"),
        (state["visual.proj"].astype(np.complex64), r"visual.proj \(complex64\)"),
        (state["visual.proj"].astype(np.float64) * 1e300, r"not finite \(damaged\?\): visual.proj"),
    ):
        save_file(state | {"visual.proj": value}, folder / "a.safetensors")
        with pytest.raises(UserError, match=said):
            weights.load_clip(folder)
