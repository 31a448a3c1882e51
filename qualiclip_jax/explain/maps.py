"""Quality maps: which parts of a photo are good and which are not, for the score and for every attribute."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from qualiclip_jax import quality
from qualiclip_jax.errors import UserError
from qualiclip_jax.explain import readout, windows
from qualiclip_jax.inference import inputs

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP

_FARTHEST = 40.0  # logits that cells are moved by, at most


@dataclasses.dataclass(frozen=True, eq=False)
class QualityMap:
    """The scores of the cells of an image.

    Attributes:
      score: of the whole image, as `QualiCLIP.score` gives it.
      attributes: float32 [P], of the whole image, as `QualiCLIP.attributes` gives them.
      scores: float32 [h, w] in [0, 1], higher is better; their mean is `score`.
      attribute_scores: float32 [h, w, P]; the mean of each over the cells is that of the image.
      cell: side of a cell in pixels. The last row and column may stand for fewer, or lack a last part of a cell.
      size: height and width of the image in pixels.
    """

    score: float
    attributes: np.ndarray
    scores: np.ndarray
    attribute_scores: np.ndarray
    cell: int
    size: tuple[int, int]


class Mapper:
    """Makes quality maps with one model; compiled programs and the readout are kept.

    Args:
      model: the model.
    """

    def __init__(self, model: "QualiCLIP"):
        self._model, self._encoder = model, model._encoder
        self._readout = readout.find(model)

    def __call__(self, image: inputs.Image) -> QualityMap:
        """The map of one image, see `QualiCLIP.quality_map`."""
        given = inputs.as_list(image)
        if len(given) != 1:
            raise UserError(f"a map is of one image, and these are {len(given)}")
        (pixels,) = given
        if fault := self._encoder.why_not(*pixels.shape[:2]):
            raise UserError(f"image of {fault}")
        if self._model.clip.config.can_tile:
            attributes, cells, cell = self._from_tokens(pixels)
        else:
            cells, cell = windows.pixel_windows(self._model, pixels)
            attributes, cells = self._model.attributes(pixels)[0], _logits(cells)
        levelled = level(cells, attributes)
        return QualityMap(
            float(self._model.score_of(attributes)),
            attributes,
            self._model.score_of(levelled),
            levelled,
            cell,
            (pixels.shape[0], pixels.shape[1]),
        )

    def _from_tokens(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Attributes [P] of an image, logits [h, w, P] of its cells, and the side of a cell."""
        tokens, count = self._encoder.tokens(pixels)
        attributes = self._encoder.score_tokens(tokens, count)[0, : len(self._model.prompts)]
        rows, columns = count[0]
        if self._readout is None:
            cells = np.asarray(self._pool(tokens, count))[:rows, :columns]
        else:
            cells = self._readout.logits(np.asarray(self._read(tokens, count))[:rows, :columns])
            unknown = np.isnan(cells).any((0, 1))
            if unknown.any():
                cells[..., unknown] = np.asarray(self._pool(tokens, count))[:rows, :columns, unknown]
        return attributes, cells, self._model.clip.config.image.stride

    @functools.cached_property
    def _read(self) -> Callable[..., jax.Array]:
        assert self._readout is not None
        weights = jnp.asarray(self._readout.weights)
        return self._encoder.jit(lambda image, tokens, count: windows.pooled(image, tokens, count, weights))

    @functools.cached_property
    def _pool(self) -> Callable[..., jax.Array]:
        model, prompts = self._model, jnp.asarray(self._model.prompt_features)

        def logits(features: jax.Array) -> jax.Array:
            return quality.attribute_logits(features[..., : prompts.shape[-1]], prompts, model.temperature, model.bias)

        return self._encoder.jit(lambda image, tokens, count: logits(windows.pooled(image, tokens, count, None)))


def level(logits: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Scores of cells: their logits moved by one number for each attribute, so that the means are as given.

    Args:
      logits: float [h, w, P].
      means: [P] in [0, 1].

    Returns:
      float32 [h, w, P] in [0, 1].
    """
    logits = logits.astype(np.float64)
    logits = logits - logits.mean((0, 1))
    low, high = np.full(len(means), -_FARTHEST), np.full(len(means), _FARTHEST)
    for _ in range(60):  # bisection: the mean grows with the shift
        middle = (low + high) / 2
        small = _sigmoid(logits + middle).mean((0, 1)) < means
        low, high = np.where(small, middle, low), np.where(small, high, middle)
    return _sigmoid(logits + low).astype(np.float32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _logits(scores: np.ndarray) -> np.ndarray:
    scores = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.log(scores) - np.log1p(-scores)
