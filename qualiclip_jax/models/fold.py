"""BatchNorm folded into the convolutions before it, for inference."""

import dataclasses
from typing import Any

import jax
import numpy as np

from qualiclip_jax.models.clip import CLIP
from qualiclip_jax.models.tree import from_pure, to_pure


def fold_batch_norm(clip: CLIP) -> CLIP:
    """The same function with fewer operations: each BatchNorm, frozen, becomes scale and bias of the convolution
    before it.

    Exact up to float32 rounding. The result has biases in its convolutions and no BatchNorm (`ResNetConfig.batch_norm`
    is False); it can be saved, but not written back under other implementations' names.

    Args:
      clip: any CLIP; it is left as it is. One without BatchNorm is returned itself.
    """
    image = clip.config.image
    if not image.batch_norm:
        return clip
    arrays = jax.device_get(to_pure(clip)[1])  # NumPy has nothing to compile
    config = dataclasses.replace(clip.config, image=dataclasses.replace(image, **{"batch_norm": False}))
    return from_pure(config, _fold(arrays, image.batch_norm_eps))


def _fold(tree: Any, eps: float) -> Any:
    if not isinstance(tree, dict):
        return tree
    if tree.keys() != {"conv", "norm"}:
        return {name: _fold(branch, eps) for name, branch in tree.items()}
    norm = tree["norm"]
    multiplier = norm["scale"] / np.sqrt(norm["var"] + np.float32(eps))
    return {
        "conv": {
            "kernel": tree["conv"]["kernel"] * multiplier,  # [h, w, in, out] * [out]
            "bias": norm["bias"] - norm["mean"] * multiplier,
        }
    }
