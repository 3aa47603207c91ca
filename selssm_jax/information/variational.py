"""Upper bounds on the information of a noisy state, differentiable: the rate of the variational bottleneck (theory,
sections 4.2, 7 and 10).

Given its inputs a state is normal, h ~ p(h|x) = N(mu(x), diag N(x)). For every density r

    I(h; x) = E KL(p(h|x) || r) - KL(p(h) || r) <= E KL(p(h|x) || r)    (Alemi et al. 2017),

and of all independent normal r that of the state's own moments is best, m_i = E mu_i and v_i = E[N_i + (mu_i - m_i)^2]:
the right side is then

    1/2 sum_i (log v_i - E log N_i),

the bound 1/2 log det Cov(h) - 1/2 E log det N(x) of section 4.2 with all correlation between components given away. It
is I(h; x) itself where h is normal with independent components. At those moments the right side is at its least, so its
derivative by them is 0: a gradient through `divergence` with moments held fixed is that of the whole, and sums over any
parts of a batch are those of the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from selssm_jax.information.checks import check_finite, check_shape, floating


class Marginal(NamedTuple):
    """r = N(mean, diag(variance)), the independent normal law that states are compared with."""

    mean: Float[Array, "n"]
    variance: Float[Array, "n"]


def marginal(
    means: Float[Array, "M n"],
    variances: Float[Array, "M n"],
    weights: Float[Array, "M"] | None = None,
    *,
    total: Callable[[Array], Array] = lambda part: part,
) -> Marginal:
    """Returns the moments of the mixture of N(mu_j, N_j): m = E mu and v = E[N + (mu - m)^2], the best independent
    normal r.

    Args:
      means, variances: mu_j and N_j, a row a sample. weights: of the samples; equal if None. A sample of weight 0
        counts for nothing.
      total: adds a sum to those of other devices, where each has only some of the samples.

    Raises:
      ValueError: for shapes or types that do not fit, values that are not finite, and variances that are not positive
        (values are looked at outside of `jax.jit` only).
    """
    means, variances, weights = _check_mixture(means, variances, weights)
    share = (weights / total(weights.sum()))[:, None]
    mean = total((share * means).sum(axis=0))
    return Marginal(mean, total((share * (variances + (means - mean[None]) ** 2)).sum(axis=0)))


def divergence(means: Float[Array, "M n"], variances: Float[Array, "M n"], r: Marginal) -> Float[Array, "M"]:
    """Returns KL(N(mu_j, N_j) || r) = sum_i 1/2 [log(v_i / N_ij) - 1 + (N_ij + (mu_ij - m_i)^2) / v_i], nats, a sample
    each.

    Its mean over samples is an upper bound on I(h; x) for every r that does not hang on them. Cost: O(M n). Errors: see
    `marginal`.
    """
    means, variances, _ = _check_mixture(means, variances, None)
    mean, variance = r.mean[None], r.variance[None]
    return 0.5 * (jnp.log(variance) - jnp.log(variances) - 1 + (variances + (means - mean) ** 2) / variance).sum(axis=1)


def rate(
    means: Float[Array, "M n"], variances: Float[Array, "M n"], weights: Float[Array, "M"] | None = None
) -> Float[Array, ""]:
    """E KL(p(h|x) || r) with r of the samples' own moments, 1/2 sum_i (log v_i - E log N_i) >= I(h; x), in nats. Upper.

    Samples of several times t together bound the mean over t of I(h_t; x_{1:t}), by one r for all times. Moments of the
    same M samples make it too low: for independent normal mu, by 1/(2 M) sum_i s_i (1 + s_i) with s_i = Var mu_i / v_i,
    at most n / M; `divergence` from the moments of other samples has no such bias. Equal to I(h; x) for a normal state
    of independent components. Cost: O(M n).

    Args and errors: see `marginal`. Source: theory, sections 4.2, 7 (VIB) and 10; Alemi et al. 2017.
    """
    means, variances, weights = _check_mixture(means, variances, weights)
    r = marginal(means, variances, weights)
    return (weights * divergence(means, variances, r)).sum() / weights.sum()


def capacity(
    drives: Float[Array, "M n"],
    noise: Float[Array, "M n"] | Float[Array, "n"],
    weights: Float[Array, "M"] | None = None,
) -> Float[Array, ""]:
    """1/2 sum_i log(1 + Var(B x)_i / q_i), in nats: what n channels of one step carry, and, over any time, all that
    gates of a clock's can keep.

    For h_t = A_t h_{t-1} + G_t (B x_t + w_t) with A_t diagonal and real, w_t ~ N(0, diag q), gates that read neither
    inputs nor states, and inputs that are independent over time, S_ii <= N_ii Var(B x)_i / q_i whatever A_t and G_t
    are, hence I(h_t; x_{1:t}) <= this: upper (theory, section 4.1). For inputs that depend on one another over time, or
    gates that read them, it is no bound on memory.
    It is `rate` of the channel (B x + w) / sqrt(q): an estimate from samples has the same bias. Cost: O(M n).

    Args:
      drives: (B x)_j, a row a sample. noise: standard deviations sqrt(q). weights: of the samples; equal if None.

    Raises:
      ValueError: as `marginal`, and for noise that is not positive.
    """
    drives, noise = floating(drives=drives, noise=noise)
    noise = (
        jnp.broadcast_to(noise[None], drives.shape) if noise.ndim == 1 and noise.shape == drives.shape[1:] else noise
    )
    check_shape("noise", noise, [drives.shape], "drives")
    _check_positive("noise", noise)
    return rate(drives / noise, jnp.ones_like(drives), weights)


def _check_mixture(means: Array, variances: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    if means.ndim != 2 or 0 in means.shape:
        raise ValueError(f"means has shape {means.shape}, expected (M, n) with M, n >= 1: a row a sample")
    weights = jnp.ones(len(means)) if weights is None else weights
    means, variances, weights = floating(means=means, variances=variances, weights=weights)
    check_shape("variances", variances, [means.shape], "means")
    check_shape("weights", weights, [means.shape[:1]], "means")
    check_finite(means=means, variances=variances, weights=weights)
    _check_positive("variances", variances)
    if not isinstance(weights, jax.core.Tracer) and ((weights < 0).any() or not weights.sum() > 0):
        raise ValueError(
            f"weights sum to {weights.sum()} with {weights.min()} among them, expected none below 0 and a sum above it"
        )
    return means, variances, weights


def _check_positive(name: str, value: Array) -> None:
    if not isinstance(value, jax.core.Tracer) and not (np.asarray(value) > 0).all():
        raise ValueError(
            f"{name} holds {np.asarray(value).min()}, expected positive numbers: without noise a state holds "
            "infinitely many nats"
        )
