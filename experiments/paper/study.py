"""The whole comparison as values: the tasks that configs describe, the records that exist of them, and the tests
between models.
"""

import ast
import dataclasses
import functools
import json
import pathlib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.paper.comparisons import Comparison, compare_paired, correct_by_holm
from experiments.paper.names import FAMILIES, METRICS, MODELS, OURS, family
from experiments.paper.records import Record, complete_recipe, read
from experiments.paper.scaling import Scaling
from experiments.paper.scaling import read as read_scaling
from selssm_jax.config import load
from selssm_jax.config.fields import flatten
from selssm_jax.errors import InputError, suggest


@dataclasses.dataclass(frozen=True)
class Task:
    """A task as its file in the folder of configs describes it: the first line of the docstring is its title."""

    name: str
    title: str
    source: str
    horizon: int
    models: tuple[str, ...]
    length: int = 0  # of the window that is read
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False, compare=False)

    @property
    def family(self) -> str:
        """Time series, language, signals or synthetic."""
        return family(self.source)


@dataclasses.dataclass(frozen=True)
class Study:
    """Tasks in the order of the page, records by (task, model), the record of scaling where there is one, and files
    that fit no task.
    """

    configs: pathlib.Path
    tasks: tuple[Task, ...]
    records: dict[tuple[str, str], Record]
    scaling: Scaling | None
    strays: tuple[str, ...]
    benchmarks: pathlib.Path  # the folder of the records of single claims

    def of(self, task: Task) -> dict[str, Record]:
        """Returns {model: record} of what has been run of a task, in the order of its models."""
        return {model: self.records[task.name, model] for model in task.models if (task.name, model) in self.records}

    def missing(self, task: Task) -> list[str]:
        """Returns the models of a task that have no record."""
        return [model for model in task.models if (task.name, model) not in self.records]

    @property
    def cells(self) -> int:
        """How many pairs of task and model there are to run."""
        return sum(len(task.models) for task in self.tasks)

    def within(self, families: Iterable[str]) -> list[Task]:
        """Returns the tasks of some families."""
        return [task for task in self.tasks if task.family in families]

    def from_source(self, *sources: str) -> list[Task]:
        """Returns the tasks that read some data sources."""
        return [task for task in self.tasks if task.source in sources]

    @functools.cached_property
    def comparisons(self) -> dict[tuple[str, str], Comparison]:
        """Every model of every task against the selective SSM, by the metric of the record, Holm's correction over all
        of them. A model that was trained by another recipe is not compared.
        """
        found: dict[tuple[str, str], Comparison] = {}
        for task in self.tasks:
            for model, record in self.of(task).items():
                if model == OURS or not self.is_comparable(task, model):
                    continue
                ours, metric = self.records[task.name, OURS], METRICS[record.metric]
                test = compare_paired(ours.values(metric.name), record.values(metric.name), higher=metric.higher)
                found |= {(task.name, model): test} if test else {}
        return correct_by_holm(found)

    def is_comparable(self, task: Task, model: str) -> bool:
        """Whether a model and the selective SSM have records of a task, by one metric and one recipe."""
        records = self.of(task)
        if OURS not in records or model not in records or records[OURS].metric != records[model].metric:
            return False
        return not find_differing(records[OURS].recipe, records[model].recipe)

    def relative_gaps(self, task: Task, rivals: Sequence[str]) -> list[float]:
        """Returns for each seed that all have the mean over rivals of the loss above the selective SSM's, as a share of
        the latter's mean; nothing where a rival cannot be compared.
        """
        if not all(self.is_comparable(task, rival) for rival in rivals):
            return []
        metric = METRICS[self.records[task.name, OURS].metric]
        losses = {
            model: {seed: metric.loss(value) for seed, value in self.of(task)[model].values(metric.name).items()}
            for model in (OURS, *rivals)
        }
        seeds = sorted(set.intersection(*(set(values) for values in losses.values())))
        ours = statistics.fmean(losses[OURS][seed] for seed in seeds) if seeds else 0.0
        if not ours:
            return []
        return [statistics.fmean(losses[rival][seed] - losses[OURS][seed] for rival in rivals) / ours for seed in seeds]


def find_differing(recipe: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (value, other's value)} of what two recipes differ in; nothing where one of them is not known."""
    if not recipe or not other:
        return {}
    return {
        key: (recipe.get(key), other.get(key)) for key in sorted({*recipe, *other}) if recipe.get(key) != other.get(key)
    }


def open_study(configs: pathlib.Path, records: pathlib.Path) -> Study:
    """Reads configs and records. Raises InputError where a folder is missing or empty, and where a file of either
    cannot be read.
    """
    tasks = _tasks(configs)
    if not records.is_dir():
        raise InputError(
            f"--records={records} does not exist: name the folder of TASK/MODEL.json that train.py --sweep wrote"
        )
    paths = sorted(records.glob("*/*.json"))
    known = {(task.name, model) for task in tasks for model in task.models}
    found = {(path.parent.name, path.stem): read(path) for path in paths if (path.parent.name, path.stem) in known}
    if not found:
        example = f"python train.py --config {(configs / tasks[0].name).as_posix()}.py --sweep"
        raise InputError(
            f"--records={records} holds no record of the {len(tasks)} tasks of --configs={configs}: make some with "
            f"{example}"
        )
    strays = tuple(f"{path.parent.name}/{path.name}" for path in paths if (path.parent.name, path.stem) not in known)
    return Study(configs, tasks, found, read_scaling(records.parent / "scaling.json"), strays, records.parent)


def _tasks(configs: pathlib.Path) -> tuple[Task, ...]:
    if not configs.is_dir():
        raise InputError(
            f"--configs={configs} does not exist: name the folder of the tasks' configs, for example configs/paper"
        )
    tasks = [_task(path) for path in sorted(configs.glob("*.py")) if path.stem != "__init__"]
    if not tasks:
        raise InputError(
            f"--configs={configs} holds no config: name the folder of the tasks' configs, for example configs/paper"
        )
    return tuple(sorted(tasks, key=lambda task: (list(FAMILIES).index(task.family), _natural(task.name))))


def _task(path: pathlib.Path) -> Task:
    config = load(str(path))
    if "sweep" not in config:
        raise InputError(
            f"the config {path} has no group 'sweep', which names the models of its task: it is no task of a table"
        )
    words = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem).splitlines()[0]
    named = tuple(config.sweep.models) or tuple(MODELS)
    for name in named:
        if name not in MODELS:
            raise InputError(f"the config {path} names the model {name!r} in sweep.models: {suggest(name, MODELS)}")
    models = tuple(name for name in MODELS if name in named)  # in the order of the page
    return Task(
        str(config.name),
        words.rstrip("."),
        str(config.data.source),
        int(config.data.horizon),
        models,
        int(config.data.length),
        complete_recipe(json.loads(json.dumps(dict(flatten(config.to_dict()))))),
    )


def _natural(name: str) -> list[Any]:
    """A key that sorts 96 before 336."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]
