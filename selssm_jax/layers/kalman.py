"""The optimal gate: state space models whose gates are the gains of Kalman filters (theory, section 11)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from selssm_jax.config.mixers import KalmanAttentionConfig, KalmanConfig, check_layer
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.bounds import Bounds, Box, Inputs
from selssm_jax.layers.contract import Law
from selssm_jax.layers.convolution import ShortConv
from selssm_jax.layers.gates import Gate
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import project
from selssm_jax.layers.selective import RADIUS, real_poles
from selssm_jax.layers.state_axes import StateAxes
from selssm_jax.ops import KalmanScan, kalman_attention, kalman_scan, linear_scan, shards
from selssm_jax.ops.extremes import largest
from selssm_jax.shapes import Activations, Reset, Rows

FORGETTING = (1e-3, 0.5)  # 1 - a at the start, log-uniform: memory over all time scales
SHARPEST = 40.0  # |log precision| of a reading: beyond it gates are 0 or 1, and products leave the range of float32
STEEPEST = 3 * math.sqrt(3) / 16  # max over u of u / (1 + u^2)^2

State = dict[str, Array]


class _Steps(NamedTuple):
    """What a filter's steps read: the decay, the variances of the drift and of the reading, the reading."""

    a: Array
    q: Array
    r: Array
    z: Array


class _DriftingLayer(Layer):
    """What both filters know of their components: that each decays by a, and drifts so that its variance without
    readings is 1.
    """

    d_model: int

    def _set_up_decay(self, decay: str, components: int) -> None:
        self.A = self.param("A", _slow_poles, (components,))
        shape = (self.d_model, components)
        self.decay_kernel = self.param("decay_kernel", nn.initializers.zeros, shape) if decay == "input" else None

    def _drift(self, x: Array, reset: Bool[Array, "B T"] | None) -> tuple[Array, Array]:
        """(a_t, 1 - a_t^2), (B, T, components); at a reset the variance is 1 again."""
        read = 0.0 if self.decay_kernel is None else project(x, self.decay_kernel).astype(jnp.float32)
        raw = jnp.broadcast_to(self.A[None, None] + read, (*x.shape[:2], len(self.A)))
        q = _fresh(raw)
        return real_poles(raw), q if reset is None else jnp.where(reset[..., None], 1, q)

    def _sow_gains(self, gained: Array, forgotten: Array, width: int = 1) -> Array:
        """Sows gates, and the nats of all `width` numbers of each row; returns the gates."""
        flat = (*gained.shape[:2], -1)
        gate = -jnp.expm1(-2 * gained)
        self.sow("intermediates", "gate", gate.reshape(flat))
        self.sow("intermediates", "gained", width * gained.reshape(flat))
        self.sow("intermediates", "forgotten", width * forgotten.reshape(flat))
        return gate

    def _slowest_drift(self, inputs: Inputs) -> tuple[Array, Array]:
        """The largest |a| and the smallest 1 - a^2 over a set of inputs."""
        raw = jnp.abs(self.A) + (0.0 if self.decay_kernel is None else inputs.reach(self.decay_kernel))
        return real_poles(raw), _fresh(raw)


class KalmanSSM(_DriftingLayer):
    """m_t = (1 - K_t) a_t m_{t-1} + K_t z_t,  y_t = C m_t + D x_t: the best memory of noisy readings of components
    h_t = a_t h_{t-1} + w_t, w_t ~ N(0, 1 - a_t^2), of which x_t says z_t = B x_t = h_t + v_t, v_t ~ N(0, exp(-zeta_t)).

    The gate K_t = P-_t / (P-_t + exp(-zeta_t)) = sigmoid(zeta_t + log P-_t) is that of `SelectiveSSM`, zeta_t = W x_t +
    b, but that it also reads how uncertain the state is: P-_t = a_t^2 P_{t-1} + 1 - a_t^2 and P_t = (1 - K_t) P-_t. A
    component has variance 1 while nothing is read, so that P_t = exp(-2 I_t), I_t the nats that it holds of what was
    read.

    A sampled state is not m_t, a number that tells as much as its digits do, but one that is drawn: (1 - K_t) (a_t
    h_{t-1} + w_t) + K_t (z_t + v_t), in law N(m_t, P_t) given the readings (the ensemble Kalman filter, with perturbed
    readings). Where data follow the model it holds I_t nats of them, and not more; else as many as its law says, which
    `training.information_weight` prices.

    Attributes:
      d_model: D, width of x and y. d_state: N, components; of each its mean and its nats are carried.
      gate_bias: added to b at the start: positive opens gates.
      decay: "constant", a = tanh(A), or "input", a_t = tanh(A + W_a x_t), with W_a = 0 at the start.
      method: see `kalman_scan`.
      sampled: the state is drawn, by an rng "noise", at every step of training and of evaluation; "m" is the sample.
      dtype: of activations. Gate, filter and state are float32 whatever it is.

    The state is {"m", "nats"}, (B, d_state) each. Sown as intermediates: "gate", K_t, "gained" and "forgotten", nats of
    that step, (B, T, d_state), and "state", m_t and I_t, (B, T, 2 d_state). The nats are those of the layer's own
    model: they are true of data that follow it. Sown as laws: "law", a `Law`, of a sampled state.
    """

    d_model: int
    d_state: int = 128
    gate_bias: float = KalmanConfig.gate_bias
    decay: str = KalmanConfig.decay
    method: str = KalmanConfig.method
    dtype: DTypeLike = jnp.float32
    sampled: bool = KalmanConfig.sampled

    def setup(self) -> None:
        check_layer(KalmanConfig, self)
        normal = nn.initializers.lecun_normal()
        self.G = Gate(self.d_state, bias=self.gate_bias)
        self._set_up_decay(self.decay, self.d_state)
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
        steps = self._read(x, reset)
        steps = steps._replace(z=rules.tap(self, "drive", steps.z))
        state = self.initial_state(x.shape[0]) if state is None else state
        P0 = rules.detach(jnp.exp(-2 * state["nats"]))
        m0 = jnp.where(P0 >= 1, 0, state["m"]) if self.sampled else state["m"]  # of the unknown a new one is drawn
        filtered = kalman_scan(*steps, m0, P0, prior0=jnp.ones_like(P0), reset=reset, method=self.method)
        gate = self._sow_gains(filtered.gained, filtered.forgotten)
        m, last = self._draw(steps, gate, filtered, P0, reset) if self.sampled else (filtered.m, filtered.last.m)
        m = rules.tap(self, "read", m)
        self.sow("intermediates", "state", jnp.concatenate([m, _nats_of(filtered.P)], axis=-1))
        y = project(m.astype(self.dtype), self.C) + self.D.astype(self.dtype)[None, None] * x
        return y, {"m": last, "nats": _nats_of(filtered.last.P)}

    def measure_gains(
        self, x: Activations, state: State | None = None, *, reset: Reset | None = None
    ) -> Float[Array, "B T"]:
        """Returns the nats that all components gain at each step, -1/2 sum_i log(1 - K_ti), of a call with these
        arguments.
        """
        state = self.initial_state(x.shape[0]) if state is None else state
        P0 = jnp.exp(-2 * state["nats"])
        steps = self._read(x.astype(self.dtype), reset)
        filtered = kalman_scan(*steps, state["m"], P0, prior0=jnp.ones_like(P0), reset=reset, method=self.method)
        return filtered.gained.sum(axis=-1)

    def _read(self, x: Array, reset: Reset | None) -> _Steps:
        z = project(x, self.B).astype(jnp.float32)
        zeta = rules.detach(jnp.clip(self.G(x).logits(), -SHARPEST, SHARPEST))
        a, q = rules.detach(self._drift(x, reset))
        return _Steps(a, q, jnp.exp(-zeta), z)

    def _draw(
        self, steps: _Steps, gate: Array, filtered: KalmanScan, P0: Array, reset: Reset | None
    ) -> tuple[Array, Array]:
        """(samples, the last one): m_t + e_t, e_t = (1 - K_t) a_t e_{t-1} + noise_t of variance (1 - K_t)^2 q_t + K_t^2
        r_t.

        A component of which nothing is known begins with a sample of its own variance.
        """
        unknown = shards.previous(filtered.P, P0, axis=1) >= 1
        unknown = unknown if reset is None else unknown | reset[..., None]
        keep = jnp.exp(-2 * filtered.gained)
        A = jnp.where(unknown, 0, keep * steps.a)
        variance = jnp.where(unknown, filtered.P, jnp.square(keep) * steps.q + jnp.square(gate) * steps.r)
        noise = jnp.sqrt(variance)
        if self.is_mutable_collection("laws") and not self.is_initializing():
            self.sow("laws", "law", Law(A, gate * steps.z, noise))
        drawn = noise * jax.random.normal(self.make_rng("noise"), noise.shape, jnp.float32)
        e, last = linear_scan(A, drawn, method=self.method)
        return filtered.m + e, filtered.last.m + last

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns the largest derivatives of (m, P) by (m, P) over all inputs of a set and |m_i| <= max |z_i|, which is
        never left once entered. Of samples nothing.

        (1 - K) |a| of a mean by itself, a^2 (1 - K)^2 of a variance by itself, and of a mean by the variance |z - a m|
        a^2 (1 - K)^2 / r, where (1 - K)^2 / r is at most 1 / (4 P-), and P- at least 1 - a^2: no floor of the gates is
        needed, nor a bound of zeta.
        """
        if self.sampled:
            return Bounds(unknown="the noise of samples has no bound, so neither has what they owe to their variance")
        gate = self.G.reachable(inputs)
        low, high = jnp.clip(gate.logits(), -SHARPEST, SHARPEST)
        reach = inputs.reach(self.B)
        if not bool(jnp.isfinite(reach).all()):
            return Bounds(
                unknown="inputs have no bound, so neither have readings, nor what a mean owes to its variance"
            )
        a, left = self._slowest_drift(inputs)
        keep = 1 / (1 + left * jnp.exp(low))
        steepest = jnp.minimum(jnp.exp(high), 1 / (4 * left))
        crossing = 2 * reach * jnp.square(a) * steepest
        return _bounds(keep, a, crossing, reach)

    def state_axes(self) -> StateAxes:
        """Returns where the components are in the parameters."""
        axes = {"A": (0,), "decay_kernel": (1,), "B": (1,), "C": (0,), "G/kernel": (1,), "G/bias": (0,)}
        return StateAxes(self.d_state, axes, drive="B", readout="C")

    def initial_state(self, batch: Rows, steps: int | None = None) -> State:
        """Returns zeros, for nothing is known; they do not grow with `steps`."""
        del steps
        return {name: jnp.zeros((batch, self.d_state), jnp.float32) for name in ("m", "nats")}


class KalmanAttention(_DriftingLayer):
    """Linear attention whose writes are Kalman gains: a memory of N rows of P numbers in each of H heads, of which
    every row drifts, h_t = a_t h_{t-1} + w_t, w_t ~ N(0, 1 - a_t^2), and is read as v_t = k_t h_t + e_t, e_t ~ N(0,
    exp(-zeta_t)).

    m_t = (1 - K_t) a_t m_{t-1} + P_t k_t exp(zeta_t) v_t',  y_t = m_t' q_t + D v_t, K_t as in `KalmanSSM` with the
    precision k_t^2 exp(zeta_t) (`ops.kalman_attention`; Kalman linear attention, arXiv 2602.10743). So a key says what
    a step is about, the precision zeta_t = W u_t + b of its head how sure it is, and the variance how much of that is
    new: a row that is known changes little.

    v_t, of H heads of P = expand * d_model / H, k_t and q_t, of N a head, are linear in the input u_t and go through a
    causal convolution of width d_conv and a silu, as in `Mamba2`. The output is W_out (RMSNorm(y_t) * silu(z_t)), z_t
    linear in the input, normed in each head by itself.

    Attributes:
      d_model: width of inputs and outputs. d_state: N. heads: H. expand: H P / d_model. d_conv: width of the
        convolutions.
      gate_bias: added to b at the start: positive opens gates.
      decay: "constant", a = tanh(A), or "input", a_t = tanh(A + W_a u_t), with W_a = 0 at the start.
      norm_epsilon: added to the mean square under its root.
      method: see `kalman_attention`.
      dtype: of activations. Precisions, the filter and its state are float32 whatever it is.

    The state is {"v", "k", "q": the last d_conv - 1 inputs of the convolutions, "h": (B, H, N, P), "nats": (B, H N),
    those of one number of each row}. Its components are the N rows, in all heads at once. Sown as intermediates:
    "gate", K_t, "gained" and "forgotten", nats of that step over the P numbers of a row, (B, T, H N). Memories of all
    steps never exist.
    """

    d_model: int
    d_state: int = 16
    heads: int = KalmanAttentionConfig.heads
    expand: int = KalmanAttentionConfig.expand
    d_conv: int = KalmanAttentionConfig.d_conv
    gate_bias: float = KalmanAttentionConfig.gate_bias
    decay: str = KalmanAttentionConfig.decay
    norm_epsilon: float = 1e-5
    method: str = KalmanAttentionConfig.method
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        check_layer(KalmanAttentionConfig, self)
        normal = nn.initializers.lecun_normal()
        rows = self.heads * self.d_state
        self.inward = self.param("in", normal, (self.d_model, 2 * self._inner))
        self.B = self.param("B", normal, (self.d_model, rows))
        self.C = self.param("C", normal, (self.d_model, rows))
        self.v_conv, self.B_conv, self.C_conv = (ShortConv(self.d_conv, width) for width in (self._inner, rows, rows))
        self.G = Gate(self.heads, bias=self.gate_bias)
        self._set_up_decay(self.decay, rows)
        self.D = self.param("D", nn.initializers.ones, (self.heads,))
        self.norm = rules.RMSNorm(self.norm_epsilon, dtype=self.dtype, reduction_axes=-1, feature_axes=(-2, -1))
        self.outward = self.param("out", normal, (self._inner, self.d_model))

    def __call__(
        self, x: Activations, state: State | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, State]:
        """Reads a sequence from `state` on, from rows of variance 1 if None, and returns (y, state after the last
        step); True in `reset` forgets.
        """
        u, past = x.astype(self.dtype), self.initial_state(x.shape[0]) if state is None else state
        z, v = jnp.split(project(u, self.inward), 2, axis=-1)
        v, past_v = self.v_conv(v, past["v"], reset=reset)
        k, past_k = self.B_conv(project(u, self.B), past["k"], reset=reset)
        query, past_q = self.C_conv(project(u, self.C), past["q"], reset=reset)
        v, k, query = (self._split_heads(rules.activate(jax.nn.silu, value)) for value in (v, k, query))
        if self.has_variable("params", "mask"):
            query *= self.get_variable("params", "mask").astype(query.dtype)[None, None, None]
        k, query = rules.detach((k, query))
        zeta = rules.detach(jnp.clip(self.G(u).logits(), -SHARPEST, SHARPEST))
        a, q = map(self._split_heads, rules.detach(self._drift(u, reset)))
        P0 = rules.detach(jnp.exp(-2 * past["nats"])).reshape(-1, self.heads, self.d_state)
        memory = kalman_attention(
            a,
            q,
            jnp.exp(zeta),
            k,
            rules.tap(self, "drive", v),
            query,
            past["h"],
            P0,
            prior0=jnp.ones_like(P0),
            reset=reset,
            method=self.method,
        )
        self._sow_gains(memory.gained, memory.forgotten, v.shape[-1])
        y = self.norm(rules.tap(self, "read", memory.y) + self.D.astype(v.dtype)[None, None, :, None] * v)
        y = project(rules.multiply(y.reshape(z.shape), rules.activate(jax.nn.silu, z)), self.outward)
        nats = _nats_of(memory.last.P).reshape(past["nats"].shape)
        return y, {"v": past_v, "k": past_k, "q": past_q, "h": memory.last.m, "nats": nats}

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns the largest derivatives of (m, P) of every row by (m, P) over all inputs of a set and |m| <= R, the
        largest of a row's P means standing for all.

        As in `KalmanSSM`, but that a mean owes its variance a^2 (1 - K)^2 |k exp(zeta) v - s a m|, s = k^2 exp(zeta),
        where (1 - K)^2 k exp(zeta) is at most `STEEPEST` exp(zeta / 2) / sqrt(P-) and (1 - K)^2 s at most 1 / (4 P-); a
        write is at most exp(zeta / 2) |v| / 2, so that R (1 - |a|) is.
        """
        v, k = (
            conv.after(Box(inputs.reach(kernel))).largest(kernel.shape[1])
            for conv, kernel in ((self.v_conv, self.inward[:, self._inner :]), (self.B_conv, self.B))
        )
        if not bool(jnp.isfinite(v).all()):
            return Bounds(unknown="inputs have no bound, so neither have values, nor what a mean owes to its variance")
        v = jnp.repeat(largest(v.reshape(self.heads, -1), 1), self.d_state)
        high = jnp.clip(self.G.reachable(inputs).logits()[1], -SHARPEST, SHARPEST)
        half = jnp.repeat(jnp.exp(high / 2), self.d_state)
        a, left = self._slowest_drift(inputs)
        reach = v * jnp.minimum(half / 2, k * half**2) / (1 - a)
        by_write = v * jnp.minimum(STEEPEST * half / jnp.sqrt(left), k * half**2)
        by_gate = a * reach * jnp.minimum(1 / (4 * left), jnp.square(k * half))
        crossing = jnp.square(a) * (by_write + by_gate)
        return _bounds(jnp.ones_like(a), a, crossing, reach, delay=self.d_conv - 1)

    def state_axes(self) -> StateAxes:
        """Returns where the N rows are in the parameters: head after head. What a row is worth is asked by "mask", as
        in `Mamba2`.
        """
        own: dict[str, tuple[int, ...]] = {"": (1,), "_conv/kernel": (1,), "_conv/bias": (0,)}
        columns = {f"{name}{part}": axes for name in ("B", "C") for part, axes in own.items()}
        columns |= {"A": (0,), "decay_kernel": (1,)}
        return StateAxes(self.d_state, columns, drive="B", readout="C", mask="mask")

    def initial_state(self, batch: Rows, steps: int | None = None) -> State:
        """Returns an empty memory; it does not grow with `steps`."""
        del steps
        rows = self.heads * self.d_state
        past = {
            name: jnp.zeros((batch, self.d_conv - 1, width), self.dtype)
            for name, width in (("v", self._inner), ("k", rows), ("q", rows))
        }
        return past | {
            "h": jnp.zeros((batch, self.heads, self.d_state, self._inner // self.heads), jnp.float32),
            "nats": jnp.zeros((batch, rows), jnp.float32),
        }

    @property
    def _inner(self) -> int:
        return self.expand * self.d_model

    def _split_heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


def _bounds(keep: Array, a: Array, crossing: Array, reach: Array, delay: int = 0) -> Bounds:
    """Of means and variances, of |m| <= reach: (1 - K) a and ((1 - K) a)^2 of each by itself, 1 - K at most `keep`, and
    `crossing` of a mean by its variance.
    """
    top = jnp.concatenate([jnp.diag(keep * a), jnp.diag(crossing)], axis=1)
    bottom = jnp.concatenate([jnp.zeros_like(top[:, : len(a)]), jnp.diag(jnp.square(keep * a))], axis=1)
    return Bounds(
        jacobian=jnp.concatenate([top, bottom]), box=jnp.concatenate([reach, jnp.ones_like(reach)]), delay=delay
    )


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
