"""Which files are meant: names in lists are bytes, and all but the separator may be in them."""

import io
import os
import sys

import pytest

from qualiclip_jax.errors import UserError
from qualiclip_jax.inference.arguments import collect, split_names

ODD = [
    b"caf\xe9.png", b"vertical\x0btab", b"form\x0cfeed", b"unit\x1c\x1d\x1eseparators", b"next\xc2\x85line",
    b"line\xe2\x80\xa8separator", b" spaces ", b"carriage\rreturn", b'quote"d, and more', b"=1+1", b"\xff",
]  # fmt: skip


@pytest.mark.parametrize(("null", "separator", "names"), [(False, b"\n", ODD), (True, b"\0", [*ODD, b"new\nline"])])
@pytest.mark.parametrize("ended", [True, False])
def test_names_are_split_at_the_separator_alone(null, separator, names, ended):
    data = separator.join(names) + separator * ended
    assert [os.fsencode(name) for name in split_names(data, null)] == names


def test_lists_made_on_windows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "really\r").touch()
    assert split_names(b"\xef\xbb\xbfa.png\r\nb.png\r\n\r\nreally\r\n") == ["a.png", "b.png", "really\r"]
    with pytest.raises(UserError, match="NUL"):
        split_names("a.png\n".encode("utf-16"))


def test_files_folders_patterns_and_lists(tmp_path, monkeypatch):
    for name in ("a.png", "b.png", "sub/c.png", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert collect(["b.png", "gone.png", "*.png", "sub"]) == (["b.png", "gone.png", "a.png", "sub/c.png"], [])
    for name in ("empty", "x*"):
        with pytest.raises(UserError, match="no images there"):
            collect([name])
        found, problems = collect([name, "a.png", "nothing?.png"])
        assert found == ["a.png"]
        assert [problem.path for problem in problems] == [name, "nothing?.png"]
        assert str(problems[0]).startswith(f"{name}: no images there (looked for")

    def listed(text: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return collect(["-", "a.png"] if text else ["-"])[0]

    assert listed("sub\nempty\ngone[1].png\na.png\n\n") == ["sub/c.png", "gone[1].png", "a.png"]
    with pytest.raises(UserError, match="names no image"):
        listed("")
