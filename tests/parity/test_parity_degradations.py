"""Resizing of `pixelate` against PyTorch's nearest neighbour, whose float32 roundings decide ties."""

import jax
import numpy as np
import pytest

from qualiclip_jax.degradations import PARAMETERS, spatial


@pytest.mark.parametrize("strength", PARAMETERS["pixelate"])
def test_pixelate_is_nearest_interpolation_of_pytorch(torch, strength):
    scale = 0.95 - strength**0.6
    for height, width in ((32, 33), (61, 97), (100, 128), (224, 225)):
        image = np.random.default_rng(height).random((height, width, 3), np.float32)
        planes = torch.from_numpy(image.transpose(2, 0, 1))[None]
        small = torch.nn.functional.interpolate(planes, (int(height * scale), int(width * scale)), mode="nearest")
        expected = torch.nn.functional.interpolate(small, (height, width), mode="nearest")[0].numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(spatial.pixelate(jax.numpy.asarray(image), strength), expected)
