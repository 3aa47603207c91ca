"""h_t = A_t h_{t-1} + b_t with matrices: the recurrence of a dense transition (theory, section 3)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

METHODS = ("auto", "sequential", "associative")


def dense_scan(
    a: Float[Array, "B T N N"],
    b: Float[Array, "B T N"],
    h0: Float[Array, "B N"] | None = None,
    *,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> tuple[Float[Array, "B T N"], Float[Array, "B N"]]:
    """Runs h_t = A_t h_{t-1} + b_t over time; for small N.

    Work is O(T N^2) for "sequential" and O(T N^3) for "associative", whose products (A_2 A_1, A_2 b_1 + b_2) need
    O(log T) steps. "auto" is sequential on a CPU and associative elsewhere. The gradient is one reverse scan of the
    same kind: u_t = dh_t + A_{t+1}' u_{t+1}, db_t = u_t, dA_t = u_t h_{t-1}', dh_0 = A_1' u_1.

    Args:
      a: transition of every step. b: drive of every step. h0: state before the first step; zero if None.
      reset: True forgets everything before that step.
      method: "auto", "sequential" or "associative".

    Returns:
      (h, h_last): all states and the last one.

    Raises:
      ValueError: for an unknown method or shapes that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    if a.shape != (*b.shape, b.shape[-1]):
        raise ValueError(f"a has shape {a.shape}, expected (B, T, N, N) = {(*b.shape, b.shape[-1])} from b")
    if reset is not None:
        a = jnp.where(reset[..., None, None], 0, a)
    h0 = jnp.zeros_like(b[:, 0]) if h0 is None else h0
    h = _scan(method, a, b, h0)
    return h, h[:, -1]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(method: str, a: Array, b: Array, h0: Array) -> Array:
    if method == "auto":
        return lax.platform_dependent(a, b, h0, cpu=_sequential, default=_associative)
    return _sequential(a, b, h0) if method == "sequential" else _associative(a, b, h0)


def _sequential(a: Array, b: Array, h0: Array) -> Array:
    def step(h: Array, ab: tuple[Array, Array]) -> tuple[Array, Array]:
        h = jnp.einsum("bij,bj->bi", ab[0], h) + ab[1]
        return h, h

    return lax.scan(step, h0, (a.swapaxes(0, 1), b.swapaxes(0, 1)))[1].swapaxes(0, 1)


def _associative(a: Array, b: Array, h0: Array) -> Array:
    def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return second[0] @ first[0], jnp.einsum("...ij,...j->...i", second[0], first[1]) + second[1]

    b = b.at[:, 0].add(jnp.einsum("bij,bj->bi", a[:, 0], h0))
    return lax.associative_scan(compose, (a, b), axis=1)[1]


def _forward(method: str, a: Array, b: Array, h0: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    h = _scan(method, a, b, h0)
    return h, (a, h, h0)


def _backward(method: str, saved: tuple[Array, Array, Array], dh: Array) -> tuple[Array, Array, Array]:
    a, h, h0 = saved
    following = jnp.roll(a, -1, axis=1).swapaxes(-1, -2)  # A_{t+1}'; the last one meets a zero state
    u = _scan(method, following[:, ::-1], dh[:, ::-1], jnp.zeros_like(h0))[:, ::-1]
    before = jnp.concatenate([h0[:, None], h[:, :-1]], axis=1)
    return u[..., :, None] * before[..., None, :], u, jnp.einsum("bji,bj->bi", a[:, 0], u[:, 0])


_scan.defvjp(_forward, _backward)
