"""Small experiments for tests, what a run's folder holds, and commands in this process."""

import dataclasses
import functools
import json
import pathlib
import runpy
import subprocess
import sys
import warnings
from typing import Any

import absl.app  # noqa: F401  its flags are defined once a process and stay
import numpy as np
import pytest
from absl import flags

import selssm_jax.cli  # noqa: F401  its flags too
from configs import smoke
from selssm_jax.config import Experiment, Model, Task, fields
from selssm_jax.shapes import Batch
from selssm_jax.training import checkpoint

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TASKS = {
    "language": Task("language", vocab=5, length=12),
    "classification": Task("classification", channels=1, classes=3, length=12),
    "forecasting": Task("forecasting", channels=2, length=12, horizon=4),
}


def experiment(**changes: Any) -> Experiment:
    """Returns configs/smoke.py on one device after overrides such as training__steps=8."""
    config = smoke.get_config()
    for path, value in ({"training__devices": 1} | changes).items():
        *groups, key = path.split("__")
        functools.reduce(lambda values, group: values[group], groups, config)[key] = value
    return Experiment.from_config_dict(config)


# Of a run of two steps, on data of a person's own.
SHORT = (
    "training.steps=2",
    "training.eval_every=2",
    "training.checkpoint_every=2",
    "training.devices=1",
    "optimizer.warmup_steps=1",
    "data.length=24",
)


# Of a model that is traced and compiled in two thirds of the time, where the model does not matter.
SMALL = {"model__pattern": ("rnn",), "model__mlp_ratio": 0.0}


def train_command(workdir: pathlib.Path, config: Experiment) -> list[str]:
    """Returns the command of a process of its own that trains configs/smoke.py as this experiment."""
    return [sys.executable, "train.py", "--config", "configs/smoke.py", f"--workdir={workdir}", *overrides(config)]


def list_loaded(imports: str, *packages: str) -> list[str]:
    """Returns which of these packages a fresh process has loaded after imports."""
    script = f"import json, sys; {imports}; print(json.dumps(sorted(set({packages!r}) & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def ragged(task: Task, rows: int = 8, seed: int = 1) -> Batch:
    """A batch whose rows are padded and weighted unequally, so that a mean of means is not the mean."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, task.length + 1, rows)
    valid = np.arange(task.length)[None] < lengths[:, None]
    if task.kind == "language":
        tokens = rng.integers(0, task.vocab, (2, rows, task.length)).astype(np.int32)
        return {"inputs": tokens[0], "targets": tokens[1], "weights": valid.astype(np.float32), "valid": valid}
    inputs = rng.standard_normal((rows, task.length, task.width), np.float32)
    series = task.kind == "forecasting"
    targets = (
        rng.standard_normal((rows, task.horizon, task.channels), np.float32)
        if series
        else rng.integers(0, task.classes, rows).astype(np.int32)
    )
    return {
        "inputs": inputs,
        "targets": targets,
        "weights": rng.uniform(0.1, 2, rows).astype(np.float32),
        "valid": valid,
    }


def model(base: Model | None = None, **changes: Any) -> Model:
    """Returns a model after changes, those of mixers' groups too, such as selective__gate="tanh"."""
    values = dataclasses.asdict(base or Model())
    for path, value in changes.items():
        value = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
        fields.assign(values, path.replace("__", "."), value)
    return fields.build(Model, values, "model")


# of every mixer that has any
HEADS = dict.fromkeys(
    ("attention__heads", "local_attention__heads", "mamba2__heads", "kalman_attention__heads", "rg_lru__blocks"), 2
)


def overrides(config: Experiment) -> list[str]:
    """Returns the command line's overrides that make configs/smoke.py this experiment."""
    now, before = (dataclasses.asdict(value) for value in (config, Experiment.from_config_dict(smoke.get_config())))
    before = dict(fields.flatten(before))
    return [f"--config.{path}={value}" for path, value in fields.flatten(now) if "." in path and value != before[path]]


def history(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a run without what the clock says."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if name not in ("time", "steps_per_second")}
        for record in records
    ]


def progress(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    """Returns what a checkpoint holds besides the training state."""
    return json.loads((workdir / "checkpoints" / str(step) / "progress" / "metadata").read_text())


def state(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    """Returns the training state and the data iterator's state that a checkpoint holds."""
    folder = workdir / "checkpoints" / str(step)
    return {"state": checkpoint._restore_item(folder / "state"), "data": progress(workdir, step)["data"]}


def content(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the files of a folder, all that could be lost; a lock and empty folders hold nothing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def command(script: str, *arguments: str) -> int:
    """Runs train.py or eval.py in this process, as a fresh one would, and returns its exit code."""
    known, before = set(flags.FLAGS), sys.argv
    # their flags are defined anew
    for name in [name for name in sys.modules if name.startswith("selssm_jax.commands")]:
        del sys.modules[name]
    sys.argv = [str(REPOSITORY / script), *arguments]
    try:
        with warnings.catch_warnings():
            # ml_collections, when it reads a config file
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
            with pytest.raises(SystemExit) as stop:
                runpy.run_path(sys.argv[0], run_name="__main__")
        return stop.value.code or 0
    finally:
        sys.argv = before
        flags.FLAGS.unparse_flags()
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
