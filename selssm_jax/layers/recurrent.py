"""The recurrent networks: RNN, LSTM and GRU in one loop, and the minimal GRU, whose gates read the input alone and
which is a linear scan.

What they make of their inputs does not wait for a state, so it is one product of matrices for all steps; the loop
multiplies states alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from selssm_jax.config.mixers import MixerConfig, check_layer
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.bounds import Bounds, Inputs
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import project
from selssm_jax.layers.state_axes import StateAxes
from selssm_jax.ops import linear_scan
from selssm_jax.ops.boundaries import vary_alike
from selssm_jax.shapes import Activations, Reset, Rows

STEEPEST = 0.25  # slope of a sigmoid
# LeCun's, of maps that share their input
JOINED = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=2, batch_axis=1)


class MinGRU(Layer):
    """h_t = (1 - z_t) h_{t-1} + z_t h~_t, z_t = sigmoid(W_z x_t + b_z), h~_t = W_h x_t + b_h, y_t = W_o h_t (Feng et
    al. 2024, section 3.1).

    That is the published form without its logarithms, which keep states positive. The state is h, (B, d_state). Sown as
    intermediates: "gate", z_t, and "state", h_t, (B, T, d_state).
    """

    d_model: int
    d_state: int = 128
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        check_layer(MixerConfig, self)
        self.W = self.param("W", JOINED, (self.d_model, 2, self.d_state))
        self.b = self.param("b", nn.initializers.zeros, (2, self.d_state))
        self.C = self.param("C", nn.initializers.lecun_normal(), (self.d_state, self.d_model))

    def __call__(
        self, x: Activations, state: Float[Array, "B N"] | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, Float[Array, "B N"]]:
        """Reads a sequence from `state` on, from h_0 = 0 if None, and returns (y, state after the last step); True in
        `reset` forgets.
        """
        read = _project(x.astype(self.dtype), self.W) + self.b[None, None]
        z, target = rules.detach(jax.nn.sigmoid(read[:, :, 0])), rules.tap(self, "drive", read[:, :, 1])
        h, last = linear_scan(1 - z, z * target, state, reset=reset)
        h = rules.tap(self, "read", h)
        self.sow("intermediates", "gate", z)
        self.sow("intermediates", "state", h)
        return project(h.astype(self.dtype), self.C), last

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns the range of the gates and the largest |h~| for all inputs of a set."""
        reach = _reach(inputs, self.W)
        low, high = (jax.nn.sigmoid(self.b[0] + sign * reach[0]) for sign in (-1, 1))
        return Bounds(jnp.zeros(self.d_state), low, high, drive_bound=reach[1] + jnp.abs(self.b[1]))

    def state_axes(self) -> StateAxes:
        """Returns where the components are in the parameters."""
        return StateAxes(self.d_state, {"W": (2,), "b": (1,), "C": (0,)}, drive="W", readout="C")

    def initial_state(self, batch: Rows, steps: int | None = None) -> Float[Array, "B N"]:
        """Returns h_0 = 0; it does not grow with `steps`."""
        del steps
        return jnp.zeros((batch, self.d_state), jnp.float32)


class _Cell(Layer):
    """What the three cells share: W x_t of all steps at once, then a loop over U h_{t-1}, then y_t = C h_t. States are
    float32.
    """

    d_model: int
    d_state: int = 128
    dtype: DTypeLike = jnp.float32

    gates = 1  # runs of d_state numbers that a cell computes from x_t and from h_{t-1}

    def setup(self) -> None:
        check_layer(MixerConfig, self)
        self.W = self.param("W", JOINED, (self.d_model, self.gates, self.d_state))
        self.U = self.param("U", _orthogonal, (self.d_state, self.gates, self.d_state))
        self.b = self.param("b", nn.initializers.zeros, (self.gates, self.d_state))
        self.C = self.param("C", nn.initializers.lecun_normal(), (self.d_state, self.d_model))

    def state_axes(self) -> StateAxes:
        """Returns where the components are in the parameters, c of a GRU among them; those that are left read those
        that went no more.
        """
        return StateAxes(
            self.d_state, {"W": (2,), "U": (0, 2), "b": (1,), "c": (0,), "C": (0,)}, drive="W", readout="C"
        )

    def _run(self, step: Callable[..., Any], x: Array, start: Any, reset: Array | None) -> tuple[Any, Any]:
        """What `step` gives after every step, (B, T, ...), and the last state; step(state, W x_t + b) -> (state,
        given).
        """

        def body(state: Any, now: tuple[Array, Array | None]) -> tuple[Any, Any]:
            read, forget = now
            state = state if forget is None else jax.tree.map(lambda leaf: jnp.where(forget[:, None], 0, leaf), state)
            return step(state, read)

        read = _project(x.astype(self.dtype).swapaxes(0, 1), self.W) + self.b[None, None]
        last, given = jax.lax.scan(
            body, vary_alike((start, read, self.U))[0], (read, None if reset is None else reset.T)
        )
        return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), given), last

    def _recurrent(self, h: Array) -> Array:
        """U h, (B, gates, N)."""
        return (h @ self.U.reshape(self.d_state, -1)).reshape(h.shape[0], self.gates, self.d_state)

    def _logits(self, inputs: Inputs) -> tuple[Array, Array]:
        """The least and the largest of W x + U h + b over all inputs of a set and |h_j| <= 1, (gates, N)."""
        spread = _reach(inputs, self.W) + jnp.abs(self.U).sum(axis=0)
        return self.b - spread, self.b + spread

    def _weights(self, gate: int) -> Array:
        """|U| of one gate, [i, j] what h_j is to component i."""
        return jnp.abs(self.U[:, gate]).T


class RNN(_Cell):
    """h_t = tanh(W x_t + U h_{t-1} + b), y_t = C h_t (Elman 1990), as Flax's SimpleCell.

    The state is h, (B, d_state). Sown as intermediates: "state", (B, T, d_state).
    """

    def __call__(
        self, x: Activations, state: Float[Array, "B N"] | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, Float[Array, "B N"]]:
        """Reads a sequence from `state` on, from h_0 = 0 if None, and returns (y, state after the last step); True in
        `reset` forgets.
        """

        def step(h: Array, read: Array) -> tuple[Array, Array]:
            h = rules.activate(jnp.tanh, read[:, 0] + h @ self.U[:, 0])
            return h, h

        h, last = self._run(step, x, self.initial_state(x.shape[0]) if state is None else state, reset)
        self.sow("intermediates", "state", h)
        return project(h.astype(self.dtype), self.C), last

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns |U|: the slope of tanh is at most 1."""
        del inputs
        return Bounds(jacobian=self._weights(0))

    def initial_state(self, batch: Rows, steps: int | None = None) -> Float[Array, "B N"]:
        """Returns h_0 = 0; it does not grow with `steps`."""
        del steps
        return jnp.zeros((batch, self.d_state), jnp.float32)


class GRU(_Cell):
    """h_t = z_t h_{t-1} + (1 - z_t) n_t, n_t = tanh(W_n x_t + b_n + r_t (U_n h_{t-1} + c)), y_t = C h_t (Cho et al.
    2014), as Flax's GRUCell.

    r_t and z_t are sigmoids of W x_t + U h_{t-1} + b. The state is h, (B, d_state). Sown as intermediates: "gate", 1 -
    z_t, and "state", (B, T, d_state).
    """

    gates = 3  # r, z, n

    def setup(self) -> None:
        super().setup()
        self.c = self.param("c", nn.initializers.zeros, (self.d_state,))

    def __call__(
        self, x: Activations, state: Float[Array, "B N"] | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, Float[Array, "B N"]]:
        """Reads a sequence from `state` on, from h_0 = 0 if None, and returns (y, state after the last step); True in
        `reset` forgets.
        """

        def step(h: Array, read: Array) -> tuple[Array, tuple[Array, Array]]:
            own = self._recurrent(h)
            r, z = (rules.detach(jax.nn.sigmoid(read[:, gate] + own[:, gate])) for gate in (0, 1))
            h = z * h + (1 - z) * rules.activate(jnp.tanh, read[:, 2] + r * (own[:, 2] + self.c[None]))
            return h, (h, 1 - z)

        (h, gate), last = self._run(step, x, self.initial_state(x.shape[0]) if state is None else state, reset)
        self.sow("intermediates", "gate", gate)
        self.sow("intermediates", "state", h)
        return project(h.astype(self.dtype), self.C), last

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns the largest |dh_i/dh_j| over all inputs of a set and all |h_j| <= 1, which is never left once
        entered.

        z + 2 z' |U_z| + (1 - z) (r |U_n| + r' |U_n h + c| |U_r|), each factor at its largest.
        """
        low, high = self._logits(inputs)
        carried = self._weights(2).sum(axis=1) + jnp.abs(self.c)
        new = jax.nn.sigmoid(high[0])[:, None] * self._weights(2) + STEEPEST * carried[:, None] * self._weights(0)
        kept = jnp.diag(jax.nn.sigmoid(high[1])) + 2 * STEEPEST * self._weights(1)
        return Bounds(jacobian=kept + jax.nn.sigmoid(-low[1])[:, None] * new, box=jnp.ones(self.d_state))

    def initial_state(self, batch: Rows, steps: int | None = None) -> Float[Array, "B N"]:
        """Returns h_0 = 0; it does not grow with `steps`."""
        del steps
        return jnp.zeros((batch, self.d_state), jnp.float32)


class LSTM(_Cell):
    """c_t = f_t c_{t-1} + i_t g_t, h_t = o_t tanh(c_t), y_t = C h_t (Hochreiter and Schmidhuber 1997, Gers et al.
    2000), as Flax's OptimizedLSTMCell.

    i, f, o are sigmoids and g is the tanh of W x_t + U h_{t-1} + b. The state is {"h", "c"}, (B, d_state) each; a
    component of it is both. Sown as intermediates: "gate", 1 - f_t, (B, T, d_state), and "state", c_t and h_t, (B, T, 2
    d_state).
    """

    gates = 4  # i, f, g, o

    def __call__(
        self, x: Activations, state: dict[str, Array] | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, dict[str, Array]]:
        """Reads a sequence from `state` on, from zeros if None, and returns (y, state after the last step); True in
        `reset` forgets.
        """

        def step(state: dict[str, Array], read: Array) -> tuple[dict[str, Array], tuple[Array, Array, Array]]:
            z = read + self._recurrent(state["h"])
            i, f, o = (rules.detach(jax.nn.sigmoid(z[:, gate])) for gate in (0, 1, 3))
            c = f * state["c"] + i * rules.activate(jnp.tanh, z[:, 2])
            h = o * rules.activate(jnp.tanh, c)
            return {"h": h, "c": c}, (h, c, 1 - f)

        (h, c, gate), last = self._run(step, x, self.initial_state(x.shape[0]) if state is None else state, reset)
        self.sow("intermediates", "gate", gate)
        self.sow("intermediates", "state", jnp.concatenate([c, h], axis=-1))
        return project(h.astype(self.dtype), self.C), last

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns the largest derivatives of (c, h) by (c, h) over all inputs of a set, all |h_j| <= 1 and |c_i| <= i /
        (1 - f), which are never left.
        """
        high = self._logits(inputs)[1]
        i, f, _, o = jax.nn.sigmoid(high)
        reach = i / jax.nn.sigmoid(-high[1])  # 1 - f would have lost its digits near f = 1
        if not bool(jnp.isfinite(reach).all()):
            return Bounds(
                unknown="inputs have no bound, so neither have the cells: a forget gate can be as near to 1 as it likes"
            )
        by_h = STEEPEST * (reach[:, None] * self._weights(1) + self._weights(0)) + i[:, None] * self._weights(2)
        cells = jnp.concatenate([jnp.diag(f), by_h], axis=1)
        hidden = o[:, None] * cells + jnp.concatenate([jnp.zeros_like(by_h), STEEPEST * self._weights(3)], axis=1)
        return Bounds(jacobian=jnp.concatenate([cells, hidden]), box=jnp.concatenate([reach, jnp.ones_like(reach)]))

    def initial_state(self, batch: Rows, steps: int | None = None) -> dict[str, Array]:
        """Returns zeros; they do not grow with `steps`."""
        del steps
        return {"h": jnp.zeros((batch, self.d_state), jnp.float32), "c": jnp.zeros((batch, self.d_state), jnp.float32)}


def _project(x: Array, W: Array) -> Array:
    """W x in float32, (..., gates, N)."""
    return project(x, W.reshape(len(W), -1)).astype(jnp.float32).reshape(*x.shape[:2], *W.shape[1:])


def _reach(inputs: Inputs, W: Array) -> Array:
    """The largest |W x| over a set, (gates, N)."""
    return inputs.reach(W.reshape(len(W), -1)).reshape(W.shape[1:])


def _orthogonal(key: PRNGKeyArray, shape: tuple[int, int, int]) -> Float[Array, "N G M"]:
    """One orthogonal matrix a gate."""
    one = nn.initializers.orthogonal()
    return jnp.stack([one(part, (shape[0], shape[2]), jnp.float32) for part in jax.random.split(key, shape[1])], axis=1)
