"""The faults of a camera, one after another in the order in which light meets them, with known severities.

    linear light -> exposure -> haze -> defocus -> motion -> shot and read noise, raised again when underexposed
    -> denoising -> tone curve -> white balance, contrast, saturation -> shrunk and enlarged -> JPEG, possibly twice

`simulate` draws faults and degrades pairs of crops by them at any levels; `apply` degrades images by `Settings` in
physical units. Ours, not QualiCLIP's: the 24 types of the table act on finished pictures, and their levels are no
common scale of quality. Here each of `FACTORS` has a severity in [0, 1], and those of an image add up.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qualiclip_jax.degradations import draws, pipeline
from qualiclip_jax.degradations.camera_filters import (
    Number,
    convolve,
    denoise,
    disk_kernel,
    path_kernel,
    resample_matrix,
)
from qualiclip_jax.degradations.catalog import FACTORS as FACTORS
from qualiclip_jax.degradations.catalog import GROUPS, LEVELS, NEAREST
from qualiclip_jax.degradations.color_spaces import linear_to_srgb, srgb_to_linear
from qualiclip_jax.degradations.jpeg import jpeg
from qualiclip_jax.errors import UserError

PROBABILITIES = (0.35, 0.15, 0.3, 0.3, 0.45, 0.15, 0.25, 0.15, 0.2, 0.5)  # that a factor is on; at least one always is
WEAKEST = 0.3  # strength of a factor that is on; the strongest is 1

# Bounds of `Settings`: what strength 1 means.
DARKEST, BRIGHTEST = -3.2, 2.0  # stops
HAZE, DISK, PATH, BEND, CAST = 0.75, 5.0, 18.0, 1.5, 0.35
SHOT, READ = 0.012, 0.0164  # variance of a sample for each unit of light, and standard deviation in the dark
SMALLEST = 4.0  # times smaller
BEST_QUALITY, WORST_QUALITY = 95.0, 5.0

_BOUNDS = {  # of the settings that `apply` could not follow beyond
    "haze": (0, 1), "defocus": (0, DISK), "motion": (0, PATH), "bend": (-BEND, BEND), "noise": (0, math.inf),
    "denoise": (0, math.inf), "shrink": (1, SMALLEST), "enlarger": (0, 2), "quality": (0, 100),
    "first_quality": (0, 100),
}  # fmt: skip


class Settings(NamedTuple):
    """What a camera does to a picture, in physical units; the defaults do nothing. Scalars, Python's or traced.

    Attributes:
      exposure: stops, -3.2 to 2; light is multiplied by 2^exposure and cut at 1.
      haze: share of the light that the haze replaces, 0 to 0.75.
      air: linear light of the haze, 0 to 1.
      defocus: radius of the disk in px, 0 to 5.
      motion: length of the path in px, 0 to 18.
      angle: of the path in degrees, clockwise from horizontal.
      bend: of the path, -1.5 to 1.5; 0 is straight, the ends of a bent path of length l are bend l / 6 off its middle.
      noise: 0 to 1. A sample of linear light x gets the variance 0.012 noise x (shot) + (0.0164 noise)^2 (read). An
        underexposed picture is brightened afterwards by 0.6 times the stops it lacks, and its noise with it.
      denoise: 0 and more: which multiple of its noise the picture is smoothed for. Above 1, fine texture goes too.
      cast: 0 to 0.35; the channels are multiplied by 1 + cast cos(hue - 0, 120, 240 degrees), after the tone curve.
      hue: of the cast, in degrees: 0 red, 120 green, 240 blue.
      contrast: factor of the distance from mid-grey, 0.3 to 1.
      saturation: factor of the distance from the mean of R, G, B, 0.1 to 1.
      shrink: how many times smaller the picture was made (cubic, antialiased), 1 to 4; no side below 8 px.
      enlarger: how it was enlarged again: 0 cubic, 1 linear, 2 nearest neighbour.
      quality: of JPEG (libjpeg's), 1 to 100; 0 is no JPEG.
      first_quality: of an earlier JPEG; 0 is none.
    """

    exposure: Number = 0.0
    haze: Number = 0.0
    air: Number = 0.8
    defocus: Number = 0.0
    motion: Number = 0.0
    angle: Number = 0.0
    bend: Number = 0.0
    noise: Number = 0.0
    denoise: Number = 0.0
    cast: Number = 0.0
    hue: Number = 0.0
    contrast: Number = 1.0
    saturation: Number = 1.0
    shrink: Number = 1.0
    enlarger: Number = 0
    quality: Number = 0.0
    first_quality: Number = 0.0


class Faults(NamedTuple):
    """The faults of one image before a level scales them. Scalars unless said otherwise.

    Attributes:
      strengths: float32 [K], of `FACTORS`: 0 is off, others 0.3 to 1; that of exposure is negative when it is too dark.
      air, angle, bend, denoise, hue, enlarger: as in `Settings`.
      first_jpeg: strength of the earlier JPEG as a share of that of the last, 0 to 1; 0 is none.
      held: float32 [K], the level, 0 to 1, that a factor keeps at any level; NaN for those that follow the level.
    """

    strengths: Array
    air: Array
    angle: Array
    bend: Array
    denoise: Array
    hue: Array
    enlarger: Array
    first_jpeg: Array
    held: Array | float = math.nan

    def scaled(self, level: Number) -> Array:
        """The strengths [K] at a level, 0 (nothing at all) to 1 (full strength)."""
        return self.strengths * jnp.where(jnp.isnan(self.held) | (level == 0), level, self.held)

    def at(self, level: Number) -> Settings:
        """The settings at a level, 0 (nothing) to 1 (full strength)."""
        scaled = dict(zip(FACTORS, self.scaled(level)))
        exposure = scaled["exposure"]
        return Settings(
            exposure=exposure * jnp.where(exposure < 0, -DARKEST, BRIGHTEST),
            haze=scaled["haze"] ** 2 * HAZE,  # a little of it lifts the shadows already
            air=self.air,
            defocus=scaled["defocus"] * DISK,
            motion=scaled["motion"] * PATH,
            angle=self.angle,
            bend=self.bend,
            noise=scaled["noise"],
            denoise=self.denoise,
            cast=scaled["white_balance"] * CAST,
            hue=self.hue,
            contrast=1 - 0.7 * scaled["contrast"],
            saturation=1 - 0.9 * scaled["saturation"],
            shrink=1 + (SMALLEST - 1) * scaled["shrink"],
            enlarger=self.enlarger,
            quality=_quality(scaled["jpeg"]),
            first_quality=_quality(scaled["jpeg"] * self.first_jpeg),
        )


def simulate(
    crops: Array | np.ndarray,
    key: Array,
    levels: Array | np.ndarray | Sequence[float],
    *,
    probabilities: Sequence[float] = PROBABILITIES,
    local: float = 0.0,
    alone: float = 0.0,
    strategy: str | None = None,
) -> tuple[Array, Array]:
    """Degrades both crops of every image by faults of its own, at given levels, and tells how severe they are.

    The result for an image depends on its crops, key and levels alone, not on the batch around it. Both crops and all
    levels share the faults; noise is independent.

    Args:
      crops: uint8, or float in [0, 1]; [B, 2, H, W, 3], RGB, H and W >= 32.
      key: one key of `jax.random.key` or `jax.random.PRNGKey`, or keys [B], one an image.
      levels: in [0, 1], [L] or for each image [B, L]; they scale the strengths. May be traced. At 0 the crop comes out
        as it went in.
      probabilities: that each of `FACTORS` is on, K numbers in [0, 1]. If none is, the one nearest to it is.
      local: share of the images, 0 to 1, whose faults before `shrink` and `jpeg` are local: they fade out by a smooth
        mask, the same for both crops, and count by its mean.
      alone: share of the images, 0 to 1, of which one fault alone follows the levels. The others stay at a level drawn
        for the image (after SHAMISA, arXiv 2603.13669).
      strategy: as in `degrade_pairs`: "scan" (CPU) or "levels" (GPU, TPU).

    Returns:
      Images float32 [B, L, 2, H, W, 3] in [0, 1], and severities float32 [B, L, K] in [0, 1]: strength times level of
      each of `FACTORS`. Only factors that are on for an image cost time.

    Raises:
      UserError: crops, key or levels of another kind, shape or range; no such strategy; a probability out of range.
    """
    crops = pipeline.check_crops(crops)
    batch = len(crops)
    levels = _check_levels(levels, batch)  # [B, L]
    count = levels.shape[1]
    pipeline.check_strategy(strategy)
    _check_shares(probabilities, local=local, alone=alone)
    keys = pipeline.keys_of_images(key, batch)
    fault_keys, noise_keys, mask_keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
    faults = jax.vmap(draw, in_axes=(0, None, None))(fault_keys, probabilities, alone)
    height, width = crops.shape[2:4]
    masks = jax.vmap(lambda key: _mask(key, height, width, local))(mask_keys) if local else None

    def one_level(images: Array, image: Array, number: Array) -> Array:
        chosen, level = jax.tree.map(lambda x: x[image], faults), levels[image, number]
        mask = None if masks is None else masks[image]
        noise_key = jax.random.fold_in(noise_keys[image], number)
        drawn = (chosen.strengths != 0) & (levels[image] > 0).any()
        on = [flag if probability else False for flag, probability in zip(drawn, probabilities)]
        degraded = _chain(images, chosen.at(level), noise_key, on, mask)
        return jnp.where(level > 0, degraded, images)

    def pristine(image: Array) -> Array:
        images = crops[image].astype(jnp.float32)
        return images / 255 if crops.dtype == jnp.uint8 else images

    if (strategy or pipeline.default_strategy()) == "levels":
        each_level = jax.vmap(one_level, in_axes=(None, None, 0))
        images = jax.lax.map(lambda image: each_level(pristine(image), image, jnp.arange(count)), jnp.arange(batch))
    else:
        places = jnp.repeat(jnp.arange(batch), count), jnp.tile(jnp.arange(count), batch)

        def one_place(place: tuple[Array, Array]) -> Array:
            image, number = place
            whether = levels[image, number] > 0
            return _when(whether, lambda images: one_level(images, image, number), pristine(image))

        images = jax.lax.map(one_place, places).reshape(batch, count, *crops.shape[1:])

    severities = jnp.abs(jax.vmap(lambda faults, levels: jax.vmap(faults.scaled)(levels))(faults, levels))  # [B, L, K]
    if masks is not None:
        of_file = jnp.array([name in ("shrink", "jpeg") for name in FACTORS])
        severities *= jnp.where(of_file, 1.0, masks.mean((1, 2, 3))[:, None])[:, None]
    return images, severities


def apply(images: Array, settings: Settings, key: Array | None = None) -> Array:
    """Degrades images by one set of settings.

    Args:
      images: float [..., H, W, 3], RGB in [0, 1], H and W >= 32.
      settings: what the camera does; its defaults do nothing.
      key: of the noise, which is independent in each image; may be left out where there is none.

    Returns:
      Images in [0, 1], shape and dtype of `images`; computed in float32.

    Raises:
      UserError: images too small, of integers or without three channels; a setting out of range; noise without a key.
    """
    images = jnp.asarray(images)
    pipeline.check_images(images)
    for name, (low, high) in _BOUNDS.items():
        value = getattr(settings, name)
        if not isinstance(value, jax.core.Tracer) and not low <= value <= high:
            raise UserError(f"settings.{name} is {value:g}, must be {low:g} to {high:g}")
    if key is None:
        if isinstance(settings.noise, jax.core.Tracer) or settings.noise:
            raise UserError("settings have noise: give a key")
        key = jax.random.key(0)
    off = Settings()
    on = [of_factor(settings, name) != of_factor(off, name) for name in FACTORS]
    on[-1] |= settings.first_quality != 0
    settings = Settings(*(jnp.asarray(value, jnp.float32) for value in settings))
    return _chain(images.astype(jnp.float32), settings, key, on).astype(images.dtype)


def severities_of_types(types: Array, levels: int) -> Array:
    """Severities of the 24 types on the scale of `simulate`: each counts level / 5 for the factor nearest to its group.

    So the severity of an image with one type is its level, from 0.2 to 1.

    Args:
      types: integer [B, D], indices into `TYPES`; -1 is none.
      levels: L, how many, from level 1.

    Returns:
      float32 [B, L, K].
    """
    factor = jnp.array([FACTORS.index(NEAREST[group]) for group, names in GROUPS.items() for _ in names])
    count = (types[..., None] >= 0) & (factor[types][..., None] == jnp.arange(len(FACTORS)))  # [B, D, K]
    level = jnp.arange(1, levels + 1, dtype=jnp.float32) / LEVELS
    return level[:, None] * count.sum(1, dtype=jnp.float32)[:, None]


def of_factor(settings: Settings, name: str) -> Number:
    """The setting that the strength of one of `FACTORS` scales."""
    setting: Number = getattr(settings, {"white_balance": "cast", "jpeg": "quality"}.get(name, name))
    return setting


def draw(key: Array, probabilities: Array | Sequence[float] = PROBABILITIES, alone: float = 0.0) -> Faults:
    """Draws the faults of one image: at least one factor is on, its strength uniform in 0.3 to 1.

    Args:
      key: one key.
      probabilities: that each of `FACTORS` is on.
      alone: probability that one factor alone follows the level.
    """
    on_key, strength_key, detail_key = jax.random.split(key, 3)
    probabilities = jnp.asarray(probabilities, jnp.float32)
    chance = jax.random.uniform(on_key, (len(FACTORS),)) / probabilities
    chance = jnp.where(probabilities > 0, chance, jnp.inf)
    on = (chance < 1) | (chance == chance.min())
    strengths = jnp.where(on, jax.random.uniform(strength_key, on.shape, minval=WEAKEST), 0.0)
    too_dark, air, angle, bend, smooth, amount, hue, enlarger, twice, first = jax.random.uniform(detail_key, (10,))
    strengths *= jnp.where(jnp.arange(len(FACTORS)) == 0, jnp.where(too_dark < 0.6, -1.0, 1.0), 1.0)
    whether, held, *ranks = jax.random.uniform(jax.random.fold_in(key, 3), (2 + len(FACTORS),))
    follows = (whether >= alone) | (jnp.arange(len(FACTORS)) == jnp.argmax(jnp.where(on, jnp.stack(ranks), 0.0)))
    return Faults(
        strengths=strengths,
        air=0.5 + 0.45 * air,
        angle=360 * angle,
        bend=BEND * (2 * bend - 1) * jnp.abs(2 * bend - 1),  # small ones are more frequent
        denoise=jnp.where(smooth < 0.6, 6 * amount, 0.0),
        hue=360 * hue,
        enlarger=jnp.floor(3 * enlarger),
        first_jpeg=jnp.where(twice < 0.3, first, 0.0),
        held=jnp.where(follows, jnp.nan, held),
    )


def _chain(images: Array, s: Settings, key: Array, on: Sequence[Array | bool], mask: Array | None = None) -> Array:
    """`apply` of float32 images, with K flags of what is on and a mask [H, W, 1] of where, both free of the level."""
    exposure, haze, defocus, motion, noise, white_balance, contrast, saturation, shrink, compression = on
    in_light, in_color = exposure | haze | defocus | motion | noise, white_balance | contrast | saturation

    def lens_and_sensor(x: Array) -> Array:
        light = srgb_to_linear(x) * jnp.exp2(s.exposure)
        light += s.haze * (s.air - light)
        light = _when(defocus, lambda light: convolve(light, disk_kernel(s.defocus)), light)
        light = _when(motion, lambda light: convolve(light, path_kernel(s.motion, s.angle, s.bend)), light)
        light = _when(noise, lambda light: _sense(light, s, key), light)
        return linear_to_srgb(jnp.clip(light, 0, 1))

    def color(x: Array) -> Array:
        gains = 1 + s.cast * jnp.cos((s.hue - jnp.array([0.0, 120.0, 240.0])) * (math.pi / 180))
        x = jnp.clip(x * gains, 0, 1)
        x = 0.5 + s.contrast * (x - 0.5)
        grey = x.mean(-1, keepdims=True)
        return jnp.clip(grey + s.saturation * (x - grey), 0, 1)

    def shrunk(x: Array) -> Array:
        rows, columns = (resample_matrix(size, s.shrink, s.enlarger) for size in x.shape[-3:-1])
        x = jnp.einsum("ij,...jkc->...ikc", rows, x, precision=jax.lax.Precision.HIGHEST)
        return jnp.clip(jnp.einsum("ij,...kjc->...kic", columns, x, precision=jax.lax.Precision.HIGHEST), 0, 1)

    def compressed(x: Array) -> Array:
        qualities = jnp.stack([s.first_quality, s.quality])
        first, last = jnp.where(s.first_quality > 0, 0, 1), jnp.where(s.quality > 0, 2, 1)
        return jax.lax.fori_loop(first, last, lambda k, x: jpeg(x, qualities[k]), x)

    degraded = _when(in_color, color, _when(in_light, lens_and_sensor, images))
    if mask is not None:
        degraded = images + mask * (degraded - images)
    return _when(compression, compressed, _when(shrink, shrunk, degraded))


def _sense(light: Array, s: Settings, key: Array) -> Array:
    """Noise, gain and denoising of linear light."""
    shot, read = SHOT * s.noise, (READ * s.noise) ** 2
    light += draws.normal(key, light.shape) * jnp.sqrt(shot * jnp.maximum(light, 0) + read)
    light = _when(s.denoise > 0, lambda light: denoise(light, s.denoise * shot, s.denoise * read), light)
    return light * jnp.exp2(-0.6 * jnp.minimum(s.exposure, 0))


def _quality(strength: Array) -> Array:
    quality = BEST_QUALITY - (BEST_QUALITY - WORST_QUALITY) * strength**0.7
    return jnp.where(strength > 0, quality, 0.0)


def _mask(key: Array, height: int, width: int, local: float) -> Array:
    """A smooth mask [H, W, 1] in 0..1 with probability `local`, else 1: three waves of 1 to 3 times the size."""
    waves = jax.random.uniform(key, (10,))
    y, x = ((jnp.arange(side, dtype=jnp.float32) + 0.5) / side for side in (height, width))
    field = jnp.zeros((height, width))
    for turn, frequency, phase in waves[:9].reshape(3, 3):
        angle = 2 * math.pi * turn
        along = y[:, None] * jnp.sin(angle) + x * jnp.cos(angle)
        field += jnp.cos(2 * math.pi * ((1 + 2 * frequency) / 3 * along + phase))
    return jnp.where(waves[9] < local, jax.nn.sigmoid(4 * field), 1.0)[..., None]


def _when(condition: Array | bool, function: Callable[[Array], Array], x: Array) -> Array:
    """`function(x)` if the condition holds, else x. Only what is chosen is computed, unless it is batched by `vmap`."""
    if condition is False:  # not even compiled
        return x
    return jax.lax.cond(condition, function, lambda x: x, x)


def _check_levels(levels: Array | np.ndarray | Sequence[float], batch: int) -> Array:
    """The levels as float32 [B, L]."""
    if not isinstance(levels, jax.core.Tracer):
        levels = np.asarray(levels, np.float32)
    if levels.ndim not in (1, 2) or (levels.ndim == 2 and len(levels) != batch) or levels.size == 0:
        raise UserError(f"levels of shape {levels.shape}, expected [L], or [{batch}, L] for each image")
    if isinstance(levels, np.ndarray) and not ((levels >= 0) & (levels <= 1)).all():
        raise UserError(f"levels from {levels.min():.8g} to {levels.max():.8g}: they go from 0 (pristine) to 1")
    levels = jnp.asarray(levels, jnp.float32)
    return jnp.broadcast_to(levels, (batch, levels.shape[-1]))


def _check_shares(probabilities: Sequence[float], **shares: float) -> None:
    if len(probabilities) != len(FACTORS) or not all(0 <= p <= 1 for p in probabilities):
        raise UserError(f"probabilities {tuple(probabilities)}: expected {len(FACTORS)} numbers in 0..1, of {FACTORS}")
    if not any(probabilities):
        raise UserError("probabilities are all 0: at least one factor must be possible")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"{name} = {share}: a share of the images, 0 to 1")
