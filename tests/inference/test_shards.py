"""Shards: tar and Parquet, local and in other file systems, against the scores of the images alone."""

import io
import json
import signal
import subprocess
import sys
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from qualiclip_jax import QualiCLIP, cli, score, tabular
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import decode_image
from qualiclip_jax.inference import urls

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def png(photo) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files(photos) -> dict[str, bytes]:
    """Five images of sizes that share one padded shape, the fourth of them damaged."""
    found = {f"{k:03}.png": png(photos[3][k:64, k : 64 - 2 * k]) for k in range(5)}
    return found | {"003.png": found["003.png"][:300]}


@pytest.fixture(autouse=True)
def _one_model(resnet, monkeypatch):
    monkeypatch.setattr(QualiCLIP, "load", lambda name: resnet)


def tar(files) -> bytes:
    """As WebDataset has it: beside each image a member of the same stem."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            for member, content in ((name, data), (f"{name[:-4]}.json", b"{}")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def run(*arguments) -> int:
    return cli.run(score.main, [str(argument) for argument in arguments])


def check(table, files, model, names=None) -> None:
    """The table holds every image in order, with the score that it has alone."""
    rows = parquet.read_table(table).to_pylist()
    assert [row["path"] for row in rows] == (names or list(files))
    for row, data in zip(rows, files.values(), strict=True):
        if row["error"] is None:
            assert row["score"] == pytest.approx(float(model.score(decode_image(data))[0]), abs=1e-5)
            assert row["bytes"] == len(data)
    assert [row["score"] is None for row in rows] == [k == 3 for k in range(5)]


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("a/{008..011}.tar", ["a/008.tar", "a/009.tar", "a/010.tar", "a/011.tar"]),
        ("{x,y}/{1..2}.tar", ["x/1.tar", "x/2.tar", "y/1.tar", "y/2.tar"]),
        ("s3://b/{2..0}.parquet", ["s3://b/2.parquet", "s3://b/1.parquet", "s3://b/0.parquet"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces(pattern, meant):
    assert urls.expand(pattern) == meant


def test_stars_are_looked_up_and_must_fit(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    assert urls.expand(f"{tmp_path}/*.tar") == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    with pytest.raises(UserError, match="no file fits"):
        urls.expand(f"{tmp_path}/*.parquet")
    with pytest.raises(UserError, match="nowhere"):
        urls.expand("nowhere://x/*.tar")


def test_tar_shards_and_a_second_run(files, resnet, tmp_path, capsys):
    for name in ("00", "01"):
        (tmp_path / f"{name}.tar").write_bytes(tar(files))
    out = tmp_path / "scores"
    assert run(tmp_path / "{00..01}.tar", "--output", out, "--attributes") == cli.IN_PART
    assert "8 scored, 2 failed" in capsys.readouterr().err
    check(out / "00.scores.parquet", files, resnet)
    first = parquet.read_table(out / "01.scores.parquet")
    assert {"good_photo", "sharp_image"} <= set(first.column_names)
    (out / "00.scores.parquet").unlink()
    assert run(tmp_path / "{00..01}.tar", "--output", out) == cli.IN_PART
    assert "4 scored, 1 failed; 1 shard scored before" in capsys.readouterr().err
    assert parquet.read_table(out / "01.scores.parquet") == first


KILLED = """
import os, signal, sys
from qualiclip_jax import cli, score
from qualiclip_jax.inference import shards
from qualiclip_jax.progress import Progress
write, advance, tables, seen = shards._write, Progress.advance, [], []
def counted(progress, units=1, note=""):
    seen.append(units)
    advance(progress, units, note)
def killed_at_the_third_table(target, *others):
    tables.append(target)
    if len(tables) == 3:
        print(sum(seen), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    write(target, *others)
Progress.advance, shards._write = counted, killed_at_the_third_table
cli.run(score.main, sys.argv[1:])
"""


def test_a_killed_run_loses_one_shard_and_goes_on(files, resnet, tmp_path, capsys):
    for name in "abcd":
        (tmp_path / f"{name}.tar").write_bytes(tar(files))
    resnet.save(tmp_path / "model")
    arguments = [f"{tmp_path}/*.tar", "--output", str(tmp_path / "out"), "--checkpoint", str(tmp_path / "model")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert int(killed.stdout) - 3 * len(files) in (0, 1)  # of the fourth shard no more than that an image is damaged
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.scores.parquet", "b.scores.parquet"]
    assert run(*arguments) == cli.IN_PART
    assert "8 scored, 2 failed; 2 shards scored before" in capsys.readouterr().err
    for name in "abcd":
        check(tmp_path / "out" / f"{name}.scores.parquet", files, resnet)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_tables_in_other_formats(suffix, files, resnet, tmp_path, capsys):
    (tmp_path / "00.tar").write_bytes(tar(files))
    (tmp_path / "01.tar").write_bytes(tar({}))
    arguments = (tmp_path / "*.tar", "--output", tmp_path / "out", "--format", suffix)
    assert run(*arguments) == cli.IN_PART
    rows = list(tabular.records(tmp_path / "out" / f"00.scores.{suffix}", ("path",)))
    assert [row["path"] for row in rows] == list(files)
    assert float(rows[0]["score"]) == pytest.approx(float(resnet.score(decode_image(files["000.png"]))[0]), abs=1e-5)
    assert (tmp_path / "out" / f"01.scores.{suffix}").exists()  # no image: an empty table
    capsys.readouterr()
    assert run(*arguments) == cli.DONE
    assert "0 scored, 0 failed; 2 shards scored before" in capsys.readouterr().err


def test_a_shard_that_ends_early_has_no_table(files, tmp_path, capsys):
    whole = tar(files)
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.tar").write_bytes(whole)
    assert run(tmp_path / "*.tar", tmp_path / "gone.tar", "--output", tmp_path / "out") == cli.IN_PART
    told = capsys.readouterr().err
    assert "a.tar: cannot be read" in told
    assert "gone.tar: no such file" in told
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.scores.parquet"]


def test_parquet_of_bytes_of_structures_and_of_paths(files, resnet, tmp_path, capsys):
    data, names = list(files.values()), list(files)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tables = {
        "bytes": {"url": names, "jpg": data, "caption": ["x"] * 5},
        "structure": {"image": [{"bytes": content, "path": name} for name, content in files.items()]},
        "paths": {"path": names},
    }
    for name, columns in tables.items():
        parquet.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=2)
        assert run(tmp_path / f"{name}.parquet", "--output", tmp_path / "out") == cli.IN_PART
        check(tmp_path / "out" / f"{name}.scores.parquet", files, resnet, names)
    parquet.write_table(pa.table({"caption": [1]}), tmp_path / "none.parquet")
    capsys.readouterr()
    assert run(tmp_path / "none.parquet", "--output", tmp_path / "out") == cli.FAILED
    told = capsys.readouterr().err
    assert "no column of images" in told
    assert "wrote" not in told


def test_other_file_systems_and_parts(files, resnet):
    memory = fsspec.filesystem("memory")
    for k in range(3):
        memory.pipe_file(f"/in/{k}.tar", tar(files))
    for part in ("1/2", "2/2"):
        assert run("memory://in/{0..2}.tar", "--output", "memory://out", "--part", part) == cli.IN_PART
    assert sorted(memory.ls("/out", detail=False)) == [f"/out/{k}.scores.parquet" for k in range(3)]
    with memory.open("/out/2.scores.parquet", "rb") as table:
        check(table, files, resnet)


def test_what_is_refused(files, resnet, tmp_path, capsys):
    (tmp_path / "a.tar").write_bytes(tar(files))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.tar").write_bytes(tar(files))
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    out.mkdir()
    other = {"path": ["x"], "checkpoint": ["another"]}
    for arguments, told in (
        ((tmp_path / "a.tar",), "need an --output"),
        ((tmp_path / "a.tar", tmp_path / "photo.png", "--output", out), "is no shard"),
        ((tmp_path / "a.tar", "--output", out, "--report", tmp_path / "r.html"), "--report is not for shards"),
        ((tmp_path / "a.tar", tmp_path / "sub" / "a.tar", "--output", out), "same name"),
    ):
        assert run(*arguments) == cli.FAILED
        assert told in capsys.readouterr().err
    parquet.write_table(pa.table(other), out / "a.scores.parquet")
    assert run(tmp_path / "a.tar", "--output", out) == cli.FAILED
    assert f"another checkpoint (another, this one is {resnet.fingerprint})" in capsys.readouterr().err
    (out / "a.scores.parquet").write_text(json.dumps(other))
    assert run(tmp_path / "a.tar", "--output", out) == cli.FAILED
    assert "is not a table of scores" in capsys.readouterr().err
