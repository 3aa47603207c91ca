"""States of a trained model at some moments of many sequences, beside what the sequences held: what memory is measured
from.
"""

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from selssm_jax.config import Model
from selssm_jax.information import bracket
from selssm_jax.layers.contract import Law
from selssm_jax.model import ModelLike, State, mixer_places
from selssm_jax.observe import Observed, find_data_rows, observe
from selssm_jax.shapes import AnyArray, Batch
from selssm_jax.state_layout import components, mixer_components
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import objectives, pieces

WIDEST = 1024  # components of a carried state that are kept; wider ones are projected
LAWS = "laws"  # of states, beside what the model carries from piece to piece


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


class _Plan(NamedTuple):
    """What of every sequence is recorded, as `record` says."""

    moments: Int[np.ndarray, "P"]
    scored: Int[np.ndarray, "K"]
    piece: int


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
    piece: int = pieces.AUTO,
) -> Recording:
    """Reads batches until `samples` sequences have been seen, each with noise of its own.

    Args:
      model, params: a model; the "state", the "gate" and the `Law` of its mixers are used where they are sown, and what
        they carry where no state is.
      batches: as a dataset's `evaluate` gives them. moments: steps of the recurrence, ascending. scored: the steps with
        answers.
      every: keep every n-th of the overlapping windows of a series; 0: sequences are independent and all are kept.
      piece: as training.piece.
    """
    recorder = _Recorder(model, params, _Plan(np.asarray(moments), np.asarray(scored, int), piece))
    parts, starts, count, first = [], [], 0, 0
    for number, batch in enumerate(batches):
        part = recorder.record(batch, jax.random.fold_in(jax.random.key(seed), number))
        selected, windows = rows_read(model.config, batch, moments, first=first, every=every)
        selected, windows = selected[: samples - count], windows[: samples - count]
        parts.append(jax.tree.map(operator.itemgetter(selected), part))
        starts.append(windows / kind_of(model.config.task).stride(model.config))
        count, first = count + len(selected), first + len(batch["weights"])
        if count >= samples:
            break
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return joined._replace(moments=np.asarray(moments), starts=np.concatenate(starts) if every else None)


def law_of_state(
    law: Law, moments: AnyArray | Sequence[int], before: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """Means (B, P, n) and covariances (B, P, n) or (B, P, n, n) at the moments, from h_0 = 0, or from those of the step
    `before`; complex states as pairs of reals.
    """
    at = jnp.asarray(moments)
    if law.A is not None and law.A.ndim == 4:
        one = lambda A, drive, noise, *start: jax.tree.map(  # noqa: E731
            lambda value: value[at], bracket.conditional_moments(A, drive, noise**2, *start)
        )
        return tuple(jax.lax.map(lambda row: one(*row), (law.A, law.drive, law.noise, *(before or ()))))
    means, variances = objectives.moments(law, "vib", before)
    return means[:, at], variances[:, at]


class _Recorder:
    """Records batches, each in pieces; what it compiles serves them all."""

    def __init__(self, model: ModelLike, params: PyTree, plan: _Plan) -> None:
        self.model, self.params, self.plan, self.kind = model, params, plan, kind_of(model.config.task)
        self._read = jax.jit(partial(_read, model))
        self._onward = jax.jit(partial(_read_onward, model))
        self._components = jax.jit(partial(_carried_components, mixer_places(model.config)))

    def record(self, batch: Batch, key: Array) -> Recording:
        """Returns all sequences of a batch, at no moments and without starts."""
        config = self.model.config
        blocks, answers = self._record_shown(batch, key)
        if any(block.states is None for block in blocks.values()):
            carried = self._record_carried(batch, key)
            blocks = {
                name: block._replace(states=carried[name]) if block.states is None else block
                for name, block in blocks.items()
            }
        targets = self.kind.split(config, jnp.asarray(batch["targets"])) if self.kind.forecasts else None
        frames, live = _frames(config, batch), _live(config, batch)[:, self.plan.moments]
        return jax.device_get(Recording(frames, np.zeros(len(frames)), live, None, blocks, answers, targets))

    def _record_shown(self, batch: Batch, key: Array) -> tuple[dict[str, Block], Answers | None]:
        """What the blocks show, and the answers; of each piece those of its own moments and scored steps."""
        config = self.model.config
        piece = pieces.choose_for_batch(config, batch, self.plan.piece)

        def read(state: Any, part: Batch, number: int | None) -> tuple[Any, Any]:
            begun, frames = (number or 0) * self.kind.frames(config, piece), _count_frames(config, part)
            moments, scored = self.plan.moments - begun, self.plan.scored - begun
            at = [np.clip(steps, 0, frames - 1) for steps in (moments, scored)]
            shown, state = self._read(self.params, state, part, *at, pieces.key_of(key, number))
            blocks, answers = jax.device_get(shown)
            return (
                {
                    name: Block(_select(block.states, moments, frames), block.gate, _select(block.law, moments, frames))
                    for name, block in blocks.items()
                },
                _select(answers, scored, frames),
            ), state

        parts = [part for part, _ in pieces.walk(read, self.model, self.params, batch, piece)]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)

    def _record_carried(self, batch: Batch, key: Array) -> dict[str, AnyArray]:
        """What the mixer of every block carries after each moment, (R, P, n): the sequence once more, in pieces that
        end there too.
        """
        config, stride = self.model.config, self.kind.stride(self.model.config)
        state, kept = pieces.begin(self.model, self.params, batch), []
        piece = pieces.choose_for_batch(config, batch, self.plan.piece)
        for start, stop in itertools.pairwise([0, *((self.plan.moments + 1) * stride).tolist()]):
            read = partial(self._onward, self.params, jax.random.fold_in(key, start))
            part = pieces.cut(config, batch, start, stop)
            *_, (_, state) = pieces.walk(read, self.model, self.params, part, piece, state)
            kept.append(jax.device_get(self._components(state["blocks"])))
        return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *kept)


def _select(tree: Any, steps: np.ndarray, frames: int) -> Any:
    """Of arrays (R, P, ...) at steps of a piece, those at steps that it has."""
    inside = (steps >= 0) & (steps < frames)
    return jax.tree.map(lambda leaf: leaf[:, inside], tree)


def _count_frames(config: Model, batch: Batch) -> int:
    return kind_of(config.task).frames(config, batch["valid"].shape[1])


def _read(
    model: ModelLike, params: PyTree, state: Any, part: Batch, moments: Array, scored: Array, key: Array
) -> tuple[tuple[dict[str, Block], Answers | None], Any]:
    """((what the blocks show at moments of a piece, the answers), the state, with the laws of the states in it)."""
    before = {} if state is None else state.get(LAWS, {})
    state = None if state is None else {name: leaf for name, leaf in state.items() if name != LAWS}
    outputs, after, shown = observe(
        model, params, part, state, rngs={"noise": key}, collections=["intermediates", "laws"]
    )
    at = jnp.append(moments, _count_frames(model.config, part) - 1)
    laws = {
        name: Conditional(*law_of_state(block.law, at, before.get(name)))
        for name, block in shown.items()
        if block.law is not None
    }
    blocks = {name: _sample_block(block, laws.get(name), moments) for name, block in shown.items()}
    answers = _answers(outputs, part["targets"], scored) if scored.size else None
    ends = {name: tuple(leaf[:, -1] for leaf in law) for name, law in laws.items()}
    return (blocks, answers), after | ({LAWS: ends} if ends else {})


def _sample_block(shown: Observed, law: Conditional | None, moments: Array) -> Block:
    return Block(
        None if shown.state is None else components(shown.state[:, moments]),
        None if shown.gate is None else shown.gate.mean(axis=-1),
        None if law is None else Conditional(*(leaf[:, :-1] for leaf in law)),
    )


def _read_onward(
    model: ModelLike, params: PyTree, key: Array, state: State, part: Batch, number: Any
) -> tuple[None, State]:
    return None, pieces.make_reader(model, params, key)(state, part, number)[1]


def _carried_components(places: Mapping[str, int], blocks: tuple[State, ...]) -> dict[str, Array]:
    """What the mixer of every block carries that has one."""
    return {name: _project_states(mixer_components(blocks[index]["mixer"])) for name, index in places.items()}


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


def _answers(logits: Array, targets: Array, scored: Array) -> Answers:
    tokens, log_p = targets[:, scored], jax.nn.log_softmax(logits[:, scored])
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
