"""The preparation itself: done twice, killed half-way, in order whatever the size, without TensorFlow."""

import csv
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qualiclip_jax.data import rated, store
from qualiclip_jax.data.__main__ import main
from qualiclip_jax.data.builders import IMAGE_SETS
from qualiclip_jax.data.prepare import prepare
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError
from tests.data.builders.miniatures import agiqa3k, picture, text

PREPARE = """
import dataclasses, sys
from qualiclip_jax import cli
from qualiclip_jax.data.__main__ import main
from qualiclip_jax.data.builders import IMAGE_SETS
IMAGE_SETS["agiqa3k"] = dataclasses.replace(IMAGE_SETS["agiqa3k"], images=3)
sys.exit(cli.run(main, ["prepare", "agiqa3k", "--manual-dir", sys.argv[1], "--data-dir", sys.argv[2]]))
"""
SLOW = (
    """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits "ignore"
import qualiclip_jax.data.builders.builder as builder
decode = builder.decode_image
def slow(*arguments):
    pathlib.Path(sys.argv[2] + ".reading").touch()
    time.sleep(2)
    return decode(*arguments)
builder.decode_image = slow
"""
    + PREPARE
)


@pytest.fixture
def three(tmp_path, monkeypatch):
    """AGIQA-3K in miniature, known to the commands as if three images were all there are."""
    records = agiqa3k(tmp_path / "manual")
    monkeypatch.setitem(IMAGE_SETS, "agiqa3k", dataclasses.replace(IMAGE_SETS["agiqa3k"], images=3))
    return records


def contents(folder):
    """Path, size and time of change of all files below a folder."""
    return sorted((p, p.stat().st_size, p.stat().st_mtime_ns) for p in Path(folder).rglob("*") if p.is_file())


def run(*arguments):
    return main([str(a) for a in arguments])


def test_prepare_list_and_prepare_again(three, tmp_path, capsys):
    where = ("--data-dir", tmp_path / "data")
    assert not run("list", *where)
    table = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(table) == {"name", *IMAGE_SETS}
    assert "10,073" in table["koniq10k"]
    assert "DMOS" in table["csiq"]
    assert " no " in table["agiqa3k"]
    assert table["agiqa3k"].endswith("real files  MIT")
    assert "miniatures" in table["koniq10k"]

    assert run("prepare", "agiqa3k", "--manual-dir", tmp_path / "manual", *where) == 0
    assert "agiqa3k is prepared, 3 images" in capsys.readouterr().out
    before = contents(tmp_path / "data")
    shutil.rmtree(tmp_path / "manual")
    assert run("prepare", "agiqa3k", *where) == 0
    assert "prepared already, 3 images" in capsys.readouterr().out
    assert contents(tmp_path / "data") == before
    run("list", *where)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("agiqa3k")]
    assert " yes " in line


def test_incomplete_set_is_done_in_part_and_says_so(three, tmp_path, capsys):
    (tmp_path / "manual/file" / three[0].image).unlink()
    arguments = ("prepare", "agiqa3k", "--manual-dir", tmp_path / "manual", "--data-dir", tmp_path / "data")
    with pytest.raises(UserError, match="--allow-missing"):
        run(*arguments)
    assert run(*arguments, "--allow-missing") == 2
    out, err = capsys.readouterr()
    assert "2 of 3 images" in out
    assert f"left out: no image {three[0].image}" in err
    run("list", "--data-dir", tmp_path / "data")
    assert "2 of 3" in capsys.readouterr().out
    assert run(*arguments) == 0
    assert "prepared already, 2 of 3 images" in capsys.readouterr().out


def test_default_folder_is_that_of_tfds(three, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "there"))
    run("prepare", "agiqa3k", "--manual-dir", tmp_path / "manual")
    assert (tmp_path / "there/agiqa3k/1.0.0/dataset_info.json").is_file()
    assert len(rated.load("agiqa3k")) == 3
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert store.data_dir() == tmp_path / "home/tensorflow_datasets"


def test_errors_are_one_line_that_says_what_to_do(three, tmp_path):
    data = ("--data-dir", tmp_path / "data")
    for arguments, message in [
        (
            ("prepare", "agiqa3k"),
            r"download .* from https://github.com/lcysyzxdxc/AGIQA-3k-Database \(MIT\).*--manual-dir",
        ),
        (("prepare", "agiqa3k", "--manual-dir", tmp_path / "no"), "no: no such folder. AGIQA-3K: download"),
        (("prepare", "agiqa4k", "--manual-dir", tmp_path), "no image set 'agiqa4k'; known are kadis700k, koniq10k"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            run(*arguments, *data)
        assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no data.csv in .*empty"):
        run("prepare", "agiqa3k", "--manual-dir", tmp_path / "empty", *data)
    with pytest.raises(
        UserError, match="agiqa3k is not prepared in .*data: python -m qualiclip_jax.data prepare agiqa3k"
    ):
        rated.load("agiqa3k", tmp_path / "data")
    with pytest.raises(UserError, match="no rated image set 'agiqa4k'"):
        rated.load("agiqa4k", tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file.*cannot be written"):
        run("prepare", "agiqa3k", "--manual-dir", tmp_path / "manual", "--data-dir", tmp_path / "file")


@pytest.mark.parametrize("limit", [1000, 5000])  # bytes a file may have: too few for the description, for the records
def test_full_disk_is_one_line_and_leaves_nothing(limit, three, tmp_path):
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    process = subprocess.run(
        [sys.executable, "-c", limited + PREPARE, str(tmp_path / "manual"), str(tmp_path / "data")],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert re.search(r"^error: .*agiqa3k: cannot be written \(.*File too large.*\)$", process.stderr.splitlines()[-1])
    assert "Traceback" not in process.stderr
    assert [p.name for p in (tmp_path / "data/agiqa3k").iterdir()] == []


def test_damaged_records_are_named_by_image(three, tmp_path):
    prepare(IMAGE_SETS["agiqa3k"], tmp_path / "manual", tmp_path / "data")
    (records,) = (tmp_path / "data").rglob("*.array_record*")
    data = bytearray(records.read_bytes())
    data[600:700] = bytes(100)  # inside the first kilobytes, where the images are
    records.write_bytes(data)
    loaded = rated.load("agiqa3k", tmp_path / "data")
    whole, errors = {}, {}
    for index, record in enumerate(three):
        try:
            whole[record.image] = loaded.image_bytes(index)
        except ImageError as error:
            errors[record.image] = str(error)
    assert errors
    assert all(text.startswith(f"{image}: cannot be read") for image, text in errors.items())
    assert whole == {image: (tmp_path / "manual/file" / image).read_bytes() for image in whole}


def test_damaged_prepared_set_says_to_prepare_again(three, tmp_path):
    prepare(IMAGE_SETS["agiqa3k"], tmp_path / "manual", tmp_path / "data")
    labels = tmp_path / "data/agiqa3k/1.0.0" / store.LABELS_FILE
    labels.write_text(labels.read_text()[:50])
    for content in (labels.read_text(), "{}", "3"):  # the last two: whole, but of another program
        labels.write_text(content)
        with pytest.raises(UserError, match="remove .*1.0.0 and prepare the set again"):
            rated.load("agiqa3k", tmp_path / "data")


@pytest.mark.parametrize("at_once", [("_READ_AHEAD", 7), ("_READ_AHEAD_BYTES", 600)], ids=["images", "bytes"])
def test_order_is_kept_over_several_shards(at_once, tmp_path, monkeypatch):
    from qualiclip_jax.data.builders import builder

    monkeypatch.setattr(builder, "_IMAGES_A_SHARD", 25)
    monkeypatch.setattr(builder, *at_once)
    names = [f"{n * 7919 % 60}.png" for n in range(60)]
    for name in names:
        picture(tmp_path / "manual" / name)
    text(tmp_path / "manual/data.csv", "name,mos_quality,std_quality", *(f"{n},{i},1" for i, n in enumerate(names)))
    prepare(dataclasses.replace(IMAGE_SETS["agiqa3k"], images=60), tmp_path / "manual", tmp_path / "data")
    assert len(list((tmp_path / "data/agiqa3k/1.0.0").glob("*.array_record*"))) == 3
    loaded = rated.load("agiqa3k", tmp_path / "data")
    assert loaded.ids == names
    for index in (0, 1, 30, 59):
        assert loaded.image_bytes(index) == (tmp_path / "manual" / names[index]).read_bytes()
    records = loaded._read._source
    assert [(r["id"].decode(), r["mos"]) for r in records] == list(zip(names, range(60)))


def start_and_wait_until_half_way(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", SLOW, str(tmp_path / "manual"), str(tmp_path / "data")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "data.reading").exists():  # not earlier: it has to be half-way
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_killed_half_way_nothing_looks_finished_and_the_next_run_cleans_up(three, tmp_path, capsys):
    process = start_and_wait_until_half_way(tmp_path)
    with pytest.raises(UserError, match="agiqa3k is being prepared by another process"):
        prepare(IMAGE_SETS["agiqa3k"], tmp_path / "manual", tmp_path / "data")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list((tmp_path / "data/agiqa3k").glob("incomplete.*"))
    run("list", "--data-dir", tmp_path / "data")
    assert " no " in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("agiqa3k"))
    with pytest.raises(UserError, match="is not prepared"):
        rated.load("agiqa3k", tmp_path / "data")
    prepare(IMAGE_SETS["agiqa3k"], tmp_path / "manual", tmp_path / "data")
    assert sorted(p.name for p in (tmp_path / "data/agiqa3k").iterdir()) == ["1.0.0"]
    assert len(rated.load("agiqa3k", tmp_path / "data")) == 3


def test_interrupted_leaves_nothing(three, tmp_path):
    process = start_and_wait_until_half_way(tmp_path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert [p.name for p in (tmp_path / "data/agiqa3k").iterdir()] == []


def test_no_tensorflow_and_no_tfds_before_it_is_needed(three, tmp_path):
    code = f"""
import dataclasses, sys
from qualiclip_jax.data import rated
from qualiclip_jax.data.__main__ import main
from qualiclip_jax.data.builders import IMAGE_SETS
IMAGE_SETS["agiqa3k"] = dataclasses.replace(IMAGE_SETS["agiqa3k"], images=3)
main(["list", "--data-dir", {str(tmp_path / "data")!r}])
heavy = {{"tensorflow", "tensorflow_datasets", "jax", "openpyxl", "scipy"}} & set(sys.modules)
assert not heavy, heavy
main(["prepare", "agiqa3k", "--manual-dir", {str(tmp_path / "manual")!r}, "--data-dir", {str(tmp_path / "data")!r}])
loaded = rated.load("agiqa3k", {str(tmp_path / "data")!r})
assert loaded.image(2).shape == (7, 9, 3)
assert "tensorflow_datasets" in sys.modules
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "jax", "torch")]
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_many_threads_read_one_set(three, tmp_path):
    prepare(IMAGE_SETS["agiqa3k"], tmp_path / "manual", tmp_path / "data")
    loaded = rated.load("agiqa3k", tmp_path / "data")
    indices = [0, 1, 2] * 50
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(loaded.image_bytes, indices))
    assert read == [loaded.image_bytes(i) for i in indices]


def test_console_command(three, tmp_path):
    code = "import sys; from qualiclip_jax.cli import console; sys.argv[0] = 'qualiclip'; console()"
    command = [sys.executable, "-c", code, "data"]
    done = subprocess.run([*command, "list", "--data-dir", str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("name")
    wrong = subprocess.run([*command, "prepare", "koniq"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: no image set 'koniq'; known are ")
    assert len(wrong.stderr.splitlines()) == 1


def test_labels_alone_open_no_record(three, tmp_path):
    prepare(IMAGE_SETS["agiqa3k"], tmp_path / "manual", tmp_path / "data")
    for file in (tmp_path / "data").rglob("*.array_record*"):
        file.unlink()
    loaded = rated.load("agiqa3k", tmp_path / "data")
    assert len(loaded.mos) == 3
    with pytest.raises(ImageError, match=f"{three[1].image}: cannot be read"):
        loaded.image(1)


def test_prepared_set_can_be_sent_to_another_process(three, tmp_path):
    import pickle

    prepare(IMAGE_SETS["agiqa3k"], tmp_path / "manual", tmp_path / "data")
    loaded = rated.load("agiqa3k", tmp_path / "data")
    image = loaded.image(1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(loaded)).image(1), image)


@pytest.mark.skipif("QUALICLIP_AGIQA3K" not in os.environ, reason="QUALICLIP_AGIQA3K names no folder with AGIQA-3K")
def test_the_real_agiqa3k(tmp_path):
    folder = Path(os.environ["QUALICLIP_AGIQA3K"])
    done = prepare(IMAGE_SETS["agiqa3k"], folder, tmp_path, allow_missing=True)
    assert done.images + done.missing == 2982
    loaded = rated.load("agiqa3k", tmp_path)
    with open(folder / "data.csv", newline="") as file:
        published = {row["name"]: row for row in csv.DictReader(file)}
    there = {path.name: path for path in folder.rglob("*.jpg")}
    assert loaded.ids == [name for name in published if name in there]
    np.testing.assert_array_equal(loaded.mos, [float(published[name]["mos_quality"]) for name in loaded.ids])
    np.testing.assert_array_equal(loaded.mos_std, [float(published[name]["std_quality"]) for name in loaded.ids])
    for index in range(0, len(loaded), 100):
        assert loaded.image_bytes(index) == there[loaded.ids[index]].read_bytes()
        assert loaded.image(index).shape == (512, 512, 3)
