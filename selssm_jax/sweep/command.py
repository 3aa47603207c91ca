"""A sweep from the command line: each finished model becomes a record at once, and existing records are not computed
again.
"""

import json
import pathlib
import shlex
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from selssm_jax.config import COMPARED, Experiment, renames
from selssm_jax.data.builders.origins import cache_root
from selssm_jax.errors import InputError, suggest
from selssm_jax.paths import check_local, check_regular
from selssm_jax.sweep import record, runner
from selssm_jax.sweep.locks import hold
from selssm_jax.training.checkpoint import check_place


def run(
    experiment: Experiment,
    workdir: str,
    *,
    config: str,
    base: ConfigDict,
    models: Sequence[str] = (),
    records: str | None = None,
) -> bool:
    """Runs the sweep of a task in `workdir` and writes RECORDS/MODEL.json for each of its models; says where it stopped
    if it was asked to.

    Returns whether it came to its end.

    Args:
      experiment: with its `sweep`. config: the file it came from. base: what that file says, before overrides of the
        command line.
      models: of them these alone; empty: experiment.sweep.models.
      records: the folder of the records; None: `workdir`/records.

    Raises:
      InputError: for training.start, a model that a sweep does not know, and what `runner.cells` refuses.
    """
    if experiment.training.start:
        raise InputError(
            f"training.start={experiment.training.start} is one model, but --sweep compares several: leave one out"
        )
    for name in models:
        if name not in COMPARED:
            raise InputError(f"--models names {name!r}: {suggest(name, COMPARED)}")
    check_place(workdir)
    check_local(records or "", "--records")
    folder = pathlib.Path(records or pathlib.Path(workdir) / "records")
    wanted = [
        name for name in models or experiment.sweep.models if not _there(folder / f"{name}.json", experiment, name)
    ]
    try:
        with runner.compiled_once(cache_root(experiment.data.cache_dir)):
            for finished in runner.cells(experiment, pathlib.Path(workdir), wanted):
                with hold(pathlib.Path(workdir) / finished.model / ".record.lock"):
                    if not _is_of(folder / f"{finished.model}.json", experiment):  # by another worker, since
                        path = record.write(finished, config, Experiment.from_config_dict(base), folder)
                        print(f"wrote {path}", flush=True)
    except runner.Interrupted as stopped:
        print(f"{stopped}; to go on: python {shlex.join(sys.argv)}")
        return False
    return True


def _there(path: pathlib.Path, experiment: Experiment, name: str) -> bool:
    """Whether a record is of this very sweep; of another one it is replaced when the new one is finished."""
    is_of = _is_of(path, experiment)
    if is_of is False:
        print(f"{path} is of another sweep than this: {name} is run again", file=sys.stderr)
    elif is_of:
        print(f"{path} is there: {name} is left out; remove it to have it again", file=sys.stderr)
    return bool(is_of)


def _is_of(path: pathlib.Path, experiment: Experiment) -> bool | None:
    """Whether a record is of this very sweep; None where there is none that can be read."""
    try:
        check_regular(path)
        # a key that came later has its default
        found = record.identity(Experiment()) | renames.update(json.loads(path.read_text())["sweep"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return bool(found == record.identity(experiment))
