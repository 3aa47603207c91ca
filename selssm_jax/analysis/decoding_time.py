"""How long a step of decoding takes, of several models in turn, so that a busy machine slows all of them."""

import time
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from selssm_jax.model import ModelLike
from selssm_jax.tasks.registry import kind_of

FRAMES, ROUNDS = 32, 25  # frames that one call reads, one after another; calls of each model


class DecodingTime(NamedTuple):
    """Milliseconds of a frame, the median of calls, and the median over rounds of its share of the first model's."""

    milliseconds: float
    share: float


def time_decoding(models: Sequence[tuple[ModelLike, PyTree]]) -> list[DecodingTime]:
    """Returns the time that each model takes to read one frame of one sequence from a state that it carries: a token, a
    vector, or `stride` samples of a signal.
    """
    calls = []
    for model, params in models:
        state = model.apply({"params": params}, 1, method="initial_state")
        arguments = params, state, jax.random.key(0)
        calls.append((jax.jit(partial(_decode, model)).lower(*arguments).compile(), arguments))
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS + 1):  # the first only warms up
        for taken, (call, arguments) in zip(seconds, calls, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            taken.append(time.perf_counter() - start)
    first = seconds[0][1:]
    return [
        DecodingTime(
            1e3 * median(taken[1:]) / FRAMES,
            median(mine / other for mine, other in zip(taken[1:], first, strict=True)),
        )
        for taken in seconds
    ]


def _decode(model: ModelLike, params: PyTree, state: PyTree, key: Array) -> Array:
    """The last outputs of frames that are read one at a time; each sees the outputs before it, so that none is left
    out.
    """
    kind = kind_of(model.config.task)
    shape = kind.inputs(model.config, 1, kind.stride(model.config))

    def step(now: tuple[PyTree, Array], number: Array) -> tuple[tuple[PyTree, Array], None]:
        state, before = now
        inputs = jnp.full(shape.shape, before).astype(shape.dtype)
        noise = {"noise": jax.random.fold_in(key, number)}
        outputs, state = model.apply({"params": params}, inputs, state, rngs=noise)
        return (state, outputs.mean().clip(0, 1)), None

    (_, last), _ = jax.lax.scan(step, (state, jnp.zeros(())), jnp.arange(FRAMES))
    return last
