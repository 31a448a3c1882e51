"""`QualiCLIP`: from images to quality scores in [0, 1], higher is better."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from qualiclip_jax import checkpoint, compilation, models, zoo
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError
from qualiclip_jax.inference import buckets, engine, files, inputs, machine
from qualiclip_jax.inference.compiled import Encoder
from qualiclip_jax.storage import StrPath

if TYPE_CHECKING:
    from qualiclip_jax.explain.maps import Mapper, QualityMap


@dataclasses.dataclass(frozen=True, eq=False)
class QualiCLIP(models.Model):
    """A trained model, ready to score images of any size (32 pixels a side at least).

    The score of an image is its own: it does not depend on what else is scored with it (to 1e-5).

    Attributes:
      clip: the CLIP; only its image encoder is used.
      prompts: P antonym pairs, positive first.
      prompt_features: float32 [P, 2, D], unit length.
      temperature: divides the logits; see `quality.attribute_scores`.
      provenance: where the weights come from, JSON-able; saved with the model.
      scored: how many pairs of prompts, the first ones, the score is the mean of; 0 is all.
      rating: how images are rated on somebody's scale, fitted by `qualiclip fit`; None if it was not.
      bias, magnitude: as in `models.Model`.
    """

    _encoder: ClassVar[Encoder]  # of each model; no field
    _rater: ClassVar["QualiCLIP | None"]  # likewise; of the rating, if it has an encoder of its own

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_encoder", Encoder(self))  # now: `apply` may be traced first
        rater = None if self.rating is None else self.rating.rater
        object.__setattr__(self, "_rater", None if rater is None or rater.clip is self.clip else QualiCLIP.of(rater))

    @classmethod
    def load(cls, name: StrPath = zoo.TINY) -> Self:
        """Loads a model.

        Args:
          name: a name of `zoo.TABLE` ("tiny", "qualiclip", "clip-iqa", "RN50" ...; `qualiclip models` lists them), the
            path of a checkpoint, of a training run or of weights, or a repository of the Hugging Face hub. What is
            published is downloaded and converted on first use, and kept.

        Raises:
          UserError: if there is none, if it cannot be had, is incomplete, or of another kind.
        """
        compilation.keep_compilations()
        return cls.of(zoo.load(os.fspath(name)))

    @classmethod
    def of(cls, model: models.Model) -> Self:
        """The same model, ready to score."""
        return cls(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})

    @property
    def smallest_side(self) -> int:
        """The fewest pixels an image may have in height and in width."""
        return self._encoder.smallest_side

    @property
    def compiling(self) -> bool:
        """Whether a program is being compiled at this moment, by any thread that scores."""
        return self._encoder.compiling or (self._rater is not None and self._rater.compiling)

    def score(self, images: inputs.Images) -> np.ndarray:
        """Scores images.

        Args:
          images: one [H, W, 3], several [N, H, W, 3], or a list of any sizes. Arrays of NumPy or JAX are RGB, uint8 or
            float in [0, 1]. Images of Pillow may be of most modes and become RGB as image files do.

        Returns:
          float32 [N] in [0, 1], higher is better; N = 1 for one image.

        Raises:
          UserError: another shape or type, values outside the range, or smaller than 32 pixels a side.
        """
        return self.score_of(self._outputs(images))

    def rate(self, images: inputs.Images) -> np.ndarray:
        """Rates images on the scale of the ratings that the model was fitted to, see `qualiclip fit`.

        Args:
          images: as in `score`.

        Returns:
          float64 [N, 3]: the mean opinion score (MOS), and the two ends of its interval.

        Raises:
          UserError: as `score`; or the model was not fitted to ratings.
        """
        if self.rating is None:
            raise UserError("this model has no scale of ratings: `qualiclip fit` makes one that has")
        if self._rater is not None:  # one pass, by that encoder alone
            scores = self._rater.score(images)
            return self.rating(scores, scores[:, None])
        outputs = self._outputs(images)
        return self.rating(self.score_of(outputs), outputs)

    def attributes(self, images: inputs.Images) -> np.ndarray:
        """One score per antonym pair (`prompts`); `score` is their mean, or that of the first `scored`.

        Args:
          images: as in `score`.

        Returns:
          float32 [N, P] in [0, 1].
        """
        return self._outputs(images)[:, : len(self.prompts)]

    def _outputs(self, images: inputs.Images) -> np.ndarray:
        """Attribute scores, and behind them what a rating reads of the same encoder, float32 [N, P + M]."""
        images = inputs.as_list(images)
        more = 0 if self.rating is None or self._rater is not None else self.rating.reads
        result = np.empty((len(images), len(self.prompts) + more), np.float32)
        sizes = [image.shape[:2] for image in images]
        costs, compiled = self._encoder.costs_now, self._encoder.compiled
        for i, outputs in self._run([sizes], images.__getitem__, (), costs, compiled, [self._encoder]):
            if isinstance(outputs, ImageError):
                raise UserError(f"image {i}: {outputs.reason}")
            result[i] = outputs[: result.shape[1]]
        return result

    def quality_map(self, image: inputs.Image) -> "QualityMap":
        """Where an image is good and where it is not, from one pass.

        Args:
          image: one image as in `score`, of any size; huge ones go in tiles where the encoder takes tiles.

        Returns:
          Scores [h, w] of cells of about 32 x 32 pixels, and for each antonym pair. Their mean is the image's score.

        Raises:
          UserError: as `score`; several images; a model that takes images of one size only.
        """
        return self._mapper(image)

    @functools.cached_property
    def _mapper(self) -> "Mapper":
        from qualiclip_jax.explain.maps import Mapper

        return Mapper(self)

    def run(
        self,
        windows: Iterable[Sequence[buckets.Size | ImageError]],
        fetch: Callable[[int], np.ndarray],
        done: Container[int] = (),
    ) -> Iterator[tuple[int, np.ndarray | ImageError]]:
        """Scores many images that are fetched one by one, in the order that suits the encoder.

        Args:
          windows: height and width of each image, or why it has none; in lists that are planned one after the other,
            each while the one before is scored. Images are numbered through.
          fetch: image uint8 or float32 [H, W, 3] by number; called in threads; may raise an `ImageError`.
          done: images whose scores are known from an earlier run. Batches are made of all images, and those that hold
            none but known ones are left out: so a run that goes on gives the very digits of one that was never cut.

        Yields:
          (number, float32 [P + M] or ImageError), each image once, but for batches left out. Attribute scores come
          first, behind them the M values that the rating reads, if there is a rating.
        """
        encoders = [self._encoder] if self._rater is None else [self._encoder, self._rater._encoder]
        return self._run(windows, fetch, done, self._encoder.costs, (), encoders)

    def _run(
        self,
        windows: Iterable[Sequence[buckets.Size | ImageError]],
        fetch: Callable[[int], np.ndarray],
        done: Container[int],
        costs: buckets.Costs,
        compiled: Collection[buckets.Shape],
        encoders: Sequence[Encoder],
    ) -> Iterator[tuple[int, np.ndarray | ImageError]]:
        """`run` with the costs and the compiled shapes that `buckets.plan` weighs, by the encoder, and the rater's."""
        faults: dict[int, ImageError] = {}

        def fetch_or_fault(number: int) -> np.ndarray:
            if number in faults:
                raise faults.pop(number)
            return fetch(number)

        batches = self._batches(windows, faults, done, costs, set(compiled))
        at_once = machine.pixels_at_once(self._encoder.config)
        start = lambda batch, images: self._joined([encoder.start(batch, images) for encoder in encoders])
        return engine.run(batches, fetch_or_fault, start, at_once, costs.devices)

    def _batches(
        self,
        windows: Iterable[Sequence[buckets.Size | ImageError]],
        faults: dict[int, ImageError],
        done: Container[int],
        costs: buckets.Costs,
        shapes: set[buckets.Shape],
    ) -> Iterator[buckets.Batch]:
        """Plans windows. `faults` gets what cannot be scored, `shapes` those planned: later windows take them, too.

        The longer a run lasts, the less padding makes one more shape worth its compilation: as many windows as there
        were are taken to come.
        """
        first = 0
        for window, sizes in enumerate(windows, 1):
            usual, huge = dict[int, buckets.Size](), dict[int, buckets.Size]()
            for number, size in enumerate(sizes, first):
                if isinstance(size, ImageError):
                    faults[number] = size
                elif (fault := self._encoder.why_not(*size)) is not None:
                    faults[number] = ImageError(f"image {number}", fault)
                else:
                    (huge if self._encoder.is_huge(*size) else usual)[number] = size
            if faulty := [number for number in range(first, first + len(sizes)) if number in faults]:
                yield buckets.Batch(tuple(faulty), (0, 0, 0))
            numbers = list(usual)
            amortized = dataclasses.replace(costs, compile=costs.compile / window)
            planned = buckets.plan(list(usual.values()), amortized, shapes)
            shapes |= {batch.shape for batch in planned}
            for batch in planned:
                if not all(numbers[i] in done for i in batch.indices):
                    yield buckets.Batch(tuple(numbers[i] for i in batch.indices), batch.shape)
            for number, (height, width) in huge.items():
                if number not in done:
                    yield buckets.Batch((number,), (1, height, width))
            first += len(sizes)

    def _joined(self, outputs: Sequence[ArrayLike]) -> ArrayLike:
        """The outputs of an encoder; or with the score of the rater's between the attributes and the others."""
        if len(outputs) == 1:
            return outputs[0]
        assert self._rater is not None
        attributes, more = jnp.split(jnp.asarray(outputs[0]), [len(self.prompts)], axis=1)
        rated = self._rater.score_of(jnp.asarray(outputs[1]))[:, None]
        return jnp.concatenate([attributes, rated, more], axis=1)

    def widened(self, columns: np.ndarray) -> Self:
        """The same model, whose `run` gives K more outputs for each image, as the last ones.

        Args:
          columns: float32 [F, K], linear functions of what the encoder's last layer reads.
        """
        wide = dataclasses.replace(self)
        object.__setattr__(wide, "_encoder", Encoder(self, columns))
        return wide

    def score_files(self, paths: StrPath | Sequence[StrPath]) -> np.ndarray:
        """Scores image files.

        Args:
          paths: one image file or several; see `images.read_image` for the formats.

        Returns:
          float32 [N] in [0, 1], in the order of `paths`.

        Raises:
          ImageError: a file that cannot be read or scored.
        """
        names = [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
        scores: dict[str, float] = {}
        for row in files.score_files(self, list(dict.fromkeys(names))):
            if row.score is None:
                raise ImageError(row.path, row.error or "not scored")
            scores[row.path] = row.score
        return np.array([scores[name] for name in names], np.float32)

    def apply(self, images: jax.Array, check: bool = False) -> jax.Array:
        """The score as a pure, differentiable function, for use as a loss under `jax.jit` and `jax.grad`.

        `jax.export` takes it with symbolic N, H and W, constrained to at least `smallest_side`.

        Args:
          images: float [..., H, W, 3] in [0, 1], or uint8.
          check: where values are not known yet (under `jax.jit` and `jax.grad`), have them checked when they are:
            `error, score = checkify.checkify(f)(images)`, then `error.throw()`. Known values are always checked.

        Returns:
          float32 [...] in [0, 1], higher is better: maximise it.

        Raises:
          UserError: another shape or type, too small, of another size than a model with a native positional embedding
            takes, or values outside the range.
        """
        inputs.check_array(images, check)
        *leading, height, width, channels = images.shape
        if fault := self._encoder.why_not(height, width):
            raise UserError(f"images of {fault}")
        if math.prod(leading) == 0:
            return jnp.zeros(leading, jnp.float32)
        flat = jnp.reshape(images, (math.prod(leading), height, width, channels))
        return self.score_of(self._encoder.attributes(flat)).reshape(leading)

    def save(self, path: StrPath, store: str = "float32") -> None:
        """Writes a checkpoint that `load` reads, whole or not at all; `store` and errors as `checkpoint.save_model`."""
        checkpoint.save_model(path, self, store)
