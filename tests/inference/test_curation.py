"""Choosing by scores, against NumPy; lists and new shards, read back by other means."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest

from qualiclip_jax import cli, select, tabular
from qualiclip_jax.inference.curation import Scores

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
SCORES = [0.9, None, 0.1, 0.5, 0.5, 0.7]  # the second image failed
GROUPS = ["a", "a", "a", "b", "b", "b"]


def run(*arguments) -> int:
    return cli.run(select.main, [str(argument) for argument in arguments])


@pytest.fixture
def table(tmp_path):
    """Scores of the six images of a shard, as `qualiclip score` writes them."""
    paths = [f"x/{k}.rgb.png" for k in range(6)]
    path = tmp_path / "00.scores.parquet"
    parquet.write_table(pa.table({"path": paths, "score": SCORES, "kind": GROUPS}), path)
    return path


def test_choice_is_that_of_sorting_each_group():
    rng = np.random.default_rng(0)
    values = [rng.permutation(50).astype(np.float32), rng.permutation(50)[:30].astype(np.float32) + 50]
    values[0][3] = np.nan
    groups = [rng.integers(0, 3, len(part)).astype(np.int32) for part in values]
    chosen = Scores(values, groups).choose((40, True), 20.0)
    assert [len(mask) for mask in chosen] == [50, 30]
    every, group, taken = (np.concatenate(parts) for parts in (values, groups, chosen))
    for number in range(3):
        mine = sorted(every[(group == number) & np.isfinite(every)], reverse=True)
        expected = {value for value in mine[: round(0.4 * len(mine))] if value >= 20}
        assert set(every[(group == number) & taken]) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--top", "2"], [0, 5]),
        (["--top", "1%"], [0]),  # at least one
        (["--top", "3"], [0, 3, 5]),  # of two equal ones the first
        (["--top", "50%", "--per", "kind"], [0, 3, 5]),
        (["--above", "0.5"], [0, 3, 4, 5]),
        (["--above", "0.5", "--top", "1", "--per", "kind"], [0, 5]),
    ],
    ids=str,
)
def test_lists(table, tmp_path, arguments, expected, capsys):
    paths = [f"x/{k}.rgb.png" for k in expected]
    assert run(table, *arguments, "--out", tmp_path / "out.txt") == cli.DONE
    assert (tmp_path / "out.txt").read_text().splitlines() == paths
    assert f"{len(expected)} of 5 chosen" in capsys.readouterr().err
    assert run(table, *arguments, "--out", tmp_path / "out.csv") == cli.DONE
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], float(row["score"])) for row in rows] == [
        (path, SCORES[k]) for path, k in zip(paths, expected)
    ]
    assert run(table, *arguments, "--out", tmp_path / "out.jsonl") == cli.DONE
    assert [json.loads(line)["path"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == paths


def test_the_histogram_counts_every_image_once(table, capsys):
    assert run(table, "--top", "1") == cli.DONE
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    counts = {float(line[0]): (int(line[1]), int(line[2])) for line in lines}
    assert {edge: count for edge, count in counts.items() if any(count)} == {
        0.1: (1, 0), 0.5: (2, 0), 0.7: (1, 0), 0.9: (1, 1)
    }  # fmt: skip


def make_tar(path, names) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))


def test_new_tar_shards_have_whole_samples(table, tmp_path):
    samples = [[f"x/{k}.rgb.png", f"x/{k}.json", f"x/{k}.txt"] for k in range(6)]
    samples[3] = samples[3][1:] + samples[3][:1]  # the image may come last
    make_tar(tmp_path / "00.tar", [name for names in samples for name in names])
    out = tmp_path / "out"
    assert run(table, "--above", "0.5", "--shards", tmp_path / "{00..00}.tar", "--out", out) == cli.DONE
    with tarfile.open(out / "00.tar") as archive:
        members = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}
    assert list(members) == [name for k in (0, 3, 4, 5) for name in samples[k]]
    assert all(name == content for name, content in members.items())
    (out / "00.tar").write_bytes(b"of an earlier run")
    assert run(table, "--top", "1", "--shards", tmp_path / "00.tar", "--out", out) == cli.DONE
    assert (out / "00.tar").read_bytes() == b"of an earlier run"


def test_new_parquet_shards_have_all_columns(table, tmp_path):
    old = pa.table({"image": [bytes([k]) for k in range(6)], "caption": list("abcdef")})
    parquet.write_table(old, tmp_path / "00.parquet", row_group_size=4)
    out = tmp_path / "out"
    assert run(table, "--above", "0.5", "--shards", tmp_path / "00.parquet", "--out", out) == cli.DONE
    assert parquet.read_table(out / "00.parquet") == old.take([0, 3, 4, 5])


def test_what_is_refused(table, tmp_path, capsys):
    make_tar(tmp_path / "00.tar", ["x/0.png"])
    make_tar(tmp_path / "01.tar", ["x/0.png"])
    (tmp_path / "cut.tar").write_bytes((tmp_path / "00.tar").read_bytes()[:700])
    (cut := tmp_path / "cut.scores.parquet").write_bytes(table.read_bytes())
    (tmp_path / "there.txt").touch()
    odd = tmp_path / "odd.csv"
    odd.write_bytes(tabular.to_csv(("path", "score"), [("line\nbreak", 0.5)]))
    for arguments, told in (
        ((table, "--out", tmp_path / "o.txt"), "--top or --above"),
        ((table, "--top", "0"), "neither a whole number"),
        ((table, "--top", "2.5"), "neither a whole number"),
        ((table, "--top", "1", "--out", tmp_path / "there.txt"), "exists"),
        ((table, "--top", "1", "--out", tmp_path / "o.xlsx"), "extension must be"),
        ((table, "--top", "1", "--by", "mos", "--out", tmp_path / "o.txt"), "mos"),
        ((table, "--top", "1", "--by", "path"), "is no number"),
        ((table, table, "--top", "1"), "named twice"),
        ((odd, "--top", "1", "--out", tmp_path / "o.txt"), "line break"),
        ((table, "--top", "1", "--shards", tmp_path / "01.tar", "--out", tmp_path / "o"), "there is no table 01"),
        ((table, "--top", "1", "--shards", tmp_path / "00.tar", "--out", tmp_path / "o"), "does not have the 6 images"),
        ((cut, "--top", "1", "--shards", tmp_path / "cut.tar", "--out", tmp_path / "o"), "cut.tar"),
    ):  # fmt: skip
        assert run(*arguments) == cli.FAILED, arguments
        assert told in capsys.readouterr().err
    assert not (tmp_path / "o.txt").exists()
    assert not list((tmp_path / "o").iterdir())
