"""One step of the retain update that reads the rows of open components only (theory, section 9).

  h_i <- h_i + g_i ((A h)_i - h_i + (B x)_i)   for g_i > 0,        y = C h carried along by what changed

Of n components k are open: a dense step reads n rows of B and C, and of a dense A; a gathered one k of them. It is
worth it from the size and up to the share of open gates that benchmarks/records/gathered_step.json tells. Finding the
open ones costs a pass over n gates.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

BITS = 32  # gates of one word
CHUNK = 2**17  # numbers of the rows that are read at a time: what stays in a cache of a core
# rows of a chunk: each costs about a microsecond, and more on many cores, and what is not filled is wasted
FEWEST, MOST = 8, 512


class GatheredRows(NamedTuple):
    """Weights with one row a component, made by `gather_rows`: A, (N,) or (N, N); B_i and the column i of C side by
    side, (N, 2 D) for one read.
    """

    A: Float[Array, "N ..."]
    BC: Float[Array, "N E"]


class GatheredMemory(NamedTuple):
    """The state h, and C h, which follows it."""

    h: Float[Array, "N"]
    read: Float[Array, "D"]


def gather_rows(A: Float[Array, "_ ..."], B: Float[Array, "_ _"], C: Float[Array, "_ _"]) -> GatheredRows:
    """Returns the weights of h <- h + g (A h - h + x B), y = h C as a step reads them; to be done once, for it copies.

    A is (N,) if diagonal, else (N, N); B is (D, N), C is (N, D). Raises ValueError for shapes that do not fit.
    """
    n = len(A)
    if A.shape not in ((n,), (n, n)) or B.shape[1] != n or C.shape != B.shape[::-1]:
        raise ValueError(
            f"A, B and C have shapes {A.shape}, {B.shape} and {C.shape}, expected (N,) or (N, N), (D, N) and (N, D)"
        )
    return GatheredRows(A, jnp.concatenate([B.T, C], axis=1))


def refresh_memory(h: Float[Array, "N"], weights: GatheredRows) -> GatheredMemory:
    """Returns the memory of a state, C h computed anew from all rows."""
    return GatheredMemory(h, (h @ weights.BC)[weights.BC.shape[1] // 2 :])


def dense_step(
    memory: GatheredMemory, gate: Float[Array, "N"], x: Float[Array, "D"], weights: GatheredRows
) -> GatheredMemory:
    """The step that reads every row: the reference."""
    h = memory.h
    carried = weights.A @ h if weights.A.ndim == 2 else weights.A * h
    return refresh_memory(h + gate * (carried - h + weights.BC @ _beside_zeros(x)), weights)


def gathered_step(
    memory: GatheredMemory, gate: Float[Array, "N"], x: Float[Array, "D"], weights: GatheredRows, *, capacity: int
) -> GatheredMemory:
    """Returns the memory after one step of one sequence, from the rows of open components alone.

    A component whose gate is 0 keeps every bit. `read` follows by the changes, read + sum_i (h_i' - h_i) C_i, and so
    gathers the rounding of its sums: about 2e-7 sqrt(T) of its size after T steps in float32, which `refresh_memory`
    sets back to one rounding; so does every dense step.

    Args:
      gate: g in [0, 1], of which a share is exactly 0. x: the input.
      capacity: open gates up to which rows are gathered; a step of more is dense, so that the result is right whatever
        the gates do. GatheredMemory is set aside for so many; time goes with the gates that are open. Under `jax.vmap`
        both ways would be run: use `jax.lax.map` for a batch.

    Raises:
      ValueError: for a capacity that is not from 1 to N.
    """
    n = len(memory.h)
    if not 1 <= capacity <= n:
        raise ValueError(f"capacity={capacity} is no number of components: use one from 1 to {n}")
    places, count = _places(gate > 0)

    def step_gathered(memory: GatheredMemory) -> GatheredMemory:
        size = _rows_at_once(weights, capacity)
        length = -(-capacity // size) * size
        where = jnp.where(gate > 0, places, length)  # out of range: dropped
        active = jnp.full(length, n, jnp.int32).at[where].set(jnp.arange(n, dtype=jnp.int32), mode="drop")
        return _update(memory, gate, x, weights, active, count, size)

    if capacity == n:
        return step_gathered(memory)
    return lax.cond(count <= capacity, step_gathered, lambda memory: dense_step(memory, gate, x, weights), memory)


def _update(
    memory: GatheredMemory,
    gate: Array,
    x: Array,
    weights: GatheredRows,
    active: Int[Array, "K"],
    count: Int[Array, ""],
    size: int,
) -> GatheredMemory:
    """Steps the first `count` components of `active`, `size` at a time: their rows are used while they are near."""
    h = memory.h
    before, gate = h.at[active].get(mode="clip"), gate.at[active].get(mode="fill", fill_value=0)
    beside = _beside_zeros(x)
    carried = weights.A.at[active].get(mode="clip") * before if weights.A.ndim == 1 else jnp.zeros_like(before)

    def chunk(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        after, change = carry
        i, h_i, g_i, Ah_i = (
            lax.dynamic_slice(values, (index * size,), (size,)) for values in (active, before, gate, carried)
        )
        if weights.A.ndim == 2:
            Ah_i = weights.A.at[i].get(mode="clip") @ h
        row = weights.BC.at[i].get(mode="clip")
        moved = h_i + g_i * (Ah_i - h_i + row @ beside)
        return lax.dynamic_update_slice(after, moved, (index * size,)), change + (moved - h_i) @ row

    after, change = lax.fori_loop(0, (count + size - 1) // size, chunk, (before, jnp.zeros_like(beside)))
    h = h.at[active].set(after, mode="drop", unique_indices=True, indices_are_sorted=True)
    return GatheredMemory(h, memory.read + change[len(x) :])


def _rows_at_once(weights: GatheredRows, capacity: int) -> int:
    """A chunk's rows: equal parts of the capacity."""
    width = weights.BC.shape[1] + (len(weights.A) if weights.A.ndim == 2 else 0)
    most = min(MOST, max(FEWEST, CHUNK // width))
    return -(-capacity // -(-capacity // most))


def _beside_zeros(x: Array) -> Array:
    """What meets rows of B and C with x and nothing."""
    return jnp.concatenate([x, jnp.zeros_like(x)])


def _places(opened: Bool[Array, "N"]) -> tuple[Int[Array, "N"], Int[Array, ""]]:
    """(how many components before each are open, how many are).

    By counting bits: gates are packed into words, so that a running sum goes over n / 32 numbers; one over n takes
    longer than a product with all of B does (`jnp.nonzero` makes it, and a sort).
    """
    n = len(opened)
    bit = jnp.arange(BITS, dtype=jnp.uint32)[None]
    words = (jnp.pad(opened, (0, -n % BITS)).reshape(-1, BITS).astype(jnp.uint32) << bit).sum(axis=1, dtype=jnp.uint32)
    each = lax.population_count(words).astype(jnp.int32)
    total = jnp.cumsum(each)
    inside = lax.population_count(words[:, None] & ((jnp.uint32(1) << bit) - 1)).astype(jnp.int32)
    return ((total - each)[:, None] + inside).reshape(-1)[:n], total[-1]
