"""The deterministic types against the reference code: arrays that it produced, never those of this package."""

import jax
import numpy as np
import pytest

from qualiclip_jax import degradations
from qualiclip_jax.degradations import blur

IMAGES = ("coffee", "chelsea")
NAMES = (
    "gaussian_blur", "lens_blur", "color_diffusion", "hsv_saturation", "lab_saturation", "brighten", "darken",
    "mean_shift", "pixelate", "quantization", "sharpen", "linear_contrast", "nonlinear_contrast",
)  # fmt: skip
SHARE_OFF = {"color_diffusion": 0.0002, "lab_saturation": 0.45}  # of values: measured, rounded up; 0 of the others
TIE = 1e-3  # 8-bit steps, 4e-6 of the range: a float32, rounded some times


def assert_close(name: str, images, expected: np.ndarray) -> None:
    """The same 8-bit values, where at a tie either neighbour is right; in `SHARE_OFF`, some are one step off."""
    images = np.asarray(images)
    assert images.min() >= 0
    assert images.max() <= 1
    assert np.abs(np.round(images * 255) - expected).max() <= 1
    difference = np.abs(images * 255 - expected) > 0.5 + TIE
    assert difference.mean() <= SHARE_OFF.get(name, 0)


@pytest.mark.parametrize("name", NAMES)
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
