"""Skipping: steps of a trained `SelectiveSSM` that read the rows of its open components only (theory, section 9).

  decoder = sparse_decode.make_decoder(layer, params)
  step = jax.jit(sparse_decode.Decoder.step, donate_argnames="state")
  y, state = step(decoder, x, state)                    # x, y (B, D); state = decoder.start(layer.initial_state(B))
                                                        before the first

A gate that is 0 keeps its component to the last bit, so that neither its row of B, nor of C, nor of a dense A is
needed. Which gates are open has to be known first: that takes all of W_x, (D, N), and of W_h where gates read the
state. Gates that read the state densely, N x N numbers, cost as much as a dense A.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from selssm_jax.config.mixers import GATES, NOISES
from selssm_jax.layers import SelectiveSSM
from selssm_jax.layers.gates import Gate
from selssm_jax.layers.variables import parameters
from selssm_jax.ops import GatheredMemory, GatheredRows, gather_rows, gathered_step, refresh_memory

PyTree = Any
SHARE = 4  # 1 / SHARE of the components is the default capacity


@flax.struct.dataclass
class Decoder:
    """A layer as a step, made by `make_decoder`; a pytree, so that `jax.jit` takes its weights as arguments.

    The memory of B sequences is a `GatheredMemory` of h, (B, N), the layer's own state, and C h, (B, D), which follows
    it.
    """

    weights: GatheredRows
    skip: Float[Array, "D"]
    gates: PyTree
    output_gate: Float[Array, "D D"] | None  # None where outputs are not gated
    layer: SelectiveSSM = flax.struct.field(pytree_node=False)
    capacity: int = flax.struct.field(pytree_node=False)

    def start(self, h: Float[Array, "B N"]) -> GatheredMemory:
        """Returns the memory of states of the layer, C h computed anew: before the first step, or to set its rounding
        back (see `gathered_step`).
        """
        return jax.vmap(lambda h: refresh_memory(h, self.weights))(h)

    def step(self, x: Float[Array, "B D"], state: GatheredMemory) -> tuple[Float[Array, "B D"], GatheredMemory]:
        """Reads one input of every sequence and returns (y, memory), as one step of the layer does; sequences take
        their turns.
        """
        layer = self.layer
        gate = Gate(layer.d_state, layer.gate, layer.gate_floor, layer.gate_state, active=layer.gate_active)
        function: Any = gate.apply({"params": self.gates}, x[:, None])
        opened = function.at(state.h[:, None])[:, 0]

        def one(now: tuple[GatheredMemory, Array, Array]) -> GatheredMemory:
            return gathered_step(*now, self.weights, capacity=self.capacity)

        if len(x) == 1:
            state = jax.tree.map(lambda leaf: leaf[None], one(jax.tree.map(lambda leaf: leaf[0], (state, opened, x))))
        else:
            state = jax.lax.map(one, (state, opened, x))
        y = state.read + self.skip[None] * x
        return y if self.output_gate is None else y * jax.nn.silu(x @ self.output_gate), state


def make_decoder(layer: SelectiveSSM, params: PyTree, capacity: int | None = None) -> Decoder:
    """Returns a decoder whose steps equal the layer's, up to rounding, and read the rows of open components only.

    Args:
      layer, params: a trained layer whose gates can be exactly 0: of update "retain", without a floor and without
        noise.
      capacity: open components up to which rows are gathered; a step of more is dense. None: all that can be open for
        top_k gates, else a quarter of the components.

    Raises:
      ValueError: for a layer that cannot skip, or a capacity out of range; it says the fix.
    """
    _check(layer)
    params = parameters(params)
    A: Any = layer.apply({"params": params}, method=lambda bound: bound.A)
    if capacity is None:
        capacity = layer.gate_active if layer.gate == "top_k" else max(1, layer.d_state // SHARE)
    if not 1 <= capacity <= layer.d_state:
        raise ValueError(f"capacity={capacity} is no number of components: use one from 1 to {layer.d_state}")
    rows = gather_rows(A, params["B"], params["C"])
    return Decoder(rows, params["D"], params["G"], params.get("W_z"), layer, capacity)


def _check(layer: SelectiveSSM) -> None:
    if not GATES[layer.gate].closes:
        closing = [name for name, kind in GATES.items() if kind.closes]
        raise ValueError(
            f"gate={layer.gate!r} is never 0, so nothing can be skipped: train one of {', '.join(closing)}"
        )
    if layer.gate_floor:
        raise ValueError(
            f"gate_floor={layer.gate_floor} keeps every gate open, so nothing can be skipped: train with gate_floor=0"
        )
    if layer.drive != "gated":
        raise ValueError(
            f"drive={layer.drive!r} writes more than its gate of a component: train with drive='gated' to skip"
        )
    if layer.update != "retain":
        raise ValueError(
            f"update={layer.update!r} erases where a gate is 0, so every component changes: train with update='retain'"
        )
    if layer.transition == "complex":
        raise ValueError("transition='complex' has complex states, which are not gathered: use 'diagonal' or 'dense'")
    if drawn := [name for name in NOISES if getattr(layer, name)]:
        raise ValueError(
            f"{' and '.join(f'{name}={getattr(layer, name)}' for name in drawn)} is drawn at every step: give "
            f"layer.clone({', '.join(f'{name}=0.0' for name in drawn)}), its mean"
        )
    if layer.dtype != jnp.float32:
        raise ValueError(
            f"dtype={jnp.dtype(layer.dtype)} rounds what is carried along: give layer.clone(dtype=jnp.float32)"
        )
