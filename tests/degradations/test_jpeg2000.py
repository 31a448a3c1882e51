"""JPEG 2000 against the golden arrays and against OpenJPEG, which Pillow carries."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from qualiclip_jax.degradations import compression, jpeg2000

GOLDEN = Path(__file__).parents[1] / "golden" / "degradations.npz"
RATES = (16, 32, 45, 120, 170)

simulate = jax.jit(compression.jpeg2000)


def ours(images: np.ndarray, rates) -> np.ndarray:
    """uint8 [..., H, W, 3] -> uint8, through the float interface."""
    output = simulate(jnp.asarray(images, jnp.float32) / 255, jnp.asarray(rates, jnp.float32))
    return np.round(np.asarray(output) * 255).astype(np.uint8)


def pillow(image: np.ndarray, rate: int) -> np.ndarray:
    file = io.BytesIO()
    decompositions = min(7, min(image.shape[:2]).bit_length() - 1)
    options = {"quality_mode": "rates", "quality_layers": [rate], "num_resolutions": decompositions + 1}
    Image.fromarray(image).save(file, "JPEG2000", **options)
    return np.asarray(Image.open(io.BytesIO(file.getvalue())))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def photos(height: int, width: int) -> list[np.ndarray]:
    from skimage import data

    places = (
        (data.astronaut(), 20, 150),
        (data.coffee(), 60, 200),
        (data.chelsea(), 40, 100),
        (data.rocket(), 200, 250),
    )
    return [photo[y : y + height, x : x + width] for photo, y, x in places]


def test_golden_loss_is_met_at_each_level():
    golden = np.load(GOLDEN)
    differences = []
    for name in ("coffee", "chelsea"):
        image = golden[f"input/{name}"]
        outputs = ours(np.stack([image] * len(RATES)), RATES)
        losses = [psnr(output, image) for output in outputs]
        assert all(np.diff(losses) < 0)
        differences.append([loss - psnr(golden[f"jpeg2000/{name}/{i + 1}"], image) for i, loss in enumerate(losses)])
    assert np.all(np.abs(differences).mean(0) <= 0.5), differences


@pytest.mark.parametrize("size", [(128, 128), (141, 197)])
def test_loss_and_look_of_openjpeg(size):
    differences, likeness = [], []
    for image in photos(*size):
        outputs = ours(np.stack([image] * len(RATES)), RATES)
        expected = [pillow(image, rate) for rate in RATES]
        differences.append([psnr(a, image) - psnr(b, image) for a, b in zip(outputs, expected, strict=True)])
        # Much nearer to OpenJPEG's picture than to the original: the same coefficients are lost.
        likeness.append([psnr(a, b) - psnr(b, image) for a, b in zip(outputs, expected, strict=True)])
    assert np.all(np.abs(differences).mean(0) <= 0.5), np.round(differences, 2)
    assert np.all(np.mean(likeness, 0) >= 5), np.round(likeness, 1)


def test_nothing_is_lost_where_the_file_may_be_as_large_as_the_image():
    image = photos(141, 197)[0]
    np.testing.assert_array_equal(ours(np.stack([image] * 5), [1.0, 1, 1, 1, 1])[0], image)


def test_error_grows_with_the_rate():
    image = photos(128, 128)[1]
    rates = (4, 8, 12, 16, 22, 32, 45, 90, 120, 170)
    outputs = np.concatenate([ours(np.stack([image] * 5), rates[i : i + 5]) for i in (0, 5)]).astype(float)
    assert np.all(np.diff(((outputs - image) ** 2).mean((1, 2, 3))) > 0)


@pytest.mark.parametrize("size", [(32, 40), (33, 47)])
def test_wavelet_is_undone_exactly(size):
    planes = jnp.asarray(np.random.default_rng(0).integers(-128, 128, (3, 2, *size)), jnp.int32)
    sides, _, _ = jpeg2000._layout(*size)
    bands = jax.jit(lambda planes: jpeg2000._analyse(planes, sides))(planes)
    assert not np.array_equal(bands, planes)
    np.testing.assert_array_equal(jax.jit(lambda bands: jpeg2000._synthesise(bands, sides))(bands), planes)


def test_norms_are_those_of_the_synthesis_functions():
    side, height = (
        1024,
        1 << 14,
    )  # a plane large enough for the widest function, an impulse high enough for its roundings
    sides, blocks, norms = jpeg2000._layout(side, side)
    synthesise = jax.jit(lambda plane: jpeg2000._synthesise(plane, sides))
    middles = [(part * y // 4, part * x // 4) for part, _ in sides for y, x in ((3, 1), (1, 3), (3, 3))] + [(4, 4)]
    for place in middles:
        impulse = np.zeros((side, side), np.int32)
        impulse[place] = height
        norm = np.linalg.norm(np.asarray(synthesise(impulse), float)) / height
        assert norms[blocks[place]] == pytest.approx(norm, rel=5e-3), place


def test_flat_images_stay_as_they_are():
    images = np.stack([np.full((128, 128, 3), value, np.uint8) for value in (0, 1, 100, 254, 255)])
    np.testing.assert_array_equal(ours(images, RATES), images)


def test_tiny_mixed_batch_is_in_range_and_equals_each_image_alone_and_vmap():
    noise = np.random.default_rng(3).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    images = np.concatenate([noise, [photo[:32, :32] for photo in photos(128, 128)]])
    images, rates = jnp.asarray(images, jnp.float32) / 255, jnp.array([6.0, 4, 9, 2, 16])
    together = simulate(images, rates)
    assert together.dtype == jnp.float32
    assert together.min() >= 0
    assert together.max() <= 1
    np.testing.assert_array_equal(jax.jit(jax.vmap(compression.jpeg2000))(images, rates), together)
    for image, rate, output in zip(images, rates, together, strict=True):
        alone = simulate(jnp.broadcast_to(image, images.shape), jnp.broadcast_to(rate, rates.shape))
        np.testing.assert_array_equal(alone[0], output)


def test_gradient_is_zero_and_not_nan():
    gradient = jax.jit(jax.grad(lambda images: compression.jpeg2000(images, 16.0).sum()))(jnp.full((32, 32, 3), 0.3))
    np.testing.assert_array_equal(gradient, 0)
