"""What is judged: a model that scores images, or a table of scores that any metric has given."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qualiclip_jax.data.rated import RatedSet
from qualiclip_jax.degradations.catalog import TYPES
from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import synthetic
from qualiclip_jax.evaluation.scores import Kept, content_key, read_scores, score_set
from qualiclip_jax.progress import Progress
from qualiclip_jax.version import __version__

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP


class Contestant(Protocol):
    """Gives scores, higher is better.

    Attributes:
      facts: what it is, JSON-able; "name" is what reports call it.
    """

    facts: dict[str, Any]

    def scores(self, rated_set: RatedSet, title: str) -> np.ndarray:
        """Scores of the images of a set, float64 [N]; `title` is what a progress bar calls it."""

    def benchmark(
        self, photos: Sequence[synthetic.Photo], crop: int, seed: int, title: str
    ) -> synthetic.SyntheticResult:
        """The synthetic benchmark on photos. Raises UserError where there is no model to score them."""


class ScoringModel:
    """A model that scores images.

    Args:
      model: a `QualiCLIP`, or what `QualiCLIP.load` takes.
      cache: folder where its scores are kept for the next time; None to keep none.
    """

    def __init__(self, model: "str | os.PathLike[str] | QualiCLIP", cache: Path | None = None):
        from qualiclip_jax.inference.predictor import QualiCLIP

        self.model = model if isinstance(model, QualiCLIP) else QualiCLIP.load(model)
        fingerprint = self.model.fingerprint
        self.kept = Kept(cache and cache / f"{fingerprint}-{__version__}.jsonl")
        self.facts: dict[str, Any] = {
            "name": "model" if isinstance(model, QualiCLIP) else str(model),
            "fingerprint": fingerprint,
            "temperature": self.model.temperature,
            "prompts": len(self.model.prompts),
        } | self.model.provenance
        if self.model.magnitude is not None:
            self.facts["magnitude"] = self.model.magnitude._asdict()
        if self.model.rating is not None:
            self.facts["judged by"] = "its ratings (MOS), not its scores"

    def scores(self, rated_set: RatedSet, title: str) -> np.ndarray:
        """Scores of the images of a set, float64 [N].

        Raises:
          UserError: an image cannot be read or scored, or scores cannot be kept.
        """
        return score_set(self.model, rated_set, self.kept, title)

    def benchmark(
        self,
        photos: Sequence[synthetic.Photo],
        crop: int,
        seed: int,
        title: str,
        types: Sequence[str] = TYPES,
    ) -> synthetic.SyntheticResult:
        """The synthetic benchmark on photos; those whose scores are kept are not scored again."""
        import jax

        done = _KeptPhotos(self.kept, photos, crop, seed, types)
        with Progress(len(photos), title, "photo") as progress:
            return synthetic.run(
                jax.jit(self.model.apply),
                photos,
                types=types,
                crop=crop,
                seed=seed,
                done=done,
                advance=progress.advance,
            )


class ScoresTable:
    """Scores of any metric, from a file that `scores.read_scores` takes.

    Args:
      path: the file.
      lower_is_better: whether a lower score means a better image.

    Raises:
      UserError: there is no such file.
    """

    def __init__(self, path: str | os.PathLike[str], lower_is_better: bool = False):
        self.path, self.lower_is_better = Path(path), lower_is_better
        if not self.path.is_file():
            raise UserError(f"{path}: no such file")
        self.facts: dict[str, Any] = {
            "name": self.path.stem, "scores": str(path), "lower is better": lower_is_better
        }  # fmt: skip

    def scores(self, rated_set: RatedSet, title: str) -> np.ndarray:
        """Scores of the images of a set, float64 [N], turned so that higher is better.

        Raises:
          UserError: an image has no score.
        """
        return read_scores(self.path, rated_set, self.lower_is_better)

    def benchmark(
        self, photos: Sequence[synthetic.Photo], crop: int, seed: int, title: str
    ) -> synthetic.SyntheticResult:
        """Raises UserError: there is no model to score degraded photos."""
        raise UserError(f"{self.path}: a table has no scores of degraded photos: the synthetic benchmark needs a model")


class _KeptPhotos(dict[str, np.ndarray]):
    """Scores of photos by name for `synthetic.run`; those of earlier runs are in it, new ones are kept."""

    def __init__(self, kept: Kept, photos: Sequence[synthetic.Photo], crop: int, seed: int, types: Sequence[str]):
        self._kept = kept
        some = "" if tuple(types) == TYPES else f"/{','.join(types)}"
        self._keys = {
            name: f"synthetic/{content_key(synthetic.cut(photo, crop).tobytes())}/{name}/{seed}{some}"
            for name, photo in photos
        }
        super().__init__({name: np.array(kept[key]) for name, key in self._keys.items() if key in kept})

    def __setitem__(self, name: str, scores: np.ndarray) -> None:
        super().__setitem__(name, scores)
        self._kept.put(self._keys[name], scores.tolist())
