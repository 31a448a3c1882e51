"""The image encoders as ONNX graphs, for images that are not padded: any N, H and W.

Each function mirrors a module of `models`, with BatchNorm folded, from images [N, 3, H, W] to features [N, D].
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from qualiclip_jax.errors import UserError
from qualiclip_jax.export.graph import Graph
from qualiclip_jax.models import depthwise
from qualiclip_jax.models.clip import CLIP
from qualiclip_jax.models.clip_config import CLIPConfig, ViTConfig
from qualiclip_jax.models.config_efficientnet import EfficientNetConfig
from qualiclip_jax.models.efficientnet import VARIANCE_EPS, EfficientNet, Unit
from qualiclip_jax.models.encoder import ImageEncoder
from qualiclip_jax.models.layers import Block
from qualiclip_jax.models.pixels import MEAN, PIXELS, STD
from qualiclip_jax.models.resnet import AttentionPool, ConvNorm, ResNet
from qualiclip_jax.models.vit import MapPool, ViT

_FLOAT = 1  # float32 in `onnx.TensorProto`


def features(graph: Graph, pixels: str, clip: CLIP) -> str:
    """Image features.

    Args:
      graph: what is added to.
      pixels: float32 [N, 3, H, W] from 0 to 255.
      clip: without BatchNorm (`models.fold_batch_norm`).

    Returns:
      The name of float32 [N, D].
    """
    for kind, build in _BUILDERS.items():
        if isinstance(clip.image, kind):
            return build(graph, pixels, clip.image, clip.config)
    raise UserError(f"{clip.config.image.describe()} cannot be written as ONNX: use --format stablehlo")


def _array(parameter: nnx.Variable[Any] | None) -> np.ndarray:
    assert parameter is not None
    return np.asarray(parameter[...], np.float32)


def _normalised(graph: Graph, pixels: str, mean: np.ndarray, deviation: np.ndarray) -> str:
    """Pixels from 0 to 255 [N, 3, H, W], minus the mean, over the deviation (both of [0, 1])."""
    scale, offset = (x.reshape(-1, 1, 1) for x in (1 / (255 * deviation), -mean / deviation))
    return graph.add("Add", graph.add("Mul", pixels, graph.constant(scale)), graph.constant(offset))


def _convolution(graph: Graph, x: str, conv: nnx.Conv, pad: tuple[int, int], stride: int = 1, groups: int = 1) -> str:
    """A convolution; `pad` tells the zeros before and after a line, in both axes."""
    kernel = _array(conv.kernel).transpose(3, 2, 0, 1)
    bias = () if conv.bias is None else (graph.constant(_array(conv.bias)),)
    pads, shape = [pad[0], pad[0], pad[1], pad[1]], kernel.shape[2:]
    weights = (graph.constant(kernel), *bias)
    return graph.add("Conv", x, *weights, kernel_shape=shape, pads=pads, strides=[stride, stride], group=groups)


def _efficientnet(graph: Graph, pixels: str, encoder: EfficientNet, config: CLIPConfig) -> str:
    shape = config.image
    assert isinstance(shape, EfficientNetConfig)

    def unit(x: str, module: Unit | None, clip: bool = True) -> str:
        assert module is not None
        pad = depthwise.padding(module.conv.kernel_size[0], module.stride)
        y = _convolution(graph, x, module.conv, pad, module.stride, module.groups)
        return graph.add("Clip", y, low, high) if clip else y

    low, high = graph.constant(0), graph.constant(6)
    means, variances = [], []
    mean, deviation = np.full(3, shape.pixel_mean), np.full(3, shape.pixel_deviation)
    x = _normalised(graph, pixels, mean, deviation)
    for level in range(shape.levels):
        if level == 0:
            x = unit(x, encoder.stem)
        elif level <= len(encoder.stages):
            for block in encoder.stages[level - 1]:
                y = x if block.expand is None else unit(x, block.expand)
                y = unit(unit(y, block.depthwise), block.project, clip=False)
                x = graph.add("Add", x, y) if block.shortcut else y
        else:
            x = unit(x, encoder.head)
        if level in shape.pooled:
            means.append(graph.mean(x, 2, 3))
            apart = graph.add("Sub", x, means[-1])
            variances.append(graph.mean(graph.add("Mul", apart, apart), 2, 3))
    pool = encoder.pool
    variance = graph.add("Add", graph.add("Concat", *variances, axis=1), graph.constant(VARIANCE_EPS))
    found = graph.add("Concat", *means, graph.add("Sqrt", variance), axis=1)
    found = graph.add("Sub", graph.reshape(found, 0, -1), graph.constant(_array(pool.mean)))
    found = graph.add("Div", found, graph.constant(_array(pool.deviation)))
    return graph.linear(found, _array(pool.projection.kernel), _array(pool.projection.bias))


def _resnet(graph: Graph, pixels: str, encoder: ResNet, config: CLIPConfig) -> str:
    def unit(x: str, module: ConvNorm, stride: int = 1, relu: bool = True) -> str:
        assert isinstance(module.conv, nnx.Conv)
        half = module.conv.kernel_size[0] // 2
        y = _convolution(graph, x, module.conv, (half, half), stride)
        return graph.add("Relu", y) if relu else y

    def halved(x: str) -> str:
        return graph.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])

    x = _normalised(graph, pixels, np.array(MEAN), np.array(STD))
    x = halved(unit(unit(unit(x, encoder.stem1, 2), encoder.stem2), encoder.stem3))
    for block in (block for stage in encoder.stages for block in stage):
        y = unit(unit(x, block.conv1), block.conv2)
        if block.stride > 1:
            x, y = halved(x), halved(y)
        y = unit(y, block.conv3, relu=False)
        shortcut = x if block.shortcut is None else unit(x, block.shortcut, relu=False)
        x = graph.add("Relu", graph.add("Add", y, shortcut))
    return _attention_pool(graph, x, encoder.pool, config)


def _attention_pool(graph: Graph, x: str, pool: AttentionPool, config: CLIPConfig) -> str:
    """[N, C, H, W] -> [N, D]; one query, see `models.resnet.AttentionPool`."""
    width = config.image.features
    by_head = (width, pool.heads, width // pool.heads)
    keys, values = (_array(linear.kernel).reshape(by_head) for linear in (pool.k, pool.v))
    tokens = graph.add("Transpose", graph.reshape(x, 0, 0, -1), perm=[0, 2, 1])
    tokens = graph.add("Concat", graph.mean(tokens, 1), tokens, axis=1)  # [N, T, C]
    tokens = _positioned(graph, tokens, x, _array(pool.position), config)
    first = graph.add("Gather", tokens, graph.constant(0, np.int64), axis=1)
    q = graph.linear(first, _array(pool.q.kernel) * by_head[2] ** -0.5, _array(pool.q.bias) * by_head[2] ** -0.5)
    q = graph.add("Transpose", graph.reshape(q, 0, *by_head[1:]), perm=[1, 0, 2])  # [heads, N, F]
    q = graph.add("MatMul", q, graph.constant(keys.transpose(1, 2, 0)))  # [heads, N, C]
    q = graph.add("Transpose", q, perm=[1, 0, 2])
    logits = graph.add("MatMul", q, graph.add("Transpose", tokens, perm=[0, 2, 1]))
    pooled = graph.add("MatMul", graph.add("Softmax", logits, axis=-1), tokens)  # [N, heads, C]
    pooled = graph.add("Transpose", pooled, perm=[1, 0, 2])
    value = graph.add("MatMul", pooled, graph.constant(values.transpose(1, 0, 2)))  # [heads, N, F]
    value = graph.reshape(graph.add("Transpose", value, perm=[1, 0, 2]), 0, -1)
    value = graph.add("Add", value, graph.constant(_array(pool.v.bias)))
    return graph.linear(value, _array(pool.out.kernel), _array(pool.out.bias))


def _positioned(graph: Graph, tokens: str, grid: str, embedding: np.ndarray, config: CLIPConfig) -> str:
    """Tokens [N, F + rows * columns, C] plus the positional embedding for the size of `grid` [N, C, rows, columns]."""
    if config.position == "none":
        return tokens
    if config.position == "native":
        return graph.add("Add", tokens, graph.constant(embedding[None]))
    side = math.isqrt(len(embedding))
    count = len(embedding) - side**2
    native = embedding[count:].reshape(side, side, -1)
    bilinear = isinstance(config.image, ViTConfig) and config.image.resampling == "bilinear"
    rest = (_bilinear if bilinear else _bicubic)(graph, native, grid)
    if count:
        rest = graph.add("Concat", graph.constant(embedding[None, :count]), rest, axis=1)
    return graph.add("Add", tokens, rest)


def _bicubic(graph: Graph, native: np.ndarray, grid: str) -> str:
    """A square [side, side, C], resized to [1, rows * columns, C] of `grid` as `position.bicubic_weights` does it."""
    native = native[None].transpose(0, 3, 1, 2)
    size = graph.add("Slice", graph.add("Shape", grid), graph.integers(2), graph.integers(4))
    size = graph.add("Concat", graph.integers(1, native.shape[1]), size, axis=0)
    resized = graph.add(
        "Resize", graph.constant(native), "", "", size, mode="cubic", cubic_coeff_a=-0.75,
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    return graph.add("Transpose", graph.reshape(resized, 0, 0, -1), perm=[0, 2, 1])


def _bilinear(graph: Graph, native: np.ndarray, grid: str) -> str:
    """The same as `position.bilinear_weights` does it; onnxruntime's own antialiasing gives other values."""
    side, _, width = native.shape

    def weights(axis: int) -> str:
        size = graph.add("Gather", graph.add("Shape", grid), graph.constant(axis, np.int64), axis=0)
        ratio = graph.add("Div", graph.constant(side), graph.add("Cast", size, to=_FLOAT))
        index = graph.add("Range", graph.constant(0, np.int64), size, graph.constant(1, np.int64))
        x = graph.add("Mul", graph.add("Add", graph.add("Cast", index, to=_FLOAT), graph.constant(0.5)), ratio)
        apart = graph.add("Sub", graph.reshape(x, -1, 1), graph.constant(np.arange(side) + 0.5))
        distance = graph.add("Div", graph.add("Abs", apart), graph.add("Max", ratio, graph.constant(1)))
        taps = graph.add("Max", graph.add("Sub", graph.constant(1), distance), graph.constant(0))
        return graph.add("Div", taps, graph.add("ReduceSum", taps, graph.integers(1), keepdims=1))  # [size, side]

    resized = graph.add("MatMul", weights(2), graph.constant(native.reshape(side, -1)))
    resized = graph.add("MatMul", weights(3), graph.reshape(resized, -1, side, width))  # [rows, columns, C]
    return graph.reshape(resized, 1, -1, width)


def _vit(graph: Graph, pixels: str, encoder: ViT, config: CLIPConfig) -> str:
    shape = config.image
    assert isinstance(shape, ViTConfig)

    def norm(x: str, module: nnx.LayerNorm) -> str:
        weights = (graph.constant(_array(module.scale)), graph.constant(_array(module.bias)))
        return graph.add("LayerNormalization", x, *weights, axis=-1, epsilon=shape.layer_norm_eps)

    def linear(x: str, module: nnx.Linear) -> str:
        return graph.linear(x, _array(module.kernel), _array(module.bias))

    def activation(x: str) -> str:
        if shape.activation == "quick_gelu":
            return graph.add("Mul", x, graph.add("Sigmoid", graph.add("Mul", x, graph.constant(1.702))))
        if shape.activation == "gelu_tanh":
            cubic = graph.add("Mul", graph.add("Mul", graph.add("Mul", x, x), x), graph.constant(0.044715))
            inner = graph.add("Mul", graph.add("Add", x, cubic), graph.constant((2 / math.pi) ** 0.5))
            bell = graph.add("Tanh", inner)
        else:
            bell = graph.add("Erf", graph.add("Mul", x, graph.constant(0.5**0.5)))
        half = graph.add("Mul", x, graph.constant(0.5))
        return graph.add("Mul", half, graph.add("Add", bell, graph.constant(1)))

    def attention(x: str, block: Block) -> str:
        head = shape.width // shape.heads
        split = graph.reshape(linear(x, block.qkv), 0, 0, 3, shape.heads, head)
        split = graph.add("Transpose", split, perm=[2, 0, 3, 1, 4])  # [3, N, heads, T, F]
        q, k, v = (graph.add("Gather", split, graph.constant(i, np.int64), axis=0) for i in range(3))
        q = graph.add("Mul", q, graph.constant(head**-0.5))
        logits = graph.add("MatMul", q, graph.add("Transpose", k, perm=[0, 1, 3, 2]))
        seen = graph.add("MatMul", graph.add("Softmax", logits, axis=-1), v)
        seen = graph.reshape(graph.add("Transpose", seen, perm=[0, 2, 1, 3]), 0, 0, -1)
        return linear(seen, block.out)

    def pooled(x: str, head: MapPool) -> str:
        """[N, T, W] -> [N, W]."""
        size, width = shape.width // shape.heads, shape.width
        kernel, bias = _array(head.qkv.kernel), _array(head.qkv.bias)
        query = (_array(head.probe) @ kernel[:, :width] + bias[:width]) * size**-0.5
        keys, values = (
            graph.reshape(graph.linear(x, kernel[:, i : i + width], bias[i : i + width]), 0, 0, shape.heads, size)
            for i in (width, 2 * width)
        )
        keys = graph.add("Transpose", keys, perm=[0, 2, 3, 1])  # [N, heads, F, T]
        logits = graph.add("MatMul", graph.constant(query.reshape(shape.heads, 1, size)), keys)
        values = graph.add("Transpose", values, perm=[0, 2, 1, 3])
        seen = graph.reshape(graph.add("MatMul", graph.add("Softmax", logits, axis=-1), values), 0, -1)
        x = linear(seen, head.out)
        return graph.add("Add", x, linear(activation(linear(norm(x, head.ln), head.fc)), head.proj))

    mean, deviation = (np.array(values) for values in PIXELS[shape.pixels])
    grid = _convolution(graph, _normalised(graph, pixels, mean, deviation), encoder.patches, (0, 0), shape.patch_size)
    x = graph.add("Transpose", graph.reshape(grid, 0, 0, -1), perm=[0, 2, 1])
    if shape.class_tokens:
        count = graph.add("Slice", graph.add("Shape", grid), graph.integers(0), graph.integers(1))
        count = graph.add("Concat", count, graph.integers(1, shape.width), axis=0)
        first = graph.add("Expand", graph.constant(_array(encoder.class_token)), count)
        x = graph.add("Concat", first, x, axis=1)
    x = _positioned(graph, x, grid, _array(encoder.positions), config)
    x = x if encoder.ln_pre is None else norm(x, encoder.ln_pre)
    definition, stacked = nnx.split(encoder.transformer.blocks)
    stacked = jax.device_get(stacked)  # NumPy has nothing to compile
    for layer in range(shape.layers):
        block = nnx.merge(definition, jax.tree.map(operator.itemgetter(layer), stacked))
        x = graph.add("Add", x, attention(norm(x, block.ln_1), block))
        x = graph.add("Add", x, linear(activation(linear(norm(x, block.ln_2), block.fc)), block.proj))
    if not shape.class_tokens:
        return pooled(norm(x, encoder.ln_post), encoder.head)
    if shape.pool == "token":
        x = norm(graph.add("Gather", x, graph.constant(0, np.int64), axis=1), encoder.ln_post)
    else:
        x = norm(x, encoder.ln_post) if shape.pool == "norm_mean" else x
        patches = graph.add("Slice", x, graph.integers(1), graph.integers(2**31), graph.integers(1))
        x = graph.reshape(graph.mean(patches, 1), 0, -1)
        x = norm(x, encoder.ln_post) if shape.pool == "mean" else x
    return graph.linear(x, _array(encoder.projection.kernel))


_BUILDERS: dict[type[ImageEncoder], Callable[..., str]] = {EfficientNet: _efficientnet, ResNet: _resnet, ViT: _vit}
