"""How far states that were found in parallel can be from those of the loop h_t = f(h_{t-1}, x_t), proved after they
were found.

Let h be the states found, s those of the loop, and |s_{t-1} - h_{t-1}| <= e_{t-1} in every component. Then

  |s_t - h_t| <= |f(s_{t-1}) - f(h_{t-1})| + |f(h_{t-1}) - h_t| + rounding_t,

and any e for which the right side stays below e_t at every t, whatever s_{t-1} is within e_{t-1} of h_{t-1}, encloses
the loop (induction over t; theory, section 3). A candidate follows from the linear recurrence e_t = |J_t| e_{t-1} +
residual_t + rounding_t. What f departs from its linear part, where it is steep, jumps, or reads more components than J
says, is measured by f itself at the corners of a tube `WIDTH` times as wide, and added. The corners are all signs
equal, and signs drawn at random: a proof for a step that is monotone across the tube and reads its own component alone,
evidence for any other.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Bool, Float

from selssm_jax.ops import shards
from selssm_jax.ops.boundaries import vary_alike

WIDTH = 8.0  # how much wider than the linear candidate the tube is in which f is looked at, and may end up
PATTERNS, PERIOD = 2, 64  # of random signs, and the steps after which they repeat themselves
NOISE = 4.0  # roundings by which f may seem to depart from its linear part
# of candidates, each with the slopes that f showed at the corners of the last: those of a gate that jumps are not its
# derivatives
ROUNDS = 3
LEAST_MEMORY = 0.5  # share of a component's size that counts for the next step's, whatever its slope
# Primitives that hand numbers on as they are, so that their type rounds nothing.
EXACT = {
    *(
        "abs",
        "broadcast_in_dim",
        "concatenate",
        "copy",
        "dynamic_slice",
        "expand_dims",
        "gather",
        "max",
        "min",
        "neg",
        "pad",
        "reshape",
        "rev",
    ),
    *("select_n", "sign", "slice", "squeeze", "stop_gradient", "transpose"),
}


class Linearized(NamedTuple):
    """f at all states before a step: its images, (T, N), its linear part there, and J, (T, N) where that is diagonal,
    else (T, N, N).
    """

    images: Array
    linear: Callable[[Array], Array]
    J: Array


def rounding_unit(step: Callable[[Array, Any], Array], h: Float[Array, "N"], x: Any) -> float:
    """Returns the coarsest relative rounding, epsilon, of all that one step computes: that of h where nothing is
    computed in fewer bits.
    """
    program = jax.make_jaxpr(step)(h, x).jaxpr
    values = [variable.aval for equation in _equations(program) for variable in equation.outvars]
    kinds = {value.dtype for value in values if isinstance(value, jax.core.ShapedArray)}
    return max(float(jnp.finfo(kind).eps) for kind in {*kinds, h.dtype} if jnp.issubdtype(kind, jnp.floating))


def _equations(program: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Those that round, inside functions too."""
    for equation in program.eqns:
        inner = [
            part
            for value in equation.params.values()
            for part in (value if isinstance(value, tuple | list) else (value,))
        ]
        inner = [getattr(part, "jaxpr", part) for part in inner]
        inner = [part for part in inner if hasattr(part, "eqns")]
        for part in inner:
            yield from _equations(part)
        if not inner and equation.primitive.name not in EXACT:
            yield equation


def encloses(
    f: Callable[[Array], Array],
    there: Linearized,
    scan: Callable[..., Array],
    before: Float[Array, "T N"],
    h: Float[Array, "T N"],
    *,
    unit: float,
    close: float,
) -> Bool[Array, ""]:
    """Returns whether every state of the loop is proved to lie within `close` of h, relative to its component's size;
    False where it is not known.

    The size of a component is that of its state, or a mean of its sizes before, as far back as its slope remembers:
    what a step rounded away when the component was large is forgiven for as long as the component holds it.

    Args:
      f: the states before all steps, (T, N) -> those after; `there`: at `before`. scan: (J, b, reverse=False) -> u with
        u_t = J_t u_{t-1} + b_t.
      before, h: states before and after each step. unit: relative rounding of a step. close: relative distance allowed.
    """
    tiny = jnp.finfo(h.dtype).tiny / jnp.finfo(h.dtype).eps
    size = _sizes(scan, jnp.abs(there.J), before, h)
    signs = _signs(h)
    corners = jnp.concatenate([jnp.ones_like(signs[:1]), signs])
    corners = jnp.concatenate([corners, -corners])

    def propagate_radius(reach: Array) -> Array:
        most = jnp.abs(jax.vmap(f)(before[None] + corners * reach[None]) - there.images[None]).max(axis=0)
        return (
            most
            if there.J.ndim == 3
            else jnp.maximum(most, jnp.abs(there.J) * reach + _crossing(there.linear, signs, reach))
        )

    def widen_tube(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        slopes, _, rounds = state
        rounding = unit * jnp.abs(before)  # of what f reads, a part of its own rounding
        source = _propagate_radius(slopes, rounding) + jnp.abs(there.images - h) + unit * size + tiny
        narrow = scan(slopes, source, reverse=False)
        reach = WIDTH * (shards.previous(narrow, jnp.zeros_like(narrow[0]), axis=0) + rounding)
        departure = propagate_radius(reach) - _propagate_radius(slopes, reach)
        wide = scan(slopes, source + jnp.maximum(departure, 0), reverse=False)
        finite = jnp.isfinite(departure).all() & jnp.isfinite(narrow).all() & jnp.isfinite(wide).all()
        near = (wide <= WIDTH * narrow) & (wide <= close * size + tiny / jnp.finfo(h.dtype).eps)
        holds = shards.every(finite & near.all())
        steeper = jnp.where(departure > NOISE * unit * size, departure / jnp.maximum(reach, tiny), 0)
        return slopes + _diagonal(steeper, slopes), holds, rounds + 1

    slopes = jnp.abs(there.J)
    if slopes.ndim == 2:
        scale = shards.previous(size, jnp.abs(before[0]), axis=0) + tiny
        slopes += _crossing(there.linear, signs, scale) / scale
    start = vary_alike((slopes, jnp.zeros((), bool), jnp.zeros((), jnp.int32), there.images))[:3]
    return jax.lax.while_loop(lambda state: ~state[1] & (state[2] < ROUNDS), widen_tube, start)[1]


def _signs(h: Array) -> Array:
    """Signs, (`PATTERNS`, T, N), drawn once and for all; read from a table, for XLA would draw them while it compiles,
    and slowly.
    """
    table = np.random.default_rng(0).choice((-1.0, 1.0), (PATTERNS, PERIOD, h.shape[1]))
    return jnp.asarray(table, h.dtype)[:, jnp.arange(len(h)) % PERIOD]


def _propagate_radius(slopes: Array, by: Array) -> Array:
    """|J| d, (T, N)."""
    return slopes * by if slopes.ndim == 2 else jnp.einsum("tij,tj->ti", slopes, by)


def _diagonal(values: Array, like: Array) -> Array:
    """Slopes of every component by itself, of the form of `like`."""
    return values if like.ndim == 2 else values[:, :, None] * jnp.eye(values.shape[1], dtype=values.dtype)[None]


def _crossing(linear: Callable[[Array], Array], signs: Array, reach: Array) -> Array:
    """How far other components can move each, where J is said to be diagonal: nothing, to the last bit, if it is.

    |sum_j a_j d_j| <= sqrt(n) |a d|_2 for all signs of d, and by Khintchine's inequality |a d|_2 is at most sqrt(2)
    times its mean over signs.
    """
    together = linear(reach)
    apart = jax.vmap(lambda sign: jnp.abs(sign * linear(sign * reach) - together))(signs)
    return math.sqrt(2 * reach.shape[1]) * apart.max(axis=0)


def _sizes(scan: Callable[..., Array], slopes: Array, before: Array, h: Array) -> Array:
    """The size of every component that errors are relative to, (T, N)."""
    memory = jnp.clip(slopes if slopes.ndim == 2 else slopes.sum(axis=2), LEAST_MEMORY, 1)
    start = jnp.where(shards.number() == 0, memory[0] * jnp.abs(before[0]), 0)
    means = scan(_diagonal(memory, slopes), ((1 - memory) * jnp.abs(h)).at[0].add(start), reverse=False)
    return jnp.maximum(jnp.abs(h), means)
