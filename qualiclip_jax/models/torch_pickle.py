"""The machine that reads the pickle of a file of PyTorch, and runs nothing of it.

It knows the opcodes and the few names that a state dict needs. None of them calls anything but the functions of this
module. Everything else is refused by name.
"""

import dataclasses
import io
import math
import pickletools
from collections.abc import Callable
from typing import Any, Protocol

import ml_dtypes
import numpy as np

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


class Archive(Protocol):
    """A file of PyTorch, taken apart."""

    is_torchscript: bool  # whether it holds a program, not only tensors
    size: int  # of the file, in bytes
    pickle: bytes  # the description of the tensors

    def storage(self, key: str, size: int) -> np.ndarray:
        """The bytes of a storage, uint8 [`size` or more]; the same array for the same key."""
        ...


class Machine:
    """Runs the pickle of an archive: a stack of values, and a memo of values that come again."""

    def __init__(self, archive: Archive):
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
Operation = Callable[[Machine, Any], Any]
OPERATIONS: dict[str, Operation] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": Machine._mark,
    "POP": lambda machine, _: machine._stack.pop(),
    "POP_MARK": lambda machine, _: machine._pop_to_mark(),
    "DUP": lambda machine, _: machine._stack.append(machine._stack[-1]),
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": Machine._memoize,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "TUPLE": Machine._tuple,
    "TUPLE1": lambda machine, _: machine._short_tuple(1),
    "TUPLE2": lambda machine, _: machine._short_tuple(2),
    "TUPLE3": lambda machine, _: machine._short_tuple(3),
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "APPEND": lambda machine, _: machine._extend([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._extend(machine._pop_to_mark()),
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "SETITEM": Machine._set_item,
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_to_mark()),
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._new_object,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent,
}


def _items(machine: Machine, pairs: Any = ()) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    machine._stack.append(result)
    machine._set_items([part for pair in pairs for part in pair])
    machine._stack.pop()
    return result


def _first(_: Machine, value: Any, *rest: Any) -> Any:
    return value


# What a pickle may call: a name -> what is done instead, with the machine before the arguments.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": Machine.tensor,
    "torch._utils._rebuild_tensor_v3": Machine.tensor,
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
