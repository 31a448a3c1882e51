"""The 24 degradations of QualiCLIP at 5 levels, as pure JAX functions of float32 RGB images [..., H, W, 3] in [0, 1].

`degrade` applies one type by name, `degrade_pairs` makes what a training step needs. The functions behind them are
public too: modules `blur`, `color`, `compression`, `noise`, `brightness`, `spatial` and `contrast`, one a group.

Importing the package is cheap: the functions are looked up on first use.
"""

from typing import Any

from qualiclip_jax.degradations.catalog import GROUPS, LEVELS, PARAMETERS, TYPES

__all__ = ["GROUPS", "LEVELS", "PARAMETERS", "TYPES", "degrade", "degrade_pairs", "sample_types"]


def __getattr__(name: str) -> Any:
    if name in ("degrade", "degrade_pairs", "sample_types"):
        from qualiclip_jax.degradations import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
