"""Scoring on a Ray cluster: `qualiclip score --engine ray`, and `Scorer` for your own pipelines of Ray Data.

The command gives each shard to an actor, one actor a GPU, or one a host where there are TPUs or CPUs only. The actor
reads the shard, scores it and writes its table, whole or not at all. Ray starts actors as the cluster has room, holds
back what they cannot take yet, and repeats a shard whose worker was lost. Needs `ray[data]`, the extra `ray`; this
package and the checkpoint must be on every node.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError, decode_image, decode_size
from qualiclip_jax.inference import buckets, output, shards
from qualiclip_jax.inference.stream import Size, in_threads, score_images

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP

_QUEUED = 2  # shards that an actor has, the one in work included


class Scorer:
    """Scores the images of a batch: a callable class for `ray.data.Dataset.map_batches`, an actor for each device.

        photos = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=8)
        scored = photos.map_batches(
            Scorer, fn_constructor_kwargs={"checkpoint": "tiny"}, batch_size=256, num_gpus=1, compute=pool
        )
        scored.drop_columns(["bytes"]).write_parquet("s3://bucket/scores")

    Args:
      checkpoint: what `QualiCLIP.load` takes.
      column: the column of images: the bytes of image files, or arrays uint8 [H, W, 3].
      attributes: whether there is a column for each antonym pair.
    """

    def __init__(self, checkpoint: str = "tiny", column: str = "bytes", attributes: bool = False):
        self._model = _load(checkpoint)
        self._column = column
        self._names = output.attribute_columns(self._model.prompts) if attributes else []

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with more columns.

        They are `score`, float64, NaN where there is an error; `mos`, `mos_low` and `mos_high` if the model rates; the
        attributes; `width` and `height`, int64, 0 where they could not be read; `error`, text, empty where there is a
        score.
        """
        if self._column not in batch:
            raise UserError(f"no column {self._column} of images among {', '.join(batch)}: name it, Scorer(column=...)")
        images = batch[self._column]
        rating = output.RATING if self._model.rating is not None else ()
        floats = {name: np.full(len(images), np.nan) for name in ("score", *rating, *self._names)}
        sizes = np.zeros((len(images), 2), np.int64)
        errors = np.full(len(images), "", object)
        windows = buckets.windows(in_threads(_size, images), buckets.WINDOW)
        for scored in score_images(self._model, windows, lambda index: _pixels(images[index])):
            index = scored.index
            sizes[index] = scored.size or (0, 0)
            if scored.outputs is None:
                errors[index] = scored.error
                continue
            values = [scored.score, *(() if scored.rating is None else scored.rating), *scored.outputs]
            for column, value in zip(floats.values(), values):
                column[index] = value
        return batch | floats | {"width": sizes[:, 1], "height": sizes[:, 0], "error": errors}


def score_to_tables(
    model: "QualiCLIP",
    tables: Mapping[str, str],
    attributes: bool,
    advance: Callable[[int], object],
    *,
    checkpoint: str,
    address: str | None = None,
) -> Iterator[shards.Done]:
    """Scores shards on a Ray cluster, and writes their tables there.

    Args:
      model: the model; of it, only the fingerprint is needed here.
      tables: where the table of each shard goes; paths and URLs that every node reaches.
      attributes: whether tables have a column for each antonym pair.
      advance: called with a number of images when a shard is done.
      checkpoint: what each node loads the model from.
      address: of the cluster, "auto" for the one that this machine belongs to; None starts Ray on this machine, unless
        it runs in this process already.

    Raises:
      UserError: Ray is not installed, there is no such cluster, or the work cannot be done there.
    """
    if not tables:
        return
    ray = _ray(address)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    place, actors = _places(ray)
    pool = ray.data.ActorPoolStrategy(
        min_size=1,
        initial_size=min(actors, len(tables)),
        max_size=len(tables),
        max_tasks_in_flight_per_actor=_QUEUED,
    )
    rows = [{"shard": _absolute(shard), "table": _absolute(table)} for shard, table in tables.items()]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _ShardScorer,
        fn_constructor_args=(
            _absolute(checkpoint) if os.path.exists(checkpoint) else checkpoint,
            model.fingerprint,
            attributes,
        ),
        batch_size=1,
        compute=pool,
        **place,
    )
    try:
        for row in done.iter_rows():
            one = shards.Done(row["shard"], row["scored"], row["failed"], row["problem"] or None)
            advance(one.scored + one.failed)
            yield one
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray: {_reason(error)}") from None


class _ShardScorer:
    """Scores shards and writes their tables."""

    def __init__(self, checkpoint: str, fingerprint: str, attributes: bool):
        self._model = _load(checkpoint)
        self._attributes = attributes
        if self._model.fingerprint != fingerprint:
            raise UserError(f"{checkpoint} is another model here ({self._model.fingerprint}, not {fingerprint})")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        done = [self._score(str(shard), str(table)) for shard, table in zip(batch["shard"], batch["table"])]
        return {
            "shard": [one.shard for one in done],
            "scored": [one.scored for one in done],
            "failed": [one.failed for one in done],
            "problem": [one.problem or "" for one in done],
        }

    def _score(self, shard: str, table: str) -> shards.Done:
        """A table that is there is of a worker that was lost after it had written it."""
        there = shards.written(shard, table, self._model.fingerprint)
        return there or next(shards.score_to_tables(self._model, {shard: table}, self._attributes))


def _absolute(url: str) -> str:
    """A path that means the same in other processes."""
    return url if "://" in url else os.path.abspath(url)


def _load(checkpoint: str) -> "QualiCLIP":
    from qualiclip_jax.inference.predictor import QualiCLIP  # slow to import: only where it scores

    return QualiCLIP.load(checkpoint)


def _ray(address: str | None) -> Any:
    """The module, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what will be its default
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--engine ray needs one more package: pip install 'ray[data]'") from None
    if not ray.is_initialized():
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # JAX's: Ray forks only to start other programs
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--address {address}: no Ray cluster there ({_reason(error)})") from None
    return ray


def _places(ray: Any) -> tuple[dict[str, Any], int]:
    """What an actor takes of its node, and how many of them find room now."""
    nodes: Sequence[dict[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total = {name: [int(node[name]) for node in nodes if node.get(name, 0) >= 1] for name in ("GPU", "TPU", "CPU")}
    if total["GPU"]:
        return {"num_gpus": 1}, sum(total["GPU"])
    for name, argument in (("TPU", "resources"), ("CPU", "num_cpus")):  # all of a node: the actor uses all of it
        if total[name]:
            each = min(count for count in total[name] if 2 * count >= max(total[name]))  # not of a small head node
            return {argument: {name: each} if name == "TPU" else each}, sum(count // each for count in total[name])
    return {}, 1


def _size(image: Any) -> Size:
    if isinstance(image, np.ndarray):
        pixels = _pixels(image)
        return pixels.shape[0], pixels.shape[1]
    return decode_size(_bytes(image))


def _pixels(image: Any) -> np.ndarray:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ImageError("image", f"{image.dtype} {list(image.shape)} is no RGB image uint8 [H, W, 3]")
        return image
    return decode_image(_bytes(image))


def _bytes(image: Any) -> bytes:
    if not isinstance(image, bytes):
        raise ImageError("image", "there is no image in this row")
    return image


def _reason(error: Exception) -> str:
    """The last line of what Ray says; before it come traces of remote processes."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
