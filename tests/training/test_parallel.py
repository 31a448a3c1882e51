"""Where the arrays of a run are."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from qualiclip_jax import train
from qualiclip_jax.errors import UserError
from qualiclip_jax.training import build, parallel
from qualiclip_jax.training.state import create_state

TINY_VIT = __file__.replace("test_parallel", "tiny_vit")


@pytest.fixture(scope="module")
def state():
    with jax.numpy_dtype_promotion("standard"):
        config, _, _ = train.parse(["--config", TINY_VIT, "--config.optimizer.ema_decay=0.9"])
        recipe, params, batch_stats = build.build_recipe(config, build.build_model(config), 1)
        return jax.device_get(create_state(params, batch_stats, recipe))


@pytest.mark.parametrize(("shards", "copies"), [(4, 1), (2, 2), (1, 4)])
def test_fsdp_holds_so_many_copies_of_every_kernel(state, shards, copies):
    spread = parallel.Fsdp(shards)
    placed = spread.put_state(state)
    for host, x in zip(jax.tree.leaves(state), jax.tree.leaves(placed)):
        np.testing.assert_array_equal(x, host)
        wanted = 4 if host.ndim < 2 else copies  # the widths of this encoder divide by 4
        assert sum(shard.data.size for shard in x.addressable_shards) == wanted * host.size


def test_an_axis_that_does_not_divide_stays_whole():
    spread = parallel.Fsdp()
    assert spread._spec(np.zeros((8, 6))) == PartitionSpec()
    assert spread._spec(np.zeros((6, 8))) == PartitionSpec(None, "model")


def test_shards_that_do_not_divide_the_devices():
    with pytest.raises(UserError, match="config.shards is 3, which does not divide the 4 devices"):
        parallel.Fsdp(3)


@pytest.mark.parametrize(("kind", "lost"), [(jax.errors.JaxRuntimeError, True), (ValueError, True), (OSError, False)])
def test_an_error_that_means_the_end_of_another_process(kind, lost):
    """JAX raises either of the first two, as it waits for a program or not."""
    text = "UNKNOWN: Gloo all-reduce failed: Read error [127.0.0.1]:27780: Connection reset by peer"
    assert parallel.lost_others(kind(text)) == lost
    assert not parallel.lost_others(kind("shapes do not match"))
