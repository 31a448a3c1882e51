"""The training loop: evaluate and save the old state, next batch, step, log."""

import dataclasses
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from qualiclip_jax import checkpoint, degradations, storage
from qualiclip_jax.data import pristine
from qualiclip_jax.errors import UserError
from qualiclip_jax.progress import Progress
from qualiclip_jax.training import build, evals, flops, metrics, parallel, pictures, workdir
from qualiclip_jax.training import config as config_lib
from qualiclip_jax.training.state import Recipe, TrainState, create_state
from qualiclip_jax.training.step import degrade_batch, draw_types, train_step


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


def train(config: ConfigDict, directory: str | Path, overwrite: bool = False) -> Result:
    """Trains, or goes on from the last checkpoint in `directory`.

    Args:
      config: see `training.config.default_config`.
      directory: the working directory; gets what `docs/training.md` lists, e.g. `metrics.jsonl` and `checkpoints/`.
      overwrite: remove an earlier run there first.

    Raises:
      UserError: for whatever the user can mend, before anything is trained where that is possible; and when a metric is
        not finite.
    """
    directory = Path(directory).expanduser().absolute()
    config_lib.check(config)
    parallel.check_batch(config.batch_size, config.optimizer.accumulate)
    model = build.build_model(config)
    source = pristine.open_source(config.data.source)
    pristine.require_large_enough(source, config.data.crop_size)
    steps = math.ceil(config.epochs * len(source) / config.batch_size) if config.epochs else config.steps
    recipe, params, batch_stats = build.build_recipe(config, model, steps)
    state = create_state(params, batch_stats, recipe)
    evaluator = evals.Evaluator(config, recipe, model)
    if config.eval.best not in evaluator.names() and evaluator.names():
        raise UserError(f"config.eval.best is {config.eval.best!r}, but measured are {', '.join(evaluator.names())}")
    saved_bytes = sum(x.nbytes for x in jax.tree.leaves((state, params, batch_stats)))  # to go on, and to score with
    parallel.from_primary(lambda: workdir.prepare(directory, config, overwrite, saved_bytes))
    run = _Run(config, directory, model, recipe, evaluator, steps)
    with _StopSignals() as stop:  # until the last checkpoint is written
        state = run.restore_or_begin(state)
        print_header(config, directory, source, state, steps)
        batches = _open_batches(config, source, int(state.step))
        try:
            return run.loop(state, batches, stop)
        finally:
            batches.close()
            run.close()


def _open_batches(config: ConfigDict, source: pristine.Source, step: int) -> pristine.CropPairs:
    """This process's part of the batches from a step on."""
    return pristine.crop_pairs(
        source,
        batch_size=config.batch_size,
        crop_size=config.data.crop_size,
        seed=config.seed,
        start_step=step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        min_overlap=config.data.min_overlap,
        scale_range=tuple(config.data.scale_range),
        flip=config.data.flip,
        small=config.data.small_images,
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
        model: checkpoint.Model,
        recipe: Recipe,
        evaluator: evals.Evaluator,
        steps: int,
    ):
        self.config, self.directory, self.model, self.recipe = config, directory, model, recipe
        self.evaluator, self.steps = evaluator, steps
        self.checkpoints: checkpoint.TrainingCheckpoints | None = None  # on the primary process alone
        self.writer: metrics.MetricsWriter | None = None  # likewise
        self.pending: list[dict[str, jax.Array]] = []  # metrics of the steps since the last flush, on the device
        self.evaluation: dict[str, float] = {}
        self.evaluated_step = self.saved_step = -1

    def restore_or_begin(self, state: TrainState) -> TrainState:
        """The state of the last complete checkpoint; the given one, kept as `initial` for later comparison, if none."""
        opened = parallel.from_primary(lambda: self._open(state))
        state, self.saved_step, self.evaluated_step, self.evaluation = opened
        return state

    def _open(self, state: TrainState) -> tuple[TrainState, int, int, dict[str, float]]:
        """Opens the files of the run; gives its state, the steps of its last checkpoint and evaluation, and the latter.

        A step is -1 if there is none.
        """
        folder = self.directory / "checkpoints"
        if not (folder / checkpoint.INITIAL).exists():  # before the manager begins to clear temporary directories away
            checkpoint.save_model(folder / checkpoint.INITIAL, self.model)
        self.checkpoints = checkpoint.TrainingCheckpoints(folder, self.config.checkpoint.keep_last)
        step = self.checkpoints.latest_step()
        if step is not None:
            state = self.checkpoints.restore_training(step, state)
        self.writer = metrics.MetricsWriter(self.directory, int(state.step))
        return state, -1 if step is None else step, *_last_evaluation(self.directory)

    def loop(self, state: TrainState, batches, stop: "_StopSignals") -> Result:
        """Runs to the last step, or until a signal asks to stop."""
        step, state = int(state.step), parallel.replicate(state)
        compiled = parallel.parallel_step(train_step, self.recipe)
        speed = _Speedometer(self.config, step)
        bar = Progress(self.steps, "training", "step", done=step, show=parallel.is_primary())
        with bar as progress:
            while True:
                finished = step >= self.steps
                stopping = stop.asked(step)
                if not stopping and (finished or self._due(step, self.config.eval.every) or step == 0):
                    self.evaluate(step, state, progress, speed)
                if finished or stopping or self._due(step, self.config.checkpoint.every):
                    with speed.paused():
                        self.save(step, state)
                if finished or stopping:
                    break
                with speed.waiting_for_data():
                    batch = next(batches)
                if step == 0:
                    self.draw_examples(batch)
                batch = parallel.put_batch(batch)
                if speed.flops_per_step is None:
                    speed.estimate_flops(compiled, state, batch)
                with jax.transfer_guard("disallow"):
                    state, step_metrics = compiled(state, batch)
                step += 1
                self.pending.append(step_metrics)
                note = ""
                if self._due(step, self.config.log_every) or step == self.steps:
                    note = self.log(step, speed)
                progress.advance(1, note)
        parallel.from_primary(self._finish_writing)
        if parallel.is_primary():
            pictures.save_curves(
                self.directory / "curves.png",
                storage.read_jsonl(self.directory / metrics.STEPS),
                storage.read_jsonl(self.directory / metrics.EVALUATIONS),
            )
        return Result(step, "" if finished else stopping, self.evaluation, batches.counters)

    def _due(self, step: int, every: int) -> bool:
        return every > 0 and step > 0 and step % every == 0

    def flush(self, step: int) -> list[dict[str, np.ndarray]]:
        """Fetches the metrics of the steps since the last flush, and stops the run if one is not finite."""
        rows = jax.device_get(self.pending)
        self.pending = []
        metrics.check_finite(step - len(rows) + 1, rows)
        return rows

    def log(self, step: int, speed: "_Speedometer") -> str:
        """Writes the metrics of a step; returns the line that stands beside the bar."""
        row = self.flush(step)[-1] | speed.read(step) | metrics.device_memory()
        if self.writer is not None:
            self.writer.write(step, row)
        return (
            f"loss {row['loss']:.3f} (cons {row['consistency']:.3f} pos {row['positive']:.3f} "
            f"neg {row['negative']:.3f})  rank {row['rank_accuracy']:.3f}  {row['images_per_second']:.1f} images/s"
        )

    def evaluate(self, step: int, state: TrainState, progress: Progress, speed: "_Speedometer") -> None:
        """Measures the state, unless this very step was measured before a restart."""
        if not self.evaluator.names() or self.evaluated_step == step:
            return
        with speed.paused():
            self.evaluation = parallel.from_primary(lambda: self.evaluator(state))
        self.evaluated_step = step
        if self.writer is not None:
            self.writer.write_evaluation(step, self.evaluation)
            progress.write(
                f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in self.evaluation.items())
            )

    def save(self, step: int, state: TrainState) -> None:
        """Writes a checkpoint in the background, unless this step has one already."""
        if step == self.saved_step or step == 0:
            return
        self.flush_before_save(step)
        parallel.from_primary(lambda: self._write(step, state))
        self.saved_step = step

    def _write(self, step: int, state: TrainState) -> None:
        measured = self.evaluation if self.evaluated_step == step else {}
        facts = {"step": step} | ({"evaluation": measured} if measured else {})
        model = build.scoring_model(self.recipe, state, self.model, facts)
        best = evals.best_metric(self.config, measured)
        try:
            self.checkpoints.save(step, model, state, best)
        except OSError as error:
            raise self._not_saved(step, error) from None

    def flush_before_save(self, step: int) -> None:
        """Makes sure that nothing that is not finite is ever saved."""
        if self.pending:
            self.pending = [jax.device_get(row) for row in self.pending]
            metrics.check_finite(step - len(self.pending) + 1, self.pending)

    def _finish_writing(self) -> None:
        try:
            self.checkpoints.wait()
        except Exception as error:  # whatever the background thread met
            raise self._not_saved(self.saved_step, error) from None

    def _not_saved(self, step: int, error: Exception) -> UserError:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        return UserError(
            f"the checkpoint of step {step} could not be written to {self.checkpoints.directory} ({reason}); "
            "earlier ones are whole: make room and run the same command again"
        )

    def draw_examples(self, batch: dict[str, np.ndarray]) -> None:
        """An early look at the degradations of the first images of the first batch."""
        if not parallel.is_primary():
            return
        few = {name: x[:4] for name, x in batch.items()}
        degraded = jax.jit(lambda crops, example: degrade_batch(crops, example, self.recipe))(
            few["crops"], few["example"]
        )
        types = np.asarray(draw_types(few["example"], self.recipe)).reshape(len(few["example"]), -1)
        titles = ["\n+ ".join(degradations.TYPES[t] for t in row if t >= 0) for row in types]
        pictures.save_degraded_examples(self.directory / "degradations.png", few["crops"], np.asarray(degraded), titles)

    def close(self) -> None:
        """Ends the background work."""
        if self.checkpoints is not None:
            self.checkpoints.close()
        if self.writer is not None:
            self.writer.close()


class _StopSignals:
    """While entered, the first SIGTERM or Ctrl-C only asks the loop to save and stop; a second Ctrl-C stops at once.

    Several processes must stop at the same step: there JAX's preemption service takes SIGTERM, also for Ctrl-C.
    """

    def __init__(self):
        self._alone = parallel.is_alone()
        self._name = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: Any) -> None:
        if self._name and number == signal.SIGINT:
            raise KeyboardInterrupt("at once; the same command goes on from the last checkpoint")
        self._name = signal.Signals(number).name
        if not self._alone:
            signal.raise_signal(signal.SIGTERM)

    def asked(self, step: int) -> str:
        """The name of the signal that asks to stop at this step, else ""; to be called at every step."""
        if self._alone:
            return self._name
        return (self._name or "SIGTERM") if parallel.preempted(step) else ""

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class _Speedometer:
    """Images per second, step time and time waiting for data since the last reading, pauses left out."""

    def __init__(self, config: ConfigDict, step: int):
        self._batch_size = config.batch_size
        self._dtype = config.model.compute_dtype
        self.flops_per_step: float | None = None
        self._peak = 0.0
        self._restart(step)

    def _restart(self, step: int) -> None:
        self._step, self._start, self._waited, self._excluded = step, time.perf_counter(), 0.0, 0.0

    def waiting_for_data(self) -> "_Stopwatch":
        """Counts the time inside as waiting."""
        return _Stopwatch(lambda seconds: setattr(self, "_waited", self._waited + seconds))

    def paused(self) -> "_Stopwatch":
        """Leaves the time inside out (evaluation, checkpoints)."""
        return _Stopwatch(lambda seconds: setattr(self, "_excluded", self._excluded + seconds))

    def estimate_flops(self, compiled, state, batch) -> None:
        """Counts the operations of a step, and measures what the device can do."""
        with self.paused():
            self.flops_per_step = flops.count(compiled, state, batch)
            self._peak = flops.matmul_rate(self._dtype)

    def read(self, step: int) -> dict[str, float]:
        """The figures since the last reading."""
        steps = step - self._step
        seconds = max(time.perf_counter() - self._start - self._excluded, 1e-9)
        values = {
            "images_per_second": steps * self._batch_size / seconds,
            "step_seconds": seconds / steps,
            "data_wait_seconds": self._waited / steps,
        }
        if self.flops_per_step:
            values["flops_utilisation"] = self.flops_per_step * steps / seconds / self._peak
        self._restart(step)
        return values


class _Stopwatch:
    def __init__(self, report):
        self._report = report

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exception: Any) -> None:
        self._report(time.perf_counter() - self._start)


def _last_evaluation(directory: Path) -> tuple[int, dict[str, float]]:
    """Its step (-1: none) and what was measured; NaN what was not defined."""
    rows = storage.read_jsonl(directory / metrics.EVALUATIONS)
    if not rows:
        return -1, {}
    step = rows[-1].pop("step")
    return step, {name: math.nan if value is None else value for name, value in rows[-1].items()}


def print_header(config: ConfigDict, directory: Path, source, state: TrainState, steps: int) -> None:
    """Says what is about to happen, on the primary process."""
    if not parallel.is_primary():
        return
    devices = jax.devices()
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    crops = config.batch_size * 2 * config.degradations.levels
    begin = f"going on from step {int(state.step)}" if int(state.step) else "from the start"
    print(
        f"devices    {len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)\n"
        f"model      {config.model.weights}, {parameters / 1e6:.2f} M parameters, {config.model.compute_dtype}\n"
        f"data       {source.describe()}\n"
        f"step       {config.batch_size} images x 2 crops x {config.degradations.levels} levels = {crops} crops "
        f"of {config.data.crop_size} x {config.data.crop_size}\n"
        f"run        {steps} steps, {begin}; {directory}",
        flush=True,
    )
