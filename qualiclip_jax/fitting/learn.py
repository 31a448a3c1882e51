"""What is learned by gradients from ratings, by the engine of training, and its comparison with other rungs."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qualiclip_jax import models, zoo
from qualiclip_jax.data.rated import RatedSet
from qualiclip_jax.errors import UserError
from qualiclip_jax.fitting import choice, rungs
from qualiclip_jax.fitting.features import Features
from qualiclip_jax.images import decode_size
from qualiclip_jax.inference.predictor import QualiCLIP
from qualiclip_jax.storage import StrPath
from qualiclip_jax.training import ratings

FOLDS_ASIDE = 5  # one in so many images is put aside to compare rungs by


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A rung that may be taken.

    Attributes:
      rung: what is fitted in closed form.
      features: of all images of the set, by the model that the rung reads.
      rows: what it may be fitted to: rows of the set that this model was not learned from.
      learned: that model; None if it is the starting one.
    """

    rung: str
    features: Features
    rows: np.ndarray
    learned: QualiCLIP | None = None


def learn(
    method: str, model: StrPath, start: QualiCLIP, rated_set: RatedSet, directory: Path, seed: int
) -> tuple[QualiCLIP, np.ndarray]:
    """Learns prompts (QualiCLIP+) or adapters from ratings, or goes on with that.

    Args:
      method: "prompts" or "adapter".
      model: what `QualiCLIP.load` takes; it has a text encoder if prompts are to be learned.
      start: the same, loaded; its prompts are those of the new model.
      rated_set: the ratings; the test part, if there is one, is left out.
      directory: of the training run.
      seed: of the run.

    Returns:
      The model of the best checkpoint, and the rows of the set that picked it. The others were learned from.

    Raises:
      UserError: as `training.loop.train`.
      KeyboardInterrupt: a signal asked to stop; the run can go on.
    """
    from qualiclip_jax.training import config as config_lib
    from qualiclip_jax.training import loop

    train, validation = ratings.divided(rated_set, seed)
    sides = [min(decode_size(rated_set.image_bytes(row), rated_set.ids[row])) for row in train]
    if method == ratings.PROMPTS:
        config = config_lib.ratings_config(rated_set.name)
    else:
        config = config_lib.adapter_config(rated_set.name)
        config.temperature = start.temperature
    config.seed = seed
    config.model.weights = str(model)
    config.prompts, config.scored = tuple(text for pair in start.prompts for text in pair), start.scored
    config.data.crop_size = max(32, min(config.data.crop_size, *sides))
    config.eval.every = config.checkpoint.every = -(-len(train) // config.batch_size)  # once an epoch
    result = loop.train(config, directory, rated_set=rated_set)
    if result.stopped_by:
        raise KeyboardInterrupt(f"step {result.step} of learning is saved")
    try:
        learned = QualiCLIP.load(directory)
    except UserError as error:
        raise UserError(f"all was learned, but {error}") from None
    return (dataclasses.replace(learned, clip=start.clip) if same(learned.clip, start.clip) else learned), validation


def same(one: models.CLIP, other: models.CLIP) -> bool:
    """Whether two CLIPs are equal, to the last digit."""
    (config, arrays), (wanted, others) = (models.to_pure(clip) for clip in (one, other))
    first, second = (dict(models.tree.by_path(tree)) for tree in (arrays, others))
    return config == wanted and all(np.array_equal(first[name], second[name]) for name in first)


def require_text_encoder(model: StrPath) -> None:
    """Raises a UserError if a model has no text encoder, which learned prompts need."""
    if zoo.build(str(model), text_encoder=True).clip.text is None:
        raise UserError(f"--method prompts: {model} has no text encoder: take another model, or other methods")


def put_aside(rated_set: RatedSet, rows: np.ndarray, seed: int) -> tuple[np.ndarray, RatedSet]:
    """Some of the rows, all images of a group together, and the set in which these are of the test part."""
    aside = rows[rungs.make_folds(rated_set.groups[rows], FOLDS_ASIDE, seed) == 0]
    split = np.array(rated_set.split or [""] * len(rated_set), object)
    split[aside] = "test"
    return aside, dataclasses.replace(rated_set, split=split.tolist())


def compare(
    candidates: Mapping[str, Candidate], mos: np.ndarray, groups: np.ndarray, aside: np.ndarray, seed: int
) -> tuple[str, list[choice.Tried]]:
    """Which of some candidates to take, by the ratings of images that none of them has seen (see `choice.simplest`).

    Args:
      candidates: by name, the simplest first.
      mos, groups: of all images of the set.
      aside: rows of the set to judge by.
      seed: of folds for choices within a rung.

    Returns:
      The name of one, and how well each of them did.
    """
    residuals = {}
    for name, one in candidates.items():
        folds = rungs.make_folds(groups[one.rows], rungs.INNER_FOLDS, seed)
        rating = rungs.RUNGS[one.rung].fit(one.features.of(one.rows), mos[one.rows], folds)
        residuals[name] = rungs.predict(rating, one.features.of(aside)) - mos[aside]
    table = [
        choice.tried(name, rest, mos[aside], candidates[name].features.of(aside).scores)
        for name, rest in residuals.items()
    ]
    return table[choice.simplest(list(residuals.values()), groups[aside])].name, table
