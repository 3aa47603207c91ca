"""Claim: a table of 4 GB trains in less than 1 GB of memory, and in hardly more than one of 300 MB.

  python benchmarks/large_table.py --scratch FOLDER    # with room for three times the largest file

Whole processes of train.py, each on a table that is made for it: dates and cells of four decimals. The file is parsed
in blocks into a cache, and read from there; a few steps are trained, and the validation split, a tenth of the rows, is
evaluated as a whole. Peaks are those of the whole process, JAX and compilation included.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import measure
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
MOST = 2**30  # bytes of memory
SIZES = (300 * 10**6, 4 * 10**9)  # bytes of text
COLUMNS, STEPS = 512, 20
KEYS = {
    "data.length": 32,
    "data.horizon": 8,
    "data.batch_size": 32,
    "data.eval_batch_size": 64,
    "model.channel_independent": False,
    "model.d_model": 16,
    "model.d_state": 8,
    "model.frame": 4,
    "model.stride": 4,
    "model.linear_skip": 8,
    "optimizer.warmup_steps": 5,
    "training.steps": STEPS,
    "training.eval_every": STEPS,
    "training.checkpoint_every": STEPS,
}
DISTINCT = 997  # rows of a block of cells, which the table repeats


def benchmark(rounds: int, scratch: pathlib.Path | None = None) -> dict[str, Any]:
    """Every size, `rounds` times; of each the highest peak."""
    runs = {size: max((train(size, COLUMNS, scratch) for _ in range(rounds)), key=peak_of) for size in SIZES}
    first, last = (peak_of(runs[size]) for size in SIZES)
    return {
        "dtype": "float32",
        "setting": {"columns": COLUMNS, "config": "configs/my_table.py", "keys": KEYS, "rounds": rounds},
        "ratios": {
            "peak memory over 1 GB": {"measured": round(last / MOST, 3), "at_most": 1},
            "peak memory, 4 GB over .3 GB of text": {"measured": round(last / first, 3), "at_most": 1.1},
        },
        "runs": {f"{size / 1e9:g} GB": run for size, run in runs.items()},
    }


def train(size: int, columns: int, scratch: pathlib.Path | None = None) -> dict[str, float]:
    """Makes a table of so many bytes in a folder that is removed again, trains on it in a process of its own, and
    returns what that used.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        folder = pathlib.Path(place)
        rows = write_table(folder / "large.csv", size, columns)
        used = run_training(folder, {**KEYS, "data.file": folder / "large.csv", "data.cache_dir": folder / "cache"})
        return {"bytes": (folder / "large.csv").stat().st_size, "rows": rows, "columns": columns, **used}


def run_training(folder: pathlib.Path, keys: dict[str, Any]) -> dict[str, float]:
    """The seconds and the peak of memory of one process of train.py."""
    command = [sys.executable, "train.py", "--config=configs/my_table.py", f"--workdir={folder / 'run'}"]
    start = time.perf_counter()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *(f"--config.{key}={value}" for key, value in keys.items())], cwd=ROOT, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"train.py ended with {os.waitstatus_to_exitcode(status)}:\n{(folder / 'log').read_text()}")
    return {"seconds": round(time.perf_counter() - start, 1), "peak_bytes": 1024 * usage.ru_maxrss}


def write_table(path: pathlib.Path, size: int, columns: int) -> int:
    """Writes rows of a date and cells until the file has so many bytes; returns how many."""
    rng = np.random.default_rng(0)
    course = np.sin(2 * np.pi * np.arange(DISTINCT) / DISTINCT)[:, None] + rng.normal(size=(DISTINCT, columns))
    cells = [",".join(f"{value:.4f}" for value in row) for row in 10 + course]
    minute, rows, written = np.datetime64("1900-01-01T00:00"), 0, 0
    with path.open("w", encoding="ascii") as file:
        written = file.write(",".join(["date", *(f"c{column}" for column in range(columns))]) + "\n")
        while written < size:
            times = np.datetime_as_string(minute + rows + np.arange(DISTINCT)).tolist()
            written += file.write("".join(f"{when},{row}\n" for when, row in zip(times, cells, strict=True)))
            rows += DISTINCT
    return rows


def peak_of(run: dict[str, float]) -> float:
    """Bytes of memory."""
    return run["peak_bytes"]


if __name__ == "__main__":
    measure.run("large_table", __doc__, benchmark, rounds=1, folders={"scratch": "a folder with room for the files"})
