"""The 24 types of degradation, their 7 groups, and the parameter of each at levels 1 to 5.

Source: the degradation model of ARNIQA (Agnolucci et al., WACV 2024), which QualiCLIP trains with.
"""

LEVELS = 5

GROUPS: dict[str, tuple[str, ...]] = {
    "blur": ("gaussian_blur", "lens_blur", "motion_blur"),
    "color_distortion": ("color_diffusion", "color_shift", "hsv_saturation", "lab_saturation"),
    "compression": ("jpeg2000", "jpeg"),
    "noise": ("white_noise", "ycbcr_noise", "impulse_noise", "multiplicative_noise"),
    "brightness": ("brighten", "darken", "mean_shift"),
    "spatial": ("jitter", "non_eccentricity_patch", "pixelate", "quantization", "color_block"),
    "sharpness_contrast": ("sharpen", "linear_contrast", "nonlinear_contrast"),
}

TYPES: tuple[str, ...] = tuple(name for names in GROUPS.values() for name in names)

PARAMETERS: dict[str, tuple[float, ...]] = {
    "gaussian_blur": (0.1, 0.5, 1, 2, 5),  # standard deviation, px
    "lens_blur": (1, 2, 4, 6, 8),  # radius of the disk, px
    "motion_blur": (1, 2, 4, 6, 10),  # length of the path, px
    "color_diffusion": (1, 3, 6, 8, 12),  # factor of Lab a and b after a blur of standard deviation 1.5 k + 2 px
    "color_shift": (1, 3, 6, 8, 12),  # displacement of the green channel, px
    "hsv_saturation": (0.4, 0.2, 0.1, 0, -0.4),  # factor of S
    "lab_saturation": (1, 2, 3, 6, 9),  # factor of a and b
    "jpeg2000": (16, 32, 45, 120, 170),  # compression ratio
    "jpeg": (43, 36, 24, 7, 4),  # quality, 1 to 100
    "white_noise": (0.001, 0.002, 0.003, 0.005, 0.01),  # variance
    "ycbcr_noise": (0.0001, 0.0005, 0.001, 0.002, 0.003),  # variance
    "impulse_noise": (0.001, 0.005, 0.01, 0.02, 0.03),  # fraction of the samples
    "multiplicative_noise": (0.001, 0.005, 0.01, 0.02, 0.05),  # variance of the factor
    "brighten": (0.1, 0.2, 0.4, 0.7, 1.1),  # twice the rise of mid-grey
    "darken": (0.05, 0.1, 0.2, 0.4, 0.8),  # twice the fall of mid-grey
    "mean_shift": (0, 0.08, -0.08, 0.15, -0.15),  # added to every sample
    "jitter": (0.05, 0.1, 0.2, 0.5, 1),  # standard deviation of the displacement of a round, px
    "non_eccentricity_patch": (20, 40, 60, 80, 100),  # number of patches
    "pixelate": (0.01, 0.05, 0.1, 0.2, 0.5),  # strength k; the image shrinks by the factor 0.95 - k^0.6
    "quantization": (20, 16, 13, 10, 7),  # number of bins
    "color_block": (2, 4, 6, 8, 10),  # number of squares
    "sharpen": (1, 2, 3, 6, 12),  # amount of the unsharp mask
    "linear_contrast": (0, 0.15, -0.4, 0.3, -0.6),  # change of slope
    "nonlinear_contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # half the range of the output
}
