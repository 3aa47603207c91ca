"""Certificates: whether a memory forgets where it began, at which rate, and a witness where it need not (theory,
section 5).

  certify_recurrence(A, gate_min=0.1)            of a class of recurrences, given by constants
  certify(layer, params)                         of a layer, from the bounds that it states of itself

A verdict is about all recurrences with the constants given: "refuted" means that one of them, the witness, does not
contract. A layer is one of those within its bounds, so of a layer nothing is "refuted" unless its gates are constant;
it is "not established", with the witness.
"""

import dataclasses
import json
import math
from typing import Any

import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike

from selssm_jax.layers.bounds import Bounds, Box
from selssm_jax.layers.variables import parameters
from selssm_jax.stability import asymptotics, pathwise
from selssm_jax.stability.laws import GateLaw
from selssm_jax.stability.recurrence import Recurrence, read
from selssm_jax.stability.verdict import Verdict, plain

NAMES = {
    "uniform": "Contraction under every sequence of gates",
    "mean_square": "Contraction in mean square",
    "lyapunov": "Almost sure forgetting",
    "slow_gates": "Slow gates",
    "state_dependent": "Contraction of gates that read the state",
    "stationary_law": "One stationary law",
    "printed_condition": "The condition as printed, |A| L_G < 1",
}
MAP_NAMES = NAMES | {"uniform": "Contraction under every sequence of inputs"}  # of a recurrence without gates
OF_GATES = {"slow_gates", "state_dependent", "printed_condition"}  # statements that it has no part in


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What is known of h_t = (1 - g_t) h_{t-1} + g_t (A h_{t-1} + B x_t + w_t), or of the effective update, for gates
    of a class.

    Attributes:
      uniform: B1, |h_t - k_t| <= C kappa^t |h_0 - k_0| for all gate sequences that do not read the state; rate is
        kappa.
      mean_square: B2, E|h_t - k_t|^2 <= C rate^t |h_0 - k_0|^2.
      lyapunov: B3, the rate gamma in nats a step, of |h_t - k_t| almost surely.
      slow_gates: B4, contraction in gate time where no gate overshoots.
      state_dependent: B5, as uniform, for gates that read the state, on the invariant box |h_i| <= invariant_radius_i.
      stationary_law: the law of h_t has one limit, wherever it began. It may hold where paths do not contract (B6).
      printed_condition: of the paper; it implies none of the above (docs/theorems.md).
      invariant_radius: (n,), never left once entered; None where there is none, or none is needed. A state that a
        caller sets may lie outside: of that one `state_dependent` says nothing.
      constants: what the verdicts rest on: components, gates' range, rho(|A|), |A|_2, L_G, the largest drive.
      delay: steps that a convolution before the recurrence still reads an input after its own.
      gated: false for a map without gates; in words it has no statements about them.
    """

    uniform: Verdict
    mean_square: Verdict
    lyapunov: Verdict
    slow_gates: Verdict
    state_dependent: Verdict
    stationary_law: Verdict
    printed_condition: Verdict
    invariant_radius: np.ndarray | None
    constants: dict[str, float]
    delay: int = 0
    gated: bool = True

    @property
    def contraction(self) -> Verdict:
        """The verdict on paths: `state_dependent`, which is `uniform` where no gate reads the state."""
        return self.state_dependent

    def horizon(self, eps: float = 1e-3) -> float:
        """Returns the memory horizon: steps after which two states differ by less than eps times what they did; inf if
        none is certified.

        delay + log(eps / C) / log(kappa): an upper bound of what any input or start can still be worth, counted from
        the first step that no longer reads it. Raises ValueError for eps outside (0, 1).
        """
        if not 0 < eps < 1:
            raise ValueError(f"eps={eps} is no precision: use a number between 0 and 1")
        return self.delay + self.contraction.horizon(eps)

    def to_json(self) -> str:
        """Returns everything, witnesses included, as one JSON object; infinite numbers are null."""
        verdicts = {name: getattr(self, name).portable() for name in NAMES}
        rest = {
            "invariant_radius": self.invariant_radius,
            "delay": self.delay,
            "constants": self.constants,
            "horizon": self.horizon(),
        }
        return json.dumps(verdicts | plain(rest), allow_nan=False)

    def __str__(self) -> str:
        steps = self.horizon()
        kept = (
            f"Whatever it read is worth less than a thousandth after {steps:,.0f} steps."
            if math.isfinite(steps)
            else "No memory horizon is certified."
        )
        names = NAMES if self.gated else {name: MAP_NAMES[name] for name in NAMES if name not in OF_GATES}
        units = {"lyapunov": " nats a step"}
        lines = [f"{names[name]}: {getattr(self, name).describe(units.get(name, ''))}" for name in names]
        return "\n".join([kept, *lines])


def certify_recurrence(
    A: ArrayLike,
    *,
    gate_min: ArrayLike,
    gate_max: ArrayLike = 1.0,
    gate_lipschitz: ArrayLike = 0.0,
    drive_bound: ArrayLike | None = None,
    gate_law: GateLaw | None = None,
    noise_cov: ArrayLike | None = None,
    update: str = "retain",
) -> Certificate:
    """Certifies all recurrences with these constants (theory, section 5, B1 to B6), in float64.

    Args:
      A: transition, (n,) if diagonal, real or complex, else (n, n), real.
      gate_min, gate_max: range of the gates, within [0, 1]; numbers or (n,).
      gate_lipschitz: how fast gates change with the state: L with |G(h) - G(k)| <= L |h - k| in the maximum norm; or
        (n,), gates that read their own component alone; or (n, n), |g_i(h) - g_i(k)| <= sum_j L_ij |h_j - k_j|. 0: they
        do not read it. inf: they may jump.
      drive_bound: U with |B x_t + w_t| <= U at every step, a number or (n,); None or inf: unbounded. Needed where gates
        read the state.
      gate_law: how gates that do not read the state are drawn: a list of (probability, gate), independently each step;
        a `MarkovGates`, or its pair of arrays; or a sampler (key, count) -> gates (count, n), whose verdicts hold
        within 4 standard errors.
      noise_cov: covariance of w_t, (n, n); None: no noise.
      update: "retain", A_t = I - G_t (I - A), or "effective", A_t = G_t A.

    Raises:
      ValueError: for shapes that do not fit, gates outside [0, 1], negative bounds, or a law outside the gates' range.
    """
    return _certificate(read(A, gate_min, gate_max, gate_lipschitz, drive_bound, gate_law, noise_cov, update))


def certify(layer: nn.Module, params: Any, *, input_bound: float | None = None) -> Certificate:
    """Certifies a layer from what its method `bounds` says of it (`layers.bounds.Bounds`).

    Args:
      layer: any Flax module; one without a method `bounds` gets "not established". params: its parameters, or what
        `init` returned, with them in it.
      input_bound: largest |x_d| of any input; None: any input whatever. Bounded inputs keep sigmoid gates away from 0,
        and bound what moves the state.

    Returns:
      The certificate, for evaluation and training alike: whatever noise a gate draws is covered. It is of the layer in
      exact arithmetic; that of bfloat16 activations is not counted.
    """
    if not callable(getattr(layer, "bounds", None)):
        return unknown(
            f"{type(layer).__name__} states no bounds: give it a method `bounds(inputs)` that returns "
            "layers.bounds.Bounds"
        )
    if input_bound is not None and not 0 <= input_bound < math.inf:
        raise ValueError(f"input_bound={input_bound} is no bound: use a finite number from 0, or None for any input")
    bounds: Any = layer.apply(
        {"params": parameters(params)}, Box(math.inf if input_bound is None else input_bound), method="bounds"
    )
    return certify_bounds(bounds)


def certify_bounds(bounds: Bounds) -> Certificate:
    """Certifies what a mixer states of itself."""
    if bounds.unknown:
        return unknown(bounds.unknown)
    if any(np.isnan(np.asarray(value)).any() for value in vars(bounds).values() if hasattr(value, "dtype")):
        return unknown(
            "a weight is NaN, and so are the bounds that rest on it: the parameters are those of a run that diverged, "
            "or of a damaged file"
        )
    if bounds.jacobian is not None:
        box = None if bounds.box is None else np.asarray(bounds.box, np.float64)
        return dataclasses.replace(_of_jacobian(np.asarray(bounds.jacobian, np.float64), box), delay=bounds.delay)
    lipschitz = 0.0 if bounds.gate_lipschitz is None else bounds.gate_lipschitz
    A, gate_min, gate_max = (np.asarray(value) for value in (bounds.A, bounds.gate_min, bounds.gate_max))
    recurrence = read(A, gate_min, gate_max, lipschitz, bounds.drive_bound, None, bounds.noise_cov, bounds.update)
    if bounds.gate_rivalry is not None:
        share, reads = (np.asarray(value, np.float64) for value in bounds.gate_rivalry)
        recurrence = dataclasses.replace(recurrence, rivalry=(share, reads))
    certificate = _certificate(recurrence)
    certificate = dataclasses.replace(certificate, delay=bounds.delay)
    known = bounds.gate_lipschitz is None and np.array_equal(gate_min, gate_max)
    return certificate if known else _of_the_class(certificate)


def _of_the_class(certificate: Certificate) -> Certificate:
    """A layer's gates are in the range that it states and need not go where a witness does: of the layer nothing is
    refuted.
    """
    statements = {name: getattr(certificate, name) for name in NAMES if name != "printed_condition"}
    refuted = {name: verdict for name, verdict in statements.items() if verdict.status == "refuted"}
    words = "The bounds that the layer states do not exclude it. Of recurrences within them one fails:"
    return dataclasses.replace(
        certificate,
        **{
            name: dataclasses.replace(one, status="not established", rate=None, reason=f"{words} {one.reason}")
            for name, one in refuted.items()
        },
    )


def certify_model(model: nn.Module, params: Any) -> dict[str, Certificate]:
    """Certifies every block of a `SequenceModel`, for all inputs that its norms can pass on; `params` as in
    `certify`.
    """
    of_blocks: Any = model.apply({"params": parameters(params)}, method="bounds")
    return {name: certify_bounds(bounds) for name, bounds in of_blocks.items()}


def unknown(reason: str) -> Certificate:
    """Returns the certificate of a layer of which nothing is known."""
    nothing = Verdict("not established", reason=reason)
    return Certificate(nothing, nothing, nothing, nothing, nothing, nothing, nothing, None, {})


def _certificate(given: Recurrence) -> Certificate:
    uniform = pathwise.uniform(given)
    state_dependent = pathwise.state_dependent(given, uniform)
    mean_square = asymptotics.mean_square(given, uniform)
    lyapunov = asymptotics.lyapunov(given, uniform)
    return Certificate(
        uniform=uniform,
        mean_square=mean_square,
        lyapunov=lyapunov,
        slow_gates=pathwise.slow_gates(given),
        state_dependent=state_dependent,
        stationary_law=asymptotics.stationary_law(given, state_dependent, mean_square, lyapunov),
        printed_condition=pathwise.printed_condition(given),
        invariant_radius=given.invariant_radius,
        constants=given.constants(),
    )


def _of_jacobian(J: np.ndarray, box: np.ndarray | None) -> Certificate:
    """A recurrence of another form, |df_i/dh_j| <= J_ij on a box: two states there approach as under the nonnegative
    matrix J.
    """
    path = pathwise.of_jacobian(J)
    if box is not None and path.status == "holds":
        words = (
            f"For states within |h_i| <= {box.max():.4g}, where all are that began at 0; one that a caller sets may "
            "lie outside, and steps stretch there"
        )
        path = dataclasses.replace(path, reason=f"{path.reason} {words}.")
    return dataclasses.replace(of_paths(path, len(J)), invariant_radius=box)


def of_paths(path: Verdict, components: int) -> Certificate:
    """Returns the certificate of a recurrence of which only this is known, whether its paths contract."""
    nothing = unknown("the recurrence is not a gated linear update; its Jacobian alone was stated")
    law = asymptotics.from_contraction(path)
    return dataclasses.replace(
        nothing,
        uniform=path,
        state_dependent=path,
        mean_square=asymptotics.square_contraction(path, components),
        lyapunov=asymptotics.exponent_of(path),
        stationary_law=law or nothing.stationary_law,
        constants={"components": float(components)},
    )
