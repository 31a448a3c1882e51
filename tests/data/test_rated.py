"""Ratings from a CSV file and a folder of images."""

import re

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax import tabular
from qualiclip_jax.data import rated
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four images of distinct sizes and shades in a folder, with the pixels each was made of."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = {}
    for index in range(4):
        name = f"photo {index}.png"
        pixels[name] = np.full((20 + index, 30, 3), 40 * index + 7, np.uint8)
        Image.fromarray(pixels[name]).save(folder / name)
    return folder, pixels


def write(path, *lines, encoding="utf-8"):
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_images_and_numbers_come_back_as_written(photos):
    folder, pixels = photos
    path = write(folder / "a.csv", "image,mos", *(f"{name},{i * 0.7}" for i, name in enumerate(pixels)))
    loaded = rated.load(f"csv:{path}")
    assert len(loaded) == 4
    assert loaded.ids == list(pixels)
    assert loaded.mos.dtype == np.float64
    np.testing.assert_array_equal(loaded.mos, [0, 0.7, 1.4, 3 * 0.7])
    for index, name in enumerate(loaded.ids):
        np.testing.assert_array_equal(loaded.image(index), pixels[name])
        assert loaded.image_bytes(index) == (folder / name).read_bytes()
    np.testing.assert_array_equal(loaded.image(-1), pixels["photo 3.png"])
    with pytest.raises(IndexError):
        loaded.image(4)
    assert loaded.native_direction == "higher"
    assert (loaded.mos_std, loaded.reference, loaded.distortion, loaded.level, loaded.split) == (None,) * 5


def test_optional_columns_in_any_order_and_an_unknown_one(photos, tmp_path):
    path = write(
        tmp_path / "a.csv",
        "level;split;MOS;comment;image;mos_std;distortion;reference",
        "3;test;1,5;no;photo 0.png;0,25;jpeg;sky.png",
        ";;2,5;;photo 1.png;n/a;;",
        encoding="utf-8-sig",
    )
    loaded = rated.load(f"csv:{path}@{photos[0]}")
    assert loaded.level.dtype == np.int32
    np.testing.assert_array_equal(loaded.level, [3, 0])
    np.testing.assert_array_equal(loaded.mos, [1.5, 2.5])
    np.testing.assert_array_equal(loaded.mos_std, [0.25, np.nan])
    assert loaded.split == ["test", ""]
    assert loaded.distortion == ["jpeg", ""]
    assert loaded.reference == ["sky.png", ""]


def test_dmos_is_mirrored(photos, tmp_path):
    path = write(tmp_path / "a.csv", "image,dmos", "photo 0.png,10", "photo 1.png,70", "photo 2.png,30")
    loaded = rated.load(f"csv:{path}@{photos[0]}")
    np.testing.assert_array_equal(loaded.mos, [70, 10, 50])
    assert loaded.native_scale == (10, 70)
    assert loaded.native_direction == "lower"


def test_quoted_names_and_an_at_sign_in_the_path(photos, tmp_path):
    folder = tmp_path / "me@home"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a, b.png")
    path = write(folder / "x@y.csv", "image,mos", '"a, b.png",1')
    assert rated.load(f"csv:{path}").image(0).shape == (8, 8, 3)
    assert rated.load(f"csv:{path}@{folder}").ids == ["a, b.png"]


def test_home_folder(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").symlink_to(photos[0])
    write(tmp_path / "a.csv", "image,mos", "photo 0.png,1")
    assert rated.load("csv:~/a.csv@~/images").ids == ["photo 0.png"]
    write(photos[0] / "home.csv", "image,mos", "photo 1.png,1")
    assert rated.load("csv:~/images/home.csv").ids == ["photo 1.png"]


def test_missing_images_are_named_and_counted(photos, tmp_path):
    names = ["photo 0.png", "gone1.png", "photo 2.png", *(f"gone{i}.png" for i in range(2, 6))]
    path = write(tmp_path / "a.csv", "image,mos,level", *(f"{name},{i},{i}" for i, name in enumerate(names)))
    with pytest.raises(UserError, match=r"5 of 7 images.*gone1.png, gone2.png, gone3.png, \.\.\."):
        rated.load(f"csv:{path}@{photos[0]}")
    loaded = rated.load(f"csv:{path}@{photos[0]}", allow_missing=True)
    assert loaded.ids == ["photo 0.png", "photo 2.png"]
    assert loaded.missing == 5
    np.testing.assert_array_equal(loaded.mos, [0, 2])
    np.testing.assert_array_equal(loaded.level, [0, 2])
    np.testing.assert_array_equal(loaded.image(1), photos[1]["photo 2.png"])


def test_all_images_missing_is_an_error_even_if_missing_is_allowed(tmp_path):
    path = write(tmp_path / "a.csv", "image,mos", "a.png,1")
    with pytest.raises(UserError, match="1 of 1 images"):
        rated.load(f"csv:{path}", allow_missing=True)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image,score", "photo 0.png,1"], "needs the columns image .* and mos .*it has image, score"),
        (["image,mos,dmos", "photo 0.png,1,1"], "has both mos and dmos"),
        (["image,mos"], "no rows"),
        (["image,mos", "photo 0.png,1", "photo 1.png,good"], "line 3, mos: 'good' is not a finite number"),
        (["image,mos", "photo 0.png,nan"], "line 2, mos: 'nan' is not a finite"),
        (["image,mos", "photo 0.png,"], "line 2, mos: '' is not a finite number"),
        (["image;mos", "photo 0.png;1.234,5"], "line 2, mos: '1.234,5' has a comma and a point"),
        (["image,mos", "photo 0.png,1", "", "photo 0.png,2"], "line 4: photo 0.png is rated already, in line 2"),
        (["image,mos", "photo 0.png,1", " photo 0.png ,2"], "line 3: photo 0.png is rated already, in line 2"),
        (["image,mos", ",1"], "line 2, image: is empty"),
        (["image,mos,level", "photo 0.png,1,-1"], "line 2, level: -1 is not a level"),
        (["image,mos,level", "photo 0.png,1,1e30"], "line 2, level: 1e.30 is not a level"),
        (["image,mos,mos_std", "photo 0.png,1,wide"], "line 2, mos_std: 'wide'"),
        (["image,mos", "x" * 300 + ".png,1", "photo 0.png,1"], "1 of 2 images are not in"),
        (
            ["image,mos", '"two\nlines.png",1', "photo 0.png,1"],
            r"1 of 2 images are not in .*'two.nlines.png' \(--allow",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(photos, tmp_path, lines, message):
    path = write(tmp_path / "a.csv", *lines)
    with pytest.raises(UserError, match=message) as error:
        rated.load(f"csv:{path}@{photos[0]}")
    assert "\n" not in str(error.value)


def test_image_that_is_gone_or_damaged_later_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    loaded = rated.load(f"csv:{write(tmp_path / 'a.csv', 'image,mos', 'a.png,1', 'b.png,2')}")
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match="a.png: cannot be read"):
        loaded.image(0)
    with pytest.raises(ImageError, match="b.png: not an image"):
        loaded.image(1)


def test_missing_file_folder_or_text(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        rated.load(f"csv:{tmp_path}/no.csv")
    path = write(tmp_path / "a.csv", "image,mos", "a.png,1")
    with pytest.raises(UserError, match="no such folder"):
        rated.load(f"csv:{path}@{tmp_path}/no")


@pytest.mark.parametrize(
    ("column", "values", "splits", "note"),
    [
        ("split", ["Test", "TRAIN", "Validation", ""], ["test", "train", "validation", ""], None),
        ("Set", ["testing", "training", "val", " test "], ["test", "train", "validation", "test"], None),
        ("split", ["test", "1", "fold 2", "0"], ["test", "", "", ""], "column split: not known .*: 0, 1, fold 2"),
    ],
)
def test_names_of_splits(photos, tmp_path, column, values, splits, note):
    rows = [f"photo {i}.png,{i},{value}" for i, value in enumerate(values)]
    loaded = rated.load(f"csv:{write(tmp_path / 'a.csv', f'image,mos,{column}', *rows)}@{photos[0]}")
    assert loaded.split == splits
    assert len(loaded.notes) == (note is not None)
    assert note is None or re.match(note, loaded.notes[0])


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        ("distorsion", "columns not used: distorsion (is distortion meant?)"),
        ("Votes,References", "columns not used: references (is reference meant?), votes"),
        ("MOS std", "columns not used: mos std (is mos_std meant?)"),
        ("level", "column level: no figure of an evaluation depends on it"),
        ("subset", "columns not used: subset"),
        ("distortion,distortion_type", "columns not used: distortion_type"),
        ("distortion,path,", None),
    ],
)
def test_columns_that_say_nothing_are_reported(photos, tmp_path, columns, note):
    more = "," * columns.count(",")
    path = write(tmp_path / "a.csv", f"image,mos,{columns}", f"photo 0.png,1,{more}", f"photo 1.png,2,{more}")
    assert rated.load(f"csv:{path}@{photos[0]}").notes == (() if note is None else (note,))


def test_names_as_other_systems_write_them(tmp_path):
    names = {"a\\b.png": "a/b.png", " c.png ": "c.png", "d\n\r.png": "d\n\r.png", "caf\udce9.png": "café.png"}
    (tmp_path / "a").mkdir()
    for name in names.values():
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    (tmp_path / "my.csv").write_bytes(tabular.to_csv(("image", "mos"), [(name, i) for i, name in enumerate(names)]))
    loaded = rated.load(f"csv:{tmp_path}/my.csv")
    assert loaded.ids == list(names.values())
    assert loaded.image(3).shape == (8, 8, 3)
    assert "is not UTF-8" in loaded.notes[0]
