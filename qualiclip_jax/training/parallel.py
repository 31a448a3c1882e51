"""Devices and processes: the only file that knows them.

A run is spread over devices in one of two ways, `Pmap` or `Fsdp`: it places states and batches, and compiles the step.
Several processes run the same command after `initialize`; a step then spans all their devices.
"""

import functools
import os
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from qualiclip_jax.errors import UserError
from qualiclip_jax.training.state import Parameters, Recipe, TrainState

PMAP, FSDP = "pmap", "fsdp"  # values of `config.parallel`
AXIS = "devices"  # of `Pmap`
MESH_AXES = DATA, MODEL = "data", "model"  # of `Fsdp`
PIECE = 2**22  # bytes sent at once between processes
CONNECTION_WORDS = ("Gloo", "Connection", "UNAVAILABLE", "heartbeat")  # in errors after the end of another process

T = TypeVar("T")
Devices = Sequence[jax.Device] | None  # None: all


def initialize() -> None:
    """Joins the processes of one run, before the first use of a device; does nothing in a single process.

    Processes started by `launch/local.py` say who they are in QUALICLIP_COORDINATOR (host:port), QUALICLIP_PROCESSES
    and QUALICLIP_PROCESS. With QUALICLIP_COORDINATOR=auto JAX finds it out: on TPU pods, under Slurm and Open MPI. In a
    Slurm step of several tasks that is the default.

    Raises:
      UserError: if the variables do not say who the processes are. JAX ends a process that does not reach the others.
    """
    coordinator = os.environ.get("QUALICLIP_COORDINATOR", "auto" if _in_slurm_step() else "")
    if not coordinator or jax.distributed.is_initialized():
        return
    if coordinator != "auto":
        processes, process = _count_and_index()
        jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)
    else:
        try:
            jax.distributed.initialize()
        except ValueError:  # JAX knows no such place
            raise UserError(
                "QUALICLIP_COORDINATOR=auto, but this is no TPU pod and no Slurm or Open MPI step: say who the "
                "processes are, see launch/README.md"
            ) from None
    _connect()


def _count_and_index() -> tuple[int, int]:
    values = [os.environ.get(f"QUALICLIP_{name}", "") for name in ("PROCESSES", "PROCESS")]
    if not all(value.isdigit() for value in values) or int(values[1]) >= int(values[0]):
        raise UserError(
            f"QUALICLIP_PROCESSES is {values[0]!r} and QUALICLIP_PROCESS is {values[1]!r}: they must say how many "
            "processes there are, and which one this is, from 0"
        )
    return int(values[0]), int(values[1])


def _in_slurm_step() -> bool:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def _connect() -> None:
    """Connects all devices while all processes are here: later, CPUs would wait only half a minute for each other."""
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    ones = np.ones(jax.local_device_count(), np.float32)
    spread_out = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(AXIS)), ones)
    jax.jit(jax.numpy.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(spread_out).block_until_ready()
    from_primary(lambda: None)


def is_alone() -> bool:
    """Whether this is the only process of the run."""
    return jax.process_count() == 1


def is_primary() -> bool:
    """Whether this process is the one that prints and writes files."""
    return jax.process_index() == 0


def check_batch(batch_size: int, accumulate: int) -> None:
    """Checks that the batch splits evenly over devices and micro-batches.

    Raises:
      UserError: naming the nearest sizes that do.
    """
    parts = jax.device_count() * accumulate
    if batch_size % parts:
        lower = batch_size // parts * parts
        sizes = f"{lower} or {lower + parts}" if lower else f"{parts}"
        raise UserError(
            f"config.batch_size is {batch_size}, which does not divide over {jax.device_count()} devices"
            f"{f' x {accumulate} micro-batches' if accumulate > 1 else ''}: take {sizes}"
        )


class Pmap:
    """Data parallelism by `jax.pmap`: a copy of the state on every device, each with its part of the batch.

    Args:
      devices: to use these alone, in a single process.
    """

    def __init__(self, devices: Devices = None):
        self._devices = devices
        self._mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))

    def compile(self, step: Callable[..., T], recipe: Recipe) -> Callable[..., T]:
        """Compiles `step(state, batch, recipe=..., axis_name=...)` to run on all devices of all processes.

        Args:
          step: `training.step.train_step` or a function like it.
          recipe: the constants of the run.

        Returns:
          A function of what `put_state` and `put_batch` give; the state passed in is donated.
        """
        bound = functools.partial(step, recipe=recipe, axis_name=AXIS)
        places: dict[str, Any] = {"in_axes": (None, 0), "out_axes": None, "devices": self._devices}
        return jax.pmap(bound, axis_name=AXIS, donate_argnums=0, **places)

    def put_state(self, state: TrainState) -> TrainState:
        """Puts a copy of a state, the same on all processes, on every device; it has no leading device axis."""
        placed: TrainState = jax.device_put(state, NamedSharding(self._mesh, PartitionSpec()))
        return placed

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Sends this process's part of a batch to its devices: leaves [n, ...] become [devices, n / devices, ...]."""
        split = {name: x.reshape(self._mesh.size, -1, *x.shape[1:]) for name, x in batch.items()}
        return jax.device_put(split, NamedSharding(self._mesh, PartitionSpec(AXIS)))

    def fetch(self, tree: T) -> T:
        """Arrays of a state that each process can read by itself; all processes must call it."""
        return tree


class Fsdp:
    """Fully sharded data parallelism: parameters and optimizer are spread over the devices too, by `jax.jit` on a mesh.

    The mesh has the axes "data" and "model". The devices along "model" hold one state together: of an array with two
    axes or more, each has a part of the last axis where that divides. The batch is spread over all devices. A parameter
    is gathered where a layer reads it, and its gradient is added up where it is held.

    Args:
      shards: devices along "model"; 0 for all.
      devices: to use these alone, in a single process.

    Raises:
      UserError: if `shards` does not divide the devices.
    """

    def __init__(self, shards: int = 0, devices: Devices = None):
        chosen = list(devices or jax.devices())
        shards = shards or len(chosen)
        if len(chosen) % shards:
            raise UserError(f"config.shards is {shards}, which does not divide the {len(chosen)} devices")
        types = (AxisType.Auto,) * 2
        self._shards = shards
        self._mesh = jax.make_mesh((len(chosen) // shards, shards), MESH_AXES, types, devices=chosen)

    def compile(self, step: Callable[..., T], recipe: Recipe) -> Callable[..., T]:
        """As `Pmap.compile`; the step, which gives (state, metrics), gets `over_devices` too."""
        bound: Callable[..., Any] = functools.partial(
            step, recipe=recipe, axis_name=MESH_AXES, over_devices=self._over_devices
        )

        def on_mesh(state: TrainState, batch: dict[str, jax.Array]) -> Any:
            after, metrics = bound(state, batch)
            return jax.lax.with_sharding_constraint(after, self.shardings(after)), metrics

        return jax.jit(on_mesh, donate_argnums=0)

    def shardings(self, state: TrainState) -> TrainState:
        """Where the arrays of a state are, as a tree of `NamedSharding`; their shapes suffice."""
        places = jax.tree.map(lambda x: NamedSharding(self._mesh, self._spec(x)), state)
        whole = jax.tree.map(lambda _: NamedSharding(self._mesh, PartitionSpec()), state.batch_stats)
        teacher = jax.tree.map(lambda _: NamedSharding(self._mesh, PartitionSpec()), state.teacher)
        return places.replace(batch_stats=whole, teacher=teacher)

    def put_state(self, state: TrainState) -> TrainState:
        """Gives every device its part of a state, which is the same on all processes."""

        def put(x: Any, place: NamedSharding) -> jax.Array:
            host = np.asarray(x)
            return jax.make_array_from_callback(host.shape, place, lambda part: np.array(host[part]))

        placed: TrainState = jax.tree.map(put, state, self.shardings(state))
        return placed

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Sends this process's part of a batch to its devices; the arrays are those of the whole batch."""
        place = NamedSharding(self._mesh, PartitionSpec(MESH_AXES))
        return {name: jax.make_array_from_process_local_data(place, x) for name, x in batch.items()}

    def fetch(self, tree: T) -> T:
        """Arrays of a state that each process can read by itself; all processes must call it."""
        return tree if is_alone() else multihost_utils.process_allgather(tree, tiled=True)

    def _spec(self, x: Any) -> PartitionSpec:
        if x.ndim < 2 or x.shape[-1] % self._shards:
            return PartitionSpec()
        return PartitionSpec(*[None] * (x.ndim - 1), MODEL)

    def _over_devices(self, gradients: Callable[..., Any]) -> Callable[..., Any]:
        """Runs `gradients(params, batch_stats, teacher, batch)` on every device for its part of the batch; averages."""

        def over_devices(params: Parameters, batch_stats: Parameters, teacher: Any, batch: dict[str, jax.Array]) -> Any:
            specs = jax.tree.map(self._spec, params)

            def on_device(params: Parameters, batch_stats: Parameters, teacher: Any, batch: Any) -> Any:
                gathering = jax.tree.map(_gathering, params, specs, is_leaf=lambda x: isinstance(x, nnx.Variable))
                gradient, *rest = gradients(gathering, batch_stats, teacher, batch)
                gradient = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(gradient))
                return jax.tree.map(self._mean, gradient, specs), *jax.lax.pmean(rest, MESH_AXES)

            whole = PartitionSpec()
            return jax.shard_map(
                on_device,
                mesh=self._mesh,
                in_specs=(specs, whole, whole, PartitionSpec(MESH_AXES)),
                out_specs=(specs, whole, whole),
                check_vma=False,
            )(params, batch_stats, teacher, batch)

        return over_devices

    def _mean(self, gradient: jax.Array, spec: PartitionSpec) -> jax.Array:
        """The mean over devices; of a part it is the sum along "model" already, as the gradient of a gathering is."""
        if MODEL in spec:
            return jax.lax.pmean(gradient, DATA) / self._shards
        return jax.lax.pmean(gradient, MESH_AXES)


def _gathering(parameter: nnx.Variable[Any], spec: nnx.Variable[Any]) -> nnx.Variable[Any]:
    """A parameter of which this device holds a part, and which is whole where it is read."""
    return parameter.replace(on_get_value=_gather) if MODEL in spec.get_raw_value() else parameter


def _gather(_: nnx.Variable[Any], part: jax.Array) -> jax.Array:
    return jax.lax.all_gather(part, MODEL, axis=part.ndim - 1, tiled=True)


Spread = Pmap | Fsdp


def spread(config: ConfigDict) -> Spread:
    """How a run is spread over all devices, see `config.parallel`."""
    return Fsdp(config.shards) if config.parallel == FSDP else Pmap()


def from_primary(compute: Callable[[], T]) -> T:
    """What `compute()` gives on the primary process, on every process (all must call it); the others do not compute.

    So files are read and written by one process alone, and a disk of its own serves each.

    Raises:
      UserError: on every process, if `compute` raises it on the primary one.
    """
    if is_alone():
        return compute()
    result = error = None
    if is_primary():
        try:
            result = compute()
        except UserError as raised:
            error = raised
    result, error = pickle.loads(_broadcast(pickle.dumps((result, error)) if is_primary() else b""))
    if error is not None:
        raise error
    return result


def _broadcast(payload: bytes) -> bytes:
    """The primary's bytes on every process, sent in pieces of one size (so that one compilation serves all)."""
    size = multihost_utils.broadcast_one_to_all(np.array(divmod(len(payload), PIECE), np.uint32))
    whole, rest = map(int, size)
    pieces = []
    for start in range(0, whole * PIECE + rest, PIECE):
        piece = np.zeros(PIECE, np.uint8)
        mine = np.frombuffer(payload[start : start + PIECE], np.uint8)
        piece[: mine.size] = mine
        pieces.append(multihost_utils.broadcast_one_to_all(piece).tobytes())
    return b"".join(pieces)[: whole * PIECE + rest]


def preempted(step: int) -> bool:
    """Whether the processes of a multi-process run have agreed to stop at this step, after a SIGTERM to any of them.

    To be called at every step: they agree on one that none has reached yet.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def lost_others(error: Exception) -> bool:
    """Whether an error means that another process of the run has ended."""
    kinds = jax.errors.JaxRuntimeError | ValueError  # the second where JAX waits for a program on a CPU
    return isinstance(error, kinds) and any(word in str(error) for word in CONNECTION_WORDS)


def leave(status: int) -> NoReturn:
    """Ends this process at once with an exit status, after a failure.

    At an ordinary exit JAX waits, for minutes, until the other processes exit too; they may be waiting for this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():
        time.sleep(2)  # it serves the others: those that fail for the same reason may say so first
    os._exit(status)
