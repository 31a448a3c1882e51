"""Data parallelism: the only file that knows `jax.pmap`, devices and processes.

The state is replicated without a leading device axis; each device gets its part of the batch on axis 0. Several
processes run the same command after `initialize`; a step then spans all their devices.
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
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qualiclip_jax.errors import UserError
from qualiclip_jax.training.state import Recipe

AXIS = "devices"
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
    add = jax.pmap(lambda x: jax.lax.psum(x, AXIS), axis_name=AXIS)
    add(np.ones(jax.local_device_count(), np.float32)).block_until_ready()
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


def parallel_step(step: Callable[..., T], recipe: Recipe, devices: Devices = None) -> Callable[..., T]:
    """Compiles `step(state, batch, recipe=..., axis_name=...)` to run on all devices of all processes.

    Args:
      step: `training.step.train_step` or a function like it.
      recipe: the constants of the run.
      devices: to use these alone, in a single process.

    Returns:
      A function of (state, batch) with batch leaves [local devices, b, ...]; the state passed in is donated.
    """
    bound = functools.partial(step, recipe=recipe, axis_name=AXIS)
    return jax.pmap(bound, axis_name=AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0, devices=devices)


def put_batch(batch: dict[str, np.ndarray], devices: Devices = None) -> dict[str, jax.Array]:
    """Sends this process's part of a batch to its devices: leaves [n, ...] become [local devices, n / devices, ...]."""
    mesh = _local_mesh(devices)
    split = {name: x.reshape(mesh.size, -1, *x.shape[1:]) for name, x in batch.items()}
    return jax.device_put(split, NamedSharding(mesh, PartitionSpec(AXIS)))


def replicate(tree: Any, devices: Devices = None) -> Any:
    """Puts a copy of every array on every device of this process (`tree` is the same on all processes)."""
    return jax.device_put(tree, NamedSharding(_local_mesh(devices), PartitionSpec()))


def _local_mesh(devices: Devices) -> Mesh:
    return Mesh(np.array(devices or jax.local_devices()), (AXIS,))


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
    return isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in CONNECTION_WORDS)


def leave(status: int) -> NoReturn:
    """Ends this process at once with an exit status, after a failure.

    At an ordinary exit JAX waits, for minutes, until the other processes exit too; they may be waiting for this one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if is_primary():
        time.sleep(2)  # it serves the others: those that fail for the same reason may say so first
    os._exit(status)
