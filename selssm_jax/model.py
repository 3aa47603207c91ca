"""`SequenceModel`: an encoder, blocks with any pattern of mixers, and a decoder; the same weights in parallel and step
by step.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool

from selssm_jax.config import Model
from selssm_jax.config.mixers import NONE
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.blocks import Block, normalisation
from selssm_jax.layers.bounds import Bounds
from selssm_jax.layers.encoders import frame_valid
from selssm_jax.layers.resampling import Resampler
from selssm_jax.ops import shards
from selssm_jax.ops.boundaries import hide_rows
from selssm_jax.shapes import Reset, Rows, Signal, Tokens
from selssm_jax.tasks.base import Ends, TaskKind
from selssm_jax.tasks.registry import kind_of

Inputs = Tokens | Signal
State = dict[str, Any]


def block_name(index: int) -> str:
    """Returns what a block is called among parameters, in what it sows and in results."""
    return f"block_{index}"


def residual_name(index: int) -> str:
    """Returns what the input of a block is called while a model is explained; of the number of blocks, the last one's
    output.
    """
    return f"residual_{index}"


def block_names(config: Model) -> list[str]:
    """Returns the names of all blocks, in their order."""
    return [block_name(index) for index in range(len(config.pattern))]


def mixer_places(config: Model) -> dict[str, int]:
    """Returns the place in the pattern of every block that has a mixer, by the block's name."""
    return {block_name(index): index for index, kind in enumerate(config.pattern) if kind != NONE}


def names_read_in_part(config: Model) -> list[str]:
    """Returns the names of the blocks with a mixer that read fewer steps than there are, those of `model.resample`."""
    span = range(*config.resample.span(len(config.pattern)))
    return [name for name, index in mixer_places(config).items() if index in span]


@runtime_checkable
class ModelLike(Protocol):
    """What reads sequences as `SequenceModel` does, under the same `apply`: itself, or a model that carries its state
    in another form.
    """

    @property
    def config(self) -> Model:
        """What the model is."""
        ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls `__call__`, or the method that is named, with these variables."""
        ...


def begin_reading(model: ModelLike, params: Any, inputs: Inputs, state: State | None = None) -> State:
    """Returns the state that a sequence is read from in several calls: `state`, or that of an empty memory, with what a
    first call decides for all of it.
    """
    state = model.apply({"params": params}, len(inputs), method="initial_state") if state is None else state
    began: State = model.apply({"params": params}, inputs, state, method="begin")
    return began


class SequenceModel(nn.Module):
    """A stack of pre-norm residual blocks between the encoder and the head that the task asks for.

    Attributes:
      config: `config.Model` with its `task` filled in from the data.

    Outputs, always float32, are what the kind of task says (`tasks`): of every step, (B, T, ...), or of all valid steps
    so far, (B, ...).

    One call over T steps equals calls over any split of them that carry `state`. With `normalize`, a forecast's scale
    is taken from the first call's inputs and carried along.
    """

    config: Model

    def setup(self) -> None:
        config = self.config
        block = nn.remat(Block, static_argnums=(5,)) if config.remat else Block
        self.encoder = self.kind.encoder(config)
        self.block = [block(kind, part) for kind, part in zip(config.pattern, config.blocks, strict=True)]
        self.norm = normalisation(config)
        self.head = self.kind.head(config)
        self.cycle = self.kind.cycle(config)
        self.resample = None if config.resample.rule == "none" else Resampler(config)

    @property
    def kind(self) -> TaskKind:
        """What the task asks of the model."""
        return kind_of(self.config.task)

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
          reset: True forgets everything before that step (tokens, or signals with stride 1). Values before the last
            reset are not read at all, so that what is not finite there reaches neither outputs nor gradients; encoders,
            heads and a forecast's scale begin anew.
          valid: False at padding to the right, which is not read: a signal is 0 there, and a class head leaves it out.
          deterministic: no dropout.
        """
        state = self._unread(inputs.shape[0]) if state is None else state
        if valid is not None and not self.kind.tokens:
            inputs = jnp.where(valid[..., None], inputs, 0)
        inputs, state, read = self._since_reset(inputs, state, reset)
        state = self.begin(inputs, state, read)
        series = self.kind.series(self.config, inputs, state, read)
        x, encoder = self.kind.encode(self._ends, series, state["encoder"])
        valid = frame_valid(jnp.ones(inputs.shape[:2], bool) if valid is None else valid, self.kind.stride(self.config))
        valid = self._for_each_sequence(valid)
        reset, read = (None if flags is None else self._for_each_sequence(flags) for flags in (reset, read))
        x, mixed = self._mix(x, state, reset, valid, deterministic)
        outputs, after = self.kind.answer(self._ends, x, series, state, valid, read)
        return outputs, {"encoder": encoder, **mixed, **after}

    def step(self, inputs: Array, state: State) -> tuple[Array, State]:
        """Reads one step, (B,) tokens or (B, C) values, and returns (outputs after it, state)."""
        outputs, state = self(inputs[:, None], state)
        return (outputs[:, 0] if self.kind.every_step else outputs), state

    def initial_state(self, batch: Rows, steps: int | None = None) -> State:
        """Returns the state before the first step of `batch` sequences.

        With `steps`, no more of them will be read, and a cache that grows with them has room for no more.
        """
        rows = batch * self.kind.rows(self.config)
        return self._unread(batch) | {"blocks": tuple(block.initial_state(rows, steps) for block in self.block)}

    def _since_reset(self, inputs: Array, state: State, reset: Array | None) -> tuple[Array, State, Array | None]:
        """(inputs, state, which steps are read) of a call whose only output is of its end: nothing before the last
        reset, nor, behind one, what was carried.
        """
        if reset is None or self.kind.every_step:
            return inputs, state, None
        count = jnp.cumsum(reset, axis=1)
        again = count[:, -1] > 0
        read = (count == count[:, -1:]) & ~shards.later(again)[:, None]
        fresh = shards.total(again.astype(jnp.int32)) > 0

        def hide_state(leaf: Array) -> Array:
            return hide_rows(jnp.repeat(fresh, leaf.shape[0] // len(fresh)), leaf)

        parts = {name: state[name] for name in state if name != "blocks"}
        return (
            jnp.where(read.reshape(*read.shape, *[1] * (inputs.ndim - 2)), inputs, 0),
            state | jax.tree.map(hide_state, parts),
            read,
        )

    def _unread(self, batch: Rows) -> State:
        """The state before the first step, None for blocks, which so know that there is nothing before it."""
        rows = batch * self.kind.rows(self.config)
        beside = {} if self.resample is None else {"resample": self.resample.initial_state(rows)}
        return {"blocks": (None,) * len(self.block), **beside, **self.kind.initial(self._ends, batch)}

    def begin(self, inputs: Inputs, state: State, read: Bool[Array, "B T"] | None = None) -> State:
        """Returns `state` with what the first call decides for a whole sequence: the scale of a forecast, from all of
        its inputs, or those of `read`.
        """
        return self.kind.begin(self.config, inputs, state, read)

    def bounds(self) -> dict[str, Bounds]:
        """Returns, by block that has a mixer, what that states of itself for all inputs that can reach it
        (`layers.bounds`).
        """
        bounds = {name: self.block[index].bounds() for name, index in mixer_places(self.config).items()}
        unread = Bounds(unknown="model.resample lets the block read some steps alone: at the others nothing contracts")
        return bounds | dict.fromkeys(names_read_in_part(self.config), unread)

    @property
    def _ends(self) -> Ends:
        return Ends(self.config, self.encoder, self.head, self.cycle)

    def _for_each_sequence(self, flags: Array) -> Array:
        """Flags (B, T) of the rows, for every sequence that the blocks make of them."""
        rows = self.kind.rows(self.config)
        return flags if rows == 1 else jnp.repeat(flags, rows, axis=0)

    def _mix(
        self, x: Array, state: State, reset: Array | None, valid: Array, deterministic: bool
    ) -> tuple[Array, State]:
        """(features, what the blocks carry, and what carries them back where some read fewer steps)."""
        span, before = range(*self.config.resample.span(len(self.block))), state["blocks"]
        after, beside, entering = list[State](), dict[str, State](), x
        for index, block in enumerate(self.block):
            if index not in span:
                entering = x = rules.tap(self, residual_name(index), x)
                x, carried = block(x, before[index], reset, valid, deterministic)
                after.append(carried)
            elif index == span.start:
                for inner in span:  # their residual streams are of fewer steps: that before the first stands for all
                    x = rules.tap(self, residual_name(inner), x)
                x, states, beside["resample"] = self._mix_in_part(x, entering, state, reset, valid, deterministic)
                after += states
        x = self.norm(rules.tap(self, residual_name(len(self.block)), x))
        if not self.is_initializing():  # or `init` would return it among the variables
            self.sow("features", "last", x)
        return x, {"blocks": tuple(after), **beside}

    def _mix_in_part(
        self, x: Array, entering: Array, state: State, reset: Array | None, valid: Array, deterministic: bool
    ) -> tuple[Array, tuple[State, ...], State]:
        """(features, what the blocks of `model.resample` carry, what carries them back); `entering` is what the block
        before them read.
        """
        first, last = self.config.resample.span(len(self.block))
        gated, before, nats = self.block[first - 1], state["blocks"], None
        if self.config.resample.rule == "information":
            nats = gated.measure_gains(entering, before[first - 1], reset)
        blocks, states = self.block[first:last], before[first:last]
        assert self.resample is not None  # which the config says
        answer: tuple[Array, tuple[State, ...], State] = self.resample(
            blocks, x, states, state["resample"], reset, valid, nats, deterministic
        )
        return answer
