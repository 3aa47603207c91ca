"""What a model costs: bytes of recurrent state, parameters, compiled peak bytes and floating-point operations."""

import bisect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from selssm_jax.config import Experiment, Model
from selssm_jax.model import ModelLike
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import parallel
from selssm_jax.training.optimizer import build
from selssm_jax.training.step import TrainState, train_step

POSITIONS = (1, 1_024, 65_536)  # at which a report says what is carried
FURTHEST = 2**40  # position that is looked at


class Cost(NamedTuple):
    """What one compiled call takes. None: the platform's compiler does not say."""

    peak_bytes: int | None
    argument_bytes: int | None
    temporary_bytes: int | None
    flops: float | None


def tree_bytes(tree: PyTree) -> int:
    """Returns the bytes of all arrays (or their shapes) of a tree."""
    return sum(int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def state_bytes(model: ModelLike, params: PyTree) -> int:
    """Returns the bytes of everything carried from one step to the next, for one sequence; of a cache, when it is
    full.
    """
    return tree_bytes(_state(model, params))


def state_bytes_at(model: ModelLike, params: PyTree, position: int) -> int:
    """Returns the bytes carried after `position` steps of one sequence: a cache grows with them until it is full, a
    recurrent state is what it is.

    A model that carries its state packed has the whole of its cache at once. Raises ValueError for a negative position.
    """
    if position < 0:
        raise ValueError(f"position={position} must be at least 0: it is how many steps were read")
    return tree_bytes(_state(model, params, position))


def transformer_bytes_at(config: Model, position: int) -> int:
    """Returns the bytes of the keys and values of `position` steps in attention layers of this width, number and type
    of activations, 2 L D each step.
    """
    return 2 * len(config.pattern) * config.d_model * jnp.dtype(config.dtype).itemsize * position


def crossover(cache: Callable[[int], int], state: Callable[[int], int]) -> int | None:
    """Returns the smallest position at which the bytes of `cache` exceed those of `state`, None where they do at none
    up to 2^40.

    Exact, by bisection, where what exceeds once does so from then on, as a cache that grows does beside a state that is
    bounded.
    """
    found = bisect.bisect_left(range(FURTHEST + 1), True, key=lambda position: cache(position) > state(position))
    return found if found <= FURTHEST else None


def parameters(params: PyTree) -> dict[str, int]:
    """Returns the number of parameters of every top-level group (encoder, block_0, ...)."""
    return {name: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(group)) for name, group in params.items()}


def account(experiment: Experiment, model: ModelLike, params: PyTree, row: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns all of it as JSON-able values; `row` is one example without its batch axis, as the training step reads
    it.

    state_bytes_at: by position; crossover: where a Transformer's cache of the same width and depth becomes larger.
    training_step: a whole batch on one device. decode_step: one frame of one sequence after another has been carried.
    """
    size = experiment.data.batch_size
    batch = {name: jax.ShapeDtypeStruct((size, *value.shape), value.dtype) for name, value in row.items()}
    return {
        "state_bytes": state_bytes(model, params),
        "state_bytes_at": {str(position): state_bytes_at(model, params, position) for position in POSITIONS},
        "crossover": crossover(partial(transformer_bytes_at, model.config), partial(state_bytes_at, model, params)),
        "parameters": parameters(params),
        "parameter_bytes": tree_bytes(params),
        "batch": {"size": size, "steps": row["inputs"].shape[0]},
        "training_step": training_step(experiment, model, params, batch)._asdict(),
        "decode_step": decode_step(model, params)._asdict(),
    }


def training_step(
    experiment: Experiment, model: ModelLike, params: PyTree, batch: dict[str, jax.ShapeDtypeStruct]
) -> Cost:
    """Returns the cost of one step of training on one device, as training compiles it: the old state's memory is
    reused.
    """
    optimizer = build(experiment)
    state = TrainState(jnp.int32(0), params, jax.jit(optimizer.init)(params), jax.random.key_data(jax.random.key(0)))
    step = partial(train_step, model=model, optimizer=optimizer, experiment=experiment)
    return cost(parallel.data_parallel(step, jax.local_devices()[:1], remat=experiment.model.remat), state, batch)


def decode_step(model: ModelLike, params: PyTree, position: int | None = None) -> Cost:
    """Returns the cost of reading one frame of one sequence: a token, a vector, or `stride` samples of a signal.

    The frame is the one after `position` others, with a cache that has room for so many and itself; None: any, with a
    cache that is full.
    """
    kind = kind_of(model.config.task)
    inputs = kind.inputs(model.config, 1, kind.stride(model.config))

    def step(params: PyTree, inputs: Array, state: PyTree, key: Array) -> tuple[Array, PyTree]:
        return model.apply({"params": params}, inputs, state, rngs={"noise": key})

    state = _state(model, params, None if position is None else position + 1)
    return cost(jax.jit(step, donate_argnums=2), params, inputs, state, jax.random.key(0))


def cost(function: Callable[..., Any], *args: Any) -> Cost:
    """Compiles `function` for arguments of these shapes, without running it, and returns what one call takes.

    peak_bytes = arguments + outputs + temporaries - aliased, by `compiled.memory_analysis()`: arguments and outputs are
    held during the call, a donated argument shares its output's memory and counts once. It is what the compiler
    allocates, not what the process holds. flops are `compiled.cost_analysis()`'s: a loop's body may be counted once.
    """
    jitted: Any = function if hasattr(function, "lower") else jax.jit(function)
    # Buffers are laid out before machine code is written, so on a CPU the code need not be optimised to be weighed.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    compiled = jitted.lower(*args).compile(compiler_options=options)
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis() or {}
    if memory is None:
        return Cost(None, None, None, analysis.get("flops"))
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return Cost(
        held - memory.alias_size_in_bytes,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        analysis.get("flops"),
    )


def _state(model: ModelLike, params: PyTree, steps: int | None = None) -> PyTree:
    """The shapes of the state of one sequence."""
    return jax.eval_shape(lambda params: model.apply({"params": params}, 1, steps, method="initial_state"), params)
