"""Verdicts on paths: do two states under the same inputs and noise approach each other, step by step (theory, section 5
B1, B4, B5)?
"""

import dataclasses
import math

import numpy as np

from selssm_jax.ops.gating import effective_transition
from selssm_jax.stability.contraction import Contraction, Growth, contract, feasible, gated_growth
from selssm_jax.stability.lipschitz import operator_norm
from selssm_jax.stability.recurrence import Recurrence
from selssm_jax.stability.simulate import GateSequence, diverging_pair
from selssm_jax.stability.switching import CORNERS, corners, growing_gates, joint_spectral_radius
from selssm_jax.stability.verdict import MARGINAL, Verdict

SHARE_HALVINGS = 30


def uniform(given: Recurrence) -> Verdict:
    """B1: |A_t ... A_1| <= C kappa^t for all gates in the range that do not read the state."""
    if given.reads_state:
        return Verdict(
            "not established",
            reason="The gates read the state, so differences do not follow products of transitions: see "
            "state_dependent.",
        )
    contraction = contract(given.growth)
    if contraction.rate < 1:
        return _holds(
            contraction,
            f"Every step shrinks differences by {contraction.rate:.6g} in a weighted maximum norm, whatever the gates.",
        )
    return _by_products(given, contraction)


def _by_products(given: Recurrence, contraction: Contraction) -> Verdict:
    """No norm of this kind: what products of transitions themselves say."""
    gates, growth = growing_gates(given.A, given.low, given.high, given.update)
    upper = math.inf
    free = int((given.high > given.low).sum())
    if given.A.ndim == 2 and free <= CORNERS:
        box = corners(given.low, given.high)
        radius = joint_spectral_radius(effective_transition(box, given.A, given.update))
        upper = radius.upper
        if radius.lower > growth:
            gates, growth = box[list(radius.word)], radius.lower
        if upper < 1:
            constant = radius.constant * math.sqrt(len(given.A))
            return Verdict(
                "holds",
                upper,
                f"The joint spectral radius lies between {radius.lower:.6g} and {upper:.6g}.",
                constant=constant,
            )
    if growth >= 1 - MARGINAL:
        period = f"these gates, repeated with period {len(gates)}," if len(gates) > 1 else "constant gates"
        return Verdict(
            "refuted",
            growth,
            f"Under {period} differences grow by {growth:.6g} a step: nothing is forgotten.",
            GateSequence(gates, growth),
        )
    known = f" and at most {upper:.6g}" if math.isfinite(upper) else ""
    reason = (
        f"No weighted maximum norm contracts (best rate {contraction.rate:.6g}); the joint spectral radius is at least "
        f"{growth:.6g}{known}."
    )
    return Verdict("not established", reason=reason)


def state_dependent(given: Recurrence, apart: Verdict) -> Verdict:
    """B5: as `uniform`, for gates that read the state; `apart` is the verdict for those that do not."""
    if not given.reads_state:
        return dataclasses.replace(apart, reason=f"The gates do not read the state. {apart.reason}")
    radius = given.invariant_radius
    if radius is None or not np.isfinite(given.lipschitz).all():
        return Verdict("not established", reason=_missing(given))
    contraction = contract(given.state_dependent_growth(radius))
    if contraction.rate < 1:
        return _holds(
            contraction,
            f"On the invariant box |h_i| <= {radius.max():.4g} every step shrinks differences by "
            f"{contraction.rate:.6g}.",
        )
    slope = given.lipschitz if given.lipschitz.ndim < 2 else np.diag(given.lipschitz)
    slope = np.broadcast_to(slope, (len(given.A),))
    pair = (
        None
        if np.iscomplexobj(given.A)
        else diverging_pair(given.A, given.low, given.high, slope, given.drive, given.update)
    )
    if pair is not None:
        gap = np.abs(pair.starts[0] - pair.starts[1]).max()
        return Verdict(
            "refuted",
            reason=f"A gate with these constants has two attractors, {gap:.4g} apart, under the same inputs. "
            f"{_excess(given, radius)}",
            witness=pair,
        )
    return Verdict(
        "not established", reason=f"The bound of a step's factor is {contraction.rate:.6g}. {_excess(given, radius)}"
    )


def _missing(given: Recurrence) -> str:
    """Why B5 cannot even be asked."""
    if not np.isfinite(given.lipschitz).all():
        return "The gates are not Lipschitz in the state."
    if not np.isfinite(given.drive).all():
        return (
            "The inputs or the noise are unbounded, so no box is invariant: give drive_bound (a Gaussian noise has "
            "none)."
        )
    return f"rho(|A|) = {given.spectral_radius:.6g}: no box is invariant."


def _excess(given: Recurrence, radius: np.ndarray) -> str:
    """How much less the gates would have to read the state."""
    least, most = 0.0, 1.0
    for _ in range(SHARE_HALVINGS):
        middle = (least + most) / 2
        least, most = (middle, most) if feasible(given.state_dependent_growth(radius, middle)) else (least, middle)
    if least == 0:
        return "Even gates that do not read the state would not be certified: they need a floor above 0."
    return f"It holds once gate_lipschitz, or the largest drive, is {least:.3g} times what it is."


def slow_gates(given: Recurrence) -> Verdict:
    """B4: no gate overshoots, so that memory decays in gate time, exp(-|mu| sum_t min_i g_ti).

    A step's factor is convex in the gate: below 1 + g mu on [0, g_max], with mu g_max its value at g_max less 1. For
    g_max <= 1 / (1 - a_ii) that is the mu of the theory; a larger gate_max, or a complex pole, gets the chord.
    """
    if given.reads_state:
        return Verdict("not established", reason="The gates read the state: see state_dependent.")
    if given.update == "effective":
        return Verdict("not established", reason="A small gate erases in the effective update: it is not slow.")
    if not given.high.min() > 0:
        return Verdict("not established", reason="A component's gate never opens: it never forgets.")
    growth = gated_growth(given.A, given.high, given.high, given.update)
    fastest = contract(growth)
    if fastest.rate >= 1:
        return Verdict(
            "not established",
            reason=f"With all gates at gate_max the bound of a step's factor is {fastest.rate:.6g}: open gates "
            "overshoot.",
        )
    mu = (growth(fastest.weights) / fastest.weights - 1) / given.high
    rate = float((1 + given.low * mu).max())
    decay = f"memory decays in gate time, by exp({mu.max():.4g} sum_t min_i g_ti) at least"
    if not given.low.min() > 0:
        return Verdict("not established", reason=f"Gates may stay closed, so there is no rate a step; {decay}.")
    return _holds(dataclasses.replace(fastest, rate=rate), f"No gate overshoots: {decay}.")


def printed_condition(given: Recurrence) -> Verdict:
    """The paper's |A| L_G < 1, which implies nothing by itself (docs/theorems.md)."""
    norm = operator_norm(given.A, norm="euclidean")
    L = given.largest_lipschitz
    product = 0.0 if norm == 0 or L == 0 else norm * L
    words = (
        f"|A|_2 L_G = {norm:.4g} * {L:.4g} = {product:.4g}. It implies none of the verdicts above, and none implies it."
    )
    return Verdict("holds" if product < 1 else "refuted", reason=words)


def of_jacobian(J: np.ndarray) -> Verdict:
    """Contraction of any recurrence whose derivatives are at most J in size: some weighted norm shrinks if and only if
    rho(J) < 1.
    """
    contraction = contract(Growth(J, J))
    if contraction.rate < 1:
        return _holds(contraction, f"The bounds of the Jacobian have spectral radius below {contraction.rate:.6g}.")
    return Verdict(
        "not established", reason=f"The bounds of the Jacobian allow a factor of {contraction.rate:.6g} a step."
    )


def _holds(contraction: Contraction, reason: str) -> Verdict:
    return Verdict("holds", contraction.rate, reason, constant=contraction.constant, weights=contraction.weights)
