"""A run's folder: what it is (config.json, dataset.json), where it is (checkpoints), and its best parameters so far."""

import contextlib
import dataclasses
import errno
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from selssm_jax.config import Experiment
from selssm_jax.errors import InputError

FORMAT = 1
# What may change between a run and its continuation: nothing that decides what has been learnt so far.
MAY_DIFFER = frozenset(
    {"name", "data.local_dir", "data.cache_dir", "data.eval_batch_size"}
    | {f"training.{key}" for key in ("steps", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "select", "devices")}
)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds: the training state, the data iterator's state and the records logged so far."""

    step: int
    state: Any
    data: dict[str, Any]
    history: list[dict[str, Any]]


class Workdir:
    """The folder of one run. Opening it checks that it can be written and holds no other experiment's run."""

    def __init__(self, path: str, experiment: Experiment) -> None:
        self.path = pathlib.Path(path).absolute()
        _check_writable(self.path)
        if (self.path / "config.json").exists():
            _check_same(read_experiment(path), experiment, self.path)
        write_json(self.path / "config.json", {"format": FORMAT, "experiment": dataclasses.asdict(experiment)})
        self._manager = _manager(self.path / "checkpoints", experiment.training.keep_checkpoints)
        self._best = _manager(self.path / "best", 1)

    def save(self, step: int, state: Any, data: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """Starts saving a checkpoint; it is written while training goes on."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), history=ocp.args.JsonSave(history))
        with self._loud():
            self._manager.save(step, args=items)

    def save_best(self, step: int, params: Any, metrics: dict[str, float]) -> None:
        """Saves the parameters that did best on validation so far."""
        if step in self._best.all_steps():
            return
        with self._loud():
            self._best.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(params), metrics=ocp.args.JsonSave(metrics)))

    def restore(self, state: Any) -> Restored | None:
        """Returns the newest checkpoint that can be read, in the form of `state`; None where there is none yet."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._restore(step, state)
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(f"warning: checkpoint {step} in {self.path} cannot be read ({_first_line(error)}); trying the one before", file=sys.stderr)
                self._manager.delete(step)
        if steps:
            raise InputError(f"no checkpoint in {self.path / 'checkpoints'} can be read (steps {steps}): restore the folder, or start in a new --workdir")
        return None

    def last_good(self) -> str:
        """Says which checkpoint a stopped run goes on from."""
        step = self._manager.latest_step()
        return "no checkpoint was saved yet" if step is None else f"the last good checkpoint is step {step} in {self.path / 'checkpoints'}"

    def close(self) -> None:
        """Waits until everything is written."""
        with self._loud():
            for manager in (self._manager, self._best):
                manager.wait_until_finished()
                manager.close()

    def _restore(self, step: int, state: Any) -> Restored:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(state), data=ocp.args.JsonRestore(), history=ocp.args.JsonRestore())
        found = self._manager.restore(step, args=items)
        return Restored(step, found["state"], found["data"], found["history"])

    @contextlib.contextmanager
    def _loud(self) -> Iterator[None]:
        """Says what a failed write means for the run."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            why = "the disk is full: free some space" if full else f"{_first_line(error)}: mend that"
            raise InputError(f"a checkpoint could not be written to {self.path}: {why} and run the same command again; {self.last_good()}") from error


def read_experiment(path: str) -> Experiment:
    """Returns the experiment that a workdir holds. Raises InputError if it is none, or of a newer version."""
    config = pathlib.Path(path) / "config.json"
    if not config.is_file():
        raise InputError(f"{path} is not a run: it has no config.json; give the --workdir of a training run")
    try:
        found = json.loads(config.read_text())
        version, experiment = found["format"], found["experiment"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config} is damaged ({_first_line(error)}): restore it, or start in a new --workdir") from error
    if version > FORMAT:
        raise InputError(f"{path} was written by a newer version (format {version}, this one reads up to {FORMAT}): upgrade selssm_jax")
    return Experiment.from_json(json.dumps(experiment))


def restore_for_eval(path: str) -> tuple[Experiment, Any, int]:
    """Returns (experiment, parameters, step) of a run: best on validation if training.select says so, else the last ones."""
    experiment = read_experiment(path)
    root = pathlib.Path(path).absolute()
    best, last = (_steps(root / name) for name in ("best", "checkpoints"))
    if not best and not last:
        raise InputError(f"{path} has no checkpoint yet: train it first (python train.py --config ... --workdir {path})")
    if best and (experiment.training.select == "best" or not last):
        return experiment, _restore_item(root / "best" / str(best[-1]) / "params"), best[-1]
    return experiment, _restore_item(root / "checkpoints" / str(last[-1]) / "state")["params"], last[-1]


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(value, indent=2) + "\n")
    fresh.replace(path)


def _restore_item(path: pathlib.Path) -> Any:
    try:
        handler = ocp.StandardCheckpointer()
        shapes = handler.metadata(path).item_metadata.tree
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return handler.restore(path, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({_first_line(error)}): restore the folder, or train again in a new --workdir") from error


def _steps(folder: pathlib.Path) -> list[int]:
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []


def _manager(folder: pathlib.Path, keep: int) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True))


def _check_writable(path: pathlib.Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"x")
    except OSError as error:
        raise InputError(f"--workdir {path} cannot be written ({error.strerror}): choose another folder, or free it") from error


def _check_same(found: Experiment, asked: Experiment, path: pathlib.Path) -> None:
    old, new = (dict(_flatten(dataclasses.asdict(value))) for value in (found, asked))
    differing = [f"{key}: {old.get(key)!r} there, {new[key]!r} now" for key in new if key not in MAY_DIFFER and old.get(key) != new[key]]
    if differing:
        raise InputError(f"{path} holds another experiment's run ({'; '.join(differing)}): use the same config, or a new --workdir")


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
