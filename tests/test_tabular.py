"""Tables as spreadsheets and programs write them: read right, or refused in one line."""

import codecs
import csv
import io
import json
import re

import numpy as np
import pytest

from qualiclip_jax import tabular
from qualiclip_jax.errors import UserError

WANTED = (tabular.NAME_COLUMNS, ("mos", "dmos"))


def parse(text: str | bytes, *wanted, encoding="utf-8"):
    data = text if isinstance(text, bytes) else text.encode(encoding)
    return tabular.parse(data, "my.csv", *(wanted or WANTED))


SAME = {  # all are the table of the two images "a, b.png" with 1.5 and "é.png" with -2000
    "comma": 'image,mos\n"a, b.png",1.5\né.png,-2e3\n',
    "no newline at the end": 'image,mos\n"a, b.png",1.5\né.png,-2000',
    "semicolon, decimal commas": "image;mos\na, b.png;1,5\né.png;-2000,0\n",
    "tab": "image\tmos\na, b.png\t1.5\né.png\t-2000\n",
    "vertical bar with spaces": "image | mos\na, b.png| 1.5\né.png| -2000\n",
    "sep=": "sep=;\nimage;mos\na, b.png;1,5\né.png;-2000\n",
    "sep= in quotation marks": '"SEP=|"\r\nimage|mos\r\na, b.png|1.5\r\né.png|-2000\r\n',
    "other case, spaces, another order": ' MOS , Image \n1.5,"a, b.png"\n-2000,é.png\n',
    "spaces behind commas": 'image, mos, note\n"a, b.png", 1.5, "x, y"\né.png, -2000, \n',
    "other delimiters in the header": '"image";"mos";"notes (a, b, c, d)"\na, b.png;1.5;x\né.png;-2000;y,z\n',
    "a line break in the header": 'image;"mos";"notes\n(any, really)"\na, b.png;1.5;\né.png;-2000;\n',
    "blank rows": '\n,,\nimage,mos,\n\n"a, b.png",1.5,\n , ,\né.png,-2000,\n,,\n\n',
    "empty fields too many": 'image,mos\n"a, b.png",1.5,,\né.png,-2000\n',
    "CRLF": 'image,mos\r\n"a, b.png",1.5\r\né.png,-2000\r\n',
    "CR": 'image,mos\r"a, b.png",1.5\ré.png,-2000\r',
    "other columns, one of them twice": 'x,image,mos,x\n1,"a, b.png",1.5,2\n,é.png,-2000,\n',
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_all_dialects_are_the_same_table(name, encoding):
    text = ("\ufeff" if encoding.startswith("utf-16") else "") + SAME[name]
    table = parse(text, encoding=encoding)
    assert [field.strip() for field in table.column("image")] == ["a, b.png", "é.png"]
    np.testing.assert_array_equal(table.numbers("mos"), [1.5, -2000])


def test_lines_are_those_of_the_file():
    table = parse('sep=,\n\nimage,mos,note\n\na,1,"two\nlines"\n\nb,2,\n')
    assert [table.where(i) for i in range(len(table))] == ["my.csv, line 5", "my.csv, line 8"]


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [
        (["1", "+.5", "-3.", "1e2"], [1, 0.5, -3, 100]),
        (["nan", "inf", "-Infinity", "1e400", "", "one", "1_000", "0x1", "١", "1 2", "50%"], [np.nan] * 11),
        (["1,5", "2", "-,25", "1e3"], [1.5, 2, -0.25, 1000]),
        (["1,234,567", "2,5"], [np.nan, 2.5]),
    ],
)
def test_numbers(fields, numbers):
    table = parse("image;mos\n" + "".join(f"{i};{field}\n" for i, field in enumerate(fields)))
    np.testing.assert_array_equal(table.numbers("mos"), numbers)


def test_a_comma_is_no_decimal_mark_where_it_is_the_delimiter():
    np.testing.assert_array_equal(parse('image,mos\na,"1,5"\nb,2.5\n').numbers("mos"), [np.nan, 2.5])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["7", "1.234,5"], "my.csv, line 3, mos: '1.234,5' has a comma and a point: write all numbers with the same"),
        (["1,234.5"], "line 2, mos: '1,234.5' has a comma and a point"),
        (["2.5", "1,5"], "line 3, mos: '1,5' has a comma, and '2.5' in line 2 a point"),
    ],
)
def test_an_ambiguous_decimal_mark_is_refused(fields, message):
    table = parse("image;mos\n" + "".join(f"{i};{field}\n" for i, field in enumerate(fields)))
    with pytest.raises(UserError, match=re.escape(message)):
        table.numbers("mos")


REFUSED = {
    "": "needs the columns image (or path, file, name, filename, file_name, image_name) and mos (or dmos); it has none",
    "\n\n": "it has none",
    "image,score\na,1\n": "it has image, score",
    "0.png,3.4\n1.png,2\n": "it has 0.png, 3.4; is the header line missing?",
    "image;moss\na;1\n": "it has image, moss; is moss the column mos?",
    "imgae,mos\na,1\n": "is imgae the column image?",
    "image,mos,MOS\na,1,2\n": "has more than one column mos",
    "image,mos\na\n": "line 2: 1 fields, the header has 2",
    "image,mos\na,1,5\n": "line 2: 3 fields, the header has 2 (a field with a comma in it needs quotation marks)",
    'image,mos\n"a,1\nb,2\n': "my.csv, line 2: unexpected end of data; is a quotation mark missing?",
    'image,mos,note\na,1,"x\nb,2,y\nc,3,z\n': "line 2: unexpected end of data",
    'image,mos\n"a,1\n' + "x" * 140_000: "line 2: field larger than field limit (131072); is a quotation mark missing?",
    'image,"mos\na,1\n': "line 1: unexpected end of data",
    'image,mos\n"a"b,1\n': "line 2: ',' expected after '\"'",
    "sep=x\nimagexmos\n": "line 1: sep=x: the delimiter must be a comma, semicolon, tab or vertical bar",
    "image,mos\n\0,1\n": "NUL bytes",
    "image,mos\na,1\n".encode("utf-16-le"): "NUL bytes; it is not text, or UTF-16 without a byte order mark",
    codecs.BOM_UTF16_LE + b"a": "cannot be read as UTF-16 text (truncated data)",
    b"PK\x03\x04...": "is not a CSV file but an Excel workbook or another zip archive; save it as CSV first",
    b"\xd0\xcf\x11\xe0...": "old Excel workbook",
    b"\x1f\x8b...": "compressed",
    b"PAR1...": "Parquet",
    ",".join(f"column_{i}" for i in range(5000)): "it has column_0, column_1, column_2, column_3, column_4, column_5, ",
    "a\x1b[31m,b\rc" + "d" * 9000: r"it has 'a\x1b[31m', b",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_what_is_wrong_is_one_line(text):
    with pytest.raises(UserError) as error:
        parse(text)
    message = str(error.value)
    assert message.startswith("my.csv")
    assert REFUSED[text] in message
    assert message.isprintable()
    assert len(message) < 500


def test_a_file_that_is_not_there_or_a_folder(tmp_path):
    with pytest.raises(UserError, match="no.csv: cannot be read"):
        tabular.read(tmp_path / "no.csv")
    with pytest.raises(UserError, match="cannot be read"):
        tabular.read(tmp_path)


def test_thousands_of_columns():
    names = [f"c{i}" for i in range(5000)]
    table = parse(";".join(["image", "mos", *names]) + "\n" + ";".join(["a", "1,5", *map(str, range(5000))]) + "\n")
    assert table.numbers("c4999") == 4999
    assert table.find("nothing", "c7") == "c7"


NAMES = [  # of files on POSIX
    "plain.png", "a, b;c\td|e.png", ' "quoted" ', "two\nlines.png", "two\rlines.png", "2024\r\n.png", " leading.png",
    "bytes \udce9\udcff.png", "back\\slash.png", "'", '"', "sep=;", "日本.png", "e\u0301.png", "#1.png", "=1+1",
]  # fmt: skip


def test_what_is_written_comes_back_to_the_byte(tmp_path):
    rows = [(name, i / 7, None) for i, name in enumerate(NAMES)]
    data = tabular.to_csv(("path", "score", "error"), rows)
    (tmp_path / "my.csv").write_bytes(data)
    table = tabular.read(tmp_path / "my.csv", ("path",), ("score",))
    assert table.column("path") == NAMES
    assert table.numbers("score").tolist() == [i / 7 for i in range(len(NAMES))]
    assert [r["path"] for r in tabular.records(tmp_path / "my.csv", ("path",))] == NAMES
    lines = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="")
    assert [row["path"] for row in csv.DictReader(lines)] == NAMES  # anybody's reader agrees
    assert data.startswith(b"path,score,error\nplain.png,0.0,\n")


def test_bytes_that_are_not_utf8():
    table = parse("image,mos,note\ncafé.png,1,flou gaussién\n", encoding="cp1252")
    assert not table.utf8
    assert table.column("image") == ["caf\udce9.png"]
    assert table.labels("note") == ["flou gaussién"]
    assert parse("image,mos\ncafé.png,1\n").utf8


ROWS = [{"path": "a, b.png", "score": 0.1 + 0.2, "error": None}, {"path": "é.png", "score": None, "error": "damaged"}]


def write_jsonl(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_parquet(path):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    ("extension", "write"),
    [(".jsonl", write_jsonl), (".JSONL", write_jsonl), (".parquet", write_parquet), (".Parquet", write_parquet)],
)
def test_tables_in_other_formats(tmp_path, extension, write):
    path = tmp_path / f"my{extension}"
    write(path)
    table = tabular.read(path, ("path",), ("score",))
    assert table.column("path") == ["a, b.png", "é.png"]
    np.testing.assert_array_equal(table.numbers("score"), [0.1 + 0.2, np.nan])
    assert list(tabular.records(path)) == ROWS
    with pytest.raises(UserError, match="needs the columns mos; it has path, score, error"):
        tabular.read(path, ("mos",))
    path.write_bytes(b'{"path": "a.png", "score"')
    with pytest.raises(UserError, match="cannot be read as"):
        tabular.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        tabular.read(tmp_path / f"no{extension}")


@pytest.mark.parametrize(
    ("name", "there"),
    [
        (" a.png", "a.png"),
        ("a\\b.png", "a/b.png"),
        ("caf\udce9.png", "café.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("x\\cafe\u0301.png ", "x/caf\u00e9.png"),
    ],
)
def test_spellings_of_a_name(name, there):
    assert next(tabular.spellings(name)) == name
    assert there in tabular.spellings(name)
    assert tabular.plain(name) == tabular.plain(there)
