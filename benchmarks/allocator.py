"""Claim: with the allocator's pages kept, training on a CPU takes at most .65 of the CPU seconds and .75 of the time.

  python benchmarks/allocator.py --data FOLDER    # of the originals of etth1 and fsdd; without it, quickstart alone

Whole processes of train.py, start and compilation included, in turn: as it is (`selssm_jax.allocator`), and with
GLIBC_TUNABLES set to nothing, which leaves glibc as it was. Ratios are medians over rounds of kept / as it was. A third
process has its pages kept and two virtual devices on the CPU's cores, which share each batch by pmap; it is compared
with the first.
"""

import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

import measure

ROOT = pathlib.Path(__file__).parent.parent
STEPS = {"quickstart": 600, "etth1": 400, "fsdd": 150}  # those of the recipe, and fewer of longer ones
TARGETS = {"cpu_seconds": 0.65, "seconds": 0.75, "peak_bytes": 1.3}
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "kept": {},
    "as it was": {"GLIBC_TUNABLES": ""},
    "kept, two virtual devices": {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
}


def benchmark(rounds: int, data: pathlib.Path | None = None) -> dict[str, Any]:
    """Every recipe whose data are here."""
    recipes = {name: use(name, rounds, data) for name in STEPS if data is not None or name == "quickstart"}
    ratios = {
        f"{name}, {quantity}": {"kept_over_as_it_was": ratio(runs, quantity, "kept", "as it was"), "at_most": most}
        for name, runs in recipes.items()
        for quantity, most in TARGETS.items()
    } | {
        f"{name}, {quantity} of two virtual devices": {
            "two_over_one": ratio(runs, quantity, "kept, two virtual devices", "kept")
        }
        for name, runs in recipes.items()
        for quantity in ("cpu_seconds", "seconds")
    }
    medians = {
        name: {
            way: {quantity: median(run[quantity] for run in each) for quantity in each[0]} for way, each in runs.items()
        }
        for name, runs in recipes.items()
    }
    return {"dtype": "float32", "rounds": rounds, "steps": STEPS, "ratios": ratios, "medians": medians}


def use(name: str, rounds: int, data: pathlib.Path | None) -> dict[str, list[dict[str, float]]]:
    """What each process of a recipe used, by way; each compiles its programs itself."""
    used: dict[str, list[dict[str, float]]] = {way: [] for way in ENVIRONMENTS}
    for _ in range(rounds):
        for way, environment in ENVIRONMENTS.items():
            used[way].append(train(name, data, environment))
    return used


def train(name: str, data: pathlib.Path | None, environment: dict[str, str]) -> dict[str, float]:
    """What one process used: seconds by the clock and of all cores, bytes at the peak, page faults."""
    command = [
        *(sys.executable, "train.py", f"--config=configs/{name}.py", f"--config.training.steps={STEPS[name]}"),
        *([f"--config.data.local_dir={data}"] if data is not None and name != "quickstart" else []),
    ]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, f"--workdir={folder}/run"],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return {"seconds": round(seconds, 2), **summarize(usage)}


def summarize(usage: resource.struct_rusage) -> dict[str, float]:
    """What a process used of the machine."""
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "system_seconds": round(usage.ru_stime, 2),
        "peak_bytes": 1024 * usage.ru_maxrss,
        "page_faults": usage.ru_minflt,
    }


def ratio(runs: dict[str, list[dict[str, float]]], quantity: str, one: str, other: str) -> float:
    """Median over rounds of one way / the other."""
    return measure.ratio(*([run[quantity] for run in runs[way]] for way in (one, other)))


if __name__ == "__main__":
    measure.run("allocator", __doc__, benchmark, rounds=3, folders={"data": "the originals of etth1 and fsdd"})
