"""One step of training, pure: (state, batch) -> (state, metrics)."""

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from selssm_jax.config import Experiment
from selssm_jax.model import Reader
from selssm_jax.training import objectives, parallel

Batch = dict[str, jax.Array | np.ndarray]


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, and the key that none changes."""

    step: jax.Array
    params: Any
    opt_state: Any
    rng: jax.Array


def initial(experiment: Experiment, model: Reader, optimizer: optax.GradientTransformation, batch: Batch) -> TrainState:
    """Returns the state before the first step; parameters are drawn from training.seed."""

    def build(inputs: jax.Array) -> TrainState:
        params_key, rng = jax.random.split(jax.random.key(experiment.training.seed))
        params = model.init(_keys(params_key), inputs)["params"]
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(rng))

    return jax.jit(build)(batch["inputs"][:1])


def train_step(
    state: TrainState, batch: Batch, *, model: Reader, optimizer: optax.GradientTransformation, experiment: Experiment, axis: str | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Returns the next state and the metrics' sums over the whole batch, "gradient_norm" among them.

    The loss is the mean over all weighted targets of the batch, wherever its rows lie: neither the number of devices nor
    that of micro-batches changes it. Only what is drawn at random (dropout, noise, hard concrete gates) is drawn anew for
    each of them, from (training.seed, step, device, micro-batch).
    """
    kind, stride = model.config.task.kind, _stride(model)
    key = parallel.on_device(jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step), axis)
    weights = parallel.total(objectives.weights(kind, batch, stride), axis)
    objective = partial(_objective, model=model, terms=_terms(experiment, kind), weights=weights)
    gradients, sums = parallel.total(_accumulate(objective, state.params, batch, key, experiment.optimizer.accumulate), axis)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    sums["gradient_norm"] = jnp.stack([optax.tree.norm(gradients), jnp.float32(1)])
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state, state.rng), sums


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
    params: Any, batch: Batch, key: jax.Array, *, model: Reader, terms: dict[str, float], weights: dict[str, jax.Array]
) -> tuple[jax.Array, objectives.Sums]:
    """This share's part of the loss, sum_k terms[k] sum_k / weights[k] with the whole batch's weights, and its metrics."""
    penalised = len(terms) > 1  # only then are the gates kept
    (outputs, _), sown = model.apply(
        {"params": params},
        batch["inputs"],
        reset=batch.get("reset"),
        valid=batch["valid"],
        deterministic=False,
        rngs=_keys(key),
        mutable=["diagnostics", "intermediates"] if penalised else ["diagnostics"],
    )
    sums = objectives.score(model.config.task.kind, outputs, batch) | objectives.fallbacks(sown.get("diagnostics", {}))
    if penalised:
        sums |= objectives.gate_penalties(sown["intermediates"], batch["valid"], _stride(model))
    return sum(factor * sums[name][0] / weights[name] for name, factor in terms.items()), sums


def _terms(experiment: Experiment, kind: str) -> dict[str, float]:
    """What the loss is made of, and each term's factor."""
    penalties = {"gate_l1": experiment.training.gate_l1, "gate_l0": experiment.training.gate_l0}
    return {objectives.LOSS[kind]: 1.0} | {name: factor for name, factor in penalties.items() if factor}


def _stride(model: Reader) -> int:
    return 1 if model.config.task.kind == "language" else model.config.stride


def _keys(key: jax.Array) -> dict[str, jax.Array]:
    names = ("params", "dropout", "noise", "gates")
    return dict(zip(names, jax.random.split(key, len(names)), strict=True))
