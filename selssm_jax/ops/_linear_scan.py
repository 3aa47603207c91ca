"""h_t = a_t h_{t-1} + b_t, elementwise: the recurrence under every diagonal state space model (theory, section 3)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Inexact

from selssm_jax.ops import shards
from selssm_jax.ops.boundaries import (
    composed_or_stepped,
    multiply_cotangent,
    multiply_state,
    name_residuals,
    vary_alike,
)

METHODS = ("auto", "sequential", "associative", "chunked")
CHUNK = 256  # steps that "chunked" composes at once
LARGE = 2**26  # elements of a, 256 MB in float32: beyond this the temporaries of one block of all steps are a burden


def linear_scan(
    a: Inexact[Array, "B T *S"],
    b: Inexact[Array, "B T *S"],
    h0: Inexact[Array, "B *S"] | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    reverse: bool = False,
    method: str = "auto",
) -> tuple[Inexact[Array, "B T *S"], Inexact[Array, "B *S"]]:
    """Runs h_t = a_t h_{t-1} + b_t over axis 1; with reverse=True from the end, h_t = a_t h_{t+1} + b_t.

    All methods compute the same, in blocks of time: inside a block the pairs (a, b) are composed by
    (a2, b2) o (a1, b1) = (a2 a1, a2 b1 + b2) in O(log) parallel steps, and from block to block the state is carried.
    "sequential" has blocks of one step and runs in place, without transposes or temporaries; "associative" is one block
    of all steps and needs some 2.5 arrays more; "chunked" has blocks of `CHUNK` steps, and temporaries of their size.

    A composed block multiplies factors before it meets a state, and products leave the range of numbers where single
    steps do not: factors above 1 that grow beyond it, states far below it that grow again, what is not finite. Where
    growth times drives could pass the middle of the range, 1e19 in float32, or anything is not finite, all steps are
    run one by one, whatever the method. What is lost to products too small for the range is below 1e-19 elsewhere.

    "auto" is decided where the program is lowered. On a CPU it is sequential: the fastest at every shape measured, with
    and without gradients (benchmarks/records/linear_scan.json). On any other platform steps are too short to be run one
    by one: it is associative, and chunked for arrays of more than `LARGE` elements. That choice is by reasoning: no
    accelerator has been measured.

    The state is kept in float32 (or wider) whatever a and b are: h is rounded to their type, h_last is not, so that a
    sequence split anywhere and carried by h_last equals the whole.

    The gradient is one scan in the other direction (for a, b, h0 through h and h_last, of any order):
    u_t = dh_t + a_{t+1} u_{t+1}, db_t = u_t, da_t = u_t h_{t-1}, dh_0 = a_1 u_1. JAX's cotangents of complex arrays
    are not conjugated, so no conjugate appears here. Forward-mode differentiation is not defined.

    Args:
      a: factor of every step, real or complex. b: drive of every step.
      h0: state before the first step that is run; zero if None. Complex only if a or b is.
      reset: True forgets everything that came before that step in the direction of the scan, h0 too. It forgets what is
        not finite too, and so do the gradients; with a reset given any factor of exactly 0 does.
      reverse: runs from the last step to the first.
      method: "auto", "sequential", "associative" or "chunked".

    Returns:
      (h, h_last): the state after every step, of the common type of a and b, and the state after the last step run
      (that at t = 0 if reverse), of the type of accumulation.

    Raises:
      ValueError: for an unknown method, shapes that do not fit, no steps, or numbers that are not inexact.
    """
    run, a, h0 = _prepare(a, b, h0, reset, reverse=reverse, method=method)

    def decay() -> Array:
        # what a reset forgets may be no number
        factors = a if reset is None else jnp.where(_beside_states(reset.any(axis=1, keepdims=True), a), 0, a)
        return jnp.prod(factors.astype(h0.dtype), axis=1)

    return shards.carry(run, decay, h0, reverse=reverse)


def scan_shard(
    a: Array, b: Array, h0: Array | None = None, *, reset: Array | None = None, method: str = "auto"
) -> tuple[Array, Array]:
    """Returns what `linear_scan` does for steps that are all of a sequence here, whatever `shards` says of others: a
    part of a larger recurrence.
    """
    run, _, h0 = _prepare(a, b, h0, reset, reverse=False, method=method)
    return run(h0)


def adjoint(a: Array, dh: Array, dlast: Array, *, method: str = "auto") -> tuple[Array, Array]:
    """Returns (u, a_1 u_1) of u_t = dh_t + a_{t+1} u_{t+1}, with dlast behind the last step: the cotangents of a
    recurrence whose state is multiplied by a_t, for the gradient of a larger one. What nothing reads is 0, whatever a
    is.
    """
    return _scan(_Run(method, True, True, False), a, dh, dlast)


def _prepare(
    a: ArrayLike, b: ArrayLike, h0: ArrayLike | None, reset: ArrayLike | None, *, reverse: bool, method: str
) -> tuple[Callable[[Array], tuple[Array, Array]], Array, Array]:
    """(state before -> (states, last), factors that are 0 at a reset, the state before in the type of
    accumulation).
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    h0 = None if h0 is None else jnp.asarray(h0)
    reset = None if reset is None else jnp.asarray(reset)
    _check(a, b, h0, reset, method)
    dtype = jnp.promote_types(a.dtype, b.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    h0 = jnp.zeros((b.shape[0], *b.shape[2:]), wide) if h0 is None else h0.astype(wide)
    if reset is not None:
        a = jnp.where(_beside_states(reset, a), 0, a)
    a, b, how = a.astype(dtype), b.astype(dtype), _Run(method, reverse, False, reset is not None)
    return lambda start: _scan(how, *vary_alike((a, b, start))), a, h0


def _beside_states(flags: Array, a: Array) -> Array:
    """Flags (B, T) with axes for those of a state."""
    return flags.reshape(*flags.shape, *[1] * (a.ndim - 2))


def _check(a: Array, b: Array, h0: Array | None, reset: Array | None, method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    if a.ndim < 2 or a.shape != b.shape:
        raise ValueError(
            f"a has shape {a.shape} and b {b.shape}: expected equal shapes (B, T, ...); use jnp.broadcast_to on the "
            "smaller"
        )
    if a.shape[1] == 0:
        raise ValueError(f"a has shape {a.shape}, no steps: expected T >= 1 on axis 1")
    state = (a.shape[0], *a.shape[2:])
    if h0 is not None and h0.shape != state:
        raise ValueError(f"h0 has shape {h0.shape}, expected (B, ...) = {state} from a")
    for name, value in (("a", a), ("b", b), ("h0", h0)):
        if value is not None and not jnp.issubdtype(value.dtype, jnp.inexact):
            raise ValueError(
                f"{name} has dtype {value.dtype}, expected real or complex numbers: convert it with "
                ".astype(jnp.float32)"
            )
    if h0 is not None and jnp.iscomplexobj(h0) and not (jnp.iscomplexobj(a) or jnp.iscomplexobj(b)):
        raise ValueError(f"h0 has dtype {h0.dtype}, but a and b are real: make b complex, or pass the real part of h0")
    if reset is not None and (reset.shape != a.shape[:2] or reset.dtype != jnp.bool_):
        raise ValueError(
            f"reset has shape {reset.shape} and dtype {reset.dtype}, expected (B, T) = {a.shape[:2]} and bool"
        )


class _Run(NamedTuple):
    """How a scan runs. `delayed`: as the adjoint. `forgets`: a factor of 0 hides a state that is not finite: no need,
    nor cost, without a reset.
    """

    method: str
    reverse: bool
    delayed: bool
    forgets: bool


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(run: _Run, a: Array, b: Array, h0: Array) -> tuple[Array, Array]:
    """The recurrence and, delayed, its adjoint, which meets each factor one step later.

    Plain: h_t = a_t h_{t-1} + b_t; returns h and its last. Delayed: h_t = a_{t-1} h_{t-1} + b_t with a_0 = 1; returns h
    and a_T h_T. Each is the transpose of the other run in the other direction, so this one function and its rule give
    gradients of every order.
    """
    length = b.shape[1]
    blocks = {"sequential": 1, "associative": length, "chunked": min(CHUNK, length)}

    def by(method: str) -> Callable[..., tuple[Array, Array]]:
        stepped, composed = (partial(_in_blocks, run, block) for block in (1, blocks[method]))
        return (
            stepped
            if blocks[method] == 1
            else lambda a, b, h0: composed_or_stepped(_in_range(a, b, h0), composed, stepped, a, b, h0)
        )

    if run.method == "auto":
        return lax.platform_dependent(
            a, b, h0, cpu=by("sequential"), default=by("chunked" if _is_large(b) else "associative")
        )
    return by(run.method)(a, b, h0)


def _scan_forward(run: _Run, a: Array, b: Array, h0: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    h, last = _scan(run, a, b, h0)
    return (h, last), name_residuals((a, h, h0))


def _scan_backward(
    run: _Run, saved: tuple[Array, Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    a, h, h0, dh, dlast = vary_alike((*saved, *cotangents))
    u, dh0 = _scan(run._replace(reverse=not run.reverse, delayed=not run.delayed), a, dh, dlast)
    da = (
        multiply_state(_previous(u, dlast, reverse=not run.reverse), h)
        if run.delayed
        else multiply_state(u, _previous(h, h0, reverse=run.reverse))
    )
    return da, u, dh0


_scan.defvjp(_scan_forward, _scan_backward)


@partial(jax.jit, static_argnums=(0, 1))
def _in_blocks(run: _Run, block: int, a: Array, b: Array, h0: Array) -> tuple[Array, Array]:
    """Replaces b by h block by block in one buffer; what does not fill a block comes last.

    A block is written when the next one is about to be read. So the buffer's only reader sees it after the write, and
    XLA has no reason to keep the old one: reading and writing in one step may cost a copy of the whole buffer a step.
    """
    (_, reverse, delayed, forgets), wide, length = run, h0.dtype, b.shape[1]
    carry = multiply_cotangent if delayed else multiply_state if forgets else jnp.multiply
    count, rest = divmod(length, block)
    offset, shift = (rest, 1) if reverse else (0, -1)

    def at(n: Array | int) -> Array | int:
        return offset + block * (count - 1 - n if reverse else n)

    def solve(start: Array | int, size: int, h: Array, buffer: Array) -> Array:
        factors = _read(a, start + shift if delayed else start, size).astype(wide)
        return _compose(factors, _read(buffer, start, size), _newest(h, reverse=reverse), carry, reverse=reverse)

    def body(n: Array, states: tuple[Array, Array]) -> tuple[Array, Array]:
        h, buffer = states
        buffer = _write(buffer, h, at(n - 1))
        return solve(at(n), block, h, buffer), buffer

    buffer = b.astype(wide)
    factors = _read(a, at(0), block).astype(wide)
    factors = _previous(factors, jnp.ones_like(h0), reverse=reverse) if delayed else factors
    h = _compose(factors, _read(buffer, at(0), block), h0, carry, reverse=reverse)
    if count > 1:
        h, buffer = lax.fori_loop(1, count, body, (h, buffer))
    buffer = _write(buffer, h, at(count - 1))
    if rest:
        start = 0 if reverse else length - rest
        h = solve(start, rest, h, buffer)
        buffer = _write(buffer, h, start)
    last = _newest(h, reverse=reverse)
    if not delayed:
        return buffer.astype(b.dtype), last
    return buffer.astype(b.dtype), carry(_newest(a, reverse=reverse).astype(wide), last)


def _is_large(b: Array) -> bool:
    """Whether b has more than `LARGE` elements, or as many as may be: a batch of any size, of `jax.export`."""
    return not all(isinstance(size, int) for size in b.shape) or b.size > LARGE


def _in_range(a: Array, b: Array, h0: Array) -> Array:
    """Whether no product of factors, times a drive, passes the middle of the range of numbers: none overflows then, and
    what underflows is small.
    """
    size = lambda values: jnp.abs(values.astype(h0.dtype))  # noqa: E731
    growth = jnp.prod(jnp.maximum(size(a), 1), axis=1)
    limit = jnp.finfo(h0.dtype).tiny ** -0.5
    # false for what is no number
    return (size(b) * growth[:, None] <= limit).all() & (size(h0) * growth <= limit).all()


def _compose(a: Array, b: Array, before: Array, carry: Callable[[Array, Array], Array], *, reverse: bool) -> Array:
    """States inside one block from the state before it, (B, *S)."""
    if a.shape[1] == 1:
        return carry(a, before[:, None]) + b
    decay, h = lax.associative_scan(lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1]), (a, b), axis=1, reverse=reverse)
    return decay * before[:, None] + h


def _previous(h: Array, before: Array, *, reverse: bool) -> Array:
    """The states one step earlier in the direction of the scan."""
    before = before[:, None].astype(h.dtype)
    return jnp.concatenate([h[:, 1:], before] if reverse else [before, h[:, :-1]], axis=1)


def _newest(h: Array, *, reverse: bool) -> Array:
    return h[:, 0] if reverse else h[:, -1]


def _read(x: Array, start: Array | int, size: int) -> Array:
    return lax.dynamic_slice_in_dim(x, start, size, axis=1)


def _write(x: Array, block: Array, start: Array | int) -> Array:
    return lax.dynamic_update_slice_in_dim(x, block, start, axis=1)
