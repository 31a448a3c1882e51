"""Files that `torch.save` wrote before PyTorch 1.6: five pickles in a row, and after them the storages.

The pickles are a magic number, a version, a description of the machine, the tensors, and the keys of the storages in
their order. A storage is the number of its elements and their bytes; the size of an element is said in the fourth
pickle alone.
"""

import pickletools
import struct
from pathlib import Path

import numpy as np

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


class LegacyFile:
    """Such a file, with the face of `torch_pickle.Archive`. The storages are empty until `fill`.

    Raises:
      ValueError: the file is not what it says it is.
    """

    is_torchscript = False

    def __init__(self, path: Path):
        self.pickle, self.size = b"", path.stat().st_size
        self._path = path
        self._storages: dict[str, np.ndarray] = {}
        with path.open("rb") as file:
            names = [[opcode.name for opcode, *_ in pickletools.genops(file)] for _ in range(3)]
            if "NEWTRUE" not in names[2] or "NEWFALSE" in names[2]:  # the machine is little-endian: true, all it says
                raise ValueError("written on a big-endian machine")
            start = file.tell()
            for _ in pickletools.genops(file):
                pass
            end = file.tell()
            self._keys = [str(word) for opcode, word, _ in pickletools.genops(file) if opcode.name == "BINUNICODE"]
            self._start = file.tell()
            file.seek(start)
            self.pickle = file.read(end - start)

    def storage(self, key: str, size: int) -> np.ndarray:
        """A storage of so many bytes; the same array for the same key."""
        if key not in self._storages:
            if size + sum(storage.nbytes for storage in self._storages.values()) > self.size:
                raise ValueError("its storages are larger than the file")
            self._storages[key] = np.zeros(size, np.uint8)
        return self._storages[key]

    def fill(self) -> None:
        """Reads the storages."""
        if sorted(self._keys) != sorted(self._storages):
            raise ValueError("its storages are not those that it names")
        with self._path.open("rb") as file:
            file.seek(self._start)
            for key in self._keys:
                storage = self._storages[key]
                (count,) = struct.unpack("<q", file.read(8))
                if count < 0 or (count and storage.nbytes % count) or (not count and storage.nbytes):
                    raise ValueError(f"storage {key} has {count} elements in {storage.nbytes} bytes")
                if file.readinto(storage.data) != storage.nbytes:
                    raise ValueError(f"storage {key} goes beyond the end of the file")
