"""The camera's chain: what `simulate` promises, and each fault against SciPy, Pillow or statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qualiclip_jax.degradations import camera

LEVELS = (0.0, 0.3, 1.0)
BATCH = 6


@pytest.fixture(scope="module")
def simulate():
    """`camera.simulate` at three levels, compiled once for crops uint8 [6, 2, 96, 128, 3] and a key each."""
    return jax.jit(lambda crops, keys: camera.simulate(crops, keys, LEVELS))


@pytest.fixture(scope="module")
def crops(photos):
    """Three pairs of photographs, then black, white and flat ones."""
    flat = [np.full_like(photos[:2], value) for value in (0, 255, 99)]
    return np.stack([photos[:2], photos[2:], photos[1:3], *flat])


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(4), BATCH)


@pytest.fixture(scope="module")
def degraded(simulate, crops, keys):
    return jax.device_get(simulate(crops, keys))


def test_images_are_finite_in_range_and_pristine_at_level_0(degraded, crops):
    images, severities = degraded
    assert images.shape == (BATCH, 3, *crops.shape[1:])
    assert severities.shape == (BATCH, 3, len(camera.FACTORS))
    assert np.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    np.testing.assert_allclose(images[:, 0] * 255, crops, atol=1e-4)
    assert (severities[:, 0] == 0).all()


def test_severities_are_strength_times_level(degraded):
    _, severities = degraded
    strengths = severities[:, 2]
    assert ((strengths == 0) | (strengths >= camera.WEAKEST)).all()
    assert strengths.max() <= 1
    assert (strengths > 0).any(1).all()
    np.testing.assert_allclose(severities[:, 1], strengths * 0.3, rtol=1e-6)


def test_neighbours_and_devices_do_not_matter(simulate, degraded, crops, keys):
    """The same bits in another order, and on two devices."""
    order = np.array([3, 0, 5, 1, 4, 2])
    for run, batch in (
        (simulate, (crops[order], keys[order])),
        (
            jax.pmap(lambda crops, keys: camera.simulate(crops, keys, LEVELS)),
            (crops[order].reshape(2, 3, *crops.shape[1:]), keys[order].reshape(2, 3)),
        ),
    ):
        for output, expected in zip(run(*batch), degraded):
            np.testing.assert_array_equal(np.reshape(output, expected.shape), expected[order])


def test_both_strategies_levels_of_each_image_and_floats_compute_the_same(degraded, crops, keys):
    each = jnp.broadcast_to(jnp.array(LEVELS[::2]), (BATCH, 2))
    run = jax.jit(lambda *batch: camera.simulate(*batch, each, strategy="levels"))
    images, severities = run(crops / np.float32(255), keys)
    np.testing.assert_array_equal(severities, degraded[1][:, ::2])
    np.testing.assert_array_equal(images[:, 0], crops / np.float32(255))
