"""Finding image files: which count, which are left out, and that nothing is left out silently."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qualiclip_jax.data.sources import open_source
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import IMAGE_EXTENSIONS, ImageError, list_images, write_image


def test_lists_images_of_folders_and_patterns(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "sub/c.webp", "sub/deep/d.tif", ".cache/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(where) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in list_images(where)]

    assert names(tmp_path) == ["a.png", "b.JPG", "sub/c.webp", "sub/deep/d.tif"]
    assert names(f"{tmp_path}/*.png") == ["a.png"]
    assert names(f"{tmp_path}/**/*.tif") == ["sub/deep/d.tif"]
    assert names(f"{tmp_path}/s*") == ["sub/c.webp", "sub/deep/d.tif"]
    assert names(tmp_path / "notes.txt") == ["notes.txt"]
    (tmp_path / "[1].png").touch()
    assert names(tmp_path / "[1].png") == ["[1].png"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no images there"):
        list_images(tmp_path / "none")
    with pytest.raises(UserError, match="no such file or folder"):
        list_images(tmp_path / "nowhere")
    assert all(extension == extension.lower() for extension in IMAGE_EXTENSIONS)


def test_system_folders_are_left_out_unless_they_are_named(tmp_path):
    for folder in ("@eaDir", "__MACOSX", ".AppleDouble", "#recycle", "lost+found", "$RECYCLE.BIN", "a/@EADIR/b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "thumbnail.jpg").touch()
    (tmp_path / "a/._photo.jpg").touch()
    (tmp_path / "a/photo.jpg").touch()
    photo = [tmp_path / "a/photo.jpg"]
    assert list_images(tmp_path) == photo
    assert list_images(f"{tmp_path}/*") == photo
    assert list_images(f"{tmp_path}/**/*.jpg") == list_images(f"{tmp_path}/*/**") == photo
    thumbnail = [tmp_path / "@eaDir/thumbnail.jpg"]
    assert list_images(tmp_path / "@eaDir") == thumbnail
    assert list_images(f"{tmp_path}/@eaDir/*.jpg") == thumbnail


def test_stars_do_not_follow_links(tmp_path):
    """Each of two links to the folder above would lead to both again, and so on."""
    for name in ("a/b/photo.jpg", "a/.hidden/photo.jpg", "c/photo.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("a/up", "a/b/up", "c/top"):
        (tmp_path / name).symlink_to(tmp_path, target_is_directory=True)
    found = [tmp_path / "a/b/photo.jpg", tmp_path / "c/photo.jpg"]
    for pattern in ("**/*.jpg", "**", "**/**/photo.jpg", "[ac]/**/*.jpg", "**/[bc]/*.jpg"):
        assert list_images(f"{tmp_path}/{pattern}") == found, pattern
    assert list_images(f"{tmp_path}/c/top/a/**/*.jpg") == [tmp_path / "c/top/a/b/photo.jpg"]  # a link that is named


def test_what_matches_but_cannot_be_an_image_is_listed_nevertheless(tmp_path):
    """Reading it says what is wrong; leaving it out would hide it."""
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert list_images(tmp_path) == list_images(f"{tmp_path}/*.jpg") == [tmp_path / "gone.jpg"]


@pytest.fixture
def locked(tmp_path, monkeypatch) -> Iterator[Path]:
    """The working folder holds open/photo.png and locked/deep/photo.png; `locked` cannot be read."""
    for folder in ("open", "locked/deep"):
        (tmp_path / folder).mkdir(parents=True)
        write_image(tmp_path / folder / "photo.png", np.zeros((32, 32, 3), np.uint8))
    monkeypatch.chdir(tmp_path)  # nobody may stand here, but not come here
    tmp_path.chmod(0o755)
    (tmp_path / "open/photo.png").chmod(0o644)
    (tmp_path / "locked").chmod(0)
    yield Path()
    (tmp_path / "locked").chmod(0o755)


@pytest.mark.parametrize("where", [".", "**/*.png", "*/*.png", "*/photo.png", "*", "*/deep/*.png", "[lo]*/**"])
def test_folders_that_cannot_be_read_are_reported(where, locked, ordinary_user, caplog):
    errors: list[ImageError] = []
    with ordinary_user():
        found = list_images(where, errors.append)
    assert found == ([] if "deep" in where else [Path("open/photo.png")])
    assert [(error.path.strip("./"), error.reason) for error in errors] == [
        ("locked", "the folder cannot be read (Permission denied)")
    ]
    assert not caplog.records


def test_unreadable_folders_are_logged_by_default(locked, ordinary_user, caplog):
    with ordinary_user(), caplog.at_level(logging.WARNING):
        assert len(open_source("folder:.")) == 1
        assert [record.getMessage() for record in caplog.records] == [
            "./locked: the folder cannot be read (Permission denied)"
        ]
        with pytest.raises(ImageError, match="locked: the folder cannot be read"):
            list_images("locked")
