"""The optimizer: optax pieces chosen by name, a schedule for each parameter by regular expression."""

import math
import re
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from qualiclip_jax.errors import UserError

NOT_DECAYED = ("bias", "scale", "logit_scale")  # last part of the name of a parameter without weight decay


def parameter_names(params: Any) -> list[str]:
    """The name of every leaf in tree order, e.g. `image/layer1/0/conv1/kernel`."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return ["/".join(str(_part(key)) for key in path if _part(key) != "value") for path, _ in paths]


def _part(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def schedule(config: ConfigDict, kind: str, multiplier: float, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0, then constant, or a cosine to 0 at the last step."""
    peak, warmup = config.learning_rate * multiplier, min(config.optimizer.warmup_steps, steps)
    if kind == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def reach(config: ConfigDict, steps: int) -> float:
    """About how far a weight can move in `steps` steps: a step of Adam or Lion is no larger than the learning rate.

    Infinite for plain gradient descent, where the size of the gradient counts.
    """
    if config.optimizer.name == "sgd":
        return math.inf
    rows = [(kind, multiplier) for _, kind, multiplier in config.optimizer.parameters if kind != "frozen"]
    rates = [schedule(config, kind, multiplier, steps)(np.arange(steps, dtype=np.float32)) for kind, multiplier in rows]
    return max((float(np.broadcast_to(rate, (steps,)).sum(dtype=np.float64)) for rate in rates), default=0.0)


def warning(config: ConfigDict, steps: int) -> str:
    """A line that says that the learning rate is far too small for a long run, or ""."""
    if steps < 1000 or (far := reach(config, steps)) > 1e-3:  # CLIP's weights are of the order of 0.02
        return ""
    return (
        f"learning_rate {config.learning_rate:g}: in {steps:,} steps {config.optimizer.name} moves no weight by more "
        f"than about {far:.1e}, so the model can hardly learn; compare update_norm and parameter_norm in metrics.jsonl"
    )


def make_optimizer(config: ConfigDict, params: Any, steps: int, frozen: str = "") -> optax.GradientTransformation:
    """Builds the optimizer of a run.

    Args:
      config: a training config; used are `learning_rate` and the section `optimizer`.
      params: the parameters (shapes suffice).
      steps: length of the schedule.
      frozen: a regular expression for the names of parameters that are frozen, whatever the table says.

    Returns:
      Clipping over all parameters, then for each row of `optimizer.parameters` its own schedule; frozen parameters get
      zero updates and no optimizer state.

    Raises:
      UserError: if a parameter is covered by no row, or a row matches no parameter.
    """
    rows = [tuple(row) for row in config.optimizer.parameters]
    names = parameter_names(params)
    found = [next((i for i, (pattern, _, _) in enumerate(rows) if re.fullmatch(pattern, name)), None) for name in names]
    labels, used = [], set(found)
    for name, row in zip(names, found):
        kept = re.fullmatch(frozen, name) is not None
        if row is None and not kept:
            missed = [n for n, i in zip(names, found) if i is None and not re.fullmatch(frozen, n)]
            raise UserError(
                f"config.optimizer.parameters covers no schedule for {len(missed)} parameters, e.g. {missed[0]!r}: "
                "add a row such as ('.*', 'cosine', 1.0) or ('.*', 'frozen', 1.0) at the end"
            )
        labels.append(str(len(rows) if kept else row))
    for i, (pattern, _, _) in enumerate(rows):
        if i not in used:
            raise UserError(
                f"config.optimizer.parameters: the row {pattern!r} is used by no parameter (the first match counts); "
                f"names look like {names[0]!r}"
            )
    tree = jax.tree.structure(params)
    decayed = jax.tree.unflatten(tree, [name.split("/")[-1] not in NOT_DECAYED for name in names])
    transforms = {
        str(i): _one_schedule(config, schedule(config, kind, multiplier, steps), decayed)
        if kind != "frozen"
        else optax.set_to_zero()
        for i, (_, kind, multiplier) in enumerate(rows + [(frozen, "frozen", 0.0)] * bool(frozen))
    }
    clip = [optax.clip_by_global_norm(config.optimizer.clip_norm)] if config.optimizer.clip_norm > 0 else []
    return optax.chain(*clip, optax.partition(transforms, jax.tree.unflatten(tree, labels)))


def _one_schedule(config: ConfigDict, rate: optax.Schedule, decayed: Any) -> optax.GradientTransformation:
    o = config.optimizer
    direction = {
        "adamw": lambda: optax.scale_by_adam(o.b1, o.b2, o.eps),
        "lion": lambda: optax.scale_by_lion(o.b1, o.b2),
        "sgd": lambda: optax.trace(o.b1),
    }[o.name]()
    return optax.chain(
        direction, optax.add_decayed_weights(o.weight_decay, decayed), optax.scale_by_learning_rate(rate)
    )
