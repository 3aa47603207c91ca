"""Convolutions over time that carry their own past."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from selssm_jax.layers.bounds import Box, Inputs
from selssm_jax.shapes import Activations, Reset


class ShortConv(nn.Module):
    """y_t = sum_{k < width} w_k * x_{t-k} + bias, a causal convolution of every channel by itself.

    The state holds the last width - 1 inputs, (B, width - 1, D). A reset hides all inputs before it.
    """

    width: int
    features: int

    @nn.compact
    def __call__(self, x: Activations, state: Float[Array, "B W D"] | None = None, *, reset: Reset | None = None) -> tuple[Activations, Float[Array, "B W D"]]:
        """Convolves from the inputs in `state` on; returns (y, the last width - 1 inputs)."""
        kernel = self.param("kernel", nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=0, out_axis=1), (self.width, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        state = self.initial_state(x.shape[0], x.dtype) if state is None else state
        past = jnp.concatenate([state.astype(x.dtype), x], axis=1)
        document = self._documents(x, reset)
        y = jnp.broadcast_to(bias.astype(x.dtype)[None, None], x.shape)
        for lag in range(self.width):
            y += kernel[lag].astype(x.dtype)[None, None] * self._lagged(past, document, lag, x.shape[1])
        return y, self._keep(past, document)

    def after(self, inputs: Inputs) -> Box:
        """Returns what inputs of a set can become: |y_d| <= sum_k |w_kd| max|x_d| + |bias_d|, which a silu does not enlarge."""
        params = self.variables["params"]
        return Box(jnp.abs(params["kernel"]).sum(axis=0) * inputs.largest(self.features) + jnp.abs(params["bias"]))

    def initial_state(self, batch: int, dtype: jnp.dtype = jnp.float32) -> Float[Array, "B W D"]:
        """Returns a past of zeros."""
        return jnp.zeros((batch, self.width - 1, self.features), dtype)

    def _documents(self, x: Array, reset: Array | None) -> Array | None:
        """Number of resets up to every step of the past and of x; None where there is none."""
        if reset is None:
            return None
        return jnp.pad(jnp.cumsum(reset, axis=1), ((0, 0), (self.width - 1, 0)))

    def _lagged(self, past: Array, document: Array | None, lag: int, steps: int) -> Array:
        start = self.width - 1 - lag
        x = past[:, start : start + steps]
        if document is None:
            return x
        same = document[:, start : start + steps] == document[:, self.width - 1 :]
        return jnp.where(same[..., None], x, 0)

    def _keep(self, past: Array, document: Array | None) -> Array:
        last = past[:, past.shape[1] - (self.width - 1) :]
        if document is None:
            return last
        same = document[:, document.shape[1] - (self.width - 1) :] == document[:, -1:]
        return jnp.where(same[..., None], last, 0)
