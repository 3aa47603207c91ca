"""Certificates of h_t = f(h_{t-1}, x_t) + w_t for any f, from bounds of its Jacobian over a box (theory, section 5).

If |df_i/dh_j| <= J_ij for all states of a box and all inputs of another, two states of the box under the same inputs
and noise differ after a step by at most J |h - k|, by the mean value theorem along the line between them, which the box
holds. Some weighted maximum norm shrinks if and only if rho(J) < 1. It holds at every step if no state leaves the box.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from selssm_jax.stability import pathwise
from selssm_jax.stability.certificate import Certificate, of_paths
from selssm_jax.stability.contraction import Growth, contract
from selssm_jax.stability.orbits import (
    Region,
    agrees_with_secants,
    climb_secants,
    climb_slopes,
    find_unstable_fixed_point,
    follow_orbits,
)
from selssm_jax.stability.ranges import Interval, UnknownOperationError, enclose
from selssm_jax.stability.simulate import Escape, ExpandingOrbit
from selssm_jax.stability.verdict import Verdict

Map = Callable[[Any, Any], Any]
Box = Sequence[Any]  # of two: numbers or (n,)
ROOM = 1e-9  # share of the box's width by which it is wider than asked, at least: room for rounding
UNITS = 8.0  # units of rounding of f in that room, and of its value at one point
TOLERANCE = 1e-6  # share by which f's own rounding may lift a derivative above a bound that is true


class _Setting(NamedTuple):
    """f, the boxes, and what a noise of at most `noise` adds."""

    f: Map
    region: Region
    noise: np.ndarray

    @property
    def room(self) -> np.ndarray:
        width = self.region.high - self.region.low
        return max(ROOM, UNITS * self.unit) * np.where(np.isfinite(width), width, 0)

    @property
    def unit(self) -> float:
        """The unit of rounding of states, in the type that they have in this session."""
        return float(jnp.finfo(jnp.zeros(0).dtype).eps)


class _Proof(NamedTuple):
    """J, (n, n), and the range of f over the box; None where nothing was proved of them, for this reason."""

    J: np.ndarray | None
    image: Interval | None
    reason: str


class _Judgement(NamedTuple):
    """The verdict on paths; an orbit with a positive exponent, and its standard error; the factor of a step that was
    only sampled.
    """

    path: Verdict
    orbit: ExpandingOrbit | None = None
    factor: float | None = None
    stderr: float = 0.0


def certify_map(
    f: Map,
    *,
    states: Box,
    inputs: Box | None = None,
    jacobian: ArrayLike | None = None,
    input_jacobian: ArrayLike | None = None,
    noise_bound: ArrayLike = 0.0,
    seed: int = 0,
) -> Certificate:
    """Certifies h_t = f(h_{t-1}, x_t) + w_t, or refuses it with a witness.

    "holds" is proved: from bounds of the Jacobian that you give, or that are enclosed from the operations of f by
    interval arithmetic (`ranges`), and from a range of f that lies in the box of states. What is only sampled, by
    gradient ascent on the norm of the Jacobian and by orbits, is "not established", and the reason says what was seen;
    `constants["largest expansion sampled"]` has its factor. "refuted" comes with an `ExpandingOrbit`: a fixed point
    around which differences do not shrink, or an orbit with a positive Lyapunov exponent, beyond 4 standard errors,
    where differences of f itself agree with its derivatives.

    Args:
      f: (h, x) -> the next state, (n,), written in JAX, with derivatives in reverse mode; h: (n,), x: (m,). Its own
        rounding is not counted.
      states: (low, high), numbers or (n,) for at least one of them: the box that differences are certified in.
        Endless sides, -inf and inf, are allowed where bounds are given or can be enclosed: Gaussian noise, which has no
        bound, stays in no other box.
      inputs: (low, high) likewise; None: f reads none, and x is of shape (0,).
      jacobian: (n, n), bounds of |df_i/dh_j| over both boxes, of your own derivation. A point of the box where f
        exceeds them is an error; searched by gradient ascent, and by differences of f itself, whatever rules
        of differentiation it has.
      input_jacobian: (n, m), bounds of |df_i/dx_k|, that show with `jacobian` that f stays in the box where its
        operations do not.
      noise_bound: largest |w_i|, a number or (n,); inf for Gaussian noise.

    Raises:
      ValueError: for boxes without shape or inside out, an f that returns no state, a bound that f exceeds, and an
        endless box of which nothing can be proved, for it cannot be sampled.
    """
    setting = _read(f, states, inputs, noise_bound)
    given = _read_bounds(setting, jacobian, input_jacobian)
    proof = _prove(setting, given)
    if given[0] is not None:
        _attack(setting, given, seed)
    return _state(setting, _judge(setting, proof, seed))


def _read(f: Map, states: Box, inputs: Box | None, noise_bound: ArrayLike) -> _Setting:
    low, high = _read_box("states", states)
    input_low, input_high = _read_box("inputs", (np.zeros(0), np.zeros(0)) if inputs is None else inputs)
    n = len(low)
    noise = np.asarray(noise_bound, np.float64)
    if noise.shape not in ((), (n,)) or not (noise >= 0).all():
        raise ValueError(
            f"noise_bound has shape {noise.shape} and smallest value {noise.min()}, expected numbers from 0: one, or "
            f"one of each of the {n} components"
        )
    given = (jnp.zeros(n), jnp.zeros(len(input_low)))
    image = jax.eval_shape(f, *given)
    if getattr(image, "shape", None) != (n,) or not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"f returns {image} for h of shape ({n},) and x of shape {given[1].shape}, expected the next state, "
            f"({n},), of real floats"
        )
    return _Setting(f, Region(low, high, input_low, input_high), np.broadcast_to(noise, (n,)))


def _read_box(name: str, box: Box) -> Interval:
    if len(box) != 2:
        raise ValueError(f"{name} has {len(box)} entries, expected a pair (low, high)")
    low, high = np.broadcast_arrays(*(np.asarray(end, np.float64) for end in box))
    if low.ndim != 1 or not (low <= high).all():
        raise ValueError(
            f"{name} has ends of shape {low.shape}, low {low} and high {high}; expected low <= high with one of them "
            "(n,), a number for each component"
        )
    return low.copy(), high.copy()


def _read_bounds(setting: _Setting, *given: ArrayLike | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    n, m = len(setting.region.low), len(setting.region.input_low)
    bounds = [None if bound is None else np.asarray(bound, np.float64) for bound in given]
    for name, bound, shape in zip(("jacobian", "input_jacobian"), bounds, ((n, n), (n, m)), strict=True):
        if bound is not None and (bound.shape != shape or not (bound >= 0).all() or not np.isfinite(bound).all()):
            raise ValueError(
                f"{name} has shape {bound.shape} and the value {_show(bound)}, expected shape {shape}, finite and not "
                "negative"
            )
    if bounds[0] is None and bounds[1] is not None:
        raise ValueError("input_jacobian is given without jacobian: give both, or neither")
    return bounds[0], bounds[1]


def _prove(setting: _Setting, given: tuple[np.ndarray | None, np.ndarray | None]) -> _Proof:
    """Bounds that were given come before those that can be enclosed; a range of f from both, the narrower end each."""
    region, room = setting.region, setting.room
    n = len(region.low)
    image, enclosed, reason = None, None, ""
    try:
        ranges = enclose(setting.f, (region.low - room, region.high + room), (region.input_low, region.input_high))
        image = ranges.value
        enclosed = np.maximum(np.abs(ranges.slope_low), np.abs(ranges.slope_high))
    except UnknownOperationError as error:
        reason = f"the Jacobian was not enclosed: {error}"
    J, K = given
    if J is None and enclosed is not None:
        J, K = enclosed[:, :n], enclosed[:, n:]
    return _Proof(J, _narrow(image, _mean_value_range(setting, J, K)), reason)


def _mean_value_range(setting: _Setting, J: np.ndarray | None, K: np.ndarray | None) -> Interval | None:
    """f(centre) +- (J r + K s), for states within r and inputs within s of it."""
    region = setting.region
    ends = (region.low, region.high, region.input_low, region.input_high)
    if J is None or not all(np.isfinite(end).all() for end in ends):
        return None
    K = np.zeros((len(J), 0)) if K is None and not len(region.input_low) else K
    if K is None or not (np.isfinite(J).all() and np.isfinite(K).all()):
        return None
    h, x = (region.low + region.high) / 2, (region.input_low + region.input_high) / 2
    centre = np.asarray(setting.f(jnp.asarray(h), jnp.asarray(x)), np.float64)
    reach = J @ (region.high - region.low) / 2 + K @ (region.input_high - region.input_low) / 2
    reach += UNITS * setting.unit * (np.abs(centre) + J @ np.abs(h) + K @ np.abs(x))  # of h, x and the result
    return centre - reach, centre + reach


def _narrow(one: Interval | None, other: Interval | None) -> Interval | None:
    if one is None or other is None:
        return one if other is None else other
    return np.maximum(one[0], other[0]), np.minimum(one[1], other[1])


def _attack(setting: _Setting, given: tuple[np.ndarray | None, np.ndarray | None], seed: int) -> None:
    """Searches a point where f exceeds the bounds that were given."""
    seen = climb_slopes(setting.f, setting.region, seed)
    for name, bound, first in (("jacobian", given[0], 0), ("input_jacobian", given[1], len(setting.region.low))):
        if bound is None:
            continue
        sizes = seen.largest[:, first : first + bound.shape[1]]
        excess = sizes - bound * (1 + TOLERANCE) - TOLERANCE
        if excess.size and excess.max() > 0:
            i, j = (int(place) for place in np.unravel_index(excess.argmax(), excess.shape))
            raise ValueError(
                f"{name}[{i}, {j}] = {bound[i, j]:.6g} is no bound: the derivative is {sizes[i, j]:.6g} in size at "
                f"(h, x) = {seen.points[i, first + j]}; expected a bound over both boxes"
            )
    if given[0] is None:
        return
    secant = climb_secants(setting.f, setting.region, given[0], given[1], seed)
    if secant is not None:
        raise ValueError(
            f"jacobian is no bound: component {secant.i} of f changes by {secant.change:.6g} between (h, x) = "
            f"{secant.ends[0]} and {secant.ends[1]}, where it allows {secant.allowed:.6g}; expected a bound over both "
            "boxes, of an f that does not jump"
        )


def _judge(setting: _Setting, proof: _Proof, seed: int) -> _Judgement:
    invariant = _stays(setting, proof.image)
    path = None if proof.J is None else _contract(proof.J)
    contracts = path is not None and path.status == "holds"
    if path is not None and contracts and invariant:
        return _Judgement(dataclasses.replace(path, reason=f"{path.reason} {_about(setting)}"))
    region = setting.region
    if proof.J is None and not np.isfinite([*region.low, *region.high]).all():
        raise ValueError(
            f"states reach to infinity, and {proof.reason}: give jacobian, or a box with ends, in which it is sampled"
        )
    orbits = follow_orbits(setting.f, region, setting.noise, setting.room, seed)
    leaves = _describe_leaving(setting, orbits.escape, invariant)
    if path is not None and contracts:
        words = f"In the box differences shrink by {path.rate:.6g} a step in a weighted maximum norm."
        return _Judgement(Verdict("not established", reason=f"{words} {leaves}", witness=orbits.escape))
    fixed = _confirm(setting, find_unstable_fixed_point(setting.f, region, setting.room, seed), steps=1)
    expanding = _confirm(setting, orbits.expanding)
    witness = max((one for one in (fixed, expanding) if one), key=lambda one: one.growth, default=None)
    if witness is not None:
        kind = "around a fixed point" if witness is fixed else "along an orbit"
        words = f"From h = {_show(witness.start)} under x = {_show(witness.inputs[0])}, {kind}, differences grow by"
        refuted = Verdict("refuted", witness.growth, f"{words} {witness.growth:.6g} a step.", witness)
        return _Judgement(refuted, expanding, stderr=orbits.stderr)
    return _report_sample(setting, proof, path, orbits.escape, leaves, seed)


def _confirm(setting: _Setting, orbit: ExpandingOrbit | None, **steps: int) -> ExpandingOrbit | None:
    """The witness, if differences of f say of derivatives along it what their rules say."""
    return orbit if orbit is not None and agrees_with_secants(setting.f, setting.region, orbit, **steps) else None


def _contract(J: np.ndarray) -> Verdict:
    if np.isfinite(J).all():
        return pathwise.of_jacobian(J)
    return Verdict("not established", reason="The bounds of the Jacobian are not all finite.")


def _stays(setting: _Setting, image: Interval | None) -> bool:
    """Whether f and the noise are proved to lead from the box into it."""
    region, room, noise = setting.region, setting.room, setting.noise
    if (region.low == -np.inf).all() and (region.high == np.inf).all():
        return True
    return image is not None and bool(
        (image[0] - noise >= region.low - room).all() and (image[1] + noise <= region.high + room).all()
    )


def _about(setting: _Setting) -> str:
    low, high = setting.region.low, setting.region.high
    if not np.isfinite([*low, *high]).any():
        return "It holds for all states."
    return f"It holds for states between {_show(low)} and {_show(high)}, a box that is not left."


def _show(value: np.ndarray) -> str:
    return np.array2string(np.round(value, 4) + 0.0, threshold=8)


def _describe_leaving(setting: _Setting, escape: Escape | None, invariant: bool) -> str:
    if invariant:
        return "The box is not left."
    if np.isinf(setting.noise).any():
        return "noise_bound=inf leaves the box, as every one with ends: use states=(-inf, inf)."
    noisy = setting.noise.any()
    if escape is None:
        who = "f and the noise stay" if noisy else "f stays"
        return f"That {who} in the box was not proved, though no orbit left it."
    words = f"from h = {_show(escape.state)} under x = {_show(escape.input)} to {_show(escape.image)}"
    who, stays = ("f, or the noise on top of it,", "both stay") if noisy else ("f", "it stays")
    return f"{who} leaves the box: {words}. Give a box that {stays} in."


def _report_sample(
    setting: _Setting, proof: _Proof, path: Verdict | None, escape: Escape | None, leaves: str, seed: int
) -> _Judgement:
    """Nothing was proved and nothing refuted: what was seen, and labelled so."""
    seen = climb_slopes(setting.f, setting.region, seed)
    J = seen.largest[:, : len(setting.region.low)]
    factor = contract(Growth(J, J)).rate if np.isfinite(J).all() else np.inf
    why = f"{proof.reason}: give jacobian." if path is None else path.reason
    words = f"no step seen stretched differences by more than {factor:.6g} in a weighted maximum norm"
    reason = f"Sampled, not proved: {words}. {why[0].upper()}{why[1:]} {leaves}"
    return _Judgement(Verdict("not established", reason=reason, witness=escape), factor=float(factor))


def _state(setting: _Setting, judgement: _Judgement) -> Certificate:
    path, region = judgement.path, setting.region
    certificate = of_paths(path, len(region.low))
    if judgement.orbit is not None:
        exponent = float(np.log(judgement.orbit.growth))
        words = (
            f"gamma = {exponent:.6g} nats a step, with a standard error of {judgement.stderr:.2g}, along an orbit in "
            "the box: differences do not vanish."
        )
        certificate = dataclasses.replace(certificate, lyapunov=Verdict("refuted", exponent, words, judgement.orbit))
    elif path.status != "holds":
        words = "No orbit that was followed surely grows or shrinks differences."
        certificate = dataclasses.replace(certificate, lyapunov=Verdict("not established", reason=words))
    symmetric = path.status == "holds" and bool((region.low == -region.high).all() and np.isfinite(region.high).all())
    sampled = {} if judgement.factor is None else {"largest expansion sampled": judgement.factor}
    return dataclasses.replace(
        certificate,
        gated=False,
        invariant_radius=region.high if symmetric else None,
        constants=certificate.constants | sampled,
    )
