"""Files of PyTorch, read without it: PyTorch itself is the oracle, and files that mean harm are refused."""

import collections
import io
import pathlib
import pickle
import warnings
import zipfile

import numpy as np
import pytest

from qualiclip_jax.errors import UserError
from qualiclip_jax.models.torch_file import read_torch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch, an optional extra, is not installed")


def assert_same(ours: dict[str, np.ndarray], theirs: dict) -> None:
    """The same names in the same order, types, shapes and bits."""
    import torch

    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        tensor = tensor.detach()
        assert str(tensor.dtype) == f"torch.{ours[name].dtype.name}", name
        assert ours[name].shape == tuple(tensor.shape), name
        bits = tensor.contiguous().flatten().view(torch.uint8).numpy()
        np.testing.assert_array_equal(np.ascontiguousarray(ours[name]).reshape(-1).view(np.uint8), bits, err_msg=name)


def refusal(path: pathlib.Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as error:
        read_torch(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 600 + len(str(path))
    return message


def all_kinds(torch) -> dict:
    """Tensors of every type, layout and relation to their storage."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    kinds = ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64")
    tensors = {f"type.{kind}": (100 * base).to(getattr(torch, kind)) for kind in kinds}
    tensors |= {f"type.{kind}": base.to(getattr(torch, kind)) for kind in ("float8_e4m3fn", "float8_e5m2")}
    tensors["type.uint16"] = torch.tensor([1, 65535], dtype=torch.uint16)
    return tensors | {
        "plain": base,
        "shared": base,
        "row": base[2],
        "transposed": base.T,
        "strided": base[1::2, ::3],
        "expanded": torch.ones(1).expand(5, 3),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "four": torch.randn(2, 3, 4, 5).permute(3, 1, 0, 2),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_kind_of_tensor(torch, tmp_path, protocol):
    tensors = all_kinds(torch)
    torch.save(tensors, tmp_path / "a.pth", pickle_protocol=protocol)
    ours = read_torch(tmp_path / "a.pth")
    assert_same(ours, torch.load(tmp_path / "a.pth", weights_only=False))
    assert np.shares_memory(ours["plain"], ours["shared"])  # one storage, read once
    assert np.shares_memory(ours["plain"], ours["transposed"])


def test_the_state_of_a_module_with_its_metadata(torch, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(module.state_dict(), tmp_path / "a.bin")
    assert_same(read_torch(tmp_path / "a.bin"), module.state_dict())


def test_checkpoints_of_training_scripts(torch, tmp_path):
    weight = {"layer.weight": torch.ones(2, 2)}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    extra = {"epoch": 3, "best": None, "name": "run", "size": torch.Size([1, 2]), "optimizer": optimizer}
    for wrapper in ("state_dict", "model", "params"):
        torch.save(extra | {wrapper: collections.OrderedDict(weight)}, tmp_path / "a.pth")
        assert list(read_torch(tmp_path / "a.pth")) == ["layer.weight"]
    torch.save({"encoder": {"w": torch.zeros(2), "more": [torch.ones(1), 3]}, "step": 4}, tmp_path / "nested.pth")
    assert list(read_torch(tmp_path / "nested.pth")) == ["encoder.w", "encoder.more.0"]
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    assert "there is no state dict" in refusal(tmp_path / "none.pth")


def test_torchscript(torch, tmp_path):
    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 4).half().T)
            self.register_buffer("size", torch.tensor(224))
            self.heads, self.strides, self.rates, self.on = 4, [1, 2], [0.5], [True]
            self.names = {"a": 1}

        def forward(self, x):
            return x * self.weight.sum() * self.heads * self.strides[0] * self.rates[0] * self.names["a"]

    root = torch.nn.Module()
    root.visual = torch.nn.Sequential(Inner(), torch.nn.Sequential(Inner(), torch.nn.ReLU()))
    root.scale = torch.nn.Parameter(torch.tensor(1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI's archives stay what they are
        torch.jit.script(root).save(str(tmp_path / "a.pt"))
        theirs = torch.jit.load(str(tmp_path / "a.pt")).state_dict()
    ours = read_torch(tmp_path / "a.pt")
    assert_same({name: ours[name] for name in theirs}, theirs)
    assert ours.keys() == theirs.keys()


def test_format_from_before_pytorch_1_6(torch, tmp_path):
    newer = ("type.uint16", "type.float8_e4m3fn", "type.float8_e5m2")  # types that format has no storage for
    tensors = {name: tensor for name, tensor in all_kinds(torch).items() if name not in newer}
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(read_torch(tmp_path / "old.pth"), torch.load(tmp_path / "old.pth", weights_only=False))
    whole = (tmp_path / "old.pth").read_bytes()
    for size in [14, 100, 300, *range(400, len(whole), 733), len(whole) - 1]:
        (tmp_path / "part.pth").write_bytes(whole[:size])
        assert "truncated, corrupt" in refusal(tmp_path / "part.pth")


def test_truncated_anywhere(torch, tmp_path):
    torch.save({"a": torch.arange(1000.0), "b": torch.ones(3)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for size in [0, 1, 29, 30, 100, 200, *range(300, len(whole), 217), len(whole) - 1]:
        (tmp_path / "part.pth").write_bytes(whole[:size])
        assert "truncated, corrupt" in refusal(tmp_path / "part.pth")


def archive(path: pathlib.Path, pickled: bytes, storages=(), compression=zipfile.ZIP_STORED, **more: bytes):
    """A file as PyTorch writes it, with any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", pickled)
        for name, content in more.items():
            file.writestr(f"a/{name.replace('_', '.')}", content)
        for key, content in enumerate(storages):
            file.writestr(f"a/data/{key}", content)
    return path


def op(*parts) -> bytes:
    """Opcodes, and Python values pickled between them."""
    return b"\x80\x02" + b"".join(p if isinstance(p, bytes) else pickle.dumps(p, 2)[2:-1] for p in parts) + b"."


STORAGE = (b"(", "storage", b"ctorch\nFloatStorage\n", "0", "cpu", 4, b"tQ")
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def tensor(offset, size, stride, storage=STORAGE) -> tuple:
    """Opcodes of one tensor."""
    return (REBUILD, b"(", *storage, offset, size, stride, False, b"ccollections\nOrderedDict\n)R", b"tR")


def test_what_the_helpers_write_is_read(tmp_path):
    path = archive(
        tmp_path / "a.pth", op(b"}", "w", *tensor(1, (3,), (1,)), b"s"), [np.arange(4, dtype="f4").tobytes()]
    )
    np.testing.assert_array_equal(read_torch(path)["w"], [1, 2, 3])


HARM = [
    (op(b"cos\nsystem\n", ("touch harm",), b"R"), "os.system"),
    (op(b"cbuiltins\neval\n", ("1",), b"R"), "builtins.eval"),
    (op(b"cposix\nsystem\n(", "touch harm", b"tR"), "posix.system"),
    (op(b"(", "touch harm", b"ios\nsystem\n"), "INST"),
    (op(b"(cos\nsystem\n", "touch harm", b"o"), "OBJ"),
    (op(b"csubprocess\nPopen\n)\x81"), "subprocess.Popen"),
    (op(b"csubprocess\nPopen\n)}\x92"), "NEWOBJ_EX"),
    (op(b"c__torch__.evil\nModule\n)\x81"), "__torch__.evil.Module"),  # not in a TorchScript archive
    (op(b"ccollections\nOrderedDict\n", {"__class__": 1}, b"b"), "sets the state of a Name"),
    (op(REBUILD, {"__code__": 1}, b"b"), "sets the state of a Name"),
    (op("text", {"x": 1}, b"b"), "sets the state of a str"),
    (op(b"\x82\x01"), "EXT1"),
    (op(b"Pany\n"), "PERSID"),
    (op(b"ctorch\nload\n(", "x", b"tR"), "torch.load"),
    (op(b"ctorch._utils\n_rebuild_qtensor\n)R"), "torch._utils._rebuild_qtensor"),
    (op(b"cnumpy\nload\n(", "x", b"tR"), "numpy.load"),
    (op(b"}", (1, 2), 1, b"s"), "a key is a tuple"),
    (op(b"]", "a", 1, b"s"), "sets an item of a list"),
    (op(b"}", 1, b"a"), "appends to a dict"),
    (op(b"R"), "makes no sense"),
    (op(b"h\x07"), "makes no sense"),
    (op(b"t"), "makes no sense"),
    (op(b"Q"), "makes no sense"),
    (b"\x80\x02}", "exhausted before seeing STOP"),
    (op(REBUILD, (1, 2, 3), b"R"), "makes no sense"),
    (op(REBUILD, 1, b"R"), "calls what is no function"),
    (op(*STORAGE[:1], "storage", b"cos\nsystem\n", "0", "cpu", 4, b"tQ"), "os.system"),
    (op(*STORAGE[:1], "storage", b"ctorch\nFloatStorage\n", "7", "cpu", 4, b"tQ"), "data/7 is missing"),
    (op(*STORAGE[:1], "storage", b"ctorch\nFloatStorage\n", "0", "cpu", 5, b"tQ"), "16 bytes instead of 5 x 4"),
    (op(*STORAGE[:1], "storage", b"ctorch\nFloatStorage\n", "../data.pkl", "cpu", 4, b"tQ"), "is missing"),
    (op(*tensor(0, (5,), (1,))), "goes beyond its storage"),
    (op(*tensor(2, (3,), (1,))), "goes beyond its storage"),
    (op(*tensor(0, (2, 2), (3, 1))), "goes beyond its storage"),
    (op(*tensor(-1, (1,), (1,))), "-1 instead of a count"),
    (op(*tensor(0, (2,), (-1,))), "-1 instead of a count"),
    (op(*tensor(0, (2.0,), (1,))), "2.0 instead of a count"),
    (op(*tensor(0, (2, 2), (1,))), "strides"),
    (op(*tensor(0, (1,) * 33, (1,) * 33)), "strides"),
    (op(*tensor(0, (10**6, 10**6), (0, 0))), "larger than the whole file"),
    (op(*tensor(0, (2**70,), (0,))), "larger than the whole file"),
    (op(*tensor(0, (0, 2**70), (1, 1))), "corrupt"),
    (op(b"]", b"q\x00", b"h\x00", b"a"), "nested without end"),  # a list in itself
    (op(b"]", *[b"q\x00]h\x00ah\x00a" for _ in range(40)]), "nested without end"),  # 2 ** 40 paths
    (op(b"]", *[b"\x85" for _ in range(10_000)]), "nested without end"),
]


@pytest.mark.parametrize(("pickled", "named"), HARM, ids=[named for _, named in HARM])
def test_files_that_mean_harm(tmp_path, monkeypatch, pickled, named):
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "a.pth", pickled, [bytes(16)])
    assert named in refusal(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_archives_that_mean_harm(tmp_path):
    good = op(b"}", "w", *tensor(0, (4,), (1,)), b"s")
    path = tmp_path / "a.pth"
    archive(path, good, [bytes(16)], zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(path)
    archive(path, good, [bytes(16)], byteorder=b"big")
    assert "big-endian" in refusal(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no weights")
    assert "no data.pkl" in refusal(path)

    archive(path, good, [bytes(16)])
    whole = path.read_bytes()
    directory = whole.rindex(b"PK\x01\x02")  # of the storage
    size = slice(directory + 20, directory + 28)  # compressed and real
    for changed, named in (
        (whole[: size.start] + (2**31 - 1).to_bytes(4, "little") * 2 + whole[size.stop :], "beyond the end"),
        (whole[: directory + 42] + (3).to_bytes(4, "little") + whole[directory + 46 :], "not where the archive says"),
        (whole.replace(b"PK\x05\x06", b"PK\x05\x07"), "not a zip file"),
    ):
        path.write_bytes(changed)
        assert named in refusal(path)


def test_what_is_no_file_of_pytorch(tmp_path):
    assert "No such file" in refusal(tmp_path / "nothing.pth")
    for content in (b"", b"<html>404</html>", pickle.dumps({"a": 1}), bytes(5000)):
        (tmp_path / "a.pth").write_bytes(content)
        assert "no file of PyTorch" in refusal(tmp_path / "a.pth")
    with zipfile.ZipFile(file := io.BytesIO(), "w"):
        pass
    (tmp_path / "a.pth").write_bytes(file.getvalue())
    assert "no data.pkl" in refusal(tmp_path / "a.pth")
