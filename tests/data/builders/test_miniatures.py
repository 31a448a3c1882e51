"""Every builder, on a miniature of its set in the official layout: right and broken."""

import dataclasses
import shutil
import tarfile
import zipfile

import numpy as np
import pytest

from qualiclip_jax.data import rated
from qualiclip_jax.data.builders import IMAGE_SETS, artificial
from qualiclip_jax.data.builders.archive import Archive
from qualiclip_jax.data.builders.builder import check
from qualiclip_jax.data.prepare import prepare
from qualiclip_jax.errors import UserError
from tests.data.builders.miniatures import CIDIQ_REFERENCES, LAYOUTS, LIVE_FOLDERS, live, picture, text

RATED = [name for name in LAYOUTS if IMAGE_SETS[name].rated]


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
    """The two readers that know how many ratings their set has, with the numbers of the miniatures."""
    monkeypatch.setattr(artificial, "LIVE_FOLDERS", LIVE_FOLDERS)
    monkeypatch.setattr(artificial, "_CIDIQ_REFERENCES", CIDIQ_REFERENCES)


def miniature(name, root):
    """Writes a miniature; returns its source with the published number replaced, and the expected records."""
    records = LAYOUTS[name](root)
    return dataclasses.replace(IMAGE_SETS[name], images=len(records)), records


def first_image(root, record):
    """The file of a record, wherever below `root` it lies."""
    with Archive(root) as archive:
        return root / archive.locate(record.image)


def test_all_sets_have_a_miniature():
    assert set(LAYOUTS) == set(IMAGE_SETS)


@pytest.mark.parametrize("name", RATED)
def test_prepared_set_equals_the_labels(name, tmp_path, monkeypatch):
    source, records = miniature(name, tmp_path / "manual")
    done = prepare(source, tmp_path / "manual", tmp_path / "data")
    assert (done.images, done.missing, done.lacking, done.was_there) == (len(records), 0, (), False)

    loaded = rated.load(name, tmp_path / "data")
    assert loaded.ids == [r.image for r in records]
    published = np.array([r.mos for r in records], np.float64)
    if name in ("live", "csiq"):
        assert loaded.native_direction == "lower"
        np.testing.assert_allclose(loaded.mos, source.scale[1] - published, rtol=0, atol=1e-12)
    else:
        assert loaded.native_direction == "higher"
        np.testing.assert_array_equal(loaded.mos, published)
    assert loaded.native_scale == (source.scale or (published.min(), published.max()))
    assert (loaded.title, loaded.licence, loaded.url) == (source.title, source.terms, source.url)
    for field in ("mos_std", "distortion", "level", "reference", "split"):
        expected = [getattr(r, field) for r in records]
        got = getattr(loaded, field)
        if expected[0] is None:
            assert got is None, field
        elif field == "mos_std":
            np.testing.assert_allclose(got, expected, rtol=1e-15)
        else:
            assert list(got) == expected, field
    for index, record in enumerate(records):
        file = first_image(tmp_path / "manual", record)
        assert loaded.image_bytes(index) == file.read_bytes()
        assert loaded.image(index).shape == (7, 9, 3)


def test_pristine_images_come_back_as_published(tmp_path):
    import tensorflow_datasets as tfds

    source, records = miniature("kadis700k", tmp_path / "manual")
    done = prepare(source, tmp_path / "manual", tmp_path / "data")
    builder = tfds.builder("kadis700k", data_dir=tmp_path / "data")
    stored = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    assert [example["id"].decode() for example in stored] == [r.image for r in records]
    for example, record in zip(stored, records):
        assert example["image"] == (tmp_path / "manual/kadis700k" / record.image).read_bytes()
    assert done.images == 3
    with pytest.raises(UserError, match="no rated image set 'kadis700k'"):
        rated.load("kadis700k", tmp_path / "data")


@pytest.mark.parametrize("name", LAYOUTS)
def test_zip_and_tar_archives_are_read_unextracted(name, tmp_path):
    source, records = miniature(name, tmp_path / "extracted")
    with Archive(tmp_path / "extracted") as archive:
        expected = check(source, archive)
    assert [r.image for r in expected[0]] == [r.image for r in records]
    assert expected[1] == []
    (tmp_path / "packed").mkdir()
    shutil.make_archive(tmp_path / "packed" / name, "zip", tmp_path / "extracted")
    with Archive(tmp_path / "packed") as archive:
        assert check(source, archive) == expected
        data = archive.read(records[0].image)
    assert data == first_image(tmp_path / "extracted", records[0]).read_bytes()
    (tmp_path / "packed" / f"{name}.zip").unlink()
    with tarfile.open(tmp_path / "packed" / f"{name}.tar", "w") as tar:
        tar.add(tmp_path / "extracted", "top")
    with Archive(tmp_path / "packed") as archive:
        assert check(source, archive) == expected
        assert archive.read(records[0].image) == data


@pytest.mark.parametrize("name", LAYOUTS)
def test_archive_left_beside_what_was_extracted(name, tmp_path):
    source, records = miniature(name, tmp_path / "manual")
    shutil.make_archive(tmp_path / name, "zip", tmp_path / "manual")
    shutil.move(tmp_path / f"{name}.zip", tmp_path / "manual")
    with Archive(tmp_path / "manual") as archive:
        found, missing = check(source, archive)
        assert missing == []
        assert [archive.locate(r.image).startswith(f"{name}.zip") for r in found] == [False] * len(records)


def test_kadis_without_its_list_takes_what_is_there(tmp_path):
    source, records = miniature("kadis700k", tmp_path)
    (tmp_path / "kadis700k/kadis700k_ref_imgs.csv").unlink()
    with Archive(tmp_path) as archive:
        found, missing = check(source, archive)
    assert missing == []
    assert [r.image for r in found] == sorted(r.image for r in records)


def test_images_left_in_an_archive_that_cannot_be_read_are_explained(tmp_path):
    source, _ = miniature("tid2013", tmp_path)
    shutil.rmtree(tmp_path / "tid2013/distorted_images")
    (tmp_path / "tid2013.rar").write_bytes(b"Rar!")
    with pytest.raises(UserError, match="3 of 3 images.*tid2013.rar cannot be read here: extract it first"):
        prepare(source, tmp_path, tmp_path / "data")
    with pytest.raises(UserError, match="none of the images of TID2013.*tid2013.rar cannot be read here"):
        prepare(source, tmp_path, tmp_path / "data", allow_missing=True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_image_is_named_and_stops(name, tmp_path):
    source, records = miniature(name, tmp_path / "manual")
    first_image(tmp_path / "manual", records[1]).unlink()
    with pytest.raises(UserError) as error:
        prepare(source, tmp_path / "manual", tmp_path / "data")
    assert f"1 of {len(records)} images are incomplete" in str(error.value)
    assert f"no image {records[1].image}" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data" / name / "1.0.0").exists()

    done = prepare(source, tmp_path / "manual", tmp_path / "data", allow_missing=True)
    assert (done.images, done.missing) == (len(records) - 1, 1)
    if source.rated:
        loaded = rated.load(name, tmp_path / "data")
        assert loaded.missing == 1
        assert loaded.ids == [r.image for r in records if r is not records[1]]
        np.testing.assert_allclose(loaded.mos[1], source.to_mos(records[2].mos))
        assert loaded.image_bytes(1) == first_image(tmp_path / "manual", records[2]).read_bytes()


@pytest.mark.parametrize("name", LAYOUTS)
def test_unreadable_images_are_all_named_and_stop(name, tmp_path):
    source, records = miniature(name, tmp_path / "manual")
    whole = first_image(tmp_path / "manual", records[0])
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    first_image(tmp_path / "manual", records[2]).write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError) as error:
        prepare(source, tmp_path / "manual", tmp_path / "data")
    assert f"2 of {len(records)} images are incomplete" in str(error.value)
    assert f"cannot read {records[0].image}" in str(error.value)
    assert f"cannot read {records[2].image}" in str(error.value)
    assert not (tmp_path / "data" / name / "1.0.0").exists()

    done = prepare(source, tmp_path / "manual", tmp_path / "data", allow_missing=True)
    assert (done.images, done.missing) == (len(records) - 2, 2)
    if source.rated:
        loaded = rated.load(name, tmp_path / "data")
        assert loaded.ids[0] == records[1].image
        assert loaded.image_bytes(0) == first_image(tmp_path / "manual", records[1]).read_bytes()


@pytest.mark.parametrize("name", RATED)
def test_image_without_a_rating_is_named_and_stops(name, tmp_path):
    source, records = miniature(name, tmp_path / "manual")
    beside = first_image(tmp_path / "manual", records[0])
    picture(beside.with_name("stranger.png"))
    with pytest.raises(UserError, match=r"no rating for .*stranger\.png"):
        prepare(dataclasses.replace(source, images=len(records) + 1), tmp_path / "manual", tmp_path / "data")
    done = prepare(source, tmp_path / "manual", tmp_path / "data", allow_missing=True)
    assert (done.images, done.missing) == (len(records), 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_number_is_compared_with_the_published_one(name, tmp_path):
    source, records = miniature(name, tmp_path / "manual")
    short = dataclasses.replace(source, images=len(records) + 5)
    with pytest.raises(UserError, match=f"5 of {len(records) + 5} images are incomplete"):
        prepare(short, tmp_path / "manual", tmp_path / "data")
    with pytest.raises(UserError, match="not the published set"):
        prepare(dataclasses.replace(source, images=2), tmp_path / "manual", tmp_path / "data", allow_missing=True)
    assert prepare(short, tmp_path / "manual", tmp_path / "data", allow_missing=True).missing == 5


@pytest.mark.parametrize("name", RATED)
def test_missing_label_file_is_named(name, tmp_path):
    source, _ = miniature(name, tmp_path / "manual")
    with Archive(tmp_path / "manual") as archive:
        check(source, archive)
        labels = archive.label_files
    for path in labels:
        (tmp_path / "manual" / path).unlink()
    # The other label file that some sets have, and the other sets share no name with.
    for other in ("koniq10k_scores_and_distributions.csv", "AIGC_all.csv", "dmos.mat"):
        for path in (tmp_path / "manual").rglob(other):
            path.unlink()
    with pytest.raises(UserError, match=r"\.(csv|mat|xlsx|txt)") as error:
        prepare(source, tmp_path / "manual", tmp_path / "data")
    assert str(tmp_path / "manual") in str(error.value)
    assert "\n" not in str(error.value)


def test_published_numbers():
    """Against a second list of them, kept apart from the builders."""
    numbers = {
        "kadis700k": 140_000, "koniq10k": 10_073, "clive": 1_162, "flive": 39_810, "spaq": 11_125, "uhd_iqa": 6_073,
        "kadid10k": 81 * 25 * 5, "tid2013": 25 * 24 * 5, "live": 982 - 203, "csiq": 866, "pipal": 200 * 116,
        "cidiq50": 23 * 6 * 5, "cidiq100": 23 * 6 * 5, "agiqa1k": 12 * 15 * 4 + 9 * 10 * 4, "agiqa3k": 2_982,
    }  # fmt: skip
    assert {name: source.images for name, source in IMAGE_SETS.items()} == numbers
    assert len(artificial.KADID10K_DISTORTIONS) == 25
    assert len(artificial.TID2013_DISTORTIONS) == 24


def test_live_without_the_realigned_ratings(tmp_path):
    records = live(tmp_path / "manual", realigned=False)
    source = dataclasses.replace(IMAGE_SETS["live"], images=len(records))
    done = prepare(source, tmp_path / "manual", tmp_path / "data")
    assert done.label_files == ("databaserelease2/refnames_all.mat", "databaserelease2/dmos.mat")
    loaded = rated.load("live", tmp_path / "data")
    np.testing.assert_allclose(loaded.mos, [100 - r.mos for r in records])
    assert loaded.mos_std is None
    assert loaded.label_files == done.label_files


def test_flive_tables_under_the_names_of_the_authors_code(tmp_path):
    source, records = miniature("flive", tmp_path)
    (tmp_path / "labels640.csv").rename(tmp_path / "labels>640.csv")
    (tmp_path / "labels=640_padded.csv").rename(tmp_path / "labels<=640_padded.csv")
    with Archive(tmp_path) as archive:
        assert check(source, archive) == (records, [])


def test_koniq_without_the_file_of_splits_reads_the_z_scores(tmp_path):
    source, records = miniature("koniq10k", tmp_path)
    (tmp_path / "koniq10k_distributions_sets.csv").unlink()
    shutil.rmtree(tmp_path / "1024x768")
    head = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore"
    names = [r.image.partition("/")[2] for r in records]
    lines = [f'"{name}",0,0,25,73,7,105,3.8,0.5,{r.mos}' for name, r in zip(names, records)]
    text(tmp_path / "scores/koniq10k_scores_and_distributions.csv", head, *lines)
    with Archive(tmp_path) as archive:
        found, missing = check(source, archive)
    assert missing == []
    assert [(r.image, r.mos, r.split) for r in found] == [
        (f"512x384/{name}", r.mos, None) for name, r in zip(names, records)
    ]


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("koniq10k", "koniq10k_distributions_sets.csv", ",21.25,", ",?,", r"line 3: '\?' is not a number"),
        ("koniq10k", "koniq10k_distributions_sets.csv", "MOS", "score", "needs the columns .* it has image_name, c1"),
        ("koniq10k", "koniq10k_distributions_sets.csv", "validation", "val", "line 3: set is 'val'"),
        ("kadid10k", "kadid10k/dmos.csv", "I01_25_05", "I01_26_05", "line 3: 'I01_26_05.png' does not name"),
        ("kadid10k", "kadid10k/dmos.csv", "I81_09_03", "I01_01_01", "listed twice"),
        ("tid2013", "tid2013/mos_with_names.txt", "2.5 I01", "2.5, I 01", "line 2: .* is not a rating and a file"),
        ("tid2013", "tid2013/mos_std.txt", "0.2\n", "", "mos_with_names.txt has 3 lines, mos_std.txt 2"),
        ("pipal", "MOS_Scores_train/A0001.txt", "bmp,", "bmp;", "line 1: .* is not a file name and a rating"),
        ("flive", "labels_image.csv", "58.65", "nan", "line 3: 'nan' is not a number"),
        ("uhd_iqa", "uhd-iqa-metadata.csv", "0.25,validation,,6000", "0.25", "line 3: 2 fields, the header has 5"),
    ],
)
def test_damaged_labels_are_named_with_their_line(name, file, old, new, message, tmp_path):
    source, _ = miniature(name, tmp_path)
    whole = (tmp_path / file).read_text()
    assert old in whole
    (tmp_path / file).write_text(whole.replace(old, new))
    with pytest.raises(UserError, match=message) as error, Archive(tmp_path) as archive:
        check(source, archive)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("clive", "ChallengeDB_release/Data/AllMOS_release.mat"),
        ("csiq", "csiq.DMOS.xlsx"),
        ("live", "refnames_all.mat"),
    ],
)
def test_binary_label_files_that_are_damaged(name, file, tmp_path):
    source, _ = miniature(name, tmp_path)
    (path,) = [p for p in tmp_path.rglob("*") if p.as_posix().endswith(file)]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read as") as error, Archive(tmp_path) as archive:
        check(source, archive)
    assert "\n" not in str(error.value)


def test_damaged_image_inside_a_zip_is_named(tmp_path):
    source, records = miniature("agiqa3k", tmp_path / "extracted")
    (tmp_path / "manual").mkdir()
    path = tmp_path / "manual/file.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for member in sorted((tmp_path / "extracted").rglob("*.*")):
            file.write(member, member.relative_to(tmp_path / "extracted"))
    data = bytearray(path.read_bytes())
    image = first_image(tmp_path / "extracted", records[1]).read_bytes()
    data[data.index(image) + 30] ^= 255
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"1 of 3 images.*cannot read {records[1].image}.*CRC"):
        prepare(source, tmp_path / "manual", tmp_path / "data")
