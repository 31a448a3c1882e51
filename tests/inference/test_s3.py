"""A bucket of S3, served on this machine, as source and sink of scoring and selecting."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax import QualiCLIP, cli, score, select, tabular
from qualiclip_jax.inference import urls

server = pytest.importorskip("moto.server", reason="needs a server of S3: pip install 'moto[s3]' flask flask-cors")
s3fs = pytest.importorskip("s3fs")
pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket, and where it is."""
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            patch.setenv(name, "us-east-1")
        files = s3fs.S3FileSystem()
        files.mkdir("photos")
        yield files
        s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def png(photo) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    return buffer.getvalue()


def tar(photos) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for k, photo in enumerate(photos):
            info = tarfile.TarInfo(f"{k}.png")
            info.size = len(data := png(photo))
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_scores_and_selections_of_a_bucket(bucket, resnet, photos, monkeypatch, capsys):
    monkeypatch.setattr(QualiCLIP, "load", lambda name: resnet)
    crops = [photos[3][4 * k : 4 * k + 64, :64] for k in range(6)]
    for name, part in (("a", crops[:3]), ("b", crops[3:])):
        bucket.pipe_file(f"photos/{name}.tar", tar(part))
    arguments = ["s3://photos/{a,b}.tar", "--output", "s3://photos/scores"]
    assert cli.run(score.main, arguments) == cli.DONE
    expected = resnet.score(crops)
    tables = urls.expand("s3://photos/scores/*.parquet")
    assert tables == ["s3://photos/scores/a.scores.parquet", "s3://photos/scores/b.scores.parquet"]
    found = [row["score"] for name in tables for row in tabular.records(name, data=bucket.cat_file(name))]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    capsys.readouterr()
    assert cli.run(score.main, arguments) == cli.DONE
    assert "0 scored, 0 failed; 2 shards scored before" in capsys.readouterr().err

    chosen = ["s3://photos/scores/*.parquet", "--top", "3", "--out"]
    assert cli.run(select.main, [*chosen, "s3://photos/best.csv"]) == cli.DONE
    best = {f"{'ab'[k // 3]}/{k % 3}.png" for k in np.argsort(expected)[-3:]}
    rows = list(tabular.records("best.csv", ("path",), data=bucket.cat_file("photos/best.csv")))
    assert {f"{row['table'].rpartition('/')[2][0]}/{row['path']}" for row in rows} == best
    assert cli.run(select.main, [*chosen, "s3://photos/good", "--shards", arguments[0]]) == cli.DONE
    kept = set()
    for name in ("a", "b"):
        with tarfile.open(fileobj=io.BytesIO(bucket.cat_file(f"photos/good/{name}.tar"))) as archive:
            kept |= {f"{name}/{member}" for member in archive.getnames()}
    assert kept == best


def test_image_files_in_a_bucket(bucket, resnet, photos, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(QualiCLIP, "load", lambda name: resnet)
    crops = [photos[3][4 * k : 4 * k + 64, :64] for k in range(3)]
    for k, crop in enumerate(crops):
        bucket.pipe_file(f"photos/files/{k}/a.png", png(crop))
    bucket.pipe_file("photos/files/b.jpg", b"junk")
    bucket.pipe_file("photos/files/c.txt", b"no image")
    arguments = ["s3://photos/files", "--output", str(tmp_path / "scores.csv")]
    assert cli.run(score.main, arguments) == cli.IN_PART
    rows = {row["path"]: row for row in tabular.records(tmp_path / "scores.csv", ("path",))}
    assert list(rows) == [*(f"s3://photos/files/{k}/a.png" for k in range(3)), "s3://photos/files/b.jpg"]
    scores = [float(rows[f"s3://photos/files/{k}/a.png"]["score"]) for k in range(3)]
    np.testing.assert_allclose(scores, resnet.score(crops), atol=1e-5)
    assert "not an image" in rows["s3://photos/files/b.jpg"]["error"]
    capsys.readouterr()
    bucket.pipe_file("photos/files/1/a.png", png(crops[0][:60]))
    bucket.invalidate_cache()
    assert cli.run(score.main, arguments) == cli.IN_PART
    assert "an earlier run scored 2 of 4 images" in capsys.readouterr().err
    for option in ("--xmp", "--bursts"):
        assert cli.run(score.main, ["s3://photos/files/{0,1}/*.png", option]) == cli.FAILED
        assert "are for local files" in capsys.readouterr().err
    assert cli.run(score.main, ["s3://photos/none"]) == cli.FAILED
    assert "s3://photos/none" in capsys.readouterr().err + capsys.readouterr().out


def test_a_bucket_that_is_not_there(bucket, resnet, monkeypatch, capsys):
    monkeypatch.setattr(QualiCLIP, "load", lambda name: resnet)
    assert cli.run(score.main, ["s3://nowhere/a.tar", "--output", "s3://photos/nothing"]) == cli.FAILED
    assert "s3://nowhere/a.tar: no such file" in capsys.readouterr().err
    assert cli.run(score.main, ["s3://photos/a.tar", "--output", "s3://nowhere/scores"]) == cli.FAILED
    assert "s3://nowhere/scores/a.scores.parquet: cannot be written" in capsys.readouterr().err
