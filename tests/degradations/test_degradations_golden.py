"""The deterministic types against the reference code: arrays that it produced, never those of this package."""

import jax
import numpy as np
import pytest

from qualiclip_jax import degradations
from qualiclip_jax.degradations import blur

IMAGES = ("coffee", "chelsea")
# Mean absolute difference at the worst level and photo, in 8-bit steps: measured, rounded up.
WITHIN = {
    "gaussian_blur": 0.001,
    "lens_blur": 0.001,
    "motion_blur": 0.001,
    "color_diffusion": 0.001,
    "hsv_saturation": 0.015,
    "lab_saturation": 0.45,
    "brighten": 0.001,
    "darken": 0.001,
    "mean_shift": 0.001,
    "pixelate": 0.001,
    "quantization": 0.07,
    "sharpen": 0.001,
    "linear_contrast": 0.001,
    "nonlinear_contrast": 0.09,
}


def assert_close(name: str, images, expected: np.ndarray) -> None:
    """No pixel is off by more than one 8-bit step, and few are."""
    images = np.asarray(images)
    assert images.min() >= 0
    assert images.max() <= 1
    difference = np.abs(np.round(images * 255) - expected)
    assert difference.max() <= 1
    assert difference.mean() <= WITHIN[name]


@pytest.mark.parametrize("name", [name for name in WITHIN if name != "motion_blur"])
def test_every_level_agrees_with_the_reference(golden, name):
    degrade = jax.jit(lambda image, level: degradations.degrade(name, image, level, jax.random.key(0)))
    for photo in IMAGES:
        image = golden[f"input/{photo}"] / np.float32(255)
        for level in range(1, 6):
            assert_close(name, degrade(image, level), golden[f"{name}/{photo}/{level}"])


def test_motion_blur_agrees_at_three_angles(golden):
    motion_blur = jax.jit(blur.motion_blur)
    for photo in IMAGES:
        image = golden[f"input/{photo}"] / np.float32(255)
        for level, length in enumerate(degradations.PARAMETERS["motion_blur"], start=1):
            for angle in (0, 45, 130):
                expected = golden[f"motion_blur/{photo}/{level}/angle{angle}"]
                assert_close("motion_blur", motion_blur(image, float(length), float(angle)), expected)


def test_lens_blur_with_a_static_radius_is_that_of_the_table(golden):
    image = golden["input/coffee"] / np.float32(255)
    assert_close("lens_blur", jax.jit(lambda image: blur.lens_blur(image, 6))(image), golden["lens_blur/coffee/4"])
