"""Information bottlenecks: the most that a memory of given size can know of the future, and the gap of a state to it
(theory, section 7).

An encoder p(t|x) of X costs its complexity I(T;X) and is worth its relevance I(T;Y), T - X - Y being a Markov chain.
The bottleneck's curve is the largest relevance at each complexity; at a multiplier beta it holds the encoder that
minimises I(T;X) - beta I(T;Y), and 1/beta is its slope there (Tishby, Pereira and Bialek 1999). With X the past of a
process and Y its future every state is such an encoder. In nats.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from selssm_jax.information.channel import channel_information
from selssm_jax.information.checks import (
    check_covariance,
    check_distribution,
    check_finite,
    check_real,
    check_whole,
    floating,
)
from selssm_jax.information.gaussian import covariances
from selssm_jax.information.lyapunov import solve_lyapunov
from selssm_jax.ops.extremes import largest

FLOOR = 8.0  # units of rounding: a variance or correlation of so many cannot be told from zero
# of one start of the discrete bottleneck at one multiplier: near a transition it converges slowly, and it costs little
# to stop short
ITERATIONS = 1000
# change of an encoder's probabilities that counts as none; what the Lagrangian lacks then is of second order
TOLERANCE = 1e-6
# share of noise that an annealed encoder starts the next multiplier with: a symbol once unused would stay so for ever
PERTURBATION = 0.01

_matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)  # accelerators round the factors of products otherwise


class Curve(NamedTuple):
    """Points of a bottleneck's curve, in nats: entry k minimises I(T;X) - beta_k I(T;Y)."""

    beta: Float[Array, "K"]
    complexity: Float[Array, "K"]
    relevance: Float[Array, "K"]


class DiscreteCurve(NamedTuple):
    """Points on the upper concave hull of what was found, in nats, and their encoders p(t|x)."""

    beta: Float[Array, "K"]
    complexity: Float[Array, "K"]
    relevance: Float[Array, "K"]
    encoder: Float[Array, "K X S"]


class Point(NamedTuple):
    """I(T;X) and I(T;Y) of one encoder, in nats."""

    complexity: Float[Array, ""]
    relevance: Float[Array, ""]


class Encoder(NamedTuple):
    """T = weights X + noise, noise ~ N(0, noise_cov) independent of X."""

    weights: Float[Array, "r n"]
    noise_cov: Float[Array, "r r"]


class Variational(NamedTuple):
    """The loss, and what it says, in nats: I(T;X) <= complexity and I(T;Y) >= relevance, both in expectation over
    samples.
    """

    loss: Float[Array, ""]
    complexity: Float[Array, ""]
    relevance: Float[Array, ""]


class Efficiency(NamedTuple):
    """The largest I(h; future) at this I(h; past); what was reached as a share of it; what is missing (negative if the
    bound is violated).
    """

    bound: Float[Array, "*batch"]
    efficiency: Float[Array, "*batch"]
    gap: Float[Array, "*batch"]


class TimeSeries(NamedTuple):
    """Covariances of the past (x_1..x_p) and the future (x_{p+1}..x_{p+f}) of a stationary process, each in order of
    time.
    """

    past: Float[Array, "P P"]
    cross: Float[Array, "P F"]
    future: Float[Array, "F F"]


def gaussian(
    cov_x: Float[Array, "n n"], cov_xy: Float[Array, "n m"], cov_y: Float[Array, "m m"], betas: Float[Array, "K"]
) -> Curve:
    """The bottleneck's curve of jointly Gaussian X and Y. Exact, and reached by `gaussian_encoder`.

    With c_i the squared canonical correlations (1 - c_i are the eigenvalues of Sigma_{x|y} Sigma_x^{-1}), over all c_i
    > 1/beta, I(T;X) = 1/2 sum log((beta - 1) c_i / (1 - c_i)) and I(T;Y) = I(T;X) - 1/2 sum log(beta c_i). A c_i = 0 is
    never used; c_i = 1 (a part of Y is a function of X) gives inf for both from beta > 1 on. beta = inf gives I(X;Y) at
    infinite complexity. Singular covariances count on their range. A variance, c_i or 1 - c_i under `FLOOR` roundings,
    magnified as the conditioning of the covariances does, counts as zero: use float64 for ill-conditioned ones. First
    derivatives are exact also at repeated c_i. Cost: O((n + m)^3), one matrix after the other under `jax.vmap`.

    Raises:
      ValueError: for shapes that do not fit, values that are not finite, a joint matrix that is no covariance (values
        are looked at outside of `jax.jit` only), and betas that are not positive.

    Source: Chechik, Globerson, Tishby and Weiss 2005; theory, section 7.
    """
    cov_x, cov_xy, cov_y, betas = _joint(cov_x, cov_xy, cov_y, betas=betas)
    _check_betas(betas, finite=False)
    return Curve(betas, *_gaussian(cov_x, cov_xy, cov_y, betas))


def gaussian_encoder(
    cov_x: Float[Array, "n n"], cov_xy: Float[Array, "n m"], cov_y: Float[Array, "m m"], beta: Float[Array, ""] | float
) -> Encoder:
    """The encoder T = A X + N(0, I) that reaches the curve at beta, X and Y being jointly Gaussian. Exact.

    Row i of A is sqrt((beta c_i - 1) / (1 - c_i)) v_i', v_i the canonical direction of X scaled to v_i' Sigma_x v_i =
    1; min(n, m) rows, those with beta c_i <= 1 zero. Rows are defined up to sign (up to rotation at repeated c_i). Rows
    of c_i = 1 are infinite. Cost and errors: see `gaussian`, whose c_i and source are meant. The noise of the result is
    the identity.

    Raises:
      ValueError: what `gaussian` raises.
    """
    cov_x, cov_xy, cov_y, beta = _joint(cov_x, cov_xy, cov_y, beta=beta)
    _check_betas(beta[None], finite=True)
    return _gaussian_encoder(cov_x, cov_xy, cov_y, beta)


def gaussian_relevance(
    cov_x: Float[Array, "n n"],
    cov_xy: Float[Array, "n m"],
    cov_y: Float[Array, "m m"],
    complexity: Float[Array, "*batch"] | float,
) -> Float[Array, "*batch"]:
    """The curve as a function: the largest I(T;Y) at I(T;X) = complexity, in nats, for jointly Gaussian X and Y. Exact.

    No encoder, linear or not, does better (Globerson and Tishby 2004). With k correlations in use log(beta - 1) = (2 I
    - sum_k logit c_i) / k, and the k-th is in use from I = 1/2 sum_{i<k} (logit c_i - logit c_k) on; so beta is solved
    for, not searched. Concave and nondecreasing, with slope 1/beta; I(X;Y) at complexity inf, and complexity itself
    where a part of Y is a function of X. At 0 its derivative is given as 0. For X and Y that are not jointly Gaussian
    it is no bound in either direction. Cost and validity: see `gaussian`.

    Raises:
      ValueError: for a complexity under 0 or nan, and what `gaussian` raises.
    """
    cov_x, cov_xy, cov_y, complexity = _joint(cov_x, cov_xy, cov_y, complexity=complexity)
    if not isinstance(complexity, jax.core.Tracer) and not (complexity >= 0).all():
        wrong = np.asarray(complexity)[~(np.asarray(complexity) >= 0)].flat[0]
        raise ValueError(
            f"complexity holds {wrong}, expected information from 0, in nats; an estimate under 0 says no more than 0 "
            "does"
        )
    return _gaussian_relevance(cov_x, cov_xy, cov_y, complexity)


def encoder_information(
    encoder: Encoder, cov_x: Float[Array, "n n"], cov_xy: Float[Array, "n m"], cov_y: Float[Array, "m m"]
) -> Point:
    """I(T;X) and I(T;Y) of T = A X + N(0, N), X and Y jointly Gaussian, in nats. Exact.

    1/2 log det(I + N^{-1} A Sigma_x A') and 1/2 log det(I + M^{-1} A Sigma_xy Sigma_y^{-1} Sigma_yx A') with M = N + A
    Sigma_{x|y} A'. inf where a direction of T hears X, or Y, without noise. Smooth in all arguments (see
    `gaussian.channel_information`). Cost: O((n + m)^3 + r^3). Source: theory, section 7.

    Raises:
      ValueError: for an encoder whose shapes do not fit, and what `gaussian` raises.
    """
    cov_x, cov_xy, cov_y, A, N = _joint(cov_x, cov_xy, cov_y, weights=encoder.weights, noise_cov=encoder.noise_cov)
    if A.ndim != 2 or A.shape[1] != len(cov_x) or N.shape != (len(A), len(A)):
        raise ValueError(
            f"encoder has weights {A.shape} and noise_cov {N.shape}, expected (r, {len(cov_x)}) and (r, r) from cov_x"
        )
    return _encoder_information(cov_x, cov_xy, cov_y, A, N)


def discrete(
    p_xy: Float[Array, "X Y"],
    betas: Float[Array, "K"],
    *,
    seed: int = 0,
    restarts: int = 4,
    cardinality: int | None = None,
) -> DiscreteCurve:
    """The bottleneck's curve of finite X and Y: a lower bound on the relevance at each complexity (every point is an
    encoder that was found).

    p(t|x) ~ p(t) exp(-beta KL(p(y|x) || p(y|t))), iterated until it stays, from several starts: annealed from the
    largest beta to the smallest and back, and afresh at every beta, twice; of all encoders found the one with the
    largest I(T;Y) - I(T;X) / beta is given. That is a point of the upper concave hull of all of them and (0, 0), so the
    result is concave, nondecreasing in beta, and under I(X;Y), to rounding. The problem is not convex: more restarts
    may find better.
    Cost: 2 K stages one after the other in one compiled program, each of up to `ITERATIONS` steps of O(restarts X S Y).

    Args:
      p_xy: joint probabilities. betas: multipliers, in any order; the smallest that uses anything is over 1.
      seed: of the starts. restarts: how many of each kind.
      cardinality: S, the number of symbols of T; that of X if None, which loses nothing.

    Raises:
      ValueError: for p_xy that are no joint probabilities, betas that are not positive and finite, and restarts or
        cardinality under 1.

    Source: Tishby, Pereira and Bialek 1999; theory, section 7.
    """
    p_xy, betas = floating(p_xy=p_xy, betas=betas)
    _check_probabilities(p_xy)
    _check_betas(betas, finite=True)
    cardinality = len(p_xy) if cardinality is None else cardinality
    for name, value in dict(restarts=restarts, cardinality=cardinality).items():
        if value < 1:
            raise ValueError(f"{name}={value}, expected at least 1")
    return DiscreteCurve(betas, *_discrete(p_xy, betas, jax.random.key(seed), restarts, cardinality))


def variational(
    mean: Float[Array, "N d"],
    log_variance: Float[Array, "N d"],
    log_likelihood: Float[Array, "N"],
    *,
    rate_weight: Float[Array, ""] | float,
    target_entropy: Float[Array, ""] | float,
    marginal_mean: Float[Array, "d"] | None = None,
    marginal_log_variance: Float[Array, "d"] | None = None,
) -> Variational:
    """The variational bottleneck, a loss in nats: E[-log q(y|t)] + rate_weight E KL(p(t|x) || r(t)), and its bounds.

    p(t|x) = N(mean(x), diag exp(log_variance(x))), r = N(marginal_mean, diag exp(marginal_log_variance)), N(0, I) if
    None, or learned. Upper bound I(T;X) <= E KL, tight where r is the law of T; lower bound I(T;Y) >= H(Y) + E log
    q(y|t), tight where q is p(y|t). Both hold in expectation, over N examples. Differentiable. Cost: O(N d).

    Args:
      mean, log_variance: of p(t|x_i), one row an example.
      log_likelihood: log q(y_i|t_i), t_i = mean + exp(log_variance / 2) * noise, drawn N(0, I) by the caller.
      rate_weight: 1/beta of the bottleneck.
      target_entropy: H(Y), or the differential entropy of continuous Y; no gradient depends on it.
      marginal_mean, marginal_log_variance: of r(t).

    Raises:
      ValueError: for shapes that do not fit, no examples, and values that are not real and finite.

    Source: Alemi, Fischer, Dillon and Murphy 2017; theory, section 7.
    """
    if mean.ndim != 2 or not len(mean):
        raise ValueError(f"mean has shape {mean.shape}, expected (N, d) with N >= 1 examples")
    mean, log_variance, log_likelihood, rate_weight, target_entropy = floating(
        mean=mean,
        log_variance=log_variance,
        log_likelihood=log_likelihood,
        rate_weight=rate_weight,
        target_entropy=target_entropy,
    )
    check_finite(mean=mean, log_variance=log_variance, log_likelihood=log_likelihood)
    check_finite(rate_weight=rate_weight, target_entropy=target_entropy)
    centre = jnp.zeros_like(mean[0]) if marginal_mean is None else marginal_mean
    spread = jnp.zeros_like(mean[0]) if marginal_log_variance is None else marginal_log_variance
    expected = {
        "log_variance": (log_variance, mean.shape),
        "log_likelihood": (log_likelihood, mean.shape[:1]),
        "marginal_mean": (centre, mean.shape[1:]),
        "marginal_log_variance": (spread, mean.shape[1:]),
    }
    for name, (value, shape) in expected.items():
        if value.shape != shape:
            raise ValueError(f"{name} has shape {value.shape}, expected {shape} from mean")
    log_ratio = log_variance - spread[None]
    complexity = 0.5 * jnp.mean(
        jnp.sum(jnp.expm1(log_ratio) - log_ratio + (mean - centre[None]) ** 2 * jnp.exp(-spread)[None], axis=1)
    )
    score = log_likelihood.mean()
    return Variational(rate_weight * complexity - score, complexity, target_entropy + score)


def memory_efficiency(
    past_information: Float[Array, "*batch"] | float,
    future_information: Float[Array, "*batch"] | float,
    cov_past: Float[Array, "n n"],
    cov_cross: Float[Array, "n m"],
    cov_future: Float[Array, "m m"],
) -> Efficiency:
    """How far the point (I(h; past), I(h; future)) of a memory lies under the curve of a Gaussian process, in nats.

    bound = `gaussian_relevance` at past_information, efficiency = I(h; future) / bound, gap = bound - I(h; future). On
    the curve (also at 0 and at inf) they are 1 and 0. The gap is at least 0 if past and future are jointly Gaussian, h
    sees no more than this past, and both numbers are exact; a negative gap is returned as it is, and says that one of
    these is not so. Where they are estimates, only an upper bound on I(h; past) beside a lower bound on I(h; future)
    makes it a contradiction.
    Cost: see `gaussian`. Source: theory, section 7.

    Raises:
      ValueError: for a future_information that does not go with past_information, or is nan, and what
        `gaussian_relevance` raises.
    """
    check_real(past_information=past_information, future_information=future_information)
    reached = jnp.asarray(future_information)
    if reached.shape != jnp.shape(past_information):
        raise ValueError(
            f"future_information has shape {reached.shape}, expected {jnp.shape(past_information)} from "
            "past_information"
        )
    if not isinstance(reached, jax.core.Tracer) and jnp.isnan(reached).any():
        raise ValueError("future_information holds nan, expected information in nats, or inf")
    bound = gaussian_relevance(cov_past, cov_cross, cov_future, past_information)
    same = reached == bound
    share = jnp.where(same, 1, reached / jnp.where(same, 1, bound))
    return Efficiency(bound, share, jnp.where(same, 0, bound - jnp.where(same, 0, reached)))


def time_series_covariances(autocovariance: Float[Array, "L m m"], *, past: int, future: int) -> TimeSeries:
    """Covariances of `past` steps of a stationary vector process and of the `future` steps after them: block Toeplitz.

    Cov(x_s, x_t) = autocovariance[s - t] for s >= t and autocovariance[t - s]' for s < t. Exact.

    Args:
      autocovariance: E x_{t+k} x_t' for k = 0..past+future-1 or more; see `autoregressive_autocovariance` and
        `sample_autocovariance`.
      past, future: how many steps.

    Raises:
      ValueError: for an autocovariance of another shape, of too few lags or not real and finite, and for steps that are
        no whole numbers from 1.
    """
    check_whole(1, past=past, future=future)
    (autocovariance,) = floating(autocovariance=autocovariance)
    check_finite(autocovariance=autocovariance)
    total = past + future
    if autocovariance.ndim != 3 or autocovariance.shape[1] != autocovariance.shape[2] or len(autocovariance) < total:
        raise ValueError(
            f"autocovariance has shape {autocovariance.shape}, expected (L, m, m) with L >= past + future = {total} "
            "lags, lag 0 first"
        )
    m = autocovariance.shape[1]
    lag = jnp.arange(total)[:, None] - jnp.arange(total)[None, :]
    blocks = jnp.where((lag >= 0)[:, :, None, None], autocovariance[jnp.abs(lag)], autocovariance.mT[jnp.abs(lag)])
    joint = blocks.transpose(0, 2, 1, 3).reshape(total * m, total * m)
    return TimeSeries(joint[: past * m, : past * m], joint[: past * m, past * m :], joint[past * m :, past * m :])


def autoregressive_autocovariance(
    coefficients: Float[Array, "p m m"], innovation_cov: Float[Array, "m m"], *, lags: int
) -> Float[Array, "lags m m"]:
    """E x_{t+k} x_t', k = 0..lags-1, of the stationary x_t = F_1 x_{t-1} + .. + F_p x_{t-p} + e_t, e_t ~ N(0, E).
    Exact.

    The companion form's stationary covariance is sum_j F^j E F'^j: solved and proved in float64
    (`lyapunov.solve_lyapunov`); inside `jax.jit` and under gradients summed by doubling in the type that is given,
    which loses a digit for each that the radius is nearer to 1. Cost: O((p m)^3).

    Args:
      coefficients: F_1..F_p. innovation_cov: E. lags: how many, lag 0 among them.

    Raises:
      ValueError: for shapes that do not fit, no lags, an innovation_cov that is no covariance, a process that is not
        stable, or so nearly unstable that float64 does not determine its covariance.
    """
    coefficients, innovation_cov = floating(coefficients=coefficients, innovation_cov=innovation_cov)
    if coefficients.ndim != 3 or len(coefficients) == 0 or innovation_cov.shape != coefficients.shape[1:]:
        raise ValueError(
            f"coefficients {coefficients.shape} and innovation_cov {innovation_cov.shape}, expected (p, m, m) with p "
            ">= 1 and (m, m)"
        )
    check_whole(1, lags=lags)
    check_finite(coefficients=coefficients)
    check_covariance("innovation_cov", innovation_cov)
    p, m, _ = coefficients.shape
    F = jnp.concatenate(
        [coefficients.transpose(1, 0, 2).reshape(m, p * m), jnp.eye((p - 1) * m, p * m, dtype=coefficients.dtype)]
    )
    if isinstance(F, jax.core.Tracer) or isinstance(innovation_cov, jax.core.Tracer):
        return _autoregressive_autocovariance(F, innovation_cov, lags)
    companion, driven = np.asarray(F, np.float64), np.pad(np.asarray(innovation_cov, np.float64), (0, (p - 1) * m))
    if (radius := np.abs(np.linalg.eigvals(companion)).max()) >= 1:
        raise ValueError(
            f"coefficients have spectral radius {radius:.6g}, expected under 1: no stationary law; difference the "
            "process, or scale them down"
        )
    lagged = [solve_lyapunov(companion, driven)]
    while len(lagged) < lags:
        lagged.append(companion @ lagged[-1])
    return jnp.asarray(np.stack(lagged)[:, :m, :m], F.dtype)


def sample_autocovariance(samples: Float[Array, "T m"], *, lags: int) -> Float[Array, "lags m m"]:
    """(1/T) sum_t (x_{t+k} - mean)(x_t - mean)', k = 0..lags-1. An estimate: biased towards 0 by the factor 1 - k/T.

    With 1/T for all lags its Toeplitz matrices are covariances. A bottleneck of estimated covariances promises more
    than there is: of p past and f future steps, to first order p f m^2 / (2 T) nats are chance. Cost: O(lags T m^2).

    Raises:
      ValueError: for samples that are not (T, m), real and finite, or lags not from 1 to T.
    """
    check_whole(1, lags=lags)
    (samples,) = floating(samples=samples)
    check_finite(samples=samples)
    if samples.ndim != 2 or not 1 <= lags <= len(samples):
        raise ValueError(f"samples have shape {samples.shape} for lags={lags}, expected (T, m) with T >= lags >= 1")
    centred = samples - samples.mean(0)[None]
    return jnp.stack([_matmul(centred[k:].T, centred[: len(centred) - k]) for k in range(lags)]) / len(centred)


def state_encoder(
    A_t: Float[Array, "T n"] | Float[Array, "T n n"],
    B_t: Float[Array, "T n m"],
    noise_cov: Float[Array, "n n"] | Float[Array, "T n n"],
    initial_cov: Float[Array, "n n"] | None = None,
) -> Encoder:
    """The state h_T = sum_s Phi(T, s) B_s x_s + noise as an encoder of the past (x_1..x_T), in order of time. Exact for
    exogenous gates.

    `encoder_information` of it gives I(h; past) and I(h; future) for any Gaussian inputs, also coloured ones, and these
    lie on or under the curve that `time_series_covariances` give. Arguments, and what is raised of them: see
    `gaussian.state_information`. Cost: O(T n^3). Source: theory, sections 4.1 and 7.
    """
    noise = covariances(A_t, B_t, jnp.eye(B_t.shape[-1], dtype=B_t.dtype), noise_cov, initial_cov).noise[-1]
    return Encoder(_loadings(A_t, B_t), noise)


@jax.jit
def _gaussian(cov_x: Array, cov_xy: Array, cov_y: Array, betas: Array) -> tuple[Array, Array]:
    c = _squared_correlations(cov_x, cov_xy, cov_y)[None]
    price = 1 / betas[:, None]
    used, certain = c > price, c >= 1
    excess = jnp.where(used & ~certain, (c - price) / jnp.where(certain, 1, 1 - c), 0)
    endless = jnp.isinf(betas)[:, None]  # kept out of what is differentiated: inf has the derivative 0
    complexity = jnp.log1p(jnp.where(endless, 1, betas[:, None]) * excess) + jnp.where(
        used & (certain | endless), jnp.inf, 0
    )
    relevance = jnp.log1p(excess) + jnp.where(used & certain, jnp.inf, 0)
    return 0.5 * complexity.sum(1), 0.5 * relevance.sum(1)


@jax.jit
def _gaussian_encoder(cov_x: Array, cov_xy: Array, cov_y: Array, beta: Array) -> Encoder:
    c, directions, _ = _canonical(cov_x, cov_xy, cov_y)
    scale = jnp.sqrt(jnp.maximum(beta * c - 1, 0) / (1 - c))
    rows = directions.T
    return Encoder(
        jnp.where((rows != 0) & (beta * c > 1)[:, None], scale[:, None] * rows, 0), jnp.eye(len(c), dtype=c.dtype)
    )


@jax.jit
def _gaussian_relevance(cov_x: Array, cov_xy: Array, cov_y: Array, complexity: Array) -> Array:
    c = _squared_correlations(cov_x, cov_xy, cov_y)
    return jax.vmap(partial(_relevance, c))(complexity.reshape(-1)).reshape(complexity.shape)


def _relevance(c: Array, complexity: Array) -> Array:
    """The curve at one complexity."""
    c = -jnp.sort(-c)
    inside = (c > 0) & (c < 1)
    within = jnp.where(inside, c, 0.5)
    logit = jnp.log(within) - jnp.log1p(-within)
    before = jnp.cumsum(logit) - logit
    threshold = 0.5 * (before - jnp.arange(len(c), dtype=c.dtype) * logit)
    used = inside & (threshold < complexity)
    # of beta - 1
    log_beta = (2 * complexity - jnp.sum(jnp.where(used, logit, 0))) / jnp.maximum(jnp.sum(used), 1).astype(c.dtype)
    excess = jnp.where(used, (within - jax.nn.sigmoid(-log_beta)) / (1 - within), 0)
    return jnp.where(c[0] >= 1, complexity, 0.5 * jnp.sum(jnp.log1p(excess)))


@jax.custom_jvp
def _squared_correlations(cov_x: Array, cov_xy: Array, cov_y: Array) -> Array:
    """Squared canonical correlations; exactly 0 or 1 where rounding cannot tell them from it."""
    return _canonical(cov_x, cov_xy, cov_y)[0]


@_squared_correlations.defjvp
def _squared_correlations_derivative(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """By perturbation of each, never dividing by a difference of two: symmetric functions of them have no kink where
    two are equal.
    """
    (c, a, m), (dx, dxy, dy) = _canonical(*primals), tangents
    slope = (
        2 * jnp.sum(a * _matmul(dxy, m), axis=0)
        - c * jnp.sum(a * _matmul(dx, a), axis=0)
        - jnp.sum(m * _matmul(dy, m), axis=0)
    )
    return c, slope


# Batches of LAPACK calls beside other work may block each other in XLA's thread pool.
@jax.custom_batching.sequential_vmap  # type: ignore[untyped-decorator]  # JAX gives it no type
def _canonical(cov_x: Array, cov_xy: Array, cov_y: Array) -> tuple[Array, Array, Array]:
    """c; directions a with a' Sigma_x a = 1 as columns; m = Sigma_y^{-1} Sigma_yx a, with m' Sigma_y m = c."""
    root_x, root_y = _root(cov_x), _root(cov_y)
    left, correlation, right = jnp.linalg.svd(_matmul(_matmul(root_x.T, cov_xy), root_y), full_matrices=False)
    a, b = _matmul(root_x, left), _matmul(root_y, right.T)
    # Rounding of the covariances changes a correlation by so much, in units of each component's own variance.
    power = [jnp.sum(jnp.diagonal(cov)[:, None] * vector**2, axis=0) for cov, vector in ((cov_x, a), (cov_y, b))]
    rounding = FLOOR * jnp.finfo(cov_x.dtype).eps * jnp.maximum(power[0] + power[1], 1)
    c = jnp.where(correlation**2 >= 1 - rounding, 1, jnp.where(correlation <= rounding, 0, correlation**2))
    return c, a, b * jnp.sqrt(c)[None]


def _root(covariance: Array) -> Array:
    """W with W' Sigma W = I on the range of Sigma, in columns filled up with zeros."""
    power = jnp.diagonal(covariance)
    scale = lax.rsqrt(jnp.where(power > 0, power, 1))  # units are arbitrary: rank is judged at unit variances
    values, vectors = jnp.linalg.eigh(covariance * scale[:, None] * scale[None, :])
    kept = values > FLOOR * len(values) * jnp.finfo(values.dtype).eps
    return scale[:, None] * vectors * jnp.where(kept, lax.rsqrt(jnp.where(kept, values, 1)), 0)[None]


@jax.jit
def _encoder_information(cov_x: Array, cov_xy: Array, cov_y: Array, A: Array, N: Array) -> Point:
    explained = _explain(_matmul(A, cov_xy), cov_y)
    signal = _matmul(_matmul(A, cov_x), A.T)
    return Point(channel_information(signal, N), channel_information(explained, N + signal - explained))


@jax.custom_jvp
def _explain(cov_ty: Array, cov_y: Array) -> Array:
    """Sigma_ty Sigma_y^{-1} Sigma_yt."""
    return _matmul(cov_ty, _regression(cov_ty, cov_y))


@_explain.defjvp
def _explained_derivative(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (cov_ty, cov_y), (dty, dy) = primals, tangents
    m = _regression(cov_ty, cov_y)
    change = _matmul(dty, m)
    return _matmul(cov_ty, m), change + change.T - _matmul(_matmul(m.T, dy), m)


@jax.custom_batching.sequential_vmap  # type: ignore[untyped-decorator]  # JAX gives it no type
def _regression(cov_ty: Array, cov_y: Array) -> Array:
    root = _root(cov_y)
    return _matmul(root, _matmul(cov_ty, root).T)


@partial(jax.jit, static_argnums=(3, 4))
def _discrete(p_xy: Array, betas: Array, key: Array, restarts: int, cardinality: int) -> tuple[Array, Array, Array]:
    p_x = p_xy.sum(1)
    p_y_x = p_xy / jnp.where(p_x > 0, p_x, 1)[:, None]
    betas_in_turn = jnp.concatenate([jnp.sort(betas)[::-1], jnp.sort(betas)])
    noise = jax.nn.softmax(
        4 * jax.random.normal(key, (2 * restarts, len(betas_in_turn), len(p_xy), cardinality), p_xy.dtype)
    )
    share = jnp.repeat(jnp.asarray([PERTURBATION, 1.0], p_xy.dtype), restarts)  # 1: every encoder begins afresh
    encoders = jax.vmap(partial(_anneal, p_x, p_y_x, betas_in_turn))(noise, share)
    encoders = encoders.reshape(-1, len(p_xy), cardinality)
    I_X, I_Y = jax.vmap(partial(_information, p_x, p_y_x))(encoders)
    nothing = jnp.zeros_like(encoders[:1]).at[:, :, 0].set(1)
    encoders, I_X, I_Y = jnp.concatenate([nothing, encoders]), jnp.pad(I_X, (1, 0)), jnp.pad(I_Y, (1, 0))
    best = jnp.argmax(I_Y[None] - I_X[None] / betas[:, None], axis=1)
    return I_X[best], I_Y[best], encoders[best]


def _anneal(p_x: Array, p_y_x: Array, betas: Array, noise: Array, share: Array) -> Array:
    """Encoders at all multipliers in turn, each begun from the one before and a share of noise; at first every symbol
    keeps its own.
    """

    def step(encoder: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        beta, noise = at
        encoder = _settle(p_x, p_y_x, (1 - share) * encoder + share * noise, beta)
        return encoder, encoder

    X, S = noise.shape[1:]
    own = jax.nn.one_hot(jnp.arange(X) % S, S, dtype=noise.dtype)
    return lax.scan(step, own, (betas, noise))[1]


def _settle(p_x: Array, p_y_x: Array, encoder: Array, beta: Array) -> Array:
    """p(t|x) <- p(t) exp(-beta KL(p(y|x) || p(y|t))) / Z(x) until it stays."""
    tiny = jnp.finfo(encoder.dtype).tiny

    def improve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        encoder, _, count = carry
        p_t, p_ty = _joint_of_code(p_x, p_y_x, encoder)
        log_p_y_t = jnp.log(jnp.maximum(p_ty / jnp.maximum(p_t, tiny)[:, None], tiny))
        new = jax.nn.softmax(jnp.log(jnp.maximum(p_t, tiny))[None] + beta * _matmul(p_y_x, log_p_y_t.T))
        return new, largest(jnp.abs(new - encoder)), count + 1

    def moving(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[1] > TOLERANCE) & (carry[2] < ITERATIONS)

    return lax.while_loop(moving, improve, (encoder, jnp.ones_like(beta), jnp.zeros((), jnp.int32)))[0]


def _joint_of_code(p_x: Array, p_y_x: Array, encoder: Array) -> tuple[Array, Array]:
    joint = p_x[:, None] * encoder
    return joint.sum(0), _matmul(joint.T, p_y_x)


def _information(p_x: Array, p_y_x: Array, encoder: Array) -> tuple[Array, Array]:
    """I(T;X) and I(T;Y) of an encoder."""
    _, p_ty = _joint_of_code(p_x, p_y_x, encoder)
    return _mutual_information(p_x[:, None] * encoder), _mutual_information(p_ty)


def _mutual_information(joint: Array) -> Array:
    """KL(p || q), q of independent parts, as sum p (d - log(1 + d)), d = q/p - 1: no term is negative, and small ones
    keep their digits.
    """
    apart = joint.sum(0)[None, :] * joint.sum(1)[:, None]
    excess = jnp.where(joint > 0, (apart - joint) / jnp.where(joint > 0, joint, 1), 0)
    return jnp.sum(jnp.where(joint > 0, joint * (excess - jnp.log1p(excess)), apart))


@partial(jax.jit, static_argnums=2)
def _autoregressive_autocovariance(F: Array, innovation_cov: Array, lags: int) -> Array:
    m = len(innovation_cov)
    driven = jnp.pad(innovation_cov, (0, len(F) - m))

    def double(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        covariance, power = carry
        return covariance + _matmul(_matmul(power, covariance), power.T), _matmul(power, power)

    # 2^64 steps: more than any radius under 1 that floats can tell from it needs
    covariance, _ = lax.fori_loop(0, 64, double, (driven, F))
    _, lagged = lax.scan(lambda S, _: (_matmul(F, S), S[:m, :m]), covariance, length=lags)
    return lagged


@jax.jit
def _loadings(A: Array, B: Array) -> Array:
    """[Phi(T, 1) B_1, .., B_T], Phi being products of what comes after."""
    A = jax.vmap(jnp.diag)(A) if A.ndim == 2 else A

    def step(Phi: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        return _matmul(Phi, at[0]), _matmul(Phi, at[1])

    _, blocks = lax.scan(step, jnp.eye(A.shape[1], dtype=A.dtype), (A, B), reverse=True)
    return blocks.transpose(1, 0, 2).reshape(A.shape[1], -1)


def _joint(cov_x: Array, cov_xy: Array, cov_y: Array, **others: Array | float) -> list[Array]:
    """All in one type, the first three being the blocks of one covariance, as far as there are values to see that."""
    cov_x, cov_xy, cov_y, *rest = floating(cov_x=cov_x, cov_xy=cov_xy, cov_y=cov_y, **others)
    n, m = cov_xy.shape if cov_xy.ndim == 2 else (0, 0)
    if n * m == 0 or cov_x.shape != (n, n) or cov_y.shape != (m, m):
        raise ValueError(
            f"cov_x {cov_x.shape}, cov_xy {cov_xy.shape} and cov_y {cov_y.shape} do not fit: expected (n, n), (n, m) "
            "and (m, m) with n, m >= 1; cov_xy is E x y', x in rows"
        )
    if not any(isinstance(block, jax.core.Tracer) for block in (cov_x, cov_xy, cov_y)):
        joint = jnp.block([[cov_x, cov_xy], [cov_xy.T, cov_y]])
        check_covariance("[[cov_x, cov_xy], [cov_xy.T, cov_y]]", joint, fix="estimate all blocks from the same samples")
    return [cov_x, cov_xy, cov_y, *rest]


def _check_betas(betas: Array, *, finite: bool) -> None:
    if betas.ndim != 1 or len(betas) == 0:
        raise ValueError(f"betas have shape {betas.shape}, expected (K,) with K >= 1")
    if isinstance(betas, jax.core.Tracer):
        return
    values = np.asarray(betas)
    wrong = values[~(values > 0) | (np.isinf(values) & finite)]
    if len(wrong):
        raise ValueError(
            f"betas hold {wrong[0]}, expected positive{' finite' * finite} multipliers; nothing is worth its price "
            "until beta > 1"
        )


def _check_probabilities(p_xy: Array) -> None:
    if p_xy.ndim != 2 or p_xy.size == 0:
        raise ValueError(f"p_xy has shape {p_xy.shape}, expected (X, Y) with X, Y >= 1")
    check_distribution("p_xy", p_xy.ravel())
