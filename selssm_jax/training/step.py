"""One step of training, pure: (state, batch) -> (state, metrics)."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from selssm_jax.config import Experiment, Training
from selssm_jax.layers.encoders import frame_valid
from selssm_jax.model import ModelLike, SequenceModel
from selssm_jax.observe import observe
from selssm_jax.ops import shards
from selssm_jax.shapes import Batch
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import Sums
from selssm_jax.training import draws, objectives, parallel, pieces


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, and the key that none changes."""

    step: jax.Array
    params: Any
    opt_state: Any
    rng: jax.Array

    @property
    def evaluated(self) -> Any:
        """The parameters that validation, the best checkpoint and `eval.py` read."""
        return self.params

    def start_from(self, params: Any) -> "TrainState":
        """Returns the state before the first step with other parameters."""
        return dataclasses.replace(self, params=params)


@flax.struct.dataclass
class ConstrainedState(TrainState):
    """The state of a run whose gates are held to training.target_dimension: with the constraint's Lagrange multiplier.

    A class of its own, so that checkpoints of runs without a constraint stay what they were.
    """

    multiplier: jax.Array


@flax.struct.dataclass
class AveragedState(TrainState):
    """The state of a run with training.average: with the average of its parameters so far, which is what is evaluated,
    and the sum of the average's weights. A class of its own for the same reason.
    """

    average: Any
    average_weight: jax.Array

    @property
    def evaluated(self) -> Any:
        """See `TrainState`."""
        return self.average

    def start_from(self, params: Any) -> TrainState:
        """See `TrainState`."""
        # a copy, for a step gives both away
        return dataclasses.replace(self, params=params, average=jax.tree.map(jnp.copy, params))


@flax.struct.dataclass
class AveragedConstrainedState(AveragedState, ConstrainedState):
    """The state of a run with both."""


def initial(
    experiment: Experiment, model: SequenceModel, optimizer: optax.GradientTransformation, batch: Batch
) -> TrainState:
    """Returns the state before the first step; parameters are drawn from training.seed."""

    def build(inputs: jax.Array) -> TrainState:
        params_key, rng = jax.random.split(jax.random.key(experiment.training.seed))
        params = model.init(_keys(params_key), inputs)["params"]
        parts = jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(rng)
        multiplier = {"multiplier": jnp.zeros(())} if experiment.training.target_dimension else {}
        if not experiment.training.average:
            return ConstrainedState(*parts, **multiplier) if multiplier else TrainState(*parts)
        kind: Callable[..., TrainState] = AveragedConstrainedState if multiplier else AveragedState
        return kind(*parts, **multiplier, average=params, average_weight=jnp.zeros(()))

    return jax.jit(build)(batch["inputs"][:1])


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: ModelLike,
    optimizer: optax.GradientTransformation,
    experiment: Experiment,
    axis: parallel.Axis = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the next state and the metrics' sums over the whole batch: "gradient_norm" too and, where
    training.skip_nonfinite is set, "skipped", 1 if the state is the one before.

    The loss is the mean over all weighted targets of the batch, wherever its rows lie, and what is drawn at random
    (dropout, noise, hard concrete gates) is drawn for each row, from (training.seed, step, the row's number in the
    whole batch): neither the number of devices nor that of micro-batches changes it beyond rounding. Devices that share
    a sequence draw for their own steps, and each says what is said of it as a whole: sums and weights alike.
    """
    kind = kind_of(model.config.task)
    loss = kind.trained_on(experiment.training)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    key = jax.random.fold_in(key, shards.number()) if shards.count() > 1 else key
    form, steps = experiment.training.information_bound, experiment.training.information_steps
    weights = parallel.total(objectives.weights(loss, batch, kind.stride(model.config), steps=steps), axis)
    total = partial(parallel.total, axis=axis)
    objective = partial(
        _objective,
        model=model,
        gather=partial(parallel.gather, axis=axis),
        # what a state's information is bounded by are moments over all steps
        piece=pieces.WHOLE if experiment.training.information_weight else experiment.training.piece,
        terms=_terms(experiment, loss, state),
        weights=weights,
        form=form,
        steps=steps,
        total=total,
    )
    shares = experiment.optimizer.accumulate * parallel.device_number(axis) + jnp.arange(
        experiment.optimizer.accumulate
    )
    gradients, sums = _accumulate(objective, state.params, batch, key, shares)
    gradients, sums = parallel.total_gradient(gradients, axis), parallel.total(sums, axis)
    norm = parallel.norm(gradients, axis)
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(gradients, state.opt_state, state.params, norm=norm)
    sums["gradient_norm"] = jnp.stack([norm, jnp.float32(1)])
    after = dataclasses.replace(
        state, step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
    )
    if isinstance(after, ConstrainedState):
        after = _ascend(after, sums, experiment.training)
    if isinstance(after, AveragedState):
        after = _average(after, experiment.training.average)
    return (_skip_nonfinite(state, after, sums, kind.loss) if experiment.training.skip_nonfinite else after), sums


def _ascend(state: ConstrainedState, sums: Sums, training: Training) -> ConstrainedState:
    """Dual ascent on the constraint mean gate <= target, after a step: multiplier <- max(0, multiplier + rate (mean
    gate / target - 1)).

    In a warm-up it climbs as slowly as it weighs: it would wind up while it can move nothing.
    """
    sums["multiplier"] = jnp.stack([state.multiplier, jnp.float32(1)])
    total, weight = sums["gate_l1"]
    climb = (
        _ramp(state.step - 1, training) * training.multiplier_rate * (total / weight / training.target_dimension - 1)
    )
    return dataclasses.replace(state, multiplier=jnp.maximum(0, state.multiplier + climb))


def _average(state: AveragedState, decay: float) -> AveragedState:
    """The exponential moving average after a step, without bias: (1 - d) sum_k d^(t-k) params_k / (1 - d^t).

    Its weights sum to w_t = d w_(t-1) + 1 - d, so that average <- average + (1 - d) / w_t (params - average).
    """
    weight = optax.incremental_update(1.0, state.average_weight, 1 - decay)
    average = optax.incremental_update(state.params, state.average, (1 - decay) / weight)
    return dataclasses.replace(state, average=average, average_weight=weight)


def _skip_nonfinite(before: TrainState, after: TrainState, sums: Sums, loss: str) -> TrainState:
    """The state after a step whose loss and gradient are finite; else the one before, of which the number of the step
    alone counts on. Every device decides alike, for these are sums over all of them.
    """
    total, weight = sums[loss]
    finite = jnp.isfinite(total / weight) & jnp.isfinite(sums["gradient_norm"][0])
    sums["skipped"] = jnp.stack([1.0 - finite, jnp.float32(1)])
    chosen = jax.tree.map(partial(jnp.where, finite), after, before)
    return dataclasses.replace(chosen, step=after.step)


def _ramp(step: jax.Array, training: Training) -> jax.Array | float:
    """The share of its weight that a penalty has in the step after `step` others."""
    return jnp.minimum(1, (step + 1) / training.penalty_warmup) if training.penalty_warmup else 1.0


def _accumulate(objective: Any, params: Any, batch: Batch, key: jax.Array, shares: jax.Array) -> tuple[Any, Sums]:
    """Sum of gradients and metrics over micro-batches, one after the other; `shares` are their numbers among those of
    all devices.
    """
    gradient = jax.grad(objective, has_aux=True)
    if len(shares) == 1:
        return gradient(params, batch, draws.by_row(key, shares[0]))
    micro = jax.tree.map(lambda rows: rows.reshape(len(shares), -1, *rows.shape[1:]), batch)

    def add(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        rows, share = part
        return jax.tree.map(jnp.add, total, gradient(params, rows, draws.by_row(key, share))), None

    shape = jax.eval_shape(gradient, params, jax.tree.map(lambda rows: rows[0], micro), draws.by_row(key, 0))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
    return jax.lax.scan(add, zero, (micro, shares))[0]


def _objective(
    params: Any,
    batch: Batch,
    key: jax.Array,
    *,
    model: ModelLike,
    gather: Callable[[Any], Any],
    piece: int,
    terms: dict[str, jax.Array | float],
    weights: dict[str, jax.Array],
    form: str,
    steps: str,
    total: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, Sums]:
    """This share's part of the loss, sum_k terms[k] sum_k / weights[k] with the whole batch's weights, and its
    metrics.
    """
    # only what a penalty reads
    kept = ["diagnostics"] + (["intermediates"] if len(terms) > 1 else []) + (["laws"] if "rate" in terms else [])
    kind, loss, params = kind_of(model.config.task), next(iter(terms)), gather(params)

    def read(before: Any, part: Batch, number: jax.Array | None) -> tuple[Any, Any, Sums]:
        keys = _keys(pieces.key_of(key, number))
        outputs, state, blocks = observe(model, params, part, before, rngs=keys, collections=kept, deterministic=False)
        frames = frame_valid(part["valid"], kind.stride(model.config)).astype(jnp.float32)
        sums = objectives.fallbacks(blocks)
        if "intermediates" in kept:
            sums |= objectives.gate_penalties(blocks, frames) | objectives.dimensions(blocks, frames)
            sums |= objectives.ratios(blocks, frames, model.config.resample.rate)
        if "rate" in terms:
            sums |= objectives.rates(blocks, objectives.weigh_steps(frames, steps), form=form, total=total)
        return outputs, state, sums

    _, sums = pieces.fold(read, partial(kind.training_score, loss), model, params, batch, piece)
    return sum((factor * sums[name][0] / weights[name] for name, factor in terms.items()), jnp.zeros(())), sums


def _terms(experiment: Experiment, loss: str, state: TrainState) -> dict[str, jax.Array | float]:
    """What is minimised, and each term's factor at this step; the task's loss is the first."""
    training, ramp = experiment.training, _ramp(state.step, experiment.training)
    weights = {"gate_l1": training.gate_l1, "gate_l0": training.gate_l0, "rate": training.information_weight}
    weights |= {"ratio": training.resample_ratio}
    penalties = {name: ramp * weight for name, weight in weights.items() if weight}
    if isinstance(state, ConstrainedState):
        penalties["gate_l1"] = ramp * state.multiplier
    return {loss: 1.0} | penalties


def _keys(key: jax.Array) -> dict[str, jax.Array]:
    names = ("params", "dropout", "noise", "gates")
    return dict(zip(names, jax.random.split(key, len(names)), strict=True))
