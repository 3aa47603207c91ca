"""Rate and distortion: the least distortion for given nats, and the least nats for a given distortion (theory, section
6).

R(D) = min I(X; Y) over all channels with E d(X, Y) <= D. For squared error, d(x, y) = |x - y|^2 is the sum over
components, not their mean, and D is in its units. A rate alone never bounds an error from above: the converse only says
what no decoder can beat (`converse`). A point of the curve is found by its slope s = -dR/dD, in nats a unit of
distortion.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from selssm_jax.information.checks import check_covariance, check_distribution, check_real, check_whole
from selssm_jax.ops.extremes import largest, smallest

CENTRING = 0.03  # how far under the present mean product of a mass and its slack the next step of `blahut_arimoto` aims
BOUNDARY = 0.99  # part of the way to the nearest boundary that one of its steps may go
CHECKS = 20  # times in a training that `neural` looks at its validation samples
TRAINED = 4  # times the codebook of an evaluation is larger than that of a training step, which costs the most
EVALUATED = 256  # samples `neural` evaluates at a time: bounds its memory

Covariance = Float[Array, "n n"] | Float[Array, "n"]
Numbers = Float[ArrayLike, "*shape"] | int
Broadcast = Float[ArrayLike, "..."] | int
Number = Float[ArrayLike, ""] | int

_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)  # accelerators round the factors of products otherwise


class Allocation(NamedTuple):
    """Of reverse water-filling: the level, and what each component spends, in nats, and loses."""

    theta: Float[Array, "*shape"]
    rates: Float[Array, "*shape n"]
    distortions: Float[Array, "*shape n"]


class CertifiedPoint(NamedTuple):
    """An achieved rate in nats and its distortion, and how far R(distortion) can lie under that rate."""

    rate: Float[Array, "*slopes"]
    distortion: Float[Array, "*slopes"]
    gap: Float[Array, "*slopes"]


class NeuralPoint(NamedTuple):
    """A held-out rate in nats and its distortion, their standard errors, and whether the codebook was large enough."""

    rate: Float[Array, ""]
    distortion: Float[Array, ""]
    rate_stderr: Float[Array, ""]
    distortion_stderr: Float[Array, ""]
    resolved: Bool[Array, ""]


class Sandwich(NamedTuple):
    """The best and the worst that the optimal decoder of a jointly Gaussian code of some information can do."""

    lower: Float[Array, "*shape"]
    upper: Float[Array, "*shape"]


def gaussian(cov: Covariance, distortion: Numbers) -> Float[Array, "*shape"]:
    """R(D) of N(0, cov) under squared error: 1/2 sum_i log+(lambda_i / theta) with D = sum_i min(theta, lambda_i), in
    nats.

    Exact for a Gaussian source, an upper bound for every other of this covariance. 0 from D = tr cov, inf at D = 0
    (unless cov is 0). Convex and falling, with dR/dD = -1/(2 theta); derivatives are exact, in cov too, and 0 in cov
    where R is inf. Cost: one eigendecomposition, then O(n) a distortion and no iteration.

    Args:
      cov: covariance (n, n), or the variances (n,) of independent components. Eigenvalues below the rounding of the
        largest are not known from a matrix; give variances where they matter.
      distortion: D, a number or an array; mapped over.

    Raises:
      ValueError: for a cov that is no covariance or a distortion under 0 (values are looked at outside of `jax.jit`
        only; inside, a negative distortion costs inf).

    Source: Kolmogorov (1956); Cover and Thomas (2006), theorem 10.3.3; theory, section 6.
    """
    return _water_filling(*_read_spectrum(cov, "distortion", distortion)).rates.sum(-1)


def water_filling(cov: Covariance, distortion: Numbers) -> Allocation:
    """Reverse water-filling: component i is coded with distortion min(theta, lambda_i) at 1/2 log+(lambda_i / theta)
    nats.

    Components are those of cov in the order given if cov is (n,), else its principal axes, in the order of
    `jnp.linalg.eigh`. From D = tr cov, theta stays the largest lambda. Exact; divide by log 2 for bits. Arguments and
    errors: see `gaussian`. Source: Cover and Thomas (2006), theorem 10.3.3; theory, sections 6 and 10.
    """
    return _water_filling(*_read_spectrum(cov, "distortion", distortion))


def gaussian_inverse(cov: Covariance, rate: Numbers) -> Float[Array, "*shape"]:
    """D(R) of N(0, cov) under squared error, the inverse of `gaussian`: tr cov at rate 0, 0 at rate inf.

    Exact, by the same piecewise solution; convex, and differentiable in both arguments. rate: nats, a number or an
    array. Raises ValueError for a cov that is no covariance and a rate under 0. Source: as `gaussian`.
    """
    return _gaussian_inverse(*_read_spectrum(cov, "rate", rate))


def converse(cov: Covariance, information: Numbers) -> Float[Array, "*shape"]:
    """Least E|h - h^|^2 that any decoder h^(h~) can reach from a code with I(h; h~) nats, for h ~ N(., cov): D(I).

    A lower bound on the error of every decoder, not what any code of that information attains: h~ = -h, read as it is,
    errs by 4 var, and a code that sees a weak component alone spends all its nats there. For jointly Gaussian (h, h~)
    converse(cov, I) <= tr cov_{h|h~} <= tr cov - lambda_min(cov) (1 - e^{-2 I}). An h of another law may be decoded
    better: what bounds it is n/(2 pi e) e^{2 (h(X) - I)/n}, the inverse of `shannon_lower_bound`.

    Args:
      cov: of what is decoded: h_t, or all of x_{1:t}.
      information: I in nats; where it is not known, an upper bound on it, never a lower one. inf gives 0.

    Raises:
      ValueError: for a cov that is no covariance and information under 0.

    Source: Shannon (1959); theory, section 6.
    """
    return _gaussian_inverse(*_read_spectrum(cov, "information", information))


def sandwich(cov: Covariance, information: Numbers) -> Sandwich:
    """What the paper's Theorem 1 can say: D(I) <= tr cov_{h|h~} <= tr cov - lambda_min(cov) (1 - e^{-2 I}).

    For h ~ N(., cov) and a code h~ of I(h; h~) = I nats that is jointly Gaussian with h, read by its optimal decoder
    E[h | h~]. Both ends are attained: the lower one by reverse water-filling, the upper one by a code that sees the
    weakest component alone. The theorem as printed, E d(h, h~) <= D(I), is false: that is the lower end, and it bounds
    every decoder from below, whatever the code (`converse`). For codes that are not Gaussian no upper end exists: h~ =
    |h| holds infinitely many nats and errs by all of var h.

    Args:
      cov: (n, n), or the variances (n,). information: I in nats; an upper bound on it keeps the lower end right, a
        lower bound the upper.

    Returns:
      Sandwich(lower, upper), in the units of cov; equal for one component, where both are var e^{-2 I}.

    Raises:
      ValueError: for a cov that is no covariance and information under 0.

    Source: theory, section 6; proof in docs/theorems.md.
    """
    variances, nats = _read_spectrum(cov, "information", information)
    return Sandwich(_gaussian_inverse(variances, nats), variances.sum() + variances.min() * jnp.expm1(-2 * nats))


def gauss_markov(a: Broadcast, q: Broadcast, distortion: Broadcast) -> Float[Array, "..."]:
    """Causal R(D) of h_t = a h_{t-1} + w_t, w_t ~ N(0, q), squared error D at every t: max(0, 1/2 log(a^2 + q/D)), in
    nats a step.

    The least directed information from the states to causal reproductions, exact for scalars: a lower bound on the rate
    of every code without delay, at least R(D) of a code that may wait. Any a: log|a| is what an unstable state needs at
    any D. inf at D = 0, where q = 0 the limit max(0, log|a|) of D falling to 0. Arguments broadcast.

    Raises:
      ValueError: for an a or q that is not finite, or q or distortion under 0.

    Source: Gorbunov and Pinsker (1974); Tatikonda, Sahai and Mitter (2004); theory, section 6.
    """
    a, q, distortion = jnp.broadcast_arrays(*(jnp.asarray(value, dtype=float) for value in (a, q, distortion)))
    _check("a", a, least=-np.inf, finite=True)
    _check("q", q, finite=True)
    _check("distortion", distortion)
    coded = (distortion > 0) | (q > 0)
    innovation = jnp.where(coded, q / jnp.where(coded, distortion, 1), 0)
    power = a**2 + innovation
    return jnp.where(power > 1, 0.5 * jnp.log(jnp.where(power > 1, power, 1)), 0)


def shannon_lower_bound(entropy: Broadcast, dimension: int, distortion: Broadcast) -> Float[Array, "..."]:
    """h(X) - n/2 log(2 pi e D / n) <= R(D), in nats: for every source with a density, under squared error.

    A lower bound; tight as D falls to 0, equal to R(D) of a Gaussian while D <= n lambda_min. Not clamped: where it is
    negative, or D is over the source's variance, it says nothing that R >= 0 does not. inf at D = 0.

    Args:
      entropy: differential entropy h(X) of the source in nats, all n components; may be negative.
      dimension: n. distortion: D, the sum over components. entropy and distortion broadcast.

    Raises:
      ValueError: for an entropy that is not finite, a dimension under 1 or a distortion under 0.

    Source: Shannon (1959); Linder and Zamir (1994) for tightness; theory, section 6.
    """
    check_whole(1, dimension=dimension)
    entropy, distortion = jnp.broadcast_arrays(*(jnp.asarray(value, dtype=float) for value in (entropy, distortion)))
    _check("entropy", entropy, least=-np.inf, finite=True)
    _check("distortion", distortion)
    return entropy - 0.5 * dimension * jnp.log(2 * jnp.pi * jnp.e / dimension * distortion)


def blahut_arimoto(
    p: Float[Array, "X"], d: Float[Array, "X Y"], slope: Number, *, tolerance: float = 1e-8, max_iterations: int = 100
) -> CertifiedPoint:
    """The point of a discrete source's R(D) where its slope is -s, with a certificate.

    Minimises F(q) = -sum_x p(x) log sum_j q_j e^{-s d(x,j)} = min (I + s E d) over the law q of the reproduction. With
    c_j = sum_x p(x) e^{-s d(x,j)} / sum_j' q_j' e^{-s d(x,j')}, the channel p(j|x) ~ q_j e^{-s d(x,j)} has

        rate = I = F - s D - sum_j q_j c_j log c_j  and  rate - gap <= R(D) <= rate,  gap = log max_j c_j - sum_j q_j
                                                    c_j log c_j.

    The bounds hold for whatever q, so that an iteration cut short still tells the truth; rounding, of the order of (X +
    Y) units, comes on top. In float32 gap stops near 1e-7, or higher where p spans more than a float's digits, and is
    returned as it is. Blahut's and Arimoto's own step, q_j <- q_j c_j, closes the gap like 1/k only; this one takes
    Newton steps along the weighted central path of the same problem and its dual (some 15, each O(X Y^2 + Y^3)), and
    keeps the q of least gap. Usable under jit and vmap; not differentiated (dR/dD = -s).

    Args:
      p: the source. d: distortions, from 0; inf forbids a reproduction, but every x needs one that is allowed.
      slope: s >= 0. Where R(D) has a straight piece of this slope, and at s = 0, the point is one of many.
      tolerance: gap at which it stops. max_iterations: at which it stops anyway.

    Raises:
      ValueError: for shapes that do not fit, a p that is no distribution, distortions or a slope out of range (values
        are looked at outside of `jax.jit` only).

    Source: Blahut (1972); Arimoto (1972); Koenker and Mizera (2014) for the dual; theory, section 6.
    """
    check_real(slope=slope)
    slopes = jnp.asarray(slope, dtype=float)
    if slopes.ndim:
        raise ValueError(f"slope has shape {slopes.shape}, expected one number: use curve for many")
    return _certify_point(*_discrete(p, d, slopes), tolerance, max_iterations)


def curve(
    p: Float[Array, "X"],
    d: Float[Array, "X Y"],
    slopes: Float[Array, "slopes"],
    *,
    tolerance: float = 1e-8,
    max_iterations: int = 100,
) -> CertifiedPoint:
    """`blahut_arimoto` at many slopes at once: points of R(D), each with its certificate. Arguments, cost and errors as
    there.
    """
    check_real(slopes=slopes)
    slopes = jnp.asarray(slopes, dtype=float)
    if slopes.ndim != 1 or not len(slopes):
        raise ValueError(f"slopes have shape {slopes.shape}, expected (K,) with K >= 1")
    p, d, slopes = _discrete(p, d, slopes)
    return jax.vmap(lambda slope: _certify_point(p, d, slope, tolerance, max_iterations))(slopes)


def neural(
    samples: Float[Array, "N n"],
    slope: Number,
    *,
    seed: int = 0,
    codebook: int = 2048,
    hidden: int = 64,
    steps: int = 400,
    batch: int = 128,
    learning_rate: float = 5e-3,
) -> NeuralPoint:
    """A point on or above R(D) of the source of samples, squared error, near its slope -s.

    A generator y = g(z), z ~ N(0, I), learns the law of the reproduction by minimising -E log 1/K sum_k e^{-s |x -
    y_k|^2}, y_k drawn anew. Then, on samples it has not seen, with K codewords y_k drawn once and w_k(x) ~ e^{-s |x -
    y_k|^2},

        distortion = E sum_k w_k |x - y_k|^2,  rate = E KL(w(x) || uniform on K) >= I(x; y).

    Direction: upper. Codewords fixed, rate >= R(distortion) in expectation over the held-out samples, for every K and
    however bad the training (the mean log of a finite mean errs upwards); allow for the standard errors. rate <= log K:
    `resolved` is False from log(K / 4) - 1, for it trains with K / 4: the point, still above the curve, drifts far from
    it there.

    The generator starts as the best for a Gaussian of the same covariance, a linear map, to which a perceptron is
    added. Cross-fitted on two halves: each trains (its last quarter chooses when to stop) for the other; both points
    are averaged, which R's convexity allows. Adam, in one scan; O(steps batch K n + N K n). Seeded; not to be called
    under jit.

    Args:
      samples: independent draws of the source. slope: s, in nats a unit of squared error (a Gaussian's level is 1/(2
        s)).
      codebook: K, from 4; large beside e^R. hidden: width of the perceptron. steps, batch, learning_rate: of Adam.

    Raises:
      ValueError: for fewer than 16 samples, samples that do not vary or are not finite, and settings out of range.

    Source: Lei, Hassani and Saeedi Bidokhti (2022), with the upper bound evaluated in place of their dual; theory,
    section 6.
    """
    samples = jnp.asarray(samples)
    _check_neural(
        samples,
        slope,
        {"codebook": codebook, "hidden": hidden, "steps": steps, "batch": batch, "learning_rate": learning_rate},
    )
    samples = samples.astype(jnp.promote_types(samples.dtype, jnp.float32))
    shuffle, *keys = jax.random.split(jax.random.key(seed), 3)
    half = len(samples) // 2
    scale = largest(samples.std(0))
    halves = jax.random.permutation(shuffle, (samples - samples.mean(0)[None]) / scale)[: 2 * half].reshape(2, half, -1)
    fit = partial(_cross_fitted, codebook=codebook, hidden=hidden, steps=steps, batch=batch)
    rates, distortions = jax.vmap(fit, in_axes=(0, 0, 0, None, None))(
        halves, halves[::-1], jnp.stack(keys), jnp.asarray(slope, samples.dtype) * scale**2, learning_rate
    )
    rates, distortions = rates.ravel(), distortions.ravel() * scale**2
    resolved, root = rates.mean() < np.log(codebook / TRAINED) - 1, np.sqrt(rates.size)
    return NeuralPoint(rates.mean(), distortions.mean(), rates.std() / root, distortions.std() / root, resolved)


def _check(name: str, value: Array, *, least: float = 0.0, finite: bool = False) -> None:
    """Real numbers in range, where they are there to be looked at."""
    check_real(**{name: value})
    if isinstance(value, jax.core.Tracer):
        return
    numbers = np.asarray(value, np.float64)
    wrong = ~(numbers >= least) | (finite & ~np.isfinite(numbers))
    if wrong.any():
        expected = ("finite numbers" if finite else "numbers") + ("" if least == -np.inf else f" from {least:g}")
        raise ValueError(f"{name} holds {numbers[wrong][0]:g}, expected {expected}")


def _read_spectrum(cov: Array, name: str, level: ArrayLike) -> tuple[Array, Array]:
    """The variances along the principal axes, and the levels in their type."""
    check_real(cov=cov, **{name: level})
    cov = jnp.asarray(cov)
    cov = cov.astype(jnp.promote_types(cov.dtype, jnp.float32))
    _check_covariance(cov)
    level = jnp.asarray(level, cov.dtype)
    _check(name, level)
    return (cov if cov.ndim == 1 else _eigenvalues(cov)), level


def _check_covariance(cov: Array) -> None:
    if cov.ndim not in (1, 2) or not cov.size or cov.shape[0] != cov.shape[-1]:
        raise ValueError(
            f"cov has shape {cov.shape}, expected (n, n), or (n,) for the variances of independent components; use "
            "jax.vmap for many"
        )
    if cov.ndim == 1:
        _check("cov", cov, finite=True)
    else:
        check_covariance("cov", cov)
    if isinstance(cov, jax.core.Tracer):
        return
    powers = np.asarray(cov if cov.ndim == 1 else jnp.diagonal(cov))
    limits = np.finfo(powers.dtype)
    if powers.sum(dtype=np.float64) > limits.max or ((powers > 0) & (powers < limits.tiny)).any():
        raise ValueError(
            f"cov holds variances up to {powers.max():.3g}, whose sum or smallest is out of the range of "
            f"{powers.dtype}: give it in other units"
        )


@jax.jit
def _eigenvalues(cov: Array) -> Array:
    """Of cov, from 0; a derivative passes through the rounding that made one negative."""
    values = jnp.linalg.eigvalsh(cov)
    return values + lax.stop_gradient(jnp.maximum(values, 0) - values)


@jax.jit
def _water_filling(variances: Array, distortion: Array) -> Allocation:
    return Allocation(*jnp.vectorize(partial(_allocate, variances), signature="()->(),(n),(n)")(distortion))


def _allocate(variances: Array, distortion: Array) -> Allocation:
    """With the k least variances under the level, D = their sum + (n - k) theta: k is counted, theta solved for."""
    n = len(variances)
    ascending, left = jnp.sort(variances), n - jnp.arange(n)
    least = jnp.concatenate([jnp.zeros_like(ascending[:1]), jnp.cumsum(ascending)])
    k = (least[:-1] + left * ascending <= distortion).sum()
    theta = jnp.where(k < n, (distortion - least[k]) / jnp.maximum(n - k, 1), ascending[-1])
    coded = ~(variances <= theta)
    finite = coded & (theta > 0)
    rates = 0.5 * jnp.log(jnp.where(finite, variances, 1) / jnp.where(finite, theta, 1))
    return Allocation(theta, jnp.where(coded & ~finite, jnp.inf, rates), jnp.minimum(variances, theta))


@jax.jit
def _gaussian_inverse(variances: Array, rate: Array) -> Array:
    return jnp.vectorize(partial(_distortion, variances))(rate)


def _distortion(variances: Array, rate: Array) -> Array:
    """With the m greatest variances over the level, 2 R = sum of their logs - m log theta."""
    n = len(variances)
    descending = jnp.sort(variances)[::-1]
    positive = descending > 0
    logs = jnp.where(positive, jnp.log(jnp.where(positive, descending, 1)), 0)
    total = jnp.cumsum(logs)
    m = jnp.maximum((jnp.where(positive, total - (1 + jnp.arange(n)) * logs, jnp.inf) <= 2 * rate).sum(), 1)
    theta = jnp.exp((total[m - 1] - 2 * rate) / m)
    return jnp.where(positive & (jnp.arange(n) < m), theta, descending).sum()


def _discrete(p: Array, d: Array, slopes: Array) -> tuple[Array, Array, Array]:
    p, d = jnp.asarray(p), jnp.asarray(d)
    if p.ndim != 1 or d.ndim != 2 or len(p) != len(d) or not d.size:
        raise ValueError(f"p has shape {p.shape} and d {d.shape}, expected (X,) and (X, Y)")
    dtype = jnp.promote_types(jnp.promote_types(p.dtype, d.dtype), jnp.float32)
    check_distribution("p", p)
    _check("d", d)
    _check("slope", slopes, finite=True)
    if not isinstance(d, jax.core.Tracer) and not bool(jnp.isfinite(d).any(1).all()):
        raise ValueError("d has a row of inf, expected a reproduction of finite distortion for every x")
    return p.astype(dtype), d.astype(dtype), slopes.astype(dtype)


class _Search(NamedTuple):
    """On the way to the best q: mass q of each reproduction, its slack u = 1 - A'v, weights v of the source's symbols,
    the best so far.
    """

    q: Array
    u: Array
    v: Array
    best: Array
    gap: Array
    iterations: Array


@jax.jit
def _certify_point(p: Array, d: Array, slope: Array, tolerance: Array, max_iterations: Array) -> CertifiedPoint:
    least = smallest(d, 1)
    excess = jnp.where(d == jnp.inf, 0, d - least[:, None])
    # scaled by row to a greatest entry of 1, so that no row vanishes
    A = jnp.where(d == jnp.inf, 0, jnp.exp(-slope * excess))
    p = p / p.sum()
    q = _central_path(p, A, tolerance, max_iterations)
    mixture = _einsum("xj,j->x", A, q)
    c, gap = _certificate(p, A, q)
    over = _einsum("x,xj,xj,j->", p / mixture, A, excess, q)  # E d less what the nearest reproductions have
    relative = (q * c * jnp.log(jnp.where(c > jnp.finfo(c.dtype).tiny, c, 1))).sum()
    rate = -(p * jnp.log(mixture)).sum() - slope * over - relative
    return CertifiedPoint(jnp.maximum(rate, 0), over + p @ least, gap)  # rounding alone takes an information under 0


def _certificate(p: Array, A: Array, q: Array) -> tuple[Array, Array]:
    """c and log max c - sum q c log c, which is a sum of terms from 0, for sum q c = 1."""
    c = _einsum("x,xj->j", p / _einsum("xj,j->x", A, q), A)
    most = largest(c)
    return c, (q * c * (jnp.log(most) - jnp.log(jnp.where(c > jnp.finfo(c.dtype).tiny, c, most)))).sum()


def _central_path(p: Array, A: Array, tolerance: Array, max_iterations: Array) -> Array:
    """The q of least gap met on the path of g = A q, u = 1 - A'v, g v = p, q u = mu as mu falls to 0.

    At mu = 0 these are the conditions of the minimum. Both linear ones hold at the start and, but for rounding, ever
    after.
    """
    eps = jnp.finfo(A.dtype).eps
    uniform = jnp.full_like(A[0], 1 / A.shape[1])
    c, gap = _certificate(p, A, uniform)
    most = largest(c)
    q = 2 * most * uniform
    start = _Search(q, 1 - c / (2 * most), p / (A @ q), uniform, gap, jnp.zeros((), int))

    def is_unsolved(state: _Search) -> Array:
        # Beyond products of the size of rounding, or broken by it, the steps say nothing more.
        sound = jnp.isfinite(state.q).all() & (state.q @ state.u > eps)
        return (state.gap > tolerance) & (state.iterations < max_iterations) & sound

    def improve(state: _Search) -> _Search:
        q, u, v = _step(p, A, state.q, state.u, state.v)
        gap = _certificate(p, A, q / q.sum())[1]
        better = gap < state.gap
        return _Search(
            q, u, v, jnp.where(better, q / q.sum(), state.best), jnp.where(better, gap, state.gap), state.iterations + 1
        )

    return lax.while_loop(is_unsolved, improve, start).best


def _step(p: Array, A: Array, q: Array, u: Array, v: Array) -> tuple[Array, Array, Array]:
    """A Newton step towards the point of the path with a `CENTRING` times smaller mu, cut off before the boundary."""
    g, root = A @ q, jnp.sqrt(q)
    scaled = A * root[None] * jnp.sqrt(v / g)[:, None]
    # Unknown is dq / sqrt(q), whose matrix has eigenvalues of at most about 1 + max u however small a mass becomes.
    matrix = _einsum("xi,xj->ij", scaled, scaled) + jnp.diag(u)
    aim = CENTRING * (q @ u) / len(q)
    dq = root * jax.scipy.linalg.solve(
        matrix, root * (_einsum("x,xj->j", p / g - v, A) - u) + aim / root, assume_a="pos"
    )
    dv = (p - v * g - v * _einsum("xj,j->x", A, dq)) / g
    du = -_einsum("xj,x->j", A, dv)
    fastest = largest(jnp.concatenate([-dq / q, -du / u, jnp.where(v > 0, -dv / jnp.where(v > 0, v, 1), 0)]))
    length = jnp.minimum(1, BOUNDARY / jnp.maximum(fastest, BOUNDARY))
    return q + length * dq, u + length * du, v + length * dv


def _check_neural(samples: Array, slope: ArrayLike, settings: dict[str, Any]) -> None:
    if samples.ndim != 2 or len(samples) < 16 or not samples.shape[1]:
        raise ValueError(
            f"samples have shape {samples.shape}, expected (N, n) with N from 16: use samples[:, None] for one "
            "component"
        )
    _check("samples", samples, least=-np.inf, finite=True)
    _check("slope", jnp.asarray(slope), finite=True)
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name}={value}, expected more than 0")
    if settings["codebook"] < TRAINED:
        raise ValueError(f"codebook={settings['codebook']}, expected from {TRAINED}")
    if settings["steps"] % CHECKS:
        raise ValueError(f"steps={settings['steps']}, expected a multiple of {CHECKS}, the checks of a training")
    if not float(largest(samples.std(0))) > 0:
        raise ValueError("samples do not vary: such a source has R(D) = 0 at every D")


def _generator(parameters: dict[str, Array], z: Array) -> Array:
    h = jnp.tanh(z @ parameters["in"] + parameters["in_bias"][None])
    h = jnp.tanh(h @ parameters["mid"] + parameters["mid_bias"][None])
    return z @ parameters["linear"] + parameters["bias"][None] + h @ parameters["out"]


def _initial(samples: Array, slope: Array, hidden: int, key: Array) -> dict[str, Array]:
    """The linear map that is best for a Gaussian source, variances over the level 1/(2 s), but none quite 0, where
    learning would stop.
    """
    n = samples.shape[1]
    variances, axes = jnp.linalg.eigh(jnp.atleast_2d(jnp.cov(samples, rowvar=False)))
    spread = jnp.sqrt(jnp.maximum(variances - 0.5 / slope, 0.01 * jnp.maximum(variances, 0)))
    one, two, three = jax.random.split(key, 3)
    zeros = jnp.zeros(hidden, samples.dtype)
    return {
        "linear": spread[:, None] * axes.T,
        "bias": samples.mean(0),
        "in": jax.random.normal(one, (n, hidden), samples.dtype) / np.sqrt(n),
        "in_bias": zeros,
        "mid": jax.random.normal(two, (hidden, hidden), samples.dtype) / np.sqrt(hidden),
        "mid_bias": zeros,
        "out": 0.01 * jax.random.normal(three, (hidden, n), samples.dtype) / np.sqrt(hidden),
    }


def _soft_assignment(x: Array, y: Array, slope: Array) -> tuple[Array, Array]:
    """For each x, KL of its soft choice of a codeword to the uniform choice, and the distortion of that choice."""

    def one(x: Array) -> tuple[Array, Array]:
        d = ((x[None] - y) ** 2).sum(1)
        logits = jax.nn.log_softmax(-slope * d)
        w = jnp.exp(logits)
        return (w * logits).sum() + np.log(len(y)), w @ d

    return lax.map(one, x, batch_size=EVALUATED)


@partial(jax.jit, static_argnames=("codebook", "hidden", "steps", "batch"))
def _cross_fitted(
    train: Array,
    test: Array,
    key: Array,
    slope: Array,
    learning_rate: Array,
    *,
    codebook: int,
    hidden: int,
    steps: int,
    batch: int,
) -> tuple[Array, Array]:
    """Rate and distortion of each test sample under the generator that the train samples have chosen."""
    train, validation = jnp.split(train, [3 * len(train) // 4])
    start, learn, check, final = jax.random.split(key, 4)

    def draw(key: Array, size: int = codebook) -> Array:
        return jax.random.normal(key, (size, train.shape[1]), train.dtype)

    optimizer = optax.adam(optax.cosine_decay_schedule(1.0, steps))

    def loss(parameters: dict[str, Array], key: Array) -> Array:
        choose, noise = jax.random.split(key)
        x, y = jax.random.choice(choose, train, (batch,)), _generator(parameters, draw(noise, codebook // TRAINED))
        d = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
        return -jax.nn.logsumexp(-slope * d, axis=1).mean()

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        parameters, state = carry
        updates, state = optimizer.update(jax.grad(loss)(parameters, key), state)
        return (jax.tree.map(lambda value, update: value + learning_rate * update, parameters, updates), state), None

    def stretch(carry: Any, keys: Array) -> tuple[Any, None]:
        training, best, least = carry
        training = lax.scan(step, training, keys)[0]
        rates, distortions = _soft_assignment(validation, _generator(training[0], draw(check)), slope)
        value = (rates + slope * distortions).mean()
        best = jax.tree.map(partial(jnp.where, value < least), training[0], best)
        return (training, best, jnp.minimum(value, least)), None

    parameters = _initial(train, slope, hidden, start)
    carry = ((parameters, optimizer.init(parameters)), parameters, jnp.asarray(jnp.inf, train.dtype))
    best = lax.scan(stretch, carry, jax.random.split(learn, (CHECKS, steps // CHECKS)))[0][1]
    return _soft_assignment(test, _generator(best, draw(final)), slope)
