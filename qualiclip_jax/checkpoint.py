"""Checkpoints: everything Orbax, in one file.

A checkpoint is a self-contained directory with two items: `model` (the arrays of the image encoder and the prompt
features) and `meta` (JSON: architecture, prompts, temperature, preprocessing, provenance, rating). Both hold the same
of the rating's `rater`, if it has one; without the encoder, if that is shared. A checkpoint of a training run has a
third item, `training` (what is needed to go on). Orbax writes to a temporary directory and renames it, so
that a directory with a plain name is whole. This is Orbax's API "v0"; version 1.0 will bring another to its place.
"""

import dataclasses
import functools
import logging
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from qualiclip_jax import models, quality
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import Model
from qualiclip_jax.models.tree import Skeleton, by_path, check_shapes
from qualiclip_jax.storage import StrPath
from qualiclip_jax.version import __version__

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

FORMAT = 1
STORES = ("float32", "float16")  # what parameters are written as
MOST_META = 16 << 20  # bytes of a description
INITIAL = "initial"  # the model before training, beside the numbered checkpoints


def _orbax() -> Any:
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every step of a save
    return ocp


def _alone() -> "ocp.options.MultiprocessingOptions":
    """Options for Orbax: this process reads and writes by itself, though the run may have others."""
    me = jax.process_index()
    return _orbax().options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )


def _checkpointer(handler_type: Any) -> "ocp.Checkpointer":
    ocp = _orbax()
    if handler_type is ocp.CompositeCheckpointHandler:
        handler = handler_type(composite_options=ocp.CompositeOptions(multiprocessing_options=_alone()))
    else:
        handler = handler_type(multiprocessing_options=_alone())
    return ocp.Checkpointer(handler, multiprocessing_options=_alone())


def _items(model: Model, store: str = STORES[0]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two items of a checkpoint: arrays (in host memory), and JSON; `store` as in `save_model`."""
    config, arrays = models.to_pure(model.clip)
    meta: dict[str, Any] = {
        "format": FORMAT,
        "qualiclip_jax": __version__,
        "clip": config,
        "prompts": [list(pair) for pair in model.prompts],
        "temperature": float(model.temperature),
        "preprocessing": {"mean": list(models.MEAN), "std": list(models.STD), "resize": None},
        "provenance": model.provenance if store == STORES[0] else model.provenance | {"stored": store},
        "scored": model.scored,
        **({} if model.bias is None else {"bias": float(model.bias)}),
        **({} if model.magnitude is None else {"magnitude": model.magnitude._asdict()}),
        "rating": None if model.rating is None else model.rating.to_dict(),
    }
    arrays = _on_host(arrays) if store == STORES[0] else jax.tree_util.tree_map_with_path(_halved, _on_host(arrays))
    items: dict[str, Any] = {"clip": arrays, "prompt_features": np.array(model.prompt_features)}
    if model.rating is not None and (rater := model.rating.rater) is not None:
        items["rater"], meta["rater"] = _items(rater, store)
        if rater.clip is model.clip:  # which is then written once
            del items["rater"]["clip"]
            meta["rater"]["clip"] = None
    return items, meta


def _halved(path: tuple[Any, ...], array: np.ndarray) -> np.ndarray:
    """An array in float16; vectors as they are, since BatchNorm's statistics may be of any size."""
    if array.ndim < 2:
        return array
    if not (np.abs(array) <= np.finfo(np.float16).max).all():
        name = "/".join(str(part.key) for part in path)
        raise UserError(f"{name} has values beyond float16: store the model as float32")
    return array.astype(np.float16)


def _on_host(tree: Any) -> Any:
    """Copies of the arrays: on a CPU `device_get` gives views, and the next step writes over a donated state."""
    return jax.tree.map(lambda x: np.array(x, copy=True), jax.device_get(tree))


def save_model(path: StrPath, model: Model, store: str = STORES[0]) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
      path: a directory that does not exist yet.
      model: what to write.
      store: "float32", or "float16" for half the size: arrays of two axes or more are rounded to 11 bits, which the
        provenance then tells. `load_model` gives float32 again, and the fingerprint of what is stored.

    Raises:
      UserError: if `path` exists, or cannot be written; `store` is unknown, or the model has values beyond float16.
    """
    if store not in STORES:
        raise UserError(f"store must be one of {', '.join(STORES)}, got {store!r:.60}")
    ocp = _orbax()
    path = Path(path).absolute()
    if path.exists():
        raise UserError(f"{path} exists already: choose another name, or remove it first")
    arrays, meta = _items(model, store)
    args = ocp.args.Composite(model=ocp.args.PyTreeSave(arrays), meta=ocp.args.JsonSave(meta))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _checkpointer(ocp.CompositeCheckpointHandler) as checkpointer:
            checkpointer.save(path, args=args)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def load_model(path: StrPath) -> Model:
    """Reads a checkpoint for inference.

    Args:
      path: a checkpoint, or the working directory of a training run (its best checkpoint, else its last).

    Raises:
      UserError: if there is none, if it is incomplete, or of another kind.
    """
    directory = find(path)
    meta = _read_meta(directory)
    missing = [name for name in ("_METADATA", "manifest.ocdbt", "d") if not (directory / "model" / name).exists()]
    if missing:
        raise UserError(f"{directory} is incomplete: model/{missing[0]} is missing: copy or convert it again")
    try:
        metas = {"": meta} | ({"rater/": meta["rater"]} if meta.get("rater") else {})
        skeletons = {at: Skeleton(models.CLIPConfig.from_dict(one["clip"])) for at, one in metas.items() if one["clip"]}
        facts = {at: _facts(one) for at, one in metas.items()}
        rating = models.Rating.from_dict(meta["rating"]) if meta.get("rating") else None
        described = {f"{at}{name}": shape for at, one in skeletons.items() for name, shape in one.shapes.items()}
        for at in metas:
            dim = skeletons.get(at, skeletons[""]).config.embed_dim
            described[f"{at}prompt_features"] = (len(facts[at]["prompts"]), 2, dim)
        stored = _metadata(directory / "model")
        check_shapes("model", described, {name: tuple(leaf.shape) for name, leaf in _by_path(stored).items()})
        arrays = _by_path(_restore_numpy(directory / "model", stored))
        clips = {at: one.filled({name: arrays[f"{at}{name}"] for name in one.shapes}) for at, one in skeletons.items()}
        found = {
            at: Model(clips.get(at, clips[""]), prompt_features=arrays[f"{at}prompt_features"], **facts[at])
            for at in metas
        }
        if rating is not None and "rater/" in found:
            rating = dataclasses.replace(rating, rater=found["rater/"])
        return dataclasses.replace(found[""], rating=rating)
    except UserError as error:
        raise UserError(f"{directory} does not fit its own description: {error}") from None
    except Exception as error:  # Orbax and TensorStore raise many kinds
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{directory} is incomplete or damaged ({first_line}): copy or convert it again") from None


def _facts(meta: dict[str, Any]) -> dict[str, Any]:
    """What a description says of a model, beside its CLIP and its rating."""
    return {
        "prompts": tuple((str(positive), str(negative)) for positive, negative in meta["prompts"]),
        "temperature": float(meta["temperature"]),
        "provenance": dict(meta.get("provenance", {})),
        "scored": int(meta.get("scored", 0)),
        "bias": None if meta.get("bias") is None else float(meta["bias"]),
        "magnitude": None if meta.get("magnitude") is None else quality.Magnitude(**meta["magnitude"]),
    }


def is_one(path: StrPath) -> bool:
    """Whether `path` is a directory laid out like what `load_model` reads; it may be damaged all the same."""
    return any((Path(path).expanduser() / name).is_dir() for name in ("meta", "model", "checkpoints"))


def find(path: StrPath) -> Path:
    """The checkpoint directory meant by `path`, see `load_model`."""
    path = Path(path).expanduser().absolute()
    if not path.exists():
        raise UserError(f"no checkpoint at {path}: no such directory")
    if not path.is_dir():
        raise UserError(
            f"{path} is a file: a checkpoint is a directory (make one with python -m qualiclip_jax.convert)"
        )
    if (path / "meta").is_dir() or (path / "model").is_dir():
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())
    if not steps:
        raise UserError(f"no checkpoint in {path}: it is neither a checkpoint nor a working directory that holds one")
    return folder / str(_best_step(folder, steps))


def _best_step(folder: Path, steps: list[int]) -> int:
    scored = [
        (meta["metrics"]["best"], step) for step in steps if (meta := _read_meta(folder / str(step))).get("metrics")
    ]
    return max(scored)[1] if scored else steps[-1]


def _read_meta(directory: Path) -> dict[str, Any]:
    try:
        if (directory / "meta" / "metadata").stat().st_size > MOST_META:
            raise UserError(f"{directory} describes itself in more than {MOST_META >> 20} MB")
        with _checkpointer(_orbax().JsonCheckpointHandler) as checkpointer:
            meta = checkpointer.restore(directory / "meta")
    except UserError:
        raise
    except Exception:
        raise UserError(f"{directory} is incomplete: its description (meta/) is missing or damaged") from None
    if not isinstance(meta, dict) or "clip" not in meta:
        raise UserError(f"{directory} is a checkpoint of another kind: it does not describe a QualiCLIP model")
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{directory} has the format {meta.get('format')}, this version reads {FORMAT}: update qualiclip_jax"
        )
    return meta


@functools.cache
@functools.cache
def _hush_late_reads() -> None:
    """Silences TensorStore, which prints a traceback for each array that it delivers after a read has failed."""
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            report(unraisable)

    sys.unraisablehook = hook


def _by_path(items: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a model, or what is known of them, by path: of the CLIP as in `Skeleton.shapes`."""
    found = by_path(items.get("clip", {})) | {k: leaf for k, leaf in items.items() if k not in ("clip", "rater")}
    return found | {f"rater/{name}": leaf for name, leaf in _by_path(items.get("rater", {})).items()} if items else {}


def _metadata(directory: Path) -> dict[str, Any]:
    """What is stored: a tree like that of the arrays, with their shapes; read without the arrays."""
    with _checkpointer(_orbax().PyTreeCheckpointHandler) as checkpointer:
        tree: dict[str, Any] = checkpointer.metadata(directory).item_metadata.tree
    return tree


def _restore_numpy(directory: Path, stored: dict[str, Any]) -> dict[str, Any]:
    """Reads a tree of arrays to host memory, whatever devices wrote it."""
    ocp = _orbax()
    _hush_late_reads()
    leaf = ocp.RestoreArgs(restore_type=np.ndarray)
    restore_args = jax.tree.map(lambda _: leaf, stored, is_leaf=lambda node: not isinstance(node, dict))
    with _checkpointer(ocp.PyTreeCheckpointHandler) as checkpointer:
        tree: dict[str, Any] = checkpointer.restore(directory, args=ocp.args.PyTreeRestore(restore_args=restore_args))
    return tree


class TrainingCheckpoints:
    """The checkpoints of a training run, by step: written in the background, the last ones and the best one kept.

    Args:
      directory: `<workdir>/checkpoints`.
      keep_last: how many of the latest to keep, beside the best.
    """

    def __init__(self, directory: StrPath, keep_last: int):
        ocp = _orbax()
        from orbax.checkpoint import checkpoint_managers

        keep = [
            checkpoint_managers.LatestN(keep_last),
            checkpoint_managers.BestN(get_metric_fn=_best_metric, n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
            best_fn=_best_metric,
            cleanup_tmp_directories=True,
            create=False,
            multiprocessing_options=_alone(),
        )
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """The last complete checkpoint, None if there is none."""
        step: int | None = self._manager.latest_step()
        return step

    def save(self, step: int, model: Model, training: Any, best: float | None) -> None:
        """Starts to write a checkpoint; returns as soon as the arrays are copied.

        Args:
          step: steps done.
          model: what to score with.
          training: pytree of everything else needed to go on.
          best: the metric that picks the best checkpoint, higher is better; None if not measured at this step.
        """
        ocp = _orbax()
        arrays, meta = _items(model)
        leaves = {f"{i:05d}": leaf for i, leaf in enumerate(_on_host(jax.tree.leaves(training)))}
        metrics = None if best is None else {"best": float(best)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.PyTreeSave(arrays),
                training=ocp.args.PyTreeSave(leaves),
                meta=ocp.args.JsonSave(meta | {"step": step, "metrics": metrics}),
            ),
            metrics=metrics,
        )

    def restore_training(self, step: int, like: Any) -> Any:
        """Reads what `save` got as `training`.

        Args:
          step: of a complete checkpoint.
          like: a pytree of the same structure and shapes.

        Raises:
          UserError: if the checkpoint is damaged, or holds another structure.
        """
        directory = self.directory / str(step)
        try:
            stored = _restore_numpy(directory / "training", _metadata(directory / "training"))
        except Exception:
            raise UserError(f"{directory} is incomplete or damaged: remove it to go on from an earlier one") from None
        leaves = [stored[name] for name in sorted(stored)]
        wanted, structure = jax.tree.flatten(like)
        if [np.shape(x) for x in leaves] != [np.shape(x) for x in wanted]:
            raise UserError(f"{directory} belongs to another model or optimizer: use a new --workdir, or --overwrite")
        return jax.tree.unflatten(structure, leaves)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          OSError or what else the background writing met.
        """
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then frees the threads."""
        self._manager.close()


def _best_metric(metrics: dict[str, float]) -> float:
    return metrics["best"]


def remove(directory: StrPath) -> None:
    """Removes all checkpoints of a run."""
    shutil.rmtree(directory, ignore_errors=True)
