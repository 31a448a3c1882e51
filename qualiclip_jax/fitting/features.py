"""What a frozen model gives of the images of a rated set, computed once and kept."""

import dataclasses
import sqlite3
from pathlib import Path
from types import TracebackType

import numpy as np

from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation.scores import Images, values_of_set
from qualiclip_jax.inference.predictor import QualiCLIP
from qualiclip_jax.models import Rating
from qualiclip_jax.models.rating import logits


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """What a model gives of N images.

    Attributes:
      scores: float64 [N], label-free, in [0, 1].
      attributes: float64 [N, P], the logits of the attribute scores.
      pooled: float32 [N, F], what the encoder's last layer reads.
      scored: the score is the mean of so many attributes, the first ones.
    """

    scores: np.ndarray
    attributes: np.ndarray
    pooled: np.ndarray
    scored: int

    def __len__(self) -> int:
        return len(self.scores)

    def of(self, rows: np.ndarray) -> "Features":
        """Those of some of the images."""
        return Features(self.scores[rows], self.attributes[rows], self.pooled[rows], self.scored)

    def judgement(self) -> np.ndarray:
        """The mean logit of the attributes that count for the score, float64 [N]."""
        return np.asarray(self.attributes[:, : self.scored].mean(1))


def extract(model: QualiCLIP, images: Images, kept: Path, title: str = "features") -> Features:
    """Computes the features of all images of a set, except those that are kept from an earlier run.

    Args:
      model: a `QualiCLIP`; its rating, if it has one, counts for nothing.
      images: the set.
      kept: a file that keeps them as they come.
      title: of the progress bar.

    Raises:
      UserError: images that cannot be read or scored; the others are kept.
    """
    pairs, inputs = len(model.prompts), model.clip.image.readout_width
    everything = Rating("features", np.array([[0, 0], [1, 1]]), 0, columns=np.eye(inputs), attributes=np.zeros(pairs))
    reader = dataclasses.replace(model, rating=everything)
    with Arrays(kept, model.fingerprint) as arrays:
        values = np.stack(values_of_set(reader, images, arrays, lambda scored: scored.outputs, title))
    scores = reader.score_of(values).astype(np.float64)
    return Features(scores, logits(values[:, :pairs]), values[:, pairs:], model.scored or pairs)


class Arrays:
    """float32 arrays by key, in a file of SQLite; what was put in stays when the process is killed.

    Args:
      path: the file; it is made if it is not there.
      owner: of the keys; those of other owners are not seen.

    Raises:
      UserError: the file cannot be written, or is another.
    """

    def __init__(self, path: Path, owner: str):
        self.path, self._owner = path, owner
        try:
            self._file = sqlite3.connect(path, isolation_level=None)
            self._file.execute("pragma synchronous = off")  # a power cut may cost what was kept, a kill may not
            self._file.execute("create table if not exists arrays (key text primary key, value blob) without rowid")
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def __contains__(self, key: str) -> bool:
        return self._find("select 1", key) is not None

    def __getitem__(self, key: str) -> np.ndarray:
        found = self._find("select value", key)
        if found is None:
            raise KeyError(key)
        return np.frombuffer(found[0], np.float32)

    def put(self, key: str, value: np.ndarray) -> None:
        """Keeps an array [n].

        Raises:
          UserError: it cannot be written.
        """
        row = (f"{self._owner}/{key}", np.asarray(value, np.float32).tobytes())
        try:
            self._file.execute("insert or ignore into arrays values (?, ?)", row)
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def _find(self, what: str, key: str) -> tuple[bytes] | None:
        try:
            found: tuple[bytes] | None = self._file.execute(
                f"{what} from arrays where key = ?", (f"{self._owner}/{key}",)
            ).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from None
        return found

    def _failed(self, error: sqlite3.Error) -> UserError:
        return UserError(f"{self.path}: features cannot be kept there ({error}): remove it, or choose another folder")

    def __enter__(self) -> "Arrays":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
