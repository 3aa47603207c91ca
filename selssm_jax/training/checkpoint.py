"""The folder of a run: its experiment and data set (config.json, dataset.json), its newest states (checkpoints) and its
best parameters.
"""

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
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import orbax.checkpoint as ocp

from selssm_jax import invocation
from selssm_jax.config import NEEDS_FILE, UNREAD, Data, Experiment, Task
from selssm_jax.config.fields import flatten
from selssm_jax.data import provenance
from selssm_jax.errors import InputError, LostProcess, first_line
from selssm_jax.paths import check_local, check_regular
from selssm_jax.training import checksums, cluster

FORMAT = 2  # 1: keys had other names (`config.renames`)
CONFIG, DATASET = "config.json", "dataset.json"  # in the run's folder, and a copy in every checkpoint
LOCK = ".lock"
# What may change between a run and its continuation: nothing that decides what has been learnt so far.
MAY_DIFFER = frozenset(
    {"name", "data.file", "data.gaps", "data.local_dir", "data.cache_dir", "data.batch_size", "data.eval_batch_size"}
    | {"optimizer.accumulate"}
    | {
        f"training.{key}"
        for key in ("steps", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "select")
    }
    | {f"training.{key}" for key in ("patience", "skip_nonfinite", "devices", "mesh", "shard_parameters")}
)
# all else that Orbax raises, a bare Exception too, tells of a damaged checkpoint, by damage
NO_DAMAGE = (MemoryError, jax.errors.JaxRuntimeError)
RESCANS = 100  # of the folder of a run that is being trained while it is read


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint holds: the training state, a JSON value with the data iterator's state and the records so far,
    and the experiment as it was by then.
    """

    step: int
    state: Any
    progress: dict[str, Any]
    experiment: Experiment


class Workdir:
    """The folder of one run.

    Opening it checks that it can be written, that no other process trains in it and that it holds no other experiment's
    run, and changes nothing there but for clearing what killed saves left.

    A checkpoint is committed by a rename, and holds the SHA-256 of its files (`checksums`) and what the run is by then.
    The best parameters are committed before the checkpoint that remembers them, and those before them go after it.

    Processes of a cluster open the folder together, on a file system that they share: the first holds the lock and
    writes what is written once, and all of them save and restore. `alone` says that this process works by itself.

    Raises:
      InputError: naming what is wrong and the fix.
    """

    def __init__(self, path: str, experiment: Experiment, *, alone: bool = False) -> None:
        check_place(path)
        self.path, self._experiment, self._alone = pathlib.Path(path).absolute(), experiment, alone
        self._writes = alone or cluster.is_first()
        self._is_new = not self.path.exists()
        _check_writable(self.path)
        taken = _steps(self.path / "checkpoints") + _steps(self.path / "best")
        self._begun, self._before = bool(taken), experiment
        if self._begun:
            self._before = read_experiment(path)
            _check_same(self._before, experiment, self.path)
            _check_steps(max(taken), experiment.training.steps, self.path)
        else:
            _check_descriptions(self.path)
        self._lock: Any = _lock(self.path) if self._writes else contextlib.nullcontext()
        self._description: dict[str, str] = {}
        # the step of the best parameters that the newest committed checkpoint knows of
        self._remembered: int | None = None

    @cached_property
    # Orbax clears leavings in a thread of its own: not before the run is known to begin
    def _manager(self) -> ocp.CheckpointManager:
        return self._open("checkpoints", self._experiment.training.keep_checkpoints)

    @cached_property
    def _best(self) -> ocp.CheckpointManager:
        return self._open("best", None)

    def metadata(self) -> dict[str, Any]:
        """Returns what the run remembers of its data; nothing where it has not begun, or that is lost."""
        try:
            return _read_object(self.path / DATASET) if self._begun else {}
        except (OSError, ValueError):
            return {}

    def describe(self, metadata: dict[str, Any]) -> None:
        """Writes what the run is. Raises InputError if it has begun on other data."""
        metadata = json.loads(json.dumps(metadata))
        if self._begun:
            _check_same_data(self.path, metadata)
        experiment = {
            "format": FORMAT,
            "experiment": dataclasses.asdict(self._experiment),
            "seal": provenance.seal(self._experiment.data),
        }
        # the config last: where it is, there is a run
        self._description = {DATASET: _json(metadata), CONFIG: _json(experiment)}
        with self.writing():
            for name, text in self._description.items() if self._writes else ():
                write_whole(self.path / name, text)

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Starts saving a checkpoint; it is written while training goes on, which may change `progress` by then.

        progress: what the run goes on from besides `state`; "best" in it is the step of the best parameters so far.
        """
        if step in self._manager.all_steps():
            return
        progress = copy.deepcopy(progress)
        with self.writing():
            _check_space(self.path, state)
            self._best.wait_until_finished()  # a checkpoint remembers no best parameters that a kill could still lose
            state = self._as_stored(state)
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
            )
            self._delete_best(before=self._remembered)  # the checkpoint before this one is committed by now
        self._remembered = progress.get("best")

    def save_best(self, step: int, params: Any, metrics: dict[str, float]) -> None:
        """Starts saving the parameters that did best on validation so far."""
        with self.writing():
            _check_space(self.path, params)
            self._delete_best(since=step)  # from before the run fell back to an earlier checkpoint
            if not cluster.is_alone():
                self._manager.wait_until_finished()  # in a cluster, Orbax mistakes two saves at a time for one another
            params = self._as_stored(params)
            self._best.save(
                step, args=ocp.args.Composite(params=ocp.args.StandardSave(params), scores=ocp.args.JsonSave(metrics))
            )

    def recall_best(self, step: int, ranked: Sequence[tuple[int, dict[str, float]]]) -> int | None:
        """Returns the step of the best parameters that are there for a run at `step`, written again where a checkpoint
        still has them.

        ranked: (step, metrics) of the validations so far, the best first. None: parameters of none of them are left.
        """
        for candidate, metrics in ranked:
            if candidate in self._best.all_steps() and _is_readable(self.path / "best" / str(candidate) / "params"):
                self._delete_best(since=step + 1)  # from a future that the run did not go on from
                return candidate
            if candidate in self._manager.all_steps() and _is_readable(
                self.path / "checkpoints" / str(candidate) / "state"
            ):
                self.save_best(
                    candidate, _restore_params(self.path / "checkpoints" / str(candidate) / "state"), metrics
                )
                return candidate
        return None

    def restore(self, state: Any, take: Callable[[Restored], None] = lambda restored: None) -> Restored | None:
        """Returns the newest checkpoint that can be read, in the form of `state`; None where there is none yet.

        Newer ones that cannot be read are moved to WORKDIR/unreadable with a warning.

        take: goes on from a checkpoint, or raises whatever it will: then that checkpoint cannot be read, and the one
        before is taken.

        Raises:
          InputError: if there are checkpoints, but none can be read. Nothing is moved then.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._restore(step, state)
                take(restored)
            except NO_DAMAGE:
                raise
            except Exception as error:
                damaged[step] = first_line(error)
            else:
                self._set_aside(damaged)
                self._remembered = restored.progress.get("best")
                return restored
        if damaged:
            why = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise InputError(
                f"no checkpoint in {self.path / 'checkpoints'} can be read ({why}): restore the folder, or start in a "
                "new --workdir"
            )
        return None

    def last_good(self) -> str:
        """Says which checkpoint a stopped run goes on from."""
        step = self._manager.latest_step()
        return (
            "no checkpoint was saved yet"
            if step is None
            else f"the last good checkpoint is step {step} in {self.path / 'checkpoints'}"
        )

    def close(self) -> None:
        """Waits until everything is written."""
        with self._lock:
            if {"_manager", "_best"} & vars(self).keys():
                self._finish()
            elif self._is_new and self._writes and not self._description:
                self._remove()

    def _finish(self) -> None:
        with self.writing(), contextlib.ExitStack() as every:
            for manager in (self._manager, self._best):
                every.callback(manager.close)
            for manager in (self._best, self._manager):
                manager.wait_until_finished()
            self._settle()

    def _remove(self) -> None:
        """Leaves no folder where the run was refused before it had begun."""
        (self.path / LOCK).unlink(missing_ok=True)
        for folder in (self.path / "checkpoints", self.path / "best", self.path):
            with contextlib.suppress(OSError):  # someone has put something there
                folder.rmdir()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Says what a failed write means for the run. Raises InputError that names the last good checkpoint."""
        try:
            with cluster.noticing_loss():
                yield
        except LostProcess:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
            why = "the disk is full: free some space" if full else f"{first_line(error)}: mend that"
            raise InputError(
                f"{self.path} could not be written, {why} and run the same command again; {self.last_good()}"
            ) from error

    def _open(self, name: str, keep: int | None) -> ocp.CheckpointManager:
        sealed = ocp.AsyncOptions(post_finalization_callback=partial(self._seal, self.path / name))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            async_options=sealed,
            multiprocessing_options=cluster.orbax_options(name, alone=self._alone),
        )
        try:
            return ocp.CheckpointManager(self.path / name, options=options)
        except NO_DAMAGE:
            raise
        except Exception as error:  # of earlier versions it reads the scores of the best parameters at once
            if self._writes:
                self._lock.close()
            raise InputError(
                f"{self.path / name} cannot be opened ({first_line(error)}): remove what is damaged in it"
            ) from error

    def _seal(self, folder: pathlib.Path) -> None:
        """Completes a checkpoint when all its arrays are written, before the rename that commits it: in the thread that
        writes.
        """
        if not self._writes:
            return
        unfinished = list(folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))
        if not unfinished:
            raise RuntimeError(f"{folder} has no unfinished checkpoint to take the checksums of")
        for checkpoint in unfinished:
            for name, text in self._description.items():
                (checkpoint / name).write_text(text)
            checksums.seal(checkpoint)

    def _delete_best(self, *, before: int | None = None, since: int | None = None) -> None:
        """Deletes parameters that are the best no more."""
        for step in list(self._best.all_steps()):
            if (before is not None and step < before) or (since is not None and step >= since):
                self._best.delete(step)

    def _settle(self) -> None:
        """Leaves the best parameters that the last checkpoint remembers, and newer ones; without any checkpoint, the
        newest.
        """
        newest = max(self._best.all_steps(), default=None)
        self._delete_best(before=self._remembered if self._manager.all_steps() else newest)

    def _restore(self, step: int, state: Any) -> Restored:
        _check_sums(self.path / "checkpoints" / str(step))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(state), progress=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        _check_progress(restored["progress"], step)
        # checkpoints of earlier versions have no copy, nor another config than the run
        copied = self.path / "checkpoints" / str(step) / CONFIG
        experiment = _experiment(copied) if copied.is_file() else self._before
        return Restored(step, restored["state"], dict(restored["progress"]), experiment)

    def _as_stored(self, tree: Any) -> Any:
        return tree if self._alone else cluster.as_stored(tree)

    def _set_aside(self, damaged: dict[int, str]) -> None:
        for step, why in damaged.items() if self._writes else ():
            place = pathlib.Path(tempfile.mkdtemp(prefix=f"{step}-", dir=_folder(self.path / "unreadable")))
            (self.path / "checkpoints" / str(step)).rename(place / str(step))
            print(
                f"warning: checkpoint {step} of {self.path} cannot be read ({why}): moved to {place}, going on from "
                "the one before",
                file=sys.stderr,
            )
        if damaged:
            cluster.wait()
            self._manager.reload()


def check_place(path: str) -> None:
    """Raises InputError, before work starts, for a folder that a run cannot be written to by its name alone."""
    check_local(path)
    strange = sorted(set("[]*\\\0") & set(os.path.abspath(path)))
    if strange:
        raise InputError(
            f"--workdir {path!r} has {' '.join(map(repr, strange))} in its name, which Orbax reads as a pattern, so "
            "that checkpoints would be lost: choose a name without [ ] * and backslashes"
        )


def read_experiment(path: str) -> Experiment:
    """Returns the experiment that a workdir holds, of the newest checkpoint's copy where config.json is lost.

    Raises:
      InputError: if it holds none, or one of a newer version, or config.json is damaged.
    """
    config = pathlib.Path(path) / CONFIG
    if config.exists():
        return _experiment(config)
    copied = _copy_of(config)
    if copied is None:
        raise InputError(f"{path} is not a run: it has no {CONFIG}; give the --workdir of a training run")
    print(f"warning: {config} is missing: {copied} is read instead", file=sys.stderr)
    return _experiment(copied)


def own_places(path: str, source: Data) -> Data:
    """Returns a workdir's data with the files and folders that it names where this user wrote them there, else without
    folders; see `provenance`.

    Raises:
      InputError: for data that is a file which someone else named.
    """
    config = pathlib.Path(path) / CONFIG
    place = config if config.is_file() else _copy_of(config)
    with contextlib.suppress(OSError, ValueError):
        if place is not None and provenance.intact(source, _read_object(place).get("seal")):
            return source
    if source.source in NEEDS_FILE:
        raise InputError(
            f"{path} was trained on a file of someone's, {pathlib.Path(source.file).name!r}, and this user did not "
            "write there where it lies: name it yourself, --file=PATH; it is known by its content"
        )
    if source.local_dir or source.cache_dir:
        print(
            f"the folders that {path} names are not followed: this user did not write them there; --local_dir names "
            "one",
            file=sys.stderr,
            flush=True,
        )
    return provenance.without_places(source)


def read_metadata(path: str) -> dict[str, Any]:
    """Returns what a workdir says of its data: `Dataset.metadata()` of its training.

    Raises:
      InputError: if it says nothing that can be read, or something else than the newest checkpoint.
    """
    place = pathlib.Path(path) / DATASET
    copied = _copy_of(place)
    again = f"restore it: {copied} is a copy" if copied else "restore it, or train again in a new workdir"
    try:
        metadata = _read_object(place)
    except FileNotFoundError as error:
        raise InputError(f"{place} is missing, so the run's vocabulary and scaling are unknown: {again}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{place} cannot be read as JSON ({error}): {again}") from error
    recorded, present = _with_defaults(_read_object(copied) if copied else {}), _with_defaults(metadata)
    different = [key for key, value in recorded.items() if key != "file" and present.get(key) != value]
    if different:
        raise InputError(f"{place} is not what the run was trained on ({', '.join(different)}): {again}")
    return metadata


def is_run(path: str | pathlib.Path) -> bool:
    """Whether a folder says what run it holds, or one of its checkpoints does."""
    config = pathlib.Path(path) / CONFIG
    return config.exists() or _copy_of(config) is not None


def restore_for_eval(path: str) -> tuple[Experiment, Any, int]:
    """Returns (experiment, parameters, step) of a run: best on validation if training.select says so, else the last
    ones.

    Where those cannot be read the next best are taken, with a warning. A run that is being trained can be read at any
    moment.

    Raises:
      InputError: if `path` is no run, has no checkpoint yet, or none that can be read; if config.json is not the
        checkpoint's.
    """
    experiment = read_experiment(path)
    root = pathlib.Path(path).absolute()
    candidates = _candidates(root, experiment.training.select)
    for _ in range(RESCANS):
        chosen, warnings = _first_readable(candidates)
        again = _candidates(root, experiment.training.select)
        if chosen or again == candidates:
            break
        candidates = again  # training went on, and what was to be read is replaced
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if chosen:
        checkpoint, params = chosen
        _check_copy(experiment, checkpoint, root)
        return experiment, params, int(checkpoint.name)
    if candidates:
        raise InputError(f"no checkpoint of {path} can be read: restore the folder, or train again in a new --workdir")
    raise InputError(
        f"{path} has no checkpoint yet: train it first ({invocation.command('train')} --config ... --workdir {path})"
    )


def _first_readable(candidates: list[tuple[pathlib.Path, str]]) -> tuple[tuple[pathlib.Path, Any] | None, list[str]]:
    """The checkpoint of the first item that can be read and the parameters in it, and what is to be said of it and
    those before it.
    """
    warnings = []
    for item, note in candidates:
        try:
            _check_sums(item.parent)
            params = _restore_params(item)
        except NO_DAMAGE:
            raise
        except Exception as error:
            warnings.append(f"{item.parent} cannot be read ({first_line(error)}): trying the next")
        else:
            return (item.parent, params), [*warnings, *([note] if note else [])]
    return None, warnings


def _candidates(root: pathlib.Path, select: str) -> list[tuple[pathlib.Path, str]]:
    """What parameters are read from, in order, each with what is to be said of those."""
    known, validated = _remembered_best(root)
    best = [(root / "best" / str(step) / "params", "") for step in reversed(_steps(root / "best"))]
    last = [(root / "checkpoints" / str(step) / "state", "") for step in reversed(_steps(root / "checkpoints"))]
    if select != "best":
        return last + best
    if known is None and not validated:
        return best + last
    lost = (
        f"the best parameters of {root}{'' if known is None else f', those of step {known},'} are lost: these are "
        "others"
    )
    there = [(item, "") for item, _ in best if known is None or int(item.parent.name) >= known]
    again = [(item, "") for item, _ in last if item.parent.name == str(known)]
    rest = [(item, lost) for item, _ in last + best if (item, "") not in there + again]
    return there + again + rest


def _remembered_best(root: pathlib.Path) -> tuple[int | None, bool]:
    """The step of the best parameters that the newest checkpoint knows of, None of earlier versions, and whether it has
    validated any.
    """
    for step in reversed(_steps(root / "checkpoints")):
        with contextlib.suppress(Exception):  # damaged: it is named when its parameters are read
            options = cluster.orbax_options("read", alone=True)
            reader = ocp.Checkpointer(
                ocp.JsonCheckpointHandler(multiprocessing_options=options), multiprocessing_options=options
            )
            progress = reader.restore(root / "checkpoints" / str(step) / "progress")
            _check_progress(progress, step)
            return progress.get("best"), any(record["split"] == "validation" for record in progress.get("history", ()))
    return None, False


def _restore_params(item: pathlib.Path) -> Any:
    """The parameters that are evaluated, of the best or of a training state: their average where it has one."""
    restored = _restore_item(item)
    return restored if item.name == "params" else restored.get("average", restored["params"])


def _restore_item(path: pathlib.Path) -> Any:
    """Arrays as they were saved, on this machine's first device, whatever devices they were saved from."""
    options = cluster.orbax_options("read", alone=True)
    # a checkpointer's own would look for metadata of a whole checkpoint here, and warn that there are none
    shapes = ocp.StandardCheckpointHandler(multiprocessing_options=options).metadata(path).tree
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return ocp.StandardCheckpointer(multiprocessing_options=options).restore(
        path, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
    )


def _is_readable(item: pathlib.Path) -> bool:
    try:
        return checksums.verify(item.parent) or bool(_restore_item(item))
    except NO_DAMAGE:
        raise
    except Exception:
        return False


def _check_sums(checkpoint: pathlib.Path) -> None:
    if not checksums.verify(checkpoint):
        print(
            f"note: {checkpoint} has no checksums, as those of earlier versions: it is read unchecked", file=sys.stderr
        )


def _check_progress(progress: Any, step: int) -> None:
    """Raises ValueError for what no run goes on from: records are of steps up to this one, and the best of them is the
    step of a validation.
    """
    if not isinstance(progress, dict):
        raise ValueError(f"progress is {type(progress).__name__}, expected an object")
    history, best = progress.get("history", []), progress.get("best")
    if not isinstance(history, list) or not all(is_record(record) for record in history):
        raise ValueError("progress.history is no list of records")
    if not all(0 < record["step"] <= step for record in history):
        raise ValueError(f"progress.history has records of steps that are not from 1 to {step}")
    validated = [record["step"] for record in history if record["split"] == "validation"]
    if best is not None and (type(best) is not int or best not in validated):
        raise ValueError(
            f"progress.best is {best!r}, expected the step of a validation in progress.history, one of {validated}"
        )


def is_record(value: Any) -> bool:
    """Whether a JSON value has the form of a record of metrics: {"step": 10, "split": "train", "nats": 1.2, ...}."""
    if not isinstance(value, dict) or type(value.get("step")) is not int or not isinstance(value.get("split"), str):
        return False
    return all(type(number) in (int, float) for name, number in value.items() if name != "split")


def _check_copy(experiment: Experiment, checkpoint: pathlib.Path, root: pathlib.Path) -> None:
    """Raises InputError where config.json is not what the run was trained with."""
    if (checkpoint / CONFIG).is_file():
        fixed = _fixed_differences(_experiment(checkpoint / CONFIG), experiment)
        if fixed:
            raise InputError(
                f"{root / CONFIG} is not what the run was trained with ({fixed}): restore it: {checkpoint / CONFIG} is "
                "a copy"
            )


def _experiment(config: pathlib.Path) -> Experiment:
    try:
        description = _read_object(config)
        version, experiment = int(description["format"]), description["experiment"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        copied = _copy_of(config)
        again = f"restore it: {copied} is a copy" if copied else "restore it, or start in a new --workdir"
        raise InputError(f"{config} is damaged ({first_line(error)}): {again}") from error
    if version > FORMAT:
        raise InputError(
            f"{config.parent} was written by a newer version (format {version}, this one reads up to {FORMAT}): "
            "upgrade selssm_jax, or use a new --workdir"
        )
    return Experiment.from_dict(experiment) if version == FORMAT else Experiment.from_older(experiment)


def _copy_of(description: pathlib.Path) -> pathlib.Path | None:
    """The newest checkpoint's copy of config.json or dataset.json; checkpoints of earlier versions have none."""
    for folder in (description.parent / "checkpoints", description.parent / "best"):
        for step in reversed(_steps(folder)):
            copied = folder / str(step) / description.name
            with contextlib.suppress(checksums.Damaged, OSError):
                if copied.is_file() and checksums.verify(copied.parent, copied.name):
                    return copied
    return None


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object. Raises ValueError for anything else, and OSError where it is no file to read."""
    check_regular(path)
    try:
        value = json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, expected an object")
    return value


def _steps(folder: pathlib.Path) -> list[int]:
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()) if folder.is_dir() else []


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content.encode() if isinstance(content, str) else content)
    fresh.replace(path)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _folder(path: pathlib.Path) -> pathlib.Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _check_writable(path: pathlib.Path) -> None:
    try:
        for folder in (path, path / "checkpoints", path / "best"):
            with tempfile.TemporaryFile(dir=_folder(folder)) as probe:
                probe.write(b"x")
        with contextlib.suppress(FileNotFoundError):
            check_regular(path / LOCK)  # a pipe of that name would wait for a reader
    except OSError as error:
        raise InputError(
            f"--workdir {path} cannot be written ({_reason(error, path / LOCK)}): choose another folder, or free it"
        ) from error


def _check_descriptions(path: pathlib.Path) -> None:
    """Raises InputError where a folder without checkpoints has a config.json or dataset.json that no run wrote: they
    would be written over.
    """
    for name, keys in {CONFIG: {"format", "experiment"}, DATASET: set()}.items():
        try:
            missing = keys - _read_object(path / name).keys()
            if missing:
                raise ValueError(f"it has no {' and no '.join(sorted(missing))}")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path / name} is of no run ({first_line(error)}), and would be written over: use another --workdir, "
                "or move it away"
            ) from error


def _check_space(path: pathlib.Path, tree: Any) -> None:
    """Raises OSError before a write that would fill the disk: a thread that fails in the middle of it prints more than
    a person can use.
    """
    if shutil.disk_usage(path).free < sum(leaf.nbytes for leaf in jax.tree.leaves(tree)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _lock(path: pathlib.Path) -> Any:
    """Holds the folder for this process; the lock ends with it, however it ends."""
    held = (path / LOCK).open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        held.close()
        raise InputError(
            f"another process is training in {path}: wait for it, stop it, or use a new --workdir"
        ) from error
    except OSError:
        return held  # a file system without locks
    return held


def differing(recorded: Experiment, asked: Experiment) -> dict[str, tuple[Any, Any]]:
    """Returns the keys in which two experiments differ, such as "data.length", with both values."""
    old, new = (dict(flatten(dataclasses.asdict(value))) for value in (recorded, asked))
    return {key: (old.get(key), new[key]) for key in new if old.get(key) != new[key]}


def _check_same(recorded: Experiment, asked: Experiment, path: pathlib.Path) -> None:
    fixed = _fixed_differences(recorded, asked)
    if fixed:
        raise InputError(f"{path} holds another experiment's run ({fixed}): use the same config, or a new --workdir")


def _fixed_differences(recorded: Experiment, asked: Experiment) -> str:
    """Says in which keys two experiments differ that one run cannot; empty if in none."""
    fixed = {
        key: values
        for key, values in differing(recorded, asked).items()
        if key not in MAY_DIFFER and key.partition(".")[0] not in UNREAD
    }
    return "; ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in fixed.items())


def _check_steps(taken: int, asked: int, path: pathlib.Path) -> None:
    if taken > asked:
        raise InputError(
            f"training.steps={asked}, but the run in {path} has already taken {taken}: use more, or a new --workdir"
        )


def _with_defaults(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a run says of its data, where a key of the task that came later has its default."""
    return metadata | ({"task": Task.recall(metadata["task"]).describe()} if "task" in metadata else {})


def _check_same_data(path: pathlib.Path, metadata: dict[str, Any]) -> None:
    try:
        recorded = _read_object(path / DATASET)
    except (OSError, ValueError):  # lost or damaged: it is written afresh
        copied = _copy_of(path / DATASET)
        recorded = _read_object(copied) if copied else {}
    recorded = _with_defaults(recorded)
    # a file is known by its content
    changed = [key for key in metadata if key in recorded and key != "file" and recorded[key] != metadata[key]]
    if changed:
        raise InputError(
            f"the data changed since {path} was begun ({', '.join(changed)}): bring back the old data, or use a new "
            "--workdir"
        )


def _reason(error: OSError, path: pathlib.Path) -> str:
    """What the system says of a file, or what this program says of the file at `path`."""
    return f"{error.strerror}: {error.filename}" if error.strerror else f"{path}: {error}"
