"""Values of the contract between mixers and what trains, measures and compresses them: the law and the dynamics of a
state.
"""

from typing import NamedTuple

from jaxtyping import Array, Float, Inexact


class Law(NamedTuple):
    """What makes the law of the state given what is known: h_t = A_t h_{t-1} + drive_t + noise_t * N(0, I), gates
    applied.

    Gates that read the input alone: A_t (B, T, N) or (B, T, N, N), 0 at a reset, drive_t = g_t B x_t, and the law is
    that of h_t given the inputs. Gates that read the state: A_t is None, drive_t the mean of h_t given h_{t-1} and x_t
    (theory, section 4.3).
    """

    A: Inexact[Array, "B T N ..."] | None
    drive: Inexact[Array, "B T N"]
    noise: Float[Array, "B T N"]


class Dynamics(NamedTuple):
    """The effective transition A_t, (B, T, N) if diagonal else (B, T, N, N), and input map B_t, (B, T, N, D)."""

    A: Inexact[Array, "B T N ..."]
    B: Inexact[Array, "B T N D"]
