"""What a recurrence may not see: selected away, never multiplied by zero, for zero times what is not finite is no zero.

A factor of exactly 0 forgets: a reset is one. So a state that is not finite ends there, on every platform and by every
method, and so do its gradients.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Inexact


def multiply_state(factor: Inexact[Array, "..."], state: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """Returns factor * state, of shapes that broadcast, 0 where the factor is 0, whatever the state is."""
    # that the state waits for less: half the cost of a selection after the product
    return factor * jnp.where(factor == 0, 0, state)


def multiply_cotangent(factor: Inexact[Array, "..."], cotangent: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """Returns factor * cotangent, 0 where either is 0, whatever the other is: a step that nothing reads says nothing of
    what came before.
    """
    return jnp.where((factor == 0) | (cotangent == 0), 0, factor * cotangent)


def finite(values: Inexact[Array, "*s"]) -> Inexact[Array, "*s"]:
    """Returns the values with 0 in place of what is not finite: for products with masks. Its gradient is 0 there."""
    return jnp.where(jnp.isfinite(values), values, 0)


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Returns whether every number of a tree is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def choose_rows(chosen: Bool[Array, "B"], new: Any, old: Any) -> Any:
    """Returns a tree of arrays (B, ...) with the rows of `new` where `chosen`, else those of `old`, in its dtypes."""
    return jax.tree.map(
        lambda one, other: jnp.where(chosen.reshape(-1, *[1] * (other.ndim - 1)), one, other).astype(other.dtype),
        new,
        old,
    )


def hide_rows(flags: Bool[Array, "B"], tree: Any) -> Any:
    """Returns a tree of arrays (B, ...) that are 0 in the rows that are flagged, whatever was there."""
    return choose_rows(flags, jax.tree.map(jnp.zeros_like, tree), tree)


def find_lost_sequences(
    steps: Sequence[Array], before: Array, reset: Bool[Array, "B T"], dy: Array, dlast: Array
) -> Bool[Array, "B"]:
    """Returns of which sequences a step is read that sees what is not finite: their gradients are no numbers.

    A step sees itself, those before it since the last reset, and the state before all, where no reset lies between.

    Args:
      steps: what steps read, (B, T, ...) each. before: the state before them, (B, ...). dy, dlast: cotangents of the
        outputs, (B, T, ...), and of the last state, (B, ...); of 0 where nothing is read.
    """
    bad = ~functools.reduce(jnp.logical_and, [_each(jnp.isfinite(value), jnp.all, 2) for value in steps])
    number = jnp.arange(1, bad.shape[1] + 1)[None]
    start = jnp.where(_each(jnp.isfinite(before), jnp.all, 1), -1, 0)[:, None]
    last_bad = lax.cummax(jnp.where(bad, number, start), axis=1)
    seen = last_bad >= lax.cummax(jnp.where(reset, number, 0), axis=1)
    return (seen & _each(dy != 0, jnp.any, 2)).any(axis=1) | seen[:, -1] & _each(dlast != 0, jnp.any, 1)


def _each(values: Array, reduction: Callable[..., Array], leading: int) -> Array:
    """All or any over all axes but the leading ones."""
    return reduction(values, axis=tuple(range(leading, values.ndim)))


def poison(values: Inexact[Array, "..."], bad: Bool[Array, "..."]) -> Inexact[Array, "..."]:
    """Returns the values with NaN where they are bad; a sum, so that a gradient that reads such a value is no number
    either.
    """
    return values + jnp.where(bad, jnp.nan, 0).astype(values.dtype)


def composed_or_stepped(
    safe: Bool[Array, ""], composed: Callable[..., Any], stepped: Callable[..., Any], *operands: Any
) -> Any:
    """Returns composed(*operands) where it is safe to compose steps, else stepped(*operands), which always is.

    A loop of at most one turn, and no `lax.cond`: that becomes a selection under `jax.vmap`, and both ways would always
    be run.
    """
    turn = lax.while_loop(
        lambda carry: carry[0], lambda carry: (carry[0] & False, stepped(*operands)), (~safe, composed(*operands))
    )
    return turn[1]


def zeros_beside(shape: Sequence[Any], like: Any, dtype: Any) -> Array:
    """Returns zeros for the carry of a loop that reads the tree `like`: they vary over the mesh axes that it varies
    over.
    """
    return vary_alike((jnp.zeros(shape, dtype), like))[0]


def vary_alike(tree: Any) -> Any:
    """Returns the arrays of a tree as all varying over the mesh axes that any of them varies over, inside
    `jax.shard_map`; elsewhere as they are.

    The carries of a loop and the cotangents of a custom gradient must agree in that. It is said by adding a zero that
    depends on all of them: the casts of `jax.lax` that say it have another name in every few versions.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    zero = sum((leaf.ravel()[:0] != 0).sum(dtype=jnp.int32) for leaf in jax.tree.leaves(tree))
    return jax.tree.map(
        lambda leaf: leaf ^ (zero != 0) if leaf.dtype == jnp.bool_ else leaf + zero.astype(leaf.dtype), tree
    )


def name_residuals(tree: Any) -> Any:
    """Returns the arrays of a tree as what a custom gradient saves; they are what they were.

    JAX (0.8 to 0.12) finds what is saved of the inputs again by its number among them, and counts amiss where a loop
    around hoists a constant out of the function: second derivatives inside `lax.scan` read other arrays then. What has
    a name is no input.
    """
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, "residual"), tree)
