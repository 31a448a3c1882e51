"""What the parity tests share; without PyTorch they skip and say so."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

TOLERANCE = 1e-5


@pytest.fixture(scope="session")
def torch():
    module = pytest.importorskip("torch", reason="the parity extra is not installed: pip install qualiclip_jax[parity]")
    module.set_num_threads(2)
    module.manual_seed(0)
    return module


@pytest.fixture(scope="session")
def disturb(torch):
    """Moves parameters and running statistics of a PyTorch module off their initial values: each has an effect."""

    def apply(module):
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if name.endswith(("running_var", "norm1.weight", "norm2.weight", "bn3.weight", "ln_1.weight")):
                    tensor.uniform_(0.7, 1.3)
                elif name.endswith(("bias", "running_mean")):
                    tensor.normal_(0, 0.1)
        return module.eval()

    return apply


@nnx.jit
def _encode_image(clip, images):
    return clip.encode_image(images)


@nnx.jit
def _encode_text(clip, tokens):
    return clip.encode_text(tokens)


@pytest.fixture(scope="session")
def assert_parity(torch):
    """Compares features with a PyTorch function of the same images [N, H, W, 3] or tokens [P, 77]."""

    def check(clip, inputs, reference):
        is_image = inputs.ndim == 4
        ours = (_encode_image if is_image else _encode_text)(clip, jnp.asarray(inputs))
        theirs = torch.tensor(inputs.transpose(0, 3, 1, 2) if is_image else inputs.astype(np.int64))
        with torch.no_grad():
            theirs = reference(theirs).numpy()
        assert ours.shape == theirs.shape
        error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
        assert error <= TOLERANCE, error

    return check


@pytest.fixture(scope="session")
def images():
    """`images(height, width)`: one random image, normalised, float32 [1, H, W, 3]."""
    return lambda *size: np.random.default_rng(0).standard_normal((1, *size, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def tokens():
    """Texts of several lengths, int32 [4, 77]: start token, words, end token, zeros."""
    rng = np.random.default_rng(0)
    rows = np.zeros((4, 77), np.int32)
    for row, length in zip(rows, (3, 5, 20, 77)):
        row[0], row[1 : length - 1], row[length - 1] = 49406, rng.integers(1, 49406, length - 2), 49407
    return rows
