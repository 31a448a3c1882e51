"""The training loop: evaluate and save the old state, next batch, step, log."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from qualiclip_jax import checkpoint, models, storage
from qualiclip_jax.data import pristine, rated
from qualiclip_jax.data.rated import RatedSet
from qualiclip_jax.data.sources import RatedSource, Source
from qualiclip_jax.errors import UserError
from qualiclip_jax.progress import Progress, rate
from qualiclip_jax.training import build, checks, evals, metrics, optimizer, parallel, pictures, probe, ratings, workdir
from qualiclip_jax.training.signals import StopSignals
from qualiclip_jax.training.speedometer import Speedometer
from qualiclip_jax.training.state import Recipe, TrainState, create_state
from qualiclip_jax.training.step import degrade_batch, describe, train_step


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      step: steps done.
      stopped_by: "" if all steps are done, else the name of the signal, "SIGINT" or "SIGTERM".
      evaluation: the last evaluation's metrics.
      photos: how many photos this process `tried`, and found `corrupt`, `enlarged` or `skipped` as too small.
    """

    step: int
    stopped_by: str
    evaluation: dict[str, float]
    photos: dict[str, int]


def train(
    config: ConfigDict, directory: str | Path, overwrite: bool = False, rated_set: RatedSet | None = None
) -> Result:
    """Trains, or goes on from the last checkpoint in `directory`.

    Args:
      config: see `training.config.default_config`.
      directory: the working directory; gets what `docs/training.md` lists, e.g. `metrics.jsonl` and `checkpoints/`.
      overwrite: remove an earlier run there first.
      rated_set: what `config.ratings.source` means, if it is loaded already.

    Raises:
      UserError: if a field, the photos, the weights or the directory are not usable, before anything is trained where
        that is possible; if another process trains in the directory; if a metric is not finite.
    """
    directory = Path(directory).expanduser().absolute()
    checks.check(config)
    parallel.check_batch(config.batch_size, config.optimizer.accumulate)
    spread = parallel.spread(config)
    model = build.build_model(config)
    source, validation = _images(config, rated_set)
    pristine.require_large_enough(source, config.data.crop_size)
    steps = math.ceil(config.epochs * len(source) / config.batch_size) if config.epochs else config.steps
    recipe, params, batch_stats = build.build_recipe(config, model, steps)
    state = jax.device_get(create_state(params, batch_stats, recipe))  # no device may have room for all of it
    evaluator = evals.Evaluator(config, recipe, model, validation)
    saved = (state.replace(teacher=None), params, batch_stats)  # to go on, and to score with
    saved_bytes = sum(x.nbytes for x in jax.tree.leaves(saved))
    del params, batch_stats, saved
    run = _Run(config, directory, model, recipe, evaluator, steps, spread)
    with contextlib.ExitStack() as held, StopSignals() as stop:  # until the last checkpoint is written
        parallel.from_primary(lambda: held.enter_context(workdir.lock(directory)))
        parallel.from_primary(lambda: workdir.prepare(directory, config, overwrite, saved_bytes))
        held.callback(run.close)
        state = run.restore_or_begin(state)
        print_header(config, directory, source, state, steps)
        if config.probe.images and not state.step:
            state = _with_probe(config, directory, model, recipe, source, stop)
        batches = held.enter_context(contextlib.closing(_open_batches(config, source, int(state.step))))
        nnx.update(model.clip, jax.device_get(nnx.state(model.clip)))  # off the devices, whose memory the run needs
        start, state = int(state.step), spread.put_state(state)
        return run.loop(start, state, batches, stop)


def _images(config: ConfigDict, rated_set: RatedSet | None) -> tuple[Source, RatedSet | None]:
    """What to train on; and with ratings, the images that pick the best checkpoint."""
    if not config.ratings.source:
        return pristine.open_source(config.data.source), None
    whole = rated.load(config.ratings.source) if rated_set is None else rated_set
    train, validation = ratings.divided(whole, config.seed)
    return ratings.source(whole, train), whole.part(validation)


def _with_probe(
    config: ConfigDict,
    directory: Path,
    model: models.Model,
    recipe: Recipe,
    source: Source,
    stop: StopSignals,
) -> TrainState:
    """Returns the state that training starts from, after the projection was fitted by the primary process."""

    def fit() -> tuple[Any, Any]:
        count = -(-config.probe.images // config.batch_size)
        with Progress(count, "probing", "batch") as progress:
            probe.fit(
                model.clip,
                recipe,
                lambda step: _open_batches(config, source, step, alone=True),
                count=count,
                ridge=config.probe.ridge,
                tones=config.probe.tones,
                path=directory / "probe.npz",
                advance=progress.advance,
                stopping=stop.received,
            )
        return jax.device_get(nnx.split(build.build_trained(config, model), nnx.Param, nnx.BatchStat)[1:])

    return create_state(*parallel.from_primary(fit), recipe)


def _open_batches(config: ConfigDict, source: Source, step: int, alone: bool = False) -> pristine.CropPairs:
    """Opens this process's part of the batches, from a step on; all of them if it works `alone`."""
    return pristine.crop_pairs(
        source,
        batch_size=config.batch_size,
        crop_size=config.data.crop_size,
        seed=config.seed,
        start_step=step,
        process_index=0 if alone else jax.process_index(),
        process_count=1 if alone else jax.process_count(),
        min_overlap=config.data.min_overlap,
        scale_range=tuple(config.data.scale_range),
        short_side=tuple(config.data.short_side),
        flip=config.data.flip,
        detail=config.data.detail,
        small=config.data.small_images,
        values=source.values if isinstance(source, RatedSource) else None,
        threads=config.data.threads or None,
        cache_mb=config.data.cache_mb,
        warn=lambda line: print(line, file=sys.stderr, flush=True),
    )


class _Run:
    """The parts of a run that stay the same from step to step, and its bookkeeping."""

    def __init__(
        self,
        config: ConfigDict,
        directory: Path,
        model: models.Model,
        recipe: Recipe,
        evaluator: evals.Evaluator,
        steps: int,
        spread: parallel.Spread,
    ):
        self.config, self.directory, self.model, self.recipe = config, directory, model, recipe
        self.evaluator, self.steps, self.spread = evaluator, steps, spread
        self.speed = Speedometer(config.batch_size, config.model.compute_dtype)
        self.checkpoints: checkpoint.TrainingCheckpoints | None = None  # on the primary process alone
        self.writer: metrics.MetricsWriter | None = None  # likewise
        self.pending: list[dict[str, Any]] = []  # metrics of the steps since the last flush, on the device
        self.evaluation: dict[str, float] = {}
        self.evaluated_step = self.saved_step = -1

    def restore_or_begin(self, state: TrainState) -> TrainState:
        """Returns the state of the last complete checkpoint, else the given one, which is kept as `initial`."""
        opened = parallel.from_primary(lambda: self._open(state.replace(teacher=None)))
        restored, self.saved_step, self.evaluated_step, self.evaluation = opened
        return state if restored is None else restored.replace(teacher=state.teacher)

    def _open(self, like: TrainState) -> tuple[TrainState | None, int, int, dict[str, float]]:
        """Opens the files of the run.

        Returns:
          (state of the last checkpoint, None if there is none; its step; the step of the last evaluation, its values);
          a step is -1 if there is none.
        """
        folder = self.directory / "checkpoints"
        if not (folder / checkpoint.INITIAL).exists():  # before the manager begins to clear temporary directories away
            checkpoint.save_model(folder / checkpoint.INITIAL, self.model)
        self.checkpoints = checkpoint.TrainingCheckpoints(folder, self.config.checkpoint.keep_last)
        step = self.checkpoints.latest_step()
        state = None if step is None else self.checkpoints.restore_training(step, like)
        last_step = 0 if state is None else int(state.step)
        self.writer = metrics.MetricsWriter(self.directory, last_step, self.config.tensorboard)
        return state, -1 if step is None else step, *_last_evaluation(self.directory)

    def loop(self, step: int, state: TrainState, batches: pristine.CropPairs, stop: StopSignals) -> Result:
        """Runs from `step`, whose state is on the devices, to the last one, or until a signal asks to stop."""
        compiled = self.spread.compile(train_step, self.recipe)
        self.speed.restart(step)
        bar = Progress(self.steps, "training", "step", done=step, show=parallel.is_primary() and self.steps > 0)
        with bar as progress:
            while True:
                finished, stopping = step >= self.steps, stop.asked(step)
                if not stopping and (step == 0 or finished or self._due(step, self.config.eval.every)):
                    self.evaluate(step, state, progress)
                if finished or stopping or self._due(step, self.config.checkpoint.every):
                    with self.speed.paused():
                        self.save(step, state)
                if finished or stopping:
                    break
                state = self.advance(step, state, batches, compiled)
                step += 1
                last_or_due = step == self.steps or self._due(step, self.config.log_every)
                progress.advance(1, self.log(step) if last_or_due else "")
        parallel.from_primary(self._finish_writing)
        if parallel.is_primary():
            self.draw_curves()
        return Result(step, "" if finished else stopping, self.evaluation, batches.counters)

    def advance(
        self, step: int, state: TrainState, batches: pristine.CropPairs, compiled: Callable[..., Any]
    ) -> TrainState:
        """Takes the step after `step`; its metrics stay on the device until the next flush."""
        with self.speed.waiting_for_data():
            batch = next(batches)
        if step == 0 and self.recipe.ratings is None:
            self.draw_examples(batch)
        on_devices = self.spread.put_batch(batch)
        if self.speed.flops_per_step is None:
            self.speed.estimate_flops(compiled, state, on_devices)
        with jax.transfer_guard("disallow"):
            state, step_metrics = compiled(state, on_devices)
        self.pending.append(step_metrics)
        return state

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and step > 0 and step % every == 0

    def flush(self, step: int) -> list[dict[str, np.ndarray]]:
        """Fetches the metrics of the steps since the last flush, and stops the run if one is not finite."""
        rows = jax.device_get(self.pending)
        self.pending = []
        metrics.check_finite(step - len(rows) + 1, rows)
        return rows

    def log(self, step: int) -> str:
        """Writes the metrics of a step; returns the line that stands beside the bar."""
        row = self.flush(step)[-1] | self.speed.read(step) | metrics.device_memory()
        if self.writer is not None:
            self.writer.write(step, row)
        speed = rate(1, 1 / float(row["images_per_second"]), "image")
        if self.recipe.ratings is not None:
            parts = (
                f"{name} {row[name]:.4f}" for name in (*self.recipe.ratings.weights, "degradations") if name in row
            )
            return f"loss {row['loss']:.4f} ({' '.join(parts)})  {speed}"
        taught = f"  agreement {row['agreement']:.3f}" if "agreement" in row else ""
        return (
            f"loss {row['loss']:.3f} (cons {row['consistency']:.3f} pos {row['positive']:.3f} "
            f"neg {row['negative']:.3f})  rank {row['rank_accuracy']:.3f}{taught}  {speed}"
        )

    def evaluate(self, step: int, state: TrainState, progress: Progress) -> None:
        """Measures the state, unless this very step was measured before a restart."""
        if not self.evaluator.names() or self.evaluated_step == step:
            return
        with self.speed.paused():
            fetched = self.spread.fetch(state.replace(opt_state=None))
            self.evaluation = parallel.from_primary(lambda: self.evaluator(fetched))
        self.evaluated_step = step
        if self.writer is not None:
            self.writer.write_evaluation(step, self.evaluation)
            progress.write(
                f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in self.evaluation.items())
            )

    def save(self, step: int, state: TrainState) -> None:
        """Writes a checkpoint in the background, unless this step has one already."""
        if step == self.saved_step or (step == 0 and self.steps > 0):
            return
        self.flush_before_save(step)
        fetched = self.spread.fetch(state.replace(teacher=None))
        parallel.from_primary(lambda: self._write(step, fetched))
        self.saved_step = step

    def _write(self, step: int, state: TrainState) -> None:
        measured = self.evaluation if self.evaluated_step == step else {}
        facts = {"step": step} | ({"evaluation": measured} if measured else {})
        model = build.scoring_model(self.recipe, state, self.model, facts)
        best = evals.best_metric(self.evaluator.best, measured)
        try:
            self._checkpoints().save(step, model, state, best)
        except OSError as error:
            raise self._not_saved(step, error) from None

    def _checkpoints(self) -> checkpoint.TrainingCheckpoints:
        assert self.checkpoints is not None, "only the primary process writes checkpoints"
        return self.checkpoints

    def flush_before_save(self, step: int) -> None:
        """Makes sure that nothing that is not finite is ever saved."""
        if self.pending:
            self.pending = [jax.device_get(row) for row in self.pending]
            metrics.check_finite(step - len(self.pending) + 1, self.pending)

    def _finish_writing(self) -> None:
        try:
            self._checkpoints().wait()
        except Exception as error:  # whatever the background thread met
            raise self._not_saved(self.saved_step, error) from None

    def _not_saved(self, step: int, error: Exception) -> UserError:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        return UserError(
            f"the checkpoint of step {step} could not be written to {self._checkpoints().directory} ({reason}); "
            "earlier ones are whole: make room and run the same command again"
        )

    def draw_examples(self, batch: dict[str, np.ndarray]) -> None:
        """Draws the degradations of the first images, for an early look."""
        if not parallel.is_primary():
            return
        few = {name: x[:4] for name, x in batch.items()}
        degrade = jax.jit(lambda crops, example: degrade_batch(crops, example, self.recipe))
        degraded, severities = jax.device_get(degrade(few["crops"], few["example"]))
        titles = describe(few["example"], severities, self.recipe)
        pictures.save_degraded_examples(self.directory / "degradations.png", few["crops"], degraded, titles)

    def draw_curves(self) -> None:
        """Draws the whole run, parts before a restart included."""
        rows = (storage.read_jsonl(self.directory / name) for name in (metrics.STEPS, metrics.EVALUATIONS))
        pictures.save_curves(self.directory / "curves.png", *rows)

    def close(self) -> None:
        """Ends the background work."""
        if self.checkpoints is not None:
            self.checkpoints.close()
        if self.writer is not None:
            self.writer.close()


def _last_evaluation(directory: Path) -> tuple[int, dict[str, float]]:
    """Returns the step of the last evaluation (-1 if there is none) and what was measured; NaN what is not defined."""
    rows = storage.read_jsonl(directory / metrics.EVALUATIONS)
    if not rows:
        return -1, {}
    step = rows[-1].pop("step")
    return step, {name: math.nan if value is None else value for name, value in rows[-1].items()}


def _count(params: Any) -> str:
    return f"{sum(x.size for x in jax.tree.leaves(params)) / 1e6:.2f} M"


def print_header(config: ConfigDict, directory: Path, source: Source, state: TrainState, steps: int) -> None:
    """Says what is about to happen, on the primary process."""
    if not parallel.is_primary():
        return
    devices = jax.devices()
    trained = f"{_count(state.params)} parameters"
    if config.model.adapter_rank:
        trained += f", adapters of {_count([state.params[name] for name in ('down', 'up')])}"
    size = config.data.crop_size
    crops = config.batch_size * 2 * config.degradations.levels
    made = f"{config.batch_size} images x 2 crops x {config.degradations.levels} levels = {crops} crops"
    if config.ratings.source:
        made = f"{config.batch_size} rated crops"
    begin = f"going on from step {int(state.step)}" if int(state.step) else "from the start"
    print(
        f"devices    {len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)\n"
        f"model      {config.model.weights}, {trained}, {config.model.compute_dtype}\n"
        f"data       {source.describe()}\n"
        f"step       {made} of {size} x {size}\n"
        f"run        {steps} steps, {begin}; {directory}",
        flush=True,
    )
    if line := optimizer.warning(config, steps):
        print(line, file=sys.stderr, flush=True)
