"""Claim: on a CPU linear_scan beats differentiating jax.lax.associative_scan in time, memory and compile time.

  python benchmarks/linear_scan.py    # with the package installed

At B=2 T=8192 D=256 float32 it reads both side by side: seconds of the forward pass, of the backward pass and of value
and gradient (every round runs each once, so that a busy machine slows both), bytes of temporaries, seconds to trace and
compile, and as the floor one streaming pass a*0.5+b. A ratio is the median over rounds of peer / ours. Then every
method of linear_scan runs at other shapes: what `auto` picks by.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import measure
from jax import Array, lax

from selssm_jax.ops import linear_scan

SHAPE = (2, 8192, 256)
SHAPES = [(1, 65536, 1), (1, 8192, 16), (32, 64, 64), (2, 8192, 256), (1, 1024, 4096)]
METHODS = ["sequential", "associative", "chunked"]
TARGETS = {"forward": 8.0, "value_and_grad": 2.5, "temporaries": 1 / 0.4, "compile": 8.0}
FLOOR = 3.0  # times a streaming pass over the same bytes
SEED = 0
Scan = Callable[[Array, Array], Array]


def benchmark(rounds: int) -> dict[str, Any]:
    """Ours and the peer at the main shape, then every method at every shape."""
    methods = [every_method(shape, -(-rounds // 3)) for shape in SHAPES]
    return {"dtype": "float32", "seed": SEED, **against_associative_scan(rounds), "methods": methods}


def against_associative_scan(rounds: int) -> dict[str, Any]:
    """Ours and the peer at the main shape: milliseconds, bytes and ratios beside their targets."""
    a, b, weights = inputs(SHAPE)
    scans = {"linear_scan": lambda a, b: linear_scan(a, b)[0], "associative_scan": associative_scan}
    calls: measure.Programs = {"floor": (measure.compiled(lambda a, b: a * 0.5 + b, a, b), (a, b))}
    temporaries, compiling = {}, {}
    for name, scan in scans.items():
        both = measure.weighted(scan)
        calls[name, "forward"] = measure.compiled(scan, a, b), (a, b)
        calls[name, "value_and_grad"] = measure.compiled(both, weights, a, b), (weights, a, b)
        # The pullback is a pytree, so that what it saved is an argument and the backward pass can run alone.
        pullback = jax.jit(lambda a, b, scan=scan: jax.vjp(scan, a, b))(a, b)[1]
        calls[name, "backward"] = measure.compiled(lambda pull, w: pull(w), pullback, weights), (pullback, weights)
        temporaries[name] = {
            kind: measure.temporaries(calls[name, kind][0]) for kind in ("forward", "backward", "value_and_grad")
        }
        compiling[name] = {
            "forward": measure.seconds_to_compile(scan, a, b),
            "value_and_grad": measure.seconds_to_compile(both, weights, a, b),
        }
    times = measure.in_turn(calls, rounds)
    peer, ours = "associative_scan", "linear_scan"
    ratio = {
        kind: measure.ratio(times[peer, kind], times[ours, kind]) for kind in ("forward", "backward", "value_and_grad")
    }
    ratio["temporaries"] = round(temporaries[peer]["value_and_grad"] / temporaries[ours]["value_and_grad"], 2)
    ratio["compile"] = round(compiling[peer]["value_and_grad"] / compiling[ours]["value_and_grad"], 2)
    ratio["compile_forward"] = round(compiling[peer]["forward"] / compiling[ours]["forward"], 2)
    ratios = {
        kind: {"peer_over_ours": value} | ({"at_least": TARGETS[kind]} if kind in TARGETS else {})
        for kind, value in ratio.items()
    }
    ratios["forward over a streaming pass"] = {
        "ours_over_floor": measure.ratio(times[ours, "forward"], times["floor"]),
        "at_most": FLOOR,
    }
    return {
        "shape": SHAPE,
        "rounds": rounds,
        "ratios": ratios,
        "milliseconds": measure.milliseconds(times),
        "temporary_bytes": temporaries,
        "seconds_to_trace_and_compile": compiling,
    }


def every_method(shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Milliseconds of each method at one shape, and the fastest of them."""
    a, b, weights = inputs(shape)
    calls: measure.Programs = {}
    for method in METHODS:
        scan = partial(lambda a, b, method: linear_scan(a, b, method=method)[0], method=method)
        calls[method, "forward"] = measure.compiled(scan, a, b), (a, b)
        calls[method, "value_and_grad"] = measure.compiled(measure.weighted(scan), weights, a, b), (weights, a, b)
    return {"shape": shape, **measure.milliseconds(measure.in_turn(calls, rounds))}


def associative_scan(a: Array, b: Array) -> Array:
    """The peer: the same recurrence by JAX's own parallel scan, differentiated by JAX."""
    return lax.associative_scan(lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1]), (a, b), axis=1)[1]


def inputs(shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Factors, drives and the weights of a loss."""
    keys = jax.random.split(jax.random.key(SEED), 3)
    return (
        jax.random.uniform(keys[0], shape, minval=0.5, maxval=0.999),
        jax.random.normal(keys[1], shape),
        jax.random.normal(keys[2], shape),
    )


if __name__ == "__main__":
    measure.run("linear_scan", __doc__, benchmark, rounds=30)
