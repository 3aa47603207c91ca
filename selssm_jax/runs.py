"""A finished run, opened for reading: its experiment, parameters, data set and history."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from jaxtyping import PyTree

from selssm_jax import config, data
from selssm_jax.compression import weights
from selssm_jax.compression.checkpoint import build_model
from selssm_jax.config import Experiment
from selssm_jax.data import provenance
from selssm_jax.data.pipeline import SPLITS, WHOLE, Dataset
from selssm_jax.errors import InputError, suggest
from selssm_jax.model import Reader
from selssm_jax.training import capacity, checkpoint, parallel

# The source that reads a file of yours, by what the run was trained on.
OWN_FILE = {"csv": config.TABLES, "text": config.TEXTS, "npz": config.SIGNALS}


@dataclasses.dataclass(frozen=True)
class Run:
    """What `open_run` found. `history` holds the records of metrics.jsonl, `step` the step of the parameters; `own`: the data are those of its training."""

    workdir: pathlib.Path
    experiment: Experiment
    model: Reader
    params: PyTree
    step: int
    dataset: Dataset
    history: list[dict[str, Any]]
    split: str = "test"
    own: bool = True


def open_run(workdir: str | pathlib.Path, *, split: str = "", file: str = "", local_dir: str = "", override: Iterable[str] = (), examples: bool = True) -> Run:
    """Opens the run in `workdir`, with its own data or, at the run's vocabulary and scaling, with another file's.

    Args:
      workdir: of the run.
      split: to evaluate; empty: the test split of the run's own data, whose file is known by its content, and another file as a whole.
      file: of the user's, in place of the one that the run was trained on.
      local_dir: a folder that holds the originals of public data.
      override: changes what evaluation reads of the configuration, "compress.factor=32".
      examples: False opens no data at all: the run then knows its tokens, and has no examples.

    Raises:
      InputError: where there is no such split, no such folder, no run in it, no checkpoint, or no such data; for a file that only the run's
        folder names, unless this user wrote it there; and for the run's own file where it has changed.
    """
    parallel.check_one_process()
    if split and split not in (*SPLITS, WHOLE):
        raise InputError(f"--split={split!r} is not a split: {suggest(split, SPLITS)}")
    folder = _folder(workdir)
    known = checkpoint.read_metadata(str(folder))
    experiment, params, step = checkpoint.restore_for_eval(str(folder))
    experiment = experiment.overridden(override)
    source = _source(folder, experiment.data, file, local_dir, examples=examples)
    dataset = data.load(source, known) if examples else data.recall_dataset(known)
    own = not file or _is_own(dataset, known)
    split = split or ("test" if own else WHOLE)
    if examples:
        _check_file(dataset, known, file)
        dataset.check(split)
        capacity.check(experiment, dataset.task, trained=False)
    if dataset.reading:
        print(dataset.reading, file=sys.stderr, flush=True)
    model = build_model(experiment.model, dataset.task)
    history = _history(folder / "metrics.jsonl")
    return Run(folder, dataclasses.replace(experiment, data=source), model, weights.decode_weights(params), step, dataset, history, split, own)


def _folder(workdir: str | pathlib.Path) -> pathlib.Path:
    if not str(workdir):
        raise InputError("--workdir is missing: give the folder that train.py wrote, for example --workdir=runs/quickstart")
    checkpoint.check_local(str(workdir))
    folder = pathlib.Path(workdir)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"--workdir={workdir} {found}: give the folder that train.py wrote, for example --workdir=runs/quickstart")
    if not checkpoint.is_run(folder):
        inside = "is empty" if not any(folder.iterdir()) else "holds no config.json"
        raise InputError(f"--workdir={workdir} {inside}, so it is not a run: give the folder that was train.py's --workdir, or train first")
    return folder


def _history(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a run; a last line that a crash cut short is left out, and with a warning every other line that is no record."""
    records = []
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        record = _parse(line)
        if checkpoint.is_record(record):
            records.append(record)
        elif number < len(lines):
            print(f"warning: line {number} of {path} is no record of metrics: it is left out", file=sys.stderr)
    return records


def _parse(line: str) -> Any:
    """A JSON value, None where it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _source(folder: pathlib.Path, trained: config.Data, file: str, local_dir: str, *, examples: bool) -> config.Data:
    """The run's data, read from elsewhere where the caller says so; what its folder says of places counts where this user wrote it."""
    changes: dict[str, Any] = {"local_dir": local_dir} if local_dir else {}
    if file:
        kinds = [kind for kind, sources in OWN_FILE.items() if trained.source in sources]
        if not kinds:
            raise InputError(f"--file={file} cannot replace the data {trained.source!r} that this run was trained on, which are of no file: leave --file out")
        return dataclasses.replace(provenance.without_places(trained), **(changes | {"source": kinds[0], "file": file}))
    return dataclasses.replace(checkpoint.own_places(str(folder), trained) if examples else provenance.without_places(trained), **changes)


def _is_own(dataset: Dataset, known: Mapping[str, Any]) -> bool:
    """Whether a file is the one that the run was trained on, by its content."""
    return "sha256" in known and dataset.info.get("sha256") == known["sha256"]


def _check_file(dataset: Dataset, known: Mapping[str, Any], file: str) -> None:
    if not file and dataset.info.get("source") in config.NEEDS_FILE and "sha256" in known and not _is_own(dataset, known):
        raise InputError(f"{dataset.info['file']} is not what the run was trained on, it has changed: bring it back, or name it as another file, --file=...")
