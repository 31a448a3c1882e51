"""The photos that are wanted, and copies of them."""

import pytest

from qualiclip_jax.errors import UserError
from qualiclip_jax.inference.files import Row
from qualiclip_jax.inference.selection import Selection, check_folder, gather

ROWS = [Row(name, score) for name, score in zip("abcdef", (0.5, 0.9, 0.1, None, 0.3, 0.7))]


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        (Selection(), "abcdef"),
        (Selection(worst=2), "ce"),
        (Selection(best=2), "bf"),
        (Selection(worst=1, best=1), "bc"),
        (Selection(below=0.5), "ce"),
        (Selection(best=1, below=0.2), "bc"),
        (Selection(worst=99), "abcef"),
        (Selection(below=0.0), ""),
    ],
)
def test_what_is_wanted(selection, names):
    assert "".join(row.path for row in selection.of(ROWS)) == names


@pytest.mark.parametrize("link", [False, True])
def test_nothing_is_overwritten_and_nothing_is_done_twice(link, tmp_path):
    for folder in ("x", "y", "z"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(folder.encode())
    target = tmp_path / "out"
    rows = [Row(str(tmp_path / folder / "1.jpg"), 0.5) for folder in ("x", "y")]
    for _ in range(2):
        assert gather(rows, target, link) == (2, [])
        assert {path.name: path.read_bytes() for path in target.iterdir()} == {"1.jpg": b"x", "1-2.jpg": b"y"}
    (tmp_path / "z" / "1.jpg").write_bytes(b"z")
    done, failed = gather([Row(str(tmp_path / "z" / "1.jpg"), 0.5), Row(str(tmp_path / "gone.jpg"), 0.5)], target, link)
    assert (done, len(failed)) == (1, 1)
    assert "No such file" in failed[0]
    assert sorted(path.name for path in target.iterdir()) == ["1-2.jpg", "1-3.jpg", "1.jpg"]
    same = (target / "1.jpg").stat().st_ino == (tmp_path / "x" / "1.jpg").stat().st_ino
    assert same == link


def test_folders_that_cannot_take_copies(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder, message in (("file", "is no folder"), ("no/out", "there is no folder")):
        with pytest.raises(UserError, match=message):
            check_folder(tmp_path / folder, "--copy-to")
    check_folder(tmp_path / "new", "--copy-to")
