"""The table of scores: three formats, going on, parts of several processes, and what is there already."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import pytest

from qualiclip_jax import tabular
from qualiclip_jax.errors import UserError
from qualiclip_jax.inference.files import Row, state_of
from qualiclip_jax.inference.formats import FORMATS, printable
from qualiclip_jax.inference.output import Merged, Table, attribute_columns, ordered

COLUMNS = ["good_photo", "sharp_image"]
NAMES = [
    "a.png", 'b, "quoted".png', "ünï ☃.png", "line\nbreak.png", "carriage\rreturn.png", "=1+1.png", " spaces ",
    "\x0b\x1c\x85\u2028.png", "caf\udce9.png", "caf\udcff.png", "z.png",
]  # fmt: skip


@pytest.fixture
def rows(tmp_path) -> list[Row]:
    """Rows of files that exist, with names that need care; the last one failed."""
    (tmp_path / "photos").mkdir()
    result = []
    for k, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.write_bytes(b"x" * k)
        scores = {"score": 0.1 * k, "attributes": (0.125 * k, 1e-12)}
        result.append(Row(str(path), **scores, width=40 + k, height=50, **state_of(path)))
    result[-1] = Row(result[-1].path, error="damaged image, quite", **state_of(result[-1].path))
    return result


@pytest.fixture
def begun():
    """Tables that were begun, closed in the end as those of a killed process are."""
    tables: list[Table] = []

    def begin(output: Path, rows: list[Row], attributes=False, model="abc", **others) -> tuple[Table, dict[str, Row]]:
        tables.append(Table(output, **others).__enter__())
        return tables[-1], tables[-1].begin(model, COLUMNS, [row.path for row in rows], attributes)

    yield begin
    for table in tables:
        table.__exit__(None, None, None)


def write(output: Path, rows: list[Row], attributes=False, model="abc", sort="none", **others) -> Merged | None:
    """What a run does that scores `rows`."""
    with Table(output, **others) as table:
        known = table.begin(model, COLUMNS, [row.path for row in rows], attributes)
        share = rows[table.part - 1 :: table.parts]
        table.append(row for row in share if row.path not in known)
        return table.finish(sort)


@pytest.mark.parametrize("suffix", FORMATS)
def test_reads_back_what_it_wrote(suffix, rows, tmp_path, begun):
    output = tmp_path / f"scores{suffix}"
    assert write(output, rows, attributes=True) == Merged(rows, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", output.name]
    assert begun(output, rows, attributes=True)[1] == {row.path: row for row in rows[:-1]}


def test_csv_and_json_lines_as_others_read_them(rows, tmp_path):
    write(tmp_path / "scores.csv", rows)
    with open(tmp_path / "scores.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        records = list(csv.DictReader(file))
    assert list(records[0]) == ["path", "score", "width", "height", "bytes", "modified", "checkpoint", "error"]
    assert [record["path"] for record in records] == [row.path for row in rows]
    assert records[1]["score"] == "0.1"
    assert (records[-1]["score"], records[-1]["error"]) == ("", "damaged image, quite")
    assert b"/caf\xe9.png" in (tmp_path / "scores.csv").read_bytes()
    write(tmp_path / "scores.jsonl", rows, attributes=True)
    records = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().split("\n")[:-1]]
    assert records[2]["sharp_image"] == 1e-12
    assert records[-1]["score"] is None


def test_parquet_as_others_read_it(rows, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "scores.parquet", rows)
    table = parquet.read_table(tmp_path / "scores.parquet")
    assert table.column("score").to_pylist() == [row.score for row in rows]
    assert str(table.schema.field("width").type) == "int64"
    assert table.column("path").to_pylist()[-3].endswith(r"caf\xe9.png")
    assert table.column("path_bytes").to_pylist()[-3] == os.fsencode(rows[-3].path)
    assert tabular.read(tmp_path / "scores.parquet").column("path") == [row.path for row in rows]
    write(tmp_path / "plain.parquet", rows[:3])
    assert "path_bytes" not in parquet.read_table(tmp_path / "plain.parquet").column_names


def test_knows_only_what_is_still_true(rows, tmp_path, begun):
    write(tmp_path / "scores.csv", rows)
    Path(rows[0].path).write_bytes(b"another content")
    table, known = begun(tmp_path / "scores.csv", rows)
    assert set(known) == {row.path for row in rows[1:-1]}  # changed; failed ones are tried again
    table.__exit__(None, None, None)
    assert begun(tmp_path / "scores.csv", rows, attributes=True)[1] == {}  # attributes are not in that table


@pytest.mark.parametrize("seconds", [253402300800, 2**33, -1, -(10**11), 0])
def test_times_of_files_are_told_apart_whatever_they_are(seconds, tmp_path, monkeypatch):
    """Not all file systems hold them, so the system call is faked; years 10000, 2242, 1969, -1200 and 1970."""
    times = {}
    for nanoseconds in (0, 1000):
        status = os.stat_result([0o100644, 0, 0, 1, 0, 0, 7, *[seconds] * 6, *[seconds * 10**9 + nanoseconds] * 3])
        monkeypatch.setattr(os, "stat", lambda path, status=status: status)
        times[nanoseconds] = state_of("a.png")
    monkeypatch.undo()
    assert times[0]["bytes"] == 7
    assert times[0]["modified"] != times[1000]["modified"]


def test_a_file_of_others_that_is_named_like_a_journal_is_kept(rows, tmp_path):
    output, mine = tmp_path / "scores.csv", b"my notes\nsecond line\n"
    for name, content in {".part-1-of-1": mine, ".part-2-of-3.done": b'{"other": 1}\n'}.items():
        file = Path(f"{output}{name}")
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"scores\.csv\.part-.* is not of this tool"):
            write(output, rows)
        assert file.read_bytes() == content
        file.unlink()
    for name in (".part-1-of-1.bak", ".part-1-of-1 (copy)", ".part-a-of-b"):
        Path(f"{output}{name}").write_bytes(mine)
    write(output, rows)
    assert sum(path.read_bytes() == mine for path in tmp_path.glob("scores.csv.part-*")) == 3


def test_goes_on_from_the_journal_of_a_killed_run(rows, tmp_path, begun):
    table, _ = begun(tmp_path / "scores.csv", rows)
    table.append(rows[:2])
    table.__exit__(None, None, None)
    (journal,) = tmp_path.glob("scores.csv.part-*")
    journal.write_text(journal.read_text() + '{"path": "cut o')
    table, known = begun(tmp_path / "scores.csv", rows)
    assert known == {row.path: row for row in rows[:2]}
    table.append(rows[2:])
    assert table.finish() == Merged(rows, 0)


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_of_other_files_stay(suffix, rows, tmp_path):
    output = tmp_path / f"scores{suffix}"
    write(output, rows[:3], attributes=True)
    again = dataclasses.replace(rows[1], score=0.5, error=None)
    Path(again.path).write_bytes(b"changed")
    assert write(output, [again, *rows[4:]]).kept == 2
    again = dataclasses.replace(again, **state_of(again.path))
    everything = write(output, [again, rows[0], *rows[2:3], *rows[4:]])
    assert everything == Merged([again, rows[0], rows[2], *rows[4:]], 0)


def test_rows_of_a_killed_run_over_other_files_stay(rows, tmp_path, begun):
    table, _ = begun(tmp_path / "scores.csv", rows[:4])
    table.append(rows[:2])
    table.__exit__(None, None, None)
    assert write(tmp_path / "scores.csv", rows[4:]).kept == 2


def test_columns_that_are_there_stay(rows, tmp_path):
    output = tmp_path / "scores.jsonl"
    write(output, rows[:3], attributes=True)
    assert write(output, rows[3:]).kept == 3
    with open(output) as file:
        assert all("sharp_image" in json.loads(line) for line in file)
    assert write(output, rows) == Merged(rows, 0)


def test_the_last_of_several_parts_merges(rows, tmp_path):
    output = tmp_path / "scores.csv"
    assert write(output, rows, part=2, parts=3) is None
    assert write(output, rows, part=1, parts=3) is None
    assert not output.exists()
    assert write(output, rows, part=3, parts=3) == Merged(rows, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "scores.csv"]


def test_a_part_that_is_repeated_alone_is_not_merged_with_its_old_self(rows, tmp_path, begun):
    output = tmp_path / "scores.csv"
    write(output, rows, part=1, parts=2)
    begun(output, rows, part=1, parts=2)  # begins anew: what it had finished counts no more
    assert write(output, rows, part=2, parts=2) is None


def test_a_file_that_no_process_had_in_its_list_is_an_error(rows, tmp_path):
    """The folder grew between the starts of two processes."""
    output = tmp_path / "scores.csv"
    assert write(output, rows[1:], part=1, parts=2) is None
    merged = write(output, rows, part=2, parts=2)
    assert merged.rows[1::2] == rows[1::2]
    assert {row.error for row in merged.rows[::2]} == {
        "not in the list of the process whose share it is: run the same command again"
    }


def test_another_number_of_processes_goes_on_as_well(rows, tmp_path, begun):
    table, _ = begun(tmp_path / "scores.csv", rows)
    table.append(rows[:3])
    table.__exit__(None, None, None)
    _, known = begun(tmp_path / "scores.csv", rows, part=2, parts=2)
    assert known == {rows[1].path: rows[1]}


def test_one_run_at_a_time(rows, tmp_path, begun, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.csv").symlink_to("scores.csv")
    for output in (Path("scores.csv"), tmp_path / "link.csv", tmp_path / "scores.csv"):
        table, _ = begun(tmp_path / "scores.csv", rows, part=2, parts=2)
        for part, message in ((2, "part 2/2 of .* is being written"), (1, None)):
            if message is None:
                Table(output, part, 2).__enter__().__exit__(None, None, None)
                continue
            with pytest.raises(UserError, match=message):
                Table(output, part, 2).__enter__()
        with pytest.raises(UserError, match="is being written by another run"):
            Table(output).__enter__()  # by another division of the list
        table.__exit__(None, None, None)


FOREIGN = {
    "scores.csv": ["my list\n", "path,score\na.png,0.5\n", 'path,"score\n', "\x00\xff"],
    "scores.jsonl": [
        "my notes\n",
        '{"name": "something else"}\n',
        "[1]\n",
        '{"path": "a", "score": 1, "checkpoint": 1}\n',
    ],
    "scores.parquet": ["no parquet"],
}


@pytest.mark.parametrize(("name", "content"), [(name, c) for name, contents in FOREIGN.items() for c in contents])
def test_what_is_no_table_of_scores_is_left_alone(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"exists and is not a table of scores \(.*\): choose another --output$"):
        Table(tmp_path / name).__enter__()
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize(
    ("model", "old", "new", "message"),
    [
        ("def", b"", b"", r"scores of another checkpoint \(abc, this one is def\)"),
        ("abc", b",0.1,", b",high,", "changed by hand"),
        ("abc", b",error\n", b",mine,error\n", r"columns that are not of this table \(mine\)"),
    ],
)
def test_tables_of_another_model_or_with_other_columns_are_left_alone(model, old, new, message, rows, tmp_path):
    output = tmp_path / "scores.csv"
    write(output, rows[:2])
    content = output.read_bytes().replace(old, new).replace(b",abc,\n", b",abc,,\n" if b"mine" in new else b",abc,\n")
    output.write_bytes(content)
    with pytest.raises(UserError, match=message):
        write(output, rows[:2], model=model)
    assert output.read_bytes() == content


def test_checks_the_output_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "read_only.csv").touch(mode=0o444)
    os.mkfifo(tmp_path / "pipe.csv")
    for name, message in (
        ("scores.xlsx", "must be one of .csv, .jsonl, .parquet"),
        ("none/scores.csv", "there is no folder"),
        ("folder.csv", "is a folder"),
        ("read_only.csv", "is read-only"),
        ("pipe.csv", "is not a regular file"),
    ):
        with pytest.raises(UserError, match=message):
            Table(tmp_path / name).__enter__()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        Table(tmp_path / "scores.parquet").__enter__()


def test_an_empty_file_is_filled(rows, tmp_path):
    (tmp_path / "scores.csv").touch(mode=0o600)
    write(tmp_path / "scores.csv", rows)
    assert (tmp_path / "scores.csv").stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "scores.csv").read_bytes().splitlines()) > len(rows)


def test_sorted_as_asked(rows, tmp_path):
    write(tmp_path / "scores.jsonl", rows[:3][::-1], sort="path")
    with open(tmp_path / "scores.jsonl") as file:
        assert [json.loads(line)["path"] for line in file] == [row.path for row in rows[:3]]
    shuffled = [rows[3], rows[-1], rows[5], rows[0]]
    assert ordered(shuffled, "score") == [rows[5], rows[3], rows[0], rows[-1]]
    assert ordered(shuffled, "none") == shuffled


def test_names_for_people_are_on_one_line():
    assert printable("caf\udce9 \x1b[31m\n\u2028 é ☃") == r"caf\xe9 \x1b[31m\n\u2028 é ☃"


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
