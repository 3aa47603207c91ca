"""Gates: which components of the state a step updates (theory, section 2).

A gate maps a pre-activation z = W_x x + W_h h + b to [0, 1]. `Gate` holds the weights; the functions below hold the maths.
A gate of 0 keeps a component, a gate of 1 updates it fully. With W_h the recurrence is no longer linear: `ops.newton_scan`
solves it.
"""

import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from selssm_jax.layers.bounds import Inputs
from selssm_jax.layers.projection import project
from selssm_jax.ops.gating import carried, row_sums

READS = ("none", "elementwise", "dense")
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
    """g = clip(s (HIGH - LOW) + LOW, 0, 1) with s a binary concrete variable of logit z (Louizos et al. 2018, eq. 10-11).

    With noise, drawn by `logistic`, s is random: s = sigmoid((noise + z) / TEMPERATURE). Without, s = sigmoid(z), the
    deterministic gate of evaluation. Exactly 0 and exactly 1 have positive probability.
    """
    s = jax.nn.sigmoid(z) if noise is None else jax.nn.sigmoid((noise + z) / TEMPERATURE)
    return jnp.clip(s * (HIGH - LOW) + LOW, 0, 1)


def logistic(key: PRNGKeyArray, like: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns logit u, u uniform: the noise of `hard_concrete`, of the shape and type of `like`."""
    tiny = jnp.finfo(like.dtype).eps
    u = jax.random.uniform(key, like.shape, like.dtype, tiny, 1 - tiny)
    return jnp.log(u) - jnp.log1p(-u)


def capped(W: Float[Array, "N ..."], cap: Float[Array, "N"]) -> Float[Array, "N ..."]:
    """Returns W with every row scaled by 1 / (1 + r / cap), r = sum_j |w_ij|, so that the row's new sum is below its cap.

    Smooth, the identity near 0, and never at rest: a weight that grows keeps a gradient.
    """
    scale = 1 / (1 + row_sums(W) / cap)
    return W * (scale if W.ndim == 1 else scale[:, None])


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


STEEPEST = {"sigmoid": 1 / 4, "tanh": 1 / 2, "hard_sigmoid": 1 / 6, "hard_concrete": (HIGH - LOW) / 4, "constant": 1 / 4}
LINEAR = {"hard_sigmoid": 3.0, "hard_concrete": math.log((1 - LOW) / -LOW)}  # |z| beyond which a gate that can close or open fully has
DRAWN = (HIGH - LOW) / 4 / TEMPERATURE  # slope of a hard concrete gate whose noise is drawn


def largest_slope(kind: str, low: Array | np.ndarray | float = -jnp.inf, high: Array | np.ndarray | float = jnp.inf) -> Array | np.ndarray | float:
    """Returns max |dg/dz| over low <= z <= high, exactly: every gate is steepest at 0 and less so away from it.

    That of a deterministic hard concrete gate; with noise it is at most `DRAWN`, wherever z is. Raises ValueError for an unknown kind.
    """
    if kind not in STEEPEST:
        raise ValueError(f"gate kind {kind!r} is unknown: use one of {', '.join(SMOOTH)}")
    xp = np if isinstance(low, np.ndarray | float) else jnp
    z = abs(xp.clip(xp.zeros_like(low), low, high))
    if kind == "hard_sigmoid":
        return xp.where(z < LINEAR[kind], STEEPEST[kind], 0.0)
    decay = xp.exp(-z * (2 if kind == "tanh" else 1))
    slope = STEEPEST[kind] * 4 * decay / (1 + decay) ** 2
    return xp.where(z < LINEAR[kind], slope, 0.0) if kind == "hard_concrete" else slope


@flax.struct.dataclass
class Envelope:
    """Of gates over a set of logits and states: low <= g <= high, (N,), and |g_i(h) - g_i(k)| <= sum_j L_ij |h_j - k_j|.

    `lipschitz` is L, (N,) where it is diagonal, else (N, N); None where gates do not read the state.
    """

    low: Float[Array, "N"]
    high: Float[Array, "N"]
    lipschitz: Float[Array, "..."] | None


def log_uniform_bias(kind: str, low: float, high: float) -> nn.initializers.Initializer:
    """Returns an initialiser whose bias makes gates log-uniform in [low, high] at z = b: memory over all time scales."""

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
        exponent = jax.random.uniform(key, shape, jnp.float32, math.log(low), math.log(high))
        return INVERSE[kind](jnp.exp(exponent)).astype(dtype)

    return init


@flax.struct.dataclass
class Opening:
    """The gates of every step, g_t = floor + (1 - floor) sigma(z_t + W h_{t-1}), as a function of the state before it.

    z (..., N) holds what the input says; W, (N,) or (N, N), what the state adds, None where gates read the input alone.
    Without the axes of batch and time it is the gates of one step.
    """

    z: Float[Array, "... N"]
    noise: Float[Array, "... N"] | None
    W: Float[Array, "..."] | None
    kind: str = flax.struct.field(pytree_node=False)
    floor: float = flax.struct.field(pytree_node=False)

    def at(self, before: Float[Array, "... N"] | None = None) -> Float[Array, "... N"]:
        """Returns the gates; `before` is h_{t-1}, 0 if None."""
        logits = self.logits(before)
        opened = hard_concrete(logits, self.noise) if self.kind == "hard_concrete" else SMOOTH[self.kind](logits)
        return self.floor + (1 - self.floor) * opened

    def logits(self, before: Float[Array, "... N"] | None = None) -> Float[Array, "... N"]:
        """Returns z_t + W h_{t-1}."""
        if self.W is None or before is None:
            return self.z
        return self.z + (before @ self.W.T if self.W.ndim == 2 else before * self.W.reshape((1,) * (before.ndim - 1) + self.W.shape))

    def envelope(self, reach: Float[Array, "N"]) -> Envelope:
        """Returns what holds of all gates of these z, (2, N) or of any leading axes, at all states |h_i| <= reach_i.

        A noise that is drawn can take any value: the gate is anywhere above its floor then, and as steep as it can be.
        """
        axes = tuple(range(self.z.ndim - 1))
        spread = jnp.zeros_like(reach) if self.W is None else carried(self.W, reach)
        ends = self.z.min(axis=axes) - spread, self.z.max(axis=axes) + spread
        drawn = self.kind == "hard_concrete" and self.noise is not None
        low, high = (jnp.zeros_like(reach), jnp.ones_like(reach)) if drawn else (SMOOTH[self.kind](z) for z in ends)
        slope = (1 - self.floor) * jnp.broadcast_to(DRAWN if drawn else jnp.asarray(largest_slope(self.kind, *ends)), reach.shape)
        lipschitz = None if self.W is None else jnp.abs(self.W) * (slope if self.W.ndim == 1 else slope[:, None])
        return Envelope(self.floor + (1 - self.floor) * low, self.floor + (1 - self.floor) * high, lipschitz)


class Gate(nn.Module):
    """g_t = floor + (1 - floor) sigma(W_x x_t + W_h h_{t-1} + b), one value in [0, 1] a component (theory, section 2).

    Attributes:
      features: number of gates, the n of the state.
      kind: "sigmoid", "tanh" (rescaled), "hard_sigmoid", "hard_concrete", or "constant": sigma(b), the same at every step,
        which makes the layer time-invariant.
      floor: smallest value of a gate.
      reads_state: "none", W_h = 0; "elementwise", W_h diagonal: a component's gate reads that component; "dense". W_h starts
        at 0, as a gate of the input alone.
      open_range: gates start log-uniform in this range.

    `hard_concrete` draws its gates where a "gates" rng is given (training) and is deterministic where none is.
    """

    features: int
    kind: str = "sigmoid"
    floor: float = 0.0
    reads_state: str = "none"
    open_range: tuple[float, float] = (0.01, 0.9)

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], cap: Float[Array, "N"] | None = None) -> Opening:
        """Returns the gates of every step as a function of the state before it; `cap` bounds sum_j |W_h|_ij (see `capped`)."""
        if self.kind not in SMOOTH:
            raise ValueError(f"gate kind {self.kind!r} is unknown: use one of {', '.join(SMOOTH)}")
        if self.reads_state not in READS:
            raise ValueError(f"reads_state={self.reads_state!r} is unknown: use one of {', '.join(READS)}")
        z = self._logits(x, self.param("bias", log_uniform_bias(self.kind, *self.open_range), (self.features,)))
        noisy = self.kind == "hard_concrete" and self.has_rng("gates")
        return Opening(z, logistic(self.make_rng("gates"), z) if noisy else None, self._state_weights(cap), self.kind, self.floor)

    def _logits(self, x: Array, bias: Array) -> Array:
        if self.kind == "constant":
            return jnp.broadcast_to(bias, (*x.shape[:2], self.features))
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        return project(x, kernel).astype(jnp.float32) + bias[None, None]

    def _state_weights(self, cap: Array | None) -> Array | None:
        if self.reads_state == "none":
            return None
        shapes = {"elementwise": (self.features,), "dense": (self.features, self.features)}
        W = self.param("state_kernel", nn.initializers.zeros, shapes[self.reads_state])
        return W if cap is None else capped(W, cap)

    def reachable(self, inputs: Inputs, cap: Float[Array, "N"] | None = None) -> Opening:
        """Returns the smallest and the largest z of any input of a set, (2, N), as an opening whose `envelope` holds for the set."""
        params = self.variables["params"]
        reach = jnp.zeros(self.features) if self.kind == "constant" else inputs.reach(params["kernel"])
        W = params.get("state_kernel")
        z = jnp.stack([params["bias"] - reach, params["bias"] + reach])
        return Opening(z, jnp.zeros_like(z) if self.kind == "hard_concrete" else None, W if W is None or cap is None else capped(W, cap), self.kind, self.floor)
