"""The report of a run: what it scores, what its gates do, what it costs, and one example, for people and for programs."""

import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import time
from typing import Any

import jax

from selssm_jax.errors import InputError
from selssm_jax.reporting import accounting, activity, examples, sections
from selssm_jax.reporting.activity import Sequence
from selssm_jax.reporting.document import Block, to_html, to_markdown
from selssm_jax.reporting.run import Run, open_run
from selssm_jax.reporting.tables import number
from selssm_jax.training.evaluation import Evaluator
from selssm_jax.training.objectives import PRIMARY

FORMAT = 1  # of results.json
GATE_BATCHES = 8  # evaluation batches whose gates are measured
PACKAGES = ("selssm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
Results = dict[str, Any]


def write(workdir: str | pathlib.Path, *, split: str = "test", file: str = "", local_dir: str = "") -> Results:
    """Evaluates the run in `workdir` on a whole split and writes its report; returns what results.json holds.

    The report goes to workdir/report (workdir/report-NAME for another split or file): index.html, one file with its
    figures inside; report.md with the figures beside it; results.json. Raises InputError for what `open_run` refuses and
    for a folder that cannot be written.
    """
    start = time.perf_counter()
    run = open_run(workdir, split=split, file=file, local_dir=local_dir)
    folder = _folder(run.workdir / "-".join(["report", *([split] if split != "test" else []), *([pathlib.Path(file).stem] if file else [])]))
    results = _scores(run, split)
    sums, seen = _observe(run, split)
    results["gates"] = {block: total.summary() | {"first_sequence": seen[0].gates[block].sum(-1).tolist()} for block, total in sums.items()}
    results["costs"] = accounting.account(run.experiment, run.model, run.params, seen[0].batch)
    source = examples.Source(run.model, run.params, run.dataset, seen, folder)
    blocks = [*sections.scores(results), *sections.learning(results, run.history, folder), *sections.gates(results, folder)]
    blocks += [*sections.titled("An example", examples.show(source)), *sections.costs(results), *sections.circumstances(results)]
    results["seconds"] = time.perf_counter() - start
    _save(folder, f"{run.experiment.name}, {split} split", blocks, results)
    return results | {"report": str(folder / "index.html")}


def summary(results: Results) -> str:
    """Returns the scores beside the baselines, and where the report is, as lines for a terminal."""
    rows = {f"{results['name']} ({results['split']})": results["metrics"], **results["baselines"]}
    width = max(map(len, rows))
    lines = [f"{name:{width}s}  " + "  ".join(f"{metric} {number(value)}" for metric, value in metrics.items()) for name, metrics in rows.items()]
    return "\n".join([*lines, f"report: {results['report']}"])


def _scores(run: Run, split: str) -> Results:
    """Everything but gates and costs: metrics beside baselines, and under which circumstances."""
    task = run.dataset.task
    return {
        "format": FORMAT,
        "name": run.experiment.name,
        "split": split,
        "step": run.step,
        "steps": run.experiment.training.steps,
        "select": run.experiment.training.select,
        "task": dataclasses.asdict(task),
        "primary": PRIMARY[task.kind],
        "metrics": _readable(Evaluator(run.experiment, run.model)(run.params, run.dataset, split), run),
        "baselines": {name: _readable(metrics, run) for name, metrics in run.dataset.baselines(split).items()},
        "config": dataclasses.asdict(run.experiment),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)},
        "machine": machine(),
    }


def _readable(metrics: dict[str, float], run: Run) -> dict[str, float]:
    """Adds, to nats a token, bits (nats / ln 2) and for words the perplexity exp(nats)."""
    found = {name: float(value) for name, value in metrics.items()}
    if run.dataset.task.kind == "language" and "nats" in found:
        found["bits"] = found["nats"] / math.log(2)
        if run.experiment.data.level == "word" and run.dataset.carries:
            found["perplexity"] = math.exp(min(found["nats"], 700.0))
    return found


def machine() -> Results:
    """Returns on what kind of machine this runs; nothing that identifies it."""
    devices = jax.devices()
    return {"platform": f"{platform.system()} {platform.machine()}", "cpus": os.cpu_count(), "devices": len(devices), "device": devices[0].device_kind}


def _observe(run: Run, split: str) -> tuple[dict[str, activity.Sums], list[Sequence]]:
    """The gates over the first batches of a split."""
    size = run.experiment.data.eval_batch_size or run.experiment.data.batch_size
    batches = itertools.islice(run.dataset.evaluate(split, size), GATE_BATCHES)
    return activity.observe(run.model, run.params, batches, carry=run.dataset.carries)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _folder(path: pathlib.Path) -> pathlib.Path:
    try:
        path.mkdir(exist_ok=True)
        (path / "results.json").touch()
    except OSError as error:
        raise InputError(f"the report cannot be written to {path} ({error.strerror}): free that place or make it writable") from error
    return path


def _save(folder: pathlib.Path, title: str, blocks: list[Block], results: Results) -> None:
    (folder / "index.html").write_text(to_html(title, blocks), encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(title, blocks), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
