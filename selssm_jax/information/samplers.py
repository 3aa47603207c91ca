"""Samples whose mutual information is known in closed form, and maps that do not change it: test cases for estimators.

A sampler is `name(key, n, ...) -> Sample(x, y, information)`. An injective map of x alone, or of y alone, changes no
information: `transform_sample` applies one and keeps the number, which makes hard cases of easy ones (Czyz et al. 2023,
"Beyond Normal": their tasks are compositions of what is here). Random numbers are JAX's; parameters that are matrices
are numpy's or JAX's with values, for the truth is computed in float64 before anything is drawn. All information is in
nats.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Num, PRNGKeyArray

from selssm_jax.information import gaussian
from selssm_jax.information.checks import check_real, check_whole

Matrix = Float[Array | np.ndarray, "d e"]

BISECTIONS = 64  # halvings of an interval: more than a float64 has digits


class Sample(NamedTuple):
    """n independent pairs, x: (n, dx), y: (n, dy), and I(x; y) in nats of the law that they are drawn from."""

    x: Num[Array, "n dx"]
    y: Num[Array, "n dy"]
    information: float | Float[Array, ""]


class Chain(NamedTuple):
    """n draws of an input, a state and its compressed form, x -> h -> h~, with what is known of them in nats.

    Attributes:
      x, h, compressed: (n, d), (n, d) and (n, d), or (n, 2d) where there is a leak.
      upstream: I(x; h). downstream: I(h; h~). total: I(x; h~), at most both of them where there is no leak.
      leak: I(x; h~ | h): what h~ knows of x and not through h; 0 of a valid chain.
    """

    x: Float[Array, "n d"]
    h: Float[Array, "n d"]
    compressed: Float[Array, "n e"]
    upstream: float
    downstream: float
    total: float
    leak: float


def multinormal(key: PRNGKeyArray, n: int, covariance: Matrix, dim_x: int) -> Sample:
    """Jointly normal, of mean zero: I = 1/2 log det C_x + 1/2 log det C_y - 1/2 log det C. Exact.

    Args:
      covariance: of (x, y) together, positive definite; see `dense_covariance` and `sparse_covariance`.
      dim_x: how many of its components are x.

    Raises:
      ValueError: for a matrix that is no covariance or is singular (then I = inf), and a dim_x that leaves x or y
        empty.
    """
    root, information = _joint(covariance, dim_x, "covariance")
    drawn = jax.random.normal(key, (_count(n), len(root))) @ root.T
    return Sample(drawn[:, :dim_x], drawn[:, dim_x:], information)


def student(key: PRNGKeyArray, n: int, dispersion: Matrix, dim_x: int, degrees: float) -> Sample:
    """Multivariate Student-t of mean zero: dependent even where the dispersion is the identity, for x and y share their
    scale. Exact.

    I = I of the normal with this dispersion + f(nu) + f(nu + dx + dy) - f(nu + dx) - f(nu + dy), f(t) = log Gamma(t/2)
    - t/2 psi(t/2) (Arellano-Valle et al. 2013). It has moments of order below nu only. Arguments and errors: see
    `multinormal`; degrees: nu > 0.

    Raises:
      ValueError: as `multinormal`, and for degrees that are not above 0.
    """
    root, information = _joint(dispersion, dim_x, "dispersion")
    if not 0 < degrees < math.inf:
        raise ValueError(
            f"degrees={degrees}, expected degrees of freedom above 0; for the normal, their limit, use multinormal"
        )
    normal, scale = jax.random.split(key)
    # of chi-squared / nu
    width = jnp.exp(-0.5 * (jax.random.loggamma(scale, degrees / 2, (_count(n), 1)) - math.log(degrees / 2)))
    drawn = jax.random.normal(normal, (n, len(root))) @ root.T * width
    both, one, other = degrees + len(root), degrees + dim_x, degrees + len(root) - dim_x
    shared = _student_term(degrees) + _student_term(both) - _student_term(one) - _student_term(other)
    return Sample(drawn[:, :dim_x], drawn[:, dim_x:], information + shared)


def additive_uniform(key: PRNGKeyArray, n: int, epsilon: float) -> Sample:
    """x ~ U(0, 1), y = x + U(-epsilon, epsilon): I = epsilon - log(2 epsilon) up to epsilon = 1/2, 1/(4 epsilon) from
    there. Exact.

    Raises:
      ValueError: for an epsilon that is not above 0: y = x has infinite information.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon={epsilon}, expected a width above 0: without noise the information is infinite")
    first, second = jax.random.split(key)
    x = jax.random.uniform(first, (_count(n), 1))
    y = x + jax.random.uniform(second, (n, 1), minval=-epsilon, maxval=epsilon)
    return Sample(x, y, epsilon - math.log(2 * epsilon) if epsilon <= 0.5 else 1 / (4 * epsilon))


def bimodal(key: PRNGKeyArray, n: int, correlation: float = 0.75) -> Sample:
    """Scalars with two modes each, of a normal pair by `to_bimodal`: I = -1/2 log(1 - r^2). Exact.

    Raises:
      ValueError: for a correlation that is not between -1 and 1.
    """
    if not abs(correlation) < 1:
        raise ValueError(
            f"correlation={correlation}, expected between -1 and 1; at the ends the information is infinite"
        )
    pair = multinormal(key, n, np.array([[1, correlation], [correlation, 1]], np.float64), 1)
    return transform_sample(
        pair, x=lambda x: to_bimodal(x, 0.3, (0.0, 5.0)), y=lambda y: to_bimodal(y, 0.5, (-1.0, 3.0))
    )


def independent(key: PRNGKeyArray, n: int, dim_x: int, dim_y: int) -> Sample:
    """Standard normal and not related: I = 0.

    Raises:
      ValueError: for dimensions below 1.
    """
    if min(dim_x, dim_y) < 1:
        raise ValueError(f"dim_x={dim_x} and dim_y={dim_y}, expected both from 1")
    return multinormal(key, n, np.eye(dim_x + dim_y), dim_x)


def discrete_channel(
    key: PRNGKeyArray, n: int, law: Float[Array | np.ndarray, "a"], channel: Float[Array | np.ndarray, "a b"]
) -> Sample:
    """Symbols x ~ p and y ~ p(y | x), integers (n, 1): I = sum p(x) p(y|x) log(p(y|x) / p(y)). Exact.

    Args:
      law: p(x). channel: p(y | x), one row for each x.

    Raises:
      ValueError: for shapes that do not fit, and rows that are no distributions.
    """
    check_real(law=law, channel=channel)
    law, channel = np.asarray(law, np.float64), np.asarray(channel, np.float64)
    if channel.ndim != 2 or law.shape != channel.shape[:1]:
        raise ValueError(
            f"channel has shape {channel.shape} and law {law.shape}, expected (a, b) and (a,): a row of channel for "
            "each symbol of law"
        )
    for name, rows in (("law", law[None]), ("channel", channel)):
        if not (rows >= 0).all() or not (np.abs(rows.sum(1) - 1) <= 1e-5).all():
            worst = np.abs(rows.sum(1) - 1).argmax()
            raise ValueError(
                f"{name}: row {worst} sums to {rows[worst].sum()} with the least entry {rows.min()}, expected "
                "distributions; divide by the sums"
            )
    joint = law[:, None] * channel
    outer = law[:, None] * joint.sum(0)[None]
    information = float(
        np.sum(np.where(joint > 0, joint * np.log(np.where(joint > 0, joint, 1) / np.where(outer > 0, outer, 1)), 0))
    )
    drawn = jax.random.choice(key, joint.size, (_count(n),), p=jnp.asarray(joint.ravel() / joint.sum()))
    x, y = jnp.divmod(drawn, channel.shape[1])
    return Sample(x[:, None], y[:, None], information)


def linear_gaussian_channel(
    key: PRNGKeyArray, n: int, *, steps: int = 10, dim_state: int = 2, dim_input: int = 1
) -> Sample:
    """Trajectories of a random layer h_t = (1 - g_t) h + g_t (A h + B x_t + w_t) with fixed gates: x = x_{1:T}, (n, T
    m), y = h_T, (n, d).

    I(h_T; x_{1:T}) is `gaussian.state_information` of the system. Poles, gates, B and the power of the noise are drawn
    with the key. Source: theory, section 4.1.

    Raises:
      ValueError: for sizes below 1.
    """
    if min(steps, dim_state, dim_input) < 1:
        raise ValueError(f"steps={steps}, dim_state={dim_state}, dim_input={dim_input}: expected all from 1")
    poles, gates, mix, power, inputs, noises = jax.random.split(key, 6)
    a = jax.random.uniform(poles, (1, dim_state), minval=0.5, maxval=0.98)
    g = jax.random.uniform(gates, (steps, dim_state), minval=0.05)
    B = g[:, :, None] * jax.random.normal(mix, (1, dim_state, dim_input))
    spread = g * jax.random.uniform(power, (1, dim_state), minval=0.3, maxval=1.0)
    x = jax.random.normal(inputs, (steps, _count(n), dim_input))

    def step(h: Array, now: tuple[Array, ...]) -> tuple[Array, None]:
        decay, B, spread, x, w = now
        return decay[None] * h + x @ B.T + spread[None] * w, None

    decay = 1 - g * (1 - a)
    h, _ = lax.scan(
        step, jnp.zeros((n, dim_state)), (decay, B, spread, x, jax.random.normal(noises, (steps, n, dim_state)))
    )
    noise_cov = spread[:, :, None] ** 2 * jnp.eye(dim_state)[None]
    information = gaussian.state_information(decay, B, jnp.eye(dim_input), noise_cov)[-1]
    return Sample(x.swapaxes(0, 1).reshape(n, -1), h, information)


def markov_chain(
    key: PRNGKeyArray, n: int, *, dim: int = 1, upstream: float = 1.0, downstream: float = 1.0, leak: float = 0.0
) -> Chain:
    """x -> h -> h~, normal, with I(x; h) = upstream and I(h; h~) = downstream, shared equally by dim components; a
    valid chain if leak = 0.

    With a leak, h~ has dim components more, of what h does not know of x: I(x; h~ | h) = leak, and h is no longer all
    that h~ knows of x. Data processing is then broken where total > upstream, the excess growing to the leak with
    downstream. For r^2 = 1 - e^{-2 upstream / dim}, a^2 and l likewise of downstream and leak: total = -dim/2 log(1 -
    r^2 a^2 - (1 - r^2) l). Exact. Source: theory, section 7.

    Raises:
      ValueError: for information that is negative or not finite, or dim below 1.
    """
    for name, nats in (("upstream", upstream), ("downstream", downstream), ("leak", leak)):
        if not 0 <= nats < math.inf:
            raise ValueError(f"{name}={nats}, expected finite information from 0 nats")
    if dim < 1:
        raise ValueError(f"dim={dim}, expected from 1")
    known, kept, leaked = (-math.expm1(-2 * nats / dim) for nats in (upstream, downstream, leak))
    x, w, v, u = jax.random.normal(key, (4, _count(n), dim))
    h = math.sqrt(known) * x + math.sqrt(1 - known) * w
    rest = math.sqrt(1 - known) * x - math.sqrt(known) * w  # of x, what h does not tell: independent of h
    compressed = math.sqrt(kept) * h + math.sqrt(1 - kept) * v
    if leak > 0:
        compressed = jnp.concatenate([compressed, math.sqrt(leaked) * rest + math.sqrt(1 - leaked) * u], axis=1)
    total = -0.5 * dim * math.log1p(-known * kept - (1 - known) * leaked)
    return Chain(x, h, compressed, upstream, downstream, total, leak)


def dense_covariance(dim_x: int, dim_y: int, correlation: float = 0.5) -> Float[np.ndarray, "d d"]:
    """Unit variances, and the same correlation of any two components ("multinormal-dense" of Czyz et al. 2023)."""
    d = dim_x + dim_y
    return np.full((d, d), float(correlation)) + (1 - correlation) * np.eye(d)


def sparse_covariance(dim_x: int, dim_y: int, pairs: int = 2, strength: float = 2.0) -> Float[np.ndarray, "d d"]:
    """Unit variances, and x_i correlated with y_i only, for the first pairs, by s^2 / (1 + s^2): a common cause of
    power s^2 beside a noise of power 1.

    "multinormal-sparse" of Czyz et al. 2023: pairs=2, strength=2 is a correlation of 0.8.

    Raises:
      ValueError: for more pairs than x or y has components.
    """
    if not 0 <= pairs <= min(dim_x, dim_y):
        raise ValueError(
            f"pairs={pairs}, expected from 0 to {min(dim_x, dim_y)}, the smaller of dim_x={dim_x} and dim_y={dim_y}"
        )
    covariance = np.eye(dim_x + dim_y)
    for i in range(pairs):
        covariance[i, dim_x + i] = covariance[dim_x + i, i] = strength**2 / (1 + strength**2)
    return covariance


def transform_sample(
    sample: Sample, *, x: Callable[[Array], Array] | None = None, y: Callable[[Array], Array] | None = None
) -> Sample:
    """The sample with maps applied to x and to y, each alone: where both are injective, the information stays. That
    they are is not checked.
    """
    return Sample(sample.x if x is None else x(sample.x), sample.y if y is None else y(sample.y), sample.information)


def normal_cdf(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Phi(x), elementwise: of a standard normal, uniform on (0, 1)."""
    return jax.scipy.special.ndtr(x)


def asinh(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(x + sqrt(x^2 + 1)), elementwise: shortens long tails."""
    return jnp.arcsinh(x)


def half_cube(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """x |x|^{1/2}, elementwise: lengthens tails."""
    return x * jnp.sqrt(jnp.abs(x))


def wiggly(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """x + 0.4 sin x + 0.2 sin(1.7 x + 1) + 0.03 sin(3.3 x - 2.5), elementwise: of slope from 0.16 to 1.84 (Czyz et al.
    2023).
    """
    return x + 0.4 * jnp.sin(x) + 0.2 * jnp.sin(1.7 * x + 1) + 0.03 * jnp.sin(3.3 * x - 2.5)


def to_bimodal(z: Float[Array, "*s"], weight: float, centres: tuple[float, float]) -> Float[Array, "*s"]:
    """F^{-1}(Phi(z)), elementwise: makes w N(c_1, 1) + (1 - w) N(c_2, 1) of a standard normal, by bisection in the log
    of the nearer tail.

    Raises:
      ValueError: for a weight that is not between 0 and 1.
    """
    if not 0 < weight < 1:
        raise ValueError(f"weight={weight}, expected between 0 and 1: the share of the first mode")
    logs = math.log(weight), math.log1p(-weight)
    side = jnp.where(z < 0, 1, -1)  # which tail is the nearer one

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        tail = jnp.logaddexp(
            *(log + log_ndtr(side * (middle - centre)) for log, centre in zip(logs, centres, strict=True))
        )
        high = (tail > log_ndtr(side * z)) == (side > 0)
        return jnp.where(high, ends[0], middle), jnp.where(high, middle, ends[1])

    low, high = lax.fori_loop(0, BISECTIONS, halve, (z + min(centres), z + max(centres)))
    return (low + high) / 2


def spiral(x: Float[Array, "n d"], speed: float = 1 / 3, plane: tuple[int, int] = (0, 1)) -> Float[Array, "n d"]:
    """Turns the two components of the plane by the angle speed |x|^2: lengths stay, and so do volumes (Czyz et al.
    2023).

    Raises:
      ValueError: for a plane that is not two different components of x.
    """
    i, j = plane
    if i == j or not (0 <= i < x.shape[1] and 0 <= j < x.shape[1]):
        raise ValueError(
            f"plane={plane}, expected two different indices from 0 to {x.shape[1] - 1}, the components of x"
        )
    angle = speed * jnp.sum(x**2, axis=1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return x.at[:, i].set(cos * x[:, i] - sin * x[:, j]).at[:, j].set(sin * x[:, i] + cos * x[:, j])


def swissroll(x: Float[Array, "n 1"]) -> Float[Array, "n 2"]:
    """(t cos t, t sin t) / 21 with t = 3 pi / 2 (1 + 2 x): rolls the interval from 0 to 1 up in a plane."""
    t = 1.5 * math.pi * (1 + 2 * x)
    return jnp.concatenate([t * jnp.cos(t), t * jnp.sin(t)], axis=1) / 21


def rotation(key: PRNGKeyArray, d: int) -> Float[Array, "d d"]:
    """A random orthogonal matrix R, uniform over all: apply it as x @ R.T. With any invertible factors beside it, an
    invertible map.
    """
    Q, R = jnp.linalg.qr(jax.random.normal(key, (d, d)))
    return Q * jnp.sign(jnp.diagonal(R))[None]


def _joint(covariance: Matrix, dim_x: int, name: str) -> tuple[Array, float]:
    """A root of the covariance, and I(x; y) of the normal with it; checked."""
    check_real(**{name: covariance})
    C = np.asarray(covariance, np.float64)
    if C.ndim != 2 or C.shape[0] != C.shape[1] or not 1 <= dim_x < len(C):
        raise ValueError(
            f"{name} has shape {C.shape} and dim_x={dim_x}, expected (d, d) and from 1 to d - 1: the first dim_x "
            "components are x"
        )
    if not np.isfinite(C).all() or np.abs(C - C.T).max() > 1e-5 * np.abs(C).max():
        raise ValueError(f"{name} is not finite and symmetric: use (C + C.T) / 2 if that is what is meant")
    if np.linalg.eigvalsh(C)[0] <= 1e-12 * np.abs(C).max():
        raise ValueError(
            f"{name} is not positive definite, expected so: between components that determine each other the "
            "information is infinite"
        )
    log_x, log_y, log_both = (np.linalg.slogdet(part)[1] for part in (C[:dim_x, :dim_x], C[dim_x:, dim_x:], C))
    return jnp.asarray(np.linalg.cholesky(C), jnp.result_type(float)), float(0.5 * (log_x + log_y - log_both))


def _student_term(t: float) -> float:
    return math.lgamma(t / 2) - t / 2 * _digamma(t / 2)


def _digamma(z: float) -> float:
    """psi(z) for z > 0: psi(z) = psi(z + 1) - 1/z up to z > 10, and there its asymptotic series, to 1e-14."""
    below = 0.0
    while z < 10:
        below, z = below - 1 / z, z + 1
    square = 1 / (z * z)
    return (
        below
        + math.log(z)
        - 0.5 / z
        - square
        * (
            1 / 12
            - square * (1 / 120 - square * (1 / 252 - square * (1 / 240 - square * (1 / 132 - square * 691 / 32760))))
        )
    )


def _count(n: int) -> int:
    check_whole(1, n=n)
    return n


TASKS: dict[str, Callable[[PRNGKeyArray, int], Sample]] = {
    "1v1-normal-0.75": lambda key, n: multinormal(key, n, dense_covariance(1, 1, 0.75), 1),
    "1v1-additive-0.1": lambda key, n: additive_uniform(key, n, 0.1),
    "1v1-bimodal-0.75": lambda key, n: bimodal(key, n, 0.75),
    "student-identity-1-1-1": lambda key, n: student(key, n, np.eye(2), 1, 1),
    "swissroll_x-normal_cdf-1v1-normal-0.75": lambda key, n: transform_sample(
        multinormal(key, n, dense_covariance(1, 1, 0.75), 1), x=lambda x: swissroll(normal_cdf(x)), y=normal_cdf
    ),
    "multinormal-dense-5-5-0.5": lambda key, n: multinormal(key, n, dense_covariance(5, 5, 0.5), 5),
    "multinormal-dense-25-25-0.5": lambda key, n: multinormal(key, n, dense_covariance(25, 25, 0.5), 25),
    "multinormal-sparse-5-5-2-2.0": lambda key, n: multinormal(key, n, sparse_covariance(5, 5), 5),
    "multinormal-sparse-25-25-2-2.0": lambda key, n: multinormal(key, n, sparse_covariance(25, 25), 25),
    "student-identity-5-5-2": lambda key, n: student(key, n, np.eye(10), 5, 2),
    "asinh-student-identity-5-5-2": lambda key, n: transform_sample(
        student(key, n, np.eye(10), 5, 2), x=asinh, y=asinh
    ),
    "spiral-multinormal-sparse-3-3-2-2.0": lambda key, n: transform_sample(
        multinormal(key, n, sparse_covariance(3, 3), 3), x=spiral, y=lambda y: spiral(y, plane=(1, 2))
    ),
}
"""Twelve tasks of Czyz et al. (2023), by their names: (key, n) -> samples with their information."""
