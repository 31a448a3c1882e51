"""`fidelity` against the definition in NumPy and SciPy."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from qualiclip_jax import fidelity


def by_definition(image: np.ndarray, reference: np.ndarray) -> float:
    """GMSD in float64, as the paper writes it, on the part of the map that no border touches."""
    prewitt = np.array([[1, 0, -1]] * 3) / 3

    def magnitude(rgb):
        luma = 255 * (rgb.astype(np.float64) @ [0.299, 0.587, 0.114])
        luma = ndimage.uniform_filter(luma, 2, mode="nearest", origin=-1)[::2, ::2][
            : luma.shape[0] // 2, : luma.shape[1] // 2
        ]
        across, down = (ndimage.convolve(luma, kernel) for kernel in (prewitt, prewitt.T))
        return np.hypot(across, down)[1:-1, 1:-1]

    a, b = magnitude(image), magnitude(reference)
    return ((2 * a * b + 170) / (a**2 + b**2 + 170)).std()


@pytest.mark.parametrize("shape", [(32, 48), (33, 41)])
def test_is_the_papers(shape):
    rng = np.random.default_rng(0)
    reference = ndimage.gaussian_filter(rng.random((*shape, 3)), (1, 1, 0)).astype(np.float32)
    image = np.clip(reference + rng.normal(0, 0.05, reference.shape), 0, 1).astype(np.float32)
    assert fidelity.gmsd(image, reference) == pytest.approx(by_definition(image, reference), rel=1e-4)


def test_is_zero_for_equal_images_and_has_finite_gradients_there():
    image = np.full((3, 16, 16, 3), 0.5, np.float32)
    assert not fidelity.gmsd(image, image).any()
    gradient = jax.grad(lambda x: fidelity.gmsd(x, image).sum())(image)
    assert np.isfinite(gradient).all()


def test_one_reference_serves_many_images():
    rng = np.random.default_rng(1)
    reference, images = rng.random((24, 24, 3), np.float32), rng.random((2, 5, 24, 24, 3), np.float32)
    together = fidelity.gmsd(images, reference)
    assert together.shape == (2, 5)
    assert together[1, 3] == pytest.approx(float(fidelity.gmsd(images[1, 3], reference)), rel=1e-5)
