"""A CLIP as plain data and back: its config as JSON types, its parameters as nested dicts of arrays."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qualiclip_jax.errors import UserError
from qualiclip_jax.models.clip import CLIP
from qualiclip_jax.models.clip_config import CLIPConfig
from qualiclip_jax.models.layers import without_values

Shape = tuple[int, ...]


class Skeleton:
    """A CLIP without values.

    Attributes:
      config: what it was built from.
      shapes: of its parameters, by path; the parts of a path are joined by "/".
    """

    def __init__(self, config: CLIPConfig):
        self.config = config
        self._graph, leaves = _structure(config)
        self._leaves = {"/".join(map(str, path)): (path, leaf) for path, leaf in leaves}
        self.shapes: dict[str, Shape] = {name: leaf.shape for name, (_, leaf) in self._leaves.items()}

    def filled(self, arrays: Mapping[str, Any]) -> CLIP:
        """The CLIP with these parameters: arrays by path, float (NumPy, JAX, or abstract `jax.ShapeDtypeStruct`)."""
        leaves = [(path, leaf.replace(_float32(arrays[name]))) for name, (path, leaf) in self._leaves.items()]
        return nnx.merge(self._graph, nnx.from_flat_state(leaves))


@functools.lru_cache(maxsize=16)
def _structure(config: CLIPConfig) -> tuple[nnx.GraphDef[CLIP], tuple[tuple[Any, nnx.Variable[Any]], ...]]:
    """The modules of a CLIP, and its abstract parameters by path."""
    with without_values():
        graph, state = nnx.split(nnx.eval_shape(lambda: CLIP(config, rngs=nnx.Rngs(0))))
    return graph, tuple(nnx.to_flat_state(state))


def to_pure(clip: CLIP) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config as a dict of JSON types, and the parameters as nested dicts of arrays with string keys."""

    def strings(tree: Any) -> Any:
        return {str(key): strings(value) for key, value in tree.items()} if isinstance(tree, dict) else tree

    return clip.config.to_dict(), strings(nnx.to_pure_dict(nnx.state(clip)))


def from_pure(config: CLIPConfig | dict[str, Any], arrays: dict[str, Any]) -> CLIP:
    """The CLIP of a config and parameters; the inverse of `to_pure`.

    Args:
      config: a `CLIPConfig`, or what its `to_dict` gives.
      arrays: nested dicts of float arrays (NumPy, JAX, or abstract `jax.ShapeDtypeStruct`).

    Raises:
      UserError: naming every entry that is missing, not used or of another shape.
    """
    skeleton = Skeleton(config if isinstance(config, CLIPConfig) else CLIPConfig.from_dict(config))
    given = by_path(arrays)
    check_shapes("model", skeleton.shapes, {name: leaf.shape for name, leaf in given.items()})
    return skeleton.filled(given)


def by_path(tree: dict[str, Any]) -> dict[str, Any]:
    """The leaves of nested dicts; the parts of a path are joined by "/"."""
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.traversals.flatten_mapping(tree).items()}


def check_shapes(what: str, wanted: Mapping[str, Shape], given: Mapping[str, Shape]) -> None:
    """Raises a UserError that names every missing, unused and misshapen tensor, if there is one."""
    faults = {
        "missing": sorted(wanted.keys() - given.keys()),
        "not used": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(given[name])} instead of {tuple(wanted[name])}"
            for name in sorted(wanted.keys() & given.keys())
            if tuple(wanted[name]) != tuple(given[name])
        ],
    }
    listed = "; ".join(f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names)
    if listed:
        raise UserError(f"{what}: the tensors do not fit the architecture. {listed}")


def _float32(array: Any) -> Any:
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(array.shape, jnp.float32)
    return jnp.asarray(array if isinstance(array, jax.Array) else np.asarray(array, np.float32), jnp.float32)
