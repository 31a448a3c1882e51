"""`QualityLoss` for PyTorch: a module around `qualiclip_jax.loss`, with gradients by JAX."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qualiclip_jax import loss
from qualiclip_jax.errors import UserError

try:
    import torch
except ImportError:
    raise UserError("qualiclip_jax.torch needs torch: pip install 'qualiclip_jax[torch]'") from None

_NO_SECOND = "QualityLoss has no second derivative: call backward and grad without create_graph"


class QualityLoss(torch.nn.Module):
    """The loss of `qualiclip_jax.loss.QualityLoss` for tensors [N, 3, H, W].

        criterion = QualityLoss(fidelity=30.0)
        criterion(restored, degraded).backward()

    Value and gradient are computed together by one compiled program of JAX (a new size of images compiles anew).
    Tensors go to JAX through DLPack, without a copy where JAX has a device of the same kind, else through the memory of
    the host. The module has no parameters and may be pickled.

    What it cannot do: second derivatives; gradients for the reference; forward mode, `torch.func` and `torch.compile`;
    a call in a process that was forked from one that has the module, such as a worker of a DataLoader: start those with
    "spawn". It computes in float32, whatever the type of the tensors or the autocast mode.

    Args:
      options: as the fields of `qualiclip_jax.loss.QualityLoss`.

    Raises:
      UserError: as `qualiclip_jax.loss.QualityLoss`.
    """

    def __init__(self, **options: Any):
        super().__init__()
        self.options = options
        self._build()

    def _build(self) -> None:
        self._loss = loss.QualityLoss(**self.options)
        self._value = jax.jit(self._of_tensor)
        self._both = jax.jit(self._with_gradient)
        self._process = os.getpid()

    def forward(
        self, images: torch.Tensor, reference: torch.Tensor | None = None, seed: int | None = None
    ) -> torch.Tensor:
        """The loss.

        Args:
          images: floating point [N, 3, H, W], meant to be in [0, 1].
          reference: what the images were made from and are held to, of the same shape; it gets no gradient.
          seed: of the random views; drawn from PyTorch's generator if None.

        Returns:
          float32, a scalar; or [N] with reduction "none".

        Raises:
          UserError: as `qualiclip_jax.loss.QualityLoss`; or this process was forked.
        """
        if os.getpid() != self._process:
            raise UserError("QualityLoss in a process that was forked: JAX stands still there; start it with 'spawn'")
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UserError(f"QualityLoss: images are {images.dtype} {tuple(images.shape)}: give floats [N, 3, H, W]")
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        if not torch.is_grad_enabled():
            images = images.detach()
        held = None if reference is None else reference.detach().float()
        bridge: Any = _Bridge.apply  # without types
        return bridge(images.float(), held, seed, self)

    def _of_tensor(self, images: jax.Array, reference: jax.Array | None, seed: jax.Array) -> jax.Array:
        if reference is not None:
            reference = reference.transpose(0, 2, 3, 1)
        return self._loss(images.transpose(0, 2, 3, 1), reference, jax.random.key(seed))

    def _with_gradient(
        self, images: jax.Array, reference: jax.Array | None, seed: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The value, and the gradient of its sum: no image has a part in the loss of another."""
        value, pull = jax.vjp(lambda x: self._of_tensor(x, reference, seed), images)
        return value, pull(jnp.ones_like(value))[0]

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["options"])  # type: ignore[misc]  # compiled programs are not pickled


class _Bridge(torch.autograd.Function):
    """From PyTorch to JAX and back."""

    @staticmethod
    def forward(
        context: Any, images: torch.Tensor, reference: torch.Tensor | None, seed: int, module: QualityLoss
    ) -> torch.Tensor:
        arguments = (_to_jax(images), None if reference is None else _to_jax(reference), jnp.uint32(seed))
        if not context.needs_input_grad[0]:
            return _to_torch(module._value(*arguments), images)
        value, gradient = module._both(*arguments)
        context.save_for_backward(_to_torch(gradient, images))
        return _to_torch(value, images)

    @staticmethod
    def backward(context: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph
            raise UserError(_NO_SECOND)
        (gradient,) = context.saved_tensors
        return gradient * outer[0].reshape(-1, 1, 1, 1), None, None, None


def _to_jax(tensor: torch.Tensor) -> jax.Array:
    """A tensor as an array, on the device of the same kind if JAX has one."""
    tensor = tensor.detach().contiguous()
    kind = {"cuda": "gpu"}.get(tensor.device.type, tensor.device.type)
    if kind == jax.default_backend():
        return jnp.from_dlpack(tensor)
    return jnp.asarray(np.asarray(tensor.cpu()))


def _to_torch(array: jax.Array, like: torch.Tensor) -> torch.Tensor:
    """An array as a tensor of its own on the device of another tensor; waits for its values."""
    array.block_until_ready()
    kind = {"cuda": "gpu"}.get(like.device.type, like.device.type)
    if kind == jax.default_backend():
        return torch.utils.dlpack.from_dlpack(array).clone()
    return torch.from_numpy(np.array(array)).to(like.device)
