"""The steps of a stream as pure functions: (state, inputs) -> (state, answer), (state, truth) -> (state, what it
taught).

Truth comes late. A learner reads the stream twice: at the front, where it answers, and behind, where it learns. Behind,
the state, with what its gradients carry, waits before the oldest step whose truth has not come, and goes one step
further when it does. So what is held for an answer that waits is its step's input and the answer, and not a trace.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from selssm_jax.model import SequenceModel, State
from selssm_jax.streaming.drift import RISE, Detector
from selssm_jax.streaming.gradients import GradientMethod
from selssm_jax.streaming.reactions import Reaction
from selssm_jax.streaming.samples import Sample, average, choose, measure_errors, read_step
from selssm_jax.tasks.registry import kind_of


class Learner(NamedTuple):
    """All that depends on one set of parameters.

    Attributes:
      front: the state after the newest step. behind: that before the oldest step whose truth has not come. memory: what
        the gradients carry. answers: (W, B, ...), to the steps that wait, the oldest first.
    """

    params: PyTree
    opt_state: PyTree
    front: State
    behind: State
    memory: PyTree
    answers: Float[Array, "W B ..."]


class Waiting(NamedTuple):
    """The steps whose truth has not come, the oldest first: (W, B, ...), of which `filled` are there."""

    inputs: Array
    reset: Bool[Array, "W B"]
    filled: Int[Array, ""]


class Trial(NamedTuple):
    """How many truths a fresh learner still learns beside, and the sums of both errors since."""

    left: Int[Array, ""]
    leader: Float[Array, ""]
    rival: Float[Array, ""]


class StreamState(NamedTuple):
    """All that a stream is, but for its settings: one tree of arrays.

    Attributes:
      rival: a fresh learner, and origin: the parameters that it begins with, where `Reaction.fork` asks for one.
      boost: what steps of the optimiser are times. score: sums of faded errors and of their weights. steps: truths so
        far.
    """

    leader: Learner
    rival: Learner | None
    origin: PyTree | None
    waiting: Waiting
    detector: PyTree
    trial: Trial
    boost: Float[Array, ""]
    score: Float[Array, "2"]
    steps: Int[Array, ""]


class Lesson(NamedTuple):
    """What a truth taught.

    Attributes:
      errors: of the answer as it was given, of every stream; 0 where there is no truth. score: the faded mean of these,
        sum_k fade^k e_{t-k} / sum_k fade^k (Gama, Sebastiao and Rodrigues 2013). change: 1, -1: the detector saw the
        errors rise, fall; 0: neither. updated: whether parameters were. boost: what the optimiser's step was times.
        replaced: whether a trial ended at this truth, and the fresh learner goes on.
    """

    errors: Float[Array, "B ..."]
    score: Float[Array, ""]
    change: Int[Array, ""]
    updated: Bool[Array, ""]
    boost: Float[Array, ""]
    replaced: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a stream does, in functions without a state of their own.

    Attributes:
      model: what reads. optimizer: what learns; None: parameters stay. gradient: how gradients are computed. waiting:
        W, steps that may wait for their truth. detector: of changes of the error; None: none is looked for. reaction:
        to a rise. fade: factor of older errors in the score.
    """

    model: SequenceModel
    optimizer: optax.GradientTransformation | None
    gradient: GradientMethod
    waiting: int
    detector: Detector | None
    reaction: Reaction
    fade: float

    def start(self, params: PyTree, sample: Sample) -> StreamState:
        """Returns the state of streams that nothing was read of, for samples of these shapes."""
        rows = len(sample.inputs)
        initial: Any = self.model.apply({"params": params}, rows, method="initial_state")
        answer, _ = jax.eval_shape(self._read, params, sample.inputs, sample.reset, initial)
        leader = Learner(
            params,
            self.optimizer.init(params) if self.optimizer else None,
            initial,
            initial,
            self.gradient.start(self.model, params, sample) if self.optimizer else None,
            jnp.zeros((self.waiting, *answer.shape), answer.dtype),
        )
        zero = jnp.zeros((), jnp.float32)
        ring = Waiting(
            jnp.zeros((self.waiting, *sample.inputs.shape), sample.inputs.dtype),
            jnp.zeros((self.waiting, rows), bool),
            jnp.zeros((), jnp.int32),
        )
        return StreamState(
            leader,
            leader if self.reaction.fork else None,
            params if self.reaction.fork else None,
            ring,
            self.detector.start() if self.detector else None,
            Trial(jnp.zeros((), jnp.int32), zero, zero),
            zero + 1,
            jnp.zeros(2, jnp.float32),
            jnp.zeros((), jnp.int32),
        )

    def predict(self, state: StreamState, inputs: Array, reset: Array) -> tuple[StreamState, Float[Array, "B ..."]]:
        """Reads a step and returns (state, the answer after it), which waits for its truth."""
        place = state.waiting.filled
        waiting = Waiting(
            state.waiting.inputs.at[place].set(inputs), state.waiting.reset.at[place].set(reset), place + 1
        )

        def read(learner: Learner) -> tuple[Learner, Array]:
            answer, front = self._read(learner.params, inputs, reset, learner.front)
            return learner._replace(front=front, answers=learner.answers.at[place].set(answer)), answer

        leader, answer = read(state.leader)
        rival = state.rival
        if rival is not None:
            rival = jax.lax.cond(state.trial.left > 0, lambda rival: read(rival)[0], lambda rival: rival, rival)
        return state._replace(leader=leader, rival=rival, waiting=waiting), answer

    def learn(self, state: StreamState, targets: Array, weights: Array) -> tuple[StreamState, Lesson]:
        """Teaches the truth of the oldest step that waits: scores the answer that was given, takes a step of the
        optimiser, and reacts where the errors have risen.
        """
        sample = Sample(state.waiting.inputs[0], state.waiting.reset[0], targets, weights)
        errors = measure_errors(self.model, state.leader.answers[0], sample)
        error = average(errors, weights)
        there = (weights.sum() > 0) & jnp.isfinite(error)  # one that is no number would stay in every sum
        leader, updated = self._teach(state.leader, sample, state.boost)
        rival, trial = self._try(state, sample, error)
        score = jnp.where(there, self.fade * state.score + jnp.stack([error, jnp.ones_like(error)]), state.score)
        lesson = Lesson(
            errors,
            score[0] / jnp.maximum(score[1], 1e-9),
            jnp.zeros((), jnp.int32),
            updated,
            state.boost,
            jnp.zeros((), bool),
        )
        decay = math.exp(-1 / self.reaction.rate_steps)
        state = state._replace(
            leader=leader,
            rival=rival,
            waiting=Waiting(
                _drop_first(state.waiting.inputs), _drop_first(state.waiting.reset), state.waiting.filled - 1
            ),
            trial=trial,
            boost=jnp.where(there, 1 + decay * (state.boost - 1), state.boost),
            score=score,
            steps=state.steps + 1,
        )
        state, replaced = self._end_trial(state, state.trial.left == 0, lesson)
        state, change = self._react(state, error, there)
        return state, lesson._replace(change=change, replaced=replaced)

    def advance(
        self, state: StreamState, row: Array, reset: Array, weights: Array
    ) -> tuple[StreamState, tuple[Float[Array, "B ..."], Lesson]]:
        """Reads a row of a series that is its own truth: the horizon of the forecast that was made `waiting` rows ago
        ends with it, and is learnt from first. Until then weights must be 0, and nothing is.
        """
        channels = self.model.config.task.channels
        rows = jnp.concatenate([state.waiting.inputs[1:], row[None]])[..., :channels]

        def learn(state: StreamState) -> tuple[StreamState, Lesson]:
            return self.learn(state, jnp.moveaxis(rows, 0, 1), weights)

        zero, no = jnp.zeros((), jnp.float32), jnp.zeros((), bool)
        nothing = Lesson(jnp.zeros_like(weights), zero, jnp.zeros((), jnp.int32), no, zero, no)
        state, lesson = jax.lax.cond(state.waiting.filled == self.waiting, learn, lambda state: (state, nothing), state)
        state, answer = self.predict(state, row, reset)
        return state, (answer, lesson)

    def replay(
        self, state: StreamState, rows: Array, reset: Array, weights: Array
    ) -> tuple[StreamState, tuple[Float[Array, "T B ..."], Lesson]]:
        """Reads rows (T, B, C) one after the other by `advance`."""

        def step(state: StreamState, row: Array) -> tuple[StreamState, tuple[Array, Lesson]]:
            return self.advance(state, row, reset, weights)

        return jax.lax.scan(step, state, rows)

    def read_history(self, state: StreamState, inputs: Array) -> StreamState:
        """Reads steps (B, T, ...) that nothing is asked of, before the first that is: they set a forecast's scale and
        fill the memory, and no gradient goes through them.
        """
        after: Any = self.model.apply({"params": state.leader.params}, inputs, state.leader.front)[1]
        leader = state.leader._replace(front=after, behind=after)
        return state._replace(leader=leader, rival=leader if state.rival is not None else None)

    def _read(self, params: PyTree, inputs: Array, reset: Array, state: State) -> tuple[Array, State]:
        return read_step(self.model, params, inputs, reset, state)

    def _teach(self, learner: Learner, sample: Sample, boost: Array) -> tuple[Learner, Array]:
        """(the learner one truth later, whether its parameters were updated)."""
        answers = _drop_first(learner.answers)
        if self.optimizer is None:
            return learner._replace(answers=answers), jnp.zeros((), bool)
        given = self.gradient.differentiate(self.model, learner.params, learner.behind, learner.memory, sample)
        finite = jnp.isfinite(optax.tree.norm(given.gradient))
        updated = given.ready & finite & ((sample.weights.sum() > 0) | (optax.tree.norm(given.gradient) > 0))
        gradient = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), given.gradient)
        updates, opt_state = self.optimizer.update(gradient, learner.opt_state, learner.params)
        params = optax.apply_updates(learner.params, jax.tree.map(lambda leaf: boost * leaf, updates))
        params, opt_state = choose(updated, (params, opt_state), (learner.params, learner.opt_state))
        return Learner(params, opt_state, learner.front, given.state, given.memory, answers), updated

    def _try(self, state: StreamState, sample: Sample, error: Array) -> tuple[Learner | None, Trial]:
        """(the fresh learner one truth later, the trial), where one is tried."""
        if state.rival is None:
            return None, state.trial

        def teach(rival: Learner) -> tuple[Learner, Trial]:
            own = average(measure_errors(self.model, rival.answers[0], sample), sample.weights)
            trial = Trial(state.trial.left - 1, state.trial.leader + error, state.trial.rival + own)
            return self._teach(rival, sample, jnp.ones_like(state.boost))[0], trial

        return jax.lax.cond(state.trial.left > 0, teach, lambda rival: (rival, state.trial), state.rival)

    def _end_trial(self, state: StreamState, over: Array, lesson: Lesson) -> tuple[StreamState, Array]:
        """(state, whether the fresh learner goes on); the sums of a trial are 0 once it is over."""
        if state.rival is None:
            return state, lesson.replaced
        # of a leader whose errors are no numbers any fresh learner is the better
        better = over & jnp.isfinite(state.trial.rival) & ~(state.trial.leader <= state.trial.rival)
        sums = [jnp.where(over, 0, total) for total in state.trial[1:]]
        leader = choose(better, state.rival, state.leader)
        return state._replace(leader=leader, trial=Trial(state.trial.left, *sums)), better

    def _react(self, state: StreamState, error: Array, there: Array) -> tuple[StreamState, Array]:
        """(state, what the detector sees of the error)."""
        if self.detector is None:
            return state, jnp.zeros((), jnp.int32)
        seen, change = self.detector.update(state.detector, error)
        state = state._replace(detector=choose(there, seen, state.detector))
        change = jnp.where(there, change, 0)
        return jax.lax.cond(change == RISE, self._answer_rise, lambda state: state, state), change

    def _answer_rise(self, state: StreamState) -> StreamState:
        reaction, leader = self.reaction, state.leader
        if reaction.memory < 1 and self.optimizer:
            leader = leader._replace(memory=self.gradient.forget(leader.memory, reaction.memory))
        if reaction.memory < 1:
            front, behind = (_shrink(carried, reaction.memory) for carried in (leader.front, leader.behind))
            leader = leader._replace(front=front, behind=behind)
        if reaction.reset_optimizer and self.optimizer:
            leader = leader._replace(opt_state=self.optimizer.init(leader.params))
        boost = jnp.maximum(state.boost, reaction.rate) if reaction.rate >= 1 else jnp.asarray(reaction.rate)
        state = state._replace(leader=leader, boost=boost.astype(state.boost.dtype))
        return state if state.rival is None else self._fork(state)

    def _fork(self, state: StreamState) -> StreamState:
        """A fresh learner with an empty memory, unless one is tried already; of answers that wait it has the
        leader's.
        """
        leader, idle = state.leader, state.trial.left == 0
        fresh = Learner(
            state.origin,
            self.optimizer.init(state.origin) if self.optimizer else None,
            _shrink(leader.front, 0.0),
            _shrink(leader.behind, 0.0),
            jax.tree.map(jnp.zeros_like, leader.memory),
            leader.answers,
        )
        left = jnp.where(idle, self.reaction.fork, state.trial.left)
        return state._replace(rival=choose(idle, fresh, state.rival), trial=state.trial._replace(left=left))


def _drop_first(ring: Array) -> Array:
    return jnp.concatenate([ring[1:], jnp.zeros_like(ring[:1])])


def _shrink(state: State, share: float) -> State:
    """A model's state with a share of what its mixers hold."""
    blocks = tuple(
        block | {"mixer": jax.tree.map(lambda leaf: (share * leaf).astype(leaf.dtype), block["mixer"])}
        for block in state["blocks"]
    )
    return state | {"blocks": blocks}


def describe_targets(model: SequenceModel, rows: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Returns shape and type of the truths of one step of `rows` streams, and of their weights."""
    task = model.config.task
    if kind_of(task).forecasts:
        targets = (rows, task.horizon, task.channels)
        weights = targets if task.masked else (rows,)
        return jax.ShapeDtypeStruct(targets, jnp.float32), jax.ShapeDtypeStruct(weights, jnp.float32)
    return jax.ShapeDtypeStruct((rows,), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.float32)


def make_sample(model: SequenceModel, rows: int) -> Sample:
    """Returns a sample of zeros of `rows` streams."""
    task = model.config.task
    inputs: Any = jnp.zeros(rows, jnp.int32) if kind_of(task).tokens else jnp.zeros((rows, task.width), jnp.float32)
    targets, weights = (jnp.zeros(leaf.shape, leaf.dtype) for leaf in describe_targets(model, rows))
    return Sample(inputs, jnp.zeros(rows, bool), targets, weights)
