"""Bounds from both sides on the information of gated states: the conditional law is exact, the marginal law is a mean
over samples.

Where gates read the input, h_t = (1 - g_t) h_{t-1} + g_t (A h_{t-1} + B x_t + w_t) given x_{1:t} is still N(mu_t(x),
N_t(x)) (`conditional_moments`), but over all inputs it is a continuous mixture of such laws, and the formulas of
`gaussian` with realised gates in them bound nothing. From M independent trajectories, `state_information` puts I(h_t;
x_{1:t}) between two ends that hold in expectation, at every M, for every gate G(x_t) (theory, section 4.2; Poole et al.
2019).

Gates that read the state too, G(x_t, h_{t-1}): given (h_{t-1}, x_t) the law of h_t is N((1 - g) h_{t-1} + g (A h_{t-1}
+ B x_t), G Q G). With these means and covariances `state_information` brackets I(h_t; h_{t-1}, x_t), and by data
processing its upper end is an upper bound on I(h_t; x_{1:t}); its lower end is none (theory, section 4.3).

The result is about one time. For many, `jax.lax.map` over the time axis keeps memory at one time's, `jax.vmap` is not
slower where there is room.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from selssm_jax.information.channel import FLOOR, einsum
from selssm_jax.information.checks import check_finite, check_shape, floating
from selssm_jax.ops import linear_scan
from selssm_jax.ops.extremes import largest

# standard errors are given so much larger: two then cover 98.8 %. Two bare ones, 95.4 %, miss more than 5 of 100
# samples every third time
CAUTION = 1.25
DEFENCE = 0.1  # weight of the Gaussian in the upper end's marginal
PAIRS = 2**18  # pairs of samples at once: 1 MB in float32 stays in the cache

Covariances = Float[Array, "M n"] | Float[Array, "M n n"]


class Bracket(NamedTuple):
    """Mutual information in nats: lower <= I <= upper, both in expectation.

    Attributes:
      lower: at most I in expectation, and never far above log M: it saturates there.
      upper: at least I in expectation.
      stderr: standard error of both ends, of the worse one, from above (see `CAUTION`): [lower - 2 stderr, upper + 2
        stderr] covers I.
      resolved: False where lower > log M - 1: M samples cannot tell such information from more. Then lower is still a
        bound; take more samples.
    """

    lower: Float[Array, ""]
    upper: Float[Array, ""]
    stderr: Float[Array, ""]
    resolved: Bool[Array, ""]


class UpperBound(NamedTuple):
    """An upper bound on mutual information in nats, and its standard error, from above (see `CAUTION`)."""

    nats: Float[Array, ""]
    stderr: Float[Array, ""]


class Moments(NamedTuple):
    """Of h_t given the inputs, t = 1..T: means mu_t(x) and covariances N_t(x), only their diagonals where all that
    makes them is diagonal.
    """

    means: Float[Array, "T n"]
    covs: Float[Array, "T n"] | Float[Array, "T n n"]


class _Kernels(NamedTuple):
    """The conditional laws: N_j = R_j^{-1} R_j^{-T}, and log N_j(mu_j) = -1/2 log det(2 pi N_j)."""

    means: Array  # (M, n)
    roots: Array  # R_j: (M, n) or (M, n, n)
    peaks: Array  # (M,)
    regular: Array  # (M,): False where N_j is singular


def state_information(means: Float[Array, "M n"], covs: Covariances, states: Float[Array, "M n"]) -> Bracket:
    """Brackets I(h; x) from M independent samples of h whose law given x is known, h_i ~ N(mu_i, N_i). Lower and upper,
    in nats.

    With l_ij = log N(h_i; mu_j, N_j) and c_i a control variate:
      lower = mean_i [-1/2 log det(2 pi e N_i) - c_i - log 1/M sum_j e^{l_ij}],
      upper = mean_i [-1/2 log det(2 pi e N_i) - c_i - log((1 - a) 1/(M-1) sum_{j != i} e^{l_ij} + a q(h_i))],  a =
      `DEFENCE`.
    The first is InfoNCE with the exact critic (Poole et al. 2019). The second is a cross-entropy less an entropy, an
    upper bound with any density that h_i has no part in (Barber and Agakov 2003): q is the Gaussian of the other half
    of the samples, and carries the far points that no other sample is near. c_i is the difference of -log q(h_i) and
    its mean given x_i, which is known, times a slope fitted on the other half too: its mean is 0, and nothing is lost
    of the bounds. The standard error is the jackknife's: sample i counts as h_i and as a term of all other sums.

    The ends are about e^{2I}/M apart while that is small: M = 8000 leaves 0.05 at 4 nats of 4 components, 0.001 at 1
    nat. States that are not drawn from these means and covariances, or trajectories that share noise, make the result
    meaningless, and cannot be seen from here. Differentiable in all arguments; jit and vmap (under which values go
    unchecked, and singular covs give the bracket from 0 to inf).

    Cost: O(M^2 n) time for diagonal covs, O(M^2 n^2) for full ones, in blocks of `PAIRS` pairs; O(M n^2) memory.

    Args:
      means: mu_i, one for each trajectory, all at the same time. covs: N_i, whole or diagonals. states: h_i.

    Raises:
      ValueError: for shapes or types that do not fit, fewer than 4 samples, values that are not finite, and covs that
        are not symmetric and positive definite: with a direction free of noise the information of a continuous state is
        inf.

    Source: theory, sections 4.2 and 4.3.
    """
    means, covs, states = floating(means=means, covs=covs, states=states)
    if means.ndim != 2 or 0 in means.shape:
        raise ValueError(f"means has shape {means.shape}, expected (M, n) with n >= 1: one row for each trajectory")
    M, n = means.shape
    check_shape("states", states, [(M, n)], "means")
    check_shape("covs", covs, [(M, n), (M, n, n)], "means")
    if M < 4:
        raise ValueError(
            f"means has M={M} rows, expected at least 4: simulate more trajectories (the bracket resolves up to log M "
            "- 1 nats)"
        )
    check_finite(means=means, covs=covs, states=states)
    _check_covariances("covs", covs)
    return _bracket(means, covs, states)


def upper_gaussian(covs: Covariances, states: Float[Array, "M n"]) -> UpperBound:
    """1/2 log det Cov(h) - 1/2 E log det N(x) >= I(h; x), in nats: no law of this covariance has more entropy than the
    Gaussian. Upper.

    Equal to I where h is Gaussian. The sample covariance's log det is low by about (E|y|^4 - n) / (2 M), y the whitened
    states, which is added. Cost: O(M n^2). Arguments and errors: see `state_information`; more states than components
    are needed. Source: theory, section 4.2.

    Raises:
      ValueError: as `state_information`, and for states that span fewer than n dimensions.
    """
    covs, states = floating(covs=covs, states=states)
    if states.ndim != 2 or states.shape[1] == 0 or states.shape[0] < states.shape[1] + 2:
        raise ValueError(
            f"states has shape {states.shape}, expected (M, n) with n >= 1 and M >= n + 2: simulate more trajectories"
        )
    M, n = states.shape
    check_shape("covs", covs, [(M, n), (M, n, n)], "states")
    check_finite(covs=covs, states=states)
    _check_covariances("covs", covs)
    bound, spans = _upper_gaussian(covs, states)
    if not isinstance(spans, jax.core.Tracer) and not spans:
        raise ValueError(
            f"states span fewer than n={n} dimensions, expected draws of a law with a density: are the trajectories "
            "copies of each other?"
        )
    return bound


def conditional_moments(
    A_t: Float[Array, "T n"] | Float[Array, "T n n"],
    drives: Float[Array, "T n"],
    noise_covs: Float[Array, "T n"] | Float[Array, "T n n"],
    initial_mean: Float[Array, "n"] | None = None,
    initial_cov: Float[Array, "n"] | Float[Array, "n n"] | None = None,
) -> Moments:
    """Law of h_t = A_t h_{t-1} + d_t + w_t, w_t ~ N(0, Q_t), given the inputs: mu_t = A_t mu_{t-1} + d_t, N_t = A_t
    N_{t-1} A_t' + Q_t. Exact.

    For the layer h_t = (1 - g_t) h_{t-1} + g_t (A h_{t-1} + B x_t + w_t) with gates G(x_t): A_t = I - G_t (I - A), d_t
    = g_t B x_t, and Q_t = G_t Q G_t, or Q where the noise is additive. One trajectory; `jax.vmap` over inputs gives
    what `state_information` takes at each t. All matrices may be given by their diagonals; the covariances are
    diagonals if all are.

    Cost: O(T n), O(T n^2) for diagonal A_t with full noise, O(T n^3) for dense A_t. Parallel over time for diagonal A_t
    on accelerators.

    Args:
      A_t: transition of every step, gates applied. drives: d_t. noise_covs: Q_t as it enters h_t, gates applied.
      initial_mean, initial_cov: of h_0; zero if None.

    Raises:
      ValueError: for shapes or types that do not fit, no steps, values that are not finite, and negative variances.

    Source: theory, sections 4.1 and 4.2.
    """
    given = dict(A_t=A_t, drives=drives, noise_covs=noise_covs, initial_mean=initial_mean, initial_cov=initial_cov)
    present = {name: value for name, value in given.items() if value is not None}
    arrays = dict(zip(present, floating(**present), strict=True))
    T, n = _steps(arrays["drives"])
    expected: dict[str, list[tuple[int, ...]]] = {name: [(T, n), (T, n, n)] for name in ("A_t", "noise_covs")}
    expected |= {"initial_mean": [(n,)], "initial_cov": [(n,), (n, n)]}
    for name in present:
        check_shape(name, arrays[name], expected.get(name, [(T, n)]), "drives")
    check_finite(**arrays)
    for name in ("noise_covs", "initial_cov"):
        if name in arrays:
            _check_variances(name, arrays[name], n)
    zero = jnp.zeros(n, arrays["drives"].dtype)
    return _moments(
        arrays["A_t"],
        arrays["drives"],
        arrays["noise_covs"],
        arrays.get("initial_mean", zero),
        arrays.get("initial_cov", zero),
    )


@jax.jit
def _bracket(means: Array, covs: Array, states: Array) -> Bracket:
    M, n = means.shape
    origin = means.mean(0)[None]
    # far from the origin all distances would be differences of great numbers
    means, states = means - origin, states - origin
    kernels = _kernels(means, covs)
    log_q, control = _of_other_half(means, covs, states)
    own = kernels.peaks - 0.5 * jnp.sum(_whiten(kernels.roots, states - means) ** 2, axis=1)
    of_all, of_others, shares = _marginals(kernels, states, own, log_q)
    ends = (kernels.peaks - 0.5 * n)[None] - jnp.stack([of_all, of_others])
    ends = ends - _explain(ends[0], control)[None]
    lower, upper = ends.mean(1)
    stderr = _stderr(ends - shares)
    known = kernels.regular.all()
    lower, upper, stderr = (
        jnp.where(known, value, otherwise)
        for value, otherwise in ((lower, 0.0), (upper, jnp.inf), (jnp.maximum(*stderr), 0.0))
    )
    return Bracket(lower, upper, stderr, known & (lower <= math.log(M) - 1))


def _kernels(means: Array, covs: Array) -> _Kernels:
    if covs.ndim == 2:
        regular = (covs > 0).all(1)
        covs = jnp.where(regular[:, None], covs, 1)
        roots, log_det = lax.rsqrt(covs), jnp.log(covs).sum(1)
    else:
        roots, log_det, regular = _whitening(covs)
    return _Kernels(means, roots, -0.5 * (log_det + means.shape[1] * math.log(2 * math.pi)), regular)


def _whitening(covs: Array) -> tuple[Array, Array, Array]:
    """Of each C: the triangular R with R C R' = I, log det C, and whether C is regular. Cholesky's elimination, over
    the whole batch at once.

    Not by LAPACK: batches of its calls beside other work may block each other in XLA's thread pool for ever (see
    `gaussian`).
    """
    n = covs.shape[-1]
    least = FLOOR * float(jnp.finfo(covs.dtype).eps) * jnp.diagonal(covs, axis1=-2, axis2=-1)

    def eliminate(k: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rows, log_det, regular = carry
        here = jnp.arange(n) == k
        row = lax.dynamic_index_in_dim(rows, k, rows.ndim - 2, keepdims=False)
        pivot = lax.dynamic_index_in_dim(row, k, row.ndim - 1, keepdims=False)
        enough = pivot > lax.dynamic_index_in_dim(least, k, least.ndim - 1, keepdims=False)
        pivot = jnp.where(enough, pivot, 1)
        row = row * lax.rsqrt(pivot)[..., None]
        below = jnp.where(
            jnp.arange(n) > k,
            lax.dynamic_index_in_dim(rows, k, rows.ndim - 1, keepdims=False) * lax.rsqrt(pivot)[..., None],
            0,
        )
        rows = jnp.where(here[:, None], row[..., None, :], rows - below[..., :, None] * row[..., None, :])
        return rows, log_det + jnp.log(pivot), regular & enough

    start = jnp.concatenate([covs, jnp.broadcast_to(jnp.eye(n, dtype=covs.dtype), covs.shape)], axis=-1)
    rows, log_det, regular = lax.fori_loop(
        0, n, eliminate, (start, jnp.zeros_like(covs[..., 0, 0]), covs[..., 0, 0] > -jnp.inf)
    )
    return rows[..., n:], log_det, regular


def _whiten(roots: Array, values: Array) -> Array:
    return roots * values if roots.ndim == 2 else einsum("mij,mj->mi", roots, values)


def _of_other_half(means: Array, covs: Array, states: Array) -> tuple[Array, Array]:
    """log q(h_i), and how far it is under its mean given x_i, which is known: q is the Gaussian that the laws of the
    other half make.
    """
    odd = jnp.arange(len(means)) % 2 == 1
    log_q, control = jax.vmap(partial(_gaussian_part, means, covs, states))(jnp.stack([odd, ~odd]).astype(means.dtype))
    return jnp.where(odd, log_q[1], log_q[0]), jnp.where(odd, control[1], control[0])


def _gaussian_part(means: Array, covs: Array, states: Array, weights: Array) -> tuple[Array, Array]:
    """log q(h) = -1/2 |R (h - m)|^2 - 1/2 log det(2 pi C) with C = Cov(mu) + E N, R C R' = I; and what noise takes from
    it, of mean 0 given x.
    """
    weights = weights / weights.sum()
    centre = (weights @ means)[None]
    within = jnp.diag(weights @ covs) if covs.ndim == 2 else jnp.sum(weights[:, None, None] * covs, axis=0)
    root, log_det, _ = _whitening(within + einsum("mi,mj->ij", weights[:, None] * (means - centre), means - centre))
    mean, noise = einsum("mj,ij->mi", means - centre, root), einsum("mj,ij->mi", states - means, root)
    precision = einsum("ki,kj->ij", root, root)
    expected = covs @ jnp.diagonal(precision) if covs.ndim == 2 else jnp.sum(precision[None] * covs, axis=(1, 2))
    log_q = -0.5 * (jnp.sum((mean + noise) ** 2, axis=1) + log_det + means.shape[1] * math.log(2 * math.pi))
    return log_q, jnp.sum(mean * noise, axis=1) + 0.5 * (jnp.sum(noise**2, axis=1) - expected)


def _explain(values: Array, control: Array) -> Array:
    """The part of the values that the control explains, with the slope of the other half for each half."""
    odd = jnp.arange(len(values)) % 2 == 1

    def slope(half: Array) -> Array:
        count = half.sum()
        known, wanted = (
            jnp.where(half, part - jnp.sum(jnp.where(half, part, 0)) / count, 0) for part in (control, values)
        )
        power = jnp.sum(known**2)
        return jnp.sum(known * wanted) / jnp.where(power > 0, power, 1)

    return jnp.where(odd, slope(~odd), slope(odd)) * control


def _marginals(kernels: _Kernels, states: Array, own: Array, log_q: Array) -> tuple[Array, Array, Array]:
    """log of the mean of e^{l_ij} over all j, and of the mixture of q and the mean over j != i; (2, M) shares of sample
    s in both of others' sums.
    """
    M = len(states)
    rows = max(1, min(M, PAIRS // M))
    count = -(-M // rows)
    index = jnp.arange(count * rows)
    kept = jnp.minimum(index, M - 1)  # what fills the last block is computed and not counted
    block = (index, states[kept], own[kept], log_q[kept])
    block = jax.tree.map(lambda value: value.reshape(count, rows, *value.shape[1:]), block)

    @jax.checkpoint
    def step(shares: Array, block: tuple[Array, Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        of_all, of_others, added = _block(kernels, *block)
        return shares + added, (of_all, of_others)

    shares, (of_all, of_others) = lax.scan(step, jnp.zeros((2, M), states.dtype), block)
    return of_all.ravel()[:M], of_others.ravel()[:M], shares


def _block(kernels: _Kernels, index: Array, states: Array, own: Array, log_q: Array) -> tuple[Array, Array, Array]:
    M = len(kernels.peaks)
    logs = kernels.peaks[None] - 0.5 * _distances(kernels, states)
    logs = jnp.where(index[:, None] == jnp.arange(M)[None], -jnp.inf, logs)
    top = lax.stop_gradient(largest(logs, 1))
    weights = jnp.exp(logs - top[:, None])
    others = top + jnp.log(weights.sum(1))
    of_all = jnp.logaddexp(others, own) - math.log(M)
    of_others = jnp.logaddexp(others + math.log((1 - DEFENCE) / (M - 1)), log_q + math.log(DEFENCE))
    scales = jnp.stack([jnp.exp(top - of_all) / M, jnp.exp(top - of_others) * ((1 - DEFENCE) / (M - 1))])
    return of_all, of_others, einsum("er,rm->em", jnp.where(index[None] < M, scales, 0), weights)


def _distances(kernels: _Kernels, states: Array) -> Array:
    """|R_j (h_i - mu_j)|^2, (rows, M), one component after the other: squares of differences lose no digits to each
    other, as expanded ones would.
    """
    diagonal = kernels.roots.ndim == 2
    roots = kernels.roots.T if diagonal else kernels.roots.swapaxes(0, 1)
    centres = kernels.means.T if diagonal else _whiten(kernels.roots, kernels.means).T

    def add(total: Array, term: tuple[Array, Array, Array]) -> tuple[Array, None]:
        root, centre, h = term
        gap = (h[:, None] - centre[None]) * root[None] if diagonal else einsum("ri,mi->rm", states, root) - centre[None]
        return total + gap**2, None

    return lax.scan(add, jnp.zeros((len(states), len(kernels.peaks)), states.dtype), (roots, centres, states.T))[0]


def _stderr(influences: Array) -> Array:
    """From the influence of every sample on a mean, over the last axis."""
    M = influences.shape[-1]
    return CAUTION * jnp.sqrt(jnp.var(influences, axis=-1, ddof=1) / M)


@jax.jit
def _upper_gaussian(covs: Array, states: Array) -> tuple[UpperBound, Array]:
    M, n = states.shape
    kernels = _kernels(states, covs)
    states = states - states.mean(0)[None]
    root, log_det, spans = _whitening(einsum("mi,mj->ij", states, states) / (M - 1))
    length = jnp.sum(einsum("ij,mj->mi", root, states) ** 2, axis=1)
    entropy = -kernels.peaks - 0.5 * n * math.log(2 * math.pi)
    nats = 0.5 * log_det + jnp.mean(length**2 - n) / (4 * M) - entropy.mean()
    known = kernels.regular.all()
    return UpperBound(jnp.where(known, nats, jnp.inf), jnp.where(known, _stderr(0.5 * length - entropy), 0)), spans


@jax.jit
def _moments(A: Array, drives: Array, noise: Array, mean: Array, cov: Array) -> Moments:
    if A.ndim == noise.ndim == 2 and cov.ndim == 1:
        run = linear_scan(jnp.stack([A, A**2]), jnp.stack([drives, noise]), jnp.stack([mean, cov]))[0]
        return Moments(run[0], run[1])
    noise, cov = noise if noise.ndim == 3 else _diagonal(noise), cov if cov.ndim == 2 else _diagonal(cov)
    if A.ndim == 2:
        factors = A[:, :, None] * A[:, None, :]
        return Moments(
            linear_scan(A[None], drives[None], mean[None])[0][0],
            linear_scan(factors[None], noise[None], cov[None])[0][0],
        )

    def step(before: Moments, now: tuple[Array, Array, Array]) -> tuple[Moments, Moments]:
        A, drive, noise = now
        after = Moments(einsum("ij,j->i", A, before.means) + drive, einsum("ij,jk,lk->il", A, before.covs, A) + noise)
        return after, after

    return lax.scan(step, Moments(mean, cov), (A, drives, noise))[1]


def _diagonal(values: Array) -> Array:
    """Diagonal matrices of the last axis."""
    return jnp.einsum("...i,ij->...ij", values, jnp.eye(values.shape[-1], dtype=values.dtype))


def _steps(drives: Array) -> tuple[int, int]:
    if drives.ndim != 2 or 0 in drives.shape:
        raise ValueError(
            f"drives has shape {drives.shape}, expected (T, n) with T, n >= 1: one trajectory; use jax.vmap over "
            "trajectories"
        )
    T, n = drives.shape
    return T, n


def _check_covariances(name: str, covs: Array) -> None:
    """Each is symmetric and positive definite, where values are there to be looked at."""
    if isinstance(covs, jax.core.Tracer):
        return
    if covs.ndim == 3:
        size = np.abs(covs).max((1, 2), keepdims=True)
        skew = (np.abs(covs - covs.mT) > 1e3 * float(jnp.finfo(covs.dtype).eps) * size).any((1, 2))
        if skew.any():
            raise ValueError(
                f"{name}[{skew.argmax()}] is not symmetric, expected a covariance: use (C + C.mT) / 2 if that is what "
                "is meant"
            )
    regular = np.asarray(_regular(covs))
    if not regular.all():
        raise ValueError(
            f"{name}[{regular.argmin()}] is not positive definite ({(~regular).sum()} of {len(regular)} are not): its "
            "state has a direction free of noise, and says infinitely much of a continuous input; give h_0 or every "
            "step some noise, or leave out components that have none"
        )


@jax.jit
def _regular(covs: Array) -> Array:
    return _kernels(covs[:, 0] if covs.ndim == 3 else covs, covs).regular


def _check_variances(name: str, covs: Array, n: int) -> None:
    """For covariances that may be singular: a shut gate lets no noise in."""
    if not isinstance(covs, jax.core.Tracer):
        variances = np.asarray(covs) if covs.shape[-2:] != (n, n) else np.diagonal(covs, axis1=-2, axis2=-1)
        if (variances < 0).any():
            raise ValueError(
                f"{name} has the variance {variances.min()}, expected variances from 0 (squares of standard deviations)"
            )
