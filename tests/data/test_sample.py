"""Sample photos: the photos themselves, degraded ones beside them, and nothing of the user's overwritten."""

import numpy as np
from skimage import data

from qualiclip_jax.data import sample
from qualiclip_jax.data.__main__ import main
from qualiclip_jax.images import read_image


def test_photos_and_degraded_versions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sample, "DEGRADED", {"darken": (1, 5)})
    (tmp_path / "coffee_darken_5.png").write_text("mine")
    main(["sample", str(tmp_path)])
    names = [f"{photo}{version}.png" for photo in ("chelsea", "coffee") for version in ("", "_darken_1", "_darken_5")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert (tmp_path / "coffee_darken_5.png").read_text() == "mine"
    chelsea, mild, strong = (read_image(tmp_path / name) for name in names[:3])
    np.testing.assert_array_equal(chelsea, data.chelsea())
    assert chelsea.mean() > mild.mean() > strong.mean() + 10
    assert capsys.readouterr().out == f"6 photos and degraded versions are in {tmp_path}\n"
