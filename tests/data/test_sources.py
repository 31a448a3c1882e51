"""Sources of pristine images: folders, prepared tfds data sets, scikit-image's photographs."""

import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax.data.sources import SAMPLES, open_source
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError


def picture(seed: int, size=(20, 30)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nature" / "sea").mkdir(parents=True)
    for seed, name in enumerate(("b.png", "a.png", "nature/sea/c.PNG")):
        Image.fromarray(picture(seed)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_folder_is_read_with_its_subfolders(folder):
    source = open_source(f"folder:{folder}")
    assert len(source) == 3
    assert list(source.names) == ["a.png", "b.png", "nature/sea/c.PNG"]
    np.testing.assert_array_equal(source[1], picture(0))
    assert source.size(2) == (20, 30)
    assert "3 images" in source.describe()


def test_folder_as_pattern(folder):
    source = open_source(f"folder:{folder}/*.png")
    assert [name.rpartition("/")[2] for name in source.names] == ["a.png", "b.png"]


def test_samples_are_whole_and_the_test_part_is_held_out():
    train, test, both = (open_source(spec) for spec in ("sample:train", "sample:test", "sample"))
    assert list(test.names) == ["chelsea", "coffee"]
    assert not set(train.names) & set(test.names)
    assert set(both.names) == {*train.names, *test.names}
    assert test[0].shape == (300, 451, 3)
    for i in range(len(both)):
        assert both[i].shape == (*both.size(i), 3)
        assert min(both.size(i)) >= 300


def test_samples_come_with_the_wheel():
    from importlib.metadata import files

    inside = {file.name for file in files("scikit-image") if file.parent.name == "data"}
    assert set(SAMPLES[""]) <= inside


def test_sources_joined(folder):
    source = open_source(f"sample:test, folder:{folder},sample:train")
    parts = [open_source(spec) for spec in ("sample:test", f"folder:{folder}", "sample:train")]
    assert list(source.names) == [name for part in parts for name in part.names]
    np.testing.assert_array_equal(source[3], parts[1][1])
    np.testing.assert_array_equal(source[len(source) - 1], parts[2][len(parts[2]) - 1])
    assert source.size(2) == (20, 30)
    with pytest.raises(IndexError):
        source[len(source)]


def test_a_source_counted_several_times(folder):
    one, sample = open_source(f"folder:{folder}"), open_source("sample:train")
    several = open_source(f"2*folder:{folder}, 3*sample:train")
    assert list(several.names) == 2 * list(one.names) + 3 * list(sample.names)
    np.testing.assert_array_equal(several[len(one)], one[0])
    assert several.describe() == f"2 x {one.describe()} + 3 x {sample.describe()}"
    for times in ("0", "1001"):
        with pytest.raises(UserError, match=rf"data.source: '{times}\*sample': a source counts 1 to 1000 times"):
            open_source(f"{times}*sample")


def test_comma_in_a_path(tmp_path):
    odd = tmp_path / "a,sampled folder"
    odd.mkdir()
    Image.fromarray(picture(0)).save(odd / "a.png")
    assert len(open_source(f"folder:{odd}")) == 1


@pytest.mark.parametrize("spec", ["", "folder", "folder:", "photos", "sample:val", "kodak:x", "tfds:", "sample,photos"])
def test_unknown_spec(spec):
    with pytest.raises(UserError, match=r"data\.source: .* is not a source of images; use one of: folder:PATH"):
        open_source(spec)


def test_folder_missing_or_empty(tmp_path):
    with pytest.raises(UserError, match="nowhere.*no such"):
        open_source(f"folder:{tmp_path}/nowhere")
    with pytest.raises(UserError, match="no images"):
        open_source(f"folder:{tmp_path}")


def test_folder_without_a_readable_image(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.raises(UserError, match=r"none of the 3 images tried can be read; the first: .*a\.jpg") as error:
        open_source(f"folder:{tmp_path}")
    assert "\n" not in str(error.value)
    Image.fromarray(picture(0)).save(tmp_path / "d.png")
    assert len(open_source(f"folder:{tmp_path}")) == 4


READ = """
import json, sys
from qualiclip_jax.data.pristine import crop_pairs, open_source

source = open_source("tfds:tiny_set")
with crop_pairs(source, batch_size=4, crop_size=16, seed=0) as batches:
    crops = next(batches)["crops"]
loaded = sorted(name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch", "skimage"))
print(json.dumps({"length": len(source), "shape": crops.shape, "loaded": loaded}))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """An ArrayRecord data set with splits `photos` (8) and `more` (2), made by tfds."""
    import tensorflow_datasets as tfds

    class TinySet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "number": np.int64})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"photos": self._generate_examples(range(8)), "more": self._generate_examples(range(8, 10))}

        def _generate_examples(self, numbers):
            for i in numbers:
                yield i, {"image": str(images / f"{i}.png"), "number": i}

    images, data_dir = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("prepared")
    for i in range(10):
        Image.fromarray(picture(i)).save(images / f"{i}.png")
    TinySet(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return data_dir


def test_tfds_splits(prepared):
    def numbers(spec):
        source = open_source(spec)
        return [next(k for k in range(10) if np.array_equal(source[i], picture(k))) for i in range(len(source))]

    assert sorted(numbers(f"tfds:tiny_set@{prepared}")) == list(range(10))  # no `train`: all of them
    assert numbers(f"tfds:tiny_set:more@{prepared}") == [8, 9]
    assert numbers(f"tfds:tiny_set:photos[:50%]@{prepared}") == [0, 1, 2, 3]
    assert numbers(f"tfds:{prepared}/tiny_set/1.0.0:more") == [8, 9]


def test_tfds_names_sizes_and_threads(prepared):
    source = open_source(f"tfds:tiny_set:photos@{prepared}")
    assert len(source) == len(source.names) == 8
    assert source.names[3] == "tiny_set:photos#3"
    assert source.size(3) == (20, 30)
    assert source.describe() == "tfds:tiny_set:photos (8 images)"
    with ThreadPoolExecutor(8) as pool:
        for i, image in enumerate(pool.map(lambda i: source[i % 8], range(64))):
            np.testing.assert_array_equal(image, picture(i % 8))


def test_tfds_is_read_without_tensorflow(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    done = subprocess.run([sys.executable, "-c", READ], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == {"length": 10, "shape": [4, 2, 16, 16, 3], "loaded": []}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:nothing@{0}", "no prepared data set of that name in {0}"),
        ("tfds:tiny_set:test@{0}", "no split 'test'; it has"),
        ("tfds:tiny_set:more[7:9]@{0}", "incompatible with 2 examples"),
        ("tfds:tiny_set:more[:2@{0}", "parsing split"),
    ],
)
def test_tfds_errors_are_one_line(prepared, spec, message):
    with pytest.raises(UserError) as error:
        open_source(spec.format(prepared))
    assert message.format(prepared) in str(error.value)
    assert "\n" not in str(error.value)


def test_tfds_damaged_record_is_an_image_error(prepared, tmp_path):
    import shutil

    shutil.copytree(prepared / "tiny_set", tmp_path / "tiny_set")
    (file,) = (tmp_path / "tiny_set" / "1.0.0").glob("*photos*record*")
    data = bytearray(file.read_bytes())
    png = io.BytesIO()
    Image.fromarray(picture(4)).save(png, "png")
    at = bytes(data).index(png.getvalue()[-200:])  # the middle of photo 4
    data[at : at + 100] = bytes(100)
    file.write_bytes(data)
    source = open_source(f"tfds:tiny_set:photos@{tmp_path}")
    with pytest.raises(ImageError, match="tiny_set:photos#4"):
        source[4]
    np.testing.assert_array_equal(source[7], picture(7))
