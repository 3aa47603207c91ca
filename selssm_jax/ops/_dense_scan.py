"""h_t = A_t h_{t-1} + b_t with matrices: the recurrence of a dense transition (theory, section 3)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from selssm_jax.ops import shards
from selssm_jax.ops.boundaries import composed_or_stepped, multiply_state, name_residuals, vary_alike

METHODS = ("auto", "sequential", "associative")


def dense_scan(
    a: Float[Array, "B T N N"],
    b: Float[Array, "B T N"],
    h0: Float[Array, "B N"] | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    reverse: bool = False,
    method: str = "auto",
) -> tuple[Float[Array, "B T N"], Float[Array, "B N"]]:
    """Runs h_t = A_t h_{t-1} + b_t over time, or from its end, h_t = A_t h_{t+1} + b_t; for small N.

    Work is O(T N^2) for "sequential" and O(T N^3) for "associative", whose products (A_2 A_1, A_2 b_1 + b_2) need
    O(log T) steps. "auto" is sequential on a CPU and associative elsewhere. Where products of matrices could leave the
    range of numbers, by the product of their largest row or column sums, or anything is not finite, all is sequential,
    as in `linear_scan`. The gradient is one reverse scan of the same kind: u_t = dh_t + A_{t+1}' u_{t+1}, db_t = u_t,
    dA_t = u_t h_{t-1}', dh_0 = A_1' u_1.

    Args:
      a: transition of every step. b: drive of every step. h0: state before the first step; zero if None.
      reset: True forgets everything before that step in the direction of the scan, what is not finite too.
      reverse: runs from the last step to the first. method: "auto", "sequential" or "associative".

    Returns:
      (h, h_last): all states and the last one.

    Raises:
      ValueError: for an unknown method or shapes that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    if a.shape != (*b.shape, b.shape[-1]):
        raise ValueError(f"a has shape {a.shape}, expected (B, T, N, N) = {(*b.shape, b.shape[-1])} from b")
    reset = jnp.zeros(b.shape[:2], bool) if reset is None else reset
    h0 = jnp.zeros_like(b[:, 0]) if h0 is None else h0
    a = jnp.where(reset[..., None, None], 0, a)
    if reverse:
        a, b, reset = a[:, ::-1], b[:, ::-1], reset[:, ::-1]

    def run(start: Array) -> tuple[Array, Array]:
        h = _scan(method, False, *vary_alike((a, b, start, reset)))
        return h, h[:, -1]

    def decay() -> Array:
        columns = jnp.broadcast_to(jnp.eye(h0.shape[1], dtype=b.dtype)[:, None], (h0.shape[1], *h0.shape))
        last = jax.vmap(lambda column: _scan(method, False, a, jnp.zeros_like(b), column, reset)[:, -1])
        return jnp.moveaxis(last(columns), 0, -1)

    h, last = shards.carry(run, decay, h0, multiply=partial(jnp.einsum, "bij,bj->bi"), reverse=reverse)
    return h[:, ::-1] if reverse else h, last


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan(method: str, adjoint: bool, a: Array, b: Array, h0: Array, reset: Array) -> Array:
    """The recurrence, a being 0 at a reset; of its adjoint a state of 0 says nothing, whatever a is."""
    stepped = partial(_sequential, adjoint)

    def in_parallel(a: Array, b: Array, h0: Array, reset: Array) -> Array:
        return composed_or_stepped(_in_range(a, b, h0), _associative, stepped, a, b, h0, reset)

    if method == "auto":
        return lax.platform_dependent(a, b, h0, reset, cpu=stepped, default=in_parallel)
    return (stepped if method == "sequential" else in_parallel)(a, b, h0, reset)


def _sequential(adjoint: bool, a: Array, b: Array, h0: Array, reset: Array) -> Array:
    def step(h: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        a, b, forget = now
        forget = forget | (h == 0).all(axis=-1) if adjoint else forget
        h = jnp.where(forget[:, None], 0, jnp.einsum("bij,bj->bi", a, h)) + b
        return h, h

    return lax.scan(step, h0, (a.swapaxes(0, 1), b.swapaxes(0, 1), reset.T))[1].swapaxes(0, 1)


def _associative(a: Array, b: Array, h0: Array, reset: Array) -> Array:
    def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return second[0] @ first[0], jnp.einsum("...ij,...j->...i", second[0], first[1]) + second[1]

    del reset
    b = b.at[:, 0].add(jnp.einsum("bij,bj->bi", a[:, 0], h0))
    return lax.associative_scan(compose, (a, b), axis=1)[1]


def _in_range(a: Array, b: Array, h0: Array) -> Array:
    """Whether no product of matrices, times a drive, passes the middle of the range of numbers; false for what is no
    number.
    """
    growths = [jnp.prod(jnp.maximum(jnp.abs(a).sum(axis=axis).max(axis=-1), 1), axis=1) for axis in (-1, -2)]
    limit = jnp.finfo(b.dtype).tiny ** -0.5 / b.shape[-1]
    numbers = jnp.isfinite(a).all()  # which a maximum of many may drop
    growth = jnp.minimum(*growths)[:, None]
    return numbers & (jnp.abs(b) * growth[:, None] <= limit).all() & (jnp.abs(h0) * growth <= limit).all()


def _forward(
    method: str, adjoint: bool, a: Array, b: Array, h0: Array, reset: Array
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    h = _scan(method, adjoint, a, b, h0, reset)
    return h, name_residuals((a, h, h0, reset))


def _backward(
    method: str, adjoint: bool, saved: tuple[Array, Array, Array, Array], dh: Array
) -> tuple[Array, Array, Array, None]:
    a, h, h0, reset, dh = vary_alike((*saved, dh))
    ends = jnp.roll(reset, -1, axis=1).at[:, -1].set(True)  # nothing follows the last step
    following = jnp.where(ends[..., None, None], 0, jnp.roll(a, -1, axis=1)).swapaxes(-1, -2)  # A_{t+1}'
    u = _scan(method, not adjoint, following[:, ::-1], dh[:, ::-1], jnp.zeros_like(h0), ends[:, ::-1])[:, ::-1]
    before = jnp.concatenate([h0[:, None], h[:, :-1]], axis=1)
    da = jnp.where(reset[..., None, None], 0, multiply_state(u[..., :, None], before[..., None, :]))
    silent = reset[:, :1] | (u[:, 0] == 0).all(axis=-1, keepdims=True)
    return da, u, jnp.where(silent, 0, jnp.einsum("bji,bj->bi", a[:, 0], u[:, 0])), None


_scan.defvjp(_forward, _backward)
