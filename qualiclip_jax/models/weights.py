"""Published weights: find them (hub, directory, file), read them, and build the CLIP.

Nothing here unpickles arbitrary objects, and nothing falls back to random weights: what cannot be loaded is a
`UserError`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from qualiclip_jax import download
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import backbones, published
from qualiclip_jax.models.clip import CLIP
from qualiclip_jax.models.config import CLIPConfig
from qualiclip_jax.models.convert import from_state_dict
from qualiclip_jax.models.torch_file import read_torch

# Where a directory keeps its weights and its config, best first: safetensors before pickles, and open_clip's names
# first, since in the repositories that have both, the other files are often of another library.
LAYOUTS = (
    ("open_clip_model.safetensors", "open_clip_config.json"),
    ("open_clip_pytorch_model.safetensors", "open_clip_config.json"),
    ("model.safetensors", "config.json"),
    ("model.safetensors.index.json", "config.json"),
    ("open_clip_pytorch_model.bin", "open_clip_config.json"),
    ("pytorch_model.bin", "config.json"),
    ("pytorch_model.bin.index.json", "config.json"),
    ("flax_model.msgpack", "config.json"),
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".msgpack")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors as they were read.

    Attributes:
      name: what the user called them.
      tensors: name -> NumPy array, under the names of whoever wrote them.
      config: the architecture, if a config file beside the weights tells it.
      files: what was read; a tokenizer may lie beside it.
    """

    name: str
    tensors: dict[str, np.ndarray]
    config: CLIPConfig | None
    files: tuple[pathlib.Path, ...]

    @property
    def directory(self) -> pathlib.Path:
        """Where they are."""
        return self.files[0].parent


def load_clip(
    source: str | pathlib.Path,
    *,
    text: bool = True,
    position: str | None = None,
    activation: str | None = None,
    compute_dtype: str = "float32",
    remat: bool = False,
) -> CLIP:
    """A CLIP with published weights.

    Args:
      source: a name of `backbones.TABLE` ("RN50"), a Hugging Face repository id ("openai/clip-vit-base-patch16", with
        "@revision" if need be), a local directory laid out like one, or a file with one of `SUFFIXES`.
      text: keep the text encoder.
      position, compute_dtype, remat: as in `CLIPConfig`.
      activation: as in `from_state_dict`; only used where no config file says it.

    Raises:
      UserError: the weights are not there (it says where they were looked for and how to get them), not readable, or
        of an architecture that is no CLIP.
    """
    return build(
        read(source), text=text, position=position, activation=activation, compute_dtype=compute_dtype, remat=remat
    )


def build(weights: Weights, **options: Any) -> CLIP:
    """The CLIP of weights that were read; `options` as in `load_clip`."""
    return from_state_dict(weights.tensors, config=weights.config, name=weights.name, **options)


def read(source: str | pathlib.Path) -> Weights:
    """Reads weights without building anything; arguments and errors as in `load_clip`."""
    name = str(source)
    path = locate(source)
    if path.is_dir():
        file, config = _choose(path, name)
    else:
        file, config = path, None
    files = _shards(file) if file.name.endswith(".index.json") else (file,)
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors |= _read_file(file)
    return Weights(name, tensors, config, files)


def locate(source: str | pathlib.Path, tokenizer_only: bool = False) -> pathlib.Path:
    """The local directory or file of a source, downloaded if it is a repository that is not in the cache yet.

    Args:
      source: as in `load_clip`.
      tokenizer_only: fetch only what a tokenizer needs.

    Raises:
      UserError: it is neither here nor to be had.
    """
    path = pathlib.Path(source).expanduser()
    if path.exists():
        return path
    name = str(source).removeprefix("hf-hub:")
    name = backbones.TABLE[name].repository if name in backbones.TABLE else name
    repository, _, revision = name.partition("@")
    looks_local = path.is_absolute() or path.suffix in SUFFIXES or str(source).startswith((".", "~"))
    if looks_local or repository.count("/") != 1:
        raise UserError(
            f"no weights at {source}: looked at {path.absolute()}; a source is a directory, a file "
            f"({', '.join(SUFFIXES)}), a Hugging Face repository (owner/name) or one of {', '.join(backbones.TABLE)}"
        )

    def tokenizer(files: Sequence[str]) -> list[str]:
        return [file for file in files if file in TOKENIZER_FILES]

    choose, hint = with_tokenizer, hub_hint(name)
    if tokenizer_only:
        choose, hint = tokenizer, "--include 'tokenizer*' vocab.json merges.txt"
    return download.from_hub(repository, revision or None, choose, str(source), hint)


def hub_hint(name: str) -> str:
    """What `hf download` fetches of a repository: the names of the files where they are known, else patterns."""
    known = any(name == backbone.repository for backbone in backbones.TABLE.values())
    return " ".join(LAYOUTS[0]) if known else "--include '*.safetensors' '*.json'"


def with_tokenizer(files: Sequence[str]) -> list[str]:
    """Which files of a repository are needed: weights, their config and tokenizer; none if it is not clear which."""
    found = _weights(files)
    return [*found, *(file for file in files if file in TOKENIZER_FILES)] if found else []


def _weights(files: Sequence[str]) -> list[str]:
    """One set of weights and its config; none if it is not clear which."""
    for weights, config in LAYOUTS:
        if weights in files:
            stem, _, suffix = weights.removesuffix(".index.json").rpartition(".")
            shards = [file for file in files if file.startswith(f"{stem}-") and file.endswith(suffix)]
            return [weights, *([config] if config in files else []), *(shards if weights.endswith(".json") else [])]
    single = [file for file in files if file.endswith(SUFFIXES) and "/" not in file]
    configs = [file for file in files if file in ("open_clip_config.json", "config.json")]
    return [*single, *configs] if len(single) == 1 else []


def _choose(directory: pathlib.Path, name: str) -> tuple[pathlib.Path, CLIPConfig | None]:
    """The weights file of a directory and the architecture that the config beside it tells."""
    for weights, config in LAYOUTS:
        if (directory / weights).exists():
            return directory / weights, _read_config(directory / config)
    files = sorted(file for file in directory.iterdir() if file.suffix in SUFFIXES)
    if len(files) > 1:
        raise UserError(f"{directory} has {', '.join(file.name for file in files)}: name one of them")
    if not files:
        raise UserError(
            f"no checkpoint in {directory}, and no weights: looked for {', '.join(file for file, _ in LAYOUTS)} or a "
            f"single {', '.join(SUFFIXES)} file"
        )
    configs = [_read_config(directory / config) for config in ("open_clip_config.json", "config.json")]
    return files[0], next((config for config in configs if config), None)


def _read_config(path: pathlib.Path) -> CLIPConfig | None:
    if not path.exists():
        return None
    try:
        fields = json.loads(path.read_text())
        return published.from_open_clip(fields) if "model_cfg" in fields else published.from_hugging_face(fields)
    except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{path}: not the config of a CLIP that can be built here: {error}") from None


def _shards(index: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """The files that an index of shards names."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index}: not an index of shards: {error!r}") from None
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise UserError(f"{index}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}")
    return tuple(index.parent / name for name in names)


def _read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of one file."""
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise UserError(
                f"{path}: a Git LFS pointer, not the weights themselves: run `git lfs pull` there, or download it"
            )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".msgpack":
        return _read_msgpack(path)
    return {name: array.copy() for name, array in read_torch(path).items()}  # the file may change, or go, later


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path}: truncated, corrupt or no safetensors file ({error}): download it again") from None


def _read_msgpack(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors that Flax wrote, under the names and in the layouts that transformers gives them in PyTorch."""
    from flax import serialization, traverse_util

    try:
        tree = traverse_util.flatten_dict(serialization.msgpack_restore(path.read_bytes()))
    except Exception as error:  # msgpack, NumPy and Flax raise many kinds
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise UserError(f"{path}: truncated, corrupt or not written by Flax ({reason}): download it again") from None
    tensors = {}
    for (*parents, last), value in tree.items():
        array = np.asarray(value)
        if last == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        last = "weight" if last in ("kernel", "scale", "embedding") else last
        tensors[".".join(map(str, (*parents, last))).removeprefix("params.")] = array
    return tensors
