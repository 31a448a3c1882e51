"""The loss for PyTorch equals that of JAX, value and gradient, and is a good module."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qualiclip_jax import checkpoint, loss
from qualiclip_jax.errors import UserError
from tests.small_models import VIT, make_model

torch = pytest.importorskip("torch")
from qualiclip_jax.torch import QualityLoss  # noqa: E402  (after the check that PyTorch is there)

OPTIONS = {"views": 2, "reduction": "none"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("loss") / "vit"
    checkpoint.save_model(path, make_model(VIT))
    return path


@pytest.fixture(scope="module")
def criterion(model):
    return QualityLoss(models=model, **OPTIONS)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    return [rng.random((2, 64, 64, 3), np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def expected(model, arrays):
    """Values and gradient by JAX alone, weights 1 and -2 for the two images."""
    images, reference = map(jnp.array, arrays)
    ours = loss.QualityLoss(models=model, **OPTIONS)
    value, pull = jax.vjp(jax.jit(lambda x: ours(x, reference, jax.random.key(5))), images)
    return np.asarray(value), np.asarray(pull(jnp.array([1.0, -2.0]))[0])


def tensors(arrays, **options):
    return [torch.from_numpy(array).permute(0, 3, 1, 2).to(**options) for array in arrays]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 1e-6), ({"memory_format": torch.contiguous_format}, 1e-6), ({"dtype": torch.float64}, 1e-6)],
)
def test_value_and_gradient_are_those_of_jax(criterion, arrays, expected, options, tolerance):
    images, reference = tensors(arrays, **options)
    images.requires_grad_()
    value = criterion(images, reference, seed=5)
    np.testing.assert_allclose(value.detach(), expected[0], atol=tolerance)
    (value * torch.tensor([1.0, -2.0])).sum().backward()
    assert images.grad.dtype == images.dtype
    gradient = images.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(gradient, expected[1], atol=1e-4 * np.abs(expected[1]).max())


def test_without_gradients(criterion, arrays, expected):
    images, reference = tensors(arrays)
    images.requires_grad_()
    with torch.no_grad():
        value = criterion(images, reference, seed=5)
    assert not value.requires_grad
    np.testing.assert_allclose(value, expected[0], atol=1e-6)
    value[0] = 7  # a tensor of its own
    assert not criterion(images.detach(), reference, seed=5).requires_grad


def test_gradients_flow_into_a_network_and_not_into_the_reference(criterion, arrays):
    images, reference = tensors(arrays)
    reference.requires_grad_()
    network = torch.nn.Conv2d(3, 3, 3, padding=1)
    criterion(network(images), reference).mean().backward()
    assert network.weight.grad.abs().sum() > 0
    assert reference.grad is None


def test_views_follow_pytorchs_seed(criterion, arrays):
    images, reference = tensors(arrays)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(criterion(images, reference).tolist())
    assert values[0] == values[1] != values[2]


def test_a_second_derivative_is_refused(criterion, arrays):
    images, reference = tensors(arrays)
    images.requires_grad_()
    with pytest.raises(UserError, match="no second derivative"):
        torch.autograd.grad(criterion(images, reference, seed=5).sum(), images, create_graph=True)


def test_it_travels_to_another_process(criterion, arrays, expected, monkeypatch):
    images, reference = tensors(arrays)
    copy = pickle.loads(pickle.dumps(criterion))
    np.testing.assert_allclose(copy(images, reference, seed=5), expected[0], atol=1e-6)
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(UserError, match="forked"):
        criterion(images, reference)


def test_other_shapes_are_refused(criterion, arrays):
    with pytest.raises(UserError, match=r"give floats \[N, 3, H, W\]"):
        criterion(torch.from_numpy(arrays[0]))
