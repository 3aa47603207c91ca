"""A run's folder: what it is (config.json, dataset.json), where it is (checkpoints), and its best parameters so far."""

import contextlib
import copy
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from selssm_jax.config import UNREAD, Experiment
from selssm_jax.errors import InputError

FORMAT = 1
# What may change between a run and its continuation: nothing that decides what has been learnt so far.
MAY_DIFFER = frozenset(
    {"name", "data.local_dir", "data.cache_dir", "data.eval_batch_size"}
    | {f"training.{key}" for key in ("steps", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "select", "devices")}
)
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what Orbax raises for a damaged checkpoint, by damage


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds: the training state, and a JSON value with the data iterator's state and the records so far."""

    step: int
    state: Any
    progress: dict[str, Any]


class Workdir:
    """The folder of one run.

    Opening it checks that it can be written, that no other process trains in it and that it holds no other experiment's
    run, and changes nothing there.

    Raises:
      InputError: naming what is wrong and the fix.
    """

    def __init__(self, path: str, experiment: Experiment) -> None:
        self.path, self._experiment = pathlib.Path(path).absolute(), experiment
        _check_writable(self.path)
        taken = _steps(self.path / "checkpoints") + _steps(self.path / "best")
        self._begun = bool(taken)
        if self._begun:
            _check_same(read_experiment(path), experiment, self.path)
            _check_steps(max(taken), experiment.training.steps, self.path)
        self._lock = _lock(self.path)
        self._manager = _manager(self.path / "checkpoints", experiment.training.keep_checkpoints)
        self._best = _manager(self.path / "best", 1)

    def describe(self, metadata: dict[str, Any]) -> None:
        """Writes what the run is. Raises InputError if it has begun on other data."""
        metadata = json.loads(json.dumps(metadata))
        if self._begun:
            _check_same_data(self.path / "dataset.json", metadata)
        with self.writing():
            _write_json(self.path / "config.json", {"format": FORMAT, "experiment": dataclasses.asdict(self._experiment)})
            _write_json(self.path / "dataset.json", metadata)

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Starts saving a checkpoint; it is written while training goes on, which may change `progress` by then."""
        if step in self._manager.all_steps():
            return
        progress = copy.deepcopy(progress)
        with self.writing():
            _check_space(self.path, state)
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)))

    def save_best(self, step: int, params: Any, metrics: dict[str, float]) -> None:
        """Saves the parameters that did best on validation so far, in place of any others."""
        with self.writing():
            _check_space(self.path, params)
            for later in [found for found in self._best.all_steps() if found >= step]:
                self._best.delete(later)  # from before the run fell back to an earlier checkpoint
            self._best.save(step, args=ocp.args.Composite(params=ocp.args.StandardSave(params), metrics=ocp.args.JsonSave(metrics)))

    def restore(self, state: Any) -> Restored | None:
        """Returns the newest checkpoint that can be read, in the form of `state`; None where there is none yet.

        Newer ones that cannot be read are moved to WORKDIR/unreadable with a warning.

        Raises:
          InputError: if there are checkpoints, but none can be read. Nothing is moved then.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore(step, state)
            except UNREADABLE as error:
                damaged[step] = _first_line(error)
            else:
                self._set_aside(damaged)
                return restored
        if damaged:
            why = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise InputError(f"no checkpoint in {self.path / 'checkpoints'} can be read ({why}): restore the folder, or start in a new --workdir")
        return None

    def last_good(self) -> str:
        """Says which checkpoint a stopped run goes on from."""
        step = self._manager.latest_step()
        return "no checkpoint was saved yet" if step is None else f"the last good checkpoint is step {step} in {self.path / 'checkpoints'}"

    def close(self) -> None:
        """Waits until everything is written."""
        with self._lock, self.writing(), contextlib.ExitStack() as every:
            for manager in (self._manager, self._best):
                every.callback(manager.close)
                every.callback(manager.wait_until_finished)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Says what a failed write means for the run. Raises InputError that names the last good checkpoint."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            why = "the disk is full: free some space" if full else f"{_first_line(error)}: mend that"
            raise InputError(f"{self.path} could not be written, {why} and run the same command again; {self.last_good()}") from error

    def _restore(self, step: int, state: Any) -> Restored:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(state), progress=ocp.args.JsonRestore())
        found = self._manager.restore(step, args=items)
        return Restored(step, found["state"], dict(found["progress"]))

    def _set_aside(self, damaged: dict[int, str]) -> None:
        for step, why in damaged.items():
            place = pathlib.Path(tempfile.mkdtemp(prefix=f"{step}-", dir=_folder(self.path / "unreadable")))
            (self.path / "checkpoints" / str(step)).rename(place / str(step))
            print(f"warning: checkpoint {step} of {self.path} cannot be read ({why}): moved to {place}, going on from the one before", file=sys.stderr)
        if damaged:
            self._manager.reload()


def read_experiment(path: str) -> Experiment:
    """Returns the experiment that a workdir holds. Raises InputError if it is none, or of a newer version."""
    config = pathlib.Path(path) / "config.json"
    if not config.is_file():
        raise InputError(f"{path} is not a run: it has no config.json; give the --workdir of a training run")
    try:
        found = json.loads(config.read_text())
        version, experiment = int(found["format"]), found["experiment"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config} is damaged ({_first_line(error)}): restore it, or start in a new --workdir") from error
    if version > FORMAT:
        raise InputError(f"{path} was written by a newer version (format {version}, this one reads up to {FORMAT}): upgrade selssm_jax, or use a new --workdir")
    return Experiment.from_json(json.dumps(experiment))


def restore_for_eval(path: str) -> tuple[Experiment, Any, int]:
    """Returns (experiment, parameters, step) of a run: best on validation if training.select says so, else the last ones.

    Where those cannot be read the next best are taken, with a warning.

    Raises:
      InputError: if `path` is no run, has no checkpoint yet, or none that can be read.
    """
    experiment = read_experiment(path)
    root = pathlib.Path(path).absolute()
    best = [root / "best" / str(step) / "params" for step in reversed(_steps(root / "best"))]
    last = [root / "checkpoints" / str(step) / "state" for step in reversed(_steps(root / "checkpoints"))]
    candidates = best + last if experiment.training.select == "best" else last + best
    for item in candidates:
        try:
            found = _restore_item(item)
            return experiment, found if item.name == "params" else found["params"], int(item.parent.name)
        except UNREADABLE as error:
            print(f"warning: {item.parent} cannot be read ({_first_line(error)}): trying the next", file=sys.stderr)
    if candidates:
        raise InputError(f"no checkpoint of {path} can be read: restore the folder, or train again in a new --workdir")
    raise InputError(f"{path} has no checkpoint yet: train it first (python train.py --config ... --workdir {path})")


def _restore_item(path: pathlib.Path) -> Any:
    """Arrays as they were saved, on this machine's first device, whatever devices they were saved from."""
    handler = ocp.StandardCheckpointer()
    shapes = handler.metadata(path).item_metadata.tree
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return handler.restore(path, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes))


def _steps(folder: pathlib.Path) -> list[int]:
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []


def _manager(folder: pathlib.Path, keep: int) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True))


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def _write_json(path: pathlib.Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2) + "\n")


def _folder(path: pathlib.Path) -> pathlib.Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _check_writable(path: pathlib.Path) -> None:
    try:
        for folder in (path, path / "checkpoints", path / "best"):
            with tempfile.TemporaryFile(dir=_folder(folder)) as probe:
                probe.write(b"x")
    except OSError as error:
        raise InputError(f"--workdir {path} cannot be written ({error.strerror}: {error.filename}): choose another folder, or free it") from error


def _check_space(path: pathlib.Path, tree: Any) -> None:
    """Raises OSError before a write that would fill the disk: a thread that fails in the middle of it prints more than a person can use."""
    if shutil.disk_usage(path).free < sum(leaf.nbytes for leaf in jax.tree.leaves(tree)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lock(path: pathlib.Path) -> Any:
    """Holds the folder for this process; the lock ends with it, however it ends."""
    held = (path / ".lock").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        held.close()
        raise InputError(f"another process is training in {path}: wait for it, stop it, or use a new --workdir") from error
    except OSError:
        return held  # a file system without locks
    return held


def differing(found: Experiment, asked: Experiment) -> dict[str, tuple[Any, Any]]:
    """Returns the keys in which two experiments differ, such as "data.length", with both values."""
    old, new = (dict(flatten(dataclasses.asdict(value))) for value in (found, asked))
    return {key: (old[key], new[key]) for key in new if old[key] != new[key]}


def _check_same(found: Experiment, asked: Experiment, path: pathlib.Path) -> None:
    fixed = {key: values for key, values in differing(found, asked).items() if key not in MAY_DIFFER and key.partition(".")[0] not in UNREAD}
    if fixed:
        said = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in fixed.items())
        raise InputError(f"{path} holds another experiment's run ({said}): use the same config, or a new --workdir")


def _check_steps(taken: int, asked: int, path: pathlib.Path) -> None:
    if taken > asked:
        raise InputError(f"training.steps={asked}, but the run in {path} has already taken {taken}: use more, or a new --workdir")


def _check_same_data(path: pathlib.Path, metadata: dict[str, Any]) -> None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return  # lost or damaged: it is written afresh
    differing = [key for key in metadata if key in found and found[key] != metadata[key]]
    if differing:
        raise InputError(f"the data changed since {path.parent} was begun ({', '.join(differing)}): bring back the old data, or use a new --workdir")


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every value of nested dictionaries with its keys joined by points, such as "data.length"."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
