"""The readout that comes with the package: which faults of a camera an encoder sees in a photo, or in a part of it.

Photos were degraded in a part (`benchmarks/explain.py`). Ridge regression then tells how strong each fault is in the
middle of a window, from what its moments differ by from those of the photo's other windows. Other weights tell which
fault a whole photo has, if any, from what the encoder's last layer reads. Both belong to the frozen layers of an
encoder, whatever projection stands behind them.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jax
import numpy as np

from qualiclip_jax import models
from qualiclip_jax.models.efficientnet import EfficientNet

FILE = "readout.npz"
ALL = ("bad",)  # words of negative prompts that mean every fault
WORDS: dict[str, tuple[str, ...]] = {  # words of negative prompts -> columns
    "blurr": ("defocus", "motion", "shrink"),
    "nois": ("noise",),
    "expos": ("underexposure", "overexposure"),
    "haz": ("haze", "contrast"),
    "compress": ("jpeg",),
    "color": ("white_balance", "saturation"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Readout:
    """What is read from the moments of windows.

    Attributes:
      weights: float32 [F, Q], from standardised moments to how strong Q faults are.
      places: for each antonym pair the numbers of its faults; empty where none is known for it.
    """

    weights: np.ndarray
    places: list[list[int]]

    def logits(self, strengths: np.ndarray) -> np.ndarray:
        """How good cells are for each pair, up to one number for the whole photo.

        Args:
          strengths: float [h, w, Q], what the weights give.

        Returns:
          float32 [h, w, P]; NaN for a pair that is not known.
        """
        strengths = strengths - strengths.mean((0, 1))  # a deviation of 1 among the windows that it was fitted to
        unknown = np.full(strengths.shape[:2], np.nan, np.float32)
        found = [
            -np.log(np.exp(strengths[..., faults]).sum(-1)) if faults else unknown  # nearly that of the worst fault
            for faults in self.places
        ]
        return np.stack(found, axis=-1).astype(np.float32)


def find(model: models.Model) -> Readout | None:
    """The readout for a model; None if none is known for its encoder."""
    if not isinstance(model.clip.image, EfficientNet):
        return None
    encoder, columns, weights, _ = _arrays()
    if encoder != digest(model.clip):
        return None
    places = []
    for _, negative in model.prompts:
        faults = {name for word, names in WORDS.items() if word in negative.lower() for name in names}
        if any(word in negative.lower().split() for word in ALL):
            faults = set(columns)
        places.append([index for index, name in enumerate(columns) if name in faults])
    return Readout(weights, places)


def find_causes(model: models.Model) -> tuple[list[str], np.ndarray, np.ndarray] | None:
    """What tells the faults of whole photos by a model; None if none is known for its encoder.

    Returns:
      C words, weights float32 [F, C] of what the last layer reads, and biases float32 [C]. A fault is to be told where
      the sum is positive.
    """
    if not isinstance(model.clip.image, EfficientNet):
        return None
    encoder, *_, causes = _arrays()
    return causes if encoder == digest(model.clip) else None


def digest(clip: models.CLIP) -> str:
    """16 hexadecimal digits of an encoder without its projection, the same in float32 and stored as float16."""
    config, arrays = models.to_pure(clip)
    layers = {name: value for name, value in arrays["image"].items() if name != "pool"}
    found = hashlib.blake2b(repr(sorted(config["image"].items())).encode(), digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(layers):
        found.update(jax.tree_util.keystr(path).encode())
        array = np.asarray(leaf)
        found.update(np.ascontiguousarray(array.astype(np.float16) if array.ndim > 1 else array).tobytes())
    return found.hexdigest()


@contextlib.contextmanager
def packaged() -> Iterator[Any]:
    """Opens the file of the package: its arrays by name."""
    with resources.files(__package__).joinpath(FILE).open("rb") as file, np.load(file) as stored:
        yield stored


@functools.cache
def _arrays() -> tuple[str, list[str], np.ndarray, tuple[list[str], np.ndarray, np.ndarray]]:
    """Digest of the encoder; names and weights for windows; names, weights and biases for whole photos."""
    with packaged() as stored:
        names, causes = (list(map(str, stored[name])) for name in ("columns", "causes"))
        weights, of_causes = (stored[name].astype(np.float32) for name in ("weights", "cause_weights"))
        return str(stored["encoder"]), names, weights, (causes, of_causes, stored["cause_biases"])
