"""Convolutions over time that carry their own past."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from selssm_jax.config.fields import Positive, Taps, check_arguments
from selssm_jax.layers.bounds import Box, Inputs
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import project
from selssm_jax.ops import shards
from selssm_jax.shapes import Activations, Reset, Rows


class ShortConv(Layer):
    """y_t = sum_{k < width} w_k * x_{t-k} + bias, a causal convolution of every channel by itself; without the bias if
    not `use_bias`.

    The state holds the last width - 1 inputs, (B, width - 1, D). A reset hides all inputs before it.
    """

    width: int
    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Activations, state: Float[Array, "B W D"] | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, Float[Array, "B W D"]]:
        """Convolves from the inputs in `state` on; returns (y, the last width - 1 inputs)."""
        check_arguments(self, {"width": Taps})
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=0, out_axis=1),
            (self.width, self.features),
        )
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else jnp.zeros(self.features)
        )
        state = self.initial_state(x.shape[0], x.dtype) if state is None else state
        past = Past(state.astype(x.dtype), x, reset)
        y = jnp.broadcast_to(bias.astype(x.dtype)[None, None], x.shape)
        for lag in range(self.width):
            y += kernel[lag].astype(x.dtype)[None, None] * past.read_lag(lag)
        return y, past.last()

    def after(self, inputs: Inputs) -> Box:
        """Returns what inputs of a set can become: |y_d| <= sum_k |w_kd| max|x_d| + |bias_d|, which a silu does not
        enlarge.
        """
        params = self.variables["params"]
        return Box(
            jnp.abs(params["kernel"]).sum(axis=0) * inputs.largest(self.features) + jnp.abs(params.get("bias", 0.0))
        )

    def after_map(self, inputs: Inputs, kernel: Float[Array, "D E"], bias: Float[Array, "E"]) -> "Convolved":
        """Returns what x @ kernel + bias of inputs x of a set can become."""
        params = self.variables["params"]
        box = self.after(Box(inputs.reach(kernel) + jnp.abs(bias)))
        taps = params["kernel"]
        return Convolved(
            box.radius,
            inputs,
            taps[:, None] * kernel[None],
            taps * bias[None],
            params.get("bias", jnp.zeros(self.features)),
        )

    def initial_state(self, batch: Rows, dtype: jnp.dtype = jnp.float32) -> Float[Array, "B W D"]:
        """Returns a past of zeros."""
        return jnp.zeros((batch, self.width - 1, self.features), dtype)


@dataclasses.dataclass(frozen=True)
class Convolved(Box):
    """y = bias + sum_k (x_{t-k} @ maps_k + shifts_k), x of a set and steps that were not read left out: a box, and what
    sums over it are at most.

    A box lets every component be largest at once, and forgets that they are maps of the same few inputs: the sums know
    it.
    """

    inputs: Inputs
    maps: Float[Array, "W D E"]
    shifts: Float[Array, "W E"]
    bias: Float[Array, "E"]

    def sums(self, kernel: Float[Array, "E F"]) -> tuple[Float[Array, "F"], Float[Array, "F"]]:
        """Returns the smallest and the largest y @ kernel."""
        reach = sum(self.inputs.reach(part @ kernel) for part in self.maps) + jnp.abs(self.shifts @ kernel).sum(axis=0)
        return self.bias @ kernel - reach, self.bias @ kernel + reach

    @property
    def longest(self) -> Float[Array, ""]:
        """An upper bound of |y|_2."""
        fixed = jnp.linalg.norm(self.shifts, axis=1).sum() + jnp.linalg.norm(self.bias)
        return sum((self.inputs.length(part) for part in self.maps), fixed)


class DilatedConv(Layer):
    """y_t = sum_{k < taps} x_{t - k dilation} W_k + bias, a causal convolution over all channels.

    The state holds the last (taps - 1) dilation inputs, (B, W, D). A reset hides all inputs before it.
    """

    features: int
    taps: int
    dilation: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Activations, state: Float[Array, "B W D"] | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, Float[Array, "B W D"]]:
        """Convolves from the inputs in `state` on; returns (y, the inputs that later steps still see)."""
        check_arguments(self, {"taps": Taps, "dilation": Positive})
        width = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1)), (self.taps, width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        state = jnp.zeros((x.shape[0], self.span, width), self.dtype) if state is None else state
        past = Past(state.astype(self.dtype), x.astype(self.dtype), reset)
        y = sum(project(past.read_lag(lag * self.dilation), kernel[lag]) for lag in range(self.taps))
        return y + bias.astype(self.dtype)[None, None], past.last()

    @property
    def span(self) -> int:
        """Steps between the oldest input that is seen and the newest."""
        return (self.taps - 1) * self.dilation


class Past:
    """The inputs of a call after those before it: what each step sees `lag` steps back, and what is left for the next
    call.
    """

    def __init__(self, before: Float[Array, "B W D"], x: Activations, reset: Reset | None) -> None:
        self._span, self._steps = before.shape[1], x.shape[1]
        # Number of resets up to every step; inputs of another number are of another document.
        self._document = None if reset is None else jnp.pad(jnp.cumsum(reset, axis=1), ((0, 0), (self._span, 0)))

        def after(before: Array) -> Array:
            inputs = jnp.concatenate([before, x], axis=1)
            return self._mask_documents(inputs, self._steps, self._span, slice(-1, None))

        before, self._last = shards.pass_on(after, before, span=self._span, steps=self._steps)
        self._inputs = jnp.concatenate([before, x], axis=1)

    def read_lag(self, lag: int) -> Activations:
        """Returns x_{t - lag} for every step t of the call, 0 where a reset lies between."""
        return self._mask_documents(self._inputs, self._span - lag, self._steps, slice(self._span, None))

    def last(self) -> Float[Array, "B W D"]:
        """Returns the last W inputs, 0 before the last reset."""
        return self._last

    def _mask_documents(self, inputs: Array, start: int, count: int, by: slice) -> Array:
        x = inputs[:, start : start + count]
        if self._document is None:
            return x
        return jnp.where((self._document[:, start : start + count] == self._document[:, by])[..., None], x, 0)
