"""Layers that the encoders share."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from qualiclip_jax.models.clip_config import ATTENTION_SLICE, TransformerConfig

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


@functools.partial(jax.jit, static_argnames="size")
def _normal_chunk(key: jax.Array, index: int, size: int) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, index), (size,))


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _shaped(chunks: list[jax.Array], std: float, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return (std * jnp.concatenate(chunks)[: math.prod(shape)]).reshape(shape).astype(dtype)


_drawing = contextvars.ContextVar("drawing", default=True)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Within it, initializers give zeros: for modules that are built for their shapes alone."""
    token = _drawing.set(False)
    try:
        yield
    finally:
        _drawing.reset(token)


def normal(std: float) -> Callable[..., jax.Array]:
    """An initializer: normal with standard deviation `std`.

    Drawn in chunks of two sizes, since XLA takes half a second to compile a generator of each new shape on a CPU.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        if not _drawing.get():
            return jnp.zeros(shape, dtype)
        count = math.prod(shape)
        size = 2**14 if count <= 2**17 else 2**20
        chunks = [_normal_chunk(key, index, size) for index in range(-(-count // size))]
        return _shaped(chunks, std, tuple(shape), dtype)

    return init


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last; frozen unless `training`.

    Frozen, it uses the running statistics (scale and bias still get gradients). In training mode it normalises with the
    statistics of the batch, over the devices of `axis_name` together if that is set, and moves the running ones by
    `MOMENTUM` towards them, variance unbiased.

    Source: torch.nn.BatchNorm2d and SyncBatchNorm.
    """

    MOMENTUM = 0.1

    def __init__(self, width: int, scale: float = 1.0, eps: float = 1e-5):
        self.scale = nnx.Param(jnp.full(width, scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(width, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(width, jnp.float32))
        self.eps = eps
        self.training = False
        self.axis_name: str | tuple[str, ...] | None = None

    def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Normalises.

        Args:
          x: float [N, H, W, C].
          valid: bool [N, H, W, 1], which positions count for the batch's statistics; None for all.

        Returns:
          The same shape and type; computed in float32.
        """
        multiplier, bias = self._affine(*self.batch_statistics(x, valid)) if self.training else self.frozen()
        return (x.astype(jnp.float32) * multiplier + bias).astype(x.dtype)

    def frozen(self) -> tuple[jax.Array, jax.Array]:
        """Multiplier and bias [C] by the running statistics, float32."""
        return self._affine(self.mean[...], self.var[...])

    def _affine(self, mean: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array]:
        multiplier = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        return multiplier, self.bias[...] - mean * multiplier

    def batch_statistics(self, x: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Mean and biased variance of the batch [C]; the running statistics take a step towards them."""
        x = x.astype(jnp.float32)
        weight = jnp.ones(x.shape[:-1] + (1,), jnp.float32) if valid is None else valid.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        count = weight.sum()
        mean = (x * weight).sum(axes) / count
        var = (jnp.square(x - mean) * weight).sum(axes) / count
        if self.axis_name is not None:  # one exchange; combining (count, mean, variance) does not cancel digits
            counts, means, variances = jax.lax.all_gather((count, mean, var), self.axis_name)
            count = counts.sum()
            share = (counts / count)[:, None]
            mean = (means * share).sum(0)
            var = ((variances + jnp.square(means - mean)) * share).sum(0)
        unbiased = var * (count / jnp.maximum(count - 1, 1))
        self.mean[...] += self.MOMENTUM * (jax.lax.stop_gradient(mean) - self.mean[...])
        self.var[...] += self.MOMENTUM * (jax.lax.stop_gradient(unbiased) - self.var[...])
        return mean, var


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]) -> jax.Array:
    """A convolution of x [N, H, W, C] with a kernel [h, w, C, out], `padding` before and after both axes.

    If the kernel is 1 x 1, it is a product, whose gradient is faster on a GPU.
    """
    kernel = kernel.astype(x.dtype)
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return x @ kernel[0, 0]
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), (padding, padding), dimension_numbers=axes)


MANY_TOKENS = 2048  # above, the queries of an attention go in slices


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Scaled dot-product attention, all queries at once; arguments as in `attention`, but q may have fewer tokens."""
    logits = jnp.einsum("nqhd,nkhd->nhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(logits).astype(v.dtype), v)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Scaled dot-product attention; the softmax is computed in float32.

    On a recent NVIDIA GPU, in bfloat16 and without a mask, cuDNN's fused kernel does it. Elsewhere many tokens (or a
    symbolic number, in `jax.export`) attend in slices of `ATTENTION_SLICE`. Either way memory grows with
    T, not with T squared.

    Args:
      q, k, v: float [N, T, heads, d].
      mask: bool, broadcasts to [N, heads, T, T]: which token (last axis) each token may attend to; None for all.

    Returns:
      [N, T, heads, d] in the type of v.
    """
    n, t, *head = q.shape
    symbolic = is_symbolic_dim(t)
    if mask is None and q.dtype == jnp.bfloat16 and _fuses_attention(q.shape[-1]) and not symbolic:
        return _fused_attention(q, k, v)
    if (mask is not None and mask.shape[-2] > 1) or (not symbolic and t <= MANY_TOKENS):
        return attend(q, k, v, mask)
    slices = -(-t // ATTENTION_SLICE)
    q = jnp.pad(q, ((0, 0), (0, slices * ATTENTION_SLICE - t), (0, 0), (0, 0)))
    parts = jnp.moveaxis(q.reshape(n, slices, ATTENTION_SLICE, *head), 1, 0)
    attended = jax.lax.map(lambda part: attend(part, k, v, mask), parts)
    return jnp.moveaxis(attended, 0, 1).reshape(n, slices * ATTENTION_SLICE, *head)[:, :t]


def _fuses_attention(head_width: int) -> bool:
    """Whether the default device has cuDNN's kernel: NVIDIA's compute capability 8 or more (AMD's is no number)."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    major = capability.partition(".")[0]
    return major.isdigit() and int(major) >= 8 and head_width % 8 == 0 and head_width <= 128


def _fused_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attention` by cuDNN, for which JAX wants an even number of tokens: they are filled up and masked by length."""
    n, t = q.shape[:2]
    q, k, v = (jnp.pad(x, ((0, 0), (0, -t % 8), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full(n, t, jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )[:, :t]


def row_major(x: jax.Array) -> jax.Array:
    """The same array, but in a compiled program for a GPU, in bfloat16, its last axis stays contiguous in memory.

    XLA orders the axes of a residual stream as it likes. If it puts the batch last, every block transposes what goes
    into its products, and the step moves a fifth more memory (benchmarks/README.md).
    """
    if x.dtype != jnp.bfloat16 or jax.default_backend() != "gpu":
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


class Block(nnx.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, config: TransformerConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        def linear(into: int, out: int, std: float) -> nnx.Linear:
            return nnx.Linear(into, out, kernel_init=normal(std), dtype=dtype, rngs=rngs)

        # Standard deviations: `initialize_parameters` of OpenAI's CLIP.
        width, eps = config.width, config.layer_norm_eps
        mlp_width, narrow = config.mlp_width or 4 * width, width**-0.5 * (2 * config.layers) ** -0.5
        self.heads, self.activation, self.dtype = config.heads, config.activation, dtype
        self.ln_1 = nnx.LayerNorm(width, epsilon=eps, dtype=jnp.float32, rngs=rngs)
        self.qkv = linear(width, 3 * width, width**-0.5)
        self.out = linear(width, width, narrow)
        self.ln_2 = nnx.LayerNorm(width, epsilon=eps, dtype=jnp.float32, rngs=rngs)
        self.fc = linear(width, mlp_width, (2 * width) ** -0.5)
        self.proj = linear(mlp_width, width, narrow)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x [N, T, W] in the compute type; mask as in `attention`."""
        n, t, width = x.shape
        qkv = self.qkv(self.ln_1(x).astype(self.dtype)).reshape(n, t, 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [N, T, heads, W / heads]
        x = x + self.out(attention(q, k, v, mask).reshape(n, t, width))
        hidden = ACTIVATIONS[self.activation](self.fc(self.ln_2(x).astype(self.dtype)))
        return x + self.proj(hidden)


class Transformer(nnx.Module):
    """Equal blocks, one after the other.

    The parameters of all blocks are stacked on a leading axis [layers, ...] and the blocks run in a `lax.scan`. On a
    CPU one block is compiled, however deep the network. Elsewhere the loop is unrolled: XLA then keeps for the backward
    pass what is cheaper to keep and computes the rest again, with less time and memory.
    """

    def __init__(self, config: TransformerConfig, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs):
        self.remat = remat
        self.blocks = nnx.vmap(lambda rngs: Block(config, dtype, rngs))(rngs.split(config.layers))

    def __call__(self, x: jax.Array, mask: jax.Array | None = None, part: slice | None = None) -> jax.Array:
        """x [N, T, W] in the compute type; mask as in `attention`; `part` of the blocks, None for all."""
        graph, stacked = nnx.split(self.blocks)
        if part is not None:
            stacked = jax.tree.map(lambda parameter: parameter[part], stacked)

        def step(x: jax.Array, state: Any) -> tuple[jax.Array, None]:
            return nnx.merge(graph, state)(x, mask), None

        unroll = jax.default_backend() != "cpu"
        return jax.lax.scan(jax.checkpoint(step) if self.remat else step, row_major(x), stacked, unroll=unroll)[0]
