"""Data parallelism, the only file that says pmap: the state has no device axis, a batch is cut along its rows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from selssm_jax.errors import InputError

AXIS = "data"


def choose_devices(count: int, batch_size: int) -> list[jax.Device]:
    """Returns the first `count` local devices (0: all of them). Raises InputError if they or the rows do not suffice."""
    available = jax.local_devices()
    if count > len(available):
        raise InputError(f"training.devices={count}, but this machine has {len(available)} {available[0].platform} device(s): use 0 for all there are")
    devices = available[: count or len(available)]
    if batch_size % len(devices):
        raise InputError(
            f"data.batch_size over optimizer.accumulate is {batch_size}, which {len(devices)} devices cannot share equally: "
            f"use a multiple of {len(devices)}, or set training.devices"
        )
    return devices


def data_parallel(step: Callable[..., Any], devices: list[jax.Device]) -> Callable[[Any, Any], Any]:
    """Returns `(state, batch) -> ...` that runs `step(state, batch, axis=...)` on all devices, each with its share of the rows.

    `step` sums over devices by `total(x, axis)`, so that every device returns the same, and one copy comes back. On one
    device it is plain jit with a donated state.
    """
    if len(devices) == 1:
        return jax.jit(partial(step, axis=None), donate_argnums=0)
    mapped = jax.pmap(partial(step, axis=AXIS), AXIS, in_axes=(None, 0), out_axes=None, devices=devices)
    return lambda state, batch: mapped(state, jax.tree.map(partial(_share, len(devices)), batch))


def total(tree: Any, axis: str | None) -> Any:
    """Returns the sum over devices."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def on_device(key: jax.Array, axis: str | None) -> jax.Array:
    """Returns a key of this device's own."""
    return key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))


def _share(count: int, rows: Any) -> Any:
    return rows.reshape(count, -1, *rows.shape[1:])
