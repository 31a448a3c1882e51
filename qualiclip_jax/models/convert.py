"""State dicts of other implementations to our CLIP and back.

OpenAI's names are the common tongue: `names` is a table from our parameters to them, and the names of the other
formats are first translated to OpenAI's. What OpenAI's models do not have is named in their manner.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from qualiclip_jax.errors import UserError
from qualiclip_jax.models.clip import CLIP
from qualiclip_jax.models.clip_config import CLIPConfig, ResNetConfig, ViTConfig
from qualiclip_jax.models.infer import PROBE, infer_config
from qualiclip_jax.models.tree import Skeleton, check_shapes, to_pure

# How an array is laid out: kind -> (theirs to ours, ours to theirs). Our layouts: linear [in, out], convolution
# [h, w, in, out].
Layout = Callable[[np.ndarray], np.ndarray]
KINDS: dict[str, tuple[Layout, Layout]] = {
    "same": (lambda a: a, lambda a: a),
    "linear": (lambda a: a.T, lambda a: a.T),
    "conv": (lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)),
}


def names(config: CLIPConfig) -> dict[str, tuple[str, str]]:
    """Our parameter paths, joined by "/", to (OpenAI's name, kind); `{}` stands for the index of a stacked block."""
    table = {"logit_scale": ("logit_scale", "same")}
    if config.logit_bias:
        table["logit_bias"] = ("logit_bias", "same")

    def norm(ours: str, theirs: str) -> None:
        table[f"{ours}/scale"] = (f"{theirs}.weight", "same")
        table[f"{ours}/bias"] = (f"{theirs}.bias", "same")

    def linear(ours: str, theirs: str, weight: str = ".weight", bias: str = ".bias") -> None:
        table[f"{ours}/kernel"] = (theirs + weight, "linear")
        table[f"{ours}/bias"] = (theirs + bias, "same")

    def conv_norm(ours: str, conv: str, batch_norm: str) -> None:
        table[f"{ours}/conv/kernel"] = (f"{conv}.weight", "conv")
        norm(f"{ours}/norm", batch_norm)
        table[f"{ours}/norm/mean"] = (f"{batch_norm}.running_mean", "same")
        table[f"{ours}/norm/var"] = (f"{batch_norm}.running_var", "same")

    def transformer(ours: str, theirs: str) -> None:
        ours, theirs = f"{ours}/transformer/blocks", f"{theirs}transformer.resblocks.{{}}"
        norm(f"{ours}/ln_1", f"{theirs}.ln_1")
        norm(f"{ours}/ln_2", f"{theirs}.ln_2")
        linear(f"{ours}/qkv", f"{theirs}.attn.in_proj", "_weight", "_bias")
        linear(f"{ours}/out", f"{theirs}.attn.out_proj")
        linear(f"{ours}/fc", f"{theirs}.mlp.c_fc")
        linear(f"{ours}/proj", f"{theirs}.mlp.c_proj")

    if isinstance(config.image, ResNetConfig):
        for index in (1, 2, 3):
            conv_norm(f"image/stem{index}", f"visual.conv{index}", f"visual.bn{index}")
        for stage, blocks in enumerate(config.image.layers):
            for block in range(blocks):
                ours, theirs = f"image/stages/{stage}/{block}", f"visual.layer{stage + 1}.{block}"
                for index in (1, 2, 3):
                    conv_norm(f"{ours}/conv{index}", f"{theirs}.conv{index}", f"{theirs}.bn{index}")
                if block == 0:
                    conv_norm(f"{ours}/shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
        table["image/pool/position"] = ("visual.attnpool.positional_embedding", "same")
        for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "c_proj")):
            linear(f"image/pool/{ours}", f"visual.attnpool.{theirs}")
    elif isinstance(config.image, ViTConfig):
        table["image/positions"] = ("visual.positional_embedding", "same")
        table["image/patches/kernel"] = ("visual.conv1.weight", "conv")
        if config.image.pre_norm:
            norm("image/ln_pre", "visual.ln_pre")
        transformer("image", "visual.")
        norm("image/ln_post", "visual.ln_post")
        if config.image.class_tokens:
            table["image/class_token"] = ("visual.class_embedding", "same")
            table["image/projection/kernel"] = ("visual.proj", "same")
        else:
            table["image/patches/bias"] = ("visual.conv1.bias", "same")
            table["image/head/probe"] = (PROBE, "same")
            linear("image/head/qkv", "visual.attn_pool.attn.in_proj", "_weight", "_bias")
            linear("image/head/out", "visual.attn_pool.attn.out_proj")
            norm("image/head/ln", "visual.attn_pool.ln")
            linear("image/head/fc", "visual.attn_pool.mlp.c_fc")
            linear("image/head/proj", "visual.attn_pool.mlp.c_proj")
    else:
        raise ValueError(f"an image encoder of kind {config.image.kind!r} has no OpenAI names")
    if config.text is not None:
        table["text/tokens"] = ("token_embedding.weight", "same")
        table["text/positions"] = ("positional_embedding", "same")
        transformer("text", "")
        norm("text/ln_final", "ln_final")
        table["text/projection/kernel"] = ("text_projection", "same")
        if config.text.projection_bias:
            table["text/projection/bias"] = ("text_projection.bias", "same")
    return table


def from_state_dict(
    state_dict: Mapping[str, Any],
    *,
    config: CLIPConfig | None = None,
    text: bool = True,
    position: str | None = None,
    activation: str | None = None,
    compute_dtype: str = "float32",
    remat: bool = False,
    name: str = "state dict",
) -> CLIP:
    """A CLIP from the tensors of another implementation.

    Args:
      state_dict: name -> array (anything NumPy can read), named as by OpenAI, open_clip, Hugging Face transformers or
        QualiCLIP (`clip_model.` before OpenAI's names).
      config: the architecture; by default it is read off names and shapes.
      text: keep the text encoder.
      position, compute_dtype, remat: as in `CLIPConfig`.
      activation: "quick_gelu" or "gelu", which shapes do not tell. By default that of the published model with these
        shapes; pass "gelu" for models trained with open_clip without "quickgelu" in their name.
      name: what to call it in errors.

    Raises:
      UserError: it is no CLIP, or tensors are missing, not used, misshapen, no floating-point numbers or not finite:
        all of them are named, as OpenAI does.
    """
    tensors = to_openai_names(state_dict)
    if config is None:
        config = infer_config(tensors, name, activation)
    has_text = config.text is not None
    config = dataclasses.replace(
        config,
        text=config.text if text else None,
        position=position or config.position,
        compute_dtype=compute_dtype,
        remat=remat,
    )
    if has_text and not text:
        tensors = {key: value for key, value in tensors.items() if key.startswith(("visual.", "logit_"))}

    skeleton, table = Skeleton(config), names(config)
    wanted = {key: shape for path, ours in skeleton.shapes.items() for key, shape in _theirs(table[path], ours)}
    check_shapes(name, wanted, {key: np.shape(value) for key, value in tensors.items()})
    dtypes = {key: np.asarray(value).dtype for key, value in sorted(tensors.items())}
    others = [f"{key} ({dtype})" for key, dtype in dtypes.items() if not jnp.issubdtype(dtype, jnp.floating)]
    if others:
        raise UserError(f"{name}: tensors that are no floating-point numbers (quantised?): {', '.join(others)}")
    damaged = sorted(key for key, value in tensors.items() if not np.isfinite(_array(value)).all())
    if damaged:
        raise UserError(f"{name}: tensors with values that are not finite (damaged?): {', '.join(damaged)}")

    arrays = {}
    for path, shape in skeleton.shapes.items():
        keys, to_ours = [key for key, _ in _theirs(table[path], shape)], KINDS[table[path][1]][0]
        blocks = [to_ours(_array(tensors[key])) for key in keys]
        arrays[path] = np.stack(blocks) if "{}" in table[path][0] else blocks[0]
    return skeleton.filled(arrays)


def to_openai_state_dict(clip: CLIP) -> dict[str, np.ndarray]:
    """The parameters under OpenAI's names, as float32 NumPy arrays; the inverse of `from_state_dict`, bit for bit.

    Raises:
      ValueError: BatchNorm was folded, so the original tensors are gone; or OpenAI has no such image encoder.
    """
    image = clip.config.image
    if isinstance(image, ResNetConfig) and not image.batch_norm:
        raise ValueError("a CLIP with folded BatchNorm has no OpenAI names")
    arrays = nnx.traversals.flatten_mapping(to_pure(clip)[1], sep="/")
    result: dict[str, np.ndarray] = {}
    for path, (theirs, kind) in names(clip.config).items():
        array, to_theirs = np.asarray(arrays[path]), KINDS[kind][1]
        if "{}" in theirs:
            result |= {theirs.format(i): to_theirs(block).copy(order="C") for i, block in enumerate(array)}
        else:
            result[theirs] = to_theirs(array).copy(order="C")
    return result


def _theirs(entry: tuple[str, str], shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors, (name, shape), that make one parameter of ours: one, or one for each block where it is stacked."""
    name, kind = entry
    stacked = "{}" in name
    theirs = KINDS[kind][1](np.broadcast_to(np.float32(0), shape[1:] if stacked else shape)).shape
    return [(name.format(i), theirs) for i in range(shape[0])] if stacked else [(name, theirs)]


def _array(value: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        return np.asarray(value).astype(np.float32, copy=False)


# Hugging Face transformers' names, without the block's number, to OpenAI's.
HUGGING_FACE = {
    "logit_scale": "logit_scale",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "logit_bias": "logit_bias",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "visual_projection.weight": "visual.proj",
    "vision_model.head.probe": PROBE,
    "vision_model.head.attention": "visual.attn_pool.attn",
    "vision_model.head.layernorm": "visual.attn_pool.ln",
    "vision_model.head.mlp.fc1": "visual.attn_pool.mlp.c_fc",
    "vision_model.head.mlp.fc2": "visual.attn_pool.mlp.c_proj",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
    "text_model.head.weight": "text_projection",
    "text_model.head": "text_projection",
}
HUGGING_FACE_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "self_attn.q_proj.weight": "attn.in_proj_weight.0",
    "self_attn.k_proj.weight": "attn.in_proj_weight.1",
    "self_attn.v_proj.weight": "attn.in_proj_weight.2",
    "self_attn.q_proj.bias": "attn.in_proj_bias.0",
    "self_attn.k_proj.bias": "attn.in_proj_bias.1",
    "self_attn.v_proj.bias": "attn.in_proj_bias.2",
}
# Buffers that are no parameters: shapes and masks that other implementations save along.
IGNORED = re.compile(
    r"(.*\.)?(num_batches_tracked|position_ids|attn_mask|input_resolution|context_length|vocab_size|prompts_features)"
)
LAYER_SCALE = re.compile(r"resblocks\.\d+\.ls_[12]\.gamma$")
# Wrappers that put something before every name; they may be nested.
PREFIXES = ("module.", "clip_model.", "model.", "clip.", "_orig_mod.")


def to_openai_names(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Renames Hugging Face, open_clip and QualiCLIP tensors as OpenAI does; unknown names are left as they are.

    Buffers without parameters are dropped. The three projections of Hugging Face's attention become one tensor. What
    open_clip's LayerScale multiplies the output of a layer with is multiplied into its weights.
    """
    tensors = {key: value for key, value in state_dict.items() if not IGNORED.fullmatch(key)}
    while wrapper := next((p for p in PREFIXES if tensors and all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    if any(key.startswith("vision_model.") for key in tensors):
        return _from_hugging_face(tensors)
    # open_clip's CustomTextCLIP keeps the text encoder in a module of its own.
    tensors = {key.removeprefix("text.") if key.startswith("text.") else key: value for key, value in tensors.items()}
    if "text_projection.weight" in tensors:  # where it has a bias, it is a linear layer
        tensors["text_projection"] = _array(tensors.pop("text_projection.weight")).T
    for scalar in ("logit_scale", "logit_bias"):
        if np.shape(tensors.get(scalar, 0)) == (1,):
            tensors[scalar] = np.reshape(tensors[scalar], ())
    for key in [key for key in tensors if LAYER_SCALE.search(key)]:
        _fold_layer_scale(tensors, key)
    return tensors


def _fold_layer_scale(tensors: dict[str, Any], key: str) -> None:
    """Multiplies the layer before a LayerScale by it, unless their shapes differ: that is an error found later."""
    block, _, which = key.removesuffix(".gamma").rpartition(".")
    layer = f"{block}.{'attn.out_proj' if which == 'ls_1' else 'mlp.c_proj'}"
    weight, bias = (tensors.get(f"{layer}.{part}", ()) for part in ("weight", "bias"))
    if np.ndim(weight) == 2 and np.shape(tensors[key]) == np.shape(bias) == np.shape(weight)[:1]:
        gamma = _array(tensors.pop(key))
        tensors |= {f"{layer}.weight": gamma[:, None] * _array(weight), f"{layer}.bias": gamma * _array(bias)}


def _from_hugging_face(tensors: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {_rename(key): value for key, value in tensors.items()}
    for projection in ("visual.proj", "text_projection"):
        if projection in renamed:
            renamed[projection] = _array(renamed[projection]).T
    for vector in ("logit_scale", "logit_bias", PROBE):  # of shape [1] and [1, 1, W] in SigLIP
        if vector in renamed:
            renamed[vector] = np.reshape(renamed[vector], () if vector != PROBE else -1)
    if (
        np.ndim(patches := renamed.get("visual.conv1.weight", ())) == 2
    ):  # NaFlex: [W, rows * columns * channels] of a patch
        width, numbers = np.shape(patches)
        if numbers == 3 * (side := math.isqrt(numbers // 3)) ** 2:
            renamed["visual.conv1.weight"] = np.reshape(patches, (width, side, side, 3)).transpose(0, 3, 1, 2)
    for key in [key for key in renamed if re.search(r"attn\.in_proj_(weight|bias)\.0$", key)]:
        stem = key.removesuffix(".0")
        parts = [f"{stem}.{i}" for i in range(3)]
        if all(part in renamed for part in parts):
            renamed[stem] = np.concatenate([_array(renamed.pop(part)) for part in parts])
    return renamed


def _rename(key: str) -> str:
    block = re.match(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)", key)
    if block:
        tower = "visual." if block[1] == "vision" else ""
        for theirs, openai in HUGGING_FACE_BLOCK.items():
            if block[3] == theirs or block[3].startswith(theirs + "."):
                return f"{tower}transformer.resblocks.{block[2]}.{openai}{block[3].removeprefix(theirs)}"
    for theirs, openai in HUGGING_FACE.items():
        if key == theirs or key.startswith(theirs + "."):
            return openai + key.removeprefix(theirs)
    return key
