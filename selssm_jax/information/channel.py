"""The Gaussian channel s -> s + v: the one formula under all exact information of this folder (theory, section 4.1)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from selssm_jax.ops.extremes import largest

# units of rounding: a variance of so many cannot be told from zero (32 is what sums over n <= 16 and long times leave)
FLOOR = 32.0
SQUARINGS = 48  # 2^48 is a power at which a sum of n powers is the greatest of them

einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)  # accelerators round the factors of products otherwise


@jax.custom_jvp
def channel_information(
    signal_cov: Float[Array, "*batch n n"], noise_cov: Float[Array, "*batch n n"]
) -> Float[Array, "*batch"]:
    """I(s; s + v) = 1/2 log det(I + N^{-1} S) of independent s ~ N(0, S) and v ~ N(0, N), in nats: the one formula
    under this module.

    inf where S reaches outside the range of N; for S inside it a singular N counts on its range. Nothing is subtracted:
    values small against 1 are exact to rounding. The derivative is 1/2 tr((N + S)^- (dN + dS)) - 1/2 tr(N^- dN), and 0
    where it is inf. Cost O(n^3): two eliminations of n steps, all matrices of a batch at once. The matrices are taken
    for covariances, unchecked. Source: theory, section 4.1.
    """
    basis, outside = _whiten(signal_cov, noise_cov)
    return jnp.where(outside, jnp.inf, 0.5 * _log_det(congruent(basis.mT, signal_cov)))


@channel_information.defjvp
def _channel_information_derivative(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (signal, noise), (dsignal, dnoise) = primals, tangents
    value = channel_information(signal, noise)
    by_total, by_noise = inverse(noise + signal), inverse(noise)
    slope = 0.5 * (_inner(by_total, dsignal) + _inner(by_total - by_noise, dnoise))
    return value, jnp.where(jnp.isfinite(value), slope, 0)


@jax.custom_jvp
def gain(signal: Float[Array, "*batch n n"], noise: Float[Array, "*batch n n"]) -> Float[Array, "*batch"]:
    """lambda_max(N^{-1/2} S N^{-1/2}); inf where S reaches outside the range of N."""
    return _greatest(signal, noise)[0]


@gain.defjvp
def _gain_derivative(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    value, mean = _greatest(*primals)
    finite = jnp.isfinite(value)
    slope = _inner(mean, tangents[0]) - jnp.where(finite, value, 0) * _inner(mean, tangents[1])
    return value, jnp.where(finite, slope, 0)


def _greatest(signal: Array, noise: Array) -> tuple[Array, Array]:
    """lambda and the mean of u u' over all u with S u = lambda N u, u' N u = 1, for the greatest lambda.

    By squaring: with X <- (X / tr X)^2, tr(M^p)^(1/p) falls to lambda_max, within a factor of n^(1/p), and X becomes
    the projector.
    """
    basis, outside = _whiten(signal, noise)
    M = congruent(basis.mT, signal)

    def square(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        X, log = carry
        trace = jnp.trace(X, axis1=-2, axis2=-1)
        X = X / jnp.where(trace > 0, trace, 1)[..., None, None]
        return einsum("...ij,...jk->...ik", X, X), log + jnp.log(trace) * 0.5**k

    X, log = lax.fori_loop(0, SQUARINGS, square, (M, jnp.zeros_like(M[..., 0, 0])))
    trace = jnp.trace(X, axis1=-2, axis2=-1)
    X = X / jnp.where(trace > 0, trace, 1)[..., None, None]
    return jnp.where(outside, jnp.inf, jnp.exp(log)), congruent(basis, X)


@jax.custom_jvp
def inverse(covariance: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """A generalised inverse that is right on the range, which is taken for constant."""
    basis, _ = _whiten(jnp.zeros_like(covariance), covariance)
    return einsum("...ik,...jk->...ij", basis, basis)


@inverse.defjvp
def _inverse_derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    value = inverse(*primals)
    return value, -congruent(value, tangents[0])


def _whiten(signal: Array, noise: Array) -> tuple[Array, Array]:
    """V with V' N V = I on the range of N, in zero columns filled up to n, and whether S reaches outside that range.

    Each component is first scaled to unit noise, for their units are arbitrary and differ by far where gates are small.
    Both tests are relative to the terms whose sum, but for rounding, would be zero.
    """
    power, heard = (jnp.diagonal(matrix, axis1=-2, axis2=-1) for matrix in (noise, signal))
    scale = lax.rsqrt(jnp.where(power > 0, power, jnp.where(heard > 0, heard, 1)))
    V, silent, free = _eliminate(noise * scale[..., :, None] * scale[..., None, :])
    silent = silent * scale[..., :, None]
    leak = jnp.sum(silent * einsum("...ij,...jk->...ik", signal, silent), axis=-2)
    terms = jnp.sum(jnp.abs(silent) * jnp.sqrt(jnp.maximum(heard, 0))[..., :, None], axis=-2) ** 2
    outside = jnp.any(free & (leak > _tolerance(noise) * terms), axis=-1)
    return V * scale[..., :, None], outside


def _eliminate(N: Array) -> tuple[Array, Array, Array]:
    """V with V' N V = I or 0, column by column; I - V (V' N), whose free columns N annihilates; which are free.

    Cholesky's N = L L', L = N V, with the largest pivot first, until none is left above rounding (N has the diagonal 1
    or 0). In steps over whole batches rather than by LAPACK: as fast for small matrices on a CPU, one program
    everywhere, and batches of LAPACK calls beside other work may block each other in XLA's thread pool for ever (seen
    with two cores and JAX 0.10.2).
    """

    def step(k: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        V, L, left = carry
        unit = jax.nn.one_hot(jnp.argmax(left, axis=-1), left.shape[-1], dtype=N.dtype)
        pivot = largest(left, -1)
        counts = pivot > _tolerance(N)
        scale = jnp.where(counts, lax.rsqrt(jnp.where(counts, pivot, 1)), 0)[..., None]
        known = jnp.sum(L * unit[..., :, None], axis=-2)[..., None, :]
        column = (jnp.sum(N * unit[..., None, :], axis=-1) - jnp.sum(L * known, axis=-1)) * scale
        V = lax.dynamic_update_index_in_dim(V, (unit - jnp.sum(V * known, axis=-1)) * scale, k, V.ndim - 1)
        L = lax.dynamic_update_index_in_dim(L, column, k, L.ndim - 1)
        return V, L, jnp.where(counts[..., None] & (unit > 0), -jnp.inf, left - column**2)

    start = jnp.zeros_like(N), jnp.zeros_like(N), jnp.diagonal(N, axis1=-2, axis2=-1)
    V, L, left = lax.fori_loop(0, N.shape[-1], step, start)
    return V, each(jnp.eye(N.shape[-1], dtype=N.dtype), N) - einsum("...ik,...jk->...ij", V, L), left > -jnp.inf


def _log_det(M: Array) -> Array:
    """log det(I + M) for M >= 0, with all digits of a small M."""

    def step(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        M, log = carry
        column = lax.dynamic_index_in_dim(M, k, M.ndim - 1, keepdims=False)
        # below only by rounding
        pivot = jnp.maximum(lax.dynamic_index_in_dim(column, k, column.ndim - 1, keepdims=False), 0)
        return M - column[..., :, None] * column[..., None, :] / (1 + pivot)[..., None, None], log + jnp.log1p(pivot)

    return lax.fori_loop(0, M.shape[-1], step, (M, jnp.zeros_like(M[..., 0, 0])))[1]


def _tolerance(like: Array) -> float:
    return FLOOR * float(jnp.finfo(like.dtype).eps)


def congruent(A: Array, covariance: Array) -> Array:
    """A C A'."""
    return einsum("...ij,...jk,...lk->...il", A, covariance, A, optimize=[(0, 1), (0, 1)])


def each(matrix: Array, like: Array) -> Array:
    """The same matrix for every leading index."""
    return jnp.broadcast_to(matrix, (*like.shape[:-2], *matrix.shape[-2:]))


def _inner(x: Array, y: Array) -> Array:
    return jnp.sum(x * y, axis=(-2, -1))
