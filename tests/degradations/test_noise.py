"""Noise: its measured statistics against the table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from qualiclip_jax import degradations
from qualiclip_jax.degradations import draws
from qualiclip_jax.degradations.color_spaces import luma

GREY = jnp.full((2, 192, 192, 3), 0.5)


def at_all_levels(name: str) -> np.ndarray:
    """[5, 2, 192, 192, 3]"""
    degrade = jax.vmap(lambda level: degradations.degrade(name, GREY, level, jax.random.key(3)))
    return np.asarray(jax.jit(degrade)(jnp.arange(1, 6)))


def assert_independent(noise: np.ndarray) -> None:
    """Between the images of a batch, the levels, the channels and neighbouring pixels of noise [5, 2, H, W, 3]."""
    pairs = {
        "images": (noise[:, 0], noise[:, 1]),
        "levels": (noise[1], noise[2]),
        "channels": (noise[..., 0], noise[..., 1]),
        "rows": (noise[:, :, 1:], noise[:, :, :-1]),
        "columns": (noise[..., 1:, :], noise[..., :-1, :]),
    }
    for what, (a, b) in pairs.items():
        correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(a.size), what


@pytest.mark.parametrize(("name", "scale"), [("white_noise", 1.0), ("multiplicative_noise", 0.5)])
def test_variance_and_shape_of_gaussian_noise(name, scale):
    noise = at_all_levels(name) - 0.5
    for level, variance in enumerate(degradations.PARAMETERS[name]):
        assert noise[level].var() == pytest.approx(variance * scale**2, rel=0.05)
        assert abs(noise[level].mean()) < 5 * np.sqrt(variance / noise[level].size)
        assert stats.kstest(noise[level, 0].ravel()[:5000] / np.sqrt(variance * scale**2), "norm").pvalue > 1e-3
    assert_independent(noise)


def test_multiplicative_noise_leaves_black_alone():
    black = jnp.zeros((32, 32, 3))
    assert not degradations.degrade("multiplicative_noise", black, 5, jax.random.key(0)).any()


def test_ycbcr_noise_has_its_variance_in_ycbcr():
    noise = at_all_levels("ycbcr_noise") - 0.5
    y = np.asarray(luma(jnp.asarray(noise)))
    planes = y, 0.564 * (noise[..., 2] - y), 0.713 * (noise[..., 0] - y)  # Y, Cb, Cr
    for level, variance in enumerate(degradations.PARAMETERS["ycbcr_noise"]):
        for plane in planes:
            assert plane[level].var() == pytest.approx(variance, rel=0.05)
    assert abs(np.corrcoef(planes[0].ravel(), planes[1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(planes[1].ravel(), planes[2].ravel())[0, 1]) < 0.02


def test_impulses_are_as_many_as_the_table_says_half_of_them_salt():
    images = at_all_levels("impulse_noise")
    for level, fraction in enumerate(degradations.PARAMETERS["impulse_noise"]):
        salt, pepper = (images[level] == 1).mean(), (images[level] == 0).mean()
        assert salt + pepper == pytest.approx(fraction, rel=0.05)
        assert salt / (salt + pepper) == pytest.approx(0.5, abs=0.05)
        assert ((images[level] == 0.5) | (images[level] == 0) | (images[level] == 1)).all()
    assert (images[4, 0] != images[4, 1]).mean() > 0.05  # other places in the other image


def test_bits_are_uniform_and_differ_between_keys():
    bits = np.asarray(draws.bits(jax.random.key(0), (1 << 18,)))
    others = np.asarray(draws.bits(jax.random.key(1), (1 << 18,)))
    for words in (bits, others, bits ^ others, bits[1:] ^ bits[:-1]):
        ones = np.unpackbits(words.view(np.uint8).reshape(-1, 4), axis=1).mean(0)
        assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(len(words))
        counts = np.bincount(words >> 24, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_normal_has_the_moments_and_tails_of_a_normal():
    values = np.asarray(draws.normal(jax.random.key(5), (1 << 20,)), np.float64)
    assert abs(values.mean()) < 5 / 1024
    assert values.var() == pytest.approx(1, abs=0.01)
    assert stats.kurtosis(values) == pytest.approx(0, abs=0.03)
    assert (np.abs(values) > 4).sum() == pytest.approx(2 * stats.norm.sf(4) * 2**20, rel=0.5)
    assert stats.kstest(values[:100_000], "norm").pvalue > 1e-3


def test_an_image_gets_the_same_noise_in_a_larger_batch():
    key = jax.random.key(9)
    for name in ("white_noise", "ycbcr_noise", "impulse_noise"):
        degrade = jax.jit(functools.partial(degradations.degrade, name))
        one, two = (degrade(GREY[:n], 3, key) for n in (1, 2))
        np.testing.assert_allclose(one[0], two[0], atol=1e-6)
