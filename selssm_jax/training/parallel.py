"""Several devices, the only file that says pmap or shard_map: a batch is split along its rows, on a mesh along the
steps of its sequences too, and the state has no device axis.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from selssm_jax.errors import InputError
from selssm_jax.ops import shards

AXIS = "data"


class Axes(NamedTuple):
    """The axes of a mesh, the groups that share rows first, and for each parameter which of its own axes the groups
    share; -1: none.
    """

    names: tuple[str, ...]
    split: Any


Layout = Callable[[Any], jax.sharding.Sharding]  # of an array of the state
Axis = str | Axes | None  # of the devices that take a step together: of pmap, of a mesh, or there is one


def choose_devices(count: int, rows: int, mesh: tuple[int, ...] = (0, 1)) -> list[jax.Device]:
    """Returns the first `count` devices (0: all of them, or as many as the mesh has) to share the `rows` of one
    micro-batch; of several processes, each gives as many as the others. mesh: training.mesh.

    Raises:
      InputError: if there are fewer devices, or they cannot share the rows equally or form the mesh.
    """
    processes, asked = jax.process_count(), f"training.devices={count}"
    if not count and mesh[0]:
        count, asked = mesh[0] * mesh[1], f"training.mesh={mesh}"
    each, rest = divmod(count, processes)
    available = [jax.local_devices(process) for process in range(processes)]
    fewest = min(map(len, available))
    if rest:
        raise InputError(
            f"{asked} are not shared equally by {processes} processes: use a multiple of {processes}, or 0 for all "
            "there are"
        )
    if each > fewest:
        raise InputError(
            f"{asked}, but {_say_available(processes, fewest)} {available[0][0].platform} device(s): use at most that, "
            "or 0 for all there are"
        )
    devices = [device for local in available for device in local[: each or fewest]]
    _check_mesh(mesh, len(devices), rows)
    return devices


def _check_mesh(mesh: tuple[int, ...], count: int, rows: int) -> None:
    groups, rest = divmod(count, mesh[1])
    if rest or groups != (mesh[0] or groups):
        raise InputError(
            f"training.mesh={mesh} cannot be made of {count} devices: use for example (0, 1), or "
            f"training.devices={(mesh[0] or 1) * mesh[1]}"
        )
    if rows % groups:
        what = "devices" if mesh[1] == 1 else f"groups of {mesh[1]} devices (training.mesh={mesh})"
        raise InputError(
            f"data.batch_size over optimizer.accumulate is {rows}, which {groups} {what} cannot share equally: "
            f"use a multiple of {groups}, or set training.devices"
        )


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


def total(tree: Any, axis: Axis) -> Any:
    """Returns the sum over devices."""
    return tree if axis is None else jax.lax.psum(tree, axis.names if isinstance(axis, Axes) else axis)


def device_number(axis: Axis) -> jax.Array | int:
    """Returns the number of this device, in the order of the rows that devices have; of one that shares its rows, that
    of its group.
    """
    return 0 if axis is None else jax.lax.axis_index(AXIS if isinstance(axis, Axes) else axis)


def gather(params: Any, axis: Axis) -> Any:
    """Returns parameters whole, of which each device may hold a part."""
    if not isinstance(axis, Axes):
        return params
    join = lambda leaf, at: leaf if at < 0 else jax.lax.all_gather(leaf, AXIS, axis=at, tiled=True)  # noqa: E731
    return jax.tree.map(join, params, axis.split)


def total_gradient(gradient: Any, axis: Axis) -> Any:
    """Returns the sum over devices of a gradient by what `gather` was given: by a part of a parameter it is summed over
    groups already.
    """
    if not isinstance(axis, Axes):
        return total(gradient, axis)
    add = lambda leaf, at: jax.lax.psum(leaf, axis.names if at < 0 else axis.names[1:])  # noqa: E731
    return jax.tree.map(add, gradient, axis.split)


def norm(gradient: Any, axis: Axis) -> jax.Array:
    """Returns the norm of a whole gradient, of which each device may hold a part."""
    if not isinstance(axis, Axes) or max(jax.tree.leaves(axis.split)) < 0:
        return optax.tree.norm(gradient)
    squares = jax.tree.map(lambda leaf: jnp.square(leaf).sum(), gradient)
    square = lambda leaf, at: leaf if at < 0 else jax.lax.psum(leaf, AXIS)  # noqa: E731
    return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map(square, squares, axis.split))))


def one_copy(tree: Any) -> Any:
    """Returns the arrays of a tree as one device holds them, without copying but for those that it holds a part of."""
    return jax.tree.map(lambda leaf: _whole(leaf).addressable_data(0), tree)


def _whole(leaf: Any) -> Any:
    if leaf.is_fully_replicated:
        return leaf
    return jax.jit(lambda leaf: leaf, out_shardings=NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)


def _share(count: int, rows: Any) -> Any:
    return rows.reshape(count, -1, *rows.shape[1:])


def build_mesh(devices: list[jax.Device], mesh: tuple[int, ...]) -> Mesh:
    """Returns devices in groups that share rows, the devices of a group next to one another, as training.mesh says.

    Raises:
      InputError: where a group would have devices of several processes.
    """
    local = len(choose_local(devices))
    if local % mesh[1]:
        raise InputError(
            f"training.mesh={mesh} lets {mesh[1]} devices share a sequence, and a process has {local}: a group is of "
            f"one process, so use a divisor of {local}"
        )
    return Mesh(np.array(devices).reshape(-1, mesh[1]), (AXIS, shards.AXIS))


def mesh_parallel(
    step: Callable[..., Any],
    mesh: Mesh,
    *,
    over_time: Callable[[Any], set[str]],
    shard_parameters: bool = False,
    remat: bool = False,
) -> Callable[[Any, Any], Any]:
    """Returns what `data_parallel` does, for devices of a mesh: each has rows of its group and, of what in a batch is
    named by `over_time`, its steps.

    The state lies between steps as `mesh_layout` says.
    """

    def split_batch(batch: Any) -> Any:
        spread = over_time(batch)
        return {name: PartitionSpec(AXIS, *([shards.AXIS] * (name in spread))) for name in batch}

    def take(state: Any, batch: Any) -> Any:
        spec = partial(_spec, mesh, shard_parameters)
        specs = jax.tree.map(spec, state)
        run = partial(step, axis=Axes(mesh.axis_names, jax.tree.map(lambda leaf: len(spec(leaf)) - 1, state.params)))
        given, returned = (specs, split_batch(batch)), (specs, PartitionSpec())
        return jax.shard_map(run, mesh=mesh, in_specs=given, out_specs=returned, check_vma=False)(state, batch)

    mapped = jax.jit(take, donate_argnums=0, compiler_options=compiler_options(remat=remat))

    def run(state: Any, batch: Any) -> Any:
        return mapped(state, {name: put(batch[name], spec) for name, spec in split_batch(batch).items()})

    def put(rows: Any, spec: PartitionSpec) -> jax.Array:
        if isinstance(rows, jax.core.Tracer):  # a program around this one says where they lie
            return rows
        return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), np.asarray(rows))

    return run


def place(tree: Any, layout: Layout) -> Any:
    """Returns a tree of whole arrays, the same in every process, where `layout` says that they live."""

    def put(leaf: Any) -> jax.Array:
        if layout(leaf).is_fully_addressable:
            return jax.device_put(leaf, layout(leaf))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, layout(leaf), lambda index: whole[index])

    return jax.tree.map(put, tree)


def mesh_layout(mesh: Mesh, *, shard_parameters: bool) -> Callable[[Any], NamedSharding]:
    """Returns where an array of the state lives between steps: whole on each device, or, of parameters and what the
    optimizer keeps of them, an equal part of it on each of the groups.
    """
    return lambda leaf: NamedSharding(mesh, _spec(mesh, shard_parameters, leaf))


def _spec(mesh: Mesh, shard_parameters: bool, leaf: Any) -> PartitionSpec:
    """Groups share the longest axis that they can, of numbers that are trained or of moments, which alone are no whole
    ones.
    """
    count = mesh.shape[AXIS] if shard_parameters and jnp.issubdtype(leaf.dtype, jnp.inexact) else 1
    sizes = [size if size % count == 0 else 0 for size in leaf.shape]
    if count == 1 or not any(sizes):
        return PartitionSpec()
    return PartitionSpec(*[None] * sizes.index(max(sizes)), AXIS)
