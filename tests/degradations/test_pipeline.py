"""`degrade`, `degrade_pairs` and `sample_types`: what they promise for every type."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from skimage.metrics import structural_similarity

from qualiclip_jax import degradations
from qualiclip_jax.degradations import GROUPS, PARAMETERS, TYPES, degrade, degrade_pairs, pipeline, sample_types
from qualiclip_jax.errors import UserError

SHARED_DRAW = ("motion_blur", "color_shift")
INDEPENDENT_DRAWS = (
    "white_noise", "ycbcr_noise", "impulse_noise", "multiplicative_noise", "jitter", "non_eccentricity_patch",
    "color_block",
)  # fmt: skip
UNORDERED = ("mean_shift", "linear_contrast")  # their parameter is not monotone in the level


def repeated(crops: np.ndarray) -> np.ndarray:
    return np.broadcast_to(crops, (24, *crops.shape))


def test_the_table_is_complete():
    assert len(TYPES) == 24
    assert len(GROUPS) == 7
    assert tuple(PARAMETERS) == TYPES
    assert all(len(values) == degradations.LEVELS for values in PARAMETERS.values())


def test_all_types_stay_in_range_and_change_the_image(degraded, photos):
    assert degraded.shape == (24, 5, *photos[:2].shape)
    assert degraded.dtype == np.float32
    assert np.isfinite(degraded).all()
    assert degraded.min() >= 0
    assert degraded.max() <= 1
    change = np.abs(degraded - photos[:2] / np.float32(255)).mean((2, 3, 4, 5))  # [24, 5]
    assert (change[:, 4] > 0.002).all()


@pytest.mark.parametrize("values", [(77, 0), (255, 255)])
def test_flat_crops_give_no_nan(degrade_all, photos, values):
    output = degrade_all(np.stack([np.full_like(photos[0], value) for value in values]))
    assert np.isfinite(output).all()
    assert output.min() >= 0
    assert output.max() <= 1


def test_similarity_falls_from_level_to_level(degrade_all, photos, degraded):
    """Mean SSIM over four photographs."""
    outputs = np.concatenate([degraded, degrade_all(photos[2:])], axis=2)  # [24, 5, 4, H, W, 3]
    pristine = photos / np.float32(255)
    for kind, name in enumerate(TYPES):
        if name in UNORDERED:
            continue
        similarity = [
            np.mean([structural_similarity(*pair, channel_axis=-1, data_range=1) for pair in zip(pristine, images)])
            for images in outputs[kind]
        ]
        assert (np.diff(similarity) < 0).all(), (name, similarity)


def test_another_key_gives_another_draw(degrade_all, photos, degraded):
    other = degrade_all(photos[:2], jax.random.split(jax.random.key(1), 24))
    for kind, name in enumerate(TYPES):
        changed = (other[kind] != degraded[kind]).any((1, 2, 3, 4))  # [5]
        if name in INDEPENDENT_DRAWS:
            assert changed.all(), name
        else:
            assert changed.any() == (name in SHARED_DRAW), name


def test_crops_share_an_angle_and_a_direction_but_not_noise(degrade_all, photos):
    output = degrade_all(np.stack([photos[0], photos[0]]))
    for kind, name in enumerate(TYPES):
        equal = (output[kind, :, 0] == output[kind, :, 1]).all()
        assert equal == (name not in INDEPENDENT_DRAWS), name


def test_composed_types_are_applied_in_order(run_pairs, keys, photos):
    rows = [("darken", "pixelate"), ("pixelate", "darken"), ("white_noise", "quantization"), ("quantization", None)]
    rows += [(None, None)] * 20
    types = jnp.array([[-1 if name is None else TYPES.index(name) for name in row] for row in rows])
    output = run_pairs(repeated(photos[:2]), types, keys)
    for names, key, levels in zip(rows[:5], keys, output):
        for level in (1, 4):
            expected = photos[:2] / np.float32(255)
            for number, name in enumerate(names):
                if name is not None:
                    expected = degrade(name, expected, level, jax.random.fold_in(key, number))
            np.testing.assert_allclose(levels[level - 1], expected, atol=1e-5)


def test_neighbours_do_not_matter(run_pairs, keys, each_type, photos, degraded):
    """In another order, with equal keys: the same bits. (Other numbers of devices: training/test_processes.py.)"""
    order = np.random.default_rng(0).permutation(24)
    output = run_pairs(repeated(photos[:2]), each_type[order], keys[order])
    np.testing.assert_array_equal(output, degraded[order])


def test_both_strategies_compute_the_same(photos, each_type, degraded):
    """And crops in floating point, one key for the batch, fewer levels."""
    levels = jax.jit(lambda *batch: degrade_pairs(*batch, levels=2, strategy="levels"))
    output = levels(repeated(photos[:2] / np.float32(255)), each_type, jax.random.key(0))
    assert output.shape == (24, 2, *photos[:2].shape)
    difference = np.abs(output - degraded[:, :2])
    assert difference.mean() < 1e-4
    # Rounding to 8 bits makes a step of the last bit of a float32, and JPEG 2000 may then cut a block elsewhere.
    smooth = [kind for kind, name in enumerate(TYPES) if name not in GROUPS["compression"]]
    assert difference[smooth].max() <= 1.01 / 255


def test_only_the_types_that_may_occur_are_compiled(keys, photos, degraded):
    """And their pixels stay the same, but for the rounding of another program."""
    among = ("darken", "motion_blur", "white_noise")
    kinds = np.array([TYPES.index(name) for name in (*among, "jpeg")])
    crops, types = repeated(photos[:2])[:4], jnp.stack([jnp.full(4, -1), kinds], axis=1)
    output = jax.jit(lambda types: degrade_pairs(crops, types, keys[kinds], among=among))(types)
    np.testing.assert_allclose(output[:3], degraded[kinds[:3]], atol=1e-7)
    np.testing.assert_allclose(output[3], np.broadcast_to(photos[:2] / np.float32(255), output[3].shape), atol=1e-7)
    with pytest.raises(UserError, match="type_index holds jpeg, not among darken, motion_blur, white_noise"):
        degrade_pairs(crops, types, keys[kinds], among=among)


@pytest.mark.parametrize("name", ["gaussian_blur", "motion_blur", "white_noise", "color_block", "sharpen"])
def test_pairs_are_degrade_of_each_level(keys, photos, degraded, name):
    kind = TYPES.index(name)
    key = jax.random.fold_in(keys[kind], 1)  # the second of the composed degradations
    crops = photos[:2] / np.float32(255)
    for level in (2, 5):
        np.testing.assert_allclose(degrade(name, crops, level, key), degraded[kind, level - 1], atol=1e-5)


@pytest.fixture(scope="module")
def small_images(photos):
    """The smallest there may be: flat, black, white and a photograph, 32 x 32."""
    flat = [np.full((32, 32, 3), value, np.float32) for value in (0.6, 0.0, 1.0)]
    return jnp.asarray(np.stack([*flat, photos[0, 30:62, 40:72] / np.float32(255)]))


def test_smallest_images_in_bfloat16_under_vmap_and_traced_levels(small_images):
    """One program with all types; computed in float32, given back as bfloat16."""

    def every(level, images, key):
        return {name: degrade(name, images, level, key) for name in TYPES}

    run = jax.jit(jax.vmap(every, in_axes=(0, None, None)))
    outputs = run(jnp.arange(1, 6), small_images.astype(jnp.bfloat16), jax.random.key(0))
    for name, output in outputs.items():
        assert output.dtype == jnp.bfloat16, name
        assert output.shape == (5, *small_images.shape), name
        values = np.asarray(output, np.float32)
        assert np.isfinite(values).all(), name
        assert values.min() >= 0, name
        assert values.max() <= 1, name


@pytest.mark.parametrize("name", ["white_noise", "linear_contrast"])
def test_bfloat16_is_computed_in_float32(small_images, name):
    key = jax.random.key(0)
    rounded = small_images.astype(jnp.bfloat16)
    expected = degrade(name, rounded.astype(jnp.float32), 4, key).astype(jnp.bfloat16)
    np.testing.assert_array_equal(degrade(name, rounded, 4, key), expected)


def test_numpy_arrays_and_keys_of_either_kind_will_do(photos):
    """With two types in place of 24, to compile less."""
    among = ("darken", "white_noise")
    types = [TYPES.index(name) for name in among]
    crops = photos.reshape(2, 2, *photos.shape[1:])
    expected = jax.jit(functools.partial(degrade_pairs, among=among))(
        jnp.asarray(crops), jnp.array(types), jax.random.key(7)
    )
    output = degrade_pairs(crops, np.array(types, np.uint8), jax.random.PRNGKey(7), among=among)
    np.testing.assert_allclose(output, expected, atol=1e-6)
    each = degrade_pairs(crops, types, pipeline.keys_of_images(jax.random.key(7), 2), among=among)
    np.testing.assert_allclose(each, expected, atol=1e-6)


def test_types_are_drawn_uniformly_over_groups_then_types():
    types = np.asarray(sample_types(jax.random.key(0), 20_000))
    assert types.dtype == np.int32
    expected = [20_000 / 7 / len(names) for names in GROUPS.values() for _ in names]
    assert stats.chisquare(np.bincount(types, minlength=24), expected).pvalue > 1e-3


def test_only_the_types_that_are_named_are_drawn():
    named = ("jpeg", "lens_blur", "motion_blur")  # two groups
    types = np.asarray(sample_types(jax.random.key(2), 8000, types=named))
    count = np.bincount(types, minlength=24)
    assert count.sum() == sum(count[TYPES.index(name)] for name in named)
    expected = [4000, 2000, 2000]
    assert stats.chisquare([count[TYPES.index(name)] for name in named], expected).pvalue > 1e-3
    pairs = np.asarray(sample_types(jax.random.key(2), 100, 2, named))
    assert ((pairs == TYPES.index("jpeg")).sum(1) == 1).all()


@pytest.mark.parametrize("composed", [2, 7])
def test_composed_types_are_of_distinct_groups_in_any_order(composed):
    types = np.asarray(sample_types(jax.random.key(1), 6000, composed))
    assert types.shape == (6000, composed)
    group_of = np.array([g for g, names in enumerate(GROUPS.values()) for _ in names])
    groups = np.sort(group_of[types], axis=1)
    assert (np.diff(groups, axis=1) > 0).all()
    for column in range(composed):  # each place has each group equally often
        assert stats.chisquare(np.bincount(group_of[types[:, column]], minlength=7)).pvalue > 1e-3


def pair(image):
    """A batch of one image whose two crops are the same."""
    return jnp.stack([image, image])[None]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, k: degrade("gausian_blur", x, 1, k), ["gausian_blur", "gaussian_blur, lens_blur"]),
        (lambda x, k: degrade("jpeg", x, 6, k), ["level 6", "1 to 5"]),
        (lambda x, k: degrade("jpeg", x, 0, k), ["level 0", "1 to 5"]),
        (lambda x, k: degrade("jpeg", x, 2.5, k), ["level 2.5", "one integer"]),
        (lambda x, k: degrade("jpeg", x, jnp.arange(1, 4), k), ["[1, 2, 3]", "one integer"]),
        (lambda x, k: degrade("jpeg", (x * 255).astype(jnp.uint8), 1, k), ["uint8", "[0, 1]"]),
        (lambda x, k: degrade("jpeg", x[:31], 1, k), ["31 x 40", "32 x 32"]),
        (lambda x, k: degrade("jpeg", x[..., :1], 1, k), ["(40, 40, 1)", "[..., height, width, 3]"]),
        (lambda x, k: degrade_pairs(pair(x), jnp.array([0]), k, levels=6), ["6 levels", "1 to 5"]),
        (lambda x, k: degrade_pairs(pair(x), jnp.array([0]), k, strategy="best"), ["best", "scan"]),
        (lambda x, k: degrade_pairs(x[None], jnp.array([0]), k), ["(1, 40, 40, 3)", "[batch, 2, height, width, 3]"]),
        (lambda x, k: degrade_pairs(pair(x).astype(jnp.int32), jnp.array([0]), k), ["int32", "uint8"]),
        (lambda x, k: degrade_pairs(pair(x), jnp.array([24]), k), ["24", "0 to 23"]),
        (lambda x, k: degrade_pairs(pair(x), jnp.array([-2]), k), ["-2", "-1 is none"]),
        (lambda x, k: degrade_pairs(pair(x), jnp.array([0, 1]), k), ["(2,)", "[1, D]"]),
        (lambda x, k: degrade_pairs(pair(x), jnp.array([0.5]), k), ["float32", "integers"]),
        (lambda x, k: degrade_pairs(pair(x), jnp.array([0]), jax.random.split(k, 3)), ["(3,)", "each of 1 images"]),
        (lambda x, k: sample_types(k, 4, 8), ["8", "7 groups"]),
        (lambda x, k: sample_types(k, 4, 2, ("jpeg", "jpeg2000")), ["2", "1 groups"]),
        (lambda x, k: sample_types(k, 4, 1, ("jpg",)), ["'jpg'", "jpeg2000, jpeg"]),
    ],
)
def test_mistakes_are_told_in_one_line(call, words):
    with pytest.raises(UserError) as error:
        call(jnp.zeros((40, 40, 3)), jax.random.key(0))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_types_and_levels_that_are_known_are_checked_while_others_are_traced():
    """Under `jit`, with types and a level that are constants of the function."""
    key = jax.random.key(0)
    crops, images = jax.ShapeDtypeStruct((1, 2, 40, 40, 3), jnp.uint8), jax.ShapeDtypeStruct((40, 40, 3), jnp.float32)
    types = jnp.array([3])
    result = jax.eval_shape(lambda crops: degrade_pairs(crops, types, key, levels=1), crops)
    assert result.shape == (1, 1, 2, 40, 40, 3)
    for wrong in (np.array([43]), jnp.array([43]), jnp.array([43], jnp.int8)):
        with pytest.raises(UserError, match="from 43 to 43"):
            jax.eval_shape(lambda crops, wrong=wrong: degrade_pairs(crops, wrong, key, levels=1), crops)
    for level, wrong in ((np.int32(2), np.int32(6)), (jnp.int32(2), jnp.int32(6))):
        assert jax.eval_shape(lambda images, level=level: degrade("jpeg", images, level, key), images) == images
        with pytest.raises(UserError, match="levels go from 1 to 5"):
            jax.eval_shape(lambda images, wrong=wrong: degrade("jpeg", images, wrong, key), images)
