"""Exact information of linear-Gaussian states under exogenous gates: totals, by lag, of outputs, and bounds (theory,
sections 4.1 and 7).

All functions are about one law. x_t ~ N(0, Sx) independent over time, w_t ~ N(0, Q_t), h_0 ~ N(., P_0) and

    h_t = A_t h_{t-1} + B_t x_t + w_t.

Its covariance is signal + noise, Sigma_t = S_t + N_t, with S_0 = 0, N_0 = P_0 (what is known of the start is no input)
and S_t = A_t S_{t-1} A_t' + B_t Sx B_t', N_t = A_t N_{t-1} A_t' + Q_t. A_t and B_t hold the gates already, and Q_t is
the noise as it enters h_t: G_t Q G_t where the noise is gated, Q where it is additive. Gates must be fixed, or
independent of x and w: for gates that read x these formulas are neither upper nor lower bounds (theory, section 4.2).

A direction counts as free of noise where its variance is under 32 roundings (`channel.FLOOR`) of the terms it is the
sum of, after every component is scaled to unit noise; with signal in it the information is inf. A number is never NaN:
covariances that overflow raise ValueError, which under `jax.jit` cannot be, so that there, and only there, they are
NaN.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from selssm_jax.information.channel import channel_information, congruent, each, einsum, gain, inverse
from selssm_jax.information.checks import check_covariance, check_finite, check_shape, floating
from selssm_jax.ops import linear_scan

METHODS = ("auto", "sequential", "associative")
Transitions = Float[Array, "T n"] | Float[Array, "T n n"]
Noise = Float[Array, "n n"] | Float[Array, "T n n"]


class Covariances(NamedTuple):
    """Of h_t, t = 1..T: the part that the inputs cause, and the rest; their sum is the covariance of the state."""

    signal: Float[Array, "T n n"]
    noise: Float[Array, "T n n"]


class OutputInformation(NamedTuple):
    """Of y_t, in nats: what it says of the state, I(y_t; h_t), and of all inputs, I(y_t; x_{1:t})."""

    state: Float[Array, "T"]
    inputs: Float[Array, "T"]


class _System(NamedTuple):
    """The arguments, checked and of one type."""

    A: Array  # (T, n) or (T, n, n)
    B: Array  # (T, n, m)
    input_cov: Array
    noise: Array  # (T, n, n)
    start: Array  # (2, n, n): S_0 and N_0


def state_information(
    A_t: Transitions,
    B_t: Float[Array, "T n m"],
    input_cov: Float[Array, "m m"],
    noise_cov: Noise,
    initial_cov: Float[Array, "n n"] | None = None,
) -> Float[Array, "T"]:
    """I(h_t; x_{1:t}) = 1/2 log det(I + N_t^{-1} S_t) for every t, in nats. Exact for exogenous gates.

    inf where the inputs reach a direction that no noise does (Q = 0), 0 where they reach none (B = 0, gate 0). Smooth
    in all arguments: reverse-mode derivatives of any order, exact also where noise or signal have repeated eigenvalues;
    0 where it is inf.

    Cost: O(T n^2) for diagonal A_t, O(T n^3) for dense, and O(T n^3) for the determinants; the recursion is sequential
    on a CPU and a parallel scan elsewhere (see `covariances`).

    Args:
      A_t: transition of every step, gates applied: its diagonal (T, n), or (T, n, n). Complex poles go in as real
        pairs.
      B_t: input matrix of every step, gates applied. input_cov: Sx.
      noise_cov: covariance of the noise as it enters h_t, of all steps or of every step.
      initial_cov: P_0; zero if None.

    Returns:
      (T,): entry t is about the state after the step that A_t[t] and B_t[t] make.

    Raises:
      ValueError: for shapes or types that do not fit, no steps, values that are not finite, matrices that are no
        covariances (values are looked at outside of `jax.jit` only), and covariances that overflow.

    Source: theory, section 4.1.
    """
    return _check_overflow(_state_information(_system(A_t, B_t, input_cov, noise_cov, initial_cov)))


def covariances(
    A_t: Transitions,
    B_t: Float[Array, "T n m"],
    input_cov: Float[Array, "m m"],
    noise_cov: Noise,
    initial_cov: Float[Array, "n n"] | None = None,
    *,
    method: str = "auto",
) -> Covariances:
    """S_t = A_t S_{t-1} A_t' + B_t Sx B_t' and N_t = A_t N_{t-1} A_t' + Q_t, for every t.

    "associative" composes (A2, S2, N2) o (A1, S1, N1) = (A2 A1, A2 S1 A2' + S2, A2 N1 A2' + N2) in O(log T) parallel
    steps; "sequential" is the loop. "auto", decided where the program is lowered, is sequential on a CPU and
    associative elsewhere. Diagonal A_t: elementwise, factors a_i a_j. The other arguments and what is raised: see
    `state_information`. Source: theory, section 4.1.

    Raises:
      ValueError: for an unknown method, and what `state_information` raises of its arguments.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    return _covariances(_system(A_t, B_t, input_cov, noise_cov, initial_cov), method)


def retention(
    A_t: Transitions,
    B_t: Float[Array, "T n m"],
    input_cov: Float[Array, "m m"],
    noise_cov: Noise,
    *,
    t: int,
    lags: int,
    initial_cov: Float[Array, "n n"] | None = None,
) -> Float[Array, "lags"]:
    """I(h_t; x_{t-k}) for k = 0..lags-1, in nats: what the state holds of each single input. Exact for exogenous gates.

    1/2 log det Sigma_t - 1/2 log det(Sigma_t - W_k) with W_k = H Sx H', H = Phi(t, t-k) B_{t-k}; computed from W_k and
    the sum of all else, which loses nothing to cancellation. The lags sum to at most I(h_t; x_{1:t}), for the inputs
    are independent.

    Cost: O(t n^2) or O(t n^3) for the recursion, O(lags n^3) for the rest; compiled anew for each t and lags.

    Args:
      A_t, B_t, input_cov, noise_cov, initial_cov: see `state_information`.
      t: index of the step, from 0 to T-1, as into A_t and into the result of `state_information`.
      lags: how many, from 1 to t+1; the last one possible is that of the first step.

    Raises:
      ValueError: for t or lags out of range, and what `state_information` raises.

    Source: theory, section 4.1.
    """
    system = _until(_system(A_t, B_t, input_cov, noise_cov, initial_cov), t, lags)
    return _check_overflow(_retention(system, lags))


def chain_terms(
    A_t: Transitions,
    B_t: Float[Array, "T n m"],
    input_cov: Float[Array, "m m"],
    noise_cov: Noise,
    *,
    t: int,
    initial_cov: Float[Array, "n n"] | None = None,
) -> Float[Array, "lags"]:
    """I(h_t; x_{t-k} | x_{t-k+1..t}) for k = 0..t, newest first, in nats: they sum to I(h_t; x_{1:t}) (h_0 is noise,
    not a term).

    1/2 log det Sigma^(k) - 1/2 log det Sigma^(k+1), with Sigma^(0) = Sigma_t and Sigma^(k+1) = Sigma^(k) - W_k, which
    is what inputs older than lag k and the noise cause; computed as such, not by subtraction. Exact for exogenous
    gates. inf from the lags whose input alone reaches a direction, as it is in the total. Arguments, cost and errors:
    see `retention`. Source: theory, section 4.1.

    Raises:
      ValueError: for t out of range, and what `state_information` raises.
    """
    system = _until(_system(A_t, B_t, input_cov, noise_cov, initial_cov), t, 1)
    return _check_overflow(_chain_terms(system, t + 1))


def past_information(
    A_t: Transitions,
    B_t: Float[Array, "T n m"],
    input_cov: Float[Array, "m m"],
    noise_cov: Noise,
    *,
    t: int,
    lags: int,
    initial_cov: Float[Array, "n n"] | None = None,
) -> Float[Array, "lags"]:
    """I(h_t; x_{1:t-k}) for k = 0..lags-1, in nats: what is left of all that was read until k steps ago. Exact for
    exogenous gates.

    1/2 log det Sigma_t - 1/2 log det(Sigma_t - Phi(t,s) S_s Phi(t,s)') at s = t-k, from the two parts and not by
    subtraction. Arguments, cost and errors: see `retention`. Source: theory, section 4.1.

    Raises:
      ValueError: for t or lags out of range, and what `state_information` raises.
    """
    system = _until(_system(A_t, B_t, input_cov, noise_cov, initial_cov), t, lags)
    return _check_overflow(_past_information(system, lags))


def forgetting_bound(
    A_t: Transitions,
    B_t: Float[Array, "T n m"],
    input_cov: Float[Array, "m m"],
    noise_cov: Noise,
    *,
    t: int,
    lags: int,
    initial_cov: Float[Array, "n n"] | None = None,
) -> Float[Array, "lags"]:
    """An upper bound on I(h_t; x_{1:t-k}) for k = 0..lags-1, in nats: strong data processing, step by step.

    I(h_t; x_{1:s}) <= prod_{r=s+1..t} rho_r^2 I(h_s; x_{1:s}), where rho_r is the largest canonical correlation of
    h_{r-1} and h_r: rho_r^2 = lambda_max(Sigma_{r-1}^{1/2} A_r' Sigma_r^{-1} A_r Sigma_{r-1}^{1/2}). Holds for white x
    and exogenous gates; `past_information` is the exact value. inf where I(h_s; x_{1:s}) is, unless nothing at all
    passes a later step: then 0.
    Where several correlations are the largest (two shut gates: rho = 1 twice), it has a kink, and its gradient is the
    mean of theirs. Arguments, cost and errors: see `retention`. Source: theory, section 7.

    Raises:
      ValueError: for t or lags out of range, and what `state_information` raises.
    """
    system = _until(_system(A_t, B_t, input_cov, noise_cov, initial_cov), t, lags)
    return _check_overflow(_forgetting_bound(system, lags))


def output_information(
    A_t: Transitions,
    B_t: Float[Array, "T n m"],
    input_cov: Float[Array, "m m"],
    noise_cov: Noise,
    C: Float[Array, "p n"] | Float[Array, "T p n"],
    observation_cov: Float[Array, "p p"],
    initial_cov: Float[Array, "n n"] | None = None,
) -> OutputInformation:
    """I(y_t; h_t) and I(y_t; x_{1:t}) of outputs y_t = C h_t + v_t, v_t ~ N(0, R), for every t, in nats. Exact for
    exogenous gates.

    1/2 log det(I + R^{-1} C Sigma_t C') and 1/2 log det(C Sigma_t C' + R) - 1/2 log det(C N_t C' + R). There is no
    feedthrough D x_t. inf as in `state_information`, where the other arguments, the cost and the errors are too.
    Source: theory, section 4.1.

    Args:
      A_t, B_t, input_cov, noise_cov, initial_cov: see `state_information`.
      C: the readout, of all steps or of every step. observation_cov: R.

    Raises:
      ValueError: for C or observation_cov that do not fit, and what `state_information` raises.
    """
    system = _system(A_t, B_t, input_cov, noise_cov, initial_cov)
    return _check_overflow(_output_information(system, *_readout(system, C, observation_cov)))


def filtering_information(
    A_t: Transitions,
    B_t: Float[Array, "T n m"],
    input_cov: Float[Array, "m m"],
    noise_cov: Noise,
    C: Float[Array, "p n"] | Float[Array, "T p n"],
    observation_cov: Float[Array, "p p"],
    initial_cov: Float[Array, "n n"] | None = None,
) -> Float[Array, "T"]:
    """I(h_t; y_{1:t}) = 1/2 log det Sigma_t - 1/2 log det P_t, in nats: what all outputs so far say of the state, the
    inputs unknown.

    P_t is the Kalman filter's error covariance, which takes B_t x_t for noise; y_t = C h_t + v_t, v_t ~ N(0, R), R
    invertible. Exact for exogenous gates. Always sequential. Arguments, cost and errors: see `output_information`.
    Source: theory, section 4.1.

    Raises:
      ValueError: for an observation_cov that is not positive definite, and what `output_information` raises.
    """
    system = _system(A_t, B_t, input_cov, noise_cov, initial_cov)
    C, R = _readout(system, C, observation_cov)
    if not isinstance(R, jax.core.Tracer) and np.linalg.eigvalsh(np.asarray(R))[0] <= 0:
        raise ValueError(
            "observation_cov is singular, expected a positive definite matrix: what is observed without noise is known "
            "exactly"
        )
    return _check_overflow(_filtering_information(system, C, R))


def capacity(
    B: Float[Array, "n m"] | Float[Array, "T n m"], input_cov: Float[Array, "m m"], noise_cov: Noise
) -> Float[Array, ""]:
    """An upper bound on I(h_t; x_{1:t}) for every transition, every t and every P_0: (n/2) log(1 + lambda_max(Q^{-1/2}
    B Sx B' Q^{-1/2})), in nats.

    For gated noise B and Q before the gates bound every sequence of exogenous gates too, since G_t B Sx B' G_t <= c G_t
    Q G_t: gates move information between lags and cannot raise it. Given for every step, the largest ratio counts. inf
    where an input meets no noise. Cost: O(n^3) for each matrix. Source: theory, section 4.1.

    Raises:
      ValueError: as `state_information`.
    """
    B, input_cov, noise_cov = floating(B=B, input_cov=input_cov, noise_cov=noise_cov)
    if B.ndim not in (2, 3) or 0 in B.shape:
        raise ValueError(f"B has shape {B.shape}, expected (n, m) or (T, n, m) with n, m, T >= 1")
    n, m = B.shape[-2:]
    check_shape("input_cov", input_cov, [(m, m)], "B")
    check_shape("noise_cov", noise_cov, [(n, n), (B.shape[0], n, n)] if B.ndim == 3 else [(n, n)], "B")
    _check_values(dict(B=B), dict(input_cov=input_cov, noise_cov=noise_cov))
    return _capacity(B, input_cov, noise_cov)


def coloured_information(
    A_t: Transitions,
    B_t: Float[Array, "T n m"],
    noise_cov: Noise,
    F: Float[Array, "d d"],
    H: Float[Array, "m d"],
    innovation_cov: Float[Array, "d d"],
    initial_cov: Float[Array, "n n"] | None = None,
    *,
    source_cov: Float[Array, "d d"] | None = None,
) -> Float[Array, "T"]:
    """I(h_t; x_{1:t}) for inputs with memory, x_t = H z_t, z_t = F z_{t-1} + e_t, e_t ~ N(0, E), in nats. Exact for
    exogenous gates.

    The recursion is run for (h, z) jointly, with A = [[A_t, B_t H F], [0, F]] and B = [[B_t H], [I]]; the information
    is that of the block of h. `state_information` with the stationary covariance of x is wrong here: it takes repeated
    news for new. Cost: O(T (n + d)^3). Source: theory, section 4.1.

    Args:
      A_t, B_t, noise_cov, initial_cov: see `state_information`.
      F: transition of the source. H: its readout. innovation_cov: E.
      source_cov: covariance of z_0; zero if None.

    Raises:
      ValueError: for F, H, innovation_cov or source_cov that do not fit, and what `state_information` raises.
    """
    source_cov = jnp.zeros_like(F) if source_cov is None else source_cov
    F, H, innovation_cov, source_cov = floating(F=F, H=H, innovation_cov=innovation_cov, source_cov=source_cov)
    if H.ndim != 2 or 0 in H.shape:
        raise ValueError(f"H has shape {H.shape}, expected (m, d) with m, d >= 1")
    check_shape("F", F, [(H.shape[1],) * 2], "H")
    check_shape("innovation_cov", innovation_cov, [(H.shape[1],) * 2], "H")
    check_shape("source_cov", source_cov, [(H.shape[1],) * 2], "H")
    _check_values(dict(F=F, H=H), dict(innovation_cov=innovation_cov, source_cov=source_cov))
    system = _system(A_t, B_t, jnp.eye(len(H), dtype=H.dtype), noise_cov, initial_cov)
    return _check_overflow(_coloured_information(system, F, H, innovation_cov, source_cov))


@jax.jit
def _state_information(system: _System) -> Array:
    return channel_information(*_covariances(system))


@partial(jax.jit, static_argnums=1)
def _covariances(system: _System, method: str = "auto") -> Covariances:
    driven = jnp.stack([congruent(system.B, each(system.input_cov, system.B)), system.noise], axis=1)
    if system.A.ndim == 2:
        factor = system.A[:, :, None] * system.A[:, None, :]
        both = linear_scan(
            jnp.broadcast_to(factor[None], (2, *factor.shape)), driven.swapaxes(0, 1), system.start, method=method
        )[0]
        return Covariances(both[0], both[1])
    if method == "auto":
        both = lax.platform_dependent(system.A, driven, system.start, cpu=_loop, default=_parallel)
    else:
        both = (_loop if method == "sequential" else _parallel)(system.A, driven, system.start)
    return Covariances(both[:, 0], both[:, 1])


def _loop(A: Array, driven: Array, start: Array) -> Array:
    """(T, 2, n, n): signal and noise, one step after the other."""

    def step(before: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        after = congruent(each(now[0], before), before) + now[1]
        return after, after

    return lax.scan(step, start, (A, driven))[1]


def _parallel(A: Array, driven: Array, start: Array) -> Array:
    def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return einsum("...ij,...jk->...ik", second[0], first[0]), congruent(second[0][:, None], first[1]) + second[1]

    driven = driven.at[0].add(congruent(each(A[0], start), start))
    return lax.associative_scan(compose, (A, driven))[1]


class _History(NamedTuple):
    """The covariance of the newest state by its causes, for every lag k: the input of lag k, newer ones, older ones;
    and the noise of all.
    """

    own: Array
    newer: Array
    older: Array
    noise: Array


def _history(system: _System, lags: int) -> _History:
    signal, noise = _covariances(system)
    Phi = _transitions(system.A[::-1][:lags])
    H = _apply(Phi[:-1], system.B[::-1][:lags])
    own = congruent(H, each(system.input_cov, H))
    before = jnp.concatenate([jnp.zeros_like(signal[:1]), signal[:-1]])[::-1][:lags]
    older = _carry(Phi[1:], before)
    newer = jnp.concatenate([jnp.zeros_like(own[:1]), jnp.cumsum(own[:-1], axis=0)])
    return _History(own, newer, older, each(noise[-1], own))


def _transitions(A: Array) -> Array:
    """Phi(t, t-k) for k = 0..lags from A_t, A_{t-1}, ..., newest first."""
    if A.ndim == 2:
        return jnp.cumprod(jnp.concatenate([jnp.ones_like(A[:1]), A]), axis=0)
    A = jnp.concatenate([each(jnp.eye(A.shape[-1], dtype=A.dtype), A[:1]), A])
    return lax.platform_dependent(
        A, cpu=_products_in_order, default=partial(lax.associative_scan, partial(einsum, "...ij,...jk->...ik"))
    )


def _products_in_order(A: Array) -> Array:
    def step(Phi: Array, A: Array) -> tuple[Array, Array]:
        Phi = einsum("ij,jk->ik", Phi, A)
        return Phi, Phi

    return lax.scan(step, jnp.eye(A.shape[-1], dtype=A.dtype), A)[1]


def _apply(Phi: Array, B: Array) -> Array:
    return Phi[..., None] * B if Phi.ndim == 2 else einsum("tij,tjk->tik", Phi, B)


def _carry(Phi: Array, covariance: Array) -> Array:
    return Phi[:, :, None] * covariance * Phi[:, None, :] if Phi.ndim == 2 else congruent(Phi, covariance)


@partial(jax.jit, static_argnums=1)
def _retention(system: _System, lags: int) -> Array:
    own, newer, older, noise = _history(system, lags)
    return channel_information(own, noise + newer + older)


@partial(jax.jit, static_argnums=1)
def _chain_terms(system: _System, lags: int) -> Array:
    own, _, older, noise = _history(system, lags)
    return channel_information(own, noise + older)


@partial(jax.jit, static_argnums=1)
def _past_information(system: _System, lags: int) -> Array:
    own, newer, older, noise = _history(system, lags)
    return channel_information(own + older, noise + newer)


@partial(jax.jit, static_argnums=1)
def _forgetting_bound(system: _System, lags: int) -> Array:
    signal, noise = (part[-lags:] for part in _covariances(system))
    total = signal + noise
    kept = gain(_carry(system.A[-lags:][1:], total[:-1]), total[1:])
    passed = jnp.cumprod(jnp.concatenate([jnp.ones_like(total[:1, 0, 0]), kept[::-1]]))
    known = channel_information(signal, noise)[::-1]
    return jnp.where(passed == 0, 0, passed * jnp.where(passed == 0, 0, known))


@jax.jit
def _output_information(system: _System, C: Array, R: Array) -> OutputInformation:
    signal, noise = (congruent(C, part) for part in _covariances(system))
    R = each(R, noise)
    return OutputInformation(channel_information(signal + noise, R), channel_information(signal, noise + R))


@jax.jit
def _filtering_information(system: _System, C: Array, R: Array) -> Array:
    signal, noise = _covariances(system)
    A = jax.vmap(jnp.diag)(system.A) if system.A.ndim == 2 else system.A
    driven = congruent(system.B, each(system.input_cov, system.B)) + system.noise

    def step(P: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        A, driven, C = now
        P = congruent(A, P) + driven
        K = einsum("ij,kj,kl->il", P, C, inverse(congruent(C, P) + R))
        P = congruent(jnp.eye(len(P), dtype=P.dtype) - einsum("ij,jk->ik", K, C), P) + congruent(K, R)
        return P, P

    P = lax.scan(step, system.start.sum(0), (A, driven, C))[1]
    return channel_information(signal + noise - P, P)


@jax.jit
def _capacity(B: Array, input_cov: Array, noise: Array) -> Array:
    signal = congruent(B, each(input_cov, B))
    return 0.5 * B.shape[-2] * jnp.log1p(gain(signal, each(noise, signal) if noise.ndim == 2 else noise).max())


@jax.jit
def _coloured_information(system: _System, F: Array, H: Array, innovation_cov: Array, source_cov: Array) -> Array:
    A = jax.vmap(jnp.diag)(system.A) if system.A.ndim == 2 else system.A
    (T, n, _), d = A.shape, len(F)
    BH = einsum("tij,jk->tik", system.B, H)
    above = jnp.concatenate([A, einsum("tij,jk->tik", BH, F)], axis=2)
    below = jnp.concatenate([jnp.zeros((T, d, n), A.dtype), each(F, A)], axis=2)
    B = jnp.concatenate([BH, each(jnp.eye(d, dtype=A.dtype), A)], axis=1)
    start = jnp.stack([jnp.zeros((n + d, n + d), A.dtype).at[n:, n:].set(source_cov), jnp.pad(system.start[1], (0, d))])
    joint = _System(
        jnp.concatenate([above, below], axis=1),
        B,
        innovation_cov,
        jnp.pad(system.noise, ((0, 0), (0, d), (0, d))),
        start,
    )
    signal, noise = (part[:, :n, :n] for part in _covariances(joint))
    return channel_information(signal, noise)


def _system(A_t: Array, B_t: Array, input_cov: Array, noise_cov: Array, initial_cov: Array | None) -> _System:
    """Checks, and brings all to one type of at least float32."""
    given = dict(A_t=A_t, B_t=B_t, input_cov=input_cov, noise_cov=noise_cov) | (
        {} if initial_cov is None else dict(initial_cov=initial_cov)
    )
    given = dict(zip(given, floating(**given), strict=True))
    A, B, input_cov, noise = (given[name] for name in ("A_t", "B_t", "input_cov", "noise_cov"))
    if A.ndim not in (2, 3) or 0 in A.shape or A.shape[1] != A.shape[-1]:
        raise ValueError(
            f"A_t has shape {A.shape}, expected (T, n) for diagonals or (T, n, n) with T, n >= 1; repeat a constant A "
            "with jnp.broadcast_to"
        )
    T, n = A.shape[:2]
    if B.ndim != 3 or B.shape[:2] != (T, n) or B.shape[2] == 0:
        raise ValueError(
            f"B_t has shape {B.shape}, expected (T, n, m) = ({T}, {n}, m) with m >= 1; repeat a constant B with "
            "jnp.broadcast_to"
        )
    check_shape("input_cov", input_cov, [(B.shape[2],) * 2], "B_t")
    check_shape("noise_cov", noise, [(n, n), (T, n, n)], "A_t")
    initial = given.get("initial_cov", jnp.zeros((n, n), A.dtype))
    check_shape("initial_cov", initial, [(n, n)], "A_t")
    _check_values(dict(A_t=A, B_t=B), dict(input_cov=input_cov, noise_cov=noise, initial_cov=initial))
    noise = jnp.broadcast_to(noise, (T, n, n)) if noise.ndim == 3 else jnp.broadcast_to(noise[None], (T, n, n))
    return _System(A, B, input_cov, noise, jnp.stack([jnp.zeros_like(initial), initial]))


def _readout(system: _System, C: Array, R: Array) -> tuple[Array, Array]:
    """C of every step and R, checked."""
    C, R = (value.astype(system.A.dtype) for value in floating(C=C, observation_cov=R))
    T, n = system.A.shape[:2]
    if C.ndim not in (2, 3) or 0 in C.shape or C.shape[-1] != n or C.shape[:-2] not in ((), (T,)):
        raise ValueError(f"C has shape {C.shape}, expected (p, {n}) or ({T}, p, {n}) from A_t with p >= 1")
    check_shape("observation_cov", R, [(C.shape[-2],) * 2], "C")
    _check_values(dict(C=C), dict(observation_cov=R))
    return jnp.broadcast_to(C, (T, *C.shape[-2:])) if C.ndim == 3 else jnp.broadcast_to(C[None], (T, *C.shape)), R


def _until(system: _System, t: int, lags: int) -> _System:
    """The system as it is up to step t."""
    T = len(system.A)
    if not 0 <= t < T:
        raise ValueError(f"t={t} is no step: expected an index from 0 to {T - 1}, for A_t has T={T} steps")
    if not 1 <= lags <= t + 1:
        raise ValueError(
            f"lags={lags} at t={t}: expected from 1 to {t + 1}, for lag {t} is that of the first input; use fewer lags "
            "or a later t"
        )
    return system._replace(A=system.A[: t + 1], B=system.B[: t + 1], noise=system.noise[: t + 1])


def _check_values(maps: dict[str, Array], matrices: dict[str, Array]) -> None:
    check_finite(**maps)
    for name, matrix in matrices.items():
        check_covariance(name, matrix)


def _check_overflow(result: Any) -> Any:
    """The result, unless covariances overflowed on the way."""
    for value in jax.tree.leaves(result):
        if not isinstance(value, jax.core.Tracer) and jnp.isnan(value).any():
            step = int(jnp.argmax(jnp.isnan(value)))
            raise ValueError(
                f"covariances overflow (first at entry {step} of the result): A_t expands too far; use fewer steps, "
                "float64 or a stable A_t"
            )
    return result
