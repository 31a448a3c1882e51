"""What is learned by gradients from ratings, by the engine of training."""

from pathlib import Path

import numpy as np

from qualiclip_jax.data.rated import RatedSet
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import decode_size
from qualiclip_jax.inference.predictor import QualiCLIP
from qualiclip_jax.storage import StrPath


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
    from qualiclip_jax.training import loop, ratings

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
        return QualiCLIP.load(directory), validation
    except UserError as error:
        raise UserError(f"all was learned, but {error}") from None
