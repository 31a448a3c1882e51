"""A real cluster of Ray on this machine: two nodes, one of them killed at work."""

import functools
import io
import tarfile
import threading
import time
import types

import numpy as np
import pytest
from PIL import Image

from qualiclip_jax import cli, score
from qualiclip_jax.errors import UserError
from qualiclip_jax.inference import shards
from qualiclip_jax.inference.ray import Scorer, _places, score_to_tables

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'ray[data]'")
parquet = pytest.importorskip("pyarrow.parquet")
cluster_utils = pytest.importorskip("ray.cluster_utils")

SHARDS, IMAGES, POISONED = 6, 3, (4, 1)
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of every kind


def png(photo, cut=None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    return buffer.getvalue()[:cut]


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for k in range(IMAGES):
                photo = photos[3][shard * 4 : shard * 4 + 64, k * 9 : k * 9 + 64]
                data = png(photo, 200 if (shard, k) == POISONED else None)
                info = tarfile.TarInfo(f"{shard}-{k}.png")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return folder


@pytest.fixture
def cluster():
    """Two nodes with a processor each, and how to kill the second."""
    soon = {"health_check_initial_delay_ms": 100, "health_check_period_ms": 100, "health_check_failure_threshold": 4}
    spare = {"enable_worker_prestart": False, "prestart_worker_first_driver": False}  # processes that none needs here
    cluster, node = cluster_utils.Cluster(), {"num_cpus": 1, "object_store_memory": 10**8, "include_log_monitor": False}
    cluster.add_node(**node, include_dashboard=False, no_monitor=True, _system_config=soon | spare)
    second = cluster.add_node(**node)
    yield cluster, functools.partial(cluster.remove_node, second, allow_graceful=False)
    ray.shutdown()
    cluster.shutdown()


def test_every_image_once_though_a_node_is_killed(vit, folder, cluster, tmp_path, capsys):
    cluster, kill = cluster
    vit.save(checkpoint := str(tmp_path / "model"))
    pattern, out = f"{folder}/*.tar", tmp_path / "ray"
    there = []

    def kill_at_the_first_table():
        while not (tables := list(out.glob("*.scores.parquet"))):
            time.sleep(0.01)
        kill()
        there.extend(tables)

    killer = threading.Thread(target=kill_at_the_first_table, daemon=True)
    killer.start()
    engine = functools.partial(score_to_tables, checkpoint=checkpoint, address=cluster.address)
    outcome = shards.score_shards(vit, [pattern], str(out), engine=engine)
    killer.join(60)
    assert 1 <= len(there) < SHARDS
    assert sum(node["Alive"] for node in ray.nodes()) == 1
    assert (outcome.scored, outcome.failed, outcome.broken) == (SHARDS * IMAGES - 1, 1, 0)

    local = ["--checkpoint", checkpoint, pattern, "--output"]
    assert cli.run(score.main, [*local, str(tmp_path / "local")]) == cli.IN_PART
    for shard in range(SHARDS):
        ours, theirs = (
            parquet.read_table(place / f"{shard}.scores.parquet").to_pylist() for place in (out, tmp_path / "local")
        )
        assert [row["path"] for row in ours] == [f"{shard}-{k}.png" for k in range(IMAGES)]
        for k, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert one == other | {"score": pytest.approx(other["score"], abs=1e-5)}, (shard, k)
            assert (one["score"] is None) == ((shard, k) == POISONED)
    capsys.readouterr()
    assert cli.run(score.main, [*local, str(out), "--engine", "ray", "--address", "auto"]) == cli.DONE
    assert f"0 scored, 0 failed; {SHARDS} shards scored before" in capsys.readouterr().err

    with tarfile.open(folder / "0.tar") as archive:
        items = [{"path": info.name, "bytes": archive.extractfile(info).read()} for info in archive]
    images, pool = ray.data.from_items(items, override_num_blocks=1), ray.data.ActorPoolStrategy(size=1)
    arguments = {"checkpoint": checkpoint, "attributes": True}
    rows = images.map_batches(Scorer, fn_constructor_kwargs=arguments, compute=pool, num_cpus=1).take_all()
    expected = {row["path"]: row["score"] for row in parquet.read_table(out / "0.scores.parquet").to_pylist()}
    assert {row["path"]: row["score"] for row in rows} == pytest.approx(expected, abs=1e-5)
    assert all((row["width"], row["height"], row["error"]) == (64, 64, "") for row in rows)


@pytest.mark.parametrize(
    ("nodes", "place", "actors"),
    [
        ([{"CPU": 64.0}, {"CPU": 2.0}, {"CPU": 48.0}], {"num_cpus": 48}, 2),  # a small head node is left alone
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}], {"num_gpus": 1}, 6),
        ([{"CPU": 8.0}, {"CPU": 100.0, "TPU": 4.0}, {"CPU": 100.0, "TPU": 4.0}], {"resources": {"TPU": 4}}, 2),
    ],
)
def test_an_actor_a_gpu_or_a_host(nodes, place, actors):
    alive = [{"Alive": True, "Resources": node} for node in nodes] + [{"Alive": False, "Resources": {"GPU": 9.0}}]
    assert _places(types.SimpleNamespace(nodes=lambda: alive)) == (place, actors)


def test_a_scorer_takes_bytes_and_arrays(photos):
    scorer = Scorer(column="image", attributes=True)
    arrays = np.empty(4, object)
    arrays[:] = [photos[0], png(photos[0]), None, photos[0][..., 0]]
    found = scorer({"image": arrays, "id": np.arange(4)})
    assert found["score"][0] == found["score"][1]
    assert np.isnan(found["score"][2:]).all()
    assert found["error"][0] == ""
    assert "no image in this row" in found["error"][2]
    assert "is no RGB image" in found["error"][3]
    assert found["height"].tolist() == [64, 64, 0, 0]
    assert found["id"].tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match="no column image of images among bytes"):
        scorer({"bytes": arrays})


def test_what_is_refused(folder, photos, tmp_path, capsys):
    Image.fromarray(photos[0]).save(tmp_path / "a.png")
    for arguments, told in (
        ((tmp_path / "a.png", "--engine", "ray"), "--engine is for shards"),
        ((folder / "0.tar", "--output", tmp_path, "--address", "auto"), "--address goes with --engine ray"),
        ((folder / "0.tar", "--output", tmp_path, "--engine", "ray", "--address", "auto"), "no Ray cluster"),
    ):
        assert cli.run(score.main, [str(argument) for argument in arguments]) == cli.FAILED
        assert told in capsys.readouterr().err
