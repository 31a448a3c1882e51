"""What several of these tests share: photographs, and one compiled program for all types."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qualiclip_jax import degradations

GOLDEN = Path(__file__).parents[1] / "golden" / "degradations.npz"
HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope="session")
def golden():
    """Outputs of the reference code: `input/<image>` and `<type>/<image>/<level>`, uint8 [H, W, 3]."""
    return np.load(GOLDEN)


@pytest.fixture(scope="session")
def photos():
    """Four crops of photographs that come with scikit-image: uint8 [4, 96, 128, 3]."""
    from skimage import data

    corners = {data.astronaut: (60, 150), data.coffee: (120, 240), data.chelsea: (80, 120), data.rocket: (150, 280)}
    return np.stack([photo()[top : top + HEIGHT, left : left + WIDTH] for photo, (top, left) in corners.items()])


@pytest.fixture(scope="session")
def run_pairs():
    """`degrade_pairs`, compiled once for crops uint8 [24, 2, 96, 128, 3], two composed types and a key each."""
    return jax.jit(degradations.degrade_pairs)


@pytest.fixture(scope="session")
def each_type():
    """Types [24, 2]: every one, after none."""
    return jnp.stack([jnp.full(24, -1), jnp.arange(24)], axis=1)


@pytest.fixture(scope="session")
def keys():
    """What one key is split into for a batch of 24."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(24))


@pytest.fixture(scope="session")
def degrade_all(run_pairs, each_type, keys):
    """Crops uint8 [2, 96, 128, 3] -> all types and levels, [24, 5, 2, 96, 128, 3]."""
    return lambda crops, keys=keys: np.asarray(run_pairs(np.broadcast_to(crops, (24, *crops.shape)), each_type, keys))


@pytest.fixture(scope="session")
def degraded(degrade_all, photos):
    """The first two photographs, degraded."""
    return degrade_all(photos[:2])
