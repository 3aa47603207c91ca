"""A finished run, opened for reading: its experiment, parameters, data set and history; and the run that its
compression is.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from selssm_jax import config, data, invocation
from selssm_jax.compression import weights
from selssm_jax.compression.checkpoint import build_model, check_folder_is_free, save_run
from selssm_jax.compression.compress import Compression, check_memory, compress
from selssm_jax.compression.progress import fingerprint, open_progress
from selssm_jax.compression.removal_search import Removal, remove_parts
from selssm_jax.compression.subject import Subject
from selssm_jax.config import Experiment
from selssm_jax.data import provenance
from selssm_jax.data.pipeline import SPLITS, WHOLE, Dataset
from selssm_jax.errors import ArgumentError, InputError, suggest
from selssm_jax.model import ModelLike, SequenceModel
from selssm_jax.paths import check_folder
from selssm_jax.training import capacity, checkpoint, cluster

# The source that reads a file of yours, by what the run was trained on.
OWN_FILE = {
    "csv": config.TABLES,
    "text": config.TEXTS,
    "npz": config.SIGNALS,
    "labelled_text": config.LABELLED,
    "tagged_text": config.TAGGED,
}


class Request(NamedTuple):
    """What `open_run` was asked for besides the folder."""

    split: str = ""
    file: str = ""
    override: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Run:
    """What `open_run` opens.

    Attributes:
      step: of the parameters. history: the records of metrics.jsonl. split: that is evaluated. is_own: the data are
        those of its training.
    """

    workdir: pathlib.Path
    experiment: Experiment
    model: ModelLike
    params: PyTree
    step: int
    dataset: Dataset
    history: list[dict[str, Any]]
    split: str = "test"
    is_own: bool = True
    request: Request = dataclasses.field(default_factory=Request)

    @property
    def report_folder(self) -> pathlib.Path:
        """Where its report goes: WORKDIR/report, or WORKDIR/report-NAME for another split or file."""
        split, file, _ = self.request
        names = [*([split] if split not in ("", "test") else []), *([pathlib.Path(file).stem] if file else [])]
        return self.workdir / "-".join(["report", *names])

    @property
    def compressed_folder(self) -> pathlib.Path:
        """Where its compression goes: beside it."""
        return find_compressed_folder(self.workdir)

    def command(self, *flags: str) -> str:
        """Returns the command that opens it again with these flags besides, without the folders of this machine."""
        split, file, override = self.request
        place = self.workdir.name if self.workdir.is_absolute() else str(self.workdir)
        asked = [
            *([f"--split={split}"] if split not in ("", "test") else []),
            *([f"--file={pathlib.Path(file).name}"] if file else []),
        ]
        return invocation.command(
            "eval", f"--workdir={place}", *asked, *flags, *(f"--override={assignment}" for assignment in override)
        )


class Compressed(NamedTuple):
    """A run before and after its compression, all that was tried, whether an earlier attempt went on, and when this one
    began (`time.perf_counter`).
    """

    before: Run
    after: Run
    tried: Compression | Removal
    is_resumed: bool
    start: float

    @property
    def report_folder(self) -> pathlib.Path:
        """Where the report of the compression goes: into the compressed run."""
        return self.after.workdir / "compression"


def open_run(
    workdir: str | pathlib.Path,
    *,
    split: str = "",
    file: str = "",
    local_dir: str = "",
    override: Iterable[str] = (),
    examples: bool = True,
) -> Run:
    """Opens the run in `workdir`, with its own data or, at the run's vocabulary and scaling, with another file's.

    Args:
      workdir: of the run.
      split: to evaluate; empty: the test split of the run's own data, whose file is known by its content, and another
        file as a whole.
      file: of the user's, in place of the one that the run was trained on.
      local_dir: a folder that holds the originals of public data.
      override: changes what evaluation reads of the configuration, "compress.factor=32".
      examples: False opens no data at all: the run then knows its tokens, and has no examples.

    Raises:
      InputError: where there is no such split, no such folder, no run in it, no checkpoint, or no such data; for a file
        that only the run's folder names, unless this user wrote it there; and for the run's own file where it has
        changed.
    """
    if split and split not in (*SPLITS, WHOLE):
        raise ArgumentError("split", f"={split!r} is not a split: {suggest(split, SPLITS)}")
    request = Request(split, file, tuple(override))
    folder = _check_run(workdir)
    metadata = checkpoint.read_metadata(str(folder))
    experiment, params, step = checkpoint.restore_for_eval(str(folder))
    experiment = experiment.overridden(request.override)
    source = _find_source(folder, experiment.data, file, local_dir, examples=examples)
    dataset = data.load(source, metadata) if examples else data.recall_dataset(metadata)
    is_own = not file or _is_own(dataset, metadata)
    split = split or ("test" if is_own else WHOLE)
    if examples:
        _check_file(dataset, metadata, file)
        dataset.check(split)
        capacity.check(experiment, dataset.task, trained=False)
    if dataset.reading:
        print(dataset.reading, file=sys.stderr, flush=True)
    model, experiment = build_model(experiment.model, dataset.task), dataclasses.replace(experiment, data=source)
    history = read_history(folder / "metrics.jsonl")
    return Run(
        folder, experiment, model, weights.decode_weights(params), step, dataset, history, split, is_own, request
    )


def exposure(run: Run, split: str) -> str | None:
    """Returns "trained" where a split holds what the run was trained on, "chosen" where its parameters were chosen on
    it, else None.
    """
    trained = {"train": ("train", WHOLE), "train+validation": ("train", "validation", WHOLE)}[
        run.experiment.data.train_on
    ]
    if not run.is_own:
        return None
    return (
        "trained"
        if split in trained
        else "chosen"
        if split == "validation" and run.experiment.training.select == "best"
        else None
    )


@contextlib.contextmanager
def compress_run(run: Run, say: Callable[[str], None]) -> Iterator[Compressed]:
    """Compresses a run as its `compress` configuration says; at the end it is WORKDIR-compressed, a run that opens like
    any other.

    Within the context it is in WORKDIR-compressed.unfinished, for its report to be written into it. Stopped at any
    moment, the same call goes on from what that folder holds. `say` is told how it goes.

    Raises:
      InputError: for a run that is compressed already, for a folder that exists or cannot be written, and for what
        `compress` refuses.
    """
    cluster.check_alone("compression")
    if not isinstance(run.model, SequenceModel):
        raise InputError(f"{run.workdir} holds a compressed run: give the run that it was made of")
    folder = run.compressed_folder
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    check_folder_is_free(folder)
    start = time.perf_counter()
    with open_progress(unfinished, fingerprint(run.experiment, run.params, run.step)) as progress:
        is_resumed = progress.begun
        subject = Subject(run.experiment, run.model, run.params, run.dataset)
        tried = (compress if run.experiment.compress.packed else remove_parts)(subject, say, progress)
        smaller = _save(run, tried, unfinished / "run")
        yield Compressed(run, smaller, tried, is_resumed, start)
        smaller.workdir.rename(folder)
        shutil.rmtree(unfinished)


def check_compression(experiment: Experiment, dataset: Dataset, workdir: pathlib.Path) -> None:
    """Raises InputError, before a run in `workdir` is trained, for what its compression would be refused for whatever
    its parameters are.
    """
    cluster.check_alone("compression")
    check_folder_is_free(find_compressed_folder(workdir))
    model = SequenceModel(experiment.model.of_task(dataset.task))
    inputs = jnp.asarray(next(dataset.evaluate("validation", 1))["inputs"])
    check_memory(experiment, model, jax.eval_shape(lambda: model.init(jax.random.key(0), inputs)["params"]))


def find_compressed_folder(workdir: pathlib.Path) -> pathlib.Path:
    """Returns where the compression of a run goes: beside it."""
    return workdir.with_name(f"{workdir.name}-compressed")


def _save(run: Run, tried: Compression | Removal, folder: pathlib.Path) -> Run:
    """Writes the compressed run in place of what an earlier attempt may have left of it."""
    if folder.exists():
        shutil.rmtree(folder)
    chosen = tried.chosen
    saved = save_run(folder, run.experiment, chosen.model, chosen.params, run.dataset, run.step, chosen.validation)
    return dataclasses.replace(run, workdir=folder, experiment=saved, model=chosen.model, params=chosen.params)


def _check_run(workdir: str | pathlib.Path) -> pathlib.Path:
    folder = check_folder(workdir)
    if not checkpoint.is_run(folder):
        inside = "is empty" if not any(folder.iterdir()) else "holds no config.json"
        raise ArgumentError(
            "run_folder",
            f"={workdir} {inside}, so it is not a run: give the folder that was train.py's --workdir, or train first",
            flag="workdir",
        )
    return folder


def read_history(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of a run; a last line that a crash cut short is left out, and with a warning every other line
    that is no record.
    """
    records = []
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        record = parse_json(line)
        if checkpoint.is_record(record):
            records.append(record)
        elif number < len(lines):
            print(f"warning: line {number} of {path} is no record of metrics: it is left out", file=sys.stderr)
    return records


def parse_json(line: str) -> Any:
    """Returns a JSON value, None where it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _find_source(
    folder: pathlib.Path, trained: config.Data, file: str, local_dir: str, *, examples: bool
) -> config.Data:
    """The run's data, read from elsewhere where the caller says so; what its folder says of places counts where this
    user wrote it.
    """
    changes: dict[str, Any] = {"local_dir": local_dir} if local_dir else {}
    if file:
        kinds = [kind for kind, sources in OWN_FILE.items() if trained.source in sources]
        if not kinds:
            raise ArgumentError(
                "file",
                f"={file} cannot replace the data {trained.source!r} that this run was trained on, which are of no "
                "file: leave --file out",
            )
        return dataclasses.replace(provenance.without_places(trained), **(changes | {"source": kinds[0], "file": file}))
    return dataclasses.replace(
        checkpoint.own_places(str(folder), trained) if examples else provenance.without_places(trained), **changes
    )


def _is_own(dataset: Dataset, metadata: Mapping[str, Any]) -> bool:
    """Whether a file is the one that the run was trained on, by its content."""
    return "sha256" in metadata and dataset.info.get("sha256") == metadata["sha256"]


def _check_file(dataset: Dataset, metadata: Mapping[str, Any], file: str) -> None:
    if (
        not file
        and dataset.info.get("source") in config.NEEDS_FILE
        and "sha256" in metadata
        and not _is_own(dataset, metadata)
    ):
        raise InputError(
            f"{dataset.info['file']} is not what the run was trained on, it has changed: bring it back, or name it as "
            "another file, --file=..."
        )
