"""Bursts: by the time in EXIF data and by what is alike."""

import numpy as np
from PIL import Image

from qualiclip_jax.explain import bursts


def save(path, taken=None, fraction=None, changed=None):
    exif = Image.Exif()
    if changed:
        exif[306] = changed
    details = exif.get_ifd(0x8769)
    if taken:
        details[36867] = taken
    if fraction:
        details[37521] = fraction
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    return str(path)


def test_when_a_photo_was_taken(tmp_path):
    first = bursts.taken(save(tmp_path / "a.jpg", "2024:05:06 07:08:09", "25"))
    second = bursts.taken(save(tmp_path / "b.jpg", "2024:05:06 07:08:11"))
    assert second - first == 1.75
    assert bursts.taken(save(tmp_path / "c.jpg", changed="2024:05:06 07:08:11")) == second
    for name, taken in (("d.jpg", None), ("e.jpg", "0000:00:00 00:00:00"), ("f.jpg", "yesterday")):
        assert bursts.taken(save(tmp_path / name, taken)) is None
    (tmp_path / "g.jpg").write_bytes(b"no image")
    assert bursts.taken(str(tmp_path / "g.jpg")) is None


def test_near_in_time_and_alike():
    """Photos 0, 2, 4 are of one scene and moment, 1 is of another scene, 3 much later, 5 of no time."""
    scenes = np.eye(2)[[0, 1, 0, 0, 0, 0]]
    asked = []

    def features(numbers):
        asked.extend(numbers)
        return scenes[list(numbers)]

    times = [10.0, 17.0, 11.0, 60.0, 13.0, None]
    assert bursts.group(times, features, gap=3) == [[0, 2, 4]]
    assert sorted(asked) == [0, 2, 4]  # what has no neighbour in time is not even looked at
    assert bursts.group(times, features, gap=5) == [[0, 2, 4]]
    assert bursts.group([None, 1.0, 100.0], features, gap=3) == []
