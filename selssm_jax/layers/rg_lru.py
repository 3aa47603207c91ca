"""The recurrent block of Griffin, whose RG-LRU decays by an amount that the input decides."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from selssm_jax.config.mixers import RGLRUConfig, check_layer
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.bounds import Bounds, Box, Inputs
from selssm_jax.layers.convolution import ShortConv
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import Projection
from selssm_jax.layers.state_axes import StateAxes
from selssm_jax.ops import linear_scan
from selssm_jax.shapes import Activations, Reset, Rows

SHARPNESS = 8.0  # c of a = exp(-c softplus(Lambda) r)
MODULI = (0.9, 0.999)  # of a at r = 1, at the start
LEAST_VARIANCE = 1e-8  # 1 - a^2 is kept above it: the slope of a root has no bound at 0

State = dict[str, Array]


class RGLRU(Layer):
    """h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t), a_t = exp(-8 softplus(Lambda) r_t) (De et al. 2024, Griffin,
    section 2.4).

    r_t = sigmoid(W_r x_t + b_r) and i_t = sigmoid(W_i x_t + b_i), W_r and W_i of `blocks` blocks on the diagonal. x_t
    is the block's input, mapped to d_state numbers and convolved over d_conv steps; the output is W_o (h_t * gelu(W_g
    u_t)). Lambda starts with a_t uniform in area between `MODULI` at r = 1. The first step is weighed as all others
    are, as the paper writes it; RecurrentGemma's code weighs it by 1 in place of the root.

    Attributes:
      d_state: width of the recurrence. blocks: those on the diagonal of the gates' maps. d_conv: width of the
        convolution.
      dtype: of activations. Gates, the recurrence and its state are float32 whatever it is.

    The state is {"conv": the last d_conv - 1 inputs of the convolution, "h": (B, d_state)}. Sown as intermediates:
    "gate", 1 - a_t, and "state", h_t, (B, T, d_state). Gates of one block read all inputs of that block, and blocks
    have one width: what can be removed is a component of every block at once.
    """

    d_model: int
    d_state: int = 128
    blocks: int = RGLRUConfig.blocks
    d_conv: int = RGLRUConfig.d_conv
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        check_layer(RGLRUConfig, self)
        width = self.d_state // self.blocks
        lecun = nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
        self.inward, self.branch, self.outward = (
            Projection(size, dtype=self.dtype) for size in (self.d_state, self.d_state, self.d_model)
        )
        self.conv = ShortConv(self.d_conv, self.d_state)
        self.W = self.param(
            "W",
            lambda key, shape: jnp.stack([lecun(k, shape[1:]) for k in jax.random.split(key)]),
            (2, self.blocks, width, width),
        )
        self.b = self.param("b", nn.initializers.zeros, (2, self.d_state))
        self.Lambda = self.param("Lambda", _decays, (self.d_state,))

    def __call__(
        self, x: Activations, state: State | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, State]:
        """Reads a sequence from `state` on, from an empty memory if None, and returns (y, state after the last step);
        True in `reset` forgets.
        """
        before, h = (None, None) if state is None else (state["conv"], state["h"])
        u, before = self.conv(self.inward(x), before, reset=reset)
        wide = u.astype(jnp.float32)
        parted = wide.reshape(*u.shape[:2], self.blocks, -1)
        r, i = rules.detach(
            jax.nn.sigmoid(jnp.einsum("bthp,ghpq->gbthq", parted, self.W).reshape(2, *u.shape) + self.b[:, None, None])
        )
        log_a = self._rate()[None, None] * r
        drive = rules.tap(self, "drive", wide)
        states, h = linear_scan(jnp.exp(log_a), _root(log_a) * i * drive, h, reset=reset)
        states = rules.tap(self, "read", states)
        self.sow("intermediates", "gate", -jnp.expm1(log_a))
        self.sow("intermediates", "state", states)
        y = rules.multiply(states.astype(self.dtype), rules.activate(nn.gelu, self.branch(x)))
        return self.outward(y), {"conv": before, "h": h}

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns the range of the gates 1 - a_t and the largest drive sqrt(1 - a_t^2) i_t x_t / (1 - a_t), for all
        inputs of a set.
        """
        params = self.inward.variables["params"]
        u = self.conv.after(Box(inputs.reach(params["kernel"]) + jnp.abs(params["bias"])))
        largest = u.largest(self.d_state)
        # weights of 0 read no infinity
        read = jnp.where(self.W == 0, 0, jnp.abs(self.W) * largest.reshape(1, self.blocks, -1, 1))
        spread = read.sum(axis=2).reshape(2, -1)
        low, high = (self._rate() * jax.nn.sigmoid(self.b[0] + sign * spread[0]) for sign in (-1, 1))
        drive = jax.nn.sigmoid(self.b[1] + spread[1]) * largest * _root(low) / -jnp.expm1(low)
        return Bounds(
            jnp.zeros(self.d_state), -jnp.expm1(low), -jnp.expm1(high), drive_bound=drive, delay=self.d_conv - 1
        )

    def state_axes(self) -> StateAxes:
        """Returns where the d_state / heads components are: number k of every block, written and read by `heads`
        numbers each.
        """
        own = {
            f"{name}/{part}": (axis,)
            for name in ("inward", "branch", "conv")
            for part, axis in (("kernel", 1), ("bias", 0))
        }
        own |= {"b": (1,), "Lambda": (0,), "outward/kernel": (0,)}
        return StateAxes(
            self.d_state // self.blocks,
            own | {"W": (2, 3)},
            drive="inward/kernel",
            readout="outward/kernel",
            size=self.blocks,
        )

    def initial_state(self, batch: Rows, steps: int | None = None) -> State:
        """Returns an empty memory; it does not grow with `steps`."""
        del steps
        return {
            "conv": jnp.zeros((batch, self.d_conv - 1, self.d_state), self.dtype),
            "h": jnp.zeros((batch, self.d_state), jnp.float32),
        }

    def _rate(self) -> Array:
        """log a_t at r = 1."""
        return -SHARPNESS * jax.nn.softplus(self.Lambda)


def _root(log_a: Array) -> Array:
    """sqrt(1 - a^2)."""
    return jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a), LEAST_VARIANCE))


def _decays(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "N"]:
    """Lambda with a^2 uniform between the squares of `MODULI` at r = 1."""
    low, high = (modulus**2 for modulus in MODULI)
    log_a = jnp.log(jax.random.uniform(key, shape, minval=low, maxval=high)) / 2
    return jnp.log(jnp.expm1(-log_a / SHARPNESS))
