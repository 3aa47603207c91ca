"""What every benchmark shares: programs compiled before the clock runs, calls in turn, ratios beside their targets,
records.
"""

import argparse
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import jax

RECORDS = pathlib.Path(__file__).parent / "records"
Calls = dict[Any, tuple[Callable[..., Any], tuple[Any, ...]]]
Programs = dict[Any, tuple[jax.stages.Compiled, tuple[Any, ...]]]


def run(
    name: str, claim: str, benchmark: Callable[..., dict[str, Any]], *, rounds: int, folders: Mapping[str, str] = {}
) -> None:
    """Runs `benchmark(rounds)` as a command and writes what it found, with command and machine, to
    records/NAME.json.

    `folders` are options of this benchmark alone, with their help; it is given those that are set, by name.
    """
    jax.config.update("jax_compilation_cache_dir", None)  # compile times are measured
    parser = argparse.ArgumentParser(description=claim, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="times that every call runs (default %(default)s)")
    parser.add_argument(
        "--record", type=pathlib.Path, default=RECORDS / f"{name}.json", help="file to write (default %(default)s)"
    )
    for option, said in folders.items():
        parser.add_argument(f"--{option}", type=pathlib.Path, help=said)
    chosen = parser.parse_args()
    given = {option: path.resolve() for option in folders if (path := getattr(chosen, option)) is not None}
    options = "".join(f" --{option} ..." for option in given)
    origin = describe_origin(claim, f"python benchmarks/{name}.py --rounds {chosen.rounds}{options}")
    found = benchmark(chosen.rounds, **given)
    chosen.record.parent.mkdir(exist_ok=True)
    chosen.record.write_text(json.dumps(origin | found, indent=1) + "\n")
    print(json.dumps(found.get("ratios", found), indent=1))


def describe_origin(claim: str, command: str) -> dict[str, Any]:
    """What every record begins with: the claim, the command that measures it, and where it ran."""
    return {
        "claim": claim.splitlines()[0],
        "command": command,
        "machine": machine() | {"load_average_at_start": round(os.getloadavg()[0], 1)},
        **({"accelerator": "not measured"} if jax.default_backend() == "cpu" else {}),
    }


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


def compiled(function: Callable[..., Any], *arguments: Any) -> jax.stages.Compiled:
    """The program for these arguments, compiled before any clock runs."""
    return jax.jit(function).lower(*arguments).compile()


def temporaries(program: jax.stages.Compiled) -> int:
    """Bytes that a program needs beside its arguments and results."""
    return int(analyse_memory(program).temp_size_in_bytes)


def analyse_memory(program: jax.stages.Compiled) -> Any:
    """What the compiler says of the bytes of arguments, results and temporaries."""
    memory = program.memory_analysis()
    assert memory is not None  # which backends may leave out
    return memory


def seconds_to_compile(function: Callable[..., Any], *arguments: Any) -> float:
    """Median of three traces and compilations from empty caches."""
    seconds = []
    for _ in range(3):
        jax.clear_caches()
        start = time.perf_counter()
        compiled(function, *arguments)
        seconds.append(time.perf_counter() - start)
    return round(median(seconds), 3)


def in_turn(calls: Mapping[Any, tuple[Callable[..., Any], tuple[Any, ...]]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of each call, all of them once a round, so that a busy machine slows all; the first round only warms
    up.
    """
    times: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(rounds + 1):
        for key, (call, arguments) in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            times[key].append(time.perf_counter() - start)
    return {key: values[1:] for key, values in times.items()}


def ratio(one: list[float], other: list[float]) -> float:
    """Median over rounds of one / other."""
    return round(median(x / y for x, y in zip(one, other, strict=True)), 2)


def milliseconds(times: dict[Any, list[float]]) -> dict[str, dict[str, float]]:
    """Median and minimum of each call."""
    name = {key: " ".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in times}
    return {
        name[key]: {"median": round(1e3 * median(values), 3), "min": round(1e3 * min(values), 3)}
        for key, values in times.items()
    }


def weighted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Value and gradient, (weights, *arguments) -> of sum(weights * function(*arguments)).

    The weights are an argument, so that XLA folds no constants.
    """
    return lambda weights, *arguments: jax.value_and_grad(lambda arguments: (function(*arguments) * weights).sum())(
        arguments
    )
