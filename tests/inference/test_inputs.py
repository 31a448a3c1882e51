"""What `score` and `apply` accept, and what they say of the rest."""

import functools
import io
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from jax import export
from jax.experimental import checkify
from small_models import make_model

from qualiclip_jax.errors import UserError
from qualiclip_jax.images import decode_image
from qualiclip_jax.inference import inputs
from qualiclip_jax.models import CLIPConfig, ViTConfig


def test_accepts_arrays_lists_and_floats(resnet, photos):
    stack = np.stack([photos[0], photos[2]])
    expected = resnet.score([photos[0], photos[2]])
    assert expected.dtype == np.float32
    for images in (
        stack,
        jnp.asarray(stack),
        list(jnp.asarray(stack)),
        tuple(stack),
        np.asfortranarray(stack),
        np.stack([stack, stack])[:, :, ::-1][0, :, ::-1],
    ):
        np.testing.assert_allclose(resnet.score(images), expected, atol=1e-6)
    np.testing.assert_allclose(resnet.score(stack[0]), expected[:1], atol=1e-6)
    for images in (
        stack / 255,
        stack / np.float32(255),
        jnp.asarray(stack, jnp.float32) / 255,
        [stack[0] / np.float32(255), stack[1]],
    ):
        np.testing.assert_allclose(resnet.score(images), expected, atol=1e-5)
    np.testing.assert_allclose(resnet.score(jnp.asarray(stack / 255, jnp.float16)), expected, atol=1e-2)
    assert resnet.score([]).shape == resnet.score(stack[:0]).shape == (0,)
    assert resnet.attributes([]).shape == (0, 3)


def as_file(image: PIL.Image.Image) -> np.ndarray:
    """What `decode_image` makes of it after it was written to a file."""
    file = io.BytesIO()
    image.save(file, "TIFF" if image.mode in ("CMYK", "F", "YCbCr") else "PNG", **image.info)
    return decode_image(file.getvalue())


def pillow_images() -> dict[str, PIL.Image.Image]:
    rng = np.random.default_rng(0)
    rgba = PIL.Image.fromarray(rng.integers(0, 256, (40, 70, 4), np.uint8))
    images = {mode: rgba.convert(mode) for mode in ("RGB", "RGBA", "L", "LA", "1", "CMYK", "YCbCr")}
    images["P"] = images["RGB"].quantize(16)
    images["P, transparent"] = images["RGB"].quantize(16)
    images["P, transparent"].info["transparency"] = 3
    images["L, transparent"] = images["L"].copy()
    images["L, transparent"].info["transparency"] = 128
    deep = rng.integers(0, 65536, (40, 70), np.uint16)
    images["I;16"] = PIL.Image.fromarray(deep)
    images["I;16, transparent"] = PIL.Image.fromarray(deep // 4096 * 4096)
    images["I;16, transparent"].info["transparency"] = 8192
    images["F"] = PIL.Image.fromarray(rng.random((40, 70), np.float32))
    return images


@pytest.mark.parametrize("kind", pillow_images())
def test_images_of_pillow_are_those_of_files(kind):
    image = pillow_images()[kind]
    np.testing.assert_array_equal(inputs.as_list(image)[0], as_file(image))


def test_images_of_pillow_are_scored(resnet, photos):
    images = [PIL.Image.fromarray(photo) for photo in photos[:3]]
    expected = resnet.score(photos[:3])
    np.testing.assert_allclose(resnet.score(images), expected, atol=1e-6)
    np.testing.assert_allclose(resnet.score(images[0]), expected[:1], atol=1e-6)
    np.testing.assert_allclose(resnet.score([images[0], photos[1], photos[2] / 255]), expected, atol=1e-5)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_opened_images_of_pillow_are_turned_upright(format):
    file, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), np.uint8)).save(file, format, exif=exif)
    opened, expected = PIL.Image.open(file), decode_image(file.getvalue())
    assert expected.shape == (70, 40, 3)
    np.testing.assert_array_equal(inputs.as_list([opened])[0], expected)


def test_images_of_pillow_that_are_refused(resnet):
    file = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 100).save(file, "JPEG")
    closed = PIL.Image.new("RGB", (64, 64))
    closed.close()
    for image, message in (
        (PIL.Image.new("LAB", (64, 64)), "an image of Pillow of mode LAB is not supported: convert it"),
        (PIL.Image.new("I", (64, 64)), "mode I is not supported"),
        (PIL.Image.new("F", (64, 64), 3), "floating point values from 3 to 3, expected 0 to 1"),
        (PIL.Image.new("RGB", (0, 64)), "64 x 0 pixels, the smallest side"),
        (PIL.Image.open(io.BytesIO(file.getvalue()[:-900])), "truncated"),
        (closed, "closed image"),
    ):
        with pytest.raises(UserError, match=f"image 0: .*{message}"):
            resnet.score([image])


BLACK = np.zeros((64, 64, 3), np.uint8)
FAULTS = [
    (BLACK[:31], "31 x 64 pixels, the smallest side"),
    (BLACK[:0], "0 x 64 pixels, the smallest side"),
    (np.zeros((64, 64, 4), np.uint8), r"has the shape \[64, 64, 4\]"),
    (np.zeros((3, 64, 64), np.uint8), r"has the shape \[3, 64, 64\]"),
    (BLACK[..., 0], r"has the shape \[64, 64\]"),
    (BLACK.astype(np.int32), "has the type int32"),
    (BLACK.astype(np.uint16), "has the type uint16"),
    (BLACK.astype(bool), "has the type bool"),
    (BLACK.astype(np.complex64), "has the type complex64"),
    (np.full((64, 64, 3), 128.0), "has values from 128 to 128"),
    (np.full((64, 64, 3), -0.5), "has values from -0.5 to -0.5"),
    (np.full((64, 64, 3), np.nan), "has values from nan"),
    (BLACK.tolist(), "is a list: give"),
]


@pytest.mark.parametrize(("image", "message"), FAULTS)
def test_score_says_what_is_wrong(resnet, image, message):
    with pytest.raises(UserError, match=f"image 1:? {message}") as error:
        resnet.score([BLACK, image])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (BLACK[..., 0], r"image 0 has the shape \[64, 64\]"),
        (BLACK[None, None], r"image 0 has the shape \[1, 1, 64, 64, 3\]"),
        ("photo.jpg", "image 0 is a path, 'photo.jpg': score_files takes"),
        (["photo.jpg"], "image 0 is a path"),
        (None, "image 0 is a NoneType"),
        ([[BLACK]], "image 0 is a list"),
        (BLACK.tolist(), "image 0 is a list"),
        ({"image": BLACK}, "image 0 is a dict"),
        (np.array(["a", None], object), r"image 0 has the shape \[2\]"),
    ],
)
def test_score_says_what_are_no_images(resnet, images, message):
    with pytest.raises(UserError, match=message):
        resnet.score(images)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("image", "message"), FAULTS[:-1])
def test_apply_says_what_is_wrong(resnet, image, message, jit):
    with pytest.raises(UserError, match="images are a list"):
        resnet.apply(image.tolist())
    with pytest.raises(UserError, match="images are a SimpleNamespace: give an array"):  # as a tensor of PyTorch
        resnet.apply(types.SimpleNamespace(shape=image.shape, dtype="torch.float32"))
    if jit and "values" in message:
        return  # they are not known to it
    with pytest.raises(UserError, match=f"images (of )?{message}"):
        (jax.jit(resnet.apply) if jit else resnet.apply)(image)


def test_apply_checks_the_range_under_jit_if_asked(resnet):
    score = checkify.checkify(jax.jit(functools.partial(resnet.apply, check=True)))
    error, value = score(jnp.full((2, 64, 64, 3), 0.5))
    error.throw()
    np.testing.assert_allclose(value, resnet.score(np.full((2, 64, 64, 3), 0.5)), atol=1e-5)
    error, _ = score(jnp.full((2, 64, 64, 3), 0.5).at[1, 3, 4].set(jnp.array([128.0, np.nan, -1e-3])))
    with pytest.raises(checkify.JaxRuntimeError, match="the array of images has 3 values that are not from 0 to 1"):
        error.throw()


def test_apply_takes_bytes_and_empty_batches(resnet, photos):
    np.testing.assert_allclose(resnet.apply(photos[0]), resnet.score(photos[0])[0], atol=1e-5)
    assert (
        resnet.apply(jnp.zeros((0, 64, 64, 3))).shape == jax.jit(resnet.apply)(jnp.zeros((0, 64, 64, 3))).shape == (0,)
    )
    assert resnet.apply(jnp.zeros((2, 0, 64, 64, 3))).shape == (2, 0)


def test_apply_refuses_what_a_native_model_does_not_take():
    config = CLIPConfig(32, ViTConfig(layers=1, width=32, heads=2, patch_size=8, image_size=40), position="native")
    with pytest.raises(UserError, match="images of 64 x 64 pixels, and this model takes only 40 x 40"):
        make_model(config).apply(jnp.zeros((64, 64, 3)))


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_export_with_symbolic_sizes(kind, photos, request):
    """One program for all sizes gives the scores of `score`."""
    model = request.getfixturevalue(kind)
    n, h, w = export.symbolic_shape("n, h, w", constraints=("h >= 32", "w >= 32"))
    exported = export.export(jax.jit(model.apply))(jax.ShapeDtypeStruct((n, h, w, 3), jnp.float32))
    call = exported.call
    for photo in (photos[0], photos[1], photos[3]):
        batch = np.stack([photo, photo[::-1]]) / np.float32(255)
        np.testing.assert_allclose(call(batch), model.score(batch), atol=1e-6)
    with pytest.raises(ValueError, match="h >= 32"):
        call(np.zeros((1, 31, 64, 3), np.float32))
