"""Published weights: find them (hub, directory, file), read them, and build the CLIP.

Nothing here unpickles arbitrary objects, and nothing falls back to random weights: what cannot be loaded is a
`UserError`.
"""

import dataclasses
import json
import pathlib
import warnings
import zipfile
from typing import Any

import numpy as np

from qualiclip_jax.errors import UserError
from qualiclip_jax.models import backbones, published
from qualiclip_jax.models.clip import CLIP
from qualiclip_jax.models.config import CLIPConfig
from qualiclip_jax.models.convert import from_state_dict

# Where a directory keeps its weights and its config, best first: safetensors before pickles, and open_clip's names
# first, since in the repositories that have both, the other files are often of another library.
LAYOUTS = (
    ("open_clip_model.safetensors", "open_clip_config.json"),
    ("model.safetensors", "config.json"),
    ("model.safetensors.index.json", "config.json"),
    ("open_clip_pytorch_model.bin", "open_clip_config.json"),
    ("pytorch_model.bin", "config.json"),
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
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
        "@revision" if need be), a local directory laid out like one, or a file: .safetensors, .pt, .pth, .bin.
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
    tensors = {}
    for file in files:
        tensors |= _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
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
    return _from_hub(repository, revision or None, str(source), tokenizer_only)


def _from_hub(repository: str, revision: str | None, asked: str, tokenizer_only: bool) -> pathlib.Path:
    import huggingface_hub

    try:
        found = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=20)
        wanted = [*TOKENIZER_FILES, *([] if tokenizer_only else _wanted([file.rfilename for file in found.siblings]))]
        return pathlib.Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except Exception as error:  # no network, no such repository, no permission, no space ...
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    try:
        cached = pathlib.Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
        if tokenizer_only or _wanted([file.name for file in cached.iterdir()]):
            return cached
    except Exception:  # not in the cache either
        pass
    at = f" --revision {revision}" if revision else ""
    named = f"{asked} ({repository})" if asked != repository else repository
    raise UserError(
        f"no weights {named}: not in the cache {huggingface_hub.constants.HF_HUB_CACHE}, no directory of that name, "
        f"and the Hugging Face hub gave: {reason}. Where there is a network, run `hf download {repository}{at}` and "
        "copy the cache; or name a local directory or file: --config.model.weights=PATH (training), SOURCE (convert)"
    )


def _wanted(files: list[str]) -> list[str]:
    """Which files of a repository to download: one set of weights and its config; none if it is not clear which."""
    for weights, config in LAYOUTS:
        if weights in files:
            shards = [file for file in files if file.startswith("model-") and file.endswith(".safetensors")]
            return [weights, config, *(shards if weights.endswith(".index.json") else [])]
    weights = [file for file in files if file.endswith(SUFFIXES) and "/" not in file]
    return [*weights, "open_clip_config.json", "config.json"] if len(weights) == 1 else []


def _choose(directory: pathlib.Path, name: str) -> tuple[pathlib.Path, CLIPConfig | None]:
    """The weights file of a directory and the architecture that the config beside it tells."""
    for weights, config in LAYOUTS:
        if (directory / weights).exists():
            return directory / weights, _read_config(directory / config)
    files = sorted(file for file in directory.iterdir() if file.suffix in SUFFIXES)
    if len(files) != 1:
        found = f"has {', '.join(file.name for file in files)}: name one of them" if files else "has none of them"
        raise UserError(
            f"no weights {name}: the directory {directory} {found}; looked for "
            f"{', '.join(file for file, _ in LAYOUTS)} or a single {', '.join(SUFFIXES)} file"
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
        raise UserError(f"{index}: not an index of safetensors shards: {error!r}") from None
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise UserError(f"{index}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}")
    return tuple(index.parent / name for name in names)


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    _refuse_pointer(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path}: truncated, corrupt or no safetensors file ({error}): download it again") from None


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    _refuse_pointer(path)
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: reading {path.suffix} files takes PyTorch (pip install torch), which is not installed; the same "
            "weights as .safetensors need no PyTorch, see docs/backbones.md"
        ) from None
    try:
        if _is_torchscript(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI's archives stay what they are
                loaded = torch.jit.load(str(path), map_location="cpu").state_dict()
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's readers raise many kinds
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].split(". ")[0][:200]
        raise UserError(
            f"{path}: truncated, corrupt, or holding more than tensors, which is never unpickled here ({reason})"
        ) from None
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    tensors = (
        {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
        if isinstance(loaded, dict)
        else {}
    )
    if not tensors:
        raise UserError(f"{path}: there is no state dict in it")
    return {
        key: (value.detach().float() if value.is_floating_point() else value.detach()).numpy()
        for key, value in tensors.items()
    }


def _is_torchscript(path: pathlib.Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _refuse_pointer(path: pathlib.Path) -> None:
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise UserError(
                f"{path}: a Git LFS pointer, not the weights themselves: run `git lfs pull` there, or download it"
            )
