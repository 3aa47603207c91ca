"""Verdicts on averages and on laws: second moments, almost sure forgetting, the stationary law (theory, section 5 B2,
B3, B6).
"""

import dataclasses
import math

import numpy as np

from selssm_jax.stability import laws
from selssm_jax.stability.lipschitz import operator_norm
from selssm_jax.stability.recurrence import Recurrence
from selssm_jax.stability.simulate import Direction, GatePath
from selssm_jax.stability.verdict import MARGINAL, Verdict

READS = "The gates read the state: their law is not one of products."


def mean_square(given: Recurrence, uniform: Verdict) -> Verdict:
    """B2: E|h_t - k_t|^2 <= C rate^t |h_0 - k_0|^2 under shared inputs and noise, with a C for the maximum and one for
    the Euclidean norm.
    """
    if given.reads_state:
        return Verdict("not established", reason=READS)
    if given.law is None:
        return _any_law(given, uniform)
    moments = laws.mean_square(given.law)
    words = f"The mean-square radius is {moments.radius:.6g}" + (
        f", between {moments.interval[0]:.6g} and {moments.interval[1]:.6g}" if given.law.sampled else ""
    )
    if moments.radius >= 1 and moments.interval[0] >= 1 - MARGINAL:
        return Verdict(
            "refuted",
            moments.radius,
            f"{words}: second moments grow.",
            Direction(moments.direction, moments.radius),
            interval=moments.interval,
        )
    if moments.interval[1] < 1 and moments.constant is not None:
        return _with_constants(
            Verdict("holds", moments.rate, f"{words}.", interval=moments.interval), moments.constant, len(given.A)
        )
    return Verdict(
        "not established",
        moments.radius,
        f"{words}, which is not proved, or too near 1 to tell.",
        interval=moments.interval,
    )


def _any_law(given: Recurrence, uniform: Verdict) -> Verdict:
    """Without a law: by uniform contraction, or the dimension-free bound for gates independent in time (theory, section
    5 B2).
    """
    if uniform.status == "holds":
        return square_contraction(uniform, len(given.A))
    norm, least = operator_norm(given.A, norm="euclidean"), float(given.low.min())
    if norm < 1 and least > 0 and given.update == "retain":
        rate = 1 - least * (1 - norm**2)
        words = f"For gates independent in time, of mean gate_min or more: 1 - g (1 - |A|_2^2) with |A|_2 = {norm:.6g}."
        return _with_constants(Verdict("holds", rate, words), float(given.high.max() / least), len(given.A))
    return Verdict("not established", reason="Nothing is known of the gates' law: give gate_law.")


def _with_constants(verdict: Verdict, euclidean: float, components: int) -> Verdict:
    """A bound of sum_i E e_i^2, in both norms: components that shrink in turn may each be the largest in its time, and
    their maximum shrinks n times later.
    """
    return dataclasses.replace(verdict, constant=components * euclidean, euclidean_constant=euclidean)


def square_contraction(uniform: Verdict, components: int) -> Verdict:
    """Contraction of every path, as one of second moments."""
    if uniform.status != "holds" or uniform.rate is None:
        return Verdict("not established", reason="Paths are not known to contract.")
    return Verdict(
        "holds",
        uniform.rate**2,
        "Every path contracts.",
        constant=uniform.constant**2,
        euclidean_constant=components * uniform.constant**2,
    )


def lyapunov(given: Recurrence, uniform: Verdict) -> Verdict:
    """B3: lim log|h_t - k_t| / t < 0 almost surely."""
    if given.reads_state:
        return Verdict("not established", reason=READS)
    if given.law is None:
        return exponent_of(uniform)
    exponent = laws.lyapunov(given.law)
    low, high = exponent.interval
    words = f"gamma = {exponent.gamma:.6g} nats a step" + (f", between {low:.6g} and {high:.6g}" if high > low else "")
    if high < 0:
        return Verdict("holds", exponent.gamma, f"{words}.", interval=exponent.interval)
    if low >= 0:
        return Verdict(
            "refuted",
            exponent.gamma,
            f"{words}: differences do not vanish.",
            GatePath(exponent.gates, exponent.gamma),
            interval=exponent.interval,
        )
    return Verdict("not established", exponent.gamma, f"{words}: the interval holds 0.", interval=exponent.interval)


def exponent_of(uniform: Verdict) -> Verdict:
    """log kappa of contracting paths, which gamma cannot exceed."""
    if uniform.status != "holds" or uniform.rate is None:
        return Verdict("not established", reason="Nothing is known of the gates' law: give gate_law.")
    return Verdict(
        "holds",
        math.log(uniform.rate) if uniform.rate > 0 else -math.inf,
        "gamma is at most log kappa: every path contracts.",
    )


def from_contraction(path: Verdict) -> Verdict | None:
    """One stationary law, where paths contract and inputs are stationary with a finite log moment."""
    if path.status != "holds":
        return None
    return Verdict(
        "holds",
        path.rate,
        "Paths contract: one stationary law, reached at this rate in W2, of noise and inputs with second moments.",
    )


def stationary_law(given: Recurrence, path: Verdict, moments: Verdict, exponent: Verdict) -> Verdict:
    """One stationary law: by contraction (B1, B5), by gamma < 0 (B3), or by noise that reaches everything (B6)."""
    verdict = from_contraction(path) or _by_exponent(given, moments, exponent) or _by_noise(given)
    if verdict is not None:
        return verdict
    if given.law is not None:
        return Verdict(
            exponent.status,
            reason="gamma is not known to be below 0, so the start may never be forgotten.",
            witness=exponent.witness,
        )
    if path.status == "refuted" and (not given.reads_state or given.noise is None):
        return Verdict(
            "refuted",
            reason="The witness does not forget where it began: there is no law, or one for each start.",
            witness=path.witness,
        )
    return Verdict(
        "not established",
        reason="Needs contraction, a gate_law with gamma < 0, or gate_min > 0 with rho(|A|) < 1 and a noise_cov > 0.",
    )


def _by_exponent(given: Recurrence, moments: Verdict, exponent: Verdict) -> Verdict | None:
    if given.law is None or exponent.status != "holds":
        return None
    words = "stationary, infinite variance" if moments.status == "refuted" else "gamma < 0: one stationary law"
    return Verdict("holds", reason=f"{words}, for inputs and noise with finite log moments (Bougerol and Picard 1992).")


def _by_noise(given: Recurrence) -> Verdict | None:
    """B6: a drift towards the origin and noise in every direction, through gates that need not even be continuous."""
    open_always = float(given.low.min()) > 0
    drifts = given.spectral_radius * (float(given.high.max()) if given.update == "effective" else 1.0) < 1
    if not (open_always and drifts and given.noise is not None and np.linalg.eigvalsh(given.noise).min() > 0):
        return None
    words = (
        "Every gate lets noise of full rank in and rho(|A|) < 1: geometric ergodicity (Harris), for independent inputs "
        "of finite mean."
    )
    return Verdict("holds", reason=f"{words} It is the law that settles; paths need not meet.")
