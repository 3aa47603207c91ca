"""Claim: a step that reads the rows of open components only is faster than the dense one at 10 % open from n = 4096 on,
on a CPU.

  python benchmarks/gathered_step.py    # with the package installed

One step of the retain update, batch 1, float32, both compiled and their memory donated, as a decoder runs it: STEPS
steps in a row, each awaited, then the other's. Inputs and gates change from step to step, so that no rows stay near by
having been read before; each component is open at a share of the steps, independently. The dense step reads B and C as
a layer holds them, each once. "gates given": the steps are told which gates are open; "with gates": both also compute z
= x W_x + b, all n x D of it, and 1[z > 0]. The capacity is the mean number of open gates and 5 standard deviations.
Every share runs on one core, 10 % also on all there are; a ratio is the median over rounds of dense / gathered.
`drift`: the largest difference of the carried C h from one computed anew, over its largest value, after so many steps.
"""

import math
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
from jax import Array

from selssm_jax.ops import GatheredMemory, GatheredRows, gather_rows, gathered_step, refresh_memory

SHARES = (0.01, 0.05, 0.1, 0.25, 0.5)
CASES = (*((n, width, "diagonal") for width in (64, 256) for n in (1024, 4096, 16_384)), (4096, 64, "dense"))
STEPS, DRIFT_STEPS, SEED = 16, (1000, 10_000), 0
TARGET = 0.1  # share of open gates that is claimed to pay, from 4096 components on
Step = Callable[..., GatheredMemory]
Program = tuple[Step, tuple[Any, ...]]


def benchmark(rounds: int) -> dict[str, Any]:
    """Every case on one core and on all."""
    found = {}
    for name, cores in {"one core": 1, "all cores": len(os.sched_getaffinity(0))}.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=partial(keep_to, cores)) as pool:
            shares = SHARES if name == "one core" else (TARGET,)
            found[name] = [row for case in CASES for row in pool.submit(compare, *case, rounds, shares).result()]
    ratios = {}
    for name, cases in found.items():
        for case in cases:
            if case["n"] >= 4096 and case["open"] == TARGET:
                for way, value in case["dense_over_gathered"].items():
                    target = {"at_least": 1.0} if way == "gates given" else {}
                    ratios[
                        f"dense / gathered at 10 % open, {case['A']} A, n={case['n']}, D={case['D']}, {way}, {name}"
                    ] = {"ratio": value, **target}
    pays = [pays_to(found["one core"], *case) for case in CASES]
    return {
        "dtype": "float32",
        "seed": SEED,
        "rounds": rounds,
        "steps_in_a_row": STEPS,
        "ratios": ratios,
        "pays_on_one_core": pays,
        "drift": drift(),
        "cases": found,
    }


def keep_to(cores: int) -> None:
    """Keeps this process, before JAX starts its threads, to so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def pays_to(cases: list[dict[str, Any]], n: int, width: int, transition: str) -> dict[str, Any]:
    """The largest share of open gates at which the gathered step is the faster one, and at every smaller share too;
    None if there is none.
    """
    own = [case for case in cases if (case["n"], case["D"], case["A"]) == (n, width, transition)]
    ways = {}
    for way in own[0]["dense_over_gathered"]:
        faster = [
            case["open"]
            for case in own
            if all(other["dense_over_gathered"][way] > 1 for other in own if other["open"] <= case["open"])
        ]
        ways[way] = max(faster, default=None)
    return {"n": n, "D": width, "A": transition, "open_at_most": ways}


def compare(n: int, width: int, transition: str, rounds: int, shares: tuple[float, ...]) -> list[dict[str, Any]]:
    """One row a share of open gates."""
    arrays = draw(n, width, transition)
    dense_steps = peers(arrays)
    return [at_share(arrays, dense_steps, share, rounds) for share in shares]


def draw(n: int, width: int, transition: str) -> dict[str, Any]:
    """Weights, and inputs of STEPS steps with the logits of their gates, N(0, 1) each."""
    keys = jax.random.split(jax.random.key(SEED), 5)
    A = jax.random.uniform(keys[0], (n,), minval=-0.9, maxval=0.9)
    A = jax.random.normal(keys[0], (n, n)) / math.sqrt(n) / 2 if transition == "dense" else A
    B, C, W_x = (
        jax.random.normal(keys[1], (width, n)),
        jax.random.normal(keys[2], (n, width)),
        jax.random.normal(keys[3], (width, n)) / math.sqrt(width),
    )
    x = jax.random.normal(keys[4], (STEPS, width))
    x = x * (math.sqrt(width) / jnp.linalg.norm(x, axis=1, keepdims=True))
    return {"A": A, "B": B, "C": C, "W_x": W_x, "x": list(x), "rows": gather_rows(A, B, C), "transition": transition}


def peers(arrays: dict[str, Any]) -> dict[str, Program]:
    """The dense step, told its gates and computing them."""
    weights = (arrays["A"], arrays["B"], arrays["C"])
    return {
        "gates given": (compiled(dense), weights),
        "with gates": (compiled(with_gates(dense)), (arrays["W_x"], None, *weights)),
    }


def at_share(arrays: dict[str, Any], dense_steps: dict[str, Program], share: float, rounds: int) -> dict[str, Any]:
    """Both steps at one share of open gates."""
    n, width = arrays["C"].shape
    bias = jax.scipy.stats.norm.ppf(share) * jnp.ones(n)
    opened = [gates(arrays["W_x"], bias, x) for x in arrays["x"]]
    capacity = min(n, math.ceil(share * n + 5 * math.sqrt(share * (1 - share) * n)))
    ours = partial(gathered, capacity)
    steps = {("dense", way): program for way, program in dense_steps.items()}
    steps |= {
        ("gathered", "gates given"): (compiled(ours), (arrays["rows"],)),
        ("gathered", "with gates"): (compiled(with_gates(ours)), (arrays["W_x"], None, arrays["rows"])),
    }
    calls = {}
    for (name, way), (program, weights) in steps.items():
        given = way == "gates given"
        weights = weights if given else (weights[0], bias, *weights[2:])
        calls[name, way] = (decoder(program, n, weights, arrays["x"], opened if given else [None] * STEPS), ())
    times = {key: [value / STEPS for value in values] for key, values in measure.in_turn(calls, rounds).items()}
    return {
        "n": n,
        "D": width,
        "A": arrays["transition"],
        "open": share,
        "open_seen": round(float(np.mean([gate.mean() for gate in opened])), 4),
        "capacity": capacity,
        "dense_over_gathered": {way: measure.ratio(times["dense", way], times["gathered", way]) for way in dense_steps},
        "fastest_dense_over_fastest_gathered": {
            way: round(min(times["dense", way]) / min(times["gathered", way]), 2) for way in dense_steps
        },
        "milliseconds": measure.milliseconds({f"{name}, {way}": values for (name, way), values in times.items()}),
    }


@jax.jit
def gates(W_x: Array, bias: Array, x: Array) -> Array:
    """1[x W_x + b > 0]."""
    return (x @ W_x + bias > 0).astype(jnp.float32)


def dense(memory: GatheredMemory, gate: Array, x: Array, A: Array, B: Array, C: Array) -> GatheredMemory:
    """The peer: all rows, B and C as a layer holds them."""
    h = memory.h
    h = h + gate * ((A @ h if A.ndim == 2 else A * h) - h + x @ B)
    return GatheredMemory(h, h @ C)


def gathered(capacity: int, memory: GatheredMemory, gate: Array, x: Array, weights: GatheredRows) -> GatheredMemory:
    """Ours."""
    return gathered_step(memory, gate, x, weights, capacity=capacity)


def with_gates(step: Step) -> Step:
    """A step that computes its gates first."""
    return lambda memory, gate, x, W_x, bias, *weights: step(memory, gates(W_x, bias, x), x, *weights)


def compiled(step: Step) -> Step:
    """A program that writes over the memory it is given."""
    return jax.jit(step, donate_argnums=0)


def decoder(
    program: Step, n: int, weights: tuple[Any, ...], inputs: list[Array], opened: list[Array | None]
) -> Callable[[], GatheredMemory]:
    """STEPS steps in a row from where the last call ended, every one awaited."""
    memory = GatheredMemory(jnp.zeros(n), jnp.zeros(len(inputs[0])))

    def call() -> GatheredMemory:
        nonlocal memory
        for gate, x in zip(opened, inputs, strict=True):
            memory = jax.block_until_ready(program(memory, gate, x, *weights))
        return memory

    return call


def drift(
    n: int = 4096, width: int = 64, share: float = TARGET, counts: tuple[int, ...] = DRIFT_STEPS
) -> dict[str, float]:
    """How far the carried C h is from one computed anew."""
    weights = draw(n, width, "diagonal")["rows"]

    def body(memory: GatheredMemory, key: Array) -> tuple[GatheredMemory, None]:
        gate = (jax.random.uniform(key, (n,)) < share).astype(jnp.float32)
        return gathered_step(memory, gate, jax.random.normal(key, (width,)), weights, capacity=n), None

    found = {}
    for steps in counts:
        keys = jax.random.split(jax.random.key(SEED), steps)
        memory = jax.jit(lambda keys: jax.lax.scan(body, refresh_memory(jnp.zeros(n), weights), keys)[0])(keys)
        exact = np.asarray(memory.h, np.float64) @ np.asarray(weights.BC[:, width:], np.float64)
        found[f"after {steps} steps"] = float(np.abs(np.asarray(memory.read) - exact).max() / np.abs(exact).max())
    return found


if __name__ == "__main__":
    measure.run("gathered_step", __doc__, benchmark, rounds=6)
