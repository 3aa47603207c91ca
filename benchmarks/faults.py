"""Claim: a run of several processes that loses one ends in a sentence, and the same command goes on to the same bits.

  python benchmarks/faults.py --rounds 10

A drill: configs/smoke.py in two processes; either is killed (SIGKILL) once a random step is logged, `rounds` times
each, and the same command is given until the run has all its steps. The undisturbed run is that of one process with two
virtual devices. The last two runs lose process 1 and go on as one process with one device, and as four.
"""

import json
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import measure
import numpy as np

from selssm_jax.training import checkpoint

ROOT = pathlib.Path(__file__).parent.parent
STEPS, SEED, WITHIN = 400, 0, 30
CONFIG = {"steps": STEPS, "log_every": 1, "eval_every": 40, "checkpoint_every": 10, "devices": 0}
SAID = re.compile(r"error: process (\d) of this cluster was lost, .*; to go on, start all of them again: python train")


def benchmark(rounds: int) -> dict[str, Any]:
    """All drills, each compared with the undisturbed run."""
    draw = random.Random(SEED)
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        check_all(finish(start(folder / "undisturbed", 1, devices=2)))
        kills = [
            lose(folder / f"lost{lost}_{number}", lost, draw.randrange(1, STEPS - 40))
            for number in range(rounds)
            for lost in (0, 1)
        ]
        for number, kill in enumerate(kills):
            run = folder / f"lost{kill['process']}_{number // 2}"
            check_all(finish(start(run, 2)))
            kill["bit_equal"] = equals(run, folder / "undisturbed")
        others = {}
        for count in (1, 4):
            run = folder / f"as_{count}"
            lose(run, 1, STEPS // 2)
            check_all(finish(start(run, count)))
            others[f"resumed as {count}: relative difference of the last loss"] = difference(
                run, folder / "undisturbed"
            )
    return {
        "dtype": "float32",
        "setting": {"config": "configs/smoke.py", "training": CONFIG, "seed": SEED, "processes": 2},
        "kills": kills,
        "ratios": summarize(kills) | others,
    }


def summarize(kills: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What all kills have in common."""
    share = lambda name: {"of_all": sum(kill[name] for kill in kills) / len(kills), "at_least": 1}  # noqa: E731
    return {
        f"{len(kills)} losses, told of in one sentence": share("one_sentence"),
        f"{len(kills)} losses, gone on from to the same bits": share("bit_equal"),
        "seconds until the other process stopped, the longest": {
            "found": max(kill["seconds"] for kill in kills),
            "at_most": WITHIN,
        },
    }


def start(run: pathlib.Path, count: int, devices: int = 1) -> list[subprocess.Popen[str]]:
    """The processes of a run; one alone forms no cluster."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    command = [sys.executable, "train.py", "--config=configs/smoke.py", f"--workdir={run}"]
    command += [f"--config.training.{key}={value}" for key, value in CONFIG.items()]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return [
        subprocess.Popen(
            command + [f"--coordinator={address}", f"--processes={count}", f"--process={number}"] * (count > 1),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and standard error of each."""
    written = [process.communicate(timeout=600)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, written, strict=True)]


def check_all(ended: list[tuple[int, str]]) -> None:
    """Raises SystemExit where a process failed."""
    for code, text in ended:
        if code:
            raise SystemExit(f"a process ended with {code}: {text[-2000:]}")


def lose(run: pathlib.Path, process: int, step: int) -> dict[str, Any]:
    """Kills a process once a step is logged; how the other one ended."""
    processes = start(run, 2)
    while logged(run) < step:
        if any(each.poll() is not None for each in processes):
            raise SystemExit(f"a process ended by itself: {finish(processes)}")
        time.sleep(0.01)
    reached = logged(run)
    processes[process].kill()
    begun = time.perf_counter()
    code, text = finish(processes)[1 - process]
    said = text.strip().splitlines()[-1]
    match = SAID.match(said)
    return {
        "process": process,
        "killed_at_step": reached,
        "seconds": round(time.perf_counter() - begun, 1),
        "exit_code": code,
        "one_sentence": bool(match and int(match[1]) == process and "Traceback" not in text and "@ 0x" not in text),
    }


def logged(run: pathlib.Path) -> int:
    """The last step that is logged so far."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def equals(run: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether two runs have the same state after the last step, bit for bit."""
    one, another = (checkpoint._restore_item(place / "checkpoints" / str(STEPS) / "state") for place in (run, other))
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(another), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def difference(run: pathlib.Path, other: pathlib.Path) -> dict[str, float]:
    """Of the validation loss after the last step."""
    records = [(place / "metrics.jsonl").read_text().splitlines() for place in (run, other)]
    last = [[json.loads(line) for line in lines if '"validation"' in line][-1]["nats"] for lines in records]
    return {"found": abs(last[0] / last[1] - 1), "at_most": 1e-5}


if __name__ == "__main__":
    measure.run("faults", __doc__, benchmark, rounds=10)
