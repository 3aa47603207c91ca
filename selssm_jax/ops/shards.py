"""A sequence that several devices share, exactly: each holds as many consecutive steps as the others (theory, section
13).

Inside `jax.shard_map` over a mesh with an axis named `AXIS`, recurrences, convolutions and attention of the package
take their arrays for shards of one sequence, in the order of that axis. A state that is given is the one before the
first step of all, and one that is returned is the one after the last, on every device. Anywhere else there is one
shard, and nothing here does anything.

Gradients are those of the sum of what all devices return, each with a copy of its own of what is the same on all.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from selssm_jax.ops.boundaries import finite, vary_alike

AXIS = "sequence"


def count() -> int:
    """Returns the number of shards."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[AXIS] if AXIS in mesh.manual_axes else 1


def number() -> Array | int:
    """Returns the number of this device's shard, from 0."""
    return lax.axis_index(AXIS) if count() > 1 else 0


def carry(
    run: Callable[[Array], tuple[Any, Array]],
    decay: Callable[[], Array],
    start: Array,
    *,
    multiply: Callable[[Array, Array], Array] = jnp.multiply,
    reverse: bool = False,
) -> tuple[Any, Array]:
    """Returns (outputs of this shard, the state after all) of a recurrence that is linear in its state.

    Each shard runs from 0 to its last state L_i; all gather (P_i, L_i), P_i what the shard leaves of the state before
    it; s_{i+1} = P_i s_i + L_i is the state that the next one runs from once more. All that is lost to this is a P that
    leaves the range of numbers, of factors above 1.

    Args:
      run: state before the shard -> (outputs, state after it). decay: gives P. start: the state before all.
      multiply: (P, s) -> P s; of what is no number P = 0 leaves nothing. reverse: the last shard is the first.
    """
    if count() == 1:
        return run(start)
    shares = lax.all_gather(decay(), AXIS), lax.all_gather(run(jnp.zeros_like(start))[1], AXIS)
    start, shares = vary_alike((start, shares))

    def fold(state: Array, share: tuple[Array, Array]) -> tuple[Array, Array]:
        decay, own = share
        forgotten = (decay == 0) if decay.ndim == state.ndim else (decay == 0).all(axis=-2)
        # no selection after the product: a factor of 0 that is a shut gate has a gradient
        return multiply(decay, jnp.where(forgotten, finite(state), state)) + own, state

    end, before = lax.scan(fold, start, shares, reverse=reverse)
    return run(before[number()])[0], end


def pass_on(after: Callable[[Any], Any], start: Any, *, span: int, steps: int) -> tuple[Any, Any]:
    """Returns (the state before this shard, that after all), where a state says nothing of what is more than `span`
    steps old.

    Args:
      after: state before the shard -> state after it. start: the state before all. steps: of a shard.
    """
    before = start
    for _ in range(min(count() - 1, -(-span // steps))):
        before = _permute(after(before), start)
    return before, last(after(before))


def previous(values: Array, start: Array, *, axis: int) -> Array:
    """Returns values of all steps, an axis of the array, one step later, after `start`, which has no such axis."""
    ending = lax.index_in_dim(values, -1, axis, keepdims=True)
    first = from_left(ending, jnp.expand_dims(start, axis).astype(values.dtype))
    return jnp.concatenate([first, lax.slice_in_dim(values, 0, -1, axis=axis)], axis=axis)


def last(tree: Any) -> Any:
    """Returns what the last shard holds."""
    if count() == 1:
        return tree
    return total(jax.tree.map(lambda leaf: jnp.where(number() == count() - 1, leaf, jnp.zeros_like(leaf)), tree))


def total(tree: Any) -> Any:
    """Returns the sum over shards."""
    return lax.psum(tree, AXIS) if count() > 1 else tree


def largest(values: Array) -> Array:
    """Returns the largest value over shards; it has no gradient."""
    return lax.pmax(lax.stop_gradient(values), AXIS) if count() > 1 else values


def largest_before(values: Array, start: Array) -> Array:
    """Returns the largest of `start` and of the values on the shards before this one; it has no gradient."""
    if count() == 1:
        return start
    before = (jnp.arange(count()) < number()).reshape(-1, *[1] * values.ndim)
    return jnp.maximum(start, jnp.where(before, lax.all_gather(lax.stop_gradient(values), AXIS), 0).max(axis=0))


def every(flags: Bool[Array, "*s"]) -> Bool[Array, "*s"]:
    """Returns whether a flag is set on all shards."""
    return lax.pmin(flags.astype(jnp.int32), AXIS) > 0 if count() > 1 else flags


def mean(values: Array, *, axis: int, where: Array | None = None) -> Array:
    """Returns the mean over the steps of all shards, an axis that is kept, of those that `where` chooses."""
    if count() == 1:
        return values.mean(axis=axis, keepdims=True, where=where)
    chosen = jnp.ones_like(values, bool) if where is None else jnp.broadcast_to(where, values.shape)
    added = (jnp.where(chosen, values, 0), chosen.astype(values.dtype))
    above, below = total(jax.tree.map(lambda part: part.sum(axis=axis, keepdims=True), added))
    return above / below


def later(flags: Bool[Array, "*s"]) -> Bool[Array, "*s"]:
    """Returns whether a flag is set on any shard behind this one."""
    if count() == 1:
        return jnp.zeros_like(flags)
    behind = jnp.arange(count()) > number()
    return (lax.all_gather(flags, AXIS) & behind.reshape(-1, *[1] * flags.ndim)).any(axis=0)


def from_left(value: Array, start: Array) -> Array:
    """Returns what the shard to the left holds; `start` on the first.

    For what is small, inside a loop of any number of turns: a permutation waits for all devices, those of other
    sequences too, which may take another number; a gathering does not.
    """
    if count() == 1:
        return start
    return jnp.where(number() == 0, start, lax.all_gather(value, AXIS)[number() - 1])


def _permute(tree: Any, start: Any) -> Any:
    """What the shard to the left holds; `start` on the first."""
    passed = lax.ppermute(tree, AXIS, [(i, i + 1) for i in range(count() - 1)])
    return jax.tree.map(lambda first, left: jnp.where(number() == 0, first, left), start, passed)
