"""JPEG against the golden arrays and against libjpeg-turbo itself, which Pillow carries: equal to the last bit."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, features

from qualiclip_jax.degradations import compression
from qualiclip_jax.degradations.jpeg import quantisation_tables

GOLDEN = Path(__file__).parents[1] / "golden" / "degradations.npz"
QUALITIES = (43, 36, 24, 7, 4)

simulate = jax.jit(compression.jpeg)


def ours(images: np.ndarray, quality) -> np.ndarray:
    """uint8 [..., H, W, 3] -> uint8, through the float interface."""
    output = simulate(jnp.asarray(images, jnp.float32) / 255, jnp.asarray(quality))
    return np.round(np.asarray(output) * 255).astype(np.uint8)


def pillow(image: np.ndarray, quality: int) -> Image.Image:
    if not features.check("libjpeg_turbo"):
        pytest.skip("this Pillow has another libjpeg than libjpeg-turbo, with other roundings")
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue()))


def photo(height: int, width: int) -> np.ndarray:
    from skimage import data

    return data.astronaut()[40 : 40 + height, 160 : 160 + width]


@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_golden_arrays_are_met_exactly(name):
    golden = np.load(GOLDEN)
    images = np.stack([golden[f"input/{name}"]] * len(QUALITIES))
    expected = [golden[f"jpeg/{name}/{level}"] for level in range(1, 6)]
    np.testing.assert_array_equal(ours(images, QUALITIES), expected)


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (50, 37)])
@pytest.mark.parametrize("kind", ["photo", "noise"])
def test_equals_libjpeg_at_any_size(size, kind):
    image = photo(*size) if kind == "photo" else np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    qualities = (1, 4, 7, 24, 36, 43, 49, 50, 75, 90, 100)
    expected = [np.asarray(pillow(image, quality)) for quality in qualities]
    np.testing.assert_array_equal(ours(np.stack([image] * len(qualities)), qualities), expected)


def test_tables_are_those_in_the_file():
    image = photo(16, 16)
    tables = np.asarray(quantisation_tables(jnp.arange(1, 101)))
    for quality in range(1, 101):
        written = pillow(image, quality).quantization
        for i in range(2):
            np.testing.assert_array_equal(tables[quality - 1, i].reshape(-1), written[i], err_msg=f"quality {quality}")


def test_quality_is_rounded_and_clipped():
    image = photo(64, 96)
    got = ours(np.stack([image] * 4), jnp.array([-3.0, 0.6, 23.7, 200.0]))
    np.testing.assert_array_equal(got, ours(np.stack([image] * 4), jnp.array([1.0, 1.0, 24.0, 100.0])))


def test_error_grows_as_quality_falls():
    image = photo(64, 96)
    outputs = ours(np.stack([image] * 11), (100, 95, 85, 75, 60, 43, 36, 24, 12, 7, 4)).astype(float)
    errors = ((outputs - image) ** 2).mean((1, 2, 3))
    assert np.all(np.diff(errors) > 0)


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_flat_images_stay_as_they_are_at_high_quality_and_flat_at_any(value):
    images = np.full((5, 33, 47, 3), value, np.uint8)
    output = ours(images, (100, 43, 24, 7, 4))
    np.testing.assert_array_equal(output[0], images[0])
    assert np.all(output == output[:, :1, :1])


def test_mixed_batch_equals_single_images_and_vmap():
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.random((2, 3, 33, 47, 3)), jnp.float32)
    qualities = jnp.array([[43, 7, 24], [4, 90, 36]])
    together = simulate(images, qualities)
    mapped = jax.jit(jax.vmap(compression.jpeg))(images, qualities)
    single = jnp.stack([jnp.stack([simulate(images[i, j], qualities[i, j]) for j in range(3)]) for i in range(2)])
    np.testing.assert_array_equal(together, single)
    np.testing.assert_array_equal(mapped, single)


def test_output_is_float32_in_range_and_input_may_be_anything_float():
    images = jnp.asarray(np.random.default_rng(2).uniform(-1, 2, (2, 33, 47, 3)), jnp.bfloat16)
    output = simulate(images, 4)
    assert output.dtype == jnp.float32
    assert output.min() >= 0
    assert output.max() <= 1
    np.testing.assert_array_equal(output, simulate(jnp.clip(images, 0, 1).astype(jnp.float32), 4))


def test_gradient_is_zero_and_not_nan():
    gradient = jax.jit(jax.grad(lambda images: compression.jpeg(images, 7).sum()))(jnp.full((33, 47, 3), 0.3))
    np.testing.assert_array_equal(gradient, 0)
