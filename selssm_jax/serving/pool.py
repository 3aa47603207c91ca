"""The memories of many sessions in one tree of arrays: any of them advance together, in one compiled program."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from selssm_jax.errors import InputError
from selssm_jax.model import ModelLike
from selssm_jax.predict import TrainedModel
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import pieces

FRAMES = 256  # steps of the blocks that are read at a time, at most


class SessionPool:
    """Memories of `capacity` sessions, slots 0, 1, ...; one more takes what fills a batch up.

    A batch of sessions is filled up to a power of two, so that few programs are compiled. A model with noise draws it
    anew in every call, from the number of the call.

    Raises:
      InputError: for a model whose memory grows with every step, or that reads backwards.
    """

    def __init__(self, trained: TrainedModel, capacity: int) -> None:
        reason = pieces.why_whole(trained.model.config, 2 * FRAMES)
        if reason:
            raise InputError(f"this run cannot hold sessions: {reason}")
        self._trained, self._capacity = trained, capacity
        scaled = kind_of(trained.model.config.task).forecasts and trained.model.config.normalize
        self._window = trained.lookback if scaled else 0  # rows that a session's scale is taken from
        self._empty = trained.initial_state()
        self._memory = trained.initial_state(capacity + 1)
        self._calls = itertools.count()
        self._advance = jax.jit(functools.partial(_advance, trained.model, capacity), donate_argnums=1)

    @property
    def stride(self) -> int:
        """Steps that the blocks read at a time."""
        config = self._trained.model.config
        return kind_of(config.task).stride(config)

    @property
    def session_bytes(self) -> int:
        """Bytes that are held for one session."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._empty))

    def check_window(self) -> None:
        """Raises ValueError where no session can begin: its window is no whole number of frames."""
        if self._window % self.stride:
            raise ValueError(
                f"a session of this run begins with a window of {self._window} rows, which is no multiple of the "
                f"{self.stride} that it reads at a time (model.stride): ask for predictions of whole windows "
                f"(/v1/predict), or train with data.length={-(-self._window // self.stride) * self.stride}"
            )

    def split(self, inputs: np.ndarray, *, fresh: bool) -> list[np.ndarray]:
        """Returns inputs in pieces of whole frames, each of a power of two: few programs then read any number of them,
        and none reads what is not there. The first ones of a forecast, where `fresh`, are one window, as its scale is
        that of the whole.

        Raises:
          ValueError: where these are no window.
        """
        if fresh and self._window:
            if len(inputs) != self._window:
                raise ValueError(
                    f"inputs have {len(inputs)} rows, but a session of this run begins with a window, whose scale it "
                    f"keeps: give {self._window} first, and then any number"
                )
            return [inputs]
        pieces_of_it, first = [], 0
        while frames := (len(inputs) - first) // self.stride:
            size = min(FRAMES, 1 << (frames.bit_length() - 1)) * self.stride
            pieces_of_it.append(inputs[first : first + size])
            first += size
        return pieces_of_it

    def advance(
        self,
        slots: Sequence[int],
        inputs: Sequence[np.ndarray],
        fresh: Sequence[bool],
        sources: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Reads inputs (T, ...), of one length, into the memories of different slots, and returns the model's outputs
        after the last step of each.

        Those that are `fresh` go on from an empty memory, others from that of the slots `sources`; None: their own.
        """
        size = _power(len(slots))
        batch = np.concatenate([np.stack(inputs), np.repeat(inputs[0][None], size - len(slots), axis=0)])
        places = np.full((2, size), self._capacity)
        places[:, : len(slots)] = slots, slots if sources is None else sources
        begun = np.ones(size, bool)
        begun[: len(slots)] = fresh
        call = np.uint32(next(self._calls) % (1 << 32))
        memory, params = self._memory, self._trained.params
        outputs, self._memory = self._advance(params, memory, self._empty, *places, batch, begun, call)
        return np.asarray(outputs)[: len(slots)]


def _power(count: int) -> int:
    """The least power of two that is at least so many."""
    return 1 << (count - 1).bit_length()


def _advance(
    model: ModelLike,
    capacity: int,
    params: PyTree,
    memory: PyTree,
    empty: PyTree,
    slots: Array,
    sources: Array,
    inputs: Array,
    fresh: Array,
    call: Array,
) -> tuple[Array, PyTree]:
    def rows_of(leaf: Array, slots: Array) -> Array:
        rows = leaf.shape[0] // (capacity + 1)  # of one session
        return (slots[:, None] * rows + jnp.arange(rows)[None]).reshape(-1)

    def take(leaf: Array, nothing: Array) -> Array:
        begun = jnp.repeat(fresh, nothing.shape[0]).reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(begun, jnp.tile(nothing, (len(slots), *[1] * (leaf.ndim - 1))), leaf[rows_of(leaf, sources)])

    state = jax.tree.map(take, memory, empty)
    outputs, after = model.apply(
        {"params": params}, inputs, state, rngs={"noise": jax.random.fold_in(jax.random.key(0), call)}
    )
    outputs = outputs[:, -1] if kind_of(model.config.task).every_step else outputs
    return outputs, jax.tree.map(lambda leaf, new: leaf.at[rows_of(leaf, slots)].set(new), memory, after)
