"""Models as files of ONNX, in float32 or quantised to 8 bits."""

import contextlib
import importlib
import json
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from qualiclip_jax import models, quality
from qualiclip_jax.errors import UserError
from qualiclip_jax.export import encoders
from qualiclip_jax.export.graph import Graph
from qualiclip_jax.storage import StrPath
from qualiclip_jax.version import __version__

if TYPE_CHECKING:
    import onnx

INPUTS = ("uint8", "float32")
FINGERPRINT = "fingerprint"  # of the model, among the metadata of a file
_FIRST, _LAST = 3, 3  # convolutions and matrix products that are not quantised


def require(*packages: str) -> None:
    """Raises a UserError that names the extra if one of the packages is not installed."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(f"this needs {package}: pip install 'qualiclip_jax[onnx]'") from None


def build(model: models.Model, name: str, pixels: str = INPUTS[0]) -> "onnx.ModelProto":
    """A model in ONNX.

    Its input is `images` [N, H, W, 3], RGB, of any N, H and W (32 pixels a side at least; with a native positional
    embedding, the size of the training). Its outputs are `score` [N] and `attributes` [N, P], float32 in [0, 1].
    Pixels are normalised inside. All operators are of the standard set.

    Args:
      model: what to write.
      name: of the model, for the description.
      pixels: "uint8" (0 to 255), or "float32" (0 to 1).

    Raises:
      UserError: onnx is not installed, the model is larger than a file of ONNX can be, or its scores count the
        magnitude of features.
    """
    require("onnx")
    if model.magnitude is not None:
        raise UserError(f"{name}: scores that count the magnitude are not exported to ONNX: take --format stablehlo")
    from onnx import TensorProto, helper

    clip, graph = models.fold_batch_norm(model.clip), Graph()
    x = graph.add("Cast", "images", to=TensorProto.FLOAT)
    if pixels != "uint8":
        x = graph.add("Mul", x, graph.constant(255))
    found = encoders.features(graph, graph.add("Transpose", x, perm=[0, 3, 1, 2]), clip)
    length = graph.add("ReduceL2", found, graph.integers(1), keepdims=1)
    found = graph.add("Div", found, graph.add("Max", length, graph.constant(1e-12)))
    positive, negative = (model.prompt_features[:, i].T * (quality.LOGIT_SCALE / model.temperature) for i in (0, 1))
    if model.bias is None:
        logits = graph.linear(found, positive - negative)
    else:  # the logarithm of a sigmoid is -softplus(-x)
        bias = np.full(len(model.prompts), -model.bias, np.float32)
        logits = graph.add("Sub", *(graph.add("Softplus", graph.linear(found, -x, bias)) for x in (negative, positive)))
    graph.add("Sigmoid", logits, name="attributes")
    pairs, count = len(model.prompts), model.scored or len(model.prompts)
    graph.add("MatMul", "attributes", graph.constant(np.where(np.arange(pairs) < count, 1 / count, 0)), name="score")

    side = clip.config.image.image_size if clip.config.position == "native" else None
    kind = TensorProto.UINT8 if pixels == "uint8" else TensorProto.FLOAT
    facts = {
        "model": name,
        FINGERPRINT: model.fingerprint,
        "qualiclip_jax": __version__,
        "prompts": json.dumps(model.prompts),
        "temperature": repr(float(model.temperature)),
    }
    return graph.model(
        [helper.make_tensor_value_info("images", kind, ["N", side or "H", side or "W", 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("attributes", TensorProto.FLOAT, ["N", pairs]),
        ],
        facts,
        f"image quality by {name}: RGB images to scores from 0 to 1, higher is better",
    )


def quantised(path: StrPath, photos: Iterable[np.ndarray], result: StrPath) -> None:
    """Writes a model with weights and activations of 8 bits: about a quarter of the size.

    Convolutions and matrix products are quantised, weights by channel. In float32 stay the first three convolutions,
    which see the finest detail, and what turns pooled features into scores.

    Args:
      path: a file that holds what `build` gave.
      photos: uint8 [H, W, 3]; the activations of these tell the ranges.
      result: the file to write.

    Raises:
      UserError: onnxruntime is not installed.
    """
    require("onnxruntime")
    import onnx
    from onnx import TensorProto
    from onnxruntime import quantization

    graph = onnx.load(path, load_external_data=False).graph
    scale = np.float32(1 / 255) if graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT else np.uint8(1)
    feeds = ({"images": photo[None] * scale} for photo in photos)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feeds, None)

    names = [node.name for node in graph.node]
    convolutions, products = ([node.name for node in graph.node if node.op_type == kind] for kind in ("Conv", "MatMul"))
    first = names[: names.index(convolutions[_FIRST])] if len(convolutions) > _FIRST else convolutions
    with _quiet():
        quantization.quantize_static(
            path,
            result,
            Reader(),
            per_channel=True,
            reduce_range=True,  # weights of 7 bits: processors without VNNI add products in 16 bits
            op_types_to_quantize=["Conv", "MatMul", "Clip", "Relu", "Add", "AveragePool"],
            nodes_to_exclude=[*first, *products[-_LAST:]],
        )
    _slim(result)


def _slim(path: StrPath) -> None:
    """Rewrites a quantised file without what says nothing: zero points that are 0, shapes of values, long names."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    graph = model.graph
    signed = (onnx.TensorProto.INT8, onnx.TensorProto.INT32)  # of weights and biases; activations are uint8
    zeros = {
        array.name
        for array in graph.initializer
        if array.data_type in signed and not numpy_helper.to_array(array).any()
    }
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[2] in zeros:
            del node.input[2]
    used = {name for node in graph.node for name in node.input}
    kept = [array for array in graph.initializer if array.name in used]
    del graph.initializer[:], graph.value_info[:]
    given = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {}
    for array in kept:
        array.name = short.setdefault(array.name, f"c{len(short)}")
    graph.initializer.extend(kept)
    for node in graph.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [name if name in given else short.setdefault(name, f"v{len(short)}") for name in names]
    onnx.checker.check_model(model)
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings of onnxruntime from the log: it recommends a preparation that finds nothing to do here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def fingerprint(path: StrPath) -> str:
    """The fingerprint of the model that a file was made from.

    Raises:
      UserError: the file cannot be read, or was not made here.
    """
    require("onnx")
    import onnx

    try:
        facts = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception:  # protobuf's own
        raise UserError(f"{path} is no file of ONNX, or a damaged one") from None
    if FINGERPRINT not in facts:
        raise UserError(f"{path} was not written by `qualiclip export`: it names no fingerprint of a model")
    return facts[FINGERPRINT]
