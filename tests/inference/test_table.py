"""The table of scores: three formats, going on, parts of several processes."""

import csv
import dataclasses
import json

import pytest

from qualiclip_jax.errors import UserError
from qualiclip_jax.inference.files import Row, state_of
from qualiclip_jax.inference.table import FORMATS, Table, attribute_columns

COLUMNS = ["good_photo", "sharp_image"]


@pytest.fixture
def rows(tmp_path) -> list[Row]:
    """Rows of files that exist, with names that need care; the last one failed."""
    names = ["a.png", 'b, "quoted".png', "ünï ☃.png", "line\nbreak.png", "z.png"]
    result = []
    for k, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * k)
        scores = {"score": 0.1 * k, "attributes": (0.125 * k, 1e-12)}
        row = Row(str(tmp_path / name), **scores, width=40 + k, height=50, **state_of(tmp_path / name))
        result.append(row)
    result[-1] = Row(result[-1].path, error="damaged image, quite", **state_of(result[-1].path))
    return result


def make(tmp_path, suffix=".csv", **others) -> Table:
    return Table(**({"output": tmp_path / f"scores{suffix}", "checkpoint": "abc", "columns": COLUMNS} | others))


def write(table: Table, rows: list[Row]) -> list[Row] | None:
    table.start([])
    table.append(rows)
    return table.finish([row.path for row in rows])


@pytest.mark.parametrize("suffix", FORMATS)
def test_reads_back_what_it_wrote(suffix, rows, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    table = make(tmp_path, suffix, with_attributes=True)
    assert write(table, rows) == rows
    assert sorted(path.name for path in tmp_path.glob("scores*")) == [f"scores{suffix}"]
    assert table.known() == {row.path: row for row in rows[:-1]}


def test_csv_and_json_lines_as_others_read_them(rows, tmp_path):
    write(make(tmp_path, ".csv"), rows)
    with open(tmp_path / "scores.csv", newline="") as file:
        records = list(csv.DictReader(file))
    assert list(records[0]) == ["path", "score", "width", "height", "bytes", "modified", "checkpoint", "error"]
    assert [record["path"] for record in records] == [row.path for row in rows]
    assert records[1]["score"] == "0.1"
    assert (records[-1]["score"], records[-1]["error"]) == ("", "damaged image, quite")
    write(make(tmp_path, ".jsonl", with_attributes=True), rows)
    records = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert records[2]["sharp_image"] == 1e-12
    assert records[-1]["score"] is None


def test_parquet_as_others_read_it(rows, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write(make(tmp_path, ".parquet"), rows)
    table = parquet.read_table(tmp_path / "scores.parquet")
    assert table.column("score").to_pylist() == [row.score for row in rows]
    assert str(table.schema.field("width").type) == "int64"


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        make(tmp_path, ".parquet").check()


def test_knows_only_what_is_still_true(rows, tmp_path):
    table = make(tmp_path)
    write(table, rows)
    (tmp_path / "a.png").write_bytes(b"another content")
    assert set(table.known()) == {row.path for row in rows[1:-1]}  # changed; failed ones are tried again
    assert make(tmp_path, with_attributes=True).known() == {}  # attributes are not in that table


def test_goes_on_from_the_part_of_a_killed_run(rows, tmp_path):
    table = make(tmp_path)
    table.start([])
    table.append(rows[:2])
    part = next(tmp_path.glob("scores.csv.part-*"))
    part.write_text(part.read_text() + '{"path": "cut o')
    table = make(tmp_path)
    known = table.known()
    assert known == {row.path: row for row in rows[:2]}
    table.start(list(known.values()))
    table.append(rows[2:])
    assert table.finish([row.path for row in rows]) == rows


def test_the_last_of_several_parts_merges(rows, tmp_path):
    order = [row.path for row in rows]
    parts = [make(tmp_path, part=k, parts=3) for k in (1, 2, 3)]
    for k in (1, 0):
        parts[k].start([])
        parts[k].append(rows[k::3])
        assert parts[k].finish(order) is None
    assert not (tmp_path / "scores.csv").exists()
    parts[2].start([])
    parts[2].append(rows[2::3])
    assert parts[2].finish(order) == rows
    assert [path.name for path in tmp_path.glob("scores*")] == ["scores.csv"]


def test_a_part_that_is_repeated_alone_is_not_merged_with_its_old_self(rows, tmp_path):
    first, second = (make(tmp_path, part=k, parts=2) for k in (1, 2))
    write(first, rows[:2])
    first.start([])  # begins anew: what it had finished counts no more
    second.start([])
    assert second.finish([]) is None


def test_another_number_of_processes_goes_on_as_well(rows, tmp_path):
    one = make(tmp_path)
    one.start([])
    one.append(rows[:3])
    assert make(tmp_path, part=2, parts=2).known() == {row.path: row for row in rows[:3]}


def test_refuses_another_checkpoint_and_foreign_files(rows, tmp_path):
    write(make(tmp_path), rows)
    with pytest.raises(UserError, match=r"scores of another checkpoint \(abc, this one is def\)"):
        make(tmp_path, checkpoint="def").known()
    (tmp_path / "scores.jsonl").write_text('{"name": "something else"}\n')
    with pytest.raises(UserError, match="is not a table of scores"):
        make(tmp_path, ".jsonl").known()
    text = (tmp_path / "scores.csv").read_text()
    (tmp_path / "scores.csv").write_text(text.replace(",0.1,", ",high,"))
    with pytest.raises(UserError, match="changed by hand"):
        make(tmp_path).known()
    if make(tmp_path, ".parquet") and __import__("importlib").util.find_spec("pyarrow"):
        (tmp_path / "scores.parquet").write_text("no parquet")
        with pytest.raises(UserError, match="cannot be read as a table"):
            make(tmp_path, ".parquet").known()


def test_checks_the_output_before_the_work(tmp_path):
    with pytest.raises(UserError, match="must be one of .csv, .jsonl, .parquet"):
        make(tmp_path, ".xlsx").check()
    with pytest.raises(UserError, match="there is no folder"):
        make(tmp_path, output=tmp_path / "none" / "scores.csv").check()


def test_names_with_bytes_that_are_not_utf_8(rows, tmp_path):
    odd = dataclasses.replace(rows[0], path=str(tmp_path / "caf\udce9.png"))
    for suffix in (".csv", ".jsonl"):
        table = make(tmp_path, suffix)
        assert write(table, [odd]) == [odd]
    assert b"caf\xe9.png" in (tmp_path / "scores.csv").read_bytes()


def test_columns_are_named_after_the_positive_prompts():
    pairs = [
        ("Good photo.", ""),
        ("Noise-free image.", ""),
        ("good PHOTO!", ""),
        ("Score", ""),
        ("写真", ""),
        ("?!", ""),
    ]
    names = attribute_columns(pairs)
    assert names == ["good_photo", "noise_free_image", "good_photo_2", "score_attribute", "写真", "attribute"]
