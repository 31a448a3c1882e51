"""Scores that are kept as they come, and scores read from a file."""

import dataclasses
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation.scores import Kept, content_key, read_scores, score_set


@dataclasses.dataclass
class Rated:
    ids: list[str]
    files: list[bytes]
    name: str = "mine"

    def image_bytes(self, index):
        return self.files[index]


class Brightness:
    """Scores an image by its mean, counts what it scores, and may stop on the way like a killed process."""

    def __init__(self, stop_after=None):
        self.stop_after, self.scored = stop_after, 0

    prompts = ()
    score_of = staticmethod(np.mean)
    rating_of = staticmethod(lambda outputs: None)

    def run(self, windows, fetch, done=frozenset()):
        for index, size in enumerate(itertools.chain.from_iterable(windows)):
            if index in done:
                continue
            if self.scored == self.stop_after:
                raise KeyboardInterrupt
            image = fetch(index)
            assert image.shape[:2] == size
            self.scored += 1
            yield index, np.full(7, image.mean() / 255, np.float32)


def png(value, size=(32, 40)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def rated():
    return Rated([f"{k}.png" for k in range(6)], [png(40 * k, (32 + k % 2, 40)) for k in range(5)] + [png(0)])


def test_scores_come_in_the_order_of_the_set(rated, tmp_path):
    model = Brightness()
    scores = score_set(model, rated, Kept(tmp_path / "kept.jsonl"))
    np.testing.assert_allclose(scores, np.array([0, 40, 80, 120, 160, 0]) / 255, rtol=1e-6)
    assert model.scored == 5  # two files of the same content are one image


def test_killed_half_way_the_second_run_does_only_the_rest(rated, tmp_path):
    whole = score_set(Brightness(), rated, Kept(tmp_path / "whole.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        score_set(Brightness(stop_after=3), rated, Kept(tmp_path / "cut.jsonl"))
    with open(tmp_path / "cut.jsonl", "a") as file:
        file.write('["0123", 0.')  # the line that was being written
    model = Brightness()
    again = score_set(model, rated, Kept(tmp_path / "cut.jsonl"))
    assert model.scored == 2
    np.testing.assert_array_equal(again, whole)
    third = Brightness()
    np.testing.assert_array_equal(score_set(third, rated, Kept(tmp_path / "cut.jsonl")), whole)
    assert third.scored == 0


def test_the_order_of_the_set_changes_nothing_that_the_model_sees(rated, tmp_path):
    """Same sizes, same images, in the same order: so the batches are the same, and every digit."""

    class Watched(Brightness):
        def run(self, windows, fetch, done=frozenset()):
            (sizes,) = windows = list(windows)
            seen.append([(size, fetch(index).tobytes()) for index, size in enumerate(sizes)])
            return super().run(windows, fetch, done)

    seen = []
    order = [3, 5, 0, 1, 4, 2]
    shuffled = Rated([rated.ids[k] for k in order], [rated.files[k] for k in order])
    scores = score_set(Watched(), rated, Kept(None))
    np.testing.assert_array_equal(score_set(Watched(), shuffled, Kept(None)), scores[order])
    assert seen[0] == seen[1]


def test_kept_values_survive_a_torn_line(tmp_path):
    path = tmp_path / "kept.jsonl"
    Kept(path).put("a", 0.1 + 0.2)
    path.write_bytes(path.read_bytes() + b'["b", 0.12')
    kept = Kept(path)
    assert kept["a"] == 0.1 + 0.2
    assert "b" not in kept
    kept.put("c", [1, 2])
    kept.put("a", 7)  # stays
    again = Kept(path)
    assert (again["a"], again["c"]) == (0.1 + 0.2, [1, 2])
    assert sum(1 for line in path.read_text().splitlines() if line.endswith("]") and json.loads(line)) == 2


def test_an_unreadable_image_stops_but_keeps_the_rest(rated, tmp_path):
    rated.files[2] = b"no image"
    rated.files[4] = rated.files[4][:20]
    with pytest.raises(UserError, match=r"mine: 2 of 6 images cannot be scored, first 2\.png: not an image"):
        score_set(Brightness(), rated, Kept(tmp_path / "kept.jsonl"))


def test_a_score_that_is_not_finite_names_its_image(rated, tmp_path):
    class Broken(Brightness):
        def run(self, windows, fetch, done=frozenset()):
            assert list(windows)
            yield 0, np.full(7, np.nan, np.float32)

    with pytest.raises(UserError, match=r"first \d.png: the model gives no finite score"):
        score_set(Broken(), rated, Kept(tmp_path / "kept.jsonl"))


def test_content_key_is_of_the_content():
    assert content_key(b"a") == content_key(b"a") != content_key(b"b")
    assert len(content_key(b"")) == 32


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def three():
    return Rated(["a/1.png", "a/2.png", "3.png"], [])


@pytest.mark.parametrize(
    "text",
    [
        "image,score\na/2.png,2\na/1.png,1\n3.png,3\n",
        "path;score;error\n/data/1.png;1;\n/data/a/2.png;2;\n/data/3.png;3;\n/data/4.png;9;\n",
        "dataset,image,score\nmine,1.png,1\nother,1.png,5\nmine,2.png,2\nmine,3.png,3\n",
        "name\tscore\na\\1.png\t1,0\nA/a/2.png\t2\n 3.png \t3\n",
        "image,score\n4.png,nan\na/1.png,1\n,\na/2.png,2\n3.png,3\n5.png,one\n4.png,\n3.png,\n",
        "image,score\nb/1.png,7\nb/2.png,8\nroot/a/1.png,1\nroot/a/2.png,2\nroot/3.png,3\n",
    ],
)
def test_scores_are_found_by_name_or_file_name(tmp_path, three, text):
    path = write(tmp_path / "scores.csv", text)
    np.testing.assert_array_equal(read_scores(path, three), [1, 2, 3])
    np.testing.assert_array_equal(read_scores(path, three, lower_is_better=True), [-1, -2, -3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,quality\n1.png,1\n", "needs the columns image .* and score; it has image, quality"),
        ("image,score\n1.png,1\n2.png,2\n", "no score for 1 of 3 images of mine: 3.png$"),
        ("image,score\n1.png,one\n", r"no score for 3 of 3 .* \(line 2 has 'one'\)"),
        (
            "image,score\n1.png,1\n2.png,2\n3.png,inf\n",
            r"no score for 1 of 3 images of mine: 3.png \(line 4 has 'inf'\)",
        ),
        ("image,score\n3.png,1\n3.png,2\n", "line 3: a second score for 3.png, after line 2"),
        ("image,score\n1.png\n", "line 2: 1 fields, the header has 2"),
        ("image,score\nx/1.png,1\ny/1.png,1\nx/2.png,2\n3.png,3\n", "no score for 1 of 3 images of mine: a/1.png$"),
        ("dataset,image,score\nother,1.png,1\n", "no scores for mine; its column dataset has other"),
        ("", "it has none"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path, three, text, message):
    with pytest.raises(UserError, match=message) as error:
        read_scores(write(tmp_path / "scores.csv", text), three)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_score_is_not_given_to_another_image_of_the_same_file_name(tmp_path):
    path = write(tmp_path / "scores.csv", "image,score\na/1.png,1\n")
    with pytest.raises(UserError, match=r"no score for 1 of 2 images of mine: b/1\.png"):
        read_scores(path, Rated(["a/1.png", "b/1.png"], []))


@pytest.mark.parametrize("given", ["csv:my.csv", "csv:/elsewhere/my.csv@photos", "csv:./sets/my.csv"])
def test_the_set_of_a_csv_file_is_known_wherever_it_lay(tmp_path, given):
    path = write(tmp_path / "scores.csv", f"dataset,image,score\n{given},1.png,1\ncsv:other.csv,1.png,2\n")
    assert read_scores(path, Rated(["1.png"], [], "csv:sets/my.csv")) == [1]


def test_a_cache_of_other_things_or_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text('5\nnull\n["a", 1]\n')
    assert Kept(tmp_path / "file")["a"] == 1
    with pytest.raises(UserError, match=r"file/kept\.jsonl: scores cannot be kept there"):
        Kept(tmp_path / "file/kept.jsonl").put("a", 1)
