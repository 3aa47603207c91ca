"""Gates of a step that depend on the logits of all of them: the largest alone are open, or they share what a step
writes.

A joint gate is called on logits, (..., S), and returns gates of that shape; `between` and `lipschitz` say what holds of
it over a box of logits, exactly.
"""

import dataclasses
from functools import partial
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from selssm_jax.layers.bounds import Rivalry


@runtime_checkable
class JointGate(Protocol):
    """The gates of a step as a function of all its logits; `couples`: their derivatives are too."""

    couples: ClassVar[bool]

    def __call__(self, z: Float[Array, "... S"]) -> Float[Array, "... S"]:
        """Returns the gates."""

    def between(self, low: Float[Array, "S"], high: Float[Array, "S"]) -> tuple[Float[Array, "S"], Float[Array, "S"]]:
        """Returns the smallest and the largest value of each gate over all logits low <= z <= high."""

    def lipschitz(
        self, reads: Float[Array, "S N"], low: Float[Array, "S"], high: Float[Array, "S"]
    ) -> tuple[Float[Array, "S N"], Rivalry | None]:
        """Returns (L, rivalry) with |g_i(h) - g_i(k)| at most sum_j L_ij |h_j - k_j| and what the rivalry adds (see
        `Bounds`), where |z_s(h) - z_s(k)| <= sum_j reads_sj |h_j - k_j|.
        """


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def top_k(z: Float[Array, "... N"], active: int) -> Float[Array, "... N"]:
    """g_i = 1 for the `active` largest z of the last axis, 0 for the others; of equal ones the first are taken, so that
    it is always as many.

    Surrogate gradient, straight-through: dg_i/dz_i = s (1 - s), s = sigmoid(z_i - q) with q the smallest z that is
    open, held still: the components nearest to being swapped learn most.
    """
    return jnp.put_along_axis(jnp.zeros_like(z), jax.lax.top_k(z, active)[1], 1.0, axis=-1, inplace=False)


@top_k.defjvp
def _top_k_jvp(active: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,) = primals
    last = jax.lax.top_k(z, active)[0][..., -1:]
    return top_k(z, active), sigmoid_slope(z - last) * tangents[0]


def sigmoid_slope(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """s (1 - s), s = sigmoid(z): what gates that jump pass back in place of their derivative, which is 0."""
    s = jax.nn.sigmoid(z)
    return s * (1 - s)


@dataclasses.dataclass(frozen=True)
class TopK:
    """The `active` largest logits of a step open their gates, all others are shut."""

    active: int
    couples: ClassVar[bool] = False

    def __call__(self, z: Float[Array, "... S"]) -> Float[Array, "... S"]:
        """Returns 1 for the largest logits, 0 for the others."""
        return top_k(z, self.active)

    def between(self, low: Float[Array, "S"], high: Float[Array, "S"]) -> tuple[Float[Array, "S"], Float[Array, "S"]]:
        """Returns (1 where a gate is open, 0 where it is shut) for all low <= z <= high; nothing is known of NaN."""
        rivals = len(low) - jnp.searchsorted(jnp.sort(high), low, side="left")  # that may be as large, itself included
        above = len(low) - jnp.searchsorted(jnp.sort(low), high, side="right")  # that are larger whatever happens
        ranked = ~(jnp.isnan(low) | jnp.isnan(high)).any()
        return (
            (ranked & (rivals <= self.active)).astype(low.dtype),
            (~ranked | (above < self.active)).astype(low.dtype),
        )

    def lipschitz(
        self, reads: Float[Array, "S N"], low: Float[Array, "S"], high: Float[Array, "S"]
    ) -> tuple[Float[Array, "S N"], Rivalry | None]:
        """Returns inf where a gate may change and any gate reads the component: it may make that gate jump."""
        shut, open_ = self.between(low, high)
        return jnp.where((shut < open_)[:, None] & (reads != 0).any(axis=0)[None], jnp.inf, 0), None


@dataclasses.dataclass(frozen=True)
class Softmax:
    """g = softmax(z / temperature): what a step writes is shared, most of it by the gates whose logits match."""

    temperature: float
    couples: ClassVar[bool] = True

    def __call__(self, z: Float[Array, "... S"]) -> Float[Array, "... S"]:
        """Returns gates whose sum is 1."""
        return jax.nn.softmax(z / self.temperature, axis=-1)

    def between(self, low: Float[Array, "S"], high: Float[Array, "S"]) -> tuple[Float[Array, "S"], Float[Array, "S"]]:
        """Returns each gate with its own logit at one end and those of the others at the other end."""
        return 1 / (1 + self._odds(low, high)), 1 / (1 + self._odds(high, low))

    def lipschitz(
        self, reads: Float[Array, "S N"], low: Float[Array, "S"], high: Float[Array, "S"]
    ) -> tuple[Float[Array, "S N"], Rivalry | None]:
        """Returns the bounds of |dg_i| = |g_i (1 - g_i) dz_i - sum_{k != i} g_i g_k dz_k| / temperature.

        The g_k of others sum to 1 - g_i, so that it is at most s_i (|dz_i| + max_k |dz_k|), s_i of `slopes`: in the
        maximum norm 2 s_i, which is attained, and at most 1 / (2 temperature). A bound by entries, sum_k s_ik |dz_k|,
        would grow with the number of gates.
        """
        slope = self.slopes(low, high)
        return jnp.where(reads == 0, 0, slope[:, None] * reads), Rivalry(slope, reads)

    def slopes(self, low: Float[Array, "S"], high: Float[Array, "S"]) -> Float[Array, "S"]:
        """Returns the largest dg_i/dz_i = g_i (1 - g_i) / temperature over all logits between the ends."""
        odds = jnp.clip(1, self._odds(high, low), self._odds(low, high))  # (1 - g) / g, nearest to those of a half
        return jnp.where(jnp.isinf(odds), 0, odds / jnp.square(1 + odds)) / self.temperature

    def _odds(self, own: Array, others: Array) -> Array:
        """sum_{k != i} exp((others_k - own_i) / temperature), which is (1 - g_i) / g_i."""
        apart = (others[None] - own[:, None]) / self.temperature
        return jnp.where(jnp.eye(len(own), dtype=bool), 0, jnp.exp(apart)).sum(axis=1)
