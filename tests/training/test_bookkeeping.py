"""What a run writes down: evaluations and the steps they belong to, signals at odd moments, disks without room."""

import json
import shutil
import signal

import jax
import jax.numpy as jnp
import pytest

from qualiclip_jax import checkpoint, cli, storage, train
from qualiclip_jax.errors import UserError
from qualiclip_jax.training import build, evals, loop, metrics, parallel, signals, workdir
from tests.training.test_config import TINY


class Evaluator:
    """Measures the number of the step; remembers which it was asked for."""

    best = "synthetic"

    def __init__(self, *_):
        self.steps = []
        Evaluator.last = self

    def names(self):
        return ["synthetic"]

    def __call__(self, state):
        self.steps.append(int(state.step))
        return {"synthetic": -int(state.step) / 10}


@jax.jit
def count(state, batch):
    """In place of a training step, which takes long to compile."""
    names = ("loss", "consistency", "positive", "negative", "rank_accuracy")
    levels = {f"similarity_{name}": jnp.zeros(5) for name in ("positive", "negative")}
    return state.replace(step=state.step + 1), dict.fromkeys(names, jnp.ones(())) | levels


@pytest.fixture(scope="module")
def model():
    with jax.numpy_dtype_promotion("standard"):
        return build.build_model(config())


@pytest.fixture(autouse=True)
def _cheap(plain_runs, monkeypatch, model):
    monkeypatch.setattr(build, "build_model", lambda _: model)
    monkeypatch.setattr(parallel.Pmap, "compile", lambda *_: count)
    monkeypatch.setattr(evals, "Evaluator", Evaluator)


def config(*fields):
    return train.parse(["--config", TINY, "--config.eval.every=2", *(f"--config.{field}" for field in fields)])[0]


def steps_of(path):
    return [row["step"] for row in storage.read_jsonl(path)]


def test_a_stop_at_an_evaluation_loses_none_and_invents_none(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(signals.StopSignals, "asked", lambda self, step: "SIGTERM" if step == 2 else "")
        assert loop.train(config(), tmp_path).stopped_by == "SIGTERM"
    assert Evaluator.last.steps == [0]
    meta = checkpoint._read_meta(tmp_path / "checkpoints/2")
    assert meta["metrics"] is None  # step 2 was not measured
    assert "evaluation" not in meta["provenance"]
    assert loop.train(config(), tmp_path).evaluation == {"synthetic": -0.4}
    assert Evaluator.last.steps == [2, 4]
    assert loop.train(config(), tmp_path).evaluation == {"synthetic": -0.4}
    assert Evaluator.last.steps == []
    assert steps_of(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]  # an object a logged step, each with its loss
    assert all("loss" in row for row in storage.read_jsonl(tmp_path / "metrics.jsonl"))
    assert steps_of(tmp_path / "evaluations.jsonl") == [0, 2, 4]
    assert checkpoint._read_meta(tmp_path / "checkpoints/4")["metrics"] == {"best": 0.4}


def test_signals_count_from_the_first_checkpoint_to_the_last(tmp_path, monkeypatch):
    def terminate_and(function):
        def wrapped(*arguments):
            signal.raise_signal(signal.SIGTERM)
            return function(*arguments)

        return wrapped

    outside = []
    monkeypatch.setattr(checkpoint.TrainingCheckpoints, "wait", terminate_and(checkpoint.TrainingCheckpoints.wait))
    previous = signal.signal(signal.SIGTERM, lambda *_: outside.append("while the last checkpoint was written"))
    try:
        assert loop.train(config(), tmp_path / "one").stopped_by == ""
        monkeypatch.setattr(loop, "print_header", terminate_and(loop.print_header))
        early = loop.train(config(), tmp_path / "two")
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert outside == []
    assert (early.step, early.stopped_by) == (0, "SIGTERM")
    assert train._ending(early, "two") == "stopped by SIGTERM before the first step: nothing to save"


def test_the_second_ctrl_c_stops_at_once_and_the_next_run_goes_on(tmp_path, monkeypatch, capsys):
    advance = loop._Run.advance

    def advance_and_interrupt(run, step, *arguments):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return advance(run, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "advance", advance_and_interrupt)
        assert cli.run(lambda _: loop.train(config(), tmp_path).step, ()) == cli.INTERRUPTED
    message = "interrupted: at once; the same command goes on from the last checkpoint"
    assert capsys.readouterr().err.endswith(f"\n{message}\n")
    assert [path.name for path in (tmp_path / "checkpoints").glob("[0-9]*")] == ["2"]  # not saved again
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert loop.train(config(), tmp_path).step == 4
    assert Evaluator.last.steps == [4]  # it went on from step 2, which was measured


def test_one_run_at_a_time_in_a_directory(tmp_path):
    with workdir.lock(tmp_path / "run"), pytest.raises(UserError, match="run is being written by another process"):
        loop.train(config(), tmp_path / "run", overwrite=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--workdir .*file/run cannot be written: File exists"):
        loop.train(config(), tmp_path / "file" / "run")


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    size = 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 4 * size))
    with pytest.raises(UserError, match="0 MiB free, but 5 checkpoints need 0: .*keep_last"):
        workdir.prepare(tmp_path, config(), False, size)
    assert list(tmp_path.iterdir()) == []  # so that another keep_last is not another run's
    workdir.prepare(tmp_path, config(), False, 0)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/array").write_bytes(b"x" * size)
    workdir.prepare(tmp_path, config(), False, size)  # what is there already needs no room


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "files",
    [
        {"metrics.jsonl": "my notes"},
        {"checkpoints/best.pt": "weights"},
        {"config.json": '{"architectures": ["CLIPModel"]}', "model.safetensors": "weights"},
    ],
    ids=str,
)
def test_files_that_no_run_wrote_are_neither_used_nor_removed(files, overwrite, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="is there and not of a training run: choose another one"):
        workdir.prepare(tmp_path, config(), overwrite, 0)
    assert {name: (tmp_path / name).read_text() for name in files} == files


def test_metrics_on_a_full_disk_are_one_line(tmp_path):
    writer = metrics.MetricsWriter(tmp_path, 0, tensorboard=False)
    writer._files[metrics.STEPS].close()
    writer._files[metrics.STEPS] = storage.JsonLines("/dev/full")
    with pytest.raises(UserError, match="step 3: /dev/full cannot be written .No space left on device") as error:
        writer.write(3, {"loss": 1.0})
    writer.close()
    assert "\n" not in str(error.value)


def test_a_run_goes_on_to_more_steps_if_its_schedule_is_constant(tmp_path):
    constant = "optimizer.parameters=(('.*','constant',1.0),)"
    loop.train(config("steps=2", constant), tmp_path / "a")
    loop.train(config("steps=5", constant), tmp_path / "a")
    assert steps_of(tmp_path / "a" / "metrics.jsonl") == [1, 2, 3, 4, 5]
    assert (tmp_path / "a" / "checkpoints" / "5").is_dir()
    loop.train(config("steps=2"), tmp_path / "b")
    for directory, fields in ((tmp_path / "a", ("steps=4", constant)), (tmp_path / "b", ("steps=5",))):
        with pytest.raises(UserError, match=r"another config \(steps: "):
            loop.train(config(*fields), directory)


def test_a_run_of_a_version_without_a_field_goes_on(tmp_path):
    workdir.prepare(tmp_path, config(), False, 0)
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["degradations"]["composed"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    workdir.prepare(tmp_path, config("tensorboard=True"), False, 0)  # no other run
    fields["degradations"]["composed"] = 2
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="degradations.composed: 2 -> 1"):
        workdir.prepare(tmp_path, config(), False, 0)
    earlier = {"ratings": {"method": "adapter", "rank": 4, "source": "x"}, "optimizer": {"parameters": []}}
    for damaged in ([], fields | {"steps": "many"}, fields | earlier):
        (tmp_path / "config.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match="config.json is damaged"):
            workdir.prepare(tmp_path, config(), False, 0)
