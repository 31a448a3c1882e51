"""`python -m qualiclip_jax.train`, but with one cheap degradation in place of the 24, which take long to compile."""

import sys

import jax
import jax.numpy as jnp

from qualiclip_jax import cli, degradations, train


def add_noise(crops, type_index, key, levels=5):
    """Noise that grows with the level; same shapes and keys as `degradations.degrade_pairs`."""
    shape = crops.shape[1:]

    def one_image(image, image_key):
        draw = lambda level: jax.random.normal(jax.random.fold_in(image_key, level), shape)
        noisy = [image + 0.02 * 2**level * draw(level) for level in range(1, levels + 1)]
        return jnp.clip(jnp.stack(noisy), 0, 1)

    return jax.vmap(one_image)(crops.astype(jnp.float32) / 255, key)


if __name__ == "__main__":
    degradations.degrade_pairs = add_noise
    sys.exit(cli.run(train.main))
