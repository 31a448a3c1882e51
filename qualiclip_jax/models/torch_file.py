"""Tensors out of PyTorch's files, without PyTorch: what `torch.save` and `torch.jit.save` write.

Both write a zip archive with a pickle, `data.pkl`, that describes the tensors, and one entry of raw bytes for each
storage. Python's `pickle` runs what it reads; the machine of `torch_pickle` does not. Files of PyTorch before 1.6 are
laid out differently: `torch_legacy`.

Nothing is allocated on the word of a file: storages stay in the file (they are mapped into memory), and what a tensor
wants of its storage is checked against the storage's size.
"""

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qualiclip_jax.errors import UserError
from qualiclip_jax.models import torch_legacy
from qualiclip_jax.models.torch_pickle import Damaged, Machine, Module

WRAPPERS = ("state_dict", "model_state_dict", "model", "params")  # what training scripts put around a state dict
MAX_DEPTH, MAX_VALUES = 100, 100_000  # of the nested containers: a file can say one thing many times


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file of PyTorch.

    Args:
      path: what `torch.save` wrote of a state dict, bare or inside a training checkpoint, or a
        TorchScript archive, as OpenAI publishes CLIP.

    Returns:
      name -> read-only array of the type that was stored (bfloat16 and 8-bit floats as `ml_dtypes` has them), for the
      first of `WRAPPERS` that is there, else for everything. Names of nested containers are joined by dots. Arrays are
      views of the file where that can be: tensors that share a storage share memory.

    Raises:
      UserError: the file cannot be read, holds anything but tensors and plain containers (it is named), has no
        tensors, is damaged, or of a format that PyTorch no longer writes (it says how to convert it).
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if start[257:262] == b"ustar":
            raise UserError(
                f"{path}: in a format that PyTorch wrote before 0.1.10, which is not read here; where PyTorch is, run "
                "python -c \"import sys, torch; torch.save(torch.load(sys.argv[1], 'cpu', weights_only=True), "
                f'sys.argv[2])" {path.name} new_{path.name}'
            )
        is_legacy = start.startswith(torch_legacy.MAGIC)
        archive = torch_legacy.LegacyFile(path) if is_legacy else _Archive(path)
        root = Machine(archive).run()
        if isinstance(archive, torch_legacy.LegacyFile):
            archive.fill()
        tensors = dict(_flatten(_unwrap(root)))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (Damaged, zipfile.BadZipFile, NotImplementedError, struct.error, EOFError, ValueError) as error:
        reason = str(error).split("\n")[0][:200] or type(error).__name__
        raise UserError(f"{path}: truncated, corrupt, or no file of PyTorch ({reason})") from None
    if not tensors:
        raise UserError(f"{path}: there is no state dict in it")
    return tensors


class _Archive:
    """A zip archive as PyTorch writes it: nothing compressed, everything in one folder."""

    def __init__(self, path: Path):
        self._path = path
        self.size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            self._entries = {entry.filename: entry for entry in archive.infolist()}
        folders = [name.removesuffix("/data.pkl") for name in self._entries if name.count("/") == 1]
        folders = [folder for folder in folders if f"{folder}/data.pkl" in self._entries]
        if len(set(folders)) != 1:
            raise Damaged("no data.pkl in it")
        self._folder = folders[0]
        self._bytes = np.memmap(path, np.uint8, "r")
        if "byteorder" in self and self["byteorder"].tobytes() != b"little":
            raise Damaged("written on a big-endian machine")
        self.pickle = self["data.pkl"].tobytes()
        self.is_torchscript = "constants.pkl" in self
        self._storages: dict[str, np.ndarray] = {}

    def __contains__(self, name: str) -> bool:
        return f"{self._folder}/{name}" in self._entries

    def __getitem__(self, name: str) -> np.ndarray:
        """The bytes of an entry, uint8, as a view of the file."""
        entry = self._entries.get(f"{self._folder}/{name}")
        if entry is None:
            raise Damaged(f"{name} is missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise Damaged(f"{name} is compressed, which PyTorch never does")
        header = self._bytes[entry.header_offset : entry.header_offset + 30].tobytes()
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise Damaged(f"{name} is not where the archive says")
        start = entry.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
        if start + entry.file_size > self.size:
            raise Damaged(f"{name} goes beyond the end of the file")
        return self._bytes[start : start + entry.file_size]

    def storage(self, key: str, size: int) -> np.ndarray:
        """The bytes of a storage, `size` or more; the same array for the same key."""
        if key not in self._storages:
            self._storages[key] = self[f"data/{key}"]
        return self._storages[key]


def _unwrap(root: Any) -> Any:
    """The state dict inside a training checkpoint."""
    for wrapper in WRAPPERS:
        if isinstance(root, dict) and isinstance(root.get(wrapper), dict):
            root = root[wrapper]
    return root


def _flatten(root: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors inside, with their names."""
    waiting: list[tuple[str, int, Any]] = [("", 0, root)]
    seen = 0
    while waiting:
        name, depth, value = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            raise Damaged("its containers are nested without end")
        if isinstance(value, np.ndarray):
            yield name.removeprefix("."), value
        elif isinstance(value, Module | dict):
            inner = value.attributes if isinstance(value, Module) else value
            waiting += [(f"{name}.{key}", depth + 1, part) for key, part in reversed(inner.items())]
        elif isinstance(value, list | tuple):
            waiting += [(f"{name}.{i}", depth + 1, part) for i, part in reversed(list(enumerate(value)))]
