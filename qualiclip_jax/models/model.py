"""A model ready to score with: a CLIP, and the prompts that its image features are compared with."""

import dataclasses
import functools
import hashlib
import math
from typing import Any, TypeVar

import jax
import numpy as np

from qualiclip_jax import quality
from qualiclip_jax.errors import UserError
from qualiclip_jax.models.clip import CLIP
from qualiclip_jax.models.rating import Rating
from qualiclip_jax.models.tree import to_pure

Scores = TypeVar("Scores", np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model ready to score with.

    Attributes:
      clip: the CLIP; `clip.encode_image` works, a text encoder is there only if it was kept.
      prompts: P antonym pairs, positive first.
      prompt_features: float32 [P, 2, D], unit length.
      temperature: divides the logits; see `quality.attribute_scores`.
      provenance: where the weights come from, JSON-able.
      scored: the score is the mean over so many pairs, the first ones; 0 is all. The others only tell attributes.
      rating: how images are rated on somebody's scale, beside the score; None if that was never fitted.
      bias: of the logits, where each prompt is judged by a sigmoid of its own; None for the softmax over a pair.
      magnitude: how the magnitude of the features counts in scores; None where it does not.

    Raises:
      UserError: the prompt features or the rating do not fit the prompts and the CLIP, or the temperature, or a number
        of the magnitude, is not positive and finite.
    """

    clip: CLIP
    prompts: tuple[tuple[str, str], ...]
    prompt_features: np.ndarray
    temperature: float = 1.0
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    scored: int = 0
    rating: Rating | None = None
    bias: float | None = None
    magnitude: quality.Magnitude | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple((positive, negative) for positive, negative in self.prompts))
        object.__setattr__(self, "prompt_features", np.asarray(self.prompt_features, np.float32))
        wanted = (len(self.prompts), 2, self.clip.config.embed_dim)
        if self.prompt_features.shape != wanted:
            raise UserError(f"prompt features have the shape {self.prompt_features.shape} instead of {wanted}")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"the temperature must be positive and finite, got {self.temperature}")
        if self.bias is not None and not math.isfinite(self.bias):
            raise UserError(f"the bias must be finite, got {self.bias}")
        fused = self.magnitude
        if fused is not None and not (min(fused.weight, fused.spread) > 0 and np.isfinite(fused).all()):
            raise UserError(f"weight and spread of the magnitude must be positive and finite, got {fused}")
        if not 0 <= self.scored <= len(self.prompts):
            raise UserError(
                f"the score is said to be of {self.scored} pairs of prompts, but there are {len(self.prompts)}"
            )
        if self.rating is not None and self.rating.columns.size:
            expected = (self.clip.image.readout_width, len(self.prompts))
            given = (len(self.rating.columns), len(self.rating.attributes))
            if given != expected:
                raise UserError(f"the rating is of {given} features and attributes, the model has {expected}")

    def attribute_scores(self, features: jax.Array) -> jax.Array:
        """One score for each antonym pair, float32 [..., P], of image features [..., D] that are not normalised."""
        return quality.attribute_scores(features, self.prompt_features, self.temperature, self.bias, self.magnitude)

    def score_of(self, outputs: Scores) -> Scores:
        """The score: the mean of attribute scores over the pairs that count.

        Args:
          outputs: float [..., P] or more, the attribute scores first.

        Returns:
          float [...].
        """
        return outputs[..., : self.scored or len(self.prompts)].mean(-1)

    def rating_of(self, outputs: np.ndarray) -> np.ndarray | None:
        """The MOS and the ends of its interval, float64 [..., 3]; None if the model has no rating.

        Args:
          outputs: float [..., P + M], attribute scores, and the M values that the rating `reads`.
        """
        if self.rating is None:
            return None
        return self.rating(self.score_of(outputs), outputs[..., : len(self.prompts) + self.rating.reads])

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with anything that changes a score."""
        config, arrays = to_pure(self.clip)
        digest = hashlib.blake2b(digest_size=8)
        facts = (sorted(config.items()), self.prompts, float(self.temperature), *([self.scored] if self.scored else []))
        digest.update(repr(facts if self.bias is None else (*facts, ("bias", self.bias))).encode())
        if self.magnitude is not None:
            digest.update(repr(self.magnitude).encode())
        if self.rating is not None:
            digest.update(repr(sorted(self.rating.to_dict().items())).encode())
            digest.update(b"" if self.rating.rater is None else self.rating.rater.fingerprint.encode())
        leaves = jax.tree_util.tree_leaves_with_path({"clip": arrays, "prompt_features": self.prompt_features})
        for path, leaf in leaves:
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()
