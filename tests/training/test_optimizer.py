"""The optimizer against updates written as arithmetic, and its table of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qualiclip_jax.errors import UserError
from qualiclip_jax.training import optimizer
from qualiclip_jax.training.config import default_config

PARAMS = {
    "image": {
        "conv": {"kernel": jnp.array([[2.0, -1.0]]), "bias": jnp.array([0.5])},
        "norm": {"scale": jnp.array([3.0])},
    },
    "logit_scale": jnp.array(4.0),
}


def make_config(**changes):
    c = default_config()
    c.learning_rate = 0.1
    c.optimizer.parameters = ((".*", "constant", 1.0),)
    for name, value in changes.items():
        setattr(c.optimizer, name, value)
    return c


def update(config, gradient, steps=10):
    tx = optimizer.make_optimizer(config, PARAMS, steps)
    updates, _ = tx.update(gradient, tx.init(PARAMS), PARAMS)
    return updates


def test_names_are_paths():
    assert optimizer.parameter_names(PARAMS) == [
        "image/conv/bias",
        "image/conv/kernel",
        "image/norm/scale",
        "logit_scale",
    ]


def test_adamw_equals_optax_with_decay_on_kernels_only():
    gradient = jax.tree.map(lambda p: 0.3 * p, PARAMS)
    ours = update(make_config(weight_decay=0.2), gradient)
    decayed = jax.tree.map(lambda p: p.ndim > 1, PARAMS)
    tx = optax.adamw(0.1, weight_decay=0.2, mask=decayed)
    theirs, _ = tx.update(gradient, tx.init(PARAMS), PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_sgd_is_minus_rate_times_gradient():
    updates = update(make_config(name="sgd", weight_decay=0.0), jax.tree.map(jnp.ones_like, PARAMS))
    jax.tree.map(lambda u: np.testing.assert_allclose(u, -0.1), updates)


def test_lion_moves_by_the_sign():
    updates = update(make_config(name="lion", weight_decay=0.0), jax.tree.map(jnp.sign, PARAMS))
    jax.tree.map(lambda u, p: np.testing.assert_allclose(u, -0.1 * np.sign(p)), updates, PARAMS)


def test_clipping_is_over_all_parameters():
    config = make_config(name="sgd", weight_decay=0.0, clip_norm=1.0)
    updates = update(config, jax.tree.map(lambda p: 10 * jnp.ones_like(p), PARAMS))
    np.testing.assert_allclose(optax.tree.norm(updates), 0.1, rtol=1e-6)


def test_frozen_parameters_stay_and_have_no_state():
    config = make_config(parameters=((".*norm.*", "frozen", 1.0), (".*", "constant", 1.0)))
    tx = optimizer.make_optimizer(config, PARAMS, 10)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, PARAMS), tx.init(PARAMS), PARAMS)
    assert updates["image"]["norm"]["scale"].tolist() == [0.0]
    assert updates["image"]["conv"]["bias"][0] != 0
    assert sum(x.size for x in jax.tree.leaves(state)) == 2 * 4 + 2  # two moments of four numbers, two counters


def test_what_is_always_frozen_needs_no_row_and_may_have_one():
    image, rest = ("image/.*", "constant", 1.0), (".*", "constant", 1.0)
    for parameters in ((image,), (rest,), (image, (".*", "frozen", 1.0))):
        tx = optimizer.make_optimizer(make_config(parameters=parameters), PARAMS, 10, frozen="logit_scale")
        updates, state = tx.update(jax.tree.map(jnp.ones_like, PARAMS), tx.init(PARAMS), PARAMS)
        assert updates["logit_scale"] == 0
        assert updates["image"]["norm"]["scale"][0] != 0
        assert sum(x.size for x in jax.tree.leaves(state)) == 2 * 4 + 2
    with pytest.raises(UserError, match="covers no schedule for 1 parameters, e.g. 'image/norm/scale'"):
        optimizer.make_optimizer(make_config(parameters=(("image/conv/.*", "cosine", 1.0),)), PARAMS, 10, "logit_scale")


def test_multiplier_scales_the_rate():
    config = make_config(
        name="sgd", weight_decay=0.0, parameters=(("image/conv/.*", "constant", 0.5), (".*", "constant", 1.0))
    )
    updates = update(config, jax.tree.map(jnp.ones_like, PARAMS))
    np.testing.assert_allclose(updates["image"]["conv"]["bias"], -0.05)
    np.testing.assert_allclose(updates["logit_scale"], -0.1)


def test_uncovered_parameters_and_unused_rows_are_errors():
    with pytest.raises(UserError, match="covers no schedule for 1 parameters, e.g. 'logit_scale'"):
        optimizer.make_optimizer(make_config(parameters=(("image/.*", "cosine", 1.0),)), PARAMS, 10)
    with pytest.raises(UserError, match="the row 'text/.*' is used by no parameter"):
        optimizer.make_optimizer(
            make_config(parameters=((".*", "cosine", 1.0), ("text/.*", "frozen", 1.0))), PARAMS, 10
        )


def test_schedule_warms_up_and_ends_at_zero():
    config = make_config(warmup_steps=4)
    rate = optimizer.schedule(config, "cosine", 1.0, 12)
    np.testing.assert_allclose([rate(s) for s in (0, 1, 4, 8, 12)], [0.0, 0.025, 0.1, 0.05, 0.0], atol=1e-8)
    np.testing.assert_allclose(
        [optimizer.schedule(config, "constant", 2.0, 12)(s) for s in (4, 12)], [0.2, 0.2], rtol=1e-6
    )


def test_a_learning_rate_that_cannot_learn_is_told():
    config = default_config()
    config.learning_rate = 1e-9
    config.optimizer.parameters = ((".*", "constant", 1.0),)
    assert optimizer.reach(config, 87_500) == pytest.approx(8.75e-5, rel=1e-5)
    line = optimizer.warning(config, 87_500)
    assert "in 87,500 steps adamw moves no weight by more than about 8.8e-05" in line
    config.learning_rate = 3e-6
    config.optimizer.parameters = (("image/.*", "cosine", 1.0), (".*", "frozen", 1.0))
    assert optimizer.reach(config, 20_000) == pytest.approx(0.03, rel=1e-3)  # half of it, as warm-up and cosine have
    assert optimizer.warning(config, 20_000) == ""
    config.optimizer.name = "sgd"
    config.learning_rate = 1e-9
    assert optimizer.warning(config, 20_000) == ""


def test_adam_moves_no_weight_further():
    config = make_config()
    tx = optimizer.make_optimizer(config, PARAMS, 50)
    params, state = PARAMS, tx.init(PARAMS)
    for sign in (1, 1, -1, 1, 1):
        gradient = jax.tree.map(lambda x, sign=sign: 1e3 * sign * jnp.ones_like(x), PARAMS)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    moved = max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS)))
    assert 0 < moved < 1.05 * optimizer.reach(config, 5)  # and weight decay
