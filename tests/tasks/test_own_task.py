"""An own kind of task, in one file outside the package: trained, evaluated and reported; and what cannot be
registered.
"""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax import config, data
from selssm_jax.config import Data, Model, Task
from selssm_jax.config import data as rules
from selssm_jax.model import SequenceModel
from selssm_jax.tasks import METRICS, TASKS, Metric, TaskKind, kind_of, register_task
from selssm_jax.tasks.language import Language
from selssm_jax.testing import check_task

PAGE = runs.REPOSITORY / "docs" / "adding_a_task.md"
REGRESSION, CHECK, MASKED = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
TABLES = (TASKS, METRICS, rules.TASKS, config.SOURCES, data.LOADERS)


@pytest.fixture(autouse=True)
def tables():
    """The tables, which are as they were after a test."""
    before = [dict(table) for table in TABLES]
    yield
    for table, items in zip(TABLES, before, strict=True):
        table.clear()
        table.update(items)


def test_the_task_of_the_page_trains_and_reports_from_one_file(tmp_path, capsys):
    own, run = tmp_path / "tones.py", tmp_path / "run"
    own.write_text(REGRESSION)
    before = [dict(table) for table in TABLES]
    keys = [f"--config.{key}" for key in (*runs.SHORT, "data.source=tones", "model.frame=4", "model.stride=2")]
    assert runs.command("train.py", "--config=configs/smoke.py", f"--extend={own}", f"--workdir={run}", *keys) == 0, (
        capsys.readouterr().err
    )
    for table, items in zip(TABLES, before, strict=True):  # as in a new process
        table.clear()
        table.update(items)
    assert runs.command("eval.py", f"--workdir={run}") == 2
    assert "data.source='tones' is not a choice" in (said := capsys.readouterr().err) and "--extend" in said
    assert runs.command("eval.py", f"--workdir={run}", f"--extend={own}") == 0, capsys.readouterr().err
    results = json.loads((run / "report" / "results.json").read_text())
    assert (
        results["task"]["kind"] == "regression" and results["primary"] == "absolute_error" and results["errors"] is None
    )
    assert 0 < results["metrics"]["absolute_error"] ** 2 <= results["metrics"]["squared_error"]
    page = (run / "report" / "report.md").read_text()
    assert (
        "absolute error (of an amplitude from 0 to 1)" in page
        and "always 1/2" in page
        and re.search(r"target 0\.\d+, answer -?\d", page)
    )
    assert {"learning_squared_error.png", "learning_absolute_error.png", "signal.png"} <= {
        path.name for path in (run / "report").iterdir()
    }


def test_the_task_of_the_page_obeys_the_laws():
    exec(REGRESSION, {})
    exec(CHECK, {})


@pytest.mark.parametrize("source", ["delayed_recall", "npz", "linear_gaussian"])
def test_tasks_of_the_package_obey_the_laws(source, tmp_path):
    label = np.arange(20) % 2
    np.savez(
        tmp_path / "signals.npz",
        signal=np.sin(np.arange(12) * (1 + label[:, None])).astype(np.float32)[..., None],
        label=label,
    )
    file = str(tmp_path / "signals.npz") if source == "npz" else ""
    check_task(data.load(Data(source=source, file=file, length=12, horizon=3, lag=2)))


@pytest.mark.parametrize(
    ("line", "fault", "says"),
    [
        ('loss = "squared_error"', 'loss = "mse"', "`loss` and `primary` are mse and absolute_error"),
        ("error = (outputs", "error = jnp.sign(outputs", "0 everywhere"),
        ('{"squared_error": error**2', '{"squared_error": error**2 / len(error)', "sums over rows"),
        ('(outputs - batch["targets"])[:, 0]', '(outputs[:, 0] - batch["targets"][:, 0, 0])', "targets of a row"),
    ],
)
def test_a_law_of_tasks_that_is_broken_is_named(line, fault, says):
    assert line in REGRESSION
    program = REGRESSION.replace(line, fault)
    if says == "targets of a row":
        program = program.replace('"targets": amplitude', '"targets": amplitude[..., None]')
    exec(program, {})
    with pytest.raises(AssertionError, match=says):
        exec(CHECK, {})


def test_masked_language_reads_both_directions():
    exec(MASKED, {})
    model = SequenceModel(
        Model(pattern=("selective",), d_model=8, d_state=4, bidirectional=True, task=Task("masked_language", vocab=5))
    )
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 5, (2, 6)), jnp.int32)
    params = model.init(jax.random.key(0), tokens)
    first = lambda tokens: model.apply(params, tokens)[0][:, 0]  # noqa: E731
    assert not np.allclose(first(tokens), first(tokens.at[:, -1].set((tokens[:, -1] + 1) % 5)))
    assert not kind_of(model.config.task).writes
    config.add_source("masked", "masked_language")
    small = runs.experiment(model__tie_embeddings=True)
    masked = dataclasses.replace(
        small,
        data=dataclasses.replace(small.data, source="masked"),
        model=dataclasses.replace(small.model, bidirectional=True),
    )
    assert not {"model.tie_embeddings", "model.bidirectional"} & set(masked.unread())


class Bare(TaskKind):
    loss = primary = "mse"


@pytest.mark.parametrize(
    ("name", "kind", "options", "says"),
    [
        ("language", Language(), {}, "'language' is there already: give another name"),
        ("own", TaskKind(), {}, "has no loss: name one of its metrics"),
        (
            "own",
            Bare(),
            {"keys": ("model.fame",)},
            "'model.fame', which is none that tasks differ in: did you mean 'model.frame'?",
        ),
        (
            "own",
            Bare(),
            {"metrics": {"accuracy": Metric()}},
            "the metric 'accuracy' of the task 'own' is there already",
        ),
    ],
)
def test_what_cannot_be_registered_is_said_and_changes_nothing(name, kind, options, says):
    before = [dict(table) for table in TABLES]
    with pytest.raises(ValueError, match=re.escape(says)):
        register_task(name, kind, **options)
    assert [dict(table) for table in TABLES] == before


def test_data_ask_a_task_that_is_known():
    with pytest.raises(ValueError, match="asks the task 'regresion', which is unknown"):
        data.register_data("tones", lambda config, known: None, kind="regresion")
    with pytest.raises(ValueError, match="'npz' is there already"):
        data.register_data("npz", lambda config, known: None, kind="classification")


def test_a_task_that_is_unknown_or_has_no_head_says_what_to_do():
    with pytest.raises(ValueError, match=r"'langage' is unknown: did you mean 'language'.*register_task"):
        kind_of(Task("langage"))
    register_task("bare", Bare())
    with pytest.raises(TypeError, match=r"Bare has no head: define head\(self, config\)"):
        jax.eval_shape(
            SequenceModel(Model(pattern=("selective",), task=Task("bare", channels=1))).init,
            jax.random.key(0),
            jnp.zeros((1, 4, 1)),
        )


def test_every_kind_of_task_has_its_rule_and_its_metrics():
    assert set(TASKS) == set(rules.TASKS) == set(config.SOURCES.values())
    assert {name for kind in TASKS.values() for name in (kind.loss, kind.primary)} <= set(METRICS)
    assert METRICS["accuracy"].higher and not METRICS["nats"].higher
