"""What an encoder says of the parts of an image: a logit for each cell and attribute, from one pass.

A cell is what becomes one token of a convolutional encoder, 32 x 32 pixels. It is judged by the window of 3 x 3 cells
around it, which is moved inwards at the borders: by its `readout` if one is known for the encoder, else by the
encoder's own pool, as if the window were the image. A ViT has no tokens that see only a part of the image; it scores
overlapping windows of pixels one by one.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from qualiclip_jax.errors import UserError
from qualiclip_jax.inference import inputs
from qualiclip_jax.models.efficientnet import EfficientNet
from qualiclip_jax.models.encoder import Area, ImageEncoder

if TYPE_CHECKING:
    from qualiclip_jax.inference.predictor import QualiCLIP

SIDE = 3  # cells of a window of tokens
CELLS, STEP = 4, 3  # of a window of pixels, and from one to the next
_CELL = 32  # pixels, about


def pooled(image: ImageEncoder, tokens: jax.Array, count: jax.Array, readout: jax.Array | None) -> jax.Array:
    """What is made of every window of tokens.

    Args:
      image: an encoder that takes tiles.
      tokens: [1, R, K, C].
      count: int [1, 2], how many rows and columns are valid.
      readout: float32 [F, Q], weights of an EfficientNet's standardised moments; None for the features of the pool.

    Returns:
      float32 [R, K, Q or D]; without meaning where a cell is not valid.
    """
    rows, columns = tokens.shape[1:3]
    padded = jnp.pad(tokens[0], ((0, max(0, SIDE - rows)), (0, max(0, SIDE - columns)), (0, 0)))
    first = [
        jnp.clip(jnp.arange(n) - SIDE // 2, 0, jnp.maximum(count[0, k] - SIDE, 0)) for k, n in ((0, rows), (1, columns))
    ]
    area = Area(jnp.broadcast_to(jnp.minimum(count, SIDE), (columns, 2)))
    across = first[1][:, None] + jnp.arange(SIDE)  # [K, SIDE]

    def one_row(start: jax.Array) -> jax.Array:
        band = jax.lax.dynamic_slice_in_dim(padded, start, SIDE)
        windows = jnp.moveaxis(band[:, across], 1, 0)  # [K, SIDE, SIDE, C]
        if readout is None:
            return image.pool(windows, area).astype(jnp.float32)
        assert isinstance(image, EfficientNet)
        return image.pool.standardised(windows) @ readout

    return jax.lax.map(one_row, first[0])


def pixel_windows(model: "QualiCLIP", image: np.ndarray) -> tuple[np.ndarray, int]:
    """Attribute scores of each cell, from overlapping windows of pixels.

    Args:
      model: of any encoder.
      image: uint8 or float32 [H, W, 3].

    Returns:
      float32 [h, w, P], each the mean over the windows that hold the cell, and the side of a cell in pixels.

    Raises:
      UserError: a model that takes images of one size only.
    """
    config = model.clip.config
    if config.position == "native":
        raise UserError(f"no map: this model takes only images of {config.image.image_size} px, and no parts of them")
    stride = config.image.stride
    cell = stride * max(1, round(_CELL / stride))
    lines = [_line(side, cell) for side in image.shape[:2]]
    places = [(top, left) for top in lines[0] for left in lines[1]]
    crops = [image[slice(*top), slice(*left)] for top, left in places]
    scores = model.attributes(inputs.as_list(crops))
    total = np.zeros((*(-(-side // cell) for side in image.shape[:2]), scores.shape[1] + 1), np.float64)
    for ((top, bottom), (left, right)), values in zip(places, scores):
        total[top // cell : -(-bottom // cell), left // cell : -(-right // cell)] += [*values, 1]
    return (total[..., :-1] / total[..., -1:]).astype(np.float32), cell


def _line(length: int, cell: int) -> list[tuple[int, int]]:
    """Where the windows of one side begin and end, in pixels; the last one takes what is left."""
    count = max(1, -(-(length // cell - CELLS) // STEP) + 1)
    starts = [k * STEP * cell for k in range(count)]
    return [(start, min(length, start + CELLS * cell) if k + 1 < count else length) for k, start in enumerate(starts)]
