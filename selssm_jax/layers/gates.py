"""Gates: which components of the state a step updates (theory, section 2).

A gate maps a pre-activation z = W_x x + b to [0, 1]. `Gate` holds the weights; the functions below hold the maths.
A gate of 0 keeps a component, a gate of 1 updates it fully. Gates that also read h_{t-1} are not a linear recurrence
and have their own solver.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from selssm_jax.layers.projection import project

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


def hard_concrete(z: Float[Array, "..."], key: PRNGKeyArray | None = None) -> Float[Array, "..."]:
    """g = clip(s (HIGH - LOW) + LOW, 0, 1) with s a binary concrete variable of logit z (Louizos et al. 2018, eq. 10-11).

    With a key s is drawn: s = sigmoid((logit u + z) / TEMPERATURE), u uniform. Without one s = sigmoid(z), the
    deterministic gate of evaluation. Exactly 0 and exactly 1 have positive probability.
    """
    if key is None:
        s = jax.nn.sigmoid(z)
    else:
        tiny = jnp.finfo(z.dtype).eps
        u = jax.random.uniform(key, z.shape, z.dtype, tiny, 1 - tiny)
        s = jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + z) / TEMPERATURE)
    return jnp.clip(s * (HIGH - LOW) + LOW, 0, 1)


def expected_open(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """P(g > 0) of a hard concrete gate, the differentiable L0 (Louizos et al. 2018, eq. 12)."""
    return jax.nn.sigmoid(z - TEMPERATURE * math.log(-LOW / HIGH))


SMOOTH: dict[str, Callable[[Array], Array]] = {
    "sigmoid": sigmoid,
    "tanh": rescaled_tanh,
    "hard_sigmoid": hard_sigmoid,
    "hard_concrete": hard_concrete,
    "constant": sigmoid,
}
INVERSE: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.scipy.special.logit,
    "tanh": lambda g: jnp.arctanh(2 * g - 1),
    "hard_sigmoid": lambda g: 6 * (g - 0.5),
    "hard_concrete": lambda g: jax.scipy.special.logit((g - LOW) / (HIGH - LOW)),
    "constant": jax.scipy.special.logit,
}


def log_uniform_bias(kind: str, low: float, high: float) -> nn.initializers.Initializer:
    """Returns an initialiser whose bias makes gates log-uniform in [low, high] at z = b: memory over all time scales."""

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        exponent = jax.random.uniform(key, shape, jnp.float32, math.log(low), math.log(high))
        return INVERSE[kind](jnp.exp(exponent)).astype(dtype)

    return init


class Gate(nn.Module):
    """g_t = floor + (1 - floor) sigma(W_x x_t + b), one value in [0, 1] a component (theory, section 2).

    Attributes:
      features: number of gates, the n of the state.
      kind: "sigmoid", "tanh" (rescaled), "hard_sigmoid", "hard_concrete", or "constant": sigma(b), the same at every step,
        which makes the layer time-invariant.
      floor: smallest value of a gate.
      open_range: gates start log-uniform in this range.

    `hard_concrete` draws its gates where a "gates" rng is given (training) and is deterministic where none is. It sows
    the expected share of open gates as "penalty_l0".
    """

    features: int
    kind: str = "sigmoid"
    floor: float = 0.0
    open_range: tuple[float, float] = (0.01, 0.9)

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T N"]:
        if self.kind not in SMOOTH:
            raise ValueError(f"gate kind {self.kind!r} is unknown: use one of {', '.join(SMOOTH)}")
        bias = self.param("bias", log_uniform_bias(self.kind, *self.open_range), (self.features,))
        return self.floor + (1 - self.floor) * self._open(self._logits(x, bias))

    def _logits(self, x: Array, bias: Array) -> Array:
        if self.kind == "constant":
            return jnp.broadcast_to(bias, (*x.shape[:2], self.features))
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        return project(x, kernel).astype(jnp.float32) + bias[None, None]

    def _open(self, z: Array) -> Array:
        if self.kind != "hard_concrete":
            return SMOOTH[self.kind](z)
        self.sow("intermediates", "penalty_l0", expected_open(z).mean())
        return hard_concrete(z, self.make_rng("gates") if self.has_rng("gates") else None)
