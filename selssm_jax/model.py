"""SequenceModel: encode, blocks of any pattern of mixers, decode; the same weights in parallel and step by step."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool

from selssm_jax.config import Model
from selssm_jax.layers.blocks import Block, normalisation
from selssm_jax.layers.bounds import Bounds
from selssm_jax.layers.encoders import FrameEncoder, frame_valid
from selssm_jax.layers.heads import ClassHead, ForecastHead
from selssm_jax.layers.projection import Projection
from selssm_jax.shapes import Reset, Rows, Signal, Tokens

Inputs = Tokens | Signal
State = dict[str, Any]


@runtime_checkable
class Reader(Protocol):
    """What reads sequences as `SequenceModel` does, under the same `apply`: itself, or a model that carries its state in another form."""

    @property
    def config(self) -> Model:
        """What the model is."""
        ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls `__call__`, or the method that is named, with these variables."""
        ...


class SequenceModel(nn.Module):
    """A stack of pre-norm residual blocks between the encoder and the head that the task asks for.

    Attributes:
      config: `config.Model` with its `task` filled in from the data.

    Outputs, always float32: "language" next-token logits (B, T, V); "classification" logits (B, classes) of all valid
    steps so far; "forecasting" (B, H, C), the values after the last step.

    One call over T steps equals calls over any split of them that carry `state`. With `normalize`, a forecast's scale is
    taken from the first call's inputs and carried along.
    """

    config: Model

    def setup(self) -> None:
        config, task = self.config, self.config.task
        dtype = jnp.dtype(config.dtype)
        block = nn.remat(Block, static_argnums=(5,)) if config.remat else Block
        self.encoder = self._encoder(dtype)
        self.block = [block(kind, part) for kind, part in zip(config.pattern, config.blocks, strict=True)]
        self.norm = normalisation(config)
        if task.kind == "language":
            self.head: Any = None if config.tie_embeddings else Projection(task.vocab, use_bias=False, dtype=dtype)
        elif task.kind == "classification":
            self.head = ClassHead(task.classes, config.d_model, config.pool)
        else:
            self.head = ForecastHead(task.horizon, self._width, config.d_model, config.head_steps, config.linear_skip)

    def __call__(
        self,
        inputs: Inputs,
        state: State | None = None,
        *,
        reset: Reset | None = None,
        valid: Bool[Array, "B T"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Array, State]:
        """Reads `inputs` from `state` on and returns (outputs, state after the last step).

        Args:
          inputs: (B, T) tokens or (B, T, C) values. state: from `initial_state` or an earlier call.
          reset: True forgets everything before that step (tokens, or signals with stride 1). Values before the last reset are not read at all, so that what is
            not finite there reaches neither outputs nor gradients; encoders, heads and a forecast's scale begin anew.
          valid: False at padding to the right, which is not read: a signal is 0 there, and a class head leaves it out.
          deterministic: no dropout.
        """
        state = self._unread(inputs.shape[0]) if state is None else state
        if valid is not None and inputs.ndim == 3:
            inputs = jnp.where(valid[..., None], inputs, 0)
        inputs, state, read = self._since_reset(inputs, state, reset)
        if self.config.task.kind == "forecasting":
            return self._forecast(inputs, state, reset, read, deterministic)
        x, encoder = self._encode(inputs, state["encoder"])
        valid = frame_valid(jnp.ones(inputs.shape[:2], bool) if valid is None else valid, self.config.stride)
        x, blocks = self._mix(x, state["blocks"], reset, valid, deterministic)
        if self.config.task.kind == "language":
            return self._next_token(x), {"encoder": encoder, "blocks": blocks}
        logits, head = self.head(x, state["head"], valid if read is None else valid & read)
        return logits, {"encoder": encoder, "blocks": blocks, "head": head}

    def step(self, inputs: Array, state: State) -> tuple[Array, State]:
        """Reads one step, (B,) tokens or (B, C) values, and returns (outputs after it, state)."""
        outputs, state = self(inputs[:, None], state)
        return (outputs[:, 0] if self.config.task.kind == "language" else outputs), state

    def initial_state(self, batch: Rows, steps: int | None = None) -> State:
        """Returns the state before the first step of `batch` sequences.

        With `steps`, no more of them will be read, and a cache that grows with them has room for no more.
        """
        rows = batch * self.config.task.channels if self._apart else batch
        return self._unread(batch) | {"blocks": tuple(block.initial_state(rows, steps) for block in self.block)}

    def _since_reset(self, inputs: Array, state: State, reset: Array | None) -> tuple[Array, State, Array | None]:
        """(inputs, state, which steps are read) of a call whose only output is of its end: nothing before the last reset, nor, behind one, what was carried."""
        if reset is None or inputs.ndim != 3:
            return inputs, state, None
        count = jnp.cumsum(reset, axis=1)
        read = count == count[:, -1:]
        fresh = reset.any(axis=1)

        def begun(leaf: Array) -> Array:
            rows = jnp.repeat(fresh, leaf.shape[0] // len(fresh))
            return jnp.where(rows.reshape(-1, *[1] * (leaf.ndim - 1)), 0, leaf)

        parts = {name: state[name] for name in state if name != "blocks"}
        return jnp.where(read[..., None], inputs, 0), state | jax.tree.map(begun, parts), read

    def _unread(self, batch: Rows) -> State:
        """The state before the first step, None for blocks, which so know that there is nothing before it."""
        kind = self.config.task.kind
        rows = batch * self.config.task.channels if self._apart else batch
        state: State = {"blocks": (None,) * len(self.block)}
        state["encoder"] = None if kind == "language" else self.encoder.initial_state(rows)
        if kind != "language":
            state["head"] = self.head.initial_state(rows)
        if kind == "forecasting":
            state["scale"] = {name: jnp.zeros((batch, 1, self.config.task.channels), jnp.float32) for name in ("mean", "deviation")}
        return state

    def begin(self, inputs: Inputs, state: State, read: Bool[Array, "B T"] | None = None) -> State:
        """Returns `state` with what the first call decides for a whole sequence: the scale of a forecast, from all of its inputs, or those of `read`."""
        if self.config.task.kind != "forecasting" or not self.config.normalize:
            return state
        return state | {"scale": self._scale(inputs, state["scale"], None if read is None else read[..., None])}

    def bounds(self) -> dict[str, Bounds]:
        """Returns, block by block, what its mixer states of itself for all inputs that can reach it (`layers.bounds`)."""
        return {f"block_{index}": block.bounds() for index, block in enumerate(self.block)}

    @property
    def _apart(self) -> bool:
        return self.config.task.kind == "forecasting" and self.config.channels_apart

    @property
    def _width(self) -> int:
        return 1 if self._apart else self.config.task.channels

    def _encoder(self, dtype: jnp.dtype) -> nn.Module:
        config = self.config
        if config.task.kind == "language":
            return nn.Embed(config.task.vocab, config.d_model, dtype=dtype)
        return FrameEncoder(config.d_model, self._width, config.frame, config.stride, config.filterbank, dtype)

    def _encode(self, inputs: Array, state: Array | None) -> tuple[Array, Array | None]:
        return (self.encoder(inputs), None) if self.config.task.kind == "language" else self.encoder(inputs, state)

    def _mix(
        self, x: Array, states: tuple[State | None, ...], reset: Array | None, valid: Array | None, deterministic: bool
    ) -> tuple[Array, tuple[State, ...]]:
        after = []
        for block, state in zip(self.block, states, strict=True):
            x, state = block(x, state, reset, valid, deterministic)
            after.append(state)
        return self.norm(x), tuple(after)

    def _next_token(self, x: Array) -> Array:
        logits = self.encoder.attend(x) if self.head is None else self.head(x)
        return logits.astype(jnp.float32)

    def _forecast(self, inputs: Array, state: State, reset: Array | None, read: Array | None, deterministic: bool) -> tuple[Array, State]:
        """Reversible instance normalisation around the model (Kim et al. 2022; of the level alone: Zeng et al. 2023), every channel by itself if asked for."""
        scale = self.begin(inputs, state, read)["scale"]
        if self.config.normalize:
            inputs = (inputs - scale["mean"]) / scale["deviation"]
            inputs = inputs if read is None else jnp.where(read[..., None], inputs, 0)
        series = self._split_channels(inputs)
        x, encoder = self._encode(series, state["encoder"])
        every = None if reset is None or not self._apart else self.config.task.channels
        x, blocks = self._mix(x, state["blocks"], reset if every is None else jnp.repeat(reset, every, axis=0), None, deterministic)
        if read is not None:
            x = jnp.where((read if every is None else jnp.repeat(read, every, axis=0))[..., None], x, 0)
        y, head = self.head(x, series, state["head"])
        y = self._join_channels(y)
        if self.config.normalize:
            y = y * scale["deviation"] + scale["mean"]
        return y, {"encoder": encoder, "blocks": blocks, "head": head, "scale": scale}

    def _scale(self, inputs: Array, carried: dict[str, Array], read: Array | None) -> dict[str, Array]:
        """Mean and deviation of the first window, kept from then on; a carried deviation of 0 means none yet."""
        mean = inputs.mean(axis=1, keepdims=True, where=read)
        fresh = {
            "mean": mean,
            "deviation": jnp.sqrt(inputs.var(axis=1, keepdims=True, where=read) + 1e-5) if self.config.normalize_scale else jnp.ones_like(mean),
        }
        return jax.tree.map(lambda old, new: jnp.where(carried["deviation"] > 0, old, new), carried, fresh)

    def _split_channels(self, inputs: Array) -> Array:
        return inputs.swapaxes(1, 2).reshape(-1, inputs.shape[1], 1) if self._apart else inputs

    def _join_channels(self, y: Array) -> Array:
        return y.reshape(-1, self.config.task.channels, y.shape[1]).swapaxes(1, 2) if self._apart else y
