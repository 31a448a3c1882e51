"""A rating: from what an encoder gives of an image to an opinion on the scale of those that it was fitted to."""

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from qualiclip_jax.errors import UserError

if TYPE_CHECKING:
    from qualiclip_jax.models.model import Model

LEAST_ATTRIBUTE = 1e-6  # attribute scores closer to 0 or 1 than this are moved there, for finite logits


@dataclasses.dataclass(frozen=True, eq=False)
class Rating:
    """Maps an image to a mean opinion score (MOS), and to an interval for it.

    The MOS is a rising broken line (`knots`) at the score. Where there are `columns`, it is that line at a linear
    function instead: of what the encoder's last layer reads (the pooled features), and of the logits of the attributes.
    Where there is a `rater`, it is that line at the rater's score.

    Attributes:
      method: how it was fitted, e.g. "scale".
      knots: float64 [K, 2], both columns rising, K at least 2; beyond the first and the last the line goes on.
      half_width: the interval is the MOS plus and minus this.
      level: the share of new ratings that the interval is meant to cover.
      columns: float32 [F, M], more columns for the kernel of the encoder's last layer; M is 0 for a map of the score.
      attributes: float64 [P], weights of the attributes' logits, where M is 1.
      bias: added to the linear function.
      rater: a model that was learned from ratings; it may share its CLIP with the model that it rates for.

    Raises:
      UserError: the knots do not rise, or are not finite; there are columns and a rater.
    """

    method: str
    knots: np.ndarray
    half_width: float
    level: float = 0.9
    columns: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.float32))
    attributes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    bias: float = 0.0
    rater: "Model | None" = None

    def __post_init__(self) -> None:
        knots = np.asarray(self.knots, np.float64)
        object.__setattr__(self, "knots", knots)
        columns = np.asarray(self.columns, np.float32)  # no columns are [] in JSON
        object.__setattr__(self, "columns", columns if columns.size else columns.reshape(0, 0))
        object.__setattr__(self, "attributes", np.asarray(self.attributes, np.float64))
        rises = knots.ndim == 2 and knots.shape[1] == 2 and len(knots) >= 2 and (np.diff(knots, axis=0) > 0).all()
        numbers = (knots, self.columns, self.attributes, np.array([self.half_width, self.bias]))
        if not rises or not all(np.isfinite(values).all() for values in numbers):
            raise UserError(
                f"the rating ({self.method:.40}) has knots that do not rise, or numbers that are not finite"
            )
        if self.rater is not None and self.columns.size:
            raise UserError(f"the rating ({self.method:.40}) has columns and a rater: it can read one of them")

    @property
    def reads(self) -> int:
        """How many outputs behind the attributes it reads: its columns, or the rater's score."""
        return 1 if self.rater is not None else self.columns.shape[1]

    def __call__(self, score: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Rates images.

        Args:
          score: float [...], their scores.
          outputs: float [..., P + M], their attributes, and what the columns gave, or the rater's score.

        Returns:
          float64 [..., 3]: the MOS, and the two ends of its interval.
        """
        if self.columns.size:
            pairs = len(self.attributes)
            mos = self.mos(score, logits(outputs[..., :pairs]), outputs[..., pairs])
        else:
            mos = self.mos(score if self.rater is None else outputs[..., -1])
        return np.stack([mos, mos - self.half_width, mos + self.half_width], axis=-1)

    def mos(self, score: np.ndarray, logits: np.ndarray | None = None, column: np.ndarray | None = None) -> np.ndarray:
        """The MOS of images, float64 [...].

        Args:
          score: float [...]; the rater's, where there is one.
          logits: float [..., P], of their attributes, and
          column: float [...], what the column gave: where there is one.
        """
        at = np.asarray(score, np.float64)
        if logits is not None and column is not None:
            at = column.astype(np.float64) + logits @ self.attributes + self.bias
        return broken_line(at, self.knots)

    def to_dict(self) -> dict[str, Any]:
        """The rating as JSON types, without its rater."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "rater"}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any], rater: "Model | None" = None) -> Self:
        """The inverse of `to_dict`.

        Raises:
          UserError, TypeError, ValueError: the fields are not those of a rating.
        """
        rating = cls(**fields, rater=rater)
        if rating.columns.size and rating.columns.shape[1] != 1:
            raise UserError(f"the rating ({rating.method:.40}) has {rating.columns.shape[1]} columns instead of one")
        return rating


def logits(attributes: np.ndarray) -> np.ndarray:
    """The logits of attribute scores, float64: proportional to the difference of the two similarities."""
    shares = np.clip(np.asarray(attributes, np.float64), LEAST_ATTRIBUTE, 1 - LEAST_ATTRIBUTE)
    return np.asarray(np.log(shares / (1 - shares)))


def broken_line(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """The broken line through knots [K, 2] at x [...]; its first and last pieces go on beyond the ends."""
    at, values = knots.T
    piece = np.clip(np.searchsorted(at, x) - 1, 0, len(knots) - 2)
    slope = (values[piece + 1] - values[piece]) / (at[piece + 1] - at[piece])
    return np.asarray(values[piece] + slope * (x - at[piece]))
