"""The optimal gate: a selective state space model whose gate is the gain of a Kalman filter (theory, section 11)."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from selssm_jax.config.mixers import KalmanConfig, check_layer
from selssm_jax.layers.bounds import Bounds, Inputs
from selssm_jax.layers.gates import Gate
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import project
from selssm_jax.layers.selective import RADIUS, real_poles
from selssm_jax.layers.state_axes import StateAxes
from selssm_jax.ops import kalman_scan
from selssm_jax.shapes import Activations, Reset, Rows

FORGETTING = (1e-3, 0.5)  # 1 - a at the start, log-uniform: memory over all time scales
SHARPEST = 40.0  # |log precision| of a reading: beyond it gates are 0 or 1, and products leave the range of float32

State = dict[str, Array]


class KalmanSSM(Layer):
    """m_t = (1 - K_t) a_t m_{t-1} + K_t z_t,  y_t = C m_t + D x_t: the best memory of noisy readings of components
    h_t = a_t h_{t-1} + w_t, w_t ~ N(0, 1 - a_t^2), of which x_t says z_t = B x_t = h_t + v_t, v_t ~ N(0, exp(-zeta_t)).

    The gate K_t = P-_t / (P-_t + exp(-zeta_t)) = sigmoid(zeta_t + log P-_t) is that of `SelectiveSSM`, zeta_t = W x_t +
    b, but that it also reads how uncertain the state is: P-_t = a_t^2 P_{t-1} + 1 - a_t^2 and P_t = (1 - K_t) P-_t. A
    component has variance 1 while nothing is read, so that P_t = exp(-2 I_t), I_t the nats that it holds of what was
    read.

    Attributes:
      d_model: D, width of x and y. d_state: N, components; of each its mean and its nats are carried.
      gate_bias: added to b at the start: positive opens gates.
      decay: "constant", a = tanh(A), or "input", a_t = tanh(A + W_a x_t), with W_a = 0 at the start.
      method: see `kalman_scan`.
      dtype: of activations. Gate, filter and state are float32 whatever it is.

    The state is {"m", "nats"}, (B, d_state) each. Sown as intermediates: "gate", K_t, "gained" and "forgotten", nats of
    that step, (B, T, d_state), and "state", m_t and I_t, (B, T, 2 d_state). The nats are those of the layer's own
    model: they are true of data that follow it.
    """

    d_model: int
    d_state: int = 128
    gate_bias: float = KalmanConfig.gate_bias
    decay: str = KalmanConfig.decay
    method: str = KalmanConfig.method
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        check_layer(KalmanConfig, self)
        normal = nn.initializers.lecun_normal()
        self.G = Gate(self.d_state, bias=self.gate_bias)
        self.A = self.param("A", _slow_poles, (self.d_state,))
        if self.decay == "input":
            self.decay_kernel = self.param("decay_kernel", nn.initializers.zeros, (self.d_model, self.d_state))
        self.B = self.param("B", normal, (self.d_model, self.d_state))
        self.C = self.param("C", normal, (self.d_state, self.d_model))
        self.D = self.param("D", nn.initializers.ones, (self.d_model,))

    def __call__(
        self, x: Activations, state: State | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, State]:
        """Reads a sequence from `state` on, from a component of variance 1 if None, and returns (y, state after the
        last step); True in `reset` forgets.
        """
        x = x.astype(self.dtype)
        z = project(x, self.B).astype(jnp.float32)
        zeta = jnp.clip(self.G(x).logits(), -SHARPEST, SHARPEST)
        a, q = self._decay(x, reset)
        state = self.initial_state(x.shape[0]) if state is None else state
        P0 = jnp.exp(-2 * state["nats"])
        filtered = kalman_scan(
            a, q, jnp.exp(-zeta), z, state["m"], P0, prior0=jnp.ones_like(P0), reset=reset, method=self.method
        )
        self.sow("intermediates", "gate", -jnp.expm1(-2 * filtered.gained))
        self.sow("intermediates", "gained", filtered.gained)
        self.sow("intermediates", "forgotten", filtered.forgotten)
        self.sow("intermediates", "state", jnp.concatenate([filtered.m, _nats_of(filtered.P)], axis=-1))
        y = project(filtered.m.astype(self.dtype), self.C) + self.D.astype(self.dtype)[None, None] * x
        return y, {"m": filtered.last.m, "nats": _nats_of(filtered.last.P)}

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns the largest derivatives of (m, P) by (m, P) over all inputs of a set and |m_i| <= max |z_i|, which is
        never left once entered.

        (1 - K) |a| of a mean by itself, a^2 (1 - K)^2 of a variance by itself, and of a mean by the variance |z - a m|
        a^2 (1 - K)^2 / r, where (1 - K)^2 / r is at most 1 / (4 P-), and P- at least 1 - a^2: no floor of the gates is
        needed, nor a bound of zeta.
        """
        gate = self.G.reachable(inputs)
        low, high = jnp.clip(gate.logits(), -SHARPEST, SHARPEST)
        reach = inputs.reach(self.B)
        if not bool(jnp.isfinite(reach).all()):
            return Bounds(
                unknown="inputs have no bound, so neither have readings, nor what a mean owes to its variance"
            )
        spread = inputs.reach(self.decay_kernel) if self.decay == "input" else 0.0
        raw = jnp.abs(self.A) + spread
        a, left = real_poles(raw), _fresh(raw)
        keep = 1 / (1 + left * jnp.exp(low))
        steepest = jnp.minimum(jnp.exp(high), 1 / (4 * left))
        crossing = 2 * reach * jnp.square(a) * steepest
        top = jnp.concatenate([jnp.diag(keep * a), jnp.diag(crossing)], axis=1)
        bottom = jnp.concatenate([jnp.zeros_like(top[:, : self.d_state]), jnp.diag(jnp.square(keep * a))], axis=1)
        return Bounds(jacobian=jnp.concatenate([top, bottom]), box=jnp.concatenate([reach, jnp.ones_like(reach)]))

    def state_axes(self) -> StateAxes:
        """Returns where the components are in the parameters."""
        axes = {"A": (0,), "decay_kernel": (1,), "B": (1,), "C": (0,), "G/kernel": (1,), "G/bias": (0,)}
        return StateAxes(self.d_state, axes, drive="B", readout="C")

    def initial_state(self, batch: Rows, steps: int | None = None) -> State:
        """Returns zeros, for nothing is known; they do not grow with `steps`."""
        del steps
        return {name: jnp.zeros((batch, self.d_state), jnp.float32) for name in ("m", "nats")}

    def _decay(self, x: Array, reset: Bool[Array, "B T"] | None) -> tuple[Array, Array]:
        """(a_t, 1 - a_t^2), (B, T, N); at a reset the variance is 1 again."""
        shape = (*x.shape[:2], self.d_state)
        read = project(x, self.decay_kernel).astype(jnp.float32) if self.decay == "input" else 0.0
        raw = jnp.broadcast_to(self.A[None, None] + read, shape)
        q = _fresh(raw)
        return real_poles(raw), q if reset is None else jnp.where(reset[..., None], 1, q)


def _fresh(raw: Array) -> Array:
    """1 - a^2 of a = real_poles(raw), whose digits a subtraction would lose near 1."""
    square = jax.nn.sigmoid(2 * raw) * jax.nn.sigmoid(-2 * raw)  # (1 - tanh(raw)^2) / 4
    return 4 * RADIUS**2 * square + (1 - RADIUS**2)


def _nats_of(P: Array) -> Array:
    """I = -1/2 log P, the nats that a component of variance 1 holds, at least 0."""
    return -jnp.log(jnp.minimum(P, 1)) / 2


def _slow_poles(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "N"]:
    """A with 1 - tanh(A) log-uniform in `FORGETTING`."""
    low, high = (math.log(share) for share in FORGETTING)
    return jnp.arctanh(1 - jnp.exp(jax.random.uniform(key, shape, jnp.float32, low, high)))
