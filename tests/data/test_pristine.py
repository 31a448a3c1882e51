"""The stream of crop pairs: a pure function of (seed, position), whatever the processes, threads and restarts."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax.data import pristine
from qualiclip_jax.data.crops import Pair, draw_pair
from qualiclip_jax.data.detail import detail_maps
from qualiclip_jax.data.pristine import crop_pairs, open_source, photos
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError

COUNT, SIDE = 23, 40  # photos, and the crop: 23 shares no factor with the batch sizes


class Memory:
    """A source in memory. Every photo has a colour of its own, so a crop tells which photo it is of."""

    def __init__(self, count: int = COUNT, size: tuple[int, int] = (60, 80), corrupt=(), small=()):
        self.names = [f"photo {i}" for i in range(count)]
        self.corrupt, self.reads, self._lock = set(corrupt), [], threading.Lock()
        rng = np.random.default_rng(7)
        self.images = [np.full((*size, 3), (i, 255 - i, 128), np.uint8) for i in range(count)]
        for image in self.images:
            image[..., 2] = rng.integers(0, 256, size)  # texture, so that different crops differ
        for i in small:
            self.images[i] = self.images[i][:20, :30]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        with self._lock:
            self.reads.append(index)
        if index in self.corrupt:
            raise ImageError(self.names[index], "truncated image")
        return self.images[index]

    def size(self, index):
        return self.images[index].shape[:2]

    def describe(self):
        return f"{len(self)} photos in memory"


def stream(source, steps, **fields):
    """`steps` batches of this process, joined: crops [n, 2, S, S, 3], examples [n], and the counters."""
    fields = {"batch_size": 4, "crop_size": SIDE, "seed": 3, "threads": 2} | fields
    with crop_pairs(source, **fields) as batches:
        taken = [next(batches) for _ in range(steps)]
    crops, example = (np.concatenate([batch[name] for batch in taken]) for name in ("crops", "example"))
    return crops, example, batches.counters


def which(crops):
    """The photo each pair was cut from."""
    assert (crops[..., 0] == crops[:, :1, :1, :1, 0]).all()  # both crops are of one photo
    return crops[:, 0, 0, 0, 0].astype(int)


def test_batches_are_as_documented():
    with crop_pairs(Memory(), batch_size=6, crop_size=SIDE, seed=0, start_step=2, threads=1) as batches:
        batch = next(batches)
    assert set(batch) == {"crops", "example"}
    assert batch["crops"].shape == (6, 2, SIDE, SIDE, 3)
    assert batch["crops"].dtype == np.uint8
    assert batch["example"].dtype == np.uint32
    assert batch["example"].tolist() == list(range(12, 18))


def test_every_epoch_shows_every_photo_once_in_its_own_order():
    seen = which(stream(Memory(), steps=3 * COUNT)[0])
    epochs = seen.reshape(-1, COUNT)  # 4 * 3 * 23 positions = 12 epochs
    assert (np.sort(epochs, axis=1) == np.arange(COUNT)).all()
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_seeds_differ_also_across_epochs():
    one, two = (which(stream(Memory(), steps=2 * COUNT, seed=seed)[0]).reshape(-1, COUNT) for seed in (3, 4))
    assert not {tuple(epoch) for epoch in one} & {tuple(epoch) for epoch in two}


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_sees_one_stream(processes):
    source = Memory(corrupt=[5], small=[1, 2])
    crops, example, _ = stream(source, steps=14, batch_size=8, scale_range=(0.5, 1.0))
    parts = [
        stream(source, 14, batch_size=8, scale_range=(0.5, 1.0), process_index=i, process_count=processes)
        for i in range(processes)
    ]
    for name, whole, k in (("example", example, 1), ("crops", crops, 0)):
        shares = [part[k].reshape(14, 8 // processes, *whole.shape[1:]) for part in parts]
        np.testing.assert_array_equal(np.concatenate(shares, axis=1).reshape(whole.shape), whole, err_msg=name)


def test_restart_goes_on_with_the_same_stream():
    source = Memory(corrupt=[5], small=[1])
    crops, example, _ = stream(source, steps=15, scale_range=(0.5, 1.0))
    for start in (1, 7):  # both in the middle of an epoch
        later, later_example, _ = stream(
            Memory(corrupt=[5], small=[1]), steps=15 - start, start_step=start, scale_range=(0.5, 1.0)
        )
        np.testing.assert_array_equal(later, crops[4 * start :])
        np.testing.assert_array_equal(later_example, example[4 * start :])


@pytest.mark.parametrize("fields", [{"threads": 7}, {"cache_mb": 0}, {"prefetch": 9}])
@pytest.mark.parametrize("detail", [0.0, 1.0])
def test_threads_cache_and_prefetch_change_nothing(fields, detail):
    expected = stream(Memory(), 12, threads=1, detail=detail)[0]
    np.testing.assert_array_equal(stream(Memory(), 12, detail=detail, **fields)[0], expected)


def test_detail_is_looked_up_once_a_photo(monkeypatch):
    looked = []
    monkeypatch.setattr(pristine, "detail_maps", lambda photo: looked.append(1) or detail_maps(photo))
    crops = stream(Memory(), 23, detail=1.0, threads=1, cache_mb=0)[0]
    assert len(looked) == COUNT
    later = stream(Memory(), 16, start_step=7, detail=1.0)[0]
    np.testing.assert_array_equal(later, crops[4 * 7 :])
    assert not np.array_equal(crops, stream(Memory(), 23)[0])


def test_cache_keeps_photos_up_to_its_limit():
    photo_mb = Memory().images[0].nbytes / 1e6
    for kept in (0, 10, COUNT):
        source = Memory()
        stream(source, steps=23, cache_mb=photo_mb * (kept + 0.5), threads=1)  # 4 epochs, and a little read ahead
        times = np.bincount(source.reads, minlength=COUNT)
        assert (times == 1).sum() == kept
        assert (times >= 4).sum() == COUNT - kept


def test_corrupt_photo_is_named_once_counted_and_replaced_where_it_stood():
    lines = []
    crops, _, counters = stream(Memory(corrupt=[5]), steps=30, warn=lines.append)
    whole, _, _ = stream(Memory(), steps=30)
    stood = which(whole) == 5
    assert stood.sum() >= 5
    assert 5 not in which(crops)
    np.testing.assert_array_equal(crops[~stood], whole[~stood])
    assert len(set(which(crops[stood]))) > 1  # not always the same one in its place
    assert lines == ["skipped: photo 5: truncated image"]
    assert counters == {"tried": COUNT, "corrupt": 1, "enlarged": 0, "skipped": 0}


def test_photo_that_breaks_during_the_run_is_named_too():
    lines = []
    source = Memory()
    with crop_pairs(
        source, batch_size=COUNT, crop_size=SIDE, seed=0, threads=1, cache_mb=0, warn=lines.append
    ) as batches:
        next(batches)
        source.corrupt.add(5)
        for _ in range(5):
            next(batches)
    assert lines == ["skipped: photo 5: truncated image"]
    assert batches.counters["corrupt"] == 1


def test_more_than_five_percent_corrupt_stops():
    with pytest.raises(UserError, match=r"2 of the \d+ photos tried cannot be read, more than 5% of all 23"):
        stream(Memory(corrupt=[5, 9]), steps=2 * COUNT)
    # Exactly 5 % goes on.
    assert stream(Memory(count=20, corrupt=[5]), steps=30)[2]["corrupt"] == 1


def test_many_photos_are_judged_before_all_are_tried():
    source = Memory(count=250, corrupt=range(0, 250, 10))
    with pytest.raises(UserError, match="photos tried cannot be read") as error:
        stream(source, steps=1000)
    assert int(str(error.value).split(" of the ")[1].split()[0]) >= pristine.JUDGED_AFTER
    assert len(set(source.reads)) < 250


def test_small_photos_are_enlarged_or_skipped_and_counted():
    lines = []
    source = Memory(small=[1, 2])
    crops, _, counters = stream(source, steps=2 * COUNT, small="enlarge", warn=lines.append)
    assert {1, 2} <= set(which(crops))
    assert (counters["enlarged"], counters["skipped"]) == (2, 0)
    crops, _, counters = stream(source, steps=2 * COUNT, small="skip", warn=lines.append)
    assert set(which(crops)) == set(range(COUNT)) - {1, 2}
    assert (counters["enlarged"], counters["skipped"]) == (0, 2)
    assert lines == []


def test_enlarged_photo_equals_pillow():
    source = Memory(count=2, small=[0])  # 20 x 30, and a crop of 40: enlarged to 40 x 60
    both, _, _ = stream(source, steps=1, batch_size=2, min_overlap=1, flip=False)
    crops = both[which(both) == 0]
    whole = np.asarray(Image.fromarray(source.images[0]).resize((60, 40), Image.Resampling.LANCZOS)).astype(int)
    distance = [np.abs(crops[0, 0] - whole[:, x : x + 40]).max() for x in range(21)]
    assert min(distance) <= 1


@pytest.mark.parametrize("small", ["enlarge", "skip"])
def test_crop_larger_than_every_photo_names_the_field(small):
    with pytest.raises(UserError, match=r"data\.crop_size is 61, larger than every image .* 60 px"):
        crop_pairs(Memory(), batch_size=4, crop_size=61, seed=0, small=small)


def test_nothing_usable_left_is_said_and_not_searched_for_ever():
    with pytest.raises(UserError, match="no photo left: 29 are smaller than data.crop_size = 40, 1 cannot be read"):
        stream(Memory(count=30, small=range(1, 30), corrupt=[0]), steps=1, small="skip")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_overlap", 1.2),
        ("min_overlap", float("nan")),
        ("scale_range", (0.0, 1.0)),
        ("scale_range", (0.9, 0.5)),
        ("scale_range", (0.5, 1.5)),
        ("small", "shrink"),
        ("crop_size", 0),
        ("seed", -1),
        ("batch_size", 0),
    ],
)
def test_fields_out_of_range_are_named(field, value):
    fields = {"batch_size": 4, "crop_size": SIDE, "seed": 0} | {field: value}
    with pytest.raises(UserError, match=rf"{field}\w* is "):
        crop_pairs(Memory(), **fields)


def test_batch_must_divide_by_the_processes():
    with pytest.raises(UserError, match="batch_size is 6, must be a multiple of the 4 processes"):
        crop_pairs(Memory(), batch_size=6, crop_size=SIDE, seed=0, process_count=4)


def test_process_index_must_be_one_of_the_processes():
    with pytest.raises(ValueError, match="process 2 of 2"):
        crop_pairs(Memory(), batch_size=4, crop_size=SIDE, seed=0, process_index=2, process_count=2)


def test_stream_is_what_it_was():
    """A resumed run must go on with the stream it began with, also after an upgrade: changing these is a new stream."""
    crops, _, _ = stream(Memory(), steps=2, seed=0, scale_range=(0.5, 1.0))
    assert which(crops).tolist() == [4, 12, 2, 21, 14, 15, 10, 6]
    rng = np.random.Generator(np.random.Philox(key=np.array([0, 1], np.uint64)))
    pair = draw_pair(rng, (60, 80), crop_size=SIDE, scale_range=(0.5, 1.0))
    assert pair == Pair(size=(56, 75), corners=((12, 24), (8, 26)), flip=True)


def test_close_ends_the_threads():
    before = set(threading.enumerate())
    batches = crop_pairs(Memory(), batch_size=4, crop_size=SIDE, seed=0, threads=3, prefetch=50)
    next(batches)
    started = set(threading.enumerate()) - before
    assert len(started) == 3
    batches.close()
    batches.close()
    for thread in started:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in started)


def test_process_that_never_closes_still_ends():
    code = (
        "from qualiclip_jax.data.pristine import crop_pairs, open_source\n"
        "batches = crop_pairs(open_source('sample'), batch_size=8, crop_size=64, seed=0)\n"
        "print(next(batches)['crops'].shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(8, 2, 64, 64, 3)\n", "")


def test_photos_for_evaluation(tmp_path, caplog):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)
    for name in ("a.png", "c.png", "d.png"):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    found = photos(f"folder:{tmp_path}", limit=2, max_side=25)
    assert [name for name, _ in found] == ["a.png", "c.png"]
    assert "b.png" in caplog.text
    small = np.asarray(Image.fromarray(image).resize((25, 15), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(found[0][1], small)
    np.testing.assert_array_equal(photos(f"folder:{tmp_path}", max_side=50)[0][1], image)
    assert [name for name, _ in photos("sample:test")] == ["chelsea", "coffee"]


def test_stream_from_files(tmp_path):
    for i in range(30):
        Image.fromarray(np.full((50, 60, 3), i, np.uint8)).save(tmp_path / f"{i:02d}.png")
    data = (tmp_path / "04.png").read_bytes()
    (tmp_path / "04.png").write_bytes(data[: len(data) // 2])  # the header is whole
    lines = []
    crops, _, counters = stream(open_source(f"folder:{tmp_path}"), steps=15, warn=lines.append)
    assert set(which(crops)) == set(range(30)) - {4}
    assert counters["corrupt"] == len(lines) == 1
    assert str(tmp_path / "04.png") in lines[0]
