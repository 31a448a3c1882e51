"""The camera's chain: what `simulate` promises, and each fault against SciPy, Pillow or statistics."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.metrics import structural_similarity

from qualiclip_jax.degradations import TYPES, camera
from qualiclip_jax.degradations.camera import FACTORS, Settings
from qualiclip_jax.errors import UserError

LEVELS = (0.0, 0.3, 1.0)
BATCH = 6
NOISE, JPEG = FACTORS.index("noise"), FACTORS.index("jpeg")


@pytest.fixture(scope="module")
def simulate():
    """`camera.simulate` at three levels, compiled once for crops uint8 [6, 2, 96, 128, 3] and a key each."""
    return jax.jit(lambda crops, keys: camera.simulate(crops, keys, LEVELS))


@pytest.fixture(scope="module")
def apply():
    """`camera.apply`, compiled once for a shape."""
    run = jax.jit(camera.apply)
    key = jax.random.key(0)
    numbers = lambda settings: Settings(*map(np.float32, settings))  # of one type, for one program
    return lambda images, settings: np.asarray(run(jnp.asarray(images, jnp.float32), numbers(settings), key))


@pytest.fixture(scope="module")
def crops(photos):
    """Two pairs of photographs, twice the same, then black, white and flat ones."""
    flat = [np.full_like(photos[:2], value) for value in (0, 255, 99)]
    return np.stack([photos[:2], photos[2:], photos[[1, 1]], *flat])


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(4), BATCH)


@pytest.fixture(scope="module")
def degraded(simulate, crops, keys):
    return jax.device_get(simulate(crops, keys))


@pytest.fixture(scope="module")
def photo(photos):
    """float64 [96, 128, 3] in 0..1."""
    return photos[0] / 255


def to_linear(x):
    return np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)


def to_srgb(x):
    return np.where(x > 0.0031308, 1.055 * np.maximum(x, 0) ** (1 / 2.4) - 0.055, 12.92 * x)


def test_images_are_finite_in_range_and_pristine_at_level_0(degraded, crops):
    images, severities = degraded
    assert images.shape == (BATCH, 3, *crops.shape[1:])
    assert severities.shape == (BATCH, 3, len(FACTORS))
    assert np.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    np.testing.assert_allclose(images[:, 0] * 255, crops, atol=1e-4)
    assert (np.abs(images[:2, 2] - images[:2, 0]).mean((1, 2, 3, 4)) > 0.01).all()


def test_severities_are_strength_times_level(degraded):
    _, severities = degraded
    strengths = severities[:, 2]
    assert ((strengths == 0) | (strengths >= camera.WEAKEST)).all()
    assert strengths.max() <= 1
    assert (strengths > 0).any(1).all()
    np.testing.assert_allclose(severities[:, :2], strengths[:, None] * [[0], [0.3]], rtol=1e-6)


def test_neighbours_do_not_matter_and_equal_keys_give_equal_bits(simulate, degraded, crops, keys):
    order = np.array([3, 0, 5, 1, 4, 2])
    for output, expected in zip(simulate(crops[order], keys[order]), degraded):
        np.testing.assert_array_equal(output, expected[order])
    others = simulate(crops, jax.random.split(jax.random.key(5), BATCH))
    assert (np.abs(others[0] - degraded[0])[:3, 1:].max((1, 2, 3, 4, 5)) > 0.01).all()


def test_crops_of_an_image_share_everything_but_noise(simulate, crops):
    keys = jax.random.split(jax.random.key(6), BATCH)
    images, severities = simulate(np.broadcast_to(crops[2], crops.shape), keys)
    noisy = severities[:, 2, NOISE] > 0
    assert 0 < noisy.sum() < BATCH
    np.testing.assert_array_equal((images[:, 2, 0] != images[:, 2, 1]).any((1, 2, 3)), noisy)


def test_both_strategies_levels_of_each_image_and_floats_compute_the_same(degraded, crops, keys):
    each = np.tile(np.float32([0.0, 0.3]), (BATCH, 1))
    each[3:] = 0  # nothing to compute
    run = jax.jit(lambda *batch: camera.simulate(*batch, each, strategy="levels"))
    pristine = crops / np.float32(255)
    images, severities = run(pristine, keys)
    np.testing.assert_array_equal(severities[:3], degraded[1][:3, :2])
    assert (severities[3:] == 0).all()
    np.testing.assert_array_equal(images[:, 0], pristine)
    np.testing.assert_array_equal(images[3:, 1], pristine[3:])
    np.testing.assert_allclose(images[:3, 1].mean((2, 3)), degraded[0][:3, 1].mean((2, 3)), atol=2e-4)  # JPEG rounds
    assert np.abs(images[:3, 1] - degraded[0][:3, 1]).mean() < 1e-3


def test_draws_have_the_probabilities_and_ranges_that_are_stated():
    draw = jax.jit(jax.vmap(camera.draw, in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(0), 10_000)
    faults = jax.device_get(draw(keys, jnp.array(camera.PROBABILITIES)))
    strengths, on = np.abs(faults.strengths), faults.strengths != 0
    assert on.any(1).all()
    none = np.prod(1 - np.array(camera.PROBABILITIES))  # then one is turned on
    rate = on.mean(0)
    assert (rate > np.array(camera.PROBABILITIES) - 0.015).all()
    assert rate.sum() - sum(camera.PROBABILITIES) == pytest.approx(none, abs=0.02)
    assert (strengths[on] >= camera.WEAKEST).all()
    for k in range(len(FACTORS)):
        assert np.mean(strengths[on[:, k], k]) == pytest.approx(0.65, abs=0.02)
    dark = faults.strengths[:, 0][on[:, 0]] < 0
    assert dark.mean() == pytest.approx(0.6, abs=0.035)
    only = jnp.array([float(name in ("haze", "jpeg")) * 1e-9 for name in FACTORS])
    named = jax.device_get(draw(keys, only)).strengths
    assert set(np.flatnonzero(named.any(0))) == {FACTORS.index("haze"), JPEG}
    assert ((named != 0).sum(1) == 1).all()


def test_each_factor_alone_is_worse_at_every_higher_level(photo):
    """By SSIM, through `Faults.at`: levels are a scale, and no factor has a dead zone."""
    key = jax.random.key(0)

    @jax.jit
    def run(strengths, level):
        details = [jnp.float32(x) for x in (0.8, 30, 0.5, 0, 0, 0, 0)]
        return camera.apply(jnp.asarray(photo, jnp.float32), camera.Faults(strengths, *details).at(level), key)

    for k, name in enumerate(FACTORS):
        for sign in (-1, 1) if name == "exposure" else (1,):
            strengths = sign * jax.nn.one_hot(k, len(FACTORS))
            outputs = [np.asarray(run(strengths, level), float) for level in (0.1, 0.3, 0.5, 0.75, 1.0)]
            similarity = [structural_similarity(photo, x, channel_axis=-1, data_range=1) for x in (photo, *outputs)]
            assert (np.diff(similarity) < -1e-5).all(), (name, sign, similarity)


@pytest.mark.parametrize("radius", [0.3, 1.0, 2.6, 5.0])
def test_defocus_is_a_disk(apply, photo, radius):
    steps = np.arange(-7, 7, 0.02) + 0.01
    y, x = (axis.ravel() for axis in np.meshgrid(steps, steps, indexing="ij"))
    inside = np.hypot(y, x) <= radius
    hat = lambda at: np.maximum(1 - np.abs(np.arange(-7, 8)[:, None] - at[inside]), 0)
    kernel = hat(y) @ hat(x).T / inside.sum()
    np.testing.assert_allclose(np.pad(camera.disk_kernel(radius), 1), kernel, atol=0.02 * kernel.max())
    light = np.stack(
        [ndimage.correlate(plane, kernel, mode="nearest") for plane in np.moveaxis(to_linear(photo), -1, 0)], -1
    )
    np.testing.assert_allclose(apply(photo, Settings(defocus=radius)), to_srgb(light), atol=0.003)


@pytest.mark.parametrize(
    ("length", "angle", "bend"), [(0.5, 20, 0), (7, 0, 0), (18, 130, 1.5), (18, 290, -1.5), (11, 90, 0.4)]
)
def test_motion_is_the_mean_along_the_path(apply, photo, length, angle, bend):
    turn = np.deg2rad(angle)
    y, x = np.mgrid[:96, :128].astype(float)
    total = 0
    times = np.linspace(-0.5, 0.5, 64)
    for t in times:
        along, across = length * t, -bend * length * (t**2 - 1 / 12)
        down, right = along * np.sin(turn) + across * np.cos(turn), along * np.cos(turn) - across * np.sin(turn)
        place = y + down, x + right
        total = total + np.stack(
            [
                ndimage.map_coordinates(plane, place, order=1, mode="nearest")
                for plane in np.moveaxis(to_linear(photo), -1, 0)
            ],
            -1,
        )
    output = apply(photo, Settings(motion=length, angle=angle, bend=bend))
    np.testing.assert_allclose(output, to_srgb(total / len(times)), atol=2e-3)


@pytest.mark.parametrize(("exposure", "noise", "light"), [(0, 1, 0.2), (0, 1, 0.6), (0, 0.4, 0.1), (-2, 0.7, 0.9)])
def test_noise_is_shot_and_read_noise_raised_with_the_gain(apply, exposure, noise, light):
    flat = np.full((96, 128, 3), to_srgb(np.array(light)))
    output = to_linear(apply(flat, Settings(exposure=exposure, noise=noise)).astype(float))
    sensed, gain = light * 2.0**exposure, 2 ** (-0.6 * exposure)
    assert output.mean() == pytest.approx(sensed * gain, rel=0.01)
    expected = gain**2 * (0.012 * noise * sensed + (0.0164 * noise) ** 2)
    assert output.var() == pytest.approx(expected, rel=0.04)
    centred = output - output.mean()
    assert abs((centred[:, 1:] * centred[:, :-1]).mean()) < 0.03 * expected  # white
    assert abs((centred[..., 0] * centred[..., 1]).mean()) < 0.05 * expected


def test_denoising_is_a_local_wiener_filter(photo):
    light = to_linear(photo)
    smooth = lambda x: ndimage.gaussian_filter(x, (1.2, 1.2, 0), truncate=2.5, mode="nearest")
    mean = smooth(light)
    variance = smooth((light - mean) ** 2)
    noise = 0.02 * mean + 0.0003
    expected = mean + np.maximum(variance - noise, 0) / variance * (light - mean)
    np.testing.assert_allclose(camera.denoise(jnp.float32(light), 0.02, 0.0003), expected, atol=1e-4)


@pytest.mark.parametrize("enlarger", [0, 1, 2])
@pytest.mark.parametrize("shrink", [1.0, 1.3, 2.9, 4.0])
def test_shrinking_is_pillows(apply, photo, shrink, enlarger):
    size = tuple(max(8, int(np.round(side / np.float32(shrink)))) for side in (128, 96))
    back = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)[enlarger]
    planes = [Image.fromarray(photo[..., c].astype(np.float32)) for c in range(3)]
    planes = [plane.resize(size, Image.Resampling.BICUBIC).resize((128, 96), back) for plane in planes]
    expected = np.clip(np.stack(planes, -1), 0, 1)
    np.testing.assert_allclose(apply(photo, Settings(shrink=shrink, enlarger=enlarger)), expected, atol=1e-5)


@pytest.mark.parametrize(("first", "last"), [(0, 37), (60, 20), (15, 90)])
def test_jpeg_is_libjpegs_once_or_twice(apply, photos, first, last):
    expected = photos[0]
    for quality in filter(None, (first, last)):
        file = io.BytesIO()
        Image.fromarray(expected).save(file, "JPEG", quality=quality)
        expected = np.asarray(Image.open(file))
    output = apply(photos[0] / 255, Settings(quality=last, first_quality=first))
    np.testing.assert_array_equal(np.round(output * 255), expected)


def test_exposure_haze_and_colors_are_as_stated(apply, photo):
    light = to_linear(photo)
    check = lambda settings, expected: np.testing.assert_allclose(apply(photo, settings), expected, atol=2e-4)
    check(Settings(), photo)
    check(Settings(exposure=1.5), to_srgb(np.minimum(light * 2**1.5, 1)))
    check(Settings(exposure=-3), to_srgb(light / 8))
    check(Settings(haze=0.4, air=0.7), to_srgb(0.6 * light + 0.28))
    check(Settings(cast=0.3, hue=120), np.clip(photo * [0.85, 1.3, 0.85], 0, 1))
    check(Settings(contrast=0.4), 0.3 + 0.4 * photo)
    grey = photo.mean(-1, keepdims=True)
    check(Settings(saturation=0.25), 0.75 * grey + 0.25 * photo)


def test_local_faults_leave_some_of_the_picture_as_it_was(photos):
    crops = np.broadcast_to(photos[:2], (8, *photos[:2].shape))
    dark = tuple(float(name in ("exposure", "jpeg")) for name in FACTORS)
    run = lambda local: camera.simulate(crops, jax.random.key(0), [1.0], probabilities=dark, local=local)
    images, severities = jax.jit(run, static_argnums=0)(1.0)
    whole = jax.jit(lambda: run(0.0)[1])()
    change = np.abs(images[:, 0] - photos[:2] / np.float32(255)).mean(-1)  # [B, 2, H, W]
    changed = (change > 0.1).mean((1, 2, 3))
    assert ((changed > 0.05) & (changed < 0.9)).all()
    share = severities[:, 0] / whole[:, 0]
    assert ((share[:, 0] > 0.1) & (share[:, 0] < 0.97)).all()
    np.testing.assert_allclose(share[:, JPEG], 1, rtol=1e-6)  # the file is compressed everywhere


def test_one_fault_alone_follows_the_levels(photos):
    """The others stay as they are, from the first level above 0 on."""
    on = tuple(float(name in ("exposure", "contrast", "jpeg")) for name in FACTORS)
    crops = np.broadcast_to(photos[:2], (16, *photos[:2].shape))
    run = jax.jit(lambda: camera.simulate(crops, jax.random.key(0), [0, 0.5, 1], probabilities=on, alone=0.5)[1])
    none, half, full = np.moveaxis(np.asarray(run()), 1, 0)  # severities [B, K]
    assert not none.any()
    np.testing.assert_array_equal(half > 0, np.broadcast_to(np.array(on) > 0, half.shape))
    follows = full > 1.001 * half
    np.testing.assert_allclose(full[follows], 2 * half[follows], rtol=1e-6)
    assert set(follows.sum(1)) == {1, 3}
    assert follows[follows.sum(1) == 1].any(0).sum() > 1  # not the same one in all images

    faults = camera.draw(jax.random.key(1), on, alone=1.0)
    mild, severe = faults.at(0.2), faults.at(0.9)
    assert [float(camera.of_factor(mild, name)) != camera.of_factor(severe, name) for name in FACTORS].count(True) == 1


def test_severities_of_types_are_their_level():
    types = jnp.array([[TYPES.index("jpeg"), -1], [TYPES.index("lens_blur"), TYPES.index("darken")]])
    severities = camera.severities_of_types(types, 4)
    assert severities.shape == (2, 4, len(FACTORS))
    np.testing.assert_allclose(severities[0].sum(-1), [0.2, 0.4, 0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(severities[0, :, JPEG], [0.2, 0.4, 0.6, 0.8], rtol=1e-6)
    assert {FACTORS[k] for k in np.flatnonzero(severities[1, 0])} == {"defocus", "exposure"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, k: camera.simulate(x, k, [0, 1.2]), ["0 to 1.2", "0 (pristine) to 1"]),
        (lambda x, k: camera.simulate(x, k, np.zeros((2, 3))), ["(2, 3)", "[1, L]"]),
        (lambda x, k: camera.simulate(x, k, []), ["(0,)"]),
        (lambda x, k: camera.simulate(x, k, [1], strategy="best"), ["best", "scan"]),
        (lambda x, k: camera.simulate(x, k, [1], local=2), ["local = 2"]),
        (lambda x, k: camera.simulate(x, k, [1], alone=-1), ["alone = -1"]),
        (lambda x, k: camera.simulate(x, k, [1], probabilities=(1,)), ["10 numbers", "exposure"]),
        (lambda x, k: camera.simulate(x, k, [1], probabilities=(0,) * 10), ["all 0"]),
        (lambda x, k: camera.simulate(x[0], k, [1]), ["[batch, 2, height, width, 3]"]),
        (lambda x, k: camera.apply(x[0, :, :20], Settings()), ["20 x 40"]),
        (lambda x, k: camera.apply(x.astype(int), Settings()), ["floating point"]),
        (lambda x, k: camera.apply(x, Settings(noise=0.1)), ["key"]),
        (lambda x, k: camera.apply(x, Settings(defocus=6)), ["settings.defocus is 6", "0 to 5"]),
        (lambda x, k: camera.apply(x, Settings(bend=float("nan"))), ["settings.bend", "-1.5 to 1.5"]),
    ],
)
def test_mistakes_are_told_in_one_line(call, words):
    with pytest.raises(UserError) as error:
        call(jnp.zeros((1, 2, 40, 40, 3)), jax.random.key(0))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)
