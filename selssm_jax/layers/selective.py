"""The paper's layer: a stochastic state space model whose gates choose what a step updates (theory, sections 1-3)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from selssm_jax.config.mixers import GATE_SETTINGS, SelectiveConfig, check_layer
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.bounds import Ball, Bounds, Inputs
from selssm_jax.layers.contract import Dynamics, Law
from selssm_jax.layers.gates import GATES, Gate, Opening, expected_open, largest_slope
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import project
from selssm_jax.layers.state_axes import StateAxes
from selssm_jax.ops import dense_scan, linear_scan, nonlinear_scan, shards
from selssm_jax.ops.boundaries import vary_alike
from selssm_jax.ops.extremes import largest, smallest
from selssm_jax.ops.gating import (
    effective_transition,
    invariant_radius,
    normalising_scale,
    pull,
    row_sums,
    step_factor,
)
from selssm_jax.shapes import Activations, Reset, Rows

INPUT_RADIUS = 2.0  # of the inputs of a certified layer, times sqrt(D), the norm of a normalised input
CAP_SHARE = 0.9  # of what the certificate allows gates to read of the state
RADIUS = 1 - 2.0**-20  # largest |a|: the float32 values of tanh and exp reach 1, the parametrisation must not


def real_poles(raw: Float[Array, "*b N"]) -> Float[Array, "*b N"]:
    """a = RADIUS tanh(raw): real, of either sign, |a| < 1."""
    return RADIUS * jnp.tanh(raw)


def complex_poles(log_decay: Float[Array, "N"], phase: Float[Array, "N"]) -> Inexact[Array, "N"]:
    """a = RADIUS exp(-exp(log_decay) + i phase): one of each conjugate pair, |a| < 1 (Orvieto et al. 2023, LRU)."""
    return RADIUS * jnp.exp(jax.lax.complex(-jnp.exp(log_decay), phase))


def contractive_matrix(raw: Float[Array, "N N"]) -> Float[Array, "N N"]:
    """A with every row's sum of |a_ij| < 1: gated updates then contract in the maximum norm (theory, section 5 B1)."""
    return RADIUS * within_rows(raw)


def within_rows(raw: Float[Array, "N N"]) -> Float[Array, "N N"]:
    """Rows whose sums of |a_ij| are at most 1: longer ones are scaled down to it, and stay as they are from then on, as
    do parts of them.
    """
    rows = jnp.abs(raw).sum(axis=1, keepdims=True)
    return raw / jnp.maximum(rows, 1)


class SelectiveSSM(Layer):
    """h_t = (1 - g_t) h_{t-1} + g_t (A h_{t-1} + B x_t + w_t),  y_t = C h_t + D x_t + v_t,  g_t = G(x_t, h_{t-1}).

    That is update "retain", A_t = I - G_t (I - A) and B_t = G_t B: a gate of 0 keeps a component exactly. Update
    "effective" is h_t = g_t (A h_{t-1} + B x_t + w_t), A_t = G_t A: a gate of 0 erases it (the paper, section 2.3). A
    normalised drive makes either h_t = A_t h_{t-1} + sqrt(1 - |A_t|^2) (B x_t + w_t), an output gate y_t = silu(W_z
    x_t) (C h_t + D x_t) + v_t.

    w_t ~ N(0, process_noise^2), and what is written may have noise of its own: for B x_t stands m_t B x_t + drive_noise
    |m_t B x_t| e_t, e_t ~ N(0, 1), where m_t is 0 at a share drive_dropout of the components, drawn at every step, and
    1 / (1 - drive_dropout) at the others.

    Attributes:
      d_model: D, width of x and y.
      d_state: N, real components of the state. "complex" holds them as N / 2 numbers, one of each conjugate pair, each
        with one gate.
      gate: see `Gate`. gate_floor: smallest gate. gate_active: components that a step updates, for gate="top_k".
      gate_slot_width, gate_temperature: for gate="softmax", the components that share a gate, and its temperature:
        slots of the state compete for what a step writes.
      gate_bias: added to the biases that gates start with; positive opens them.
      gate_state: "none", G(x_t); "elementwise", a gate also reads the components of h_{t-1} that it is of; "dense", all
        of them. The recurrence is not linear then; not for "complex".
      update: "retain" or "effective".
      drive: "gated", or "normalised", for gates of the input alone, and not for "dense". The state's variance is then
        that of B x_t + w_t, however slow its gates, where this is white and independent of them: for constant gates, or
        gates of other inputs. With gates that read the same input E h^2 can be many times larger.
      transition: "diagonal" (real, |a| < 1), "complex" (diagonal, |a| < 1) or "dense" (N x N, for small N).
      process_noise, observation_noise: standard deviations of w_t and v_t; where positive, an rng "noise" is required,
        as it is for drive_noise and drive_dropout.
      output_gate: whether outputs are gated by the input.
      method: how the linear recurrence is run; see `linear_scan`. A dense transition knows no "chunked".
      certified: the layer contracts by construction, at every step of training, and `stability.certify` says so: needs
        a gate_floor (theory, section 5 B1) and, where gates read the state, no process noise; inputs are projected to
        |x|_2 <= 2 sqrt(D), which normalised ones seldom meet, and W_h is capped by what A, B and the floor allow (B5).
      solver: how the recurrence of a gate that reads the state is solved; see `nonlinear_scan`.
      dtype: of activations. The gate, the recurrence and the state are float32 whatever it is.

    Sown as intermediates: "gate" and "state", (B, T, N); "open", P(g > 0), (B, T, N), for a hard concrete gate. Sown as
    diagnostics: "fell_back", (B,), which sequences Newton could not solve, so that the loop did, for a gate that reads
    the state. Sown as laws: "law", a `Law`, for a positive process noise; given what was dropped, too.
    """

    d_model: int
    d_state: int
    gate: str = SelectiveConfig.gate
    gate_floor: float = SelectiveConfig.gate_floor
    gate_active: int = SelectiveConfig.gate_active
    gate_slot_width: int = SelectiveConfig.gate_slot_width
    gate_temperature: float = SelectiveConfig.gate_temperature
    gate_bias: float = SelectiveConfig.gate_bias
    gate_state: str = SelectiveConfig.gate_state
    update: str = SelectiveConfig.update
    drive: str = SelectiveConfig.drive
    transition: str = SelectiveConfig.transition
    process_noise: float = SelectiveConfig.process_noise
    observation_noise: float = SelectiveConfig.observation_noise
    output_gate: bool = SelectiveConfig.output_gate
    certified: bool = SelectiveConfig.certified
    method: str = SelectiveConfig.method
    solver: str = SelectiveConfig.solver
    dtype: DTypeLike = jnp.float32
    drive_noise: float = SelectiveConfig.drive_noise
    drive_dropout: float = SelectiveConfig.drive_dropout

    def setup(self) -> None:
        check_layer(SelectiveConfig, self)
        normal = nn.initializers.lecun_normal()
        settings = {name: getattr(self, f"gate_{name}") for name in (*GATE_SETTINGS, "bias")}
        self.G = Gate(self._poles, self.gate, self.gate_floor, self.gate_state, **settings)
        self.A = self._transition()
        parts = 2 if self.transition == "complex" else 1
        self.B = self.param("B", normal, (self.d_model, parts * self._poles))
        self.C = self.param("C", normal, (parts * self._poles, self.d_model))
        self.D = self.param("D", nn.initializers.ones, (self.d_model,))
        if self.output_gate:
            self.W_z = self.param("W_z", normal, (self.d_model, self.d_model))

    def __call__(
        self, x: Activations, state: Inexact[Array, "B N"] | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, Inexact[Array, "B N"]]:
        """Reads a sequence from `state` on and returns (y, state after the last step).

        Args:
          x: inputs. state: h_0, zero if None; one call over T steps equals calls over any split of them.
          reset: True forgets everything before that step.
        """
        x = self._bound_input(x.astype(self.dtype))
        opening, written = self.G(x, self._cap()), rules.tap(self, "drive", self._drop(self._drive(x)))
        run = self._linear if self.gate_state == "none" else self._nonlinear
        h, last, before = run(opening, self._noisy(written), state, reset)
        h = rules.tap(self, "read", h)
        if self.transition == "dense":
            rules.tap(self, "mixed", self.A)
        self.sow("intermediates", "gate", opening.at(before))
        self.sow("intermediates", "state", h)
        if self.gate == "hard_concrete":
            self.sow("intermediates", "open", expected_open(opening.logits(before)))
        if self.process_noise and self.is_mutable_collection("laws") and not self.is_initializing():  # as in _nonlinear
            self.sow("laws", "law", self._law(opening, written, before, reset))
        return self._read(h, x), last

    def dynamics(self, x: Activations) -> Dynamics:
        """Returns the effective A_t and B_t of every step as values (theory, section 1), from h_0 = 0 on."""
        x = self._bound_input(x.astype(self.dtype))
        opening = self.G(x, self._cap())
        gate = opening.at(
            None if self.gate_state == "none" else self._nonlinear(opening, self._drive(x), None, None)[2]
        )
        columns = self._complex(self.B.T, axis=0) if self.transition == "complex" else self.B.T
        return Dynamics(
            effective_transition(gate, self.A, self.update), self._scale(gate)[..., None] * columns[None, None]
        )

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns what holds for all inputs of a set (`layers.bounds`): the gates' range and slopes, and the largest |B
        x|.
        """
        drive = self._largest_drive(inputs)
        if self._capped:
            drive = jnp.minimum(drive, self._largest_drive(self._projected))
        drive = jnp.full_like(drive, jnp.inf) if self.process_noise or self.drive_noise else drive
        gates = self.G.reachable(inputs, self._cap()).envelope(invariant_radius(self.A, drive))
        if self.drive == "normalised":  # what is let in over what the gate would let in: the more, the less it is open
            open_ = gates.low > 0
            more = jnp.where(open_, self._scale(gates.low) / jnp.where(open_, gates.low, 1), jnp.inf)
            drive = jnp.where(drive == 0, 0, drive * more)
        noise = self.process_noise**2 * jnp.eye(self._poles) if self.process_noise else None
        return Bounds(
            self.A, gates.low, gates.high, gates.lipschitz, drive, noise, self.update, gate_rivalry=gates.rivalry
        )

    def state_axes(self) -> StateAxes:
        """Returns where the components are in the parameters; a complex number is one component, and a slot of numbers
        that share a gate is one.

        Any part of a dense A is what it was in the whole. Caps of a certified layer's W_h are those of the components
        that are left.
        """
        square = {"A": (0, 1) if self.transition == "dense" else (0,)}
        axes = {"A_log_decay": (0,), "A_phase": (0,), "B": (1,), "C": (0,)} | square
        gates = {
            "G/kernel": (1,),
            "G/bias": (0,),
            "G/state_kernel": (0, 1) if self.gate_state == "dense" else (0,),
        }
        return StateAxes(
            self._poles // self.gate_slot_width,
            axes | gates,
            drive="B",
            readout="C",
            size=self.gate_slot_width * (2 if self.transition == "complex" else 1),
            settled={"A": within_rows} if self.transition == "dense" else {},
        )

    def initial_state(self, batch: Rows, steps: int | None = None) -> Inexact[Array, "B N"]:
        """Returns h_0 = 0 for `batch` sequences; it does not grow with `steps`."""
        del steps
        return jnp.zeros((batch, self._poles), jnp.complex64 if self.transition == "complex" else jnp.float32)

    @property
    def _poles(self) -> int:
        return self.d_state // 2 if self.transition == "complex" else self.d_state

    def _transition(self) -> Array:
        n = self._poles
        if self.transition == "diagonal":
            return real_poles(self.param("A", nn.initializers.uniform(1.0), (n,)))
        if self.transition == "complex":
            return complex_poles(
                self.param("A_log_decay", _uniform(-4.0, 0.0), (n,)), self.param("A_phase", _uniform(0.0, jnp.pi), (n,))
            )
        return contractive_matrix(self.param("A", nn.initializers.orthogonal(0.5), (n, n)))

    @property
    def _capped(self) -> bool:
        return self.certified and self.gate_state != "none"

    @property
    def _projected(self) -> Ball:
        """The inputs that a capped layer lets in."""
        return Ball(jnp.ones(self.d_model), INPUT_RADIUS * math.sqrt(self.d_model))

    def _bound_input(self, x: Array) -> Array:
        """x on or within the sphere of the largest input, where the certificate needs one."""
        if not self._capped:
            return x
        # the root of a square of at least 1 has a slope, that of 0 has none
        size = jnp.sqrt(jnp.maximum(jnp.square(x.astype(jnp.float32)).sum(axis=-1, keepdims=True), 1))
        return x * rules.detach(jnp.minimum(1, self._projected.radius / size).astype(x.dtype), "norm")

    def _largest_drive(self, inputs: Inputs) -> Array:
        reach = inputs.reach(self.B) / (1 - self.drive_dropout)
        return jnp.hypot(*jnp.split(reach, 2)) if self.transition == "complex" else reach

    def _cap(self) -> Array | None:
        """Row sums of |W_h| that B5 allows, with a tenth to spare: pull_i slope cap_i <= CAP_SHARE g_min (1 - alpha_i)
        (theory, section 5).

        For "effective", where it is pull_i slope cap_i <= CAP_SHARE (1 - alpha_i), no floor is needed. Softmax gates
        change with every logit of their step, so that all rows have the cap of the least.
        """
        if not self._capped:
            return None
        drive = self._largest_drive(self._projected)
        kind = GATES[self.gate]
        slope = (1 - self.gate_floor) * (kind.drawn_slope if kind.draw else largest_slope(self.gate))
        room = CAP_SHARE * (1 - row_sums(self.A)) * (self.gate_floor if self.update == "retain" else 1)
        cap = room / (
            slope * pull(self.A, invariant_radius(self.A, drive), drive, self.update) + jnp.finfo(jnp.float32).tiny
        )
        if not kind.joint:
            return cap
        slots = self._poles // self.gate_slot_width
        return jnp.broadcast_to(smallest(cap, (0,)) * self.gate_temperature / 2, (slots,))

    def _step_factor(self, opening: Opening, drive: Array, state: Array) -> Array:
        """kappa of this very call: its own drives and starts are the bounds."""
        most = shards.largest(largest(jnp.abs(drive), (0, 1)))
        reach = jnp.maximum(invariant_radius(self.A, most), largest(jnp.abs(state), 0))
        gates = opening.envelope(reach)
        return jax.lax.stop_gradient(
            step_factor(self.A, gates.low, gates.high, gates.steepness(), reach, most, self.update)
        )

    def _drive(self, x: Array) -> Array:
        """B x_t in the recurrence's precision."""
        drive = project(x, self.B).astype(jnp.float32)
        return self._complex(drive) if self.transition == "complex" else drive

    def _drop(self, drive: Array) -> Array:
        """B x_t without what is lost; both parts of a complex number are."""
        if not self.drive_dropout:
            return drive
        share = 1 - self.drive_dropout
        return jnp.where(jax.random.bernoulli(self.make_rng("noise"), share, drive.shape), drive / share, 0)

    def _noisy(self, drive: Array) -> Array:
        """What is written, with its noise and w_t; real and imaginary parts have a noise each."""
        if not (self.process_noise or self.drive_noise):
            return drive
        parts = 2 if self.transition == "complex" else 1
        noise = jax.random.normal(self.make_rng("noise"), (*drive.shape[:-1], parts * drive.shape[-1]), jnp.float32)
        return drive + self._spread(drive) * (self._complex(noise) if self.transition == "complex" else noise)

    def _spread(self, drive: Array) -> Array | float:
        """Standard deviation of w_t and the noise of what is written together, in every direction."""
        if not self.drive_noise:
            return self.process_noise
        grown = self.drive_noise * jnp.abs(drive)
        return jnp.sqrt(self.process_noise**2 + grown**2) if self.process_noise else grown

    def _law(self, opening: Opening, drive: Array, before: Array | None, reset: Array | None) -> Law:
        gate = opening.at(before)
        scale = self._scale(gate)
        noise = scale * self._spread(drive)
        if before is None:
            A = effective_transition(gate, self.A, self.update)
            return Law(
                A if reset is None else jnp.where(reset.reshape(*reset.shape, *[1] * (A.ndim - 2)), 0, A),
                scale * drive,
                noise,
            )
        kept = 1 - gate if self.update == "retain" else jnp.zeros_like(gate)
        return Law(None, kept * before + gate * (self._propagate(before) + drive), noise)

    def _propagate(self, h: Array) -> Array:
        """A h for states of any leading axes."""
        return h @ self.A.T if self.A.ndim == 2 else h * self.A.reshape((1,) * (h.ndim - 1) + self.A.shape)

    def _scale(self, gate: Array) -> Array:
        """What B x_t + w_t is times."""
        return gate if self.drive == "gated" else normalising_scale(gate, self.A, self.update)

    def _linear(
        self, opening: Opening, drive: Array, state: Array | None, reset: Array | None
    ) -> tuple[Array, Array, None]:
        """(states, last state, None: the gates need no state)."""
        h, last = self._scan(rules.detach(opening.at()), drive, state, reset)
        return h, last, None

    def _scan(self, gate: Array, drive: Array, state: Array | None, reset: Array | None) -> tuple[Array, Array]:
        """(states, last state) of these gates."""
        scan = dense_scan if self.transition == "dense" else linear_scan
        return scan(
            effective_transition(gate, self.A, self.update),
            self._scale(gate) * drive,
            state,
            reset=reset,
            method=self.method,
        )

    def _nonlinear(
        self, opening: Opening, drive: Array, state: Array | None, reset: Array | None
    ) -> tuple[Array, Array, Array]:
        """(states, last state, states before every step)."""

        def step(h: Array, now: tuple[Array, Array | None, Array, Array | None]) -> Array:
            z, noise, drive, reset = now
            h = h if reset is None else jnp.where(reset, 0, h)
            gate = dataclasses.replace(opening, z=z, noise=noise).at(h)
            target = self._propagate(h) + drive
            return (1 - gate) * h + gate * target if self.update == "retain" else gate * target

        state = self.initial_state(drive.shape[0]) if state is None else state
        dense = opening.couples or "dense" in (self.transition, self.gate_state)
        state, *_ = vary_alike((state, opening, drive, self.A))
        xs = (opening.z, opening.noise, drive, reset)
        factor = self._step_factor(opening, drive, state) if self.solver == "auto" else None  # no other asks for it
        h, fell_back = nonlinear_scan(
            step, state, xs, jacobian="dense" if dense else "diagonal", solver=self.solver, factor=factor
        )
        if not self.is_initializing():  # or `init` would return it among the variables
            self.sow("diagnostics", "fell_back", fell_back)
        before = shards.previous(h, state, axis=1)
        seen = lambda: before if reset is None else jnp.where(reset[..., None], 0, before)  # noqa: E731
        gate = lambda: jax.lax.stop_gradient(opening.at(seen()))  # noqa: E731
        h = rules.follow("gate", h, lambda: self._scan(gate(), drive, state, reset)[0])
        return h, shards.last(h[:, -1]), seen()

    def _read(self, h: Array, x: Array) -> Array:
        if self.transition == "complex":
            h = jnp.concatenate([h.real, h.imag], axis=-1)
        y = project(h.astype(self.dtype), self.C) + self.D.astype(self.dtype)[None, None] * x
        if self.output_gate:
            y = rules.multiply(y, rules.activate(nn.silu, project(x, self.W_z)))
        if self.observation_noise:
            y += self.observation_noise * jax.random.normal(self.make_rng("noise"), y.shape, self.dtype)
        return y

    def _complex(self, parts: Array, axis: int = -1) -> Array:
        return jax.lax.complex(*jnp.split(parts, 2, axis=axis))


def _uniform(low: float, high: float) -> nn.initializers.Initializer:
    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, low, high)

    return init
