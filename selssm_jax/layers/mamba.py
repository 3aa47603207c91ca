"""Mamba (S6) and Mamba-2: state space models whose step sizes, input maps and readouts are functions of the input.

Their step sizes are their gates: with a < 0 the pole and dt > 0 the step size, h_t = exp(dt_t a) h_{t-1} + dt_t B_t x_t
is the retained update of gate g_t = 1 - exp(dt_t a) and transition 0, h_t = (1 - g_t) h_{t-1} + g_t u_t with u_t = dt_t
B_t x_t / g_t (theory, section 2).
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from selssm_jax.config.mixers import Mamba2Config, MambaConfig, check_layer
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.bounds import Ball, Bounds, Box, Inputs
from selssm_jax.layers.convolution import Convolved, ShortConv
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import project
from selssm_jax.layers.state_axes import StateAxes
from selssm_jax.ops import selective_scan, ssd
from selssm_jax.ops.extremes import largest, smallest
from selssm_jax.shapes import Activations, Reset, Rows

STEP_SIZES = (1e-3, 1e-1)  # between which they start, log-uniformly
SMALLEST = 1e-4  # of a step size at the start
LEAST_SILU = -0.2784645428  # min of x sigmoid(x), rounded down
POLES = (1.0, 16.0)  # between which those of Mamba-2 start, uniformly

State = dict[str, Array]


def step_size_bias(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Float[Array, "..."]:
    """Returns b with softplus(b) log-uniform in `STEP_SIZES`: softplus^{-1}(dt) = dt + log(1 - exp(-dt))."""
    low, high = map(math.log, STEP_SIZES)
    dt = jnp.maximum(jnp.exp(jax.random.uniform(key, shape, jnp.float32, low, high)), SMALLEST)
    return (dt + jnp.log(-jnp.expm1(-dt))).astype(dtype)


def log_counts(key: PRNGKeyArray, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Float[Array, "D N"]:
    """Returns log n for the states n = 1 ... N of every channel: the real part of S4D's poles (Gu et al. 2022). `key`
    is unused.
    """
    del key
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype))[None], shape)


class Mamba(Layer):
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t + D x_t, N states for each of E channels (Gu and Dao
    2023, section 3.4).

    x_t and z_t, E = expand * d_model wide each, are linear in the input; x_t then goes through a causal convolution of
    width d_conv and a silu. dt_t = softplus(W_up W_down x_t + b), (E,), B_t = W_B x_t and C_t = W_C x_t, (N,), and A =
    -exp(A_log). The output is W_out (y_t * silu(z_t)).

    Attributes:
      d_model: width of inputs and outputs. d_state: N. expand: E / d_model.
      dt_rank: rank of the map to step sizes; 0: d_model / 16, rounded up. d_conv: width of the convolution, without its
        bias if not conv_bias.
      projection_bias: whether the maps in and out have biases.
      method: how the recurrence is run; see `selective_scan`.
      dtype: of activations. Step sizes, the recurrence and its state are float32 whatever it is.

    The state is {"conv": the last d_conv - 1 inputs of the convolution, "h": (B, E, N)}. Its components are the N
    states, in all channels at once. Sown as intermediates: "gate", the mean over channels of 1 - exp(dt_t A), (B, T,
    N). States of all steps never exist.
    """

    d_model: int
    d_state: int = 16
    expand: int = MambaConfig.expand
    dt_rank: int = MambaConfig.dt_rank
    d_conv: int = MambaConfig.d_conv
    method: str = MambaConfig.method
    dtype: DTypeLike = jnp.float32
    projection_bias: bool = MambaConfig.projection_bias
    conv_bias: bool = MambaConfig.conv_bias

    def setup(self) -> None:
        check_layer(MambaConfig, self)
        normal = nn.initializers.lecun_normal()
        inner, rank = self._inner, self.dt_rank or math.ceil(self.d_model / 16)
        self.inward = self.param("in", normal, (self.d_model, 2 * inner))
        self.conv = ShortConv(self.d_conv, inner, self.conv_bias)
        self.down = self.param("down", normal, (inner, rank))
        self.up = self.param("up", nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), (rank, inner))
        self.dt_bias = self.param("dt_bias", step_size_bias, (inner,))
        self.A_log = self.param("A_log", log_counts, (inner, self.d_state))
        self.B = self.param("B", normal, (inner, self.d_state))
        self.C = self.param("C", normal, (inner, self.d_state))
        self.D = self.param("D", nn.initializers.ones, (inner,))
        self.outward = self.param("out", normal, (inner, self.d_model))
        self.inward_bias, self.outward_bias = _biases(self, inner=2 * inner, out=self.d_model)

    def __call__(
        self, x: Activations, state: State | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, State]:
        """Reads a sequence from `state` on, from an empty memory if None, and returns (y, state after the last step);
        True in `reset` forgets.
        """
        past, h = (None, None) if state is None else (state["conv"], state["h"])
        x, z = jnp.split(_add_bias(project(x.astype(self.dtype), self.inward), self.inward_bias), 2, axis=-1)
        x, past = self.conv(x, past, reset=reset)
        x = rules.activate(jax.nn.silu, x)
        dt = jax.nn.softplus(
            project(self._scale_projections(project(x, self.down)), self.up).astype(jnp.float32)
            + self.dt_bias[None, None]
        )
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "gate", -jnp.expm1(-dt[..., None] * jnp.exp(self.A_log)[None, None]).mean(axis=2))
        A = -jnp.exp(self.A_log)
        B, C = (self._scale_projections(project(x, kernel)) for kernel in (self.B, self.C))
        dt, B, C = rules.detach((dt, B, C))
        y, h = selective_scan(
            rules.tap(self, "drive", x),
            dt,
            A,
            B,
            C,
            rules.tap(self, "skip", self.D),
            h,
            reset=reset,
            method=self.method,
        )
        y = rules.multiply(rules.tap(self, "read", y), rules.activate(jax.nn.silu, z))
        return _add_bias(project(y, self.outward), self.outward_bias), {"conv": past, "h": h}

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns the range of the gates and the largest drive of each of the N states over all channels, for all
        inputs of a set.
        """
        inner = self._inner
        x = self.conv.after_map(
            inputs, self.inward[:, :inner], jnp.zeros(inner) if self.inward_bias is None else self.inward_bias[:inner]
        )
        low, high = _step_sizes(self.dt_bias, *self._logits_of_steps(x))
        rate = jnp.exp(self.A_log)
        drive = _product(x.largest(inner)[:, None], self._reach_of_maps(x)[None], _weight(high[:, None], rate))
        least, most = smallest(_gate(low[:, None], rate), 0), largest(_gate(high[:, None], rate), 0)
        return Bounds(
            jnp.zeros(self.d_state), least, most, drive_bound=largest(drive, 0), delay=self.d_conv - 1, averaged=True
        )

    def state_axes(self) -> StateAxes:
        """Returns where the N states are in the parameters."""
        return StateAxes(self.d_state, {"A_log": (1,), "B": (1,), "C": (1,)}, drive="B", readout="C")

    def initial_state(self, batch: Rows, steps: int | None = None) -> State:
        """Returns an empty memory; it does not grow with `steps`."""
        del steps
        return {
            "conv": jnp.zeros((batch, self.d_conv - 1, self._inner), self.dtype),
            "h": jnp.zeros((batch, self._inner, self.d_state), jnp.float32),
        }

    def _scale_projections(self, value: Array) -> Array:
        """What is made of W_down x_t, B_t and C_t before they are used: nothing."""
        return value

    def _logits_of_steps(self, x: Convolved) -> tuple[Array, Array]:
        """The smallest and the largest W_up W_down x."""
        kernel = self.down @ self.up
        ends = zip(_logits_after_silu(x, kernel), _logits_after_parted_silu(x, kernel), strict=True)
        return jnp.maximum(*next(ends)), jnp.minimum(*next(ends))

    def _reach_of_maps(self, x: Box) -> Array:
        """The largest |B_t|, one a component."""
        return x.reach(self.B)

    @property
    def _inner(self) -> int:
        return self.expand * self.d_model


class FalconMamba(Mamba):
    """Mamba whose W_down x_t, B_t and C_t are divided by their root mean squares (Zuo et al. 2024, Falcon Mamba,
    section 2).

    Attributes:
      inner_norm_epsilon: added to these mean squares under their roots.

    The norms tie the N components to one another, so none can be removed by itself: it names no state axes.
    """

    inner_norm_epsilon: float = 1e-6

    state_axes = None  # type: ignore[assignment]

    def _scale_projections(self, value: Array) -> Array:
        wide = value.astype(jnp.float32)
        return (wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + self.inner_norm_epsilon)).astype(
            value.dtype
        )

    def _logits_of_steps(self, x: Convolved) -> tuple[Array, Array]:
        del x
        rank = len(self.up)
        reach = Ball(jnp.ones(rank), math.sqrt(rank)).reach(self.up)
        return -reach, reach

    def _reach_of_maps(self, x: Box) -> Array:
        del x
        return jnp.full(self.d_state, math.sqrt(self.d_state))


class Mamba2(Layer):
    """h_t = exp(dt_t a) h_{t-1} + dt_t x_t B_t', y_t = h_t C_t + D x_t in each of H heads, h of P x N (Dao and Gu 2024,
    section 7).

    x_t, of H heads of P = expand * d_model / H, B_t and C_t, of G groups of N, are linear in the input and go through a
    causal convolution of width d_conv and a silu; head i reads group i // (H / G). dt_t = softplus(W_dt u_t + b), one
    number a head, is linear in the input u_t itself, as z_t is, and a = -exp(A_log). The output is W_out RMSNorm(y_t *
    silu(z_t)), normed in each group of heads by itself.

    Attributes:
      d_model: width of inputs and outputs. d_state: N. heads, groups: H and G. expand: H P / d_model. d_conv: width of
        the convolutions.
      norm_epsilon: added to the mean square under its root.
      projection_bias: whether the maps in and out have biases. conv_bias: whether the convolutions have.
      dt_limit: the smallest and the largest step size, to which others are clipped; empty: any.
      dtype: of activations. Step sizes, the recurrence and its state are float32 whatever it is.

    The state is {"x", "B", "C": the last d_conv - 1 inputs of the convolutions, "h": (B, H, P, N)}. Its components are
    the N states, in all heads at once. Sown as intermediates: "gate", 1 - exp(dt_t a), one a head, (B, T, H). States of
    all steps never exist.
    """

    d_model: int
    d_state: int = 128
    heads: int = Mamba2Config.heads
    groups: int = Mamba2Config.groups
    expand: int = Mamba2Config.expand
    d_conv: int = Mamba2Config.d_conv
    norm_epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    projection_bias: bool = Mamba2Config.projection_bias
    conv_bias: bool = Mamba2Config.conv_bias
    dt_limit: tuple[float, ...] = Mamba2Config.dt_limit

    def setup(self) -> None:
        check_layer(Mamba2Config, self)
        normal = nn.initializers.lecun_normal()
        inner, mapped = self._inner, self.groups * self.d_state
        self.inward = self.param("in", normal, (self.d_model, 2 * inner))
        self.B = self.param("B", normal, (self.d_model, mapped))
        self.C = self.param("C", normal, (self.d_model, mapped))
        self.rate = self.param("rate", normal, (self.d_model, self.heads))
        self.x_conv, self.B_conv, self.C_conv = (
            ShortConv(self.d_conv, width, self.conv_bias) for width in (inner, mapped, mapped)
        )
        self.dt_bias = self.param("dt_bias", step_size_bias, (self.heads,))
        self.A_log = self.param("A_log", _log_of_uniform_poles, (self.heads,))
        self.D = self.param("D", nn.initializers.ones, (self.heads,))
        self.norm = rules.RMSNorm(self.norm_epsilon, dtype=self.dtype, reduction_axes=-1, feature_axes=(-2, -1))
        self.outward = self.param("out", normal, (inner, self.d_model))
        sizes = {"inner": 2 * inner, "B": mapped, "C": mapped, "rate": self.heads, "out": self.d_model}
        self.inward_bias, self.B_bias, self.C_bias, self.rate_bias, self.outward_bias = _biases(self, **sizes)

    def __call__(
        self, x: Activations, state: State | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, State]:
        """Reads a sequence from `state` on, from an empty memory if None, and returns (y, state after the last step);
        True in `reset` forgets.
        """
        u, past = x.astype(self.dtype), state or {}
        z, x = jnp.split(_add_bias(project(u, self.inward), self.inward_bias), 2, axis=-1)
        x, past_x = self.x_conv(x, past.get("x"), reset=reset)
        B, past_B = self.B_conv(_add_bias(project(u, self.B), self.B_bias), past.get("B"), reset=reset)
        C, past_C = self.C_conv(_add_bias(project(u, self.C), self.C_bias), past.get("C"), reset=reset)
        dt = self._limit_step(
            jax.nn.softplus(
                project(u, self.rate).astype(jnp.float32) + _add_bias(self.dt_bias, self.rate_bias)[None, None]
            )
        )
        self.sow("intermediates", "gate", -jnp.expm1(-dt * jnp.exp(self.A_log)[None, None]))
        heads, B, C = (
            self._split_heads(rules.activate(jax.nn.silu, value), count)
            for value, count in ((x, self.heads), (B, self.groups), (C, self.groups))
        )
        if self.has_variable("params", "mask"):
            C *= self.get_variable("params", "mask").astype(C.dtype)[None, None, None]
        dt, B, C = rules.detach((dt, B, C))
        heads, D = rules.tap(self, "drive", heads), rules.tap(self, "skip", self.D)
        y, h = ssd(heads, dt, -jnp.exp(self.A_log), B, C, D, past.get("h"), reset=reset)
        y = rules.multiply(rules.tap(self, "read", y).reshape(z.shape), rules.activate(jax.nn.silu, z))
        y = self.norm(self._split_heads(y, self.groups))
        return _add_bias(project(y.reshape(z.shape), self.outward), self.outward_bias), {
            "x": past_x,
            "B": past_B,
            "C": past_C,
            "h": h,
        }

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns the range of the gates, one a head, and the largest drive in a head, for all inputs of a set: H
        components that stand for all.
        """
        read = _add_bias(inputs.reach(self.inward), self.inward_bias, size=True)[self._inner :]
        x = self.x_conv.after(Box(read)).largest(self._inner)
        B = self.B_conv.after(Box(_add_bias(inputs.reach(self.B), self.B_bias, size=True))).largest(
            self.groups * self.d_state
        )
        x, B = largest(x.reshape(self.heads, -1), 1), largest(B.reshape(self.groups, -1), 1)
        reach = inputs.reach(self.rate)
        low, high = (
            self._limit_step(end) for end in _step_sizes(_add_bias(self.dt_bias, self.rate_bias), -reach, reach)
        )
        rate = jnp.exp(self.A_log)
        drive = _product(x, jnp.repeat(B, self.heads // self.groups), _weight(high, rate))
        return Bounds(
            jnp.zeros(self.heads), _gate(low, rate), _gate(high, rate), drive_bound=drive, delay=self.d_conv - 1
        )

    def state_axes(self) -> StateAxes:
        """Returns where the N states are in the parameters: in those of B and C, group after group.

        C goes through a silu before it reads, so what a component is worth is asked by "mask", which multiplies it
        after that.
        """
        own: dict[str, tuple[int, ...]] = {"": (1,), "_bias": (0,), "_conv/kernel": (1,), "_conv/bias": (0,)}
        columns = {f"{name}{part}": axes for name in ("B", "C") for part, axes in own.items()}
        return StateAxes(self.d_state, columns, drive="B", readout="C", mask="mask")

    def initial_state(self, batch: Rows, steps: int | None = None) -> State:
        """Returns an empty memory; it does not grow with `steps`."""
        del steps
        mapped = self.groups * self.d_state
        past = {
            name: jnp.zeros((batch, self.d_conv - 1, width), self.dtype)
            for name, width in (("x", self._inner), ("B", mapped), ("C", mapped))
        }
        return past | {"h": jnp.zeros((batch, self.heads, self._inner // self.heads, self.d_state), jnp.float32)}

    @property
    def _inner(self) -> int:
        return self.expand * self.d_model

    def _limit_step(self, dt: Array) -> Array:
        return jnp.clip(dt, *self.dt_limit) if self.dt_limit else dt

    def _split_heads(self, x: Array, count: int) -> Array:
        return x.reshape(*x.shape[:2], count, -1)


def _biases(layer: Mamba | Mamba2, **sizes: int) -> list[Array | None]:
    """The biases of a mixer's maps, parameters "in_bias" and so on; None where it has none."""
    names = {name: "in_bias" if name == "inner" else f"{name}_bias" for name in sizes}
    return [
        layer.param(names[name], nn.initializers.zeros, (size,)) if layer.projection_bias else None
        for name, size in sizes.items()
    ]


def _add_bias(value: Array, bias: Array | None, *, size: bool = False) -> Array:
    """value + bias along the last axis; of a bound on |value|, that on |value + bias|, if `size`."""
    if bias is None:
        return value
    return value + (jnp.abs(bias) if size else bias).astype(value.dtype).reshape((1,) * (value.ndim - 1) + bias.shape)


def _log_of_uniform_poles(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    return jnp.log(jax.random.uniform(key, shape, dtype, *POLES))


def _logits_after_silu(x: Inputs, kernel: Array) -> tuple[Array, Array]:
    """The smallest and the largest silu(x) @ kernel: a silu of any x is at most |x|, and never below `LEAST_SILU`."""
    most = x.largest(len(kernel))
    above, below = Box(most), Box(jnp.minimum(most, -LEAST_SILU))
    up, down = jnp.maximum(kernel, 0), jnp.maximum(-kernel, 0)
    return -(above.reach(down) + below.reach(up)), above.reach(up) + below.reach(down)


def _logits_after_parted_silu(x: Convolved, kernel: Array) -> tuple[Array, Array]:
    """As above, by silu(x) = x / 2 + e(x) with e(x) = x tanh(x / 2) / 2, from 0 to |x| / 2.

    The first part is linear in the input, and by Cauchy and Schwarz a sum of the second is at most |x|_2 |kernel|_2 /
    2.
    """
    most = x.largest(len(kernel))
    even, longest = Box(most * jnp.tanh(most / 2) / 2), x.longest

    def above(kernel: Array) -> Array:
        length = jnp.linalg.norm(kernel, axis=0)
        return jnp.minimum(even.reach(kernel), jnp.where((kernel == 0).all(axis=0), 0, longest * length / 2))

    low, high = x.sums(kernel)
    return low / 2 - above(jnp.maximum(-kernel, 0)), high / 2 + above(jnp.maximum(kernel, 0))


def _step_sizes(bias: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """The smallest and the largest softplus(z + bias), low <= z <= high."""
    return jax.nn.softplus(bias + low), jax.nn.softplus(bias + high)


def _gate(dt: Array, rate: Array) -> Array:
    """1 - exp(-dt rate); rate is -a."""
    return -jnp.expm1(-dt * rate)


def _weight(dt: Array, rate: Array) -> Array:
    """dt / gate, what a drive weighs, which grows with dt: from 1 / rate at 0 on."""
    gate = _gate(dt, rate)
    return jnp.where(gate > 0, dt / jnp.where(gate > 0, gate, 1), 1 / rate)


def _product(*factors: Array) -> Array:
    """The product of sizes; what is 0 stays 0 whatever it meets, infinity too."""
    none = functools.reduce(jnp.logical_or, (factor == 0 for factor in factors))
    return jnp.where(none, 0, math.prod(factors))
