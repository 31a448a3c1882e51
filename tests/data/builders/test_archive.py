"""Files found wherever the user put them."""

import io
import os
import struct
import tarfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qualiclip_jax.data.builders.archive import Archive
from qualiclip_jax.errors import UserError
from tests.data.builders.miniatures import workbook
from tests.memory import growth


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


def test_archives_inside_archives_are_named_where_a_file_is_missing(tmp_path):
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as file:
        file.writestr("inner.zip", b"PK")
    with Archive(tmp_path) as archive, pytest.raises(UserError, match="outer.zip/inner.zip is packed twice: extract"):
        archive.read("labels.csv")


def test_folders_that_cannot_be_read_are_named_where_a_file_is_missing(tmp_path, monkeypatch):
    def unreadable(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", unreadable)
    with Archive(tmp_path) as archive, pytest.raises(UserError, match="no a.csv .*cannot be read .Permission denied"):
        archive.read("a.csv")


def zip_of_zeros(path: Path, name: str, size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file, file.open(name, "w") as member:
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))


def test_bombs_take_no_memory(tmp_path):
    """80 MiB of zeros, packed in every way; files that say less than they hold; a list that says more."""
    size = 80 << 20
    zip_of_zeros(tmp_path / "a.zip", "a.csv", size)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("b.csv", bytes(100))
    zip_of_zeros(tmp_path / "c.zip", "c.csv", size)
    liar = tmp_path / "c.zip"
    liar.write_bytes(liar.read_bytes().replace(struct.pack("<I", size), struct.pack("<I", 10)))
    with tarfile.open(tmp_path / "d.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        sparse = tarfile.TarInfo("d.csv")
        sparse.pax_headers = {"GNU.sparse.map": "0,10", "GNU.sparse.size": str(size)}
        sparse.size = 10
        tar.addfile(sparse, io.BytesIO(bytes(10)))
    zip_of_zeros(tmp_path / "e.xlsx", "xl/worksheets/sheet1.xml", size)
    deflate = zlib.compressobj(1)
    data = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(size >> 20)) + deflate.flush()
    header = b"MATLAB 5.0".ljust(124) + struct.pack("<H2s", 0x0100, b"IM")
    write(tmp_path / "f.mat", header + struct.pack("<II", 15, len(data)) + data)
    write(tmp_path / "g.mat", header + struct.pack("<II", 15, len(_huge_cell())) + _huge_cell())
    with open(tmp_path / "h.csv", "wb") as file:
        file.truncate(size)

    setup = f"""
import openpyxl, scipy.io
from qualiclip_jax.data.builders.archive import Archive
from qualiclip_jax.errors import UserError
archive = Archive({str(tmp_path)!r})
def call(name):
    try:
        if name.endswith("xlsx"):
            return len(list(archive.sheet(name, ("a",))))
        return len(archive.mat(name, ("a",)) if name.endswith("mat") else archive.read(name))
    except UserError as error:
        return error
"""
    expected = {
        "a.csv": "would unpack to 84 MB",
        "b.csv": "another method than deflate",
        "c.csv": "Bad CRC-32",
        "d.csv": "would unpack to 84 MB",
        "e.xlsx": "would unpack to more than",
        "f.mat": "would unpack to more than",
        "g.mat": "would unpack to more than",
        "h.csv": "would unpack to 84 MB",
    }
    for (name, words), (mebibytes, said) in zip(expected.items(), growth(setup, list(expected)), strict=True):
        assert words in said, (name, said)
        assert mebibytes <= (64 if name == "f.mat" else 4), (name, mebibytes)


def _huge_cell() -> bytes:
    """A compressed variable that claims to be a list of a thousand million strings."""
    flags = struct.pack("<IIII", 6, 8, 1, 0)
    shape = struct.pack("<IIii", 5, 8, 1, 10**9)
    matrix = flags + shape + struct.pack("<HH4s", 1, 1, b"a")
    return zlib.compress(struct.pack("<II", 14, len(matrix)) + matrix)
