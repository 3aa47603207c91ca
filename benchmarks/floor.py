"""Claim: on a CPU linear_scan runs within 3 times a streaming pass over its bytes; what the other recurrences cost
beside theirs.

  python benchmarks/floor.py    # with the package installed

The floor of an op is a program that only reads and writes, half as much each, as many bytes as the op's inputs and
outputs have. Both run in turn, float32, forward.
"""

from typing import Any

import growth
import jax
import jax.numpy as jnp
import measure

STEPS = 8192
AT_MOST = {"linear_scan": 3.0}
OPS = ("linear_scan", "selective_scan", "ssd", "lax.scan")


def benchmark(rounds: int) -> dict[str, Any]:
    """Every op beside its floor."""
    found = {name: beside_floor(name, rounds) for name in OPS}
    ratios = {
        f"{name} over a streaming pass": {"ours_over_floor": case["ours_over_floor"]}
        | ({"at_most": AT_MOST[name]} if name in AT_MOST else {})
        for name, case in found.items()
    }
    return {"dtype": "float32", "seed": growth.SEED, "steps": STEPS, "rounds": rounds, "ratios": ratios, "ops": found}


def beside_floor(name: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of an op and its floor, and the bytes of both."""
    run, draw = growth.OPS[name]
    _, *given = draw(STEPS)
    program = measure.compiled(run, *given)
    floats = sum(leaf.size for leaf in jax.tree.leaves((given, jax.eval_shape(run, *given))))
    source = jnp.ones(floats // 2)
    calls = {
        "ours": (program, tuple(given)),
        "floor": (measure.compiled(lambda source: 0.5 * source, source), (source,)),
    }
    times = measure.in_turn(calls, rounds)
    megabytes = 4e-6 * floats
    times_of = measure.milliseconds(times)
    return {
        "megabytes": round(megabytes, 2),
        "ours_over_floor": measure.ratio(times["ours"], times["floor"]),
        "milliseconds": times_of,
        "gigabytes_per_second": {key: round(megabytes / value["median"], 2) for key, value in times_of.items()},
    }


if __name__ == "__main__":
    measure.run("floor", __doc__, benchmark, rounds=30)
