"""Linear maps over the last axis."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from selssm_jax.layers.parameters import Layer


def project(x: Float[Array, "*b D"], kernel: Float[Array, "D E"]) -> Float[Array, "*b E"]:
    """x W, computed in x's precision as one product of two matrices.

    Flattening the leading axes first nearly halves the time of value and gradient on a CPU (10 to 5 ms for 2048 x 128 x
    512 on 2 cores): the gradient of a batched product contracts two axes at once, for which XLA has no fast path.
    """
    flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


class Projection(Layer):
    """y = x W + b, or x W without `use_bias`; parameters "kernel" and "bias" in float32."""

    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b E"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        y = project(x.astype(self.dtype), kernel)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + bias.shape)
