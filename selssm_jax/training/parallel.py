"""Data parallelism, the only file that says pmap: a batch is split along its rows, and the state has no device axis."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from selssm_jax.errors import InputError

AXIS = "data"


def choose_devices(count: int, rows: int) -> list[jax.Device]:
    """Returns the first `count` devices (0: all of them) to share the `rows` of one micro-batch; of several processes,
    each gives as many as the others.

    Raises:
      InputError: if there are fewer devices, or they cannot share the rows equally.
    """
    processes = jax.process_count()
    each, rest = divmod(count, processes)
    available = [jax.local_devices(process) for process in range(processes)]
    fewest = min(map(len, available))
    if rest:
        raise InputError(
            f"training.devices={count} are not shared equally by {processes} processes: use a multiple of {processes}, "
            "or 0 for all there are"
        )
    if each > fewest:
        raise InputError(
            f"training.devices={count}, but {_say_available(processes, fewest)} {available[0][0].platform} device(s): "
            "use at most that, or 0 for all there are"
        )
    devices = [device for local in available for device in local[: each or fewest]]
    if rows % len(devices):
        raise InputError(
            f"data.batch_size over optimizer.accumulate is {rows}, which {len(devices)} devices cannot share equally: "
            f"use a multiple of {len(devices)}, or set training.devices"
        )
    return devices


def _say_available(processes: int, fewest: int) -> str:
    return f"this machine has {fewest}" if processes == 1 else f"a process of {processes} has {fewest}"


def layout(devices: list[jax.Device]) -> jax.sharding.Sharding:
    """Returns where the state lives between steps: on the device, or whole on each of those of this process."""
    local = choose_local(devices)
    if len(devices) == 1:
        return jax.sharding.SingleDeviceSharding(devices[0])
    return jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(local), (AXIS,)), jax.sharding.PartitionSpec())


def choose_local(devices: list[jax.Device]) -> list[jax.Device]:
    """Returns those devices that are this process's."""
    return [device for device in devices if device.process_index == jax.process_index()]


def data_parallel(
    step: Callable[..., Any], devices: list[jax.Device], *, remat: bool = False
) -> Callable[[Any, Any], Any]:
    """Returns `(state, batch) -> (state, ...)` that runs `step(state, batch, axis=...)` on all devices, each with its
    rows.

    `step` sums over devices by `total(x, axis)`, so that every device returns the same, and one copy comes back. The
    state given is used up: its memory holds the next one. One device needs no collectives and has plain jit. remat: see
    `compiler_options`; several devices that are CPUs do not read it.
    """
    if len(devices) == 1:
        return jax.jit(partial(step, axis=None), donate_argnums=0, compiler_options=compiler_options(remat=remat))
    mapped, local = map_step(step, devices), len(choose_local(devices))
    return lambda state, batch: mapped(state, jax.tree.map(partial(_share, local), batch))


def map_step(step: Callable[..., Any], devices: list[jax.Device]) -> Any:
    """Returns the step on several devices, (state, batch with an axis of devices first) -> (state, ...). It can be
    lowered for devices that are not there.
    """
    return jax.pmap(partial(step, axis=AXIS), AXIS, in_axes=(None, 0), out_axes=None, devices=devices, donate_argnums=0)


def compiler_options(*, remat: bool) -> dict[str, str] | None:
    """Returns what XLA must be told for a model that recomputes its activations; nothing but on a CPU.

    There it drops the barrier between a value and the same value recomputed, and merges the two: nothing would be
    saved.
    """
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if remat and jax.default_backend() == "cpu" else None


def total(tree: Any, axis: str | None) -> Any:
    """Returns the sum over devices."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def device_number(axis: str | None) -> jax.Array | int:
    """Returns the number of this device, in the order of the rows that devices have."""
    return 0 if axis is None else jax.lax.axis_index(axis)


def one_copy(tree: Any) -> Any:
    """Returns the arrays of a tree as one device holds them, without copying."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _share(count: int, rows: Any) -> Any:
    return rows.reshape(count, -1, *rows.shape[1:])
