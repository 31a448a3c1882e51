"""The dry run: counts against what is there, and the arithmetic of time and money."""

import io
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax import QualiCLIP, cli, score
from qualiclip_jax.inference import shards
from qualiclip_jax.inference.estimate import Estimate

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def _one_model(resnet, monkeypatch):
    monkeypatch.setattr(QualiCLIP, "load", lambda name: resnet)


def run(*arguments) -> int:
    return cli.run(score.main, [str(argument) for argument in arguments])


def png(seed) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_time_and_money():
    text = Estimate(200, 3, 10_000_000, 2.5 * 2**40, 0.01).text(4.0)
    assert "200 of 10,000,000 images sampled, 3 of them cannot be scored" in text
    assert "100.0 images/s" in text
    assert "27.78 hours" in text
    assert "2560.00 GiB" in text
    assert "$11.11 per million images, $111.11 in all, at $4 an hour" in text
    assert "cost" not in Estimate(1, 0, 1, 1, 0.01).text(None)


def test_a_folder_and_shards(tmp_path, capsys):
    files = [png(k) for k in range(4)] + [b"junk"]
    (tmp_path / "photos").mkdir()
    for k, data in enumerate(files):
        (tmp_path / "photos" / f"{k}.png").write_bytes(data)
    for name in ("0", "1"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            archive.add(tmp_path / "photos", ".")
    parquet.write_table(pa.table({"path": [f"photos/{k}.png" for k in range(5)]}), tmp_path / "p.parquet")
    for arguments, images, size in (
        ((tmp_path / "photos",), 5, sum(map(len, files))),
        ((f"{tmp_path}/*.tar",), 10, sum((tmp_path / f"{k}.tar").stat().st_size for k in range(2))),
        ((tmp_path / "p.parquet",), 5, sum(map(len, files))),
    ):
        assert run(*arguments, "--dry-run", "--price", "2") == cli.DONE
        told = capsys.readouterr().out
        assert f"{images} of {images} images sampled, {images // 5} of them cannot be scored" in told
        assert f"read  {size / 2**30:.2f} GiB" in told
        assert re.search(r"\$[\d.]+ per million images", told)
    assert not list(tmp_path.glob("*.scores.*"))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_is_counted_by_its_first_images(kind, tmp_path):
    shard = tmp_path / f"a.{kind}"
    files = [png(k) for k in range(20)]
    if kind == "tar":
        with tarfile.open(shard, "w") as archive:
            for k, data in enumerate(files):
                for name in (f"{k}.png", f"{k}.json"):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    else:
        parquet.write_table(pa.table({"image": files}), shard)
    assert shards.count_about(str(shard), shard.stat().st_size, 5) == pytest.approx(20, rel=0.15)


def test_what_is_refused(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png(0))
    for arguments, told in (
        ((tmp_path / "a.png", "--price", "2"), "--price goes with --dry-run"),
        ((tmp_path / "a.png", "--dry-run", "--price", "0"), "is not a number above 0"),
        ((tmp_path / "a.png", "--dry-run", "--part", "2/2"), "there are no images to sample"),
    ):
        assert run(*arguments) == cli.FAILED
        assert told in capsys.readouterr().err
