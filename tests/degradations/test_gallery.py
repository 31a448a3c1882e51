"""The command line: the sheet, one degraded photograph, and what it says of mistakes."""

import jax
import numpy as np
import pytest
from PIL import Image

from qualiclip_jax import cli
from qualiclip_jax.degradations import GROUPS, TYPES, degrade, gallery
from qualiclip_jax.degradations.__main__ import main
from qualiclip_jax.degradations.catalog import FACTORS
from qualiclip_jax.errors import UserError


@pytest.fixture(scope="module")
def photo(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "astronaut.png"
    Image.fromarray(photos[0]).save(path)
    return path


def test_one_type_and_level_at_the_size_of_the_photo(photo, photos, tmp_path, capsys):
    out = tmp_path / "noisy.png"
    assert main([str(photo), "--type", "white_noise", "--level", "5", "--seed", "3", "--out", str(out)]) == cli.DONE
    expected = degrade("white_noise", photos[0] / np.float32(255), 5, jax.random.key(3))
    written = np.asarray(Image.open(out), np.float32)
    assert np.abs(written - np.asarray(expected) * 255).max() < 0.51
    assert "noisy.png (128 x 96 px)" in capsys.readouterr().out


def test_the_name_of_the_output_tells_what_it_is(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([str(photo), "--type", "darken"])
    assert [path.name for path in tmp_path.iterdir()] == ["astronaut_darken_3.png"]
    before = photo.read_bytes()
    for out in ([], ["--out", str(photo)]):
        with pytest.raises(UserError, match="exists already; choose another name"):
            main([str(photo), "--type", "darken", *out])
    assert photo.read_bytes() == before


def test_sheet_has_a_row_a_type_and_a_column_a_level(photo, tmp_path, monkeypatch):
    """With two types in place of 24, to compile less: the first row pixelated, the second darkened."""
    types = ("pixelate", "darken")
    monkeypatch.setattr(gallery, "TYPES", types)
    out = tmp_path / "sheet.png"
    assert main([str(photo), "--size", "80", "--tile", "80", "--out", str(out)]) == cli.DONE
    sheet = np.asarray(Image.open(out))
    left, top, step = gallery._LABEL, gallery._HEAD, 80 + gallery._GAP
    assert sheet.shape == (top + 2 * step, left + 6 * step, 3)
    pristine = gallery.square(np.asarray(Image.open(photo)), 80)
    for row, name in enumerate(types):
        for level in range(6):
            y, x = top + row * step, left + level * step
            expected = pristine
            if level:
                degraded = degrade(name, pristine / np.float32(255), level, jax.random.key(0))
                expected = np.round(np.asarray(degraded) * 255)
            np.testing.assert_allclose(sheet[y : y + 80, x : x + 80], expected, atol=1)
        assert (sheet[y : y + 80, :left] < 128).any()  # a label


def test_sheet_of_a_camera_has_a_row_a_factor_and_some_as_drawn(photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(photo), "--camera", "--size", "72", "--tile", "72"]) == cli.DONE
    sheet = np.asarray(Image.open("astronaut_camera.png"))
    left, top, step = gallery._LABEL, gallery._HEAD, 72 + gallery._GAP
    assert sheet.shape == (top + (len(FACTORS) + 1 + gallery._DRAWN) * step, left + 6 * step, 3)
    dark = sheet[top : top + 72, left + 5 * step :][:, :72] / 255
    pristine = gallery.square(np.asarray(Image.open(photo)), 72) / 255
    bright = pristine > 0.3  # there the sRGB curve is a power
    np.testing.assert_allclose((dark + 0.055)[bright], (pristine + 0.055)[bright] * 2 ** (-3.2 / 2.4), atol=0.004)
    tiles = sheet[top:, left:].reshape(-1, step, 6, step, 3)[:, :72, :, :72]
    change = np.abs(tiles[:, :, 1:] - tiles[:, :, :1].astype(float)).mean((1, 3, 4))  # [rows, levels]
    assert (change[:, 4] > change[:, 0]).all()


def test_sheet_of_all_types_names_every_group():
    tiles = [np.zeros((80, 80, 3), np.uint8)] * 6
    groups = {names[0]: group for group, names in GROUPS.items()}
    sheet = gallery._sheet([gallery._Row(tiles, groups.get(name, ""), (name, "meaning", "1 2")) for name in TYPES])
    assert sheet.shape == (gallery._HEAD + 24 * 84, gallery._LABEL + 6 * 84, 3)
    lines = (sheet[:, 0] != 255).any(-1).sum()  # one rule above each group
    assert lines >= len(GROUPS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--type", "jpg"], ["--type jpg", "jpeg2000, jpeg", TYPES[0], TYPES[-1]]),
        (["--type", "jpeg", "--level", "6"], ["--level 6", "1 to 5"]),
        (["--type", "jpeg", "--level", "0"], ["--level 0", "1 to 5"]),
        (["--level", "2"], ["--level", "--type"]),
        (["--camera", "--type", "jpeg"], ["--camera", "--type"]),
        (["--out", "missing/sheet.png"], ["missing/sheet.png", "no folder missing"]),
        (["--out", "sheet.xyz"], ["sheet.xyz", ".png"]),
        (["--out", "sheet.png", "--size", "16"], ["16 px", "32 px"]),
        (["--out", "sheet.png", "--tile", "10"], ["10 px", "72 px"]),
    ],
)
def test_mistakes_are_told_in_one_line(photo, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert cli.run(main, [str(photo), *arguments]) == cli.FAILED
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content"), [("missing.png", None), ("empty.png", b""), ("text.jpg", b"not an image")]
)
def test_unreadable_photo_is_told_in_one_line(tmp_path, capsys, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert cli.run(main, [str(path), "--out", str(tmp_path / "sheet.png")]) == cli.FAILED
    error = capsys.readouterr().err
    assert name in error
    assert error.count("\n") == 1
