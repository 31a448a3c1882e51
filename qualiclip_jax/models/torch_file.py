"""Tensors out of PyTorch's files, without PyTorch: what `torch.save` and `torch.jit.save` write.

Both write a zip archive with a pickle, `data.pkl`, that describes the tensors, and one entry of raw bytes for each
storage. Python's `pickle` runs what it reads; the machine here does not. It knows the opcodes and the few names that a
state dict needs, and none of them calls anything but this module's own functions. All else is refused by name. Files
of PyTorch before 1.6 are laid out differently: `torch_legacy`.

Nothing is allocated on the word of a file: storages stay in the file (they are mapped into memory), and what a tensor
wants of its storage is checked against the storage's size.
"""

import dataclasses
import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qualiclip_jax.errors import UserError
from qualiclip_jax.models import torch_legacy

WRAPPERS = ("state_dict", "model_state_dict", "model", "params")  # what training scripts put around a state dict
MAX_DEPTH, MAX_VALUES = 100, 100_000  # of the nested containers: a file can say one thing many times

# PyTorch's types by the name of their storage ("FloatStorage") and of themselves ("float32").
STORAGES: dict[str, Any] = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "ComplexFloat": np.complex64,
    "ComplexDouble": np.complex128,
}
EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
DTYPES: dict[str, Any] = {
    **{np.dtype(kind).name: kind for kind in STORAGES.values()},
    **{f"uint{bits}": np.dtype(f"uint{bits}").type for bits in (16, 32, 64)},
    **{name: getattr(ml_dtypes, name) for name in EIGHT_BITS},
}


class Damaged(ValueError):
    """The file is not what it says it is."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that a pickle names. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass
class Module:
    """An object of a TorchScript archive: a module with its attributes."""

    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Storage:
    """The bytes of one storage, and their type (None if each tensor brings its own)."""

    content: np.ndarray  # uint8 [bytes]
    dtype: np.dtype | None


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
        root = _Machine(archive).run()
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
        self._size = path.stat().st_size
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
        self._storages: dict[str, np.ndarray] = {}

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        return self._size

    @property
    def pickle(self) -> bytes:
        """The description of the tensors."""
        return self["data.pkl"].tobytes()

    @property
    def is_torchscript(self) -> bool:
        """Whether it holds a program, not only tensors."""
        return "constants.pkl" in self

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
        if start + entry.file_size > self._size:
            raise Damaged(f"{name} goes beyond the end of the file")
        return self._bytes[start : start + entry.file_size]

    def storage(self, key: str, size: int) -> np.ndarray:
        """The bytes of a storage, `size` or more; the same array for the same key."""
        if key not in self._storages:
            self._storages[key] = self[f"data/{key}"]
        return self._storages[key]


class _Machine:
    """Runs the pickle of an archive: a stack of values and a memo of values that come again."""

    def __init__(self, archive: _Archive | torch_legacy.LegacyFile):
        self._archive = archive
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the pickle describes."""
        try:
            for opcode, argument, _ in pickletools.genops(io.BytesIO(self._archive.pickle)):
                name = opcode.name
                if name == "STOP":
                    return self._stack.pop()
                if name in CONSTANTS:
                    self._stack.append(CONSTANTS[name])
                elif name in LITERALS:
                    self._stack.append(argument)
                elif name in OPERATIONS:
                    OPERATIONS[name](self, argument)
                else:
                    raise Damaged(f"its pickle uses {name}, which no state dict needs")
        except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise Damaged(f"its pickle makes no sense: {error!r}") from None
        raise Damaged("its pickle has no end")

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _tuple(self, _: None) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _short_tuple(self, count: int) -> None:
        values = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(values)

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise Damaged(f"its pickle appends to a {type(target).__name__}")
        target.extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise Damaged(f"its pickle sets an item of a {type(target).__name__}")
        for key in values[::2]:
            if not isinstance(key, str | int | float | bytes | None):
                raise Damaged(f"a key is a {type(key).__name__}")
        target.update(zip(values[::2], values[1::2], strict=True))

    def _set_item(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _global(self, argument: str) -> None:
        self._stack.append(Name(*argument.split(" ", 1)))

    def _stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise Damaged("a global without a name")
        self._stack.append(Name(module, name))

    def _reduce(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise Damaged("its pickle calls what is no function")
        if str(function) not in FUNCTIONS:
            raise Damaged(f"it holds a {function}, and only tensors and plain containers are read")
        self._stack.append(FUNCTIONS[str(function)](self, *arguments))

    def _new_object(self, _: None) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if not isinstance(kind, Name) or arguments != ():
            raise Damaged("its pickle makes an object of what is no class")
        if not (self._archive.is_torchscript and kind.module.partition(".")[0] == "__torch__"):
            raise Damaged(f"it holds a {kind}, and only tensors and plain containers are read")
        self._stack.append(Module())

    def _build(self, _: None) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Module) and isinstance(state, dict) and all(isinstance(key, str) for key in state):
            target.attributes |= state
        elif not (type(target) is dict and isinstance(state, dict)):  # the attributes of a dict, `_metadata`: not kept
            raise Damaged(f"its pickle sets the state of a {type(target).__name__}")

    def _persistent(self, _: None) -> None:
        kind, storage, key, _device, count, *view = self._stack.pop()
        if kind != "storage" or not isinstance(storage, Name) or not isinstance(key, str) or view not in ([], [None]):
            raise Damaged("a storage is not described as PyTorch does")
        typed = storage.name.removesuffix("Storage")
        if str(storage) in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
            dtype = None
        elif storage.module == "torch" and typed in STORAGES:
            dtype = np.dtype(STORAGES[typed])
        else:
            raise Damaged(f"it holds a {storage}, which is not read here")
        each = dtype.itemsize if dtype else 1
        content = self._archive.storage(key, _natural(count) * each)
        if count * each > content.nbytes:
            raise Damaged(f"storage {key} has {content.nbytes} bytes instead of {count} x {each}")
        self._stack.append(Storage(content, dtype))

    def tensor(
        self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any
    ) -> np.ndarray:
        """`torch._utils._rebuild_tensor_v2`, and `_v3`, which brings the type along."""
        dtype = storage.dtype
        if dtype is None:
            named = next((value for value in rest if isinstance(value, Name)), Name("torch", "?"))
            if named.module != "torch" or named.name not in DTYPES:
                raise Damaged(f"a tensor is of the type {named}, which is not read here")
            dtype = np.dtype(DTYPES[named.name])
        offset, size, stride = _natural(offset), tuple(map(_natural, size)), tuple(map(_natural, stride))
        if len(size) != len(stride) or len(size) > 32:
            raise Damaged(f"a tensor has the size {size} and the strides {stride}")
        count = math.prod(size)
        available = storage.content.nbytes // dtype.itemsize
        if count and offset + sum((n - 1) * step for n, step in zip(size, stride)) >= available:
            raise Damaged(f"a tensor of size {size}, strides {stride} goes beyond its storage of {available}")
        if count * dtype.itemsize > max(self._archive.size, 1 << 20):  # one number, spread over many places
            raise Damaged(f"a tensor of size {size} is larger than the whole file")
        if count == 0:
            return np.empty(size, dtype)
        strides = [step * dtype.itemsize for step in stride]
        return np.ndarray(size, dtype, storage.content, offset * dtype.itemsize, strides)


CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
Operation = Callable[[_Machine, Any], Any]
OPERATIONS: dict[str, Operation] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine._mark,
    "POP": lambda machine, _: machine._stack.pop(),
    "POP_MARK": lambda machine, _: machine._pop_to_mark(),
    "DUP": lambda machine, _: machine._stack.append(machine._stack[-1]),
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "TUPLE": _Machine._tuple,
    "TUPLE1": lambda machine, _: machine._short_tuple(1),
    "TUPLE2": lambda machine, _: machine._short_tuple(2),
    "TUPLE3": lambda machine, _: machine._short_tuple(3),
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "APPEND": lambda machine, _: machine._extend([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._extend(machine._pop_to_mark()),
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "SETITEM": _Machine._set_item,
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_to_mark()),
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._new_object,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
}


def _items(machine: _Machine, pairs: Any = ()) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    machine._stack.append(result)
    machine._set_items([part for pair in pairs for part in pair])
    machine._stack.pop()
    return result


def _first(_: _Machine, value: Any, *rest: Any) -> Any:
    return value


# What a pickle may call: a name -> what is done instead, with the machine before the arguments.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _Machine.tensor,
    "torch._utils._rebuild_tensor_v3": _Machine.tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "collections.OrderedDict": _items,
    "torch.Size": _first,
    "torch.device": lambda _, *arguments: str(arguments),
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
}


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise Damaged(f"{value!r} instead of a count")
    return value


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
