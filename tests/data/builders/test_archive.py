"""Files found wherever the user put them."""

import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from qualiclip_jax.data.builders.archive import Archive
from qualiclip_jax.errors import UserError
from tests.data.builders.miniatures import workbook


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_whole_names_and_whole_folders_only(tmp_path):
    write(tmp_path / "a/images/1.png", b"one")
    write(tmp_path / "a/images/11.png", b"eleven")
    write(tmp_path / "a/other_images/1.png", b"other")
    with Archive(tmp_path) as archive:
        assert archive.read("images/1.png") == b"one"
        assert archive.read("other_images/1.png") == b"other"
        assert "s/1.png" not in archive
        assert "1.pn" not in archive
        assert archive.locate("IMAGES/11.PNG") == "a/images/11.png"


def test_extracted_before_packed_and_shallow_before_deep(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.txt", b"packed")
        file.writestr("b.txt", b"packed")
    write(tmp_path / "deep/er/a.txt", b"deeper")
    write(tmp_path / "deep/a.txt", b"deep")
    with Archive(tmp_path) as archive:
        assert archive.read("a.txt") == b"deep"
        assert archive.read("b.txt") == b"packed"


def test_two_that_could_be_meant_are_named(tmp_path):
    write(tmp_path / "old/a.txt", b"")
    write(tmp_path / "new/a.txt", b"")
    with Archive(tmp_path) as archive, pytest.raises(UserError, match="both new/a.txt and old/a.txt: leave only one"):
        archive.read("a.txt")


def test_same_name_in_upper_and_lower_case_the_exact_one_is_meant(tmp_path):
    write(tmp_path / "I01.bmp", b"upper")
    write(tmp_path / "i01.bmp", b"lower")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("a file system that ignores case")
    with Archive(tmp_path) as archive:
        assert archive.read("i01.bmp") == b"lower"
        assert archive.read("I01.bmp") == b"upper"


def test_what_a_mac_adds_is_ignored(tmp_path):
    write(tmp_path / "__MACOSX/._a.png", b"")
    write(tmp_path / "__MACOSX/a.png", b"")
    write(tmp_path / "._a.png", b"")
    write(tmp_path / ".DS_Store", b"")
    write(tmp_path / "a.png", b"a")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
        file.writestr("__MACOSX/c.png", b"")
        file.writestr("c.png", b"c")
    with Archive(tmp_path) as archive:
        assert archive.names(r"[^/]*\.png") == ["a.png", "c.png"]
        assert archive.images_beside({"a.png"}) == {"a.png"}


def test_formats_that_cannot_be_read_are_named_where_a_file_is_missing(tmp_path):
    write(tmp_path / "tid2013.rar", b"Rar!")
    with Archive(tmp_path) as archive:
        with pytest.raises(UserError, match=r"no mos.txt in .* \(tid2013.rar cannot be read here: extract it first\)"):
            archive.read("mos.txt")
        with pytest.raises(UserError, match=r"no a.csv and no b.csv in .*tid2013.rar"):
            archive.one_of("a.csv", "b.csv")


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_half_downloaded_archives_are_named_where_they_are_needed(name, tmp_path):
    write(tmp_path / name, b"PK\x03\x04" + b"x" * 100)
    write(tmp_path / "extracted/a.txt", b"a")
    with Archive(tmp_path) as archive:
        assert archive.read("a.txt") == b"a"
        with pytest.raises(UserError, match=rf"no b.txt in .*{name} is not a whole (zip|tar) file .*download it again"):
            archive.read("b.txt")


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="no: no such folder"):
        Archive(tmp_path / "no")


def test_many_threads_read_one_zip(tmp_path):
    contents = {f"{n}.bin": bytes([n]) * (1000 + n) for n in range(100)}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in contents.items():
            file.writestr(name, data)
    with Archive(tmp_path) as archive, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(archive.read, contents)) == list(contents.values())


def test_workbook_without_the_columns(tmp_path):
    workbook(tmp_path / "a.xlsx", ("Image", "Score"), ("1.png", 3))
    with Archive(tmp_path) as archive, pytest.raises(UserError, match=r"a.xlsx: no MOS in it \(it has Image, Score\)"):
        list(archive.sheet("a.xlsx", ("Image", "MOS")))


def test_workbook_with_broken_xml(tmp_path):
    workbook(tmp_path / "whole.xlsx", ("Image", "MOS"), ("1.png", 3))
    with zipfile.ZipFile(tmp_path / "whole.xlsx") as whole, zipfile.ZipFile(tmp_path / "a.xlsx", "w") as file:
        for name in whole.namelist():
            data = whole.read(name)
            file.writestr(name, data[: len(data) // 2] if "sheet1" in name else data)
    with Archive(tmp_path) as archive, pytest.raises(UserError, match="a.xlsx: cannot be read as an Excel workbook"):
        list(archive.sheet("a.xlsx", ("Image", "MOS")))


def test_table_with_a_quotation_mark_that_is_never_closed(tmp_path):
    write(tmp_path / "a.csv", b'name,mos\n1.png,"3\n' + b"2.png,3\n" * 20_000)
    with Archive(tmp_path) as archive, pytest.raises(UserError, match=r"a.csv, line \d+: field larger than"):
        list(archive.rows("a.csv", ("name", "mos")))
