"""Claim: a recurrent state is as large after 65,536 steps as after 256, and the cache of attention is 256 times as
large.

  python benchmarks/decoding.py --rounds 30    # with the package installed

Language models of two blocks, 64 wide with 64 state components (mamba, mamba2, s4d: of a channel), one for every mixer
that a block pattern can name, with parameters as drawn; local attention looks back on 128 steps. Bytes are those of the
arrays that `initial_state` makes; their slope is that of log bytes over log position, by least squares. A step is
compiled, its state donated, and reads one token of one sequence into a state with room for `position` others: times are
medians over rounds in which all models take turns, peak bytes the compiler's. Crossover: the position at which the
cache of attention becomes larger than this state.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np

from selssm_jax.analysis import costs
from selssm_jax.config import AttentionConfig, Model, Task
from selssm_jax.config.mixers import MIXERS
from selssm_jax.model import SequenceModel

POSITIONS = tuple(2**power for power in range(8, 17))
FLAT, GROWING = 0.02, 0.05  # how far a slope may be from 0, and from 1
TIMED = {
    **dict.fromkeys(("selective", "mamba", "mamba2", "lstm", "tcn"), (256,)),
    "local_attention": (256, 65_536),
    "attention": (256, 4_096, 65_536),
}  # one position where the state is the same at all
PyTree = Any


def benchmark(rounds: int) -> dict[str, Any]:
    """Slopes beside what is claimed of them, crossovers, times and peaks."""
    sizes = {kind: [costs.state_bytes_at(*made(kind), position) for position in POSITIONS] for kind in MIXERS}
    slopes = {kind: slope(found) for kind, found in sizes.items()}
    flat = {
        f"slope of state bytes, {kind}": {"found": abs(found), "at_most": FLAT}
        for kind, found in slopes.items()
        if kind != "attention"
    }
    return {
        "dtype": "float32",
        "model": {"blocks": 2, "d_model": 64, "d_state": 64, "heads": 4, "context": POSITIONS[-1], "window": 128},
        "ratios": {
            **flat,
            "slope of state bytes, attention: distance from 1": {
                "found": round(abs(slopes["attention"] - 1), 6),
                "at_most": GROWING,
            },
        },
        "positions": POSITIONS,
        "state_bytes": sizes,
        "slopes": slopes,
        "crossover": {kind: overtaken(kind) for kind in MIXERS if kind != "attention"},
        "peak_bytes": {
            kind: [costs.decode_step(*made(kind), position).peak_bytes for position in (POSITIONS[0], POSITIONS[-1])]
            for kind in MIXERS
        },
        "milliseconds": timed(TIMED, rounds),
    }


def made(kind: str) -> tuple[SequenceModel, PyTree]:
    """The model of one kind of mixer, and the shapes of its parameters; heads and the window of local attention are as
    they are by default.
    """
    attention = AttentionConfig(window=POSITIONS[-1])
    task = Task("language", vocab=256)
    model = SequenceModel(Model(pattern=(kind, kind), task=task, d_model=64, d_state=64, attention=attention))
    return model, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def slope(sizes: list[int]) -> float:
    """Of log bytes over log position, by least squares."""
    return round(float(np.polyfit(np.log(POSITIONS), np.log(sizes), 1)[0]), 6) + 0.0  # no slope is -0


def overtaken(kind: str) -> int | None:
    """The position at which the cache of attention becomes larger than the state of this mixer."""
    cache, state = (partial(costs.state_bytes_at, *made(name)) for name in ("attention", kind))
    return costs.crossover(cache, state)


def timed(kinds: Mapping[str, tuple[int, ...]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one step by mixer and position, all in turn."""
    calls: measure.Calls = {
        (kind, position): (decoder(kind, position), ()) for kind, positions in kinds.items() for position in positions
    }
    return measure.milliseconds(measure.in_turn(calls, rounds))


def decoder(kind: str, position: int) -> Callable[[], jax.Array]:
    """Reads one more token whenever it is called, from a state of so many steps on, whose arrays the next state takes
    over.
    """
    model, _ = made(kind)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    carried = [model.apply({"params": params}, 1, position + 1, method="initial_state")]
    step = jax.jit(
        lambda params, token, state: model.apply({"params": params}, token, state, method="step"), donate_argnums=2
    )
    program, token = step.lower(params, jnp.zeros(1, jnp.int32), carried[0]).compile(), jnp.zeros(1, jnp.int32)

    def call() -> jax.Array:
        logits, carried[0] = program(params, token, carried[0])
        return logits

    return call


if __name__ == "__main__":
    measure.run("decoding", __doc__, benchmark, rounds=30)
