"""States of a trained model at some moments of many sequences, beside what the sequences held: what memory is measured
from.
"""

import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from selssm_jax.config import Model
from selssm_jax.information import bracket
from selssm_jax.layers.contract import Law
from selssm_jax.model import ModelLike, State, begin_reading
from selssm_jax.observe import Observed, find_data_rows, observe
from selssm_jax.shapes import AnyArray, Batch
from selssm_jax.state_layout import components, mixer_components
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import objectives

WIDEST = 1024  # components of a carried state that are kept; wider ones are projected


class Conditional(NamedTuple):
    """The normal law of a block's states at the moments, given all of the block's inputs, or, where gates read the
    state, given h_{t-1} and x_t.

    means: (M, P, n). covs: (M, P, n), or (M, P, n, n) for a dense transition.
    """

    means: AnyArray
    covs: AnyArray


class Block(NamedTuple):
    """One block: states (M, P, n), real; the mean of its gates by frame, (M, F), if it has any; the law of its states,
    if they have noise.

    A mixer that sows no states, for its scan never has them all at once, gives what it carries, past inputs and caches
    with it. Of more than `WIDEST` components that is a fixed random projection: what it says of anything is a lower
    bound of what the state says, by data processing.
    """

    states: AnyArray
    gate: AnyArray | None
    law: Conditional | None


class Answers(NamedTuple):
    """What was to be said at the K scored steps of a sequence, (M, K), and the log-probability that the model gave to
    it, and whether it said it.
    """

    tokens: AnyArray
    log_p: AnyArray
    right: AnyArray


class Recording(NamedTuple):
    """M sequences, each read from an empty memory, at P moments.

    Attributes:
      frames: (M, F) tokens, or (M, F, C) values: what was read at each step of the recurrence (the last sample of a
        frame).
      moments: (P,) steps of the recurrence after which states were kept. live: (M, P) whether the sequence had not
        ended before.
      starts: (M,) where sequences that overlap begin in the series that they are windows of, in steps of the
        recurrence; None: they are independent.
      blocks: by name. answers: of a task that has them. targets: (M, H, C), of a forecast.
    """

    frames: AnyArray
    moments: AnyArray
    live: AnyArray
    starts: AnyArray | None
    blocks: dict[str, Block]
    answers: Answers | None
    targets: AnyArray | None

    @property
    def is_tokens(self) -> bool:
        """Whether tokens were read, not values."""
        return self.frames.ndim == 2


def record(
    model: ModelLike,
    params: PyTree,
    batches: Iterable[Batch],
    *,
    samples: int,
    moments: Sequence[int],
    scored: Sequence[int] = (),
    every: int = 0,
    seed: int = 0,
) -> Recording:
    """Reads batches until `samples` sequences have been seen, each with noise of its own.

    Args:
      model, params: a model; the "state", the "gate" and the `Law` of its mixers are used where they are sown, and what
        they carry where no state is.
      batches: as a dataset's `evaluate` gives them. moments: steps of the recurrence, ascending. scored: the steps with
        answers.
      every: keep every n-th of the overlapping windows of a series; 0: sequences are independent and all are kept.
    """
    read = jax.jit(lambda *arguments: _read(model, moments, scored, *arguments))
    parts, starts, count, first = [], [], 0, 0
    for number, batch in enumerate(batches):
        key = jax.random.fold_in(jax.random.key(seed), number)
        part = jax.device_get(read(params, batch, key))
        selected, windows = rows_read(model.config, batch, moments, first=first, every=every)
        selected, windows = selected[: samples - count], windows[: samples - count]
        parts.append(jax.tree.map(operator.itemgetter(selected), part))
        starts.append(windows / kind_of(model.config.task).stride(model.config))
        count, first = count + len(selected), first + len(batch["weights"])
        if count >= samples:
            break
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return joined._replace(moments=np.asarray(moments), starts=np.concatenate(starts) if every else None)


def law_of_state(law: Law, moments: Sequence[int]) -> tuple[Array, Array]:
    """Means (B, P, n) and covariances (B, P, n) or (B, P, n, n) at the moments, from h_0 = 0; complex states as pairs
    of reals.
    """
    at = jnp.asarray(moments)
    if law.A is not None and law.A.ndim == 4:
        one = lambda A, drive, noise: jax.tree.map(  # noqa: E731
            lambda value: value[at], bracket.conditional_moments(A, drive, noise**2)
        )
        return tuple(jax.lax.map(lambda row: one(*row), (law.A, law.drive, law.noise)))
    means, variances = objectives.moments(law, "vib")
    return means[:, at], variances[:, at]


def _read(
    model: ModelLike, moments: Sequence[int], scored: Sequence[int], params: PyTree, batch: Batch, key: Array
) -> Recording:
    outputs, _, shown = observe(model, params, batch, rngs={"noise": key}, collections=["intermediates", "laws"])
    carried = (
        {}
        if all(block.state is not None for block in shown.values())
        else _record_states(model, params, batch, moments, list(shown), key)
    )
    blocks = {name: _sample_block(block, carried.get(name), moments) for name, block in shown.items()}
    frames, live = _frames(model.config, batch), _live(model.config, batch)
    answers = _answers(outputs, batch["targets"], scored) if scored else None
    kind = kind_of(model.config.task)
    targets = kind.split(model.config, jnp.asarray(batch["targets"])) if kind.forecasts else None
    return Recording(frames, jnp.zeros(len(frames)), live[:, jnp.asarray(moments)], None, blocks, answers, targets)


def _sample_block(shown: Observed, carried: Array | None, moments: Sequence[int]) -> Block:
    gate = None if shown.gate is None else shown.gate.mean(axis=-1)
    law = None if shown.law is None else Conditional(*law_of_state(shown.law, moments))
    return Block(carried if shown.state is None else components(shown.state[:, jnp.asarray(moments)]), gate, law)


def _record_states(
    model: ModelLike, params: PyTree, batch: Batch, moments: Sequence[int], names: Sequence[str], key: Array
) -> dict[str, Array]:
    """What the mixer of every block carries after each moment, (B, P, n): the sequence once more, in pieces that end
    there.
    """
    stride = kind_of(model.config.task).stride(model.config)
    inputs = jnp.asarray(batch["inputs"])
    state = begin_reading(model, params, inputs)
    kept: list[tuple[State, ...]] = []
    for start, stop in itertools.pairwise([0, *((moment + 1) * stride for moment in moments)]):
        reset = None if batch.get("reset") is None else batch["reset"][:, start:stop]
        _, state = model.apply(
            {"params": params},
            inputs[:, start:stop],
            state,
            reset=reset,
            valid=batch["valid"][:, start:stop],
            rngs={"noise": jax.random.fold_in(key, start)},
        )
        kept.append(state["blocks"])
    return {
        name: jnp.stack([_project_states(mixer_components(blocks[index]["mixer"])) for blocks in kept], axis=1)
        for index, name in enumerate(names)
    }


def _project_states(state: Array) -> Array:
    """States of at most `WIDEST` components, by a projection that is the same in every call (Johnson and Lindenstrauss
    1984).
    """
    if state.shape[1] <= WIDEST:
        return state
    return state @ jax.random.normal(jax.random.key(0), (state.shape[1], WIDEST)) / WIDEST**0.5


def _frames(config: Model, batch: Batch) -> Array:
    """What was read at each step of the recurrence."""
    inputs = jnp.asarray(batch["inputs"])
    return kind_of(config.task).split(config, inputs[:, _last_of_frames(config, inputs.shape[1])])


def _live(config: Model, batch: Batch) -> Array:
    """Whether each sequence still went on at each step of the recurrence."""
    valid = jnp.asarray(batch["valid"])
    return jnp.repeat(valid[:, _last_of_frames(config, valid.shape[1])], kind_of(config.task).rows(config), axis=0)


def _last_of_frames(config: Model, steps: int) -> np.ndarray:
    """The last step of the inputs that each step of the recurrence has read."""
    stride = kind_of(config.task).stride(config)
    return np.minimum(np.arange(stride - 1, steps + stride - 1, stride), steps - 1)


def _answers(logits: Array, targets: Array, scored: Sequence[int]) -> Answers:
    at = jnp.asarray(scored)
    tokens, log_p = jnp.asarray(targets)[:, at], jax.nn.log_softmax(logits[:, at])
    return Answers(
        tokens, jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0], jnp.argmax(log_p, axis=-1) == tokens
    )


def rows_read(
    config: Model, batch: Batch, moments: Sequence[int], *, first: int = 0, every: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which sequences of a batch are measured, and the row of the split that each is of; where channels run
    apart, a row has several sequences.

    Not what fills the last batch, and not what ended before the first moment; of windows of one series, every
    `every`-th. `first` is the row that the batch begins with.
    """
    live = np.asarray(_live(config, batch))[:, np.asarray(moments)]
    data = np.asarray(find_data_rows(batch))
    rows, data = (np.repeat(value, len(live) // len(data)) for value in (first + np.arange(len(data)), data))
    selected = np.flatnonzero(data & (rows % max(every, 1) == 0) & live.any(axis=1))
    return selected, rows[selected]
