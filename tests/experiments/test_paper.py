"""The page of results, from records that are made up: what it says is what they say, and it says what is not there."""

import json
import math
import re
import runpy
import sys

import numpy as np
import pytest
from scipy import stats

import runs
from experiments.paper import (
    claims,
    comparisons,
    effects,
    figures,
    gate_captions,
    goals,
    mean_day,
    overview,
    page,
    published,
    quotes,
    records,
    ridge,
    setting,
    tables,
)
from experiments.paper import scaling as scales
from experiments.paper.names import FAMILIES, FIELD, METRICS, MODELS, OURS
from experiments.paper.study import Task, find_differing, open_study
from selssm_jax.config import SOURCES
from selssm_jax.data import forecasting
from selssm_jax.errors import InputError
from selssm_jax.report import document

TASKS = {
    "etth1_96": ("etth1", "forecasting", "mse"),
    "shakespeare": ("tiny_shakespeare", "language", "nats"),
    "fsdd": ("fsdd", "classification", "accuracy"),
    "selective_copying": ("selective_copying", "language", "accuracy"),
    "induction_heads": ("induction_heads", "language", "accuracy"),
}
CONFIG = '''"""The task {name}.

Command: none
"""

from ml_collections import ConfigDict


def get_config():
    data = {{"source": "{source}", "horizon": 96, "length": 96}}
    return ConfigDict({{"name": "{name}", "data": data, "sweep": {{"models": {models}}}}})
'''
NOISE = (0.0, 0.001, 0.003)  # of the seeds, so that pairs differ
READINGS = {
    "etth1_96": {"tokens": None, "signal": [[0.0], [3.0], [0.0], [-3.0]], "position": [0, 1, 2, 3]},
    "shakespeare": {"tokens": list("to be, or not\n$to be"), "signal": None, "position": list(range(20))},
    "fsdd": {"tokens": None, "signal": [[1.0, 2.0]] * 8, "position": [0, 4]},
    "selective_copying": {"tokens": list("..a....b"), "signal": None, "position": list(range(8))},
}
GATES = {"etth1_96": [0.1, 0.9, 0.1, 0.9], "selective_copying": [0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.7]}


def skill(task: str, model: str) -> float:
    """How far a model's headline metric is from 0 (losses) or from 1 (accuracies): LSTM and GRU are worse."""
    return 0.005 if model == OURS else 0.2


def record(task: str, model: str, **changes):
    """A record of three seeds; a change replaces a key, or the level of the metric's error."""
    source, kind, metric = TASKS[task]
    level = changes.pop("level", skill(task, model))
    spread = [level + seed * (1 if model == OURS else 2) for seed in NOISE]
    values = [1 - value if METRICS[metric].higher else value for value in spread]
    lengths = {"256": {"accuracy": values[0]}, "4096": {"accuracy": values[0]}} if source == "induction_heads" else {}
    cells = [
        {"seed": seed, "command": "run", "test": dict.fromkeys(FIELD[kind], value), "lengths": lengths}
        for seed, value in enumerate(values)
    ]
    small = (
        {"state_bytes": 100, "training_peak_bytes": 10**6}
        if model == OURS
        else {"state_bytes": 400, "training_peak_bytes": 4 * 10**6}
    )
    found = {
        "task": task,
        "model": model,
        "kind": kind,
        "metric": metric,
        "command": f"train {task} {model}",
        "budget": {"trials": 4, "trial_steps": 30, "steps": 120, "seeds": 3},
        "parameters": 1000,
        "target_parameters": 1000,
        "runs": [run | {"seconds_per_step": 0.01} for run in cells],
        "costs": small | {"batch": 8, "steps": 16, "training_flops": 1.5e6},
        "baselines": {"repeat last": {metric: 0.5}},
        "dtype": "float32",
        "versions": {"jax": "0.10"},
        "machine": {"platform": "Linux", "cpus": 1, "device": "cpu"},
    }
    if model == OURS and task in READINGS:
        gate = GATES.get(task, [0.2] * len(READINGS[task]["position"]))
        kept = np.linspace(0.1, 1, len(gate)).tolist()
        found["reading"] = READINGS[task] | {
            "title": "An example",
            "unit": "step",
            "blocks": {"block_0": {"gate": gate, "kept": kept}},
        }
    return found | changes


def scaling(power: float = 1.0, ours: float = 0.5):
    """Training peaks of T^1 for all but the Transformer, whose grow as T^2."""
    lengths = [1024, 4096, 16384, 65536]
    levels = {OURS: ours, "lstm": 1.0, "gru": 1.0, "rnn": 1.0, "s5": 1.0, "tcn": 1.0}
    models = {
        name: {quantity: [level * length for length in lengths] for quantity in scales.QUANTITIES}
        for name, level in levels.items()
    }
    models["attention"] = {
        quantity: [length**2 / 4096 for length in lengths[:3]] + [None] for quantity in scales.QUANTITIES
    }
    models[OURS]["training_peak_bytes"] = [ours * length**power for length in lengths]
    crossings = {"training_peak_bytes": {"lstm": 4096, "tcn": None}}
    step = {"peak_bytes": [2**22, 2**26], "temporary_bytes": [2**21, 2**25]}
    cut = {"peak_bytes": [2**22, 2**22], "temporary_bytes": [2**21, 2**21]}
    forms = {model: {"whole": step, "pieces": cut} for model in (OURS, "lstm", "gru")}
    pieces = {
        "command": "measure pieces",
        "piece": 1024,
        "lengths": [4096, 65536],
        "models": forms | {"attention": {"whole": step, "pieces": None}},
    }
    return {
        "machine": "Linux",
        "command": "measure",
        "lengths": lengths,
        "models": models,
        "crossovers": crossings,
        "pieces": pieces,
        "ratios": {},
    }


class Folder:
    """Configs and records of made-up cells in a folder."""

    def __init__(self, root, tasks=TASKS, models=(OURS, "lstm", "gru")):
        self.configs, self.records, self.out = (
            root / "configs",
            root / "records" / "paper",
            root / "docs" / "results.md",
        )
        self.configs.mkdir()
        for task in tasks:
            (self.configs / f"{task}.py").write_text(CONFIG.format(name=task, source=TASKS[task][0], models=models))
            for model in models:
                self.put(record(task, model))

    def put(self, found):
        path = self.records / found["task"] / f"{found['model']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))

    def put_scaling(self, found):
        (self.records.parent / "scaling.json").write_text(json.dumps(found))

    def study(self):
        return open_study(self.configs, self.records)

    def written(self):
        page.write(self.configs, self.records, self.out)
        return self.out.read_text()


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def verdict(study, quote):
    return next(found for found in claims.judge(study) if found.quote == quote)


# Tests between models


def test_paired_test_is_scipys():
    ours, theirs = {0: 0.30, 1: 0.32, 2: 0.31, 5: 9.0}, {2: 0.36, 1: 0.33, 0: 0.35, 7: 9.0}
    found = comparisons.compare_paired(ours, theirs, higher=False)
    assert found.pairs == 3 and found.difference == pytest.approx(0.11 / 3) and found.better
    assert found.p == pytest.approx(stats.ttest_rel([0.35, 0.33, 0.36], [0.30, 0.32, 0.31]).pvalue)
    assert found.won == (found.p < 0.05) and not comparisons.compare_paired(ours, theirs, higher=True).better


SAME = "all pairs differ by the same"


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        ({0: 1.0}, {0: 2.0}, "one pair"),
        ({0: 1.0, 1: 1.1}, {0: 2.0, 1: 2.1}, SAME),
        ({0: 1.0, 1: 0.3}, {0: 1.0, 1: 0.3}, SAME),
    ],
)
def test_without_a_test_the_reason_is_said(ours, theirs, why):
    found = comparisons.compare_paired(ours, theirs, higher=False)
    assert found.p is None and found.words() == f"no test: {why}" and not (found.won or found.lost or found.behind)
    assert comparisons.compare_paired({0: 1.0}, {1: 1.0}, higher=False) is None


def test_holm_on_a_worked_example():
    assert comparisons.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparisons.holm([0.6, 0.7]) == [1.0, 1.0] and comparisons.holm([]) == []


def test_holm_is_over_every_test_of_the_page(folder):
    found = folder.study().comparisons
    assert len(found) == 10
    smallest = min(found.values(), key=lambda test: test.p)
    assert smallest.holm == pytest.approx(10 * smallest.p)


def test_spread_shows_as_many_digits_as_the_deviation_allows():
    assert tables.spread([0.371, 0.375, 0.376]) == "0.3740 ± 0.0026" and tables.spread([0.5]) == "0.5000"
    assert tables.spread([0.9, 0.95], 100.0) == "92.5 ± 3.5"


# The page


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every cell and the scaling curves, and the page of them."""
    folder = Folder(tmp_path_factory.mktemp("whole"))
    folder.put_scaling(scaling())
    folder.written()
    return folder


def test_page_and_figures(whole):
    text = whole.out.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Against LSTM and GRU, by kind of task", "## What was run", "## Table 1: accuracy and memory",
        "## Every task", "## The mean day", "## Figure 1: accuracy", "## Memory and time against length",
        "## Memory and performance", "## Reading the gates", "## The paper's claims", "## The bar",
    ]  # fmt: skip
    assert (
        "15 of 15 cells" in text
        and "not run" not in text.split("## The paper's claims")[0].split("seeds | cells run | not run |")[1]
    )
    linked = set(re.findall(r"\]\(results/(\w+\.png)\)", text))
    assert linked == {path.name for path in (whole.out.parent / "results").iterdir()}
    assert linked == {
        "overview.png",
        "accuracy.png",
        "scaling.png",
        "frontier_state.png",
        "frontier_peak.png",
        *(f"reading_{task}.png" for task in READINGS),
    }
    assert "The page holds 10 such tests, so that about 0.5 would" in text
    assert not re.search(r"\bnan\b|\binf\b", text.lower())
    assert re.search(
        r"\*time series: the paper, reported without data or sizes\* \| \*92.1\* \| \*90.3\* \| \*89.7\*", text
    )
    assert (
        re.search(r"\| LSTM \| 0\.2027 ± 0\.0031 ", text)
        and re.search(r"\| LSTM \| \+0\.19\d+ \[\+0\.19\d+, \+0\.2\d+\] \| .*\| 3 \| selective is better \(p", text)
        and "| **0.0063 ± 0.0015** |" in text
    )
    assert re.search(r"\| 256 steps \| 4,096 steps \|", text) and "| *repeat last* | 0.5000 |" in text


def test_what_saves_memory_is_said(whole, folder):
    text = whole.out.read_text()
    assert "Selective SSM 6.2 %, LSTM 6.2 % and GRU 6.2 %" in text
    assert "The saving comes from recurrence, not from selectivity: LSTM and GRU save as much" in text
    assert "its peak is 64.00 MiB, 16 times the largest of those in pieces, and 1.00 times that" in text
    assert "| LSTM, in pieces | 4.00 MiB (2.00 MiB) | 4.00 MiB (2.00 MiB) |" in text
    found = scaling()
    found["pieces"]["models"]["gru"] = dict.fromkeys(("whole", "pieces"), found["pieces"]["models"]["lstm"]["whole"])
    folder.put_scaling(found)
    folder.written()
    assert "LSTM and GRU do not all save as much as the Selective SSM" in folder.out.read_text()


def test_page_is_the_same_when_it_is_written_again(whole):
    first = runs.content(whole.out.parent)
    whole.written()
    assert runs.content(whole.out.parent) == first


def test_what_is_missing_is_said(folder):
    (folder.records / "fsdd" / "lstm.json").unlink()
    for path in (folder.records / "shakespeare").iterdir():
        path.unlink()
    folder.put(record("fsdd", OURS) | {"task": "smnist", "costs": {}})
    text = folder.written()
    assert "11 of 15 cells (a model on a task) have a record; 4 are not run." in text
    assert (
        "| fsdd | nats | 4 | – | 30 | 120 | 960 | 3 | 2 of 3 | LSTM |" in text
        and "| shakespeare | – | – | – | – | – | – | – | 0 of 3 | Selective SSM, LSTM, GRU |" in text
    )
    assert "### shakespeare: The task shakespeare\n\nNot run." in text and "| LSTM | not run |" in text
    assert "## Memory and time against length\n\nNot measured." in text
    assert "not read: smnist/selective.json." in text


def test_costs_that_are_not_known_are_dashes(tmp_path):
    folder = Folder(tmp_path, ["fsdd"])
    for model in (OURS, "lstm", "gru"):
        folder.put(record("fsdd", model, costs=None, baselines=None, target_parameters=None))
    text = folder.written()
    assert (
        "Not measured: state of one sequence (bytes)." in text
        and "| Selective SSM | 1,000 | – | – | – | 10 | – | – |" in text
    )


def test_parameters_that_do_not_match_are_said(folder):
    folder.put(record("fsdd", "gru", parameters=1100))
    said = "".join(block.markdown() for block in setting.circumstances(folder.study()))
    assert "at most 10.0 % from the task's target; beyond 5 %: GRU on fsdd (+10.0 %)." in said


DAMAGE = {
    "no JSON": ("{", "Expecting property name"),
    "a list": ("[]", "holds a list, expected an object"),
    "another model": (record("fsdd", "gru"), "model is 'gru', but its place says 'lstm'"),
    "no runs": (record("fsdd", "lstm", runs=[]), "runs is empty"),
    "no kind": (record("fsdd", "lstm", kind="regression"), "kind='regression'"),
    "no metric": (record("fsdd", "lstm", metric="accuracies"), "did you mean 'accuracy'"),
    "a diverged run": (
        record("fsdd", "lstm", level=math.nan),
        "runs[0].test.accuracy is nan, expected a finite number",
    ),
    "a metric left out": (
        record("fsdd", "lstm", runs=[{"seed": 0, "test": {"nats": 1.0}}]),
        "runs[0].test has no 'accuracy'",
    ),
    "a seed twice": (record("fsdd", "lstm", runs=[{"seed": 0, "test": {"accuracy": 1.0}}] * 2), "the seeds [0, 0]"),
    "a run that is none": (record("fsdd", "lstm", runs=[3]), "runs[0] is a int"),
    "gates of another length": (
        record(
            "fsdd",
            "lstm",
            reading={"tokens": ["a"], "position": [0], "blocks": {"block_0": {"gate": [], "kept": [1.0]}}},
        ),
        "reading.blocks.block_0.gate has 0 values, expected 1",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_record_is_named(name, tmp_path):
    content, says = DAMAGE[name]
    path = tmp_path / "fsdd" / "lstm.json"
    path.parent.mkdir()
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=rf"fsdd/lstm.json is damaged: .*{re.escape(says)}"):
        records.read(path)


def test_damaged_scaling_is_named(tmp_path):
    path = tmp_path / "scaling.json"
    path.write_text(json.dumps(scaling() | {"lengths": [1024]}))
    with pytest.raises(InputError, match="4 values for 1 lengths"):
        scales.read(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="'lengths' is missing"):
        scales.read(path)


# Claims and the bar


def test_claims_hold_where_the_records_say_so(folder):
    folder.put_scaling(scaling())
    study = folder.study()
    for quote in (quotes.SUPERIOR, quotes.ROBUST, quotes.SAVINGS, quotes.REDUCED):
        assert verdict(study, quote).status == claims.SUPPORTED, verdict(study, quote)
    assert verdict(study, quotes.SUMMARY).status == claims.UNTESTABLE
    assert verdict(study, quotes.CONSISTENT).status == claims.UNKNOWN, "no RNN was run"
    assert verdict(study, quotes.CONVOLUTIONS).status == claims.UNKNOWN
    assert len({found.quote for found in claims.judge(study)}) == len(claims.CLAIMS) == 11


def test_a_verdict_flips_with_its_records(folder):
    folder.put_scaling(scaling())
    folder.put(record("fsdd", OURS, level=0.3))
    found = verdict(folder.study(), quotes.SUPERIOR)
    assert (
        found.status == claims.REFUTED and "in 4 of 6 comparisons, worse in 2; their loss is -32.7 to" in found.reasons
    )
    folder.put(record("selective_copying", OURS, level=0.3))
    assert verdict(folder.study(), quotes.ROBUST).status == claims.REFUTED
    folder.put(record("fsdd", OURS, costs={"training_peak_bytes": 3 * 10**6}))
    assert verdict(folder.study(), quotes.SAVINGS).status == claims.REFUTED
    (folder.records / "etth1_96" / "selective.json").unlink()
    (folder.records / "fsdd" / "selective.json").unlink()
    assert verdict(folder.study(), quotes.SAVINGS).status == claims.UNKNOWN


def test_gain_must_be_larger_on_series_and_language(folder):
    for level, status in ((0.5, claims.REFUTED), (0.006, claims.SUPPORTED)):
        for rival in ("lstm", "gru"):
            folder.put(record("fsdd", rival, level=level))
        assert verdict(folder.study(), quotes.PRONOUNCED).status == status


def test_quadratic_memory_and_whether_gates_are_the_reason(folder):
    assert verdict(folder.study(), quotes.QUADRATIC).status == claims.UNKNOWN
    found = scaling()
    folder.put_scaling(found)
    judged = verdict(folder.study(), quotes.QUADRATIC)
    assert [part.holds for part in judged.parts] == [True, True, False], "S5 is linear without gates"
    assert "Transformer's training peak grows as T^2.00 (holds)" in judged.reasons
    found["models"]["s5"]["training_peak_bytes"] = found["models"]["attention"]["training_peak_bytes"]
    folder.put_scaling(found)
    assert verdict(folder.study(), quotes.QUADRATIC).status == claims.SUPPORTED
    folder.put_scaling(found | {"models": found["models"] | {OURS: scaling(power=1.5)["models"][OURS]}})
    assert verdict(folder.study(), quotes.QUADRATIC).status == claims.REFUTED


def test_against_transformers_and_convolutions(tmp_path):
    folder = Folder(tmp_path, ["selective_copying", "induction_heads"], (OURS, "attention", "tcn"))
    folder.put_scaling(scaling())
    study = folder.study()
    for quote in (quotes.CONVOLUTIONS, quotes.COMPARABLE, quotes.FLEXIBLE):
        assert verdict(study, quote).status == claims.SUPPORTED, verdict(study, quote)
    assert "mean gate is 0.8000 at symbols" in verdict(study, quotes.FLEXIBLE).reasons
    folder.put_scaling(scaling(ours=3.0))
    assert verdict(folder.study(), quotes.COMPARABLE).status == claims.REFUTED
    folder.put(record("induction_heads", "tcn", level=0.005))
    assert verdict(folder.study(), quotes.CONVOLUTIONS).status == claims.REFUTED


def test_verdict_of_parts():
    assert (
        claims.every([True, None]) is None
        and claims.every([None, False]) is False
        and claims.every([]) is None
        and claims.every([True]) is True
    )


def test_the_bar(folder):
    folder.put_scaling(scaling())
    first, later = 6, ["met", *["not run"] * 6]  # there are no other horizons, no weather and no Mamba
    assert [goal.verdict for goal in goals.evaluate(folder.study())] == ["met"] * first + later
    folder.put_scaling(scaling(ours=0.82))
    folder.put(record("etth1_96", OURS, level=0.38))
    folder.put(record("induction_heads", OURS, level=0.06))
    folder.put(record("fsdd", OURS, level=0.3))
    as_good, better, light, forecast, induction, copying = (
        goal.verdict for goal in goals.evaluate(folder.study())[:first]
    )
    assert as_good.startswith("missed by up to") and "(fsdd, LSTM)" in as_good and better == "missed by 1 of the tasks"
    assert re.fullmatch(
        r"Why not clearly better: in the 4 comparisons .* -\d+\.\d to \+?-?\d+\.\d % better than its rival, .* \d\.\d "
        r"to \d\.\d % .*",
        goals.evaluate(folder.study())[1].reason,
    )
    assert (
        light == "missed by 0.22"
        and forecast == "missed by 0.0063"
        and induction == "missed by 5.00 points"
        and copying == "met"
    )
    assert re.fullmatch(
        r"Why not 0\.375 on etth1_96: the best of the 2 other models run, (LSTM|GRU), comes to 0\.\d{4}\.",
        goals.evaluate(folder.study())[3].reason,
    )
    for path in (folder.records / "etth1_96").iterdir():
        path.unlink()
    assert goals.evaluate(folder.study())[3].verdict == "not run"


def test_the_goal_by_kind_of_task_is_of_all_its_data_sets(folder):
    goal = goals.by_kind(folder.study())
    assert goal.met and goal.found.startswith("time series, LSTM: better, +")
    folder.put(record("etth1_96", OURS, level=0.199))  # as LSTM and GRU, whose seeds are further apart
    goal = goals.by_kind(folder.study())
    assert goal.met and "time series, GRU: at least as good" in goal.found
    folder.put(record("shakespeare", OURS, level=0.2))
    goal = goals.by_kind(folder.study())
    assert goal.verdict == "missed by 2 of 6" and "language against LSTM (" in goal.reason
    (folder.records / "etth1_96" / "gru.json").unlink()
    assert "time series, GRU: not complete" in goals.by_kind(folder.study()).found


# Recipes, budgets and what stands beside the scores

RECIPE = {"data.source": "etth1", "data.horizon": 96, "data.length": 96, "data.batch_size": 10, "training.steps": 100}
OLD_NAMES = {"data.cycle": 24, "model.channels_apart": True}


def test_recipes_are_compared_under_the_names_and_defaults_of_today():
    today = records.complete_recipe(RECIPE | {"data.period": 24, "model.channel_independent": True})
    assert find_differing(today, records.complete_recipe(RECIPE | OLD_NAMES)) == {}
    assert today["data.course"] == "mean", "which an earlier version did without saying so"
    learned = records.complete_recipe(RECIPE | OLD_NAMES | {"data.course": "learned", "training.log_every": 7})
    assert find_differing(today, learned) == {"data.course": ("mean", "learned")}
    assert find_differing(today, {}) == {} and records.complete_recipe({}) == {}


def test_a_model_of_another_recipe_is_not_tested_and_that_is_said(folder):
    folder.put(record("etth1_96", OURS, sweep=RECIPE))
    folder.put(record("etth1_96", "lstm", sweep=RECIPE | {"training.steps": 50}))
    folder.put(record("etth1_96", "gru", sweep=RECIPE | {"sweep.seeds": 5}))
    study = folder.study()
    task = next(task for task in study.tasks if task.name == "etth1_96")
    assert ("etth1_96", "lstm") not in study.comparisons and ("etth1_96", "gru") in study.comparisons
    assert "| no test: another recipe (training.steps 50 for 100) |" in tables.effects(study, task).markdown()
    said = "".join(block.markdown() for block in setting.circumstances(study))
    assert "which are not tested against it: LSTM on etth1\\_96 (training.steps 50 for 100)." in said
    assert "would not make again as it is: Selective SSM and GRU on etth1\\_96 (" in said
    assert verdict(study, quotes.SUPERIOR).status == claims.UNKNOWN
    folder.put(record("etth1_96", "lstm", level=0.0, sweep=RECIPE | {"training.steps": 50}))
    assert overview.find_best(folder.study(), task) == OURS, "the lowest error is by another recipe"
    assert effects.pool_kind(study, "time series", ["lstm"]).verdict == effects.NOT_RUN
    assert effects.pool_kind(study, "time series", ["gru"]).verdict == "better"


def trials(*rates):
    return [{"point": {"optimizer.peak_rate": rate}} for rate in rates]


def test_a_best_rate_at_an_end_of_its_grid_is_named(folder):
    for model, chosen in ((OURS, 0.002), ("lstm", 0.004), ("gru", 0.008)):
        grid = {"trials": trials(0.008, 0.002, 0.004), "chosen": {"optimizer.peak_rate": chosen}}
        folder.put(record("fsdd", model, **grid))
    folder.put(record("shakespeare", OURS, trials=trials(0.01), chosen={"optimizer.peak_rate": 0.01}))
    said = "".join(block.markdown() for block in setting.circumstances(folder.study()))
    assert "best learning rate of 3 of 4 cells lies at an end" in said
    assert "| fsdd | Selective SSM | GRU | – |" in said and "| shakespeare | – | – | Selective SSM |" in said
    assert "| 3, 0.002 to 0.008 |" in said and "| 1, 0.01 |" in said


def test_every_published_number_has_a_source():
    places = [*published.FORECASTS, *published.MORE]
    listed = [
        other
        for source, horizon in places
        for other in published.list_published(Task("t", "t", source, horizon, (), published.LOOKBACK))
    ] + [other for others in published.OTHERS.values() for other in others]
    assert len(listed) > 50
    for other in listed:
        assert other.values and set(other.values) <= set(METRICS) and all(value > 0 for value in other.values.values())
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}|github\.com/\S+", other.source.place), other
        assert other.source.basis in (published.READ, published.QUOTED)
        assert "accuracy" not in other.values or other.values["accuracy"] < 1
    assert all(len(rows) == len(published.COLUMNS) for rows in published.FORECASTS.values())
    assert {source for source, _ in places} | set(published.OTHERS) <= set(SOURCES)
    assert published.list_published(Task("t", "t", "weather", 96, (), 512)) == [], "another lookback"


def test_published_numbers_stand_beside_ours_in_their_order(folder):
    folder.put(record("etth1_96", OURS, level=0.38))
    study = folder.study()
    task = next(task for task in study.tasks if task.name == "etth1_96")
    names = [row[0] for row in tables.published_table(study, task).rows]
    assert names[:2] == ["**ours: LSTM**", "**ours: GRU**"], "0.2"
    assert names.index("TQNet") < names.index("**ours: Selective SSM**") < names.index("S-Mamba")
    assert tables.published_table(study, next(task for task in study.tasks if task.name == "fsdd")) is None


def test_ridge_is_compared_and_the_recipe_says_why(folder):
    day = {"sweep": RECIPE | {"data.period": 24}, "baselines": {"ridge by channel": {"mse": 0.1}}}
    folder.put(record("etth1_96", OURS, **day))
    study = folder.study()
    task = next(task for task in study.tasks if task.name == "etth1_96")
    assert "is beaten by all 1 networks: the error of the best, Selective SSM, is lower than its own by +93" in (
        ridge.describe_ridge(study, task)
    )
    folder.put(record("etth1_96", OURS, level=0.12, **day))
    said = ridge.describe_ridge(folder.study(), task)
    assert "not beaten by 1 of 1 networks" in said and "Selective SSM +21.3 [" in said
    assert "less the mean day of the training months" in said and "a run reads 12 % of the training windows" in said
    enough = {**day, "sweep": RECIPE | {"training.steps": 9000}}
    folder.put(record("etth1_96", OURS, level=0.12, **enough))
    assert ridge.describe_ridge(folder.study(), task).endswith("The recipe does not tell why.")
    assert ridge.describe_ridge(study, next(task for task in study.tasks if task.name == "fsdd")) == ""


def test_training_rows_are_those_of_the_splits():
    assert {
        "etth1": forecasting.ett_split(1)["train"][1],
        "ettm1": forecasting.ett_split(4)["train"][1],
        "weather": forecasting.share_split(52696)["train"][1],
    } == ridge.TRAINING_ROWS


def test_the_mean_day_is_told_from_records_where_they_have_it(folder):
    (folder.records.parent / "weather.json").write_text(json.dumps({"baselines": {"repeat last": {"mse": 0.26}}}))
    gap = {"mean": 0.03, "low": 0.01, "high": 0.05, "runs": 3}
    ablation = {"validation error less that of the recipe": {"the mean day taken off": gap}}
    (folder.records.parent / "weather_ablation.json").write_text(json.dumps(ablation))
    folder.put(record("etth1_96", OURS, sweep=RECIPE | {"data.period": 24}))
    said = "\n".join(block.markdown() for block in mean_day.describe_mean_day(folder.study()))
    assert "still take it off: etth1\\_96." in said and "by +0.0300 (95 % interval +0.0100 to +0.0500, 3 seeds)" in said
    assert "| repeat last, test | 0.2600 | 0.3527 | records, past finding |" in said
    folder.put(record("etth1_96", OURS, sweep=RECIPE | {"data.period": 24, "data.course": "learned"}))
    said = "\n".join(block.markdown() for block in mean_day.describe_mean_day(folder.study()))
    assert "No record of this page takes a mean day off." in said


# The first screen


def test_three_sentences_are_computed(folder):
    best, distance, certainty = overview.summarise(folder.study())
    assert "1 of 1 time series, 1 of 1 texts and 1 of 1 sets of signals" in best
    assert "ridge" not in best and "on time series +3,1" in distance and "(95 % interval +" in distance
    assert (
        "better with p < 0.05 in 10 of 10 paired tests over seeds (10 after Holm" in certainty and "80 %" in certainty
    )
    folder.put(record("fsdd", "gru", level=0.001))
    folder.put(record("etth1_96", OURS, baselines={"ridge by channel": {"mse": 0.001}}))
    best, distance, _ = overview.summarise(folder.study())
    assert "0 of 1 sets of signals (GRU on 1)" in best and "better than every network on etth1_96" in best
    (folder.records / "fsdd" / "gru.json").unlink()
    assert "signals" not in overview.summarise(folder.study())[1], "GRU is missing on its one data set"


def test_sentences_of_a_study_without_a_reference_say_what_they_can(tmp_path):
    folder = Folder(tmp_path, ["fsdd"], ("lstm", "gru"))
    (sentence,) = overview.summarise(folder.study())
    assert sentence.startswith("What is best where") and overview.list_leads(folder.study()) == {}
    assert "overview.png" not in folder.written()


def test_the_overview_has_a_row_a_task_and_recall_apart(folder):
    study = folder.study()
    leads, recall = overview.list_leads(study), overview.list_recall(study)
    assert list(leads) == ["etth1_96", "shakespeare", "fsdd"] and set(recall) == {
        "selective_copying",
        "induction_heads",
    }
    assert leads["fsdd"][0].mean == pytest.approx(100 * study.comparisons["fsdd", "lstm"].relative.mean)
    figure = figures.overview(leads, recall)
    upper, lower = figure.axes
    assert [label.get_text() for label in upper.get_yticklabels()] == list(leads)
    assert [label.get_text() for label in lower.get_yticklabels()] == list(recall)
    assert figure.get_figwidth() * 130 < 2 * 390, "letters stay readable on a telephone"
    assert len(figures.overview(leads, {}).axes) == 1
    kinds = [model for _, models in figures.KINDS.values() for model in models]
    assert sorted([OURS, *kinds]) == sorted(MODELS)


def test_a_task_of_associative_recall_is_on_the_page(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "mqar", ("associative_recall", "language", "nats"))
    folder = Folder(tmp_path, ["mqar"], (OURS, "lstm"))
    for model, accuracy in ((OURS, 0.99), ("lstm", 0.3)):
        found = record("mqar", model)
        for run in found["runs"]:
            run["test"]["accuracy"] = accuracy
            run["lengths"] = {"64": {"accuracy": accuracy}, "256": {"accuracy": accuracy / 2}}
        folder.put(found)
    text = folder.written()
    assert "### mqar: The task mqar" in text and "| Selective SSM | 99.00 | 49.50 |" in text
    assert re.search(r"\| LSTM \| 0\.2027 ± 0\.0031 .* 30\.00 \|", text)
    assert "accuracy on mqar at 256 steps 49.50 %" in verdict(folder.study(), quotes.ROBUST).reasons


# Figures and readings


def test_models_differ_without_colour():
    assert set(figures.STYLES) == set(MODELS)
    assert len({marker for _, _, marker in figures.STYLES.values()}) == len(MODELS)
    assert len({(str(dash), marker) for _, dash, marker in figures.STYLES.values()}) == len(MODELS)
    assert len({colour for colour, _, _ in figures.STYLES.values()}) == len(MODELS)


def test_accuracy_has_a_row_a_model_and_says_what_was_not_run():
    (ax,) = figures.accuracy({"fsdd": [figures.Dot(OURS, 90.0, 1.0), figures.Dot("lstm", None)]}).axes
    assert [text.get_text() for text in ax.texts] == ["not run"] and [
        label.get_text() for label in ax.get_yticklabels()
    ] == ["Selective SSM", "LSTM"]


def test_rings_are_on_the_transformers_curve(tmp_path):
    (tmp_path / "scaling.json").write_text(json.dumps(scaling()))
    ax = figures.curves(scales.read(tmp_path / "scaling.json")).axes[0]
    assert ax.get_xscale() == ax.get_yscale() == "log"
    ring = ax.lines[-1]
    assert (
        ring.get_marker() == "o"
        and list(ring.get_xdata()) == [4096]
        and list(ring.get_ydata()) == pytest.approx([4096.0])
    )


def test_pareto_front_is_what_nothing_cheaper_matches():
    points = [
        figures.Point(model, cost, score)
        for model, cost, score in (("lstm", 4.0, 0.5), ("gru", 2.0, 0.7), ("rnn", 3.0, 0.9), ("s5", 2.0, 0.8))
    ]
    assert [point.model for point in figures.pareto(points, higher=False)] == ["gru", "lstm"]
    assert [point.model for point in figures.pareto(points, higher=True)] == ["s5", "rnn"]


def test_captions_state_numbers_of_the_reading():
    found = {task: record(task, OURS)["reading"] for task in READINGS}
    assert gate_captions.caption(found["selective_copying"]) == (
        "In block 0 the mean gate is 0.8000 at symbols and 0.1000 at the filler between them, 8.000 times as much."
    )
    assert "at spaces and line ends and 0.2000 at other characters" in gate_captions.caption(found["shakespeare"])
    assert "have a correlation of +1.00" in gate_captions.caption(found["etth1_96"])
    assert "at least half of what was written in the last 0 steps" in gate_captions.caption(found["fsdd"]), (
        "a constant signal has no correlation"
    )


def test_half_life_counts_from_the_end():
    example = {
        "position": [0, 2, 4, 6],
        "blocks": {"a": {"kept": [0.9, 0.2, 0.6, 0.9]}, "b": {"kept": [0.6, 0.7, 0.8, 0.9]}},
    }
    assert gate_captions.half_life(example) == ("b", 6)
    assert gate_captions.half_life(example | {"blocks": {"a": example["blocks"]["a"]}}) == ("a", 2)


def test_a_long_text_is_drawn_in_its_last_lines():
    tokens = list("ab cd$" * 60)
    example = {
        "title": "t",
        "tokens": tokens,
        "position": list(range(360)),
        "blocks": {"block_0": {"gate": [0.5] * 360, "kept": [0.5] * 360}},
    }
    figure = figures.reading(example)
    assert len(figure.axes) == 2 * figures.LINES_SHOWN
    assert figure.axes[0].get_xlim()[0] == 128 - 0.5 and figure.axes[-1].get_xlim()[0] == 320 - 0.5


def test_a_record_is_of_the_loss_that_its_kind_of_task_is_trained_on():
    """Sweeps of all kinds hold training.forecast_loss; only forecasts read it."""
    for path in sorted((runs.REPOSITORY / page.RECORDS).glob("*/*.json")):
        found = records.read(path)
        assert found.loss in {"forecasting": ("mse", "huber", "mae")}.get(found.kind, ("nats",)), path


def test_pictures_and_headings_say_their_place(tmp_path):
    assert "(results/a.png)" in document.Picture(tmp_path / "a.png", "words", "results").markdown()
    assert (
        document.Heading("part", 3).markdown() == "### part" and document.Heading("part", 3).html() == "<h3>part</h3>"
    )


# The command


def command(*arguments: str) -> int:
    """Runs the command in this process and returns its exit code."""
    before, sys.argv = sys.argv, ["experiments.paper", *arguments]
    try:
        runpy.run_module("experiments.paper", run_name="__main__")
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before
    return 0


def test_the_flag_of_earlier_versions_names_the_command(capsys):
    assert runs.command("eval.py", "--table=configs/paper") == 2
    assert "python -m experiments.paper" in capsys.readouterr().err


def test_command_writes_the_page(tmp_path, monkeypatch, capsys):
    folder = Folder(tmp_path, ["fsdd"])
    monkeypatch.chdir(tmp_path)
    assert command("--configs=configs", "--records=records/paper") == 0
    out = capsys.readouterr().out
    assert out.startswith("3 of 3 cells; claims: ") and out.endswith("page: docs/results.md\n")
    assert "python -m experiments.paper --configs configs\n" in folder.out.read_text()


def strange(configs, text):
    (configs / "other.py").write_text(text)


MISTAKES = {
    "no folder of configs": (
        ["--configs=absent"],
        lambda folder: None,
        ["--configs=absent does not exist", "configs/paper"],
    ),
    "no configs in it": (
        ["--configs=docs"],
        lambda folder: folder.out.parent.mkdir(),
        ["--configs=docs holds no config"],
    ),
    "no folder of records": (
        ["--configs=configs", "--records=absent"],
        lambda folder: None,
        ["--records=absent does not exist", "train.py --sweep"],
    ),
    "no records in it": (
        ["--configs=configs", "--records=configs"],
        lambda folder: None,
        ["holds no record of the 5 tasks", "configs/etth1_96.py --sweep"],
    ),
    "a damaged record": (
        ["--configs=configs", "--records=records/paper"],
        lambda folder: (folder.records / "fsdd" / "gru.json").write_text("{"),
        ["records/paper/fsdd/gru.json is damaged", "restore it"],
    ),
    "a config that is no task": (
        ["--configs=configs"],
        lambda folder: strange(
            folder.configs, CONFIG.format(name="other", source="fsdd", models=()).replace("sweep", "swoop")
        ),
        ["other.py has no group 'sweep'"],
    ),
    "an unknown model": (
        ["--configs=configs"],
        lambda folder: strange(folder.configs, CONFIG.format(name="other", source="fsdd", models=("ltsm",))),
        ["did you mean 'lstm'"],
    ),
    "a file where the page goes": (
        ["--configs=configs", "--records=records/paper"],
        lambda folder: folder.out.parent.write_text(""),
        ["docs/results.md cannot be written", "free that place"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message(name, folder, tmp_path, monkeypatch, capsys):
    arguments, change, says = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    change(folder)
    assert command(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "Traceback" not in err
    for words in says:
        assert words in err, err


def test_every_data_source_has_a_family():
    assert sorted(SOURCES) == sorted(source for sources in FAMILIES.values() for source in sources)


def test_costs_that_are_near_to_each_other_stand_between_two_marks():
    points = [
        figures.Point(model, cost, score) for model, cost, score in (("selective", 5208, 0.376), ("lstm", 5432, 0.381))
    ]
    (ax,) = figures.frontier({"etth1_96": ("MSE", points)}, higher={"etth1_96": False}, cost="bytes").axes
    low, high = ax.get_xlim()
    assert low <= 4096 and high >= 8192
