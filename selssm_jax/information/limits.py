"""Consequences of information: the least error of any decoder (Fano), and data processing (theory, section 7)."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from statistics import NormalDist
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from selssm_jax.information._estimate import Estimate
from selssm_jax.information.checks import check_whole

CONFIDENCE = 0.9999  # that a verdict of "violated" or "consistent" does not come by chance, for each of its two numbers
HALVINGS, NEWTON = 40, 3  # 2^-40 is near enough for Newton to double its digits from there

Number = Float[Array | np.ndarray, "..."] | float


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether information seems to have been added on the way.

    Attributes:
      status: "violated" where a lower bound downstream exceeds an upper bound upstream, confidence limits included;
        "consistent" where an upper bound downstream is under a lower bound upstream; else "inconclusive".
      slack: nats by which the tightest known upstream value exceeds the tightest known downstream value; negative where
        it does not. nan where a bound is missing.
      reason: the numbers, or which one is missing.
    """

    status: Literal["violated", "consistent", "inconclusive"]
    slack: float
    reason: str


def fano_error(
    entropy: Number, information: Number | Estimate, cardinality: int, *, list_size: int = 1, length: int = 1
) -> Float[Array, "..."]:
    """The least error probability of any decoder of X from a state that knows I of it: P_e >= F^{-1}(H(X) - I).

    F(p) = h_b(p) + p log(M - L) + (1 - p) log L on [0, 1 - L/M], for a decoder that names L of M symbols and errs where
    the right one is not among them; L = 1 is Fano's inequality in its exact form. For a sequence of `length` symbols, H
    and I are about the whole of it, M is that of one symbol, and the result bounds the mean error of a symbol: (H - I)
    / length <= F(P). Differentiable where it is not 0.

    Args:
      entropy: H, in nats. information: I in nats, at least the true one: only an upper bound on I bounds errors from
        below. An `Estimate` must be exact or upper, and two standard errors are added to it.
      cardinality: M, symbols of the alphabet. list_size: L, how many the decoder may name.

    Raises:
      ValueError: for an estimate that is no upper bound, sizes that do not fit, and values outside 0 <= H <= length log
        M, I >= 0.

    Source: Fano 1961; Cover and Thomas 2006, section 2.10; theory, section 7.
    """
    if isinstance(information, Estimate):
        if information.direction not in ("exact", "upper"):
            raise ValueError(
                f"information is a {information.direction!r} value ({information.method}): only an upper bound on it "
                "bounds errors from below"
            )
        information = information.nats + (
            2 * information.stderr if information.direction == "upper" and not math.isnan(information.stderr) else 0.0
        )
    check_whole(1, cardinality=cardinality, list_size=list_size, length=length)
    if list_size >= cardinality:
        raise ValueError(f"list_size={list_size} of cardinality={cardinality}: expected 1 <= list_size < cardinality")
    entropy, information = (jnp.asarray(value, jnp.result_type(float)) for value in (entropy, information))
    _check_range(entropy, information, length * math.log(cardinality))
    return _fano_inverse((entropy - information) / length, cardinality, list_size)


def data_processing(
    upstream: Estimate | Sequence[Estimate],
    downstream: Estimate | Sequence[Estimate],
    *,
    confidence: float = CONFIDENCE,
) -> Verdict:
    """Whether I(x; h~) <= I(x; h) (or <= I(h; h~)) holds for what is known of both sides of x -> h -> h~.

    Args:
      upstream, downstream: what is known of I(x; h) and of I(x; h~): one estimate each, or several with different
        directions. Values without a direction ("estimate") decide nothing.
      confidence: of each limit; a bound with a standard error is moved by as many of them as that asks for.

    Raises:
      ValueError: for a confidence outside of (1/2, 1).
    """
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence={confidence}, expected a share between 1/2 and 1")
    z = NormalDist().inv_cdf(confidence)
    least_down, most_down = _limits(downstream, z)
    least_up, most_up = _limits(upstream, z)
    if least_down > most_up:
        return Verdict(
            "violated",
            most_up - least_down,
            f"at least {least_down:.3f} nats downstream, at most {most_up:.3f} upstream",
        )
    if most_down <= least_up:
        return Verdict(
            "consistent",
            least_up - most_down,
            f"at most {most_down:.3f} nats downstream, at least {least_up:.3f} upstream",
        )
    missing = [
        name
        for name, value in (("a lower bound downstream", least_down), ("an upper bound upstream", most_up))
        if math.isinf(value)
    ]
    if missing:
        return Verdict("inconclusive", math.nan, f"to find a violation, {' and '.join(missing)} would be needed")
    return Verdict(
        "inconclusive",
        most_up - least_down,
        f"at least {least_down:.3f} nats downstream, at most {most_up:.3f} upstream: no contradiction",
    )


def _limits(known: Estimate | Sequence[Estimate], z: float) -> tuple[float, float]:
    """The largest lower and the smallest upper confidence limit."""
    known = [known] if isinstance(known, Estimate) else list(known)
    margin = lambda one: 0.0 if math.isnan(one.stderr) else z * one.stderr  # noqa: E731
    least = [one.nats - margin(one) for one in known if one.direction in ("exact", "lower")]
    most = [one.nats + margin(one) for one in known if one.direction in ("exact", "upper")]
    return max(least, default=-math.inf), min(most, default=math.inf)


def _check_range(entropy: Array, information: Array, most: float) -> None:
    if isinstance(entropy, jax.core.Tracer) or isinstance(information, jax.core.Tracer):
        return
    slack = 1e-5 * max(most, 1.0)  # of float32 entropies
    if not ((entropy >= 0) & (entropy <= most + slack)).all():
        raise ValueError(f"entropy={entropy} nats, expected from 0 to length log(cardinality) = {most:.6g}")
    if not (information >= 0).all():
        raise ValueError(
            f"information={information} nats, expected at least 0; do not feed a negative estimate, 0 is a bound below "
            "it"
        )


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
@partial(jax.jit, static_argnums=(1, 2))
def _fano_inverse(equivocation: Array, M: int, L: int) -> Array:
    """p in [0, 1 - L/M] with F(p) = equivocation: halving, then Newton's steps where they stay inside."""
    least, most = math.log(L), math.log(M)
    y = jnp.clip(equivocation, least, most)
    top = 1 - L / M

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        over = _fano(middle, M, L) > y
        return jnp.where(over, low, middle), jnp.where(over, middle, high)

    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(y), jnp.full_like(y, top)))
    p = (low + high) / 2
    for _ in range(NEWTON):
        step = p - (_fano(p, M, L) - y) / _slope(p, M, L)
        p = jnp.where((step > low) & (step < high), step, p)
    return jnp.where(equivocation <= least, 0.0, jnp.where(equivocation >= most, top, p))


@_fano_inverse.defjvp
def _fano_inverse_derivative(M: int, L: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """dp = dF / F'(p), and 0 where nothing can be said."""
    p = _fano_inverse(primals[0], M, L)
    inside = (p > 0) & (p < 1 - L / M)
    return p, jnp.where(inside, tangents[0] / _slope(jnp.where(inside, p, 0.5 * (1 - L / M)), M, L), 0.0)


def _fano(p: Array, M: int, L: int) -> Array:
    return jax.scipy.special.entr(p) + jax.scipy.special.entr(1 - p) + p * math.log(M - L) + (1 - p) * math.log(L)


def _slope(p: Array, M: int, L: int) -> Array:
    return jnp.log1p(-p) - jnp.log(p) + math.log(M - L) - math.log(L)
