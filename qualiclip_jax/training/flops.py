"""How much of the device a step uses: operations counted in the traced program, and the measured rate of a product."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core


def count(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of the matrix products and convolutions of a call, on one device.

    Counted in the traced program, whatever the device makes of it: a multiplication and an addition are two, a loop
    counts as often as it runs (a `while` of unknown length once), a condition as its largest branch. cuDNN's fused
    attention is not counted, 3 % of ViT-B/16 at 224 px.

    Args:
      function: traceable, compiled or not; its arguments may be arrays or `jax.ShapeDtypeStruct`.
    """
    return _of_program(jax.make_jaxpr(function)(*args).jaxpr)


def _of_program(jaxpr: core.Jaxpr) -> float:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = _shape(equation.invars[0])
        return 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(kernel) / outputs
    inner = [_of_program(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def matmul_rate(dtype: str) -> float:
    """Measured rate of a large matrix product on one device, FLOP/s: what the utilisation is compared with."""
    # Products are timed back to back: waiting for each would make a GPU look slower, and a step better, than it is.
    side, products = (1024, 2) if jax.default_backend() == "cpu" else (8192, 10)
    numbers = jax.jit(lambda: jnp.sin(jnp.arange(side**2, dtype=jnp.float32)).reshape(side, side).astype(dtype))
    a = numbers()  # zeros or ones would flatter a GPU
    multiply = jax.jit(lambda x: x @ x)
    multiply(a).block_until_ready()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(products):
            product = multiply(a)
        product.block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * side**3 * products / min(times)
