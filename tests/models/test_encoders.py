"""What the encoders promise: any size exactly, finite gradients, bfloat16, rematerialisation, clear refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qualiclip_jax import models
from qualiclip_jax.errors import UserError
from qualiclip_jax.models.encoder import Area, run
from tests.small_models import EFFICIENTNET, SIGLIP

SIDE = 64  # of many images here, so that they share compiled programs
RESNET = models.CLIPConfig(32, models.ResNetConfig((1, 2, 1, 1), 4, 2, SIDE), models.TextConfig(2, 64, 2, 50))
VIT = models.CLIPConfig(32, models.ViTConfig(2, 64, 2, 16, SIDE))
CONFIGS = {"resnet": RESNET, "vit": VIT, "siglip": SIGLIP, "efficientnet": EFFICIENTNET}


@pytest.fixture(scope="module", params=CONFIGS)
def clip(request, build):
    return build(CONFIGS[request.param])


def changed(clip, **fields):
    return models.from_pure(dataclasses.replace(clip.config, **fields), models.to_pure(clip)[1])


@nnx.jit
def encode(clip, images, sizes=None):
    return clip.encode_image(images, sizes)


def relative(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


def photos(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((*size, 3)).astype(np.float32) for size in sizes]


@pytest.mark.parametrize("position", ["none", "interpolate"])
def test_a_padded_image_has_the_features_of_the_unpadded_one(clip, position):
    if position not in clip.config.image.positions:
        pytest.skip("this encoder has no positional embedding")
    clip = changed(clip, position=position)
    images = photos((97, 131), (SIDE, SIDE))
    padded = np.full((2, 130, 163, 3), 1e3, np.float32)  # the padding is far from harmless, if it were looked at
    for row, image in zip(padded, images):
        row[: image.shape[0], : image.shape[1]] = image
    sizes = jnp.array([image.shape[:2] for image in images], jnp.int32)
    together = encode(clip, jnp.asarray(padded), sizes)
    alone = [encode(clip, jnp.asarray(image[None]))[0] for image in images]
    assert relative(together, alone) < 2e-6


def test_interpolated_position_is_the_native_one_at_the_native_size(clip):
    if "native" not in clip.config.image.positions:
        pytest.skip("this encoder has no positional embedding")
    assert clip.config.image.image_size == SIDE
    image = jnp.asarray(np.stack(photos((SIDE, SIDE))))
    native = encode(changed(clip, position="native"), image)
    assert relative(encode(changed(clip, position="interpolate"), image), native) == 0
    assert relative(encode(changed(clip, position="none"), image), native) > 1e-3


def test_native_position_refuses_other_sizes(clip):
    if "native" not in clip.config.image.positions:
        with pytest.raises(UserError, match="position must be one of none"):
            changed(clip, position="native")
        return
    clip = changed(clip, position="native")
    with pytest.raises(UserError, match="native positional embedding"):
        encode(clip, jnp.zeros((1, 160, 64, 3)))
    with pytest.raises(UserError, match="native positional embedding"):
        encode(clip, jnp.zeros((1, 96, 96, 3)), jnp.array([[64, 64]], jnp.int32))


def test_images_smaller_than_a_stride_are_refused(clip):
    least = clip.config.image.stride
    assert np.isfinite(encode(clip, jnp.ones((1, least, least, 3)))).all()
    with pytest.raises(UserError, match=f"at least {least} x {least} pixels, got {least - 1} x 40"):
        clip.encode_image(jnp.zeros((1, least - 1, 40, 3)))


@pytest.mark.parametrize(("compute_dtype", "remat"), [("float32", False), ("bfloat16", True)])
def test_gradients_are_finite_for_constant_images(clip, compute_dtype, remat):
    clip = changed(clip, compute_dtype=compute_dtype, remat=remat)
    graph, params, rest = nnx.split(clip, nnx.Param, ...)

    @jax.jit
    def gradients(params, images):
        def loss(params, images):
            features = nnx.merge(graph, params, rest).encode_image(models.normalise(images))
            return jnp.sum(features / jnp.linalg.norm(features, axis=-1, keepdims=True) ** 2)

        return jax.grad(loss, argnums=(0, 1))(params, images)

    black_grey_white = jnp.broadcast_to(jnp.array([0.0, 0.5, 1.0])[:, None, None, None], (3, 64, 64, 3))
    for leaf in jax.tree.leaves(gradients(params, black_grey_white)):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()


def test_bfloat16_computes_near_float32_and_gives_float32(clip):
    images = jnp.asarray(np.stack(photos((SIDE, SIDE))))
    exact = encode(clip, images)
    low = changed(clip, compute_dtype="bfloat16")
    features = encode(low, images)
    assert features.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(low)))
    error = relative(features, exact)
    assert 1e-5 < error < 0.05  # it did compute in bfloat16 (8 bits), and well


def test_rematerialisation_changes_neither_gradient_nor_statistics(build):
    """On one stage of a ResNet in training mode, and on a whole transformer."""
    images = jnp.asarray(np.stack(photos((8, 8), (8, 8))))

    def resnet_stage(clip):
        clip.batch_norm_mode(training=True)
        x = jnp.tile(images, (1, 1, 1, 6))[..., : 4 * clip.config.image.width]
        for block in clip.image.stages[1]:
            x = run(block, x, Area(None), clip.image.remat)
        return jnp.sum(x**2)

    def transformer(clip):
        return jnp.sum(clip.image.transformer(jnp.tile(images.reshape(2, 64, 3), (1, 1, 22))[..., :64]) ** 2)

    for config, function in ((RESNET, resnet_stage), (VIT, transformer)):
        clip = build(config)

        @nnx.jit
        def gradients(clip, function=function):
            return nnx.grad(function)(clip), nnx.state(clip, nnx.BatchStat)

        plain, again = (jax.tree.leaves(gradients(changed(clip, remat=remat))) for remat in (False, True))
        scale = max(float(np.abs(leaf).max()) for leaf in plain)
        for a, b in zip(plain, again, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 * scale)


def test_rematerialisation_keeps_less(clip):
    def kept(remat):
        graph, state = nnx.split(changed(clip, remat=remat))
        images = jax.ShapeDtypeStruct((8, 128, 128, 3), jnp.float32)

        def loss(state, images):
            return jnp.sum(nnx.merge(graph, state).encode_image(images))

        _, backward = jax.eval_shape(lambda s, x: jax.vjp(loss, s, x), state, images)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(True) < 0.6 * kept(False)


def test_a_model_without_text_encoder_says_so(build):
    clip = build(RESNET)
    clip.drop_text_encoder()
    assert "text" not in models.to_pure(clip)[1]
    with pytest.raises(UserError, match="no text encoder"):
        clip.encode_text(jnp.ones((2, 77), jnp.int32))


@pytest.mark.parametrize("shape", [(64, 64, 3), (2, 3, 64, 64), (1, 1, 64, 64, 3)])
def test_images_of_another_shape_are_refused(clip, shape):
    with pytest.raises(UserError, match=r"expected \[N, height, width, 3\]"):
        clip.encode_image(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        (np.zeros(77, np.int32), r"int32 \(77,\), expected integers \[P, 77\]"),
        (np.zeros((1, 78), np.int32), r"int32 \(1, 78\)"),
        (np.zeros((1, 77), np.float32), "float32"),
        (np.full((1, 77), 50), "from 50 to 50: this vocabulary has 50"),
        (np.full((1, 77), -1), "from -1 to -1"),
    ],
)
def test_tokens_that_are_none_are_refused(build, tokens, named):
    with pytest.raises(UserError, match=named):
        build(RESNET).encode_text(tokens)


def test_the_text_feature_is_read_at_the_end_token(build):
    tokens = np.zeros((2, 77), np.int32)
    tokens[:, :4] = [1, 7, 9, 49]
    tokens[1, 4:] = 3  # after the end: without effect
    for end_token in (None, 49):
        text = dataclasses.replace(RESNET.text, end_token=end_token)
        clip = build(dataclasses.replace(RESNET, text=text))
        features = nnx.jit(lambda clip: clip.encode_text(jnp.asarray(tokens)))(clip)
        np.testing.assert_allclose(features[0], features[1], rtol=1e-5)


def test_random_initialisation_keeps_activations_of_one_size():
    """Frozen BatchNorm does not normalise: whatever the depth, features neither vanish nor explode."""
    config = models.CLIPConfig(32, models.ResNetConfig((1, 2, 2, 1), 16, 8))
    clip = models.CLIP(config, rngs=nnx.Rngs(0))
    images = jnp.asarray(np.stack(photos((64, 64), (64, 64))))
    spread = float(jnp.std(encode(clip, images)))
    assert 0.05 < spread < 20


def test_the_same_seed_gives_the_same_parameters():
    first, second, other = (jax.tree.leaves(nnx.state(models.CLIP(VIT, rngs=nnx.Rngs(seed)))) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_pure_state_names_every_fault(build):
    clip = build(RESNET)
    config, arrays = models.to_pure(clip)
    arrays["image"]["extra"] = np.zeros(3)
    arrays["text"]["tokens"] = arrays["text"]["tokens"][:-1]
    del arrays["image"]["pool"]["q"]["bias"]
    with pytest.raises(UserError) as refusal:
        models.from_pure(config, arrays)
    for named in ("missing: image/pool/q/bias", "not used: image/extra", "text/tokens (49, 64) instead of (50, 64)"):
        assert named in str(refusal.value)


def test_pure_state_may_be_abstract():
    abstract = nnx.eval_shape(lambda: models.CLIP(RESNET, rngs=nnx.Rngs(0)))
    config, shapes = models.to_pure(abstract)
    again = models.to_pure(models.from_pure(config, shapes))[1]
    assert jax.tree.map(lambda a: a.shape, again) == jax.tree.map(lambda a: a.shape, shapes)
