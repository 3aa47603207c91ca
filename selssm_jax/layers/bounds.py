"""What a mixer says of itself, so that its memory can be certified without anyone knowing the mixer (theory, section
5).

A mixer's method `bounds(inputs)` returns `Bounds`; `inputs` says what the mixer may be given: a `Box` or a `Ball`.
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from selssm_jax.ops.extremes import largest


@runtime_checkable
class Inputs(Protocol):
    """A set of inputs x in R^D."""

    def reach(self, kernel: Float[Array, "D E"]) -> Float[Array, "E"]:
        """Returns the largest |x @ kernel| of every column over the set."""

    def length(self, kernel: Float[Array, "D E"]) -> Float[Array, ""]:
        """Returns an upper bound of |x @ kernel|_2 over the set."""

    def largest(self, width: int) -> Float[Array, "D"]:
        """Returns the largest |x_d| of every component over the set."""


@dataclasses.dataclass(frozen=True)
class Box:
    """All x with |x_d| <= radius, a number or one a component; inf for any input whatever."""

    radius: Float[Array, "D"] | float

    def reach(self, kernel: Float[Array, "D E"]) -> Float[Array, "E"]:
        """Returns sum_d |kernel_de| radius_d; a component that is not read may be infinite."""
        radius = self.largest(kernel.shape[0])[:, None]
        return jnp.where(kernel == 0, 0, jnp.abs(kernel) * radius).sum(axis=0)

    def length(self, kernel: Float[Array, "D E"]) -> Float[Array, ""]:
        """Returns the length of what each column can reach."""
        return jnp.linalg.norm(self.reach(kernel))

    def largest(self, width: int) -> Float[Array, "D"]:
        """Returns the radius of every component."""
        return jnp.broadcast_to(jnp.asarray(self.radius, jnp.float32), (width,))


@dataclasses.dataclass(frozen=True)
class Ball:
    """All x with sum_d (x_d / scale_d)^2 <= radius^2: what an RMS norm with these scales returns, radius sqrt(D)."""

    scale: Float[Array, "D"]
    radius: float

    def reach(self, kernel: Float[Array, "D E"]) -> Float[Array, "E"]:
        """Returns radius |scale * kernel_e|_2, by Cauchy and Schwarz; it is attained."""
        return self.radius * jnp.linalg.norm(self.scale[:, None] * kernel, axis=0)

    def length(self, kernel: Float[Array, "D E"]) -> Float[Array, ""]:
        """Returns radius |diag(scale) kernel|_2, a thousandth more for what float32 rounds."""
        scaled = self.scale[:, None] * kernel
        return (
            1.001
            * self.radius
            * jnp.sqrt(
                largest(
                    jnp.linalg.eigvalsh(scaled @ scaled.T if scaled.shape[0] < scaled.shape[1] else scaled.T @ scaled)
                )
            )
        )

    def largest(self, width: int) -> Float[Array, "D"]:
        """Returns radius |scale_d|."""
        del width
        return self.radius * jnp.abs(self.scale)


class Rivalry(NamedTuple):
    """What gates that share a step take from one another: |g_i(h) - g_i(k)| is larger by at most share_i max_s sum_j
    reads_sj |h_j - k_j|, s being over all logits of the step.
    """

    share: Float[Array, "n"]
    reads: Float[Array, "s n"]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What holds of a recurrence for all inputs of a set; n components of the state, each |.| a modulus where they are
    complex.

    Gated updates, h' = (1 - g) h + g (A h + u) for "retain" and h' = g (A h + u) for "effective", state the first
    seven, and `gate_rivalry`. Any other recurrence h' = f(h, x) states `jacobian`; one of which nothing can be said
    states `unknown`, the reason.

    Attributes:
      A: transition, (n,) if diagonal, else (n, n).
      gate_min, gate_max: range of each gate, (n,).
      gate_lipschitz: |g_i(h) - g_i(k)| <= sum_j L_ij |h_j - k_j|; (n,) where L is diagonal, (n, n) else; None for gates
        that do not read the state.
      drive_bound: largest |u_i|, u = B x + w; inf where there is none.
      noise_cov: covariance of w, (n, n); None without noise.
      update: "retain" or "effective".
      jacobian: largest |df_i/dh_j|, (n,) where it is diagonal, else (n, n), over all inputs and all states of `box`.
      box: largest |h_i| of the states that `jacobian` is about, (n,), a set that is never left once entered; None: all
        states whatever.
      delay: steps that an input is still read after its own, d_conv - 1 behind a convolution: only then does the
        recurrence begin to forget it.
      averaged: whether the gates that the mixer sows are means over several components each, so that none is that of
        one.
      unknown: why there are no bounds.
      gate_rivalry: what a gate changes by beside `gate_lipschitz`, where gates that read the state share a step; None
        where they do not.
    """

    A: Inexact[Array, "n ..."] | None = None
    gate_min: Float[Array, "n"] | None = None
    gate_max: Float[Array, "n"] | None = None
    gate_lipschitz: Float[Array, "n ..."] | None = None
    drive_bound: Float[Array, "n"] | None = None
    noise_cov: Float[Array, "n n"] | None = None
    update: str = "retain"
    jacobian: Float[Array, "n ..."] | None = None
    box: Float[Array, "n"] | None = None
    delay: int = 0
    averaged: bool = False
    unknown: str = ""
    gate_rivalry: Rivalry | None = None

    def __post_init__(self) -> None:
        stated = [self.A is not None, self.jacobian is not None, bool(self.unknown)]
        if sum(stated) != 1:
            raise ValueError(f"bounds state {sum(stated)} of A, jacobian and unknown, expected exactly one of them")
        if self.A is not None and (self.gate_min is None or self.gate_max is None):
            raise ValueError("bounds state A without gate_min and gate_max: a gate that is always open has 1 for both")
