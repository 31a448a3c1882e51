"""CLIP: an image and a text encoder into one space, as a Flax NNX module."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from qualiclip_jax.errors import UserError
from qualiclip_jax.models.clip_config import CLIPConfig, ResNetConfig, ViTConfig
from qualiclip_jax.models.config_base import ImageConfig
from qualiclip_jax.models.config_efficientnet import EfficientNetConfig
from qualiclip_jax.models.efficientnet import EfficientNet
from qualiclip_jax.models.encoder import ImageEncoder
from qualiclip_jax.models.layers import BatchNorm
from qualiclip_jax.models.resnet import ResNet
from qualiclip_jax.models.text import TextEncoder
from qualiclip_jax.models.vit import ViT

# Which encoder an image config describes; `config.IMAGE_KINDS` lists the configs.
ENCODERS: dict[type[ImageConfig], type[ImageEncoder]] = {
    ResNetConfig: ResNet,
    ViTConfig: ViT,
    EfficientNetConfig: EfficientNet,
}


class CLIP(nnx.Module):
    """An image encoder, a text encoder (if the config has one) and the logit scale.

    Randomly initialised as OpenAI's code does it, except that convolutions are drawn after He et al.: with BatchNorm
    frozen at mean 0 and variance 1, that keeps activations of one size through the depth, so that training from
    scratch works.

    Attributes:
      config: the `CLIPConfig` it was built from.
      image: the image encoder, one of `ENCODERS`.
      text: `TextEncoder` or None.
      logit_scale: nnx.Param, a scalar, the logarithm of the scale of the logits.
      logit_bias: nnx.Param, a scalar, added to the logits; None if the config has none.
    """

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.image = ENCODERS[type(config.image)](config, rngs)
        self.text = None if config.text is None else TextEncoder(config, rngs)
        self.logit_scale = nnx.Param(jnp.array(math.log(1 / 0.07), jnp.float32))
        self.logit_bias = nnx.Param(jnp.array(-10.0, jnp.float32)) if config.logit_bias else None

    def encode_image(self, images: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
        """Image features.

        Args:
          images: float [N, H, W, 3], normalised with `normalise`.
          sizes: int [N, 2], the valid height and width of each image where smaller ones are padded at the right and
            bottom (with anything). Each result equals that of the unpadded image. None if nothing is padded.

        Returns:
          float32 [N, D], not of unit length.

        Raises:
          UserError: images of another shape, smaller than the encoder's stride, or of another size than the native one
            under position "native".
        """
        if jnp.ndim(images) != 4 or images.shape[-1] != 3:
            raise UserError(f"images of shape {jnp.shape(images)}, expected [N, height, width, 3]")
        least = self.config.image.stride
        if min(images.shape[1:3]) < least:
            raise UserError(
                f"images must be at least {least} x {least} pixels, got {images.shape[1]} x {images.shape[2]}"
            )
        return self.image(images, sizes).astype(jnp.float32)

    def encode_text(self, tokens: jax.Array) -> jax.Array:
        """Text features.

        Args:
          tokens: int [P, 77], start and end token included, zeros (or end tokens) behind. An encoder of another
            tokenizer than CLIP's takes its own length, filled up as `prompts.padded_tokens` does it.

        Returns:
          float32 [P, D], not of unit length.

        Raises:
          UserError: the model has no text encoder, or tokens are not integers of the vocabulary [P, 77 or fewer].
        """
        text = self.config.text
        if self.text is None or text is None:
            raise UserError(
                "this model has no text encoder (it was saved or loaded without one): its prompts cannot be changed"
            )
        tokens = jnp.asarray(tokens)
        fits = tokens.ndim == 2 and tokens.shape[1] <= text.context_length
        if text.pool == "last" or not text.causal:  # what fills it up counts
            fits = fits and tokens.shape[1] == text.context_length
        if not fits or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise UserError(f"tokens are {tokens.dtype} {tokens.shape}, expected integers [P, {text.context_length}]")
        if not isinstance(tokens, jax.core.Tracer) and not ((tokens >= 0) & (tokens < text.vocab_size)).all():
            raise UserError(f"tokens from {tokens.min()} to {tokens.max()}: this vocabulary has {text.vocab_size}")
        return self.text(tokens).astype(jnp.float32)

    def drop_text_encoder(self) -> None:
        """Forgets the text encoder: with the prompts' features at hand, images need only theirs."""
        self.text = None
        self.config = dataclasses.replace(self.config, text=None)

    def batch_norm_mode(self, training: bool, axis_name: str | tuple[str, ...] | None = None) -> None:
        """Sets how every BatchNorm works: frozen (the default), or on the statistics of the batch.

        Args:
          training: use the statistics of the batch, and move the running ones.
          axis_name: of the device axis, or axes, that the batch is spread over; None for each device alone.
        """
        for _, module in nnx.iter_modules(self):
            if isinstance(module, BatchNorm):
                module.training, module.axis_name = training, axis_name
