"""The Kalman filter of independent components, its gate in nats: what the best memory of noisy readings keeps (theory,
section 11).

"sequential" takes step after step in place. "associative" composes P_{t-1} -> P_t, a Moebius map, as products of
matrices [[a^2 r, q r], [a^2, q + r]] without negative entries, each divided by its largest entry, in O(log T)
parallel steps; the mean is a linear scan then. Where variances, their inverses or products of |a| > 1 leave
`LARGEST`, all steps are run one by one, whatever the method. "auto" is decided where the program is lowered:
sequential on a CPU, associative elsewhere.

The gradient is two scans in the other direction, of any order; forward-mode differentiation is not defined.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from selssm_jax.ops import shards
from selssm_jax.ops._linear_scan import adjoint, linear_scan, scan_shard
from selssm_jax.ops.boundaries import (
    composed_or_stepped,
    finite,
    multiply_cotangent,
    multiply_state,
    name_residuals,
    poison,
    vary_alike,
)
from selssm_jax.ops.inputs import check_inputs
from selssm_jax.ops.stepping import at, put

METHODS = ("auto", "sequential", "associative")
LARGEST = 1e18  # of variances, their inverses and growth: products of steps stay in the range of float32 below it


class KalmanState(NamedTuple):
    """What is known of h_t: its mean and variance given all readings, and its variance without any."""

    m: Float[Array, "B *S"]
    P: Float[Array, "B *S"]
    prior: Float[Array, "B *S"]


class KalmanScan(NamedTuple):
    """What `kalman_scan` returns; nats are of each component and step."""

    m: Float[Array, "B T *S"]
    P: Float[Array, "B T *S"]
    gained: Float[Array, "B T *S"]
    forgotten: Float[Array, "B T *S"]
    last: KalmanState


def kalman_scan(
    a: Float[Array, "B T *S"],
    q: Float[Array, "B T *S"],
    r: Float[Array, "B T *S"],
    z: Float[Array, "B T *S"],
    m0: Float[Array, "B *S"] | None = None,
    P0: Float[Array, "B *S"] | None = None,
    *,
    prior0: Float[Array, "B *S"] | None = None,
    reset: Bool[Array, "B T"] | None = None,
    method: str = "auto",
) -> KalmanScan:
    """Filters h_t = a_t h_{t-1} + w_t, w_t ~ N(0, q_t), read as z_t = h_t + v_t, v_t ~ N(0, r_t), over axis 1, each
    component by itself.

    P-_t = a_t^2 P_{t-1} + q_t,  K_t = P-_t / (P-_t + r_t),  P_t = (1 - K_t) P-_t,
    m_t = (1 - K_t) a_t m_{t-1} + K_t z_t.

    m_t and P_t are mean and variance of h_t given z_{1:t}. The gain K_t is a gate: r_t = inf is no reading and shuts
    it, whatever z_t is; r_t -> 0 opens it. 1 - K is never formed by subtraction.

    The step gains I(h_t; z_t | z_{1:t-1}) = 1/2 log(1 + P-_t / r_t) nats, and the state forgets
    I(h_{t-1}; z_{1:t-1}) - I(h_t; z_{1:t-1}) = 1/2 log(1 + q_t (S - P) / (P (a_t^2 S + q_t))), of P = P_{t-1} and the
    variance S = S_{t-1} without readings, S_t = a_t^2 S_{t-1} + q_t. So sum gained - sum forgotten since the last reset
    is I(h_t; z_{1:t}) = 1/2 log(S_t / P_t). These are exact where data follow the model, and otherwise the nats of this
    model.

    All is computed in float32 or wider; m has the type of a and z.

    Args:
      a: factor of every step. q: variance of what drives the state, at least 0. r: variance of the reading, above 0;
        inf for none. z: the reading.
      m0, P0: mean and variance before the first step; 0 if None: the state is known to be 0 then. prior0: its variance
        without readings; P0 if None, as if nothing had been read before.
      reset: True forgets all that came before that step, what is not finite too: it is as a_t = 0.
      method: "auto", "sequential" or "associative": see this module.

    Returns:
      A `KalmanScan`; `last` is the state after the last step, of the type of accumulation: given as m0, P0 and prior0
      it makes a sequence split anywhere equal the whole.

    Raises:
      ValueError: for an unknown method, shapes that do not fit, no steps, or numbers that are not real.

    Source: Kalman 1960; as a layer, Kalman linear attention (arXiv 2602.10743).
    """
    _check(a, {"q": q, "r": r, "z": z, "m0": m0, "P0": P0, "prior0": prior0, "reset": reset}, method)
    dtype = jnp.result_type(a, z)
    wide = jnp.result_type(dtype, q, r, jnp.float32)
    zeros = jnp.zeros((a.shape[0], *a.shape[2:]), wide)
    m, P, prior = (zeros if value is None else jnp.asarray(value, wide) for value in (m0, P0, prior0))
    steps = _Steps(*(jnp.asarray(value, wide) for value in (a, q, r, z)))
    filtered = _filter(steps, KalmanState(m, P, P if prior0 is None else prior), reset, method)
    return filtered._replace(m=filtered.m.astype(dtype))


class _Steps(NamedTuple):
    """What each step reads, (B, T, *S), of one type; a is 0 at a reset."""

    a: Array
    q: Array
    r: Array
    z: Array


def _check(a: ArrayLike, others: dict[str, ArrayLike | None], method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    a = jnp.asarray(a)
    if a.ndim < 2 or a.shape[1] == 0:
        raise ValueError(f"a has shape {a.shape}, expected (B, T, ...) with T >= 1")
    shapes = dict.fromkeys("qrz", a.shape) | dict.fromkeys(("m0", "P0", "prior0"), (a.shape[0], *a.shape[2:]))
    given = {name: None if value is None else jnp.asarray(value) for name, value in others.items()}
    check_inputs({"a": a, **given}, {**shapes, "reset": a.shape[:2]}, "a")


def _filter(steps: _Steps, start: KalmanState, reset: Array | None, method: str) -> KalmanScan:
    forget = None if reset is None else jnp.asarray(reset).reshape(*steps.a.shape[:2], *[1] * (steps.a.ndim - 2))
    steps = steps if forget is None else steps._replace(a=jnp.where(forget, 0, steps.a))
    m, P, last = _moments(method, steps, start)
    # a factor that is no number must not meet a gradient of 0
    square = poison(jnp.square(finite(steps.a)), ~jnp.isfinite(steps.a))
    prior, last_prior = linear_scan(square, steps.q, start.prior, reset=reset, method=method)
    before = [shards.previous(values, first, axis=1) for values, first in ((P, start.P), (prior, start.prior))]
    before = before if forget is None else [jnp.where(forget, 0, values) for values in before]
    return KalmanScan(m, P, *_nats(square, steps, *before), last._replace(prior=last_prior))


def _moments(method: str, steps: _Steps, start: KalmanState) -> tuple[Array, Array, KalmanState]:
    """(means, variances, the state after all, its prior that before)."""
    P0, P_end = _across_shards(steps, start.P)

    def run(m0: Array) -> tuple[tuple[Array, Array], Array]:
        m, P = _scan(method, *vary_alike((*steps, m0, P0)))
        return (m, P), m[:, -1]

    def decay() -> Array:
        _, _, keep = _gains(steps, _scan(method, *vary_alike((*steps, start.m, P0)))[1], P0)
        return jnp.prod(steps.a * keep, axis=1)

    (m, P), m_end = shards.carry(run, decay, start.m)
    return m, P, KalmanState(m_end, P[:, -1] if P_end is None else P_end, start.prior)


def _across_shards(steps: _Steps, start: Array) -> tuple[Array, Array | None]:
    """The variance before this shard, and that after all; None where there is one shard."""
    if shards.count() == 1:
        return start, None
    own = lax.associative_scan(_compose, _maps(steps), axis=2)[:, :, -1]
    end, before = lax.scan(lambda P, maps: (_apply(maps, P), P), start, lax.all_gather(own, shards.AXIS))
    return before[shards.number()], end


def _nats(square: Array, steps: _Steps, P: Array, prior: Array) -> tuple[Array, Array]:
    """(gained, forgotten) of the variances before each step; nothing is forgotten where nothing was known.

    A filter may hold what grows without end, |a| > 1: its prior variance leaves the numbers, and what a step forgets is
    that of S = inf long before.
    """
    bad = ~(jnp.isfinite(square + steps.q + P) & (steps.r > 0)) | jnp.isnan(prior)
    endless = ~bad & (P > 0) & (prior >= LARGEST * P) & (square * prior >= LARGEST * steps.q)
    square, q, r, P = (jnp.where(bad, 1, value) for value in (square, steps.q, steps.r, P))
    prior = jnp.where(bad | endless, P, prior)
    gained = jnp.log1p((square * P + q) / r) / 2
    known = jnp.where(prior < P, 0, (prior - P) / jnp.where(P > 0, P, 1))  # less by rounding alone
    carried = square * prior
    share = jnp.where(carried > 0, q / jnp.where(carried > 0, carried + q, 1), 1)
    known = jnp.where((P <= 0) & (prior > 0) & (share > 0), jnp.inf, known)
    lost = jnp.where(endless, q / jnp.where(endless, square * P, 1), share * known)
    return poison(gained, bad), poison(jnp.log1p(lost) / 2, bad)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(method: str, a: Array, q: Array, r: Array, z: Array, m0: Array, P0: Array) -> tuple[Array, Array]:
    """(means, variances) of the steps that are here."""
    parallel = partial(composed_or_stepped, _in_range(_Steps(a, q, r, z), P0), _compose_steps, _run_steps)
    if method == "auto":
        return lax.platform_dependent(a, q, r, z, m0, P0, cpu=_run_steps, default=parallel)
    return (_run_steps if method == "sequential" else parallel)(a, q, r, z, m0, P0)


def _scan_forward(method: str, *given: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    m, P = _scan(method, *given)
    return (m, P), name_residuals((*given, m, P))


def _scan_backward(method: str, saved: tuple[Array, ...], cotangents: tuple[Array, Array]) -> tuple[Array, ...]:
    """mu_t, u_t: cotangents of m_t and P_t, all later steps in them; `lead` is that of P-_t by way of the gain."""
    a, q, r, z, m0, P0, m, P, dm, dP = vary_alike((*saved, *cotangents))
    before, P_before = _previous(m, m0), _previous(P, P0)
    _, gain, keep = _gains(_Steps(a, q, r, z), P, P0)
    mu, dm0 = adjoint(a * keep, dm, jnp.zeros_like(m0), method=method)
    d_gain = multiply_cotangent(_read(r, z) - multiply_state(a, before), mu)
    lead = multiply_cotangent(keep**2 / r, d_gain)
    square = jnp.square(a)
    into = multiply_cotangent(square, lead)
    u, dP0 = adjoint(square * keep**2, dP + _next(into), jnp.zeros_like(P0), method=method)
    d_predicted = multiply_cotangent(keep**2, u) + lead
    da = 2 * multiply_cotangent(multiply_state(a, P_before), d_predicted) + multiply_cotangent(keep * before, mu)
    dr = multiply_cotangent(gain**2, u) - multiply_cotangent(gain * keep / r, d_gain)
    return da, d_predicted, dr, multiply_cotangent(gain, mu), dm0, dP0 + into[:, 0]


_scan.defvjp(_scan_forward, _scan_backward)


def _gains(steps: _Steps, P: Array, P0: Array) -> tuple[Array, Array, Array]:
    """(P-, K, 1 - K) of all steps."""
    predicted = multiply_state(jnp.square(steps.a), _previous(P, P0)) + steps.q
    return predicted, *_gain(predicted, steps.r)


def _gain(predicted: Array, r: Array) -> tuple[Array, Array]:
    """(K, 1 - K), each a quotient that is right for r = inf too, with its derivatives."""
    return predicted / (predicted + r), 1 / (1 + predicted / r)


def _read(r: Array, z: Array) -> Array:
    """The readings, 0 where there is none."""
    return jnp.where(jnp.isinf(r), 0, z)


@jax.jit
def _run_steps(a: Array, q: Array, r: Array, z: Array, m0: Array, P0: Array) -> tuple[Array, Array]:
    """Replaces z by m and q by P in two buffers; a step is written when the next is about to be read (see
    `_linear_scan._in_blocks`).
    """

    def take(t: Array | int, m: Array, P: Array, means: Array, variances: Array) -> tuple[Array, Array]:
        now, factor, wide = at(r, t, a.dtype), at(a, t, a.dtype), a.dtype
        predicted = multiply_state(factor * factor, P) + at(variances, t, wide)
        gain, keep = _gain(predicted, now)
        return multiply_state(factor * keep, m) + gain * _read(now, at(means, t, wide)), keep * predicted

    def body(t: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        m, P, means, variances = carry
        means, variances = put(means, m, t - 1), put(variances, P, t - 1)
        return *take(t, m, P, means, variances), means, variances

    first = take(0, m0, P0, z, q)
    m, P, means, variances = lax.fori_loop(1, a.shape[1], body, (*first, z, q))
    return put(means, m, a.shape[1] - 1), put(variances, P, a.shape[1] - 1)


@jax.jit
def _compose_steps(a: Array, q: Array, r: Array, z: Array, m0: Array, P0: Array) -> tuple[Array, Array]:
    maps = lax.associative_scan(_compose, _maps(_Steps(a, q, r, z)), axis=2)
    P = _apply(maps, P0[:, None])
    _, gain, keep = _gains(_Steps(a, q, r, z), P, P0)
    m, _ = scan_shard(a * keep, gain * _read(r, z), m0, method="associative")
    return m, P


def _maps(steps: _Steps) -> Array:
    """The entries (k, l, m, n) of each step's P -> (k P + l) / (m P + n), (4, B, T, *S): one array, for it compiles in
    a fraction of the time of four. Divided by max(r, 1), so that neither a small r nor r = inf leaves the range.
    """
    square, small, inverse = jnp.square(steps.a), jnp.minimum(steps.r, 1), 1 / jnp.maximum(steps.r, 1)
    return _rescale(jnp.stack([square * small, steps.q * small, square * inverse, small + steps.q * inverse]))


def _compose(first: Array, then: Array) -> Array:
    """`then` after `first`; one that reads no P is itself, whatever came before."""
    rows = [then[i : i + 1] * first[:2] + then[i + 1 : i + 2] * first[2:] for i in (0, 2)]
    return jnp.where((then[:1] == 0) & (then[2:3] == 0), then, _rescale(jnp.concatenate(rows)))


def _rescale(maps: Array) -> Array:
    """The same maps, the largest entry 1. What they are divided by changes no map, so it has no gradient."""
    return maps / lax.stop_gradient(maps.max(axis=0, keepdims=True))


def _apply(maps: Array, P: Array) -> Array:
    return (multiply_state(maps[0], P) + maps[1]) / (multiply_state(maps[2], P) + maps[3])


def _in_range(steps: _Steps, P0: Array) -> Array:
    """Whether products of maps keep all that matters: variances neither too large nor too small beside one another, no
    growth.
    """
    a, q, r, _ = steps

    def within(variance: Array, also: float) -> Array:
        return (((variance >= 1 / LARGEST) & (variance <= LARGEST)) | (variance == also)).all()

    growth = jnp.prod(jnp.maximum(jnp.square(a), 1), axis=1)
    return within(q, 0) & within(r, jnp.inf) & within(P0, 0) & (growth <= LARGEST).all()


def _previous(values: Array, start: Array) -> Array:
    return jnp.concatenate([start[:, None], values[:, :-1]], axis=1)


def _next(values: Array) -> Array:
    """The values one step later, 0 behind the last."""
    return jnp.concatenate([values[:, 1:], jnp.zeros_like(values[:, :1])], axis=1)
