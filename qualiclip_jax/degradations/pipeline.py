"""Degradations by name: one type on a batch, and the degraded pairs of crops that training needs."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qualiclip_jax.degradations import blur, brightness, color, compression, contrast, noise, spatial
from qualiclip_jax.degradations.catalog import LEVELS, PARAMETERS, TYPES, types_by_group
from qualiclip_jax.errors import UserError

STRATEGIES = ("scan", "levels")
MIN_SIZE = 32  # px, the side of the squares of color_block

# name -> function of (images, parameter) or, of the random ones, (images, parameter, key)
DETERMINISTIC: dict[str, Callable[..., Array]] = {
    "gaussian_blur": blur.gaussian_blur,
    "lens_blur": blur.lens_blur_from_table,
    "color_diffusion": color.color_diffusion,
    "hsv_saturation": color.hsv_saturation,
    "lab_saturation": color.lab_saturation,
    "jpeg2000": compression.jpeg2000,
    "jpeg": compression.jpeg,
    "brighten": brightness.brighten,
    "darken": brightness.darken,
    "mean_shift": brightness.mean_shift,
    "pixelate": spatial.pixelate_from_table,
    "quantization": spatial.quantization,
    "sharpen": contrast.sharpen,
    "linear_contrast": contrast.linear_contrast,
    "nonlinear_contrast": contrast.nonlinear_contrast,
}
DRAWN_ONCE: dict[str, Callable[..., Array]] = {  # the draw is shared by all images and levels: an angle, a direction
    "motion_blur": blur.random_motion_blur,
    "color_shift": color.random_color_shift,
}
DRAWN_EACH: dict[str, Callable[..., Array]] = {  # independent draws for every image and level
    "white_noise": noise.white_noise,
    "ycbcr_noise": noise.ycbcr_noise,
    "impulse_noise": noise.impulse_noise,
    "multiplicative_noise": noise.multiplicative_noise,
    "jitter": spatial.jitter,
    "non_eccentricity_patch": spatial.non_eccentricity_patch,
    "color_block": spatial.color_block,
}


def degrade(name: str, images: Array, level: Array | int, key: Array) -> Array:
    """Applies one type of degradation.

    Args:
      name: one of `TYPES`.
      images: float [..., H, W, 3], RGB in [0, 1], H and W >= 32.
      level: 1 (mild) to 5, one integer; may be traced.
      key: of the random types. An angle or a direction is drawn once, the same at all levels and for all of `images`;
        noise and places are drawn anew for each level and image.

    Returns:
      Degraded images in [0, 1], shape and dtype of `images`; computed in float32.

    Raises:
      UserError: if there is no such type, if the level is out of range or not one integer, or if the images are
        integers, too small, or without three channels.
    """
    if name not in TYPES:
        raise UserError(f"no degradation named {name!r}; there are {', '.join(TYPES)}")
    _check_level(name, level)
    images = jnp.asarray(images)
    check_images(images)
    return _degraded(name, images, jnp.asarray(level, jnp.int32), key)


@functools.partial(jax.jit, static_argnames="name")
def _degraded(name: str, images: Array, level: Array, key: Array) -> Array:
    return apply(name, images.astype(jnp.float32), level, key).astype(images.dtype)


def degrade_pairs(
    crops: Array,
    type_index: Array,
    key: Array,
    levels: int = LEVELS,
    strategy: str | None = None,
    among: Sequence[str] = TYPES,
) -> Array:
    """Degrades both crops of every image by the image's own types, at all levels.

    The result for an image depends on its crops, types and key alone, not on the batch around it. Both crops and all
    levels share an angle or a direction; noise and places are independent.

    Args:
      crops: uint8, or float in [0, 1]; [B, 2, H, W, 3], RGB, H and W >= 32.
      type_index: integer, index into `TYPES`; [B], or [B, D] for D degradations one after another, all at the same
        level. -1 is no degradation.
      key: one key of `jax.random.key` or `jax.random.PRNGKey`, or keys [B], one an image.
      levels: L, how many, from level 1.
      strategy: how the same is computed, by default what suits the backend. "scan" (CPU) takes one level of one image
        at a time, which stays in the cache; "levels" (GPU, TPU) takes all levels of one image at once. Either way only
        the code of an image's own types runs.
      among: the names that `type_index` may hold. Only their code is compiled; the pixels are the same. Under `jit`,
        where the indices are not known, any other type leaves the image as it is.

    Returns:
      float32 [B, L, 2, H, W, 3] in [0, 1].

    Raises:
      UserError: if crops have another shape or dtype or are too small, if a type index is out of range or not one of
        `among`, if there is not one type per image, if `key` is neither one key nor one per image, if there are not so
        many levels, or if there is no such strategy or name.
    """
    if not 1 <= levels <= LEVELS:
        raise UserError(f"{levels} levels: there are 1 to {LEVELS}")
    check_strategy(strategy)
    crops = check_crops(crops)
    batch = len(crops)
    types = _check_types(type_index, batch, among)  # [B, D]
    keys = jax.vmap(_fold_in_each, in_axes=(0, None))(keys_of_images(key, batch), types.shape[1])  # [B, D]

    branches: list[Callable[..., Array]] = [lambda images, level, key: images]
    branches += [functools.partial(apply, name) for name in among]
    branch_of = [among.index(name) + 1 if name in among else 0 for name in TYPES] + [0]  # the last is that of type -1
    image, level = jnp.arange(batch), jnp.arange(1, levels + 1)
    at_once = (strategy or default_strategy()) == "levels"
    if at_once:
        branches = [jax.vmap(branch, in_axes=(0, 0, None)) for branch in branches]
        level = jnp.broadcast_to(level, (batch, levels))
    else:
        image, level = jnp.repeat(image, levels), jnp.tile(level, batch)

    def degrade_one(place: tuple[Array, Array]) -> Array:
        image, level = place
        images = crops[image].astype(jnp.float32)
        images = images / 255 if crops.dtype == jnp.uint8 else images
        images = jnp.broadcast_to(images, (levels, *images.shape)) if at_once else images

        def one_type(images: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
            kind, key = step
            return jax.lax.switch(jnp.array(branch_of, jnp.int32)[kind], branches, images, level, key), None

        return jax.lax.scan(one_type, images, (types[image], keys[image]))[0]

    return jax.lax.map(degrade_one, (image, level)).reshape(batch, levels, *crops.shape[1:])


def default_strategy() -> str:
    """The strategy of `degrade_pairs` for the backend in use."""
    return "scan" if jax.default_backend() == "cpu" else "levels"


def sample_types(key: Array, batch: int, composed: int = 1, types: Sequence[str] = TYPES) -> Array:
    """Draws types: uniformly over the groups, then over the types of the group.

    Args:
      key: one key.
      batch: B.
      composed: D, how many degradations of distinct groups, in random order.
      types: the names that may be drawn; a group without one of them is left out.

    Returns:
      int32 [B] if `composed` is 1, else [B, D]; indices into `TYPES`.

    Raises:
      UserError: if there is no such type, or if `composed` is not from 1 to the number of groups.
    """
    groups = types_by_group(types)
    if not 1 <= composed <= len(groups):
        raise UserError(f"composed = {composed}: 1 to {len(groups)} degradations, as there are {len(groups)} groups")
    sizes = jnp.array([len(indices) for indices in groups], jnp.int32)
    table = jnp.array([indices + (0,) * (len(TYPES) - len(indices)) for indices in groups], jnp.int32)
    group_key, type_key = jax.random.split(key)
    group = jnp.argsort(jax.random.uniform(group_key, (batch, len(groups))), axis=1)[:, :composed]
    drawn = table[group, jax.random.randint(type_key, group.shape, 0, sizes[group])]
    return drawn[:, 0] if composed == 1 else drawn


def apply(name: str, images: Array, level: Array, key: Array) -> Array:
    """`degrade` without its checks: float32 [..., H, W, 3] in [0, 1], `level` an integer array."""
    parameter = jnp.array(PARAMETERS[name], jnp.float32)[level - 1]
    if name in DETERMINISTIC:
        degraded = DETERMINISTIC[name](images, parameter)
    elif name in DRAWN_ONCE:
        degraded = DRAWN_ONCE[name](images, parameter, key)
    else:
        degraded = DRAWN_EACH[name](images, parameter, jax.random.fold_in(key, level))
    return jnp.clip(degraded, 0, 1)


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises UserError unless `shape` is that of RGB images of at least 32 x 32 px."""
    if len(shape) < 3 or shape[-1] != 3:
        raise UserError(f"images of shape {tuple(shape)}, expected [..., height, width, 3]")
    if min(shape[-3:-1]) < MIN_SIZE:
        raise UserError(f"images of {shape[-3]} x {shape[-2]} px, too small: degradations need {MIN_SIZE} x {MIN_SIZE}")


def check_images(images: Array) -> None:
    """Raises UserError unless they are floating point, RGB, of at least 32 x 32 px."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images are {images.dtype}, expected floating point in [0, 1] (divide 8 bits by 255)")
    check_shape(images.shape)


def check_strategy(strategy: str | None) -> None:
    """Raises UserError if there is no such strategy."""
    if strategy not in (None, *STRATEGIES):
        raise UserError(f"no strategy {strategy!r}; there are {', '.join(STRATEGIES)}")


def check_crops(crops: Array | np.ndarray) -> Array:
    """The crops as an array; raises UserError unless they are uint8 or float [B, 2, H, W, 3], H and W >= 32."""
    crops = jnp.asarray(crops)
    check_shape(crops.shape)
    if crops.ndim != 5 or crops.shape[1] != 2:
        raise UserError(f"crops of shape {crops.shape}, expected [batch, 2, height, width, 3]")
    if crops.dtype != jnp.uint8 and not jnp.issubdtype(crops.dtype, jnp.floating):
        raise UserError(f"crops are {crops.dtype}, expected uint8, or floating point in [0, 1]")
    return crops


def keys_of_images(key: Array, batch: int) -> Array:
    """Keys [B], of either kind that JAX knows: one an image, or made from one."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return _fold_in_each(key, batch)
    if key.shape != (batch,):
        raise UserError(f"keys of shape {key.shape}, expected one key or one for each of {batch} images")
    return key


def _check_level(name: str, level: Array | int) -> None:
    if jnp.ndim(level) or not jnp.issubdtype(jnp.result_type(level), jnp.integer):
        raise UserError(f"level {level!r} of {name}: expected one integer, 1 to {LEVELS}")
    if not isinstance(level, jax.core.Tracer) and not 1 <= int(level) <= LEVELS:  # int: under `jit`, <= would be traced
        raise UserError(f"level {level} of {name}: levels go from 1 to {LEVELS}")


def _check_types(type_index: Array, batch: int, among: Sequence[str]) -> Array:
    """`type_index` as int32 [B, D]."""
    types_by_group(among)  # refuses unknown names
    types = jnp.asarray(type_index)
    if types.ndim not in (1, 2) or len(types) != batch or not jnp.issubdtype(types.dtype, jnp.integer):
        raise UserError(f"type_index is {types.dtype} {types.shape}, expected integers [{batch}] or [{batch}, D]")
    if not isinstance(type_index, jax.core.Tracer) and batch:
        known = np.asarray(type_index)  # under `jit`, what JAX computes of it would be traced
        low, high = known.min(), known.max()
        if low < -1 or high >= len(TYPES):
            raise UserError(f"type_index from {low} to {high}: types go from 0 to {len(TYPES) - 1}, -1 is none")
        others = sorted({TYPES[index] for index in np.unique(known) if index >= 0} - set(among))
        if others:
            raise UserError(f"type_index holds {', '.join(others)}, not among {', '.join(among)}")
    types = types.astype(jnp.int32)
    return types if types.ndim == 2 else types[:, None]


def _fold_in_each(key: Array, number: int) -> Array:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(number))
