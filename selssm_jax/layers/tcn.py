"""The temporal convolutional network's block, whose state is the inputs that it still sees."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array

from selssm_jax.config.mixers import TCNConfig, check_layer
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.bounds import Bounds, Inputs
from selssm_jax.layers.convolution import DilatedConv
from selssm_jax.shapes import Activations, Reset, Rows

State = dict[str, Array]


class TCN(nn.Module):
    """y = conv_2(relu(conv_1(x))), two causal convolutions of `kernel` taps, `dilation` steps apart (Bai et al. 2018,
    section 3).

    It sees 2 (kernel - 1) dilation steps back. The residual connection and the norm are those of the block that it is
    in, in place of the published block's own and of its weight normalisation.

    The state is {"first", "second": the past inputs of either convolution, (B, (kernel - 1) dilation, d_model)}.
    """

    d_model: int
    kernel: int = TCNConfig.kernel
    dilation: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        check_layer(TCNConfig, self)
        self.first, self.second = (DilatedConv(self.d_model, self.kernel, self.dilation, self.dtype) for _ in range(2))

    def __call__(
        self, x: Activations, state: State | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, State]:
        """Reads a sequence after what `state` holds, after zeros if None, and returns (y, state after the last step);
        True in `reset` forgets.
        """
        past = dict.fromkeys(("first", "second")) if state is None else state
        hidden, first = self.first(x, past["first"], reset=reset)
        y, second = self.second(rules.activate(jax.nn.relu, hidden), past["second"], reset=reset)
        return y, {"first": first, "second": second}

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns that there are none."""
        del inputs
        steps = 2 * (self.kernel - 1) * self.dilation
        return Bounds(
            unknown=f"a TCN holds a window: it forgets what is older than {steps} steps at once and whole, which is "
            "no contraction"
        )

    def initial_state(self, batch: Rows, steps: int | None = None) -> State:
        """Returns a past of zeros; it does not grow with `steps`."""
        del steps
        return {
            name: jnp.zeros((batch, (self.kernel - 1) * self.dilation, self.d_model), self.dtype)
            for name in ("first", "second")
        }
