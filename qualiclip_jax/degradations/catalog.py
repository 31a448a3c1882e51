"""Names: the 24 types of degradation, their 7 groups and parameters at levels 1 to 5, and the factors of a camera.

Source of the types: the degradation model of ARNIQA (Agnolucci et al., WACV 2024), which QualiCLIP trains with.
"""

from collections.abc import Sequence

import numpy as np

from qualiclip_jax.errors import UserError

LEVELS = 5

# group, type, what its parameter is, the parameter at levels 1 to 5
_TABLE = (
    ("blur", "gaussian_blur", "standard deviation, px", (0.1, 0.5, 1, 2, 5)),
    ("blur", "lens_blur", "radius of the disk, px", (1, 2, 4, 6, 8)),
    ("blur", "motion_blur", "length of the path, px", (1, 2, 4, 6, 10)),
    ("color_distortion", "color_diffusion", "k: Lab a, b blurred by 1.5 k + 2 px, times k", (1, 3, 6, 8, 12)),
    ("color_distortion", "color_shift", "displacement of green, px", (1, 3, 6, 8, 12)),
    ("color_distortion", "hsv_saturation", "factor of S", (0.4, 0.2, 0.1, 0, -0.4)),
    ("color_distortion", "lab_saturation", "factor of Lab a, b", (1, 2, 3, 6, 9)),
    ("compression", "jpeg2000", "compression ratio", (16, 32, 45, 120, 170)),
    ("compression", "jpeg", "quality", (43, 36, 24, 7, 4)),
    ("noise", "white_noise", "variance", (0.001, 0.002, 0.003, 0.005, 0.01)),
    ("noise", "ycbcr_noise", "variance in YCbCr", (0.0001, 0.0005, 0.001, 0.002, 0.003)),
    ("noise", "impulse_noise", "fraction of samples", (0.001, 0.005, 0.01, 0.02, 0.03)),
    ("noise", "multiplicative_noise", "variance of the factor", (0.001, 0.005, 0.01, 0.02, 0.05)),
    ("brightness", "brighten", "twice the rise of mid-grey", (0.1, 0.2, 0.4, 0.7, 1.1)),
    ("brightness", "darken", "twice the fall of mid-grey", (0.05, 0.1, 0.2, 0.4, 0.8)),
    ("brightness", "mean_shift", "added", (0, 0.08, -0.08, 0.15, -0.15)),
    ("spatial", "jitter", "standard deviation a round, px", (0.05, 0.1, 0.2, 0.5, 1)),
    ("spatial", "non_eccentricity_patch", "patches", (20, 40, 60, 80, 100)),
    ("spatial", "pixelate", "k: shrunk by 0.95 - k^0.6", (0.01, 0.05, 0.1, 0.2, 0.5)),
    ("spatial", "quantization", "bins", (20, 16, 13, 10, 7)),
    ("spatial", "color_block", "squares", (2, 4, 6, 8, 10)),
    ("sharpness_contrast", "sharpen", "amount", (1, 2, 3, 6, 12)),
    ("sharpness_contrast", "linear_contrast", "change of slope", (0, 0.15, -0.4, 0.3, -0.6)),
    ("sharpness_contrast", "nonlinear_contrast", "half the range left", (0.4, 0.3, 0.2, 0.1, 0.05)),
)

TYPES: tuple[str, ...] = tuple(name for _, name, _, _ in _TABLE)
GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(name for g, name, _, _ in _TABLE if g == group) for group in dict.fromkeys(row[0] for row in _TABLE)
}
MEANINGS: dict[str, str] = {name: meaning for _, name, meaning, _ in _TABLE}
PARAMETERS: dict[str, tuple[float, ...]] = {name: values for _, name, _, values in _TABLE}


FACTOR_MEANINGS: dict[str, str] = {  # of `camera`, in the order in which they act: what their setting is
    "exposure": "stops",
    "haze": "share of the light",
    "defocus": "radius of the disk, px",
    "motion": "length of the path, px",
    "noise": "share of the noisiest sensor's",
    "white_balance": "gain of a channel",
    "contrast": "factor",
    "saturation": "factor",
    "shrink": "times smaller, enlarged again",
    "jpeg": "quality",
}
FACTORS: tuple[str, ...] = tuple(FACTOR_MEANINGS)
NEAREST: dict[str, str] = {  # group of types -> the factor that it counts for
    "blur": "defocus",
    "color_distortion": "saturation",
    "compression": "jpeg",
    "noise": "noise",
    "brightness": "exposure",
    "spatial": "shrink",
    "sharpness_contrast": "contrast",
}


def types_by_group(types: Sequence[str]) -> list[tuple[int, ...]]:
    """The indices into `TYPES` of these names, one tuple for each group that has any of them.

    Raises:
      UserError: a name that is not one of `TYPES`.
    """
    unknown = [name for name in types if name not in TYPES]
    if unknown:
        raise UserError(f"no degradation named {unknown[0]!r}; there are {', '.join(TYPES)}")
    groups = [tuple(TYPES.index(name) for name in names if name in types) for names in GROUPS.values()]
    return [indices for indices in groups if indices]


def factor_matrix(names: Sequence[str]) -> np.ndarray:
    """Says for each of P names which factors it stands for: float32 [P, K] of 0 and 1.

    Args:
      names: each "all", or some of `FACTORS` joined by "+": "defocus+motion".

    Raises:
      UserError: if there is no such factor.
    """
    rows = [FACTORS if name == "all" else name.split("+") for name in names]
    unknown = [factor for row in rows for factor in row if factor not in FACTORS]
    if unknown:
        raise UserError(f"no factor named {unknown[0]!r}; there are {', '.join(FACTORS)}, joined by +, and all")
    return np.array([[factor in row for factor in FACTORS] for row in rows], np.float32)
