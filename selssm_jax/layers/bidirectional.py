"""Two mixers, one of which reads from the end: for signals that are whole before anything is asked of them."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from selssm_jax.layers.bounds import Bounds, Inputs
from selssm_jax.shapes import Activations, Reset, Rows


class Bidirectional(nn.Module):
    """y_t = forward(x_1 ... x_t) + backward(x_T ... x_t), two mixers of one kind with parameters of their own (Schuster
    and Paliwal 1997).

    The state is the forward mixer's. The backward one begins anew at the end of every call, so a call is not what its
    pieces are: splits are not equal to the whole here, nor are single steps: read signals whole.

    Parameters and intermediates of the forward mixer are where they are without this wrapper, those of the other under
    "backward": what is measured and certified of a block is the memory that it carries.
    """

    forward: nn.Module
    backward: nn.Module

    def setup(self) -> None:
        nn.share_scope(self, self.forward)

    def __call__(
        self,
        x: Activations,
        state: object = None,
        *,
        reset: Reset | None = None,
        valid: Bool[Array, "B T"] | None = None,
    ) -> tuple[Activations, object]:
        """Returns (y, the forward mixer's state after the last step).

        Args:
          reset: True begins a document, which neither direction leaves. valid: False at padding to the right, which the
            backward direction forgets.
        """
        y, after = self.forward(x, state, reset=reset)
        back, _ = self.backward(x[:, ::-1], reset=_reversed_resets(x, reset, valid))
        return y + back[:, ::-1], after

    def measure_gains(self, x: Activations, state: object = None, *, reset: Reset | None = None) -> Float[Array, "B T"]:
        """Returns the nats that each step gains in the forward direction."""
        nats: Array = self.forward.measure_gains(x, state, reset=reset)
        return nats

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns those of the forward mixer, whose state is carried."""
        return self.forward.bounds(inputs)

    def initial_state(self, batch: Rows, steps: int | None = None) -> object:
        """Returns the forward mixer's."""
        return self.forward.initial_state(batch, steps)


def _reversed_resets(x: Array, reset: Array | None, valid: Array | None) -> Array:
    """Where the backward direction begins anew: at the last step of every document, and at the last valid step."""
    last = jnp.zeros(x.shape[:2], bool)
    if reset is not None:
        last = last.at[:, :-1].set(reset[:, 1:])
    if valid is not None:
        last |= valid & ~jnp.pad(valid[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    return jax.lax.rev(last, [1])
