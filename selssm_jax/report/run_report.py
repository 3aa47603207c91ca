"""The report of a run, for people and for programs: scores, gates, certificates, costs and one example."""

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

from selssm_jax import invocation
from selssm_jax.config import Experiment
from selssm_jax.data.pipeline import SPLITS, WHOLE
from selssm_jax.errors import InputError
from selssm_jax.reporting import accounting, activity, breakdown, certificates, examples, sections
from selssm_jax.reporting.activity import Sequence
from selssm_jax.reporting.document import Block, Paragraph, to_html, to_markdown
from selssm_jax.reporting.memory.measure import check_sequences
from selssm_jax.reporting.memory.measure import measure as measure_memory
from selssm_jax.reporting.memory.section import memory as memory_section
from selssm_jax.reporting.run import Run, open_run
from selssm_jax.reporting.tables import clean, number
from selssm_jax.reporting.verdict import verdict
from selssm_jax.stability.verdict import plain
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import is_better
from selssm_jax.training.evaluation import Evaluator

FORMAT = 1  # of results.json
GATE_BATCHES = 8  # evaluation batches whose gates are measured
PACKAGES = ("selssm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
Results = dict[str, Any]


def write(workdir: str | pathlib.Path, *, split: str = "", file: str = "", local_dir: str = "", measure: bool = False, override: Iterable[str] = ()) -> Results:
    """Evaluates the run in `workdir` on a whole split and writes its report; returns what results.json holds.

    With `measure` it also measures what the states know, as the run's `measure` configuration says.

    Without a split it is the test split, of another file the whole. The report goes to workdir/report (workdir/report-NAME for another
    split or file): index.html, one file with its figures inside; report.md with the figures beside it; results.json. Raises InputError for
    what `open_run` refuses, for a folder that cannot be written, and for a split too small to be measured.
    """
    run = open_run(workdir, split=split, file=file, local_dir=local_dir, override=override)
    given, split = split, run.split
    if measure:
        check_sequences(run, split)
    other = [*([given] if given not in ("", "test") else []), *([pathlib.Path(file).stem] if file else [])]
    said = command(run.workdir, *["--measure"] * measure, split=given or "test", file=file, override=override)
    with writable(run.workdir / "-".join(["report", *other])) as folder:
        return _compose(run, split, folder, with_memory=measure, command=said) | {"report": str(folder / "index.html")}


def command(workdir: pathlib.Path, *asked: str, split: str, file: str, override: Iterable[str]) -> str:
    """Returns the command that makes a report again, without the folders of this machine; `asked` are flags besides the places."""
    place = workdir.name if workdir.is_absolute() else str(workdir)
    flags = [*([f"--split={split}"] if split != "test" else []), *([f"--file={pathlib.Path(file).name}"] if file else [])]
    flags += [*asked, *(f"--override={assignment}" for assignment in override)]
    return invocation.command("eval", f"--workdir={place}", *flags)


def _compose(run: Run, split: str, folder: pathlib.Path, *, with_memory: bool, command: str) -> Results:
    """Measures, draws and writes."""
    start = time.perf_counter()
    results = _scores(run, split) | {"command": command}
    sums, seen = _observe(run, split)
    first = seen[0].live_gates(kind_of(run.dataset.task).stride(run.model.config))
    results["gates"] = {block: total.summary() | {"first_sequence": first[block].sum(-1).tolist()} for block, total in sums.items()}
    results["costs"] = accounting.account(run.experiment, run.model, run.params, seen[0].batch)
    results["stability"] = certificates.certify_run(run, first)
    results["errors"] = breakdown.errors(run, split)
    source = examples.Source(run.model, run.params, run.dataset, seen, folder)
    blocks = [*sections.scores(results), *sections.errors(results, folder), *sections.learning(results, run.history, folder)]
    blocks += sections.gates(results, folder)
    if with_memory:
        results["memory"] = measure_memory(run, split)
        blocks += memory_section(results, folder)
    blocks += certificates.stability(results, folder)
    blocks += [*sections.section("An example", examples.show(source)), *sections.costs(results), *sections.circumstances(results)]
    results["seconds"] = time.perf_counter() - start
    _write(results, [Paragraph(verdict(results), lead=True), *blocks], folder)
    return results


def _write(results: Results, blocks: list[Block], folder: pathlib.Path) -> None:
    title = f"{results['title']}, {results['split']} split"
    (folder / "index.html").write_text(to_html(title, blocks), encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(title, blocks), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(plain(results), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def summary(results: Results) -> str:
    """Returns the scores beside the baselines, the verdict, and where the report is, as lines for a terminal."""
    rows = {f"{results['title']} ({results['split']})": results["metrics"], **results["baselines"]}
    width = max(map(len, rows))
    lines = [f"{name:{width}s}  " + "  ".join(f"{metric} {number(value)}" for metric, value in metrics.items()) for name, metrics in rows.items()]
    return "\n".join([*lines, clean(verdict(results)), f"report: {results['report']}"])


def _scores(run: Run, split: str) -> Results:
    """Everything but gates and costs: metrics beside baselines, and under which circumstances."""
    task = run.dataset.task
    return {
        "format": FORMAT,
        "name": run.experiment.name,
        "title": title_of(run.experiment),
        "split": split,
        "step": run.step,
        "steps": run.experiment.training.steps,
        "chosen": name_choice(run.step, run.history, kind_of(task).primary) if run.experiment.training.select == "best" else "last",
        "seen": exposure(run, split),
        "task": dataclasses.asdict(task),
        "primary": kind_of(task).primary,
        "metrics": readable(Evaluator(run.experiment, run.model)(run.params, run.dataset, split), run),
        "baselines": _baselines(run, split),
        "validation_baselines": _baselines(run, "validation") if split in SPLITS else {},  # another file has no validation of the run's
        "training_seconds": max((record.get("time", 0.0) for record in run.history), default=None),
        **circumstances_of(run.experiment),
    }


def _baselines(run: Run, split: str) -> Results:
    return {name: readable(metrics, run) for name, metrics in run.dataset.baselines(split).items()}


def title_of(experiment: Experiment) -> str:
    """Returns what a run is called: by its own file, if it reads one, beside the recipe that it took; else by the recipe."""
    file = pathlib.Path(experiment.data.file).name
    return f"{file} (recipe {experiment.name})" if file else experiment.name


def circumstances_of(experiment: Experiment) -> Results:
    """Returns the configuration, without the folders of this machine, the versions of what ran it, and on what."""
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES if _is_installed(name)}
    return {"config": _portable(experiment), "versions": versions, "machine": machine()}


def name_choice(step: int, history: list[dict[str, Any]], metric: str) -> str:
    """Returns "best" where no validated step of the history did better on validation than this one, else "last"."""
    scores = {record["step"]: record[metric] for record in history if record.get("split") == "validation" and metric in record}
    mine = scores.pop(step, None)
    return "last" if mine is None or any(is_better(metric, other, mine) for other in scores.values()) else "best"


def exposure(run: Run, split: str) -> str | None:
    """Returns "trained" where a split holds what the run was trained on, "chosen" where its parameters were chosen on it, else None."""
    trained = {"train": ("train", WHOLE), "train+validation": ("train", "validation", WHOLE)}[run.experiment.data.train_on]
    if not run.own:
        return None
    return "trained" if split in trained else "chosen" if split == "validation" and run.experiment.training.select == "best" else None


def readable(metrics: Mapping[str, float], run: Run) -> dict[str, float | None]:
    """Returns metrics and those that the task derives from them, as bits from nats of language. None: not a finite number."""
    found = {name: float(value) for name, value in metrics.items()}
    found |= kind_of(run.dataset.task).derive_metrics(found, run.experiment.data, carries=run.dataset.carries)
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _portable(experiment: Experiment) -> Results:
    """The configuration without the folders of this machine, which decide nothing."""
    here = experiment.data
    there = dataclasses.replace(here, file=pathlib.Path(here.file).name, local_dir="", cache_dir="")
    return dataclasses.asdict(dataclasses.replace(experiment, data=there))


def machine() -> Results:
    """Returns on what kind of machine this runs; nothing that identifies it."""
    devices = jax.devices()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # fewer where a process was pinned
    return {"platform": f"{platform.system()} {platform.machine()}", "cpus": cpus, "devices": len(devices), "device": devices[0].device_kind}


def _observe(run: Run, split: str) -> tuple[dict[str, activity.Sums], list[Sequence]]:
    """The gates over the first batches of a split."""
    size = run.experiment.data.eval_batch_size or run.experiment.data.batch_size
    batches = itertools.islice(run.dataset.evaluate(split, size), GATE_BATCHES)
    return activity.observe(run.model, run.params, batches, carry=run.dataset.carries)


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@contextlib.contextmanager
def writable(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a folder for a report and proves that it can be written before work starts; what fails later is said the same way."""
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        yield folder
    except OSError as error:
        raise InputError(f"the report cannot be written to {folder} ({error.strerror}): free that place or make it writable") from error
