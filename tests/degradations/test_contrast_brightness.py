"""Curves of contrast and brightness against SciPy's splines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline, KroghInterpolator

from qualiclip_jax.degradations import PARAMETERS, brightness, contrast, degrade

RAMP = np.broadcast_to(np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32, 1), (32, 32, 3))


brighten = jax.jit(brightness.brighten)


@pytest.mark.parametrize("amount", PARAMETERS["linear_contrast"])
def test_linear_contrast_is_the_spline_of_the_reference(amount):
    spline = CubicSpline([0, 0.3, 0.5, 0.7, 1], [0, 0.25 - amount / 4, 0.5, 0.75 + amount / 4, 1], bc_type="not-a-knot")
    np.testing.assert_allclose(contrast.linear_contrast(jnp.asarray(RAMP), amount), spline(RAMP).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("amount", PARAMETERS["darken"])
def test_darken_is_the_parabola_through_its_three_points(amount):
    curve = KroghInterpolator([0, 0.5, 1], [0, 0.5 - amount / 2, 1])
    np.testing.assert_allclose(brightness.darken(jnp.asarray(RAMP), amount), curve(RAMP).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("amount", PARAMETERS["brighten"])
def test_brighten_lifts_grey_by_both_curves(amount):
    """On grey, Lab has no colour: L of the result is known in closed form."""
    grey = jnp.full((32, 32, 3), 0.25)
    middle = 0.5 + amount / 2
    curve = KroghInterpolator([0, 0.5, 1], [0, middle, 1])
    lightness = 116 * np.cbrt(((0.25 + 0.055) / 1.055) ** 2.4) - 16
    lifted = 100 * np.clip(curve(lightness / 100), 0, 1)
    linear = ((lifted + 16) / 116) ** 3
    in_lab = min(1.055 * linear ** (1 / 2.4) - 0.055, 1)
    expected = (2 * np.clip(curve(0.25), 0, 1) + in_lab) / 3
    np.testing.assert_allclose(brighten(grey, amount), expected, atol=1e-4)


@pytest.mark.parametrize("half_range", PARAMETERS["nonlinear_contrast"])
def test_nonlinear_contrast_fills_its_range(half_range):
    output = np.asarray(contrast.nonlinear_contrast(jnp.asarray(RAMP), half_range))
    assert output.min() == pytest.approx(0.5 - half_range)
    assert output.max() == pytest.approx(0.5 + half_range)


@pytest.mark.parametrize(("value", "expected"), [(0, (26, 51, 76, 102, 115)), (1, (230, 204, 178, 153, 140))])
def test_black_and_white_become_what_the_reference_makes_of_them(value, expected):
    """Halves of 8 bits (25.5 at level 1) that go to the even side, if 0.1 is the float nearest to it."""
    run = jax.jit(lambda level: degrade("nonlinear_contrast", jnp.full((32, 32, 3), value, jnp.float32), level, None))
    assert [float(np.round(run(level)[0, 0, 0] * 255)) for level in range(1, 6)] == list(expected)


def test_mean_shift_adds_and_clips():
    np.testing.assert_allclose(brightness.mean_shift(jnp.asarray(RAMP), -0.15), (RAMP - 0.15).clip(0, 1), atol=1e-7)


def test_sharpen_overshoots_at_an_edge_and_leaves_flat_parts_alone():
    edge = jnp.full((48, 48, 3), 0.4).at[:, 24:].set(0.6)
    sharpened = np.asarray(jax.jit(contrast.sharpen)(edge, 2.0))
    assert sharpened[24, 23, 0] < 0.35
    assert sharpened[24, 24, 0] > 0.65
    np.testing.assert_allclose(sharpened[:, :16], 0.4, atol=1e-4)
    np.testing.assert_allclose(sharpened[:, 32:], 0.6, atol=1e-4)
