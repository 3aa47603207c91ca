"""Claim: on a CPU linear_scan beats differentiating jax.lax.associative_scan in time, memory and compile time.

  python benchmarks/linear_scan.py    # with the package installed

At B=2 T=8192 D=256 float32 it reads both side by side: seconds of the forward pass, of the backward pass and of value and
gradient (every round runs each once, so that a busy machine slows both), bytes of temporaries, seconds to trace and compile,
and as the floor one streaming pass a*0.5+b. A ratio is the median over rounds of peer / ours. Then every method of
linear_scan runs at other shapes: what `auto` picks by. The record is benchmarks/records/linear_scan.json.
"""

import argparse
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from selssm_jax.ops import linear_scan

SHAPE = (2, 8192, 256)
SHAPES = [(1, 65536, 1), (1, 8192, 16), (32, 64, 64), (2, 8192, 256), (1, 1024, 4096)]
METHODS = ["sequential", "associative", "chunked"]
TARGETS = {"forward": 8.0, "value_and_grad": 2.5, "temporaries": 1 / 0.4, "compile": 8.0}
SEED = 0
Scan = Callable[[Array, Array], Array]


def main() -> None:
    """Measures and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="rounds at the main shape (default %(default)s); a third of them at the others")
    parser.add_argument("--record", type=pathlib.Path, default=pathlib.Path(__file__).parent / "records" / "linear_scan.json", help="file to write")
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    peer = against_associative_scan(chosen.rounds)
    record = {
        "claim": __doc__.splitlines()[0],
        "command": f"python benchmarks/linear_scan.py --rounds {chosen.rounds}",
        "machine": machine() | {"load_average_at_start": round(load, 1)},
        "dtype": "float32",
        "seed": SEED,
        **peer,
        "methods": [every_method(shape, -(-chosen.rounds // 3)) for shape in SHAPES],
    }
    chosen.record.parent.mkdir(exist_ok=True)
    chosen.record.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(peer["ratios"], indent=1))


def machine() -> dict[str, Any]:
    """What the numbers depend on; nothing that tells whose machine it is."""
    return {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cpus": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def against_associative_scan(rounds: int) -> dict[str, Any]:
    """Ours and the peer at the main shape: milliseconds, bytes and ratios beside their targets."""
    a, b, weights = inputs(SHAPE)
    scans = {"linear_scan": lambda a, b: linear_scan(a, b)[0], "associative_scan": associative_scan}
    calls, temporaries, compiling = {"floor": (compiled(lambda a, b: a * 0.5 + b, a, b), (a, b))}, {}, {}
    for name, scan in scans.items():
        both = gradient(scan)
        calls[name, "forward"] = compiled(scan, a, b), (a, b)
        calls[name, "value_and_grad"] = compiled(both, a, b, weights), (a, b, weights)
        # The pullback is a pytree, so that what it saved is an argument and the backward pass can run alone.
        pullback = jax.jit(lambda a, b, scan=scan: jax.vjp(scan, a, b))(a, b)[1]
        calls[name, "backward"] = compiled(lambda pull, w: pull(w), pullback, weights), (pullback, weights)
        temporaries[name] = {kind: calls[name, kind][0].memory_analysis().temp_size_in_bytes for kind in ("forward", "backward", "value_and_grad")}
        compiling[name] = {"forward": seconds_to_compile(scan, a, b), "value_and_grad": seconds_to_compile(both, a, b, weights)}
    times = in_turn(calls, rounds)
    ratio = {
        kind: median(peer / ours for peer, ours in zip(times["associative_scan", kind], times["linear_scan", kind], strict=True))
        for kind in ("forward", "backward", "value_and_grad")
    }
    ratio["temporaries"] = temporaries["associative_scan"]["value_and_grad"] / temporaries["linear_scan"]["value_and_grad"]
    ratio["compile"] = compiling["associative_scan"]["value_and_grad"] / compiling["linear_scan"]["value_and_grad"]
    ratio["compile_forward"] = compiling["associative_scan"]["forward"] / compiling["linear_scan"]["forward"]
    return {
        "shape": SHAPE,
        "rounds": rounds,
        "ratios": {kind: {"peer_over_ours": round(value, 2), "at_least": TARGETS.get(kind)} for kind, value in ratio.items()},
        "milliseconds": {" ".join(key) if isinstance(key, tuple) else key: summary(values) for key, values in times.items()},
        "temporary_bytes": temporaries,
        "seconds_to_trace_and_compile": {name: {kind: round(value, 3) for kind, value in kinds.items()} for name, kinds in compiling.items()},
    }


def every_method(shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Milliseconds of each method at one shape, and the fastest of them."""
    a, b, weights = inputs(shape)
    calls = {}
    for method in METHODS:
        scan = partial(lambda a, b, method: linear_scan(a, b, method=method)[0], method=method)
        calls[method, "forward"] = compiled(scan, a, b), (a, b)
        calls[method, "value_and_grad"] = compiled(gradient(scan), a, b, weights), (a, b, weights)
    times = in_turn(calls, rounds)
    kinds = {kind: {method: summary(times[method, kind]) for method in METHODS} for kind in ("forward", "value_and_grad")}
    return {"shape": shape, **{kind: {"fastest": min(found, key=lambda m: found[m]["median"]), **found} for kind, found in kinds.items()}}


def associative_scan(a: Array, b: Array) -> Array:
    """The peer: the same recurrence by JAX's own parallel scan, differentiated by JAX."""
    return lax.associative_scan(lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1]), (a, b), axis=1)[1]


def inputs(shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Factors, drives and the weights of a loss."""
    keys = jax.random.split(jax.random.key(SEED), 3)
    return jax.random.uniform(keys[0], shape, minval=0.5, maxval=0.999), jax.random.normal(keys[1], shape), jax.random.normal(keys[2], shape)


def gradient(scan: Scan) -> Callable[[Array, Array, Array], Any]:
    """Value and gradient of a weighted sum of the states; the weights are an argument, so that XLA folds no constants."""
    return jax.value_and_grad(lambda a, b, weights: jnp.sum(scan(a, b) * weights), argnums=(0, 1))


def compiled(function: Callable[..., Any], *arguments: Any) -> jax.stages.Compiled:
    """The program for these arguments, compiled before any clock runs."""
    return jax.jit(function).lower(*arguments).compile()


def seconds_to_compile(function: Callable[..., Any], *arguments: Any) -> float:
    """Median of three traces and compilations from empty caches."""
    seconds = []
    for _ in range(3):
        jax.clear_caches()
        start = time.perf_counter()
        compiled(function, *arguments)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def in_turn(calls: dict[Any, tuple[Callable[..., Any], tuple]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of each call, all of them once a round; the first round only warms up."""
    times = {key: [] for key in calls}
    for _ in range(rounds + 1):
        for key, (call, arguments) in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            times[key].append(time.perf_counter() - start)
    return {key: values[1:] for key, values in times.items()}


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and minimum in milliseconds."""
    return {"median": round(1e3 * median(seconds), 3), "min": round(1e3 * min(seconds), 3)}


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", None)  # compile times are measured
    main()
