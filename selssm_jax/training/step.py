"""One step of training, pure: (state, batch) -> (state, metrics)."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from selssm_jax.config import Experiment
from selssm_jax.model import SequenceModel
from selssm_jax.training import objectives, parallel

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, and the key that none changes."""

    step: jax.Array
    params: Any
    opt_state: Any
    rng: jax.Array


def initial(experiment: Experiment, model: SequenceModel, optimizer: optax.GradientTransformation, batch: Batch) -> TrainState:
    """Returns the state before the first step; parameters are drawn from training.seed."""

    def build(inputs: jax.Array) -> TrainState:
        params_key, rng = jax.random.split(jax.random.key(experiment.training.seed))
        params = model.init(_keys(params_key), inputs)["params"]
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(rng))

    return jax.jit(build)(batch["inputs"][:1])


def train_step(
    state: TrainState, batch: Batch, *, model: SequenceModel, optimizer: optax.GradientTransformation, experiment: Experiment, axis: str | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the next state and the metrics' sums over the whole batch, "gradient_norm" among them.

    The loss is the mean over all weighted targets of the batch, wherever its rows lie: neither the number of devices nor
    that of micro-batches changes it.
    """
    key = parallel.on_device(jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step), axis)
    weight = parallel.total(batch["weights"].sum(), axis)
    rows = parallel.total(jnp.float32(batch["weights"].shape[0]), axis)
    objective = partial(_objective, model=model, experiment=experiment, weight=weight, rows=rows)
    gradients, sums = parallel.total(_accumulate(objective, state.params, batch, key, experiment.optimizer.accumulate), axis)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    sums["gradient_norm"] = jnp.stack([optax.tree.norm(gradients), jnp.float32(1)])
    return state.replace(step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state), sums


def _accumulate(objective: Any, params: Any, batch: Batch, key: jax.Array, parts: int) -> tuple[Any, objectives.Sums]:
    """Sum of gradients and metrics over micro-batches, one after the other."""
    gradient = jax.grad(objective, has_aux=True)
    if parts == 1:
        return gradient(params, batch, key)
    micro = jax.tree.map(lambda rows: rows.reshape(parts, -1, *rows.shape[1:]), batch)
    keys = jax.random.split(key, parts)
    shape = jax.eval_shape(gradient, params, jax.tree.map(lambda rows: rows[0], micro), key)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
    return jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, gradient(params, *part)), None), zero, (micro, keys))[0]


def _objective(
    params: Any, batch: Batch, key: jax.Array, *, model: SequenceModel, experiment: Experiment, weight: jax.Array, rows: jax.Array
) -> tuple[jax.Array, objectives.Sums]:
    kind, penalised = model.config.task.kind, bool(experiment.training.gate_l1 or experiment.training.gate_l0)
    mutable = ["intermediates"] if penalised else False
    result = model.apply({"params": params}, batch["inputs"], valid=batch["valid"], deterministic=False, rngs=_keys(key), mutable=mutable)
    outputs = result[0][0] if penalised else result[0]
    sums = objectives.score(kind, outputs, batch)
    loss = sums[objectives.LOSS[kind]][0] / weight
    if penalised:
        penalties = objectives.gate_penalties(result[1]["intermediates"], batch["valid"])
        count = jnp.float32(batch["valid"].shape[0])
        sums |= {f"gate_{name}": jnp.stack([value * count, count]) for name, value in penalties.items()}
        loss += (experiment.training.gate_l1 * penalties["l1"] + experiment.training.gate_l0 * penalties.get("l0", 0.0)) * count / rows
    return loss, sums


def _keys(key: jax.Array) -> dict[str, jax.Array]:
    names = ("params", "dropout", "noise", "gates")
    return dict(zip(names, jax.random.split(key, len(names)), strict=True))
