"""Counted operations against arithmetic and a published figure."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from qualiclip_jax import models
from qualiclip_jax.models import backbones
from qualiclip_jax.training import flops

MATRIX = jnp.ones((4, 8))


def test_products_and_convolutions():
    product = lambda a: a @ a.T
    assert flops.count(product, MATRIX) == 2 * 4 * 4 * 8
    both = jax.jit(jax.value_and_grad(lambda a: (a @ jnp.ones((8, 2))).sum()))
    assert flops.count(both, MATRIX) == 2 * (2 * 4 * 8 * 2)
    image, kernel = jnp.ones((2, 10, 10, 3)), jnp.ones((3, 3, 3, 5))
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    forward = 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)
    assert flops.count(convolve, image, kernel) == forward
    by_kernel = jax.value_and_grad(lambda k, x: convolve(x, k).sum())
    assert flops.count(by_kernel, kernel, image) == 2 * forward


def test_loops_conditions_and_devices():
    square = jnp.ones((8, 8))
    once = 2 * 8**3
    looped = lambda a: jax.lax.scan(lambda a, _: (a @ a, None), a, length=7)[0]
    assert flops.count(looped, square) == 7 * once
    either = lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a, lambda a: a @ a @ a, a)
    assert flops.count(either, square) == 2 * once
    per_device = jax.pmap(lambda a: a @ a)
    assert flops.count(per_device, square[None]) == once


def test_vit_b16_has_the_published_number_of_operations():
    # torchvision's table: 17.56 G multiply-accumulates for vit_b_16 at 224 px (with a 1000-way head of 0.8 M)
    config = dataclasses.replace(backbones.get("ViT-B/16"), text=None)
    graph, state = nnx.split(nnx.eval_shape(lambda: models.CLIP(config, rngs=nnx.Rngs(0))))
    encode = lambda state, images: nnx.merge(graph, state).encode_image(images)
    counted = flops.count(encode, state, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    assert abs(counted / 2 - 17.56e9) < 0.02e9
