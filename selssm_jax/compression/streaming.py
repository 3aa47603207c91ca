"""Models that carry their memory packed: what goes from one step to the next is bytes (theory, section 10).

Any mixer whose state is one array of real or complex numbers, (B, N), can be packed; complex ones as real and imaginary parts, one after the other.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PRNGKeyArray

from selssm_jax.compression.quantization import Quantizer
from selssm_jax.model import Inputs, SequenceModel

State = dict[str, Any]
PyTree = Any


@dataclasses.dataclass(frozen=True)
class PackedModel:
    """A `SequenceModel` whose mixers' states are packed after every step by one `Quantizer` a block.

    Attributes:
      model, params: as trained. quantizers: one a block, in the order of the pattern.

    Raises ValueError where these do not fit the model's states.
    """

    model: SequenceModel
    params: PyTree
    quantizers: tuple[Quantizer, ...]

    def __post_init__(self) -> None:
        sizes = [components(block["mixer"]).shape[-1] for block in self._empty(1)["blocks"]]
        given = [len(quantizer.bits) for quantizer in self.quantizers]
        if sizes != given:
            raise ValueError(f"quantizers of {given} components for blocks of {sizes}: fit one to the states of each block")

    @property
    def memory_bytes(self) -> int:
        """Bytes of the packed mixers' states of one sequence."""
        return sum(quantizer.nbytes for quantizer in self.quantizers)

    def initial_state(self, batch: int) -> State:
        """Returns the packed state before the first step of `batch` sequences."""
        return self._packed(self._empty(batch), None)

    def step(self, inputs: Array, state: State, key: PRNGKeyArray | None = None) -> tuple[Array, State]:
        """Reads one step, (B,) tokens or (B, C) values, or (B, S, C) a stride of them; returns (outputs after it, packed state).

        With a key, levels are rounded stochastically: small updates then survive on average.
        """
        known = self._unpacked(state)
        whole = self.model.config.task.kind != "language" and inputs.ndim == 3
        outputs, after = self.model.apply({"params": self.params}, inputs, known, method=None if whole else "step")
        return outputs, self._packed(after, key)

    def scan(self, inputs: Inputs, state: State | None = None, key: PRNGKeyArray | None = None) -> tuple[Array, State]:
        """Reads a sequence, (B, T) or (B, T, C), step by step in one program; returns (outputs, packed state).

        Outputs are those after every step, (B, T, V), for language, else those after the last. A signal is read a stride at a time, and what is
        left of one at its end is not read.
        """
        config = self.model.config
        stride = 1 if config.task.kind == "language" else config.stride
        state = self.initial_state(len(inputs)) if state is None else state
        steps = inputs.shape[1] // stride
        strides = inputs[:, : steps * stride].reshape(len(inputs), steps, *([stride] if config.task.kind != "language" else []), *inputs.shape[2:])
        keys = None if key is None else jax.random.split(key, steps)

        def body(state: State, now: tuple[Array, PRNGKeyArray | None]) -> tuple[State, Array]:
            outputs, state = self.step(now[0], state, now[1])
            return state, outputs

        state, outputs = jax.lax.scan(body, state, (strides.swapaxes(0, 1), keys))
        return (outputs.swapaxes(0, 1) if config.task.kind == "language" else outputs[-1]), state

    def _empty(self, batch: int) -> State:
        return self.model.apply({"params": self.params}, batch, method="initial_state")

    def _packed(self, state: State, key: PRNGKeyArray | None) -> State:
        keys = [None] * len(self.quantizers) if key is None else jax.random.split(key, len(self.quantizers))
        blocks = []
        for block, quantizer, one in zip(state["blocks"], self.quantizers, keys, strict=True):
            h = components(block["mixer"])
            noise = None if one is None else jax.random.uniform(one, h.shape)
            blocks.append(block | {"mixer": quantizer.pack(quantizer.quantize(h, noise))})
        return state | {"blocks": tuple(blocks)}

    def _unpacked(self, state: State) -> State:
        shapes = jax.eval_shape(lambda: self._empty(1))["blocks"]
        blocks = []
        for block, quantizer, like in zip(state["blocks"], self.quantizers, shapes, strict=True):
            h = quantizer.dequantize(quantizer.unpack(block["mixer"]))
            complex_state = jnp.issubdtype(like["mixer"].dtype, jnp.complexfloating)
            blocks.append(block | {"mixer": jax.lax.complex(*jnp.split(h, 2, axis=-1)) if complex_state else h})
        return state | {"blocks": tuple(blocks)}


def components(state: Inexact[Array, "*b N"]) -> Float[Array, "*b M"]:
    """Returns a mixer's state as real numbers: complex ones as real and then imaginary parts."""
    return jnp.concatenate([state.real, state.imag], axis=-1) if jnp.iscomplexobj(state) else state


def calibration(model: SequenceModel, params: PyTree, inputs: Iterable[Inputs]) -> list[Float[np.ndarray, "M N"]]:
    """Returns, block by block, the states of every step of all sequences, the samples that `quantization.fit` takes.

    Args:
      inputs: batches of (B, T) tokens or (B, T, C) values, of training or validation, never of test.
    """

    @jax.jit
    def read(inputs: Inputs) -> list[Array]:
        seen = model.apply({"params": params}, inputs, mutable=["intermediates"])[1]["intermediates"]
        return [components(seen[f"block_{index}"]["mixer"]["state"][0]) for index in range(len(model.config.pattern))]

    batches = [[np.asarray(h, np.float32).reshape(-1, h.shape[-1]) for h in read(batch)] for batch in inputs]
    return [np.concatenate(samples) for samples in zip(*batches, strict=True)]
