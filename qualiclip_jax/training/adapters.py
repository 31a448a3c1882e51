"""Low-rank adapters: an image encoder whose kernels get a product of two thin matrices added.

Source: Hu et al., "LoRA: low-rank adaptation of large language models" (arXiv 2106.09685). In quality assessment, Yadav
et al. (arXiv 2509.17374) learn adapters of rank 4 from ratings, for the queries and keys of SigLIP 2. Ours are the
kernels that are adapted, and that degradations alone may teach the adapters. The product is not scaled further.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qualiclip_jax import models
from qualiclip_jax.errors import UserError
from qualiclip_jax.models.layers import normal


class Adapted(nnx.Module):
    """A frozen CLIP and its adapters: of attention and perceptron in a ViT, of 1 x 1 convolutions in the others.

    At the start the adapters add nothing. The layers know nothing of them: `merged` adds them to the kernels.

    Attributes:
      clip: frozen.
      down: nnx.Param [..., into, rank] of each adapted kernel [..., into, out], normal.
      up: nnx.Param [..., rank, out], zeros at the start.

    Raises:
      UserError: the encoder has no kernel that could be adapted, or none of such a rank.
    """

    def __init__(self, clip: models.CLIP, rank: int, seed: int):
        leaves = nnx.to_flat_state(nnx.state(clip.image, nnx.Param))
        kernels = {path: leaf.shape for path, leaf in leaves if _is_adapted(path, leaf.shape)}
        if not kernels:
            raise UserError(
                f"config.model.adapter_rank is {rank}, but this encoder has no kernels to adapt: no transformer blocks "
                "and no 1 x 1 convolutions; set it to 0 to train the encoder itself"
            )
        if rank > (most := max(min(shape[-2:]) for shape in kernels.values())):
            raise UserError(f"config.model.adapter_rank is {rank}, but no kernel here has a higher rank than {most}")
        self.clip, self.paths = clip, tuple(kernels)
        keys = jax.random.split(jax.random.key(seed), len(kernels))
        shapes = [(shape[:-2], *shape[-2:]) for shape in kernels.values()]
        down = [normal(into**-0.5)(key, (*lead, into, rank)) for key, (lead, into, _) in zip(keys, shapes)]
        self.down = nnx.List([nnx.Param(values) for values in down])
        self.up = nnx.List([nnx.Param(jnp.zeros((*lead, rank, out), jnp.float32)) for lead, _, out in shapes])

    def parts(self, prompt_features: Any) -> tuple[models.CLIP, Any]:
        """The CLIP with its adapters added, and the prompt features as they are; gradients reach the adapters alone."""
        graph, state = nnx.split(self.clip)
        leaves = dict(nnx.to_flat_state(jax.lax.stop_gradient(state)))
        for path, down, up in zip(self.paths, self.down, self.up):
            leaf = leaves["image", *path]
            leaves["image", *path] = nnx.Param(leaf[...] + down[...] @ up[...])
        return nnx.merge(graph, nnx.from_flat_state(list(leaves.items()))), prompt_features

    def encode_image(self, images: jax.Array) -> jax.Array:
        """`CLIP.encode_image` with the adapters."""
        features: jax.Array = self.parts(None)[0].encode_image(images)
        return features


def _is_adapted(path: tuple[Any, ...], shape: tuple[int, ...]) -> bool:
    """Whether a kernel is of a transformer's blocks (stacked, [layers, into, out]) or a 1 x 1 convolution."""
    return path[-1] == "kernel" and (len(shape) == 3 or (len(shape) == 4 and shape[:2] == (1, 1)))
