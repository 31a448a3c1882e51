"""Depthwise convolutions that are fast on a CPU: sums of shifted images.

XLA's own depthwise convolution is slow on a CPU, and its gradient slower by an order of magnitude. A sum of k * k
shifted copies of the image, each times a weight for every channel, becomes one loop over pixels that runs at the speed
of the processor's multiply-adds. Elsewhere XLA's convolution is used.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp


def padding(size: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a line of pixels, for a kernel of `size` with a stride of 1 or 2.

    That of TensorFlow's "same" for lines of even length, for every line: so a result depends on its surroundings alone,
    not on the length, and a stride of 2 halves the length, rounded down.
    """
    return (size - stride) // 2, (size - 1) // 2


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves every channel with its own kernel; see `padding` for what is beyond the edges.

    Args:
      x: float [N, H, W, C].
      kernel: of the type of x, [k, k, 1, C].
      stride: 1 or 2.

    Returns:
      [N, H // stride, W // stride, C] in the type of x; summed in float32.
    """
    if jax.default_backend() == "cpu":
        return _shifted(x, kernel[:, :, 0], stride)
    pad = padding(kernel.shape[0], stride)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        (pad, pad),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`convolve` as a sum of shifted images; kernel [k, k, C].

    The barrier keeps XLA from computing what is padded again for every weight.
    """
    size = kernel.shape[0]
    pad = padding(size, stride)
    padded = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), pad, pad, (0, 0))))
    parts = _windows(padded, size, stride, x.shape[1] // stride, x.shape[2] // stride)
    return _weighted_sum((part, kernel[i, j]) for i, j, part in parts).astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted(x, kernel, stride), (x, kernel)


def _backward(stride: int, kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    return _image_gradient(dy, kernel, stride, x.shape), _kernel_gradient(x, dy, kernel, stride)


_shifted.defvjp(_forward, _backward)


def _image_gradient(dy: jax.Array, kernel: jax.Array, stride: int, shape: tuple[int, ...]) -> jax.Array:
    """The gradient in x: for each phase of the stride, a sum of shifted dy; the phases are then interleaved."""
    size, (before, _) = kernel.shape[0], padding(kernel.shape[0], stride)
    rows, columns = (-(-side // stride) for side in shape[1:3])
    below, right = size + rows - dy.shape[1], size + columns - dy.shape[2]
    padded = jnp.pad(dy, ((0, 0), (size, below), (size, right), (0, 0)))

    def taps(phase: int) -> Iterator[tuple[int, int]]:
        """Which weights reach pixels of this phase, and where in `padded` what they multiply begins."""
        for i in range(size):
            if (phase + before - i) % stride == 0:
                yield i, size + (phase + before - i) // stride

    def gradient(row_phase: int, column_phase: int) -> jax.Array:
        return _weighted_sum(
            (padded[:, top : top + rows, left : left + columns], kernel[i, j])
            for i, top in taps(row_phase)
            for j, left in taps(column_phase)
        ).astype(dy.dtype)

    if stride == 1:
        return gradient(0, 0)
    phases = [jnp.stack([gradient(p, q) for q in range(stride)], axis=3) for p in range(stride)]
    dx = jnp.stack(phases, axis=2)  # [N, rows, stride, columns, stride, C]
    return dx.reshape(shape[0], stride * rows, stride * columns, shape[3])[:, : shape[1], : shape[2]]


def _kernel_gradient(x: jax.Array, dy: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The gradient in the kernel: image by image, so that both stay in the processor's caches for all weights."""
    size, channels = kernel.shape[0], x.shape[3]
    pad = padding(size, stride)
    reach = [stride * (side - 1) + 1 for side in dy.shape[1:3]]

    def of_one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        image, gradient = (y.astype(jnp.float32) for y in pair)
        padded = jnp.pad(image, (pad, pad, (0, 0)))

        def of_weight(k: jax.Array) -> jax.Array:
            part = jax.lax.dynamic_slice(padded, (k // size, k % size, 0), (*reach, channels))
            return (part[::stride, ::stride] * gradient).sum((0, 1))

        return jax.lax.map(of_weight, jnp.arange(size * size))

    return jax.lax.map(of_one, (x, dy)).sum(0).reshape(kernel.shape).astype(kernel.dtype)


def _windows(
    padded: jax.Array, size: int, stride: int, rows: int, columns: int
) -> Iterator[tuple[int, int, jax.Array]]:
    """(i, j, what weight i, j of the kernel multiplies [N, rows, columns, C])."""
    for i in range(size):
        for j in range(size):
            down, right = i + stride * (rows - 1) + 1, j + stride * (columns - 1) + 1
            yield i, j, padded[:, i:down:stride, j:right:stride]


def _weighted_sum(terms: Iterator[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """The sum of images times weights [C], in float32."""
    products = (x.astype(jnp.float32) * weight.astype(jnp.float32) for x, weight in terms)
    return functools.reduce(lambda x, y: x + y, products)
