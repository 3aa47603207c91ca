"""Claim: a recipe reaches its score in its time. Trains and evaluates one config, whole processes, and writes the
record.

  python benchmarks/recipe.py shakespeare --config.data.local_dir=FOLDER
  python benchmarks/recipe.py selective_copying --record selective_copying_constant
  --config.model.selective.gate=constant python benchmarks/recipe.py channel --measure

The record, benchmarks/records/NAME.json, holds the command, the metrics of the test split beside the baselines, seconds
of the whole training process and of the whole evaluation process, by the clock and of all cores together, how busy the
machine was when they began, seeds, software and machine.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
PRIVATE = ("local_dir", "cache_dir", "file")  # of a machine, not of a recipe


def main() -> None:
    """Runs the recipe and writes its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a file of configs/, without .py")
    parser.add_argument("--record", help="name of the record; default: the config's")
    parser.add_argument(
        "--measure", action="store_true", help="evaluate with --measure, and record what the memory holds"
    )
    parser.add_argument("--workdir", help="folder of the run; default runs/RECORD, which must not hold a run yet")
    chosen, overrides = parser.parse_known_args()
    record = chosen.record or chosen.name
    workdir = pathlib.Path(chosen.workdir or ROOT / "runs" / record)
    if (workdir / "config.json").exists():
        parser.error(
            f"{workdir} holds a run, whose time would not be the whole time: remove it, or give another --workdir"
        )
    busy = round(os.getloadavg()[0], 1)
    training = _timed(["train.py", f"--config=configs/{chosen.name}.py", f"--workdir={workdir}", *overrides])
    evaluation = _timed(["eval.py", f"--workdir={workdir}", *(["--measure"] if chosen.measure else [])])
    results = json.loads((workdir / "report" / "results.json").read_text())
    path = ROOT / "benchmarks" / "records" / f"{record}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps(_record(chosen.name, record, overrides, results, training, evaluation, busy), indent=2) + "\n"
    )
    print(f"wrote {path.relative_to(ROOT)}")


def _timed(arguments: list[str]) -> tuple[float, float]:
    """Seconds of a whole process, start and compilation included: by the clock, and of all cores together."""
    start, before = time.perf_counter(), _used()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)
    return round(time.perf_counter() - start, 1), round(_used() - before, 1)


def _used() -> float:
    """CPU seconds of all processes that this one has started and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _record(
    name: str,
    record: str,
    overrides: list[str],
    results: dict[str, Any],
    training: tuple[float, float],
    evaluation: tuple[float, float],
    busy: float,
) -> dict[str, Any]:
    shown = [
        override.split("=")[0] + "=..." if override.split("=")[0].endswith(PRIVATE) else override
        for override in overrides
    ]
    command = " ".join(
        [
            "python benchmarks/recipe.py",
            name,
            *([f"--record {record}"] if record != name else []),
            *(["--measure"] if "memory" in results else []),
            *shown,
        ]
    )
    config = results["config"]
    for key in PRIVATE:
        del config["data"][key]
    kept = ("metrics", "baselines", "split", "step", "chosen", "versions", "machine")
    return {
        "command": command,
        "seconds": {"training_process": training[0], "evaluation_process": evaluation[0]},
        "cpu_seconds": {"training_process": training[1], "evaluation_process": evaluation[1]},
        **{key: results[key] for key in kept},
        "load_average_at_start": busy,
        "parameters": sum(results["costs"]["parameters"].values()),
        "seeds": {"training": config["training"]["seed"], "data": config["data"]["seed"]},
        "dtype": config["model"]["dtype"],
        **({"memory": _memory(results["memory"])} if "memory" in results else {}),
        "config": config,
    }


def _memory(found: dict[str, Any]) -> dict[str, Any]:
    """What the memory holds, without the table of single components, which is large."""
    return found | {
        "blocks": {
            name: {key: part for key, part in block.items() if key != "by_component"}
            for name, block in found["blocks"].items()
        }
    }


if __name__ == "__main__":
    main()
