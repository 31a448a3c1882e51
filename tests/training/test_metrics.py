"""TensorBoard: the event file holds the numbers of the JSON lines."""

import struct
import sys

import numpy as np
import pytest

from qualiclip_jax import storage
from qualiclip_jax.training import metrics


def scalars(folder):
    """The (step, name, value) of every scalar of the event files, read without tensorboardX's writer.

    A record is its length (8 bytes), a checksum (4), that many bytes, and a checksum (4).
    """
    from tensorboardX.proto.event_pb2 import Event

    found = set()
    for path in folder.glob("events.*"):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found |= {(event.step, value.tag, value.simple_value) for value in event.summary.value}
            data = data[16 + length :]
    return found


def write(folder):
    writer = metrics.MetricsWriter(folder, last_step=0)
    writer.write(1, {"loss": np.float32(0.5), "similarity_positive": np.zeros(5)})
    writer.write(2, {"loss": np.float32(0.25), "rank_accuracy": np.float32(np.nan)})
    writer.write_evaluation(2, {"synthetic": -0.75})
    writer.close()


def test_tensorboard_holds_every_finite_scalar(tmp_path):
    pytest.importorskip("tensorboardX")
    write(tmp_path)
    assert scalars(tmp_path / "tensorboard") == {(1, "loss", 0.5), (2, "loss", 0.25), (2, "synthetic", -0.75)}


def test_without_tensorboard_the_lines_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluations.jsonl", "metrics.jsonl"]
    assert storage.read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5, "similarity_positive": [0.0] * 5},
        {"step": 2, "loss": 0.25, "rank_accuracy": None},
    ]
