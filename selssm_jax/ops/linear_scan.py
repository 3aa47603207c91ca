"""h_t = a_t h_{t-1} + b_t, elementwise: the recurrence under every diagonal state space model (theory, section 3)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Inexact

METHODS = ("auto", "sequential", "associative", "chunked")
CHUNK = 256  # steps that "chunked" composes at once


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
    "sequential" has blocks of one step and runs in place, without a transpose and with no temporaries; "associative" is
    one block of all steps; "chunked" has blocks of `CHUNK` steps, so that temporaries stay small. "auto" is sequential
    where the program runs on a CPU; elsewhere it is associative up to `CHUNK` steps and chunked beyond.

    The state is kept in float32 (or wider) whatever a and b are: h is rounded to their type, h_last is not, so that a
    sequence split anywhere and carried by h_last equals the whole.

    The gradient is one scan in the other direction (for a, b, h0 through h and h_last, of any order):
    u_t = dh_t + a_{t+1} u_{t+1}, db_t = u_t, da_t = u_t h_{t-1}, dh_0 = a_1 u_1. JAX's cotangents of complex arrays
    are not conjugated, so no conjugate appears here. Forward-mode differentiation is not defined.

    Args:
      a: factor of every step, real or complex. b: drive of every step.
      h0: state before the first step that is run; zero if None. Complex only if a or b is.
      reset: True forgets everything that came before that step in the direction of the scan, h0 too.
      reverse: runs from the last step to the first.
      method: "auto", "sequential", "associative" or "chunked".

    Returns:
      (h, h_last): the state after every step, of the common type of a and b, and the state after the last step run
      (that at t = 0 if reverse), of the type of accumulation.

    Raises:
      ValueError: for an unknown method, shapes that do not fit, no steps, or numbers that are not inexact.
    """
    _check(a, b, h0, reset, method)
    dtype = jnp.promote_types(a.dtype, b.dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    h0 = jnp.zeros((b.shape[0], *b.shape[2:]), wide) if h0 is None else h0.astype(wide)
    if reset is not None:
        a = jnp.where(reset.reshape(*reset.shape, *[1] * (a.ndim - 2)), 0, a)
    return _scan(method, reverse, a.astype(dtype), b.astype(dtype), h0)


def _check(a: Array, b: Array, h0: Array | None, reset: Array | None, method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    if a.ndim < 2 or a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape} and b {b.shape}: expected equal shapes (B, T, ...); use jnp.broadcast_to on the smaller")
    if a.shape[1] == 0:
        raise ValueError(f"a has shape {a.shape}, no steps: expected T >= 1 on axis 1")
    state = (a.shape[0], *a.shape[2:])
    if h0 is not None and h0.shape != state:
        raise ValueError(f"h0 has shape {h0.shape}, expected (B, ...) = {state} from a")
    for name, value in (("a", a), ("b", b), ("h0", h0)):
        if value is not None and not jnp.issubdtype(value.dtype, jnp.inexact):
            raise ValueError(f"{name} has dtype {value.dtype}, expected real or complex numbers: convert it with .astype(jnp.float32)")
    if h0 is not None and jnp.iscomplexobj(h0) and not (jnp.iscomplexobj(a) or jnp.iscomplexobj(b)):
        raise ValueError(f"h0 has dtype {h0.dtype}, but a and b are real: make b complex, or pass the real part of h0")
    if reset is not None and (reset.shape != a.shape[:2] or reset.dtype != jnp.bool_):
        raise ValueError(f"reset has shape {reset.shape} and dtype {reset.dtype}, expected (B, T) = {a.shape[:2]} and bool")


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(method: str, reverse: bool, a: Array, b: Array, h0: Array) -> tuple[Array, Array]:
    return _by_method(method, partial(_forward, reverse), a, b, h0)


def _scan_fwd(method: str, reverse: bool, a: Array, b: Array, h0: Array) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    h, h_last = _scan(method, reverse, a, b, h0)
    return (h, h_last), (a, h, h0)


def _scan_bwd(method: str, reverse: bool, saved: tuple[Array, Array, Array], cotangents: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    return _adjoint(method, reverse, *saved, *cotangents)


_scan.defvjp(_scan_fwd, _scan_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _adjoint(method: str, reverse: bool, a: Array, h: Array, h0: Array, dh: Array, dh_last: Array) -> tuple[Array, Array, Array]:
    """(da, db, dh0) in one pass."""
    return _by_method(method, partial(_backward, reverse), a, h, h0, dh, dh_last)


def _adjoint_fwd(method: str, reverse: bool, *args: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    return _adjoint(method, reverse, *args), args


def _adjoint_bwd(method: str, reverse: bool, args: tuple[Array, ...], cotangents: tuple[Array, Array, Array]) -> tuple[Array, ...]:
    return jax.vjp(partial(_adjoint_by_scan, method, reverse), *args)[1](cotangents)


_adjoint.defvjp(_adjoint_fwd, _adjoint_bwd)


def _adjoint_by_scan(method: str, reverse: bool, a: Array, h: Array, h0: Array, dh: Array, dh_last: Array) -> tuple[Array, Array, Array]:
    """What `_adjoint` computes, in terms of `_scan`, whose gradient is known: this gives the second and higher gradients."""
    # c_t = a_t u_t is itself a scan, c_t = a_t c_{t+1} + a_t dh_t, and u_t = dh_t + c_{t+1}.
    c, dh0 = _scan(method, not reverse, a, a * dh, dh_last)
    u = dh + _previous(c, dh_last, reverse=not reverse)
    return u * _previous(h, h0, reverse=reverse), u, dh0


def _by_method(method: str, run: Callable[..., Any], *args: Array) -> Any:
    length = args[0].shape[1]
    blocks = {"sequential": 1, "associative": length, "chunked": min(CHUNK, length)}
    if method == "auto":
        return lax.platform_dependent(*args, cpu=partial(run, blocks["sequential"]), default=partial(run, blocks["chunked"]))
    return run(blocks[method], *args)


def _forward(reverse: bool, block: int, a: Array, b: Array, h0: Array) -> tuple[Array, Array]:
    def body(start: Array | int, size: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        before, h = carry
        h_block = _compose(_read(a, start, size, h0.dtype), _read(b, start, size, h0.dtype), before, reverse=reverse)
        return _newest(h_block, reverse=reverse), _write(h, h_block, start)

    h_last, h = _over_blocks(a.shape[1], block, reverse, body, (h0[:, None], jnp.zeros_like(b)))
    return h, h_last[:, 0]


def _backward(reverse: bool, block: int, a: Array, h: Array, h0: Array, dh: Array, dh_last: Array) -> tuple[Array, Array, Array]:
    """The adjoint c_t = a_t u_t is carried against the direction of the scan; da and db are written on the way."""
    wide, length = h0.dtype, a.shape[1]
    first = length - 1 if reverse else 0

    def body(start: Array | int, size: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        after, da, db = carry
        a_block, dh_block = _read(a, start, size, wide), _read(dh, start, size, wide)
        c = _compose(a_block, a_block * dh_block, after, reverse=not reverse)
        u = dh_block + _previous(c, after[:, 0], reverse=not reverse)
        edge = start + size if reverse else start - 1
        before = jnp.where(first == (edge - 1 if reverse else edge + 1), h0[:, None], _read(h, jnp.clip(edge, 0, length - 1), 1, wide))
        h_before = _previous(_read(h, start, size, wide), before[:, 0], reverse=reverse)
        return _newest(c, reverse=not reverse), _write(da, u * h_before, start), _write(db, u, start)

    dh0, da, db = _over_blocks(length, block, not reverse, body, (dh_last[:, None], jnp.zeros_like(a), jnp.zeros_like(a)))
    return da, db, dh0[:, 0]


def _over_blocks(length: int, block: int, reverse: bool, body: Callable[..., Any], carry: Any) -> Any:
    """Calls carry = body(start, size, carry) for whole blocks in the direction of the scan, then for what is left."""
    count, rest = divmod(length, block)
    offset = rest if reverse else 0

    def nth(n: Array | int, carry: Any) -> Any:
        return body(offset + block * (count - 1 - n if reverse else n), block, carry)

    carry = lax.fori_loop(0, count, nth, carry) if count > 1 else nth(0, carry)
    return body(0 if reverse else length - rest, rest, carry) if rest else carry


def _compose(a: Array, b: Array, before: Array, *, reverse: bool) -> Array:
    """States inside one block from the state before it, (B, 1, *S)."""
    if a.shape[1] == 1:
        return a * before + b
    decay, h = lax.associative_scan(lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1]), (a, b), axis=1, reverse=reverse)
    return decay * before + h


def _previous(h: Array, before: Array, *, reverse: bool) -> Array:
    """The states one step earlier in the direction of the scan."""
    before = before[:, None].astype(h.dtype)
    return jnp.concatenate([h[:, 1:], before] if reverse else [before, h[:, :-1]], axis=1)


def _newest(h: Array, *, reverse: bool) -> Array:
    return h[:, :1] if reverse else h[:, -1:]


def _read(x: Array, start: Array | int, size: int, dtype: jnp.dtype) -> Array:
    return lax.dynamic_slice_in_dim(x, start, size, axis=1).astype(dtype)


def _write(x: Array, block: Array, start: Array | int) -> Array:
    return lax.dynamic_update_slice_in_dim(x, block.astype(x.dtype), start, axis=1)
