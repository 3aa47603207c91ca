"""Gates: which components of the state a step updates (theory, section 2).

A gate maps a pre-activation z = W_x x + W_h h + b to [0, 1]. `Gate` holds the weights; the functions below hold the
maths. A gate of 0 keeps a component, a gate of 1 updates it fully. With W_h the recurrence is no longer linear:
`ops.newton_scan` solves it.

Two kinds jump, "binary" and "top_k": their gates are 0 or 1 and nothing in between, and a backward pass takes the
derivative of a sigmoid in place of theirs, which is 0 (straight-through, Bengio et al. 2013). What is learned then is
no gradient of the loss. The gates of two kinds, "top_k" and "softmax", depend on the logits of all gates of their step:
`layers.joint_gates`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from selssm_jax.config import mixers
from selssm_jax.config.fields import Count, Positive, Share, check_arguments
from selssm_jax.config.mixers import GATE_SETTINGS, GateBias, GateName, Kind, Reads, Temperature, check_gate
from selssm_jax.layers.bounds import Inputs, Rivalry
from selssm_jax.layers.joint_gates import JointGate, Softmax, TopK, sigmoid_slope
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import project
from selssm_jax.ops.extremes import largest, smallest
from selssm_jax.ops.gating import propagate_radius, row_sums

TEMPERATURE, LOW, HIGH = 2.0 / 3.0, -0.1, 1.1  # Louizos, Welling and Kingma (2018), section 4


def sigmoid(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """g = 1 / (1 + exp(-z)); slope at most 1/4."""
    return jax.nn.sigmoid(z)


def rescaled_tanh(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """g = (1 + tanh z) / 2 = sigmoid(2 z); slope at most 1/2."""
    return (1 + jnp.tanh(z)) / 2


def hard_sigmoid(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """g = clip(z / 6 + 1/2, 0, 1): exactly 0 below -3 and exactly 1 above 3; slope at most 1/6."""
    return jnp.clip(z / 6 + 0.5, 0, 1)


def hard_concrete(z: Float[Array, "..."], noise: Float[Array, "..."] | None = None) -> Float[Array, "..."]:
    """g = clip(s (HIGH - LOW) + LOW, 0, 1) with s a binary concrete variable of logit z (Louizos et al. 2018, eq.
    10-11).

    With noise, drawn by `logistic`, s is random: s = sigmoid((noise + z) / TEMPERATURE). Without, s = sigmoid(z), the
    deterministic gate of evaluation. Exactly 0 and exactly 1 have positive probability.
    """
    s = jax.nn.sigmoid(z) if noise is None else jax.nn.sigmoid((noise + z) / TEMPERATURE)
    return jnp.clip(s * (HIGH - LOW) + LOW, 0, 1)


@jax.custom_jvp
def binary(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """g = 1[z > 0]: open or closed. Surrogate gradient, straight-through: dg/dz = s (1 - s), s = sigmoid(z)."""
    return (z > 0).astype(z.dtype)


@binary.defjvp
def _binary_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return binary(*primals), sigmoid_slope(*primals) * tangents[0]


def logistic(key: PRNGKeyArray, like: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns logit u, u uniform: the noise of `hard_concrete`, of the shape and type of `like`."""
    tiny = jnp.finfo(like.dtype).eps
    u = jax.random.uniform(key, like.shape, like.dtype, tiny, 1 - tiny)
    return jnp.log(u) - jnp.log1p(-u)


def cap_rows(W: Float[Array, "..."], cap: Float[Array, "S"]) -> Float[Array, "..."]:
    """Returns W with every row scaled by 1 / (1 + r / cap), r = sum_j |w_ij|, so that the row's new sum is below its
    cap.

    W is (S, N), or (N,) where component i is read by logit i mod S alone. Smooth, the identity near 0, and never at
    rest: a weight that grows keeps a gradient.
    """
    scale = 1 / (1 + fold(row_sums(W), len(cap)) / cap)
    return W * (jnp.tile(scale, len(W) // len(cap)) if W.ndim == 1 else scale[:, None])


def fold(values: Float[Array, "... N"], slots: int) -> Float[Array, "... S"]:
    """Returns the sums over the components of each slot, i mod S being the slot of component i."""
    return values.reshape(*values.shape[:-1], -1, slots).sum(axis=-2)


def expected_open(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """P(g > 0) of a hard concrete gate, the differentiable L0 (Louizos et al. 2018, eq. 12)."""
    return jax.nn.sigmoid(z - TEMPERATURE * math.log(-LOW / HIGH))


@dataclasses.dataclass(frozen=True)
class GateKind:
    """What a kind of gate is: a map from logits to [0, 1], never falling, with what start values and certificates need
    of it.

    Attributes:
      function: z -> g, elementwise and differentiable. Of joint gates it is not read.
      inverse: g -> z, for the biases that gates start with. Of gates that jump, it is the share of open steps that is
        mapped, for normal z; of softmax gates, their shares of a step but for a common factor.
      slope: (|z|, numpy or jax.numpy) -> the largest |dg/dz| at that distance from 0 or beyond: it must not rise with
        |z|. Of gates that jump it is not read.
      draw: (z, noise) -> g where a layer trains with noise in its gates; None: gates are never drawn.
      drawn_slope: the largest |dg/dz| of a drawn gate.
      joint: the settings of the gates, an `Opening` -> what they are of all logits of their step; None: each is of its
        own.

    That a kind jumps or closes fully is in `config.mixers.GATES`, which the config reads; `register_gate` enters both.
    """

    function: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    slope: Callable[[Any, Any], Any]
    draw: Callable[[Array, Array], Array] | None = None
    drawn_slope: float = math.inf
    joint: "Callable[[Opening], JointGate] | None" = None


def _bell(steepness: float) -> Callable[[Any, Any], Any]:
    """Slope of a sigmoid of `steepness` z."""
    return lambda z, xp: steepness * xp.exp(-steepness * z) / (1 + xp.exp(-steepness * z)) ** 2


def _never(z: Any, xp: Any) -> Any:
    return xp.full_like(z, xp.inf)


CLOSED_BELOW = math.log((1 - LOW) / -LOW)  # |z| beyond which a deterministic hard concrete gate is 0 or 1
GATES: dict[str, GateKind] = {
    "sigmoid": GateKind(sigmoid, jax.scipy.special.logit, _bell(1.0)),
    "tanh": GateKind(rescaled_tanh, lambda g: jnp.arctanh(2 * g - 1), _bell(2.0)),
    "hard_sigmoid": GateKind(hard_sigmoid, lambda g: 6 * (g - 0.5), lambda z, xp: xp.where(z < 3, 1 / 6, 0.0)),
    "hard_concrete": GateKind(
        hard_concrete,
        lambda g: jax.scipy.special.logit((g - LOW) / (HIGH - LOW)),
        lambda z, xp: xp.where(z < CLOSED_BELOW, (HIGH - LOW) * _bell(1.0)(z, xp), 0.0),
        draw=hard_concrete,
        drawn_slope=(HIGH - LOW) / 4 / TEMPERATURE,
    ),
    "constant": GateKind(sigmoid, jax.scipy.special.logit, _bell(1.0)),
    "binary": GateKind(binary, jax.scipy.special.ndtri, _never),
    "top_k": GateKind(binary, jax.scipy.special.ndtri, _never, joint=lambda gates: TopK(gates.active)),
    # of z less what the others make of it
    "softmax": GateKind(
        sigmoid, jnp.log, lambda z, xp: xp.full_like(z, 0.25), joint=lambda gates: Softmax(gates.temperature)
    ),
}


def register_gate(name: str, kind: GateKind, *, closes: bool = False) -> None:
    """Makes an own kind of gate known to layers and configs: `SelectiveSSM(gate=name)`, `model.selective.gate=name`,
    trained and certified as the others.

    Args:
      name: what it is called from now on.
      kind: what it is. closes: whether it can be exactly 0, so that a step leaves no trace.

    Raises:
      ValueError: for a name that is taken, a joint gate, values outside [0, 1] or that fall, an inverse that is none,
        or a slope that is exceeded or rises.
    """
    if name in GATES:
        raise ValueError(f"the gate {name!r} is there already: give another name")
    if kind.joint:
        raise ValueError(
            f"the gate {name!r} depends on the other gates of its step, which is not checked: leave out joint"
        )
    _check_gate(name, kind)
    mixers.GATES[name] = Kind(jumps=False, closes=closes)
    GATES[name] = kind


def _check_gate(name: str, kind: GateKind) -> None:
    z = np.linspace(-30, 30, 6001, dtype=np.float32)
    g = np.asarray(kind.function(jnp.asarray(z)))
    if g.shape != z.shape or not (
        np.isfinite(g).all() and (g >= 0).all() and (g <= 1).all() and (np.diff(g) >= -1e-6).all()
    ):
        raise ValueError(
            f"the gate {name!r} is no map to [0, 1] that never falls: its values at -30 to 30 go from {g.min()} to "
            f"{g.max()}"
        )
    shares = np.asarray([0.02, 0.3, 0.8], np.float32)
    back = np.asarray(kind.function(kind.inverse(jnp.asarray(shares))))
    if not np.allclose(back, shares, atol=1e-4):
        raise ValueError(f"the inverse of the gate {name!r} is none: it maps {shares} to logits whose gates are {back}")
    bound, steepness = np.asarray(kind.slope(abs(z), np)), np.asarray(jax.vmap(jax.grad(kind.function))(jnp.asarray(z)))
    if not ((np.abs(steepness) <= bound * (1 + 1e-4) + 1e-6).all() and (np.diff(bound[z >= 0]) <= 1e-6).all()):
        raise ValueError(
            f"the slope of the gate {name!r} is no bound: it must be at least |dg/dz| at |z| and beyond, and must not "
            "rise with |z|"
        )


def largest_slope(
    kind: str, low: Array | np.ndarray | float = -jnp.inf, high: Array | np.ndarray | float = jnp.inf
) -> Array | np.ndarray | float:
    """Returns max |dg/dz| over low <= z <= high: every gate is steepest at 0 and less so away from it; inf where it may
    jump.

    Of the gate itself, whatever its backward pass takes for it. That of a deterministic hard concrete gate; with noise
    it is at most `drawn_slope`, wherever z is. A top_k gate may jump at any z, for the others of its step decide where.
    Raises ValueError for an unknown kind.
    """
    if kind not in GATES:
        raise ValueError(f"gate kind {kind!r} is unknown: use one of {', '.join(GATES)}")
    xp = np if isinstance(low, np.ndarray | float) else jnp
    if mixers.GATES[kind].jumps:
        return xp.where((kind == "top_k") | (low <= xp.zeros_like(low)) & (high > xp.zeros_like(low)), xp.inf, 0.0)
    return GATES[kind].slope(abs(xp.clip(xp.zeros_like(low), low, high)), xp)


@flax.struct.dataclass
class Envelope:
    """Of gates over a set of logits and states: low <= g <= high, (N,), and |g_i(h) - g_i(k)| <= sum_j L_ij |h_j -
    k_j|, beside what a rivalry adds (see `Bounds`).

    `lipschitz` is L, (N,) where it is diagonal, else (N, N); None where gates do not read the state. inf: a change of
    that h_j may make that gate jump.
    """

    low: Float[Array, "N"]
    high: Float[Array, "N"]
    lipschitz: Float[Array, "..."] | None
    rivalry: Rivalry | None = None

    def steepness(self) -> Float[Array, "N"]:
        """Returns the most by which each gate changes where no component of the state changes by more than 1."""
        own = jnp.zeros_like(self.low) if self.lipschitz is None else row_sums(self.lipschitz)
        return own if self.rivalry is None else own + self.rivalry.share * row_sums(self.rivalry.reads).max()


def log_uniform_bias(
    kind: str, low: float, high: float, shift: float = 0.0, scale: float = 1.0
) -> nn.initializers.Initializer:
    """Returns an initialiser whose bias makes gates log-uniform in [low, high] at z = (b - shift) / scale: memory over
    all time scales.

    Of gates that jump it is the share of steps at which they open that is log-uniform, where z - b is a standard normal
    number; of top_k gates `active` open all the same, and the bias says which are likely to. Softmax gates are as far
    apart, log-uniform over high / low, and as small as their sum of 1 makes them.
    """
    inverse = GATES[kind].inverse

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        exponent = jax.random.uniform(key, shape, jnp.float32, math.log(low), math.log(high))
        return (scale * inverse(jnp.exp(exponent)) + shift).astype(dtype)

    return init


@flax.struct.dataclass
class Opening:
    """The gates of every step, g_t = floor + (1 - floor) sigma(z_t + W h_{t-1}), as a function of the state before it.

    z (..., S) holds what the input says; W, (N,) or (S, N), what the state adds, None where gates read the input alone.
    Without the axes of batch and time it is the gates of one step. `active` is the number of open top_k gates,
    `temperature` that of softmax gates, and `slot_width` the number of components that share a gate: N = S slot_width,
    component i having gate i mod S.
    """

    z: Float[Array, "... S"]
    noise: Float[Array, "... S"] | None
    W: Float[Array, "..."] | None
    kind: str = flax.struct.field(pytree_node=False)
    floor: float = flax.struct.field(pytree_node=False)
    active: int = flax.struct.field(pytree_node=False, default=0)
    slot_width: int = flax.struct.field(pytree_node=False, default=1)
    temperature: float = flax.struct.field(pytree_node=False, default=1.0)

    def at(self, before: Float[Array, "... N"] | None = None) -> Float[Array, "... N"]:
        """Returns the gates; `before` is h_{t-1}, 0 if None."""
        return self._share(self.floor + (1 - self.floor) * self._evaluate(self.logits(before)))

    @property
    def joint(self) -> JointGate | None:
        """What the gates are of all logits of their step; None where each is of its own."""
        joint = GATES[self.kind].joint
        return joint(self) if joint else None

    @property
    def couples(self) -> bool:
        """Whether the derivative of a gate depends on the logits of others."""
        return self.joint is not None and self.joint.couples

    def _share(self, gates: Array) -> Array:
        """Every component's gate, (..., N), of those of the slots."""
        return jnp.concatenate([gates] * self.slot_width, axis=-1)

    def _evaluate(self, z: Array) -> Array:
        """sigma(z)."""
        kind = GATES[self.kind]
        if kind.draw and self.noise is not None:
            return kind.draw(z, self.noise)
        return (self.joint or kind.function)(z)

    def logits(self, before: Float[Array, "... N"] | None = None) -> Float[Array, "... S"]:
        """Returns z_t + W h_{t-1}."""
        if self.W is None or before is None:
            return self.z
        if self.W.ndim == 2:
            return self.z + before @ self.W.T
        return self.z + fold(before * self.W.reshape((1,) * (before.ndim - 1) + self.W.shape), self.z.shape[-1])

    def envelope(self, reach: Float[Array, "N"]) -> Envelope:
        """Returns what holds of all gates of these z, (2, S) or of any leading axes, at all states |h_i| <= reach_i.

        A noise that is drawn can take any value: the gate is anywhere above its floor then, and as steep as it can be.
        """
        axes, slots = tuple(range(self.z.ndim - 1)), self.z.shape[-1]
        spread = jnp.zeros(slots) if self.W is None else fold(propagate_radius(self.W, reach), slots)
        ends = smallest(self.z, axes) - spread, largest(self.z, axes) + spread
        low, high = self.joint.between(*ends) if self.joint else self._between(*ends)
        lipschitz, rivalry = (None, None) if self.W is None else self._slopes(self.W, *ends)
        return Envelope(
            self._share(self.floor + (1 - self.floor) * low),
            self._share(self.floor + (1 - self.floor) * high),
            lipschitz,
            rivalry,
        )

    @property
    def _drawn(self) -> bool:
        return bool(GATES[self.kind].draw) and self.noise is not None

    def _between(self, low: Array, high: Array) -> tuple[Array, Array]:
        """The range of gates that each are of their own z; whatever a noise makes of it."""
        if self._drawn:
            return jnp.zeros_like(low), jnp.ones_like(low)
        return self._evaluate(low), self._evaluate(high)

    def _slopes(self, W: Array, low: Array, high: Array) -> tuple[Array, Rivalry | None]:
        """(L, rivalry) of z within these ends."""
        if self.joint:
            return self._joint_slopes(self.joint, W, low, high)
        slope = (1 - self.floor) * jnp.broadcast_to(
            GATES[self.kind].drawn_slope if self._drawn else jnp.asarray(largest_slope(self.kind, low, high)), low.shape
        )
        slope = slope if W.ndim == 1 else slope[:, None]
        return jnp.where(W == 0, 0, jnp.abs(W) * jnp.where(W == 0, 0, slope)), None

    def _joint_slopes(self, joint: JointGate, W: Array, low: Array, high: Array) -> tuple[Array, Rivalry | None]:
        owners = jnp.tile(jnp.eye(len(low), dtype=bool), self.slot_width)
        reads = jnp.abs(W) if W.ndim == 2 else jnp.where(owners, jnp.abs(W)[None], 0)
        L, rivalry = joint.lipschitz(reads, low, high)
        scale = 1 - self.floor
        rivalry = rivalry and Rivalry(self._share(scale * rivalry.share), rivalry.reads)
        return self._share(scale * L.T).T, rivalry


class Gate(Layer):
    """g_t = floor + (1 - floor) sigma(W_x x_t + W_h h_{t-1} + b), one value in [0, 1] a component (theory, section 2).

    Attributes:
      features: number of gates, the n of the state.
      kind: "sigmoid", "tanh" (rescaled), "hard_sigmoid", "hard_concrete", or "constant": sigma(b), the same at every
        step, which makes the layer time-invariant. "binary", 1[z > 0], and "top_k", the `active` largest z of a step,
        jump between 0 and 1 and train by a surrogate gradient. "softmax", softmax(z / temperature) over all gates of a
        step, which sum to 1.
      floor: smallest value of a gate.
      reads_state: "none", W_h = 0; "elementwise", W_h diagonal: a gate reads the components that it is of; "dense", all
        of them. W_h starts at 0, as a gate of the input alone.
      open_range: gates start log-uniform in this range; those that jump open at such a share of the steps (see
        `log_uniform_bias`).
      active: how many top_k gates are open, at every step exactly; 0 for other kinds.
      bias: added to the biases that gates start with; positive opens them. Softmax gates have none.
      slot_width: of softmax gates, how many components share one: there are S = features / slot_width gates, and
        component i has gate i mod S.
      temperature: of softmax gates; a low one leaves most of a step to the largest logit.

    `hard_concrete` draws its gates where a "gates" rng is given (training) and is deterministic where none is.
    """

    features: int
    kind: str = "sigmoid"
    floor: float = 0.0
    reads_state: str = "none"
    open_range: tuple[float, float] = (0.01, 0.9)
    active: int = 0
    bias: float = 0.0
    slot_width: int = 1
    temperature: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], cap: Float[Array, "S"] | None = None) -> Opening:
        """Returns the gates of every step as a function of the state before it; `cap` bounds sum_j |W_h|_ij (see
        `cap_rows`).
        """
        self._validate()
        start = log_uniform_bias(self.kind, *self.open_range, self.bias, self.temperature)
        z = self._logits(x, self.param("bias", start, (self._slots,)))
        noisy = bool(GATES[self.kind].draw) and self.has_rng("gates")
        return self._opening(z, logistic(self.make_rng("gates"), z) if noisy else None, self._state_weights(cap))

    def _opening(self, z: Array, noise: Array | None, W: Array | None) -> Opening:
        return Opening(z, noise, W, self.kind, self.floor, self.active, self.slot_width, self.temperature)

    @property
    def _slots(self) -> int:
        return self.features // self.slot_width

    def _validate(self) -> None:
        kinds = {
            "features": Positive,
            "kind": GateName,
            "floor": Share,
            "reads_state": Reads,
            "active": Count,
            "bias": GateBias,
            "slot_width": Positive,
            "temperature": Temperature,
        }
        check_arguments(self, kinds)
        settings = {name: getattr(self, name) for name in (*GATE_SETTINGS, "bias")}
        check_gate(self.kind, self.features, settings, lambda key: "kind" if key == "gate" else key)

    def _logits(self, x: Array, bias: Array) -> Array:
        if self.kind == "constant":
            return jnp.broadcast_to(bias, (*x.shape[:2], self._slots))
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self._slots))
        return project(x, kernel).astype(jnp.float32) + bias[None, None]

    def _state_weights(self, cap: Array | None) -> Array | None:
        if self.reads_state == "none":
            return None
        shapes = {"elementwise": (self.features,), "dense": (self._slots, self.features)}
        W = self.param("state_kernel", nn.initializers.zeros, shapes[self.reads_state])
        return W if cap is None else cap_rows(W, cap)

    def reachable(self, inputs: Inputs, cap: Float[Array, "S"] | None = None) -> Opening:
        """Returns the smallest and the largest z of any input of a set, (2, S), as an opening whose `envelope` holds
        for the set.
        """
        params = self.variables["params"]
        reach = jnp.zeros(self._slots) if self.kind == "constant" else inputs.reach(params["kernel"])
        W = params.get("state_kernel")
        z = jnp.stack([params["bias"] - reach, params["bias"] + reach])
        noise = jnp.zeros_like(z) if GATES[self.kind].draw else None
        return self._opening(z, noise, W if W is None or cap is None else cap_rows(W, cap))
