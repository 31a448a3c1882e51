"""A graph of ONNX nodes, built node by node. Values are named by strings; images are [N, C, H, W] inside."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qualiclip_jax.errors import UserError

if TYPE_CHECKING:
    import onnx

OPSET = 18
_MOST_BYTES = 2**31 - 2**20  # that a file of ONNX can hold


class Graph:
    """Nodes and constants in the order in which they are added."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._bytes = 0

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds a node with one output.

        Args:
          operator: of ONNX, e.g. "Conv".
          inputs: names of values.
          name: of the output; by default one that tells operator and number.
          attributes: of the operator.

        Returns:
          The name of the output.
        """
        from onnx import helper

        output = name or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def constant(self, value: Any, kind: type[np.generic] = np.float32) -> str:
        """Adds a constant and returns its name."""
        from onnx import numpy_helper

        array = np.array(value, kind, order="C")
        self._bytes += array.nbytes
        if self._bytes > _MOST_BYTES:
            raise UserError(
                "the weights take more than 2 GB, which one file of ONNX cannot hold: use --format stablehlo"
            )
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        """A constant line of int64, as shapes and axes are given."""
        return self.constant(values, np.int64)

    def linear(self, x: str, kernel: np.ndarray, bias: np.ndarray | None = None) -> str:
        """x [..., I] @ kernel [I, O] + bias [O]."""
        y = self.add("MatMul", x, self.constant(kernel))
        return y if bias is None else self.add("Add", y, self.constant(bias))

    def reshape(self, x: str, *shape: int) -> str:
        """x in another shape, where 0 keeps an axis and -1 takes what is left."""
        return self.add("Reshape", x, self.integers(*shape))

    def mean(self, x: str, *axes: int) -> str:
        """The mean over axes, which stay with length 1."""
        return self.add("ReduceMean", x, self.integers(*axes), keepdims=1)

    def model(
        self,
        inputs: Sequence["onnx.ValueInfoProto"],
        outputs: Sequence["onnx.ValueInfoProto"],
        metadata: dict[str, str],
        description: str,
    ) -> "onnx.ModelProto":
        """The finished model, checked by ONNX."""
        import onnx
        from onnx import helper

        graph = helper.make_graph(self._nodes, "qualiclip", inputs, outputs, self._constants, description)
        model = helper.make_model(
            graph, producer_name="qualiclip_jax", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model
