"""The benchmarks' page says what the records say, and every script runs: at sizes that take no time, whose numbers mean
nothing.
"""

import dataclasses
import importlib
import json
import pathlib
import sys
import types

import jax
import numpy as np
import pytest
import scipy.linalg

from selssm_jax.config import Data, Experiment, Model, Task, fields
from selssm_jax.config.data import SOURCES
from selssm_jax.data import LOADERS, Dataset, load, synthetic
from selssm_jax.model import SequenceModel
from selssm_jax.runs import Run

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Makes the scripts import one another as they do when they are run, and forgets them afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in (set(sys.modules) - before) & {path.stem for path in FOLDER.glob("*.py")}:
        del sys.modules[name]


def test_the_page_is_that_of_the_records():
    records = {path.stem: json.loads(path.read_text()) for path in (FOLDER / "records").glob("*.json")}
    assert (FOLDER / "README.md").read_text() == importlib.import_module("readme").text(dict(sorted(records.items())))


def test_the_page_on_gates_is_that_of_the_records():
    records = {path.stem: json.loads(path.read_text()) for path in (FOLDER / "records").glob("*.json")}
    script = importlib.import_module("readme")
    page = script.GATES_PAGE.read_text()
    assert page == script.fill(page, script.MEASURED, script.gates(records))
    assert page == script.fill(page, script.PRICED, script.shares(records["bottleneck"]))


def test_a_headline_is_a_fact_only_where_its_record_meets_every_target():
    records = {path.stem: json.loads(path.read_text()) for path in (FOLDER / "records").glob("*.json")}
    page = importlib.import_module("readme").text(dict(sorted(records.items())))
    sections = [section for section in page.split("\n## ")[1:] if "| ratio | found | target |" in section]
    assert len(sections) > 15
    for section in sections:
        title, missed, met = section.splitlines()[0], section.count("| missed |"), section.count("| met |")
        assert title.startswith(f"Missed in {missed} of {missed + met} targets: ") == (missed > 0), title
        assert title.startswith("Measured without a target: ") == (missed + met == 0), title


@pytest.mark.parametrize(
    ("ratios", "title"),
    [
        ({"speed": {"ours": 3.0, "at_least": 2}, "size": {"ours": 1.0}}, "A scan is fast"),
        (
            {"speed": {"ours": 1.0, "at_least": 2}, "error": {"ours": 0.1, "at_most": 1}},
            "Missed in 1 of 2 targets: a scan is fast",
        ),
        ({"speed": {"ours": float("nan"), "at_least": 2}}, "Missed in 1 of 1 targets: a scan is fast"),
        ({"speed": {"ours": 3.0}}, "Measured without a target: a scan is fast"),
    ],
)
def test_headlines_follow_from_ratios(ratios, title):
    assert importlib.import_module("readme").headline({"claim": "Claim: a scan is fast.", "ratios": ratios}) == title


def test_every_record_names_a_script_that_exists():
    for path in (FOLDER / "records").glob("*.json"):
        program = json.loads(path.read_text())["command"].split()[1]
        assert (FOLDER.parent / program).is_file(), path.name


@pytest.mark.exhaustive
def test_every_op_of_growth_and_its_floor_is_measured():
    growth = importlib.import_module("growth")
    for run, draw in growth.OPS.values():
        found = growth.at_length(run, draw, 32, 1)
        assert found["steps"] == 32 and found["milliseconds"]["value_and_grad"]["median"] > 0
    assert growth.slope([3.0 * steps for steps in growth.LENGTHS]) == pytest.approx(1.0)


@pytest.mark.exhaustive
def test_certificates_are_timed_and_paid_for():
    script = importlib.import_module("certificates")
    assert script.six_blocks(components=8) > 0 and script.dense(components=4) > 0
    found = script.trained("certified", 0, steps=3, warmup_steps=1, length=24, d_state=8)
    assert found["contracts"] and found["nats"] > 0 and set(found["blocks"]) == {"block_0", "block_1"}


def test_newton_is_compared_with_the_loop():
    found = importlib.import_module("newton_scan").compare(1, steps=64, width=4)
    assert found["converged"] and found["error"] < 1e-5


def test_newton_is_attacked_and_says_converged_of_no_state_that_is_far_from_the_loops():
    script = importlib.import_module("newton_attack")
    rows = script.attack(("gate", "latch", "logistic map", "sizes far apart, declared diagonal"), {60: 40}, "float32")
    assert [row["false"] for row in rows] == [0, 0, 0, 0] and all(row["converged"] > 0 for row in rows)


@pytest.mark.exhaustive
@pytest.mark.parametrize("inputs", ["float32", "bfloat16", "float64"])
def test_newton_is_attacked_by_every_kind_of_step(inputs):
    script = importlib.import_module("newton_attack")
    rows = script.attack(tuple(script.KINDS), {2: 50, 40: 50, 500: 10}, inputs, seed=1)
    assert sum(row["false"] for row in rows) == 0


@pytest.mark.parametrize(
    ("name", "shape"),
    [("linear_scan", (1, 64, 4)), pytest.param("ssd", (1, 64, 2, 4, 4), marks=pytest.mark.exhaustive)],
)
def test_methods_are_compared_at_every_shape(name, shape):
    script = importlib.import_module(name)
    found = (script.every_method if name == "linear_scan" else script.every_chunk)(shape, 1)
    assert found["shape"] == shape and all(value["median"] > 0 for key, value in found.items() if key != "shape")


def test_the_recurrences_that_ssd_is_measured_against_are_its_own():
    script = importlib.import_module("ssd")
    _, *given = script.inputs((1, 40, 2, 4, 3))
    ours = script.ssd(*given)[0]
    for peer in (script.as_selective_scan, script.step_by_step):
        assert jax.numpy.abs(ours - peer(*given)).max() < 1e-4


def test_transformers_writes_the_same_and_is_timed_beside(monkeypatch):
    pytest.importorskip("transformers")
    script = importlib.import_module("huggingface")
    monkeypatch.setattr(script, "NEW", 3)
    found = script.compare(1, {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 2, "vocab_size": 20}, 6, 4)
    assert found["agreement"]["same_greedy_tokens"] and found["agreement"]["error of ours"] < 1e-4
    # three tokens on a busy machine: the record says which is faster
    assert found["ratios"]["generate against our loop"]["peer_over_ours"] > 0


def test_estimators_are_compared_on_frozen_samples(tmp_path, monkeypatch):
    script = importlib.import_module("information")
    monkeypatch.setattr(script, "ESTIMATORS", {"default": script.estimators.gaussian, "KSG5": script.estimators.ksg})
    tasks = ("1v1-normal-0.75", "student-identity-5-5-2")
    rows = []
    for task in tasks:
        x, y, information = script.samplers.TASKS[task](jax.random.key(0), 200)
        np.savez(tmp_path / f"{task}.npz", x=x, y=y, mi=float(information))
        np.savez(
            tmp_path / f"{task}-5000.npz",
            **{f"{name}{seed}": value for seed in range(3) for name, value in (("x", x), ("y", y))},
        )
        rows += [
            {"task": task, "N": count, "est": name, "true": float(information), "val": 0.0}
            for count in (5000, 10_000)
            for name in script.RIVALS
        ]
    (tmp_path / "reference.json").write_text(json.dumps({"rows": rows}))
    found = script.accuracy(tmp_path, tasks)
    assert len(found["rows"]) == 2 * 2 * (3 + 1)
    first = found["errors"]["5000"][0]
    assert abs(first["default"]) < 0.2 and first["MINE (reference)"] == pytest.approx(-first["true"], abs=1e-3)
    assert found["ratios"]["best reference estimator, N=5000, nats"]["reference"] == pytest.approx(
        sum(row["true"] for row in found["errors"]["5000"]) / 2
    )


def test_stated_errors_are_held_against_truths(monkeypatch):
    script = importlib.import_module("coverage")
    assert sum(len(laws) for laws in script.KINDS.values()) == 60
    quick = {
        "discrete": ("binary channel", "ten floats and themselves"),
        "independent": ("coins", "twenty labels each"),
    }
    monkeypatch.setattr(
        script, "KINDS", {kind: {name: script.KINDS[kind][name] for name in names} for kind, names in quick.items()}
    )
    found = script.benchmark()
    assert [row["law"] for row in found["rows"]] == [name for names in quick.values() for name in names]
    assert (
        found["ratios"]["laws within three stated errors, of 4"]["ours"] == 4
        and found["ratios"]["median stated error, nats"]["ours"] < 0.05
    )


@pytest.mark.parametrize(
    ("law", "truth"),
    [
        ("normal .8, both rounded to .05", 0.5108),
        ("a coin and a number", 0.3369),
        ("ten floats and themselves", 2.3026),
    ],
)
def test_truths_of_laws_are_those_of_their_quadratures(law, truth):
    """Rounding to a twentieth loses next to nothing of -1/2 log(1 - .64); a coin in noise of its own size is the
    binary-input Gaussian channel.
    """
    script = importlib.import_module("coverage")
    (found,) = (laws[law] for laws in script.KINDS.values() if law in laws)
    assert found[1](np.random.default_rng(0))[2] == pytest.approx(truth, abs=1e-3)


def test_p_values_and_intervals_are_measured_over_laws(monkeypatch):
    script = importlib.import_module("inference")
    quick = {"TESTS": "local permutations: gaussian, common cause", "INTERVALS": "collider: gaussian"}
    for table, name in quick.items():
        monkeypatch.setattr(script, table, {name: getattr(script, table)[name]})
    result = script.benchmark({"tests": 3, "intervals": 2})
    assert [row["law"] for row in result["tests"]] == [quick["TESTS"], *script.OUTSIDE]
    assert [row["interval"] for row in result["intervals"]] == ["stated", "jackknife"]
    assert all(0 <= row["KS p"] <= 1 for row in result["tests"]) and result["intervals"][1]["median width"] > 0


def test_lower_bounds_are_measured_over_seeds(monkeypatch):
    script = importlib.import_module("information")
    for name in ("ESTIMATORS", "LOWER"):
        monkeypatch.setattr(script, name, {"InfoNCE": script.estimators.infonce})
    monkeypatch.setattr(script, "SHORT", script.Training(steps=5, width=8))
    monkeypatch.setattr(script, "SAMPLES", 200)
    monkeypatch.setattr(script, "independent", lambda name, estimator: {"est": name, "val": 0.0})
    monkeypatch.setattr(script.samplers, "TASKS", {"1v1-normal-0.75": script.samplers.TASKS["1v1-normal-0.75"]})
    with pytest.warns(UserWarning, match="collapsed"):  # five steps find nothing
        found = script.bounds(seeds=2)
    assert found["bounds"][0]["mean"] < found["bounds"][0]["true"]


def test_brackets_are_held_against_truths(monkeypatch):
    script = importlib.import_module("memory")
    monkeypatch.setattr(script, "SAMPLES", 500)
    truths = {name: script.quadrature(gate) for name, gate in script.GATES.items()}
    assert list(truths.values()) == pytest.approx([0.5903, 0.2689, 0.7669, 0.3166], abs=5e-5)
    gate = script.GATES["1/(1+x^2)"]
    found = script.brackets(lambda key: script.one_step(gate, key), truths["1/(1+x^2)"], 2)
    assert found["covered"] == 1 and 0 <= found["widest"] < 0.1
    system, truth = script.fixed_gates()
    assert script.brackets(lambda key: script.many_steps(system, key), truth, 1)["widest"] < 0.5


def test_prices_of_memory_are_measured(tmp_path):
    script = importlib.import_module("rate")
    short = {"steps": 30, "penalty_warmup": 5, "eval_every": 30, "checkpoint_every": 30, "log_every": 30}
    (point,) = script.curve(0, tmp_path, (0.01,), examples=200, warmup_steps=5, **short)
    assert 0 < point["beyond_last_input_bits"] <= point["exact_bits"] and point["exact_mean_bits"] < point["rate_bits"]
    assert point["excess"] - point["least_excess"] > -3 * point["stderr"]


def test_the_least_error_is_that_of_the_kalman_filter():
    script = importlib.import_module("rate")
    config = script.channel.get_config()
    config.data.noise = script.NOISE
    optimal = synthetic.dataset(script.Experiment.from_config_dict(config).data).info["optimum"]["mse"]
    known = script.filter_weights() @ script.DECAY ** np.arange(script.STEPS)[::-1]
    powers = script.DECAY ** (2 * np.arange(1, script.HORIZON + 1))
    assert (powers * (1 - known) + 1 - powers + script.NOISE).mean() == pytest.approx(optimal, rel=1e-9)
    blind = (1 + script.NOISE - powers / (1 + script.NOISE)).mean()  # the last input alone
    assert script.least_excess(0.0) == pytest.approx(blind - optimal, rel=1e-9)
    assert script.least_excess(1.0) == pytest.approx(script.least_excess(0.0) / 4)


@pytest.mark.parametrize(("source", "noise"), [("linear_gaussian", 0.1), ("changing_noise", 3.0)])
def test_gates_are_compared_with_the_filter_that_knows_the_noise(source, noise):
    script = importlib.import_module("gate_kinds")
    config = Data(source=source, noise=noise, length=24, horizon=2, eval_examples=4000)
    dataset = load(config)
    optimal = dataset.info["optimum"]["mse"]
    assert script.filter_error(dataset, config) == pytest.approx(optimal, rel=0.1)
    blind = script.mean_error(dataset, lambda batch: np.zeros((len(batch["inputs"]), 2)))
    assert blind > 1.4 * optimal


def test_a_bottleneck_is_that_of_one_direction_of_the_readings():
    """One value to be told has one canonical correlation rho: I(T;Y) = -1/2 log(1 - rho^2 (1 - exp(-2 I(T;X))))."""
    script = importlib.import_module("bottleneck")
    config = script.recipe.get_config()
    optimum = synthetic.dataset(Experiment.from_config_dict(config).data).info["optimum"]["mse"]
    square = 1 - optimum / (1 + config.data.noise)
    nats = np.array([0.0, 0.1, 1.0, 3.0])
    expected = -np.log1p(-square * -np.expm1(-2 * nats)) / 2
    np.testing.assert_allclose(script.most_relevance(config, nats), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [("softmax", "dropout"), ("kalman", "of its filter")])
def test_a_priced_memory_is_held_against_the_bottleneck(tmp_path, case):
    script = importlib.import_module("bottleneck")
    short = {"steps": 102, "eval_every": 102, "checkpoint_every": 102, "penalty_warmup": 5}
    found = script.train(*case, 0.1, 1, tmp_path, **short)
    assert found["complexity"][0] > 0 and found["share"][0] < 1.05


def test_two_answers_are_compared_with_the_filter_of_each_hidden_state():
    script = importlib.import_module("two_answers")
    dataset = load(Data(source="two_answers", noise=0.5, length=24, horizon=2, eval_examples=4000))
    np.testing.assert_allclose(script.filter_errors(dataset), dataset.info["answers_known"]["mse"], rtol=0.1)
    inputs = np.concatenate([batch["inputs"] for batch in dataset.evaluate("test", 500)])
    means = script.filter_means(inputs, 0.5)
    assert (np.abs(np.corrcoef(means) - np.eye(3)) < 0.1).all(), "the hidden states are independent"


@pytest.mark.exhaustive
def test_memories_of_two_answers_are_described_and_compared_with_one_for_each(tmp_path):
    script = importlib.import_module("two_answers")
    script.register_alone()
    short = {"steps": 101, "eval_every": 101, "checkpoint_every": 101}
    data = {"length": 24, "eval_examples": 1000}
    try:
        (run,) = script.train(4, script.NOISE, 0.001, 1, folder=tmp_path, data=data, penalty_warmup=2, **short)
        found = script.describe(run)
        assert np.shape(found["squared correlations with the filters"]) == (4, 3)
        assert len(found["told"]) == 4 and 0 <= found["told rightly"] <= 1
        for answer in (0, 1):
            (error,) = script.errors_alone(answer, 2, 1, folder=tmp_path, data=data, **short)
            assert error > 0.9
    finally:
        for name in script.ALONE:
            del SOURCES[name], LOADERS[name]


def test_step_sizes_and_bits_are_those_of_the_models_and_ranks_say_how_they_go_together():
    script = importlib.import_module("resample")
    tokens = np.random.default_rng(0).integers(0, 5, (3, 12))
    opened = {}
    for kind in script.GATED.values():
        model = SequenceModel(Model(pattern=(kind,), d_model=8, d_state=4, task=Task("language", vocab=5)))
        params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
        opened[kind] = types.SimpleNamespace(model=model, params=params)
    sizes, surprise = script.read_step_sizes(opened["mamba2"], tokens)
    params = opened["mamba2"].params
    u = np.asarray(params["encoder"]["embedding"])[tokens]
    u = u / np.sqrt(np.square(u).mean(axis=-1, keepdims=True) + 1e-6)
    mixer = params["block_0"]["mixer"]
    dt = np.log1p(np.exp(u @ np.asarray(mixer["rate"]) + np.asarray(mixer["dt_bias"])))
    np.testing.assert_allclose(sizes["block_0"], dt.mean(axis=-1), rtol=1e-3)
    assert surprise.shape == tokens.shape and (surprise[:, 1:] > 0).all() and not surprise[:, 0].any()
    assert (script.read_gains(opened["kalman"], tokens)["block_0"] > 0).all()
    one = np.random.default_rng(1).standard_normal((30, 20))
    assert script.correlate(one, np.exp(one))["low"] == pytest.approx(1)
    apart = script.correlate(one, np.random.default_rng(2).standard_normal((30, 20)))
    assert apart["low"] < 0 < apart["high"] and apart["low"] < apart["rho"] < apart["high"]


def test_operations_fall_with_the_steps_that_are_read():
    script = importlib.import_module("resample")
    counted = []
    for options in script.RULES.values():
        config = fields.build(Model, {"pattern": ("selective",) * 2, "d_state": 16, "resample": options}, "model")
        task = Task("classification", channels=1, classes=3, length=64)
        model = SequenceModel(dataclasses.replace(config, task=task, d_model=16))
        params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 64, 1), np.float32))["params"]
        counted.append(script.count_operations(types.SimpleNamespace(model=model, params=params), 2))
    assert max(counted[1:3]) < 0.4 * counted[0] and max(counted[3:]) < 0.6 * counted[0]


def test_options_of_the_layer_are_compared_seed_by_seed(monkeypatch, tmp_path):
    script = importlib.import_module("selective_options")
    tiny = {
        "data": {"length": 8, "vocab": 4, "tokens": 2, "batch_size": 2, "eval_examples": 4, "eval_batch_size": 4},
        "model": {"pattern": ("selective",), "d_model": 8, "d_state": 4, "mlp_ratio": 0.0},
    }
    monkeypatch.setitem(script.CHANGES, "copying", tiny)
    found = script.train("copying", "both", 1, tmp_path, None, steps=4, eval_every=4)
    assert found["parameters"] > 8 * 8 and 0 <= found["error"][0] <= 1
    better, mixed = (script.compare({"error": error}, {"error": [0.5, 0.5]}) for error in ([0.2, 0.21], [0.4, 0.6]))
    assert script.wins(better) and better["mean"] == pytest.approx(-0.295) and not script.wins(mixed)
    assert not script.wins(script.compare(found, {"error": [2.0]})), "one seed says nothing"


def test_parts_of_the_weather_recipe_are_left_out_one_at_a_time(monkeypatch, tmp_path):
    script = importlib.import_module("weather_ablation")
    trained = []

    def train_seeds(config, folder, seeds, split):
        trained.append(Experiment.from_config_dict(config))
        trained[-1].refuse_unread()
        return [types.SimpleNamespace(params=np.zeros(len(trained)))] * seeds

    monkeypatch.setattr(script, "train_seeds", train_seeds)
    errors = lambda runs, split: [{"mse": len(trained) + n} for n in range(len(runs))]  # noqa: E731
    monkeypatch.setattr(importlib.import_module("seed_runs"), "score_runs", errors)
    found = script.benchmark(2, tmp_path)
    recipe, *others = (dict(fields.flatten(dataclasses.asdict(experiment))) for experiment in trained)
    changed = [{key for key in recipe if recipe[key] != other[key]} for other in others]
    assert changed == [
        {"data.period", "data.course"},
        {"data.course"},
        {"model.channel_embedding"},
        {"model.channel_mixing"},
        {"model.linear_skip"},
        {"model.normalize_scale"},
        {"model.head_context"},
    ]
    assert list(found["parameters"].items()) == list(zip(["the recipe", *script.WITHOUT], range(1, 9), strict=True))
    assert found["ratios"]["parts that serve"]["ours"] == 7
    assert not script.serves(script.compare({"error": [2.0, 1.0]}, {"error": [1.0, 2.0]}))
    assert not script.serves(script.compare({"error": [2.0]}, {"error": [1.0]})), "one seed says nothing"


@pytest.mark.exhaustive
def test_gates_are_compared_on_tasks_of_recall(tmp_path):
    script = importlib.import_module("gate_recall")
    short = {"steps": 202, "eval_every": 202, "checkpoint_every": 202}
    for gate in ("softmax", "kalman_attention"):
        (accuracy,) = script.train("associative recall", gate, 1, tmp_path, **short)
        assert 0 <= accuracy <= 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("gate", ["kalman, decay of the input", "sigmoid"])
def test_bits_of_gates_are_compared_with_those_of_the_exact_filter(tmp_path, gate):
    script = importlib.import_module("gate_complexity")
    found = script.train(gate, 1, tmp_path, steps=101, eval_every=101, checkpoint_every=101)
    assert -1 <= found["correlation"][0] <= 1 and found["mse over that of the exact filter"][0] > 0.9


def test_the_exact_filter_gains_more_in_a_storm():
    script = importlib.import_module("gate_complexity")
    gains = script.filter_gains(np.arange(60)[None] >= 30)[0]
    assert gains[30] > gains[29] and gains[59] == pytest.approx(
        np.log1p(scipy_riccati(synthetic.FAST, script.NOISE) / script.NOISE) / 2
    )


def scipy_riccati(a, noise):
    """The variance before a reading, in the long run."""
    return scipy.linalg.solve_discrete_are(*(np.array([[value]]) for value in (a, 1.0, 1 - a**2, noise)))[0, 0]


def test_what_sparse_gates_do_is_measured(tmp_path):
    script = importlib.import_module("sparsity")
    short = {"penalty_warmup": 2, "eval_every": 4, "checkpoint_every": 4}
    tiny = {
        "data": {"length": 16, "tokens": 2, "eval_examples": 20, "eval_batch_size": 10},
        "model": {"d_model": 8, "d_state": 8, "pattern": ("selective",)},
    }
    found = script.trained(
        tmp_path / "run",
        "validation",
        tiny | {"training": short | {"gate_l1": 0.1}, "optimizer": {"warmup_steps": 1}},
        (4, 6),
    )
    assert (
        found["step"] in (4, 6)
        and 0 < found["dim_eff"] < 8
        and found["compression_factor"] == pytest.approx(8 / found["dim_eff"])
    )
    assert set(found["blocks"]) == {"block_0"} and 0 <= found["blocks"]["block_0"]["auroc"] <= 1


def test_components_are_chosen_by_every_method(monkeypatch):
    script = importlib.import_module("pruning")
    monkeypatch.setattr(script, "SHARES", (8,))
    model = SequenceModel(Model(pattern=("selective",) * 2, d_model=4, d_state=8, task=Task("language", vocab=4)))
    rng = np.random.default_rng(0)

    def cover(split, size):
        for _ in range({"validation": 3, "test": 4}[split]):
            tokens = rng.integers(0, 4, (size, 7))
            yield {
                "inputs": tokens,
                "targets": tokens,
                "weights": np.ones((size, 7), np.float32),
                "valid": np.ones((size, 7), bool),
            }

    dataset = Dataset(model.config.task, lambda seed, numbers: {}, cover, {}, lambda split: {}, is_stream=True)
    experiment = Experiment(name="tiny", data=Data(batch_size=4), model=model.config)
    params = jax.jit(model.init)(jax.random.key(0), jax.numpy.zeros((1, 2), int))["params"]
    found = script.pruned(Run(FOLDER, experiment, model, params, 1, dataset, []), 8, 2)
    assert found["calibration"]["sequences"] == 8 and found["test"] == {"batches": 2, "of": 4}
    for shares in found["methods"].values():
        assert (
            shares["1/8"]["blocks"] == [1, 1]
            and shares["1/8"]["state_bytes"] == 2 * 4
            and shares["1/8"]["metrics"]["nats"] > 0
        )
    means = script.summary([found, found])
    nats = {name: shares["1/8"]["metrics"]["nats"] for name, shares in found["methods"].items()}
    for name in ("information", "loss"):
        assert means["minus_magnitude"]["tiny"][name]["1/8"]["low"] == pytest.approx(nats[name] - nats["magnitude"])


def test_compressed_runs_are_held_against_controls_of_the_same_seed():
    script = importlib.import_module("compress")

    def run(seed, before, after):
        one = {
            "task": "tiny",
            "scope": "all",
            "seed": seed,
            "metric": "accuracy",
            "reference": {"bytes": 64, "test": {"accuracy": before}},
        }
        return one | {"compressed": {"bytes": 4, "test": {"accuracy": after}, "lost": 1 - after / before}}

    controls = [{"task": "tiny", "seed": seed, "bytes": {"all": 4}, "test": {"accuracy": 0.4}} for seed in (1, 0)]
    found = script.summary([run(1, 0.8, 0.6), run(0, 0.8, 0.8)], controls)["tiny, all"]
    assert found["lost"] == pytest.approx([0.0, 0.25]) and found["mean_lost"]["mean"] == pytest.approx(0.125)
    assert found["better_than_control"]["mean"] == pytest.approx(0.75)  # twice and one and a half times 0.4
    assert script.summary([run(0, 0.8, 0.8)], [])["tiny, all"]["better_than_control"] is None


def test_intervals_are_students():
    script = importlib.import_module("seed_runs")
    found = script.interval(np.array([1.0, 2.0, 3.0]))
    # t of 2 degrees 4.3027, deviation 1
    assert (found["low"], found["high"]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert script.interval(np.array([1.0])) == {"mean": 1.0, "low": None, "high": None, "runs": 1}


def test_the_gathered_step_is_timed_beside_the_dense_one():
    script = importlib.import_module("gathered_step")
    cases = script.compare(96, 4, "dense", 1, (0.1, 0.5))
    assert [case["open"] for case in cases] == [0.1, 0.5] and all(
        value > 0 for case in cases for value in case["dense_over_gathered"].values()
    )
    slower = [
        case | {"dense_over_gathered": {"gates given": ratio}} for case, ratio in zip(cases, (2.0, 0.5), strict=True)
    ]
    assert script.pays_to(slower, 96, 4, "dense")["open_at_most"] == {"gates given": 0.1}
    assert 0 < script.drift(64, 4, counts=(50,))["after 50 steps"] < 1e-5


def test_traces_of_trained_gates_are_measured():
    script = importlib.import_module("traces")
    found = script.measured("top_k", 0, steps=10)
    for block in found["blocks"].values():
        assert block["exact"] == 1 and block["open"] == block["dim_eff"] == pytest.approx(6 / 64, abs=1e-4)
        assert block["changed"] <= block["open"] and block["changed"] < block["bytes"] <= block["open"] + script.ALLOWED


def test_decoding_steps_are_timed_at_a_position():
    script = importlib.import_module("decoding")
    assert (
        script.slope([7 * position for position in script.POSITIONS]) == 1
        and script.slope([5] * len(script.POSITIONS)) == 0
    )
    times = script.timed({"gru": (4,), "attention": (4, 9)}, 2)
    assert set(times) == {"gru 4", "attention 4", "attention 9"} and all(
        found["median"] >= found["min"] > 0 for found in times.values()
    )
    assert script.overtaken("local_attention") == 129  # a step more than it holds


def test_steps_of_several_runs_are_timed_beside_steps_alone(monkeypatch):
    script = importlib.import_module("seeds")
    monkeypatch.setattr(script, "RUNS", 2)
    monkeypatch.setattr(script.measure, "compiled", jax.eval_shape)  # traced alone
    experiment, task = script.forecasting()
    assert (experiment.data.length, experiment.model.linear_skip, experiment.model.stride) == (96, 96, 24)
    small = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, batch_size=2))
    found = script.compare(small, task, 2)
    assert all(
        found[name][key]["median"] > 0
        for name in ("milliseconds", "milliseconds_to_compile")
        for key in ("together", "alone")
    )
    assert found["step_alone_over_together"] > 0 and found["compile_alone_over_together"] > 0
    assert script.language()[1].length == 128


def test_pieces_are_compared_with_the_whole(monkeypatch):
    script = importlib.import_module("pieces")
    for name, value in {"WIDTH": 8, "BLOCKS": 1, "PIECES": (16,)}.items():
        monkeypatch.setattr(script, name, value)
    found = script.compare("lstm", 64, 2)
    assert found["16"]["over_whole"]["bytes"] == pytest.approx(
        found["16"]["temporary_bytes"] / found["whole"]["temporary_bytes"], abs=1e-3
    )
    assert found["whole"]["over_whole"] == {"bytes": 1, "seconds": 1} and found["16"]["seconds"] > 0
    assert script.difference("lstm", 64, 16) < 1e-5


def test_programs_for_chips_are_described(monkeypatch):
    """Those of a TPU are compiled where its compiler is installed, by tests/test_lowering.py."""
    script, steps = importlib.import_module("tpu"), importlib.import_module("abstract_steps")
    monkeypatch.setattr(script, "devices", lambda chips: jax.devices()[: chips.count])
    alone, shared = (script.describe(steps.load("smoke"), script.Chips("", count, 10**8), 1) for count in (1, 3))
    assert (alone["rows"], shared["rows"]) == (8, 9) and alone["collectives"] == {}
    assert set(shared["collectives"]) == {"all-reduce"} and shared["share_of_memory"] > 0
    found = script.ratios(
        {"smoke": {**dict.fromkeys(script.TARGETS, alone), "v6e": {"rows": 8, "refused": "too large"}}}, planned=5
    )
    assert found["programs that compile"] == {"found": 3, "at_least": 5}
    assert (
        found["largest share of a chip's memory, v5e"]["found"]
        < 1
        < found["largest share of a chip's memory, v6e"]["found"]
    )


def test_shapes_that_stand_for_data_are_those_of_data():
    """Of the sources that need no file, and in what the code of the others fixes."""
    steps = importlib.import_module("abstract_steps")
    for recipe in steps.RECIPES:
        experiment = steps.load(recipe)
        task = steps.task_of(experiment.data)
        if experiment.data.source not in steps.TASKS:
            batch = next(load(experiment.data).train(4, seed=0))
            shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
            assert shapes == {name: (value.shape, value.dtype) for name, value in steps.batch_of(task, 4).items()}
        assert task.kind == SOURCES[experiment.data.source] and task.length > 0


def test_devices_that_share_a_sequence_are_counted(monkeypatch):
    script = importlib.import_module("mesh")
    for name, value in {"DEVICES": 4, "LENGTH": 64, "WIDTH": 8, "BLOCKS": 1}.items():
        monkeypatch.setattr(script, name, value)
    found = script.on_mesh(4, 0, shard_parameters=True)
    assert 4 * found["parameter_bytes"] < 1.2 * script.alone(1, 0)["parameter_bytes"]
    assert found["collectives"]["all-gather"] > 0 and found["collectives"]["all-to-all"] == 0
    assert script.of_scan("linear_scan")["all-gather"] == 2


def test_what_a_process_used_is_read_from_the_kernel(monkeypatch):
    script = importlib.import_module("allocator")
    used = {
        way: [{"seconds": seconds, "cpu_seconds": 2.0, "peak_bytes": 3.0}]
        for way, seconds in zip(script.ENVIRONMENTS, (1.0, 2.0, 4.0), strict=True)
    }
    monkeypatch.setattr(script, "use", lambda name, rounds, data: used)
    ratios = script.benchmark(1)["ratios"]
    assert ratios["quickstart, seconds"] == {"kept_over_as_it_was": 0.5, "at_most": 0.75}
    assert ratios["quickstart, seconds of two virtual devices"] == {"two_over_one": 4}
    usage = script.summarize(script.resource.getrusage(script.resource.RUSAGE_SELF))
    assert usage["peak_bytes"] > 2**20 and usage["cpu_seconds"] >= usage["system_seconds"] > 0


def test_tables_of_every_size_are_trained_on_and_measured(tmp_path, monkeypatch):
    script = importlib.import_module("large_table")
    rows = script.write_table(tmp_path / "t.csv", 10**5, 3)
    head, first, *_, last = (tmp_path / "t.csv").read_text().splitlines()
    assert head == "date,c0,c1,c2" and first.startswith("1900-01-01T00:00,") and rows % script.DISTINCT == 0
    assert last.split(",")[0] == str(np.datetime64("1900-01-01T00:00") + rows - 1)
    peaks = iter((2.0**28, 2.0**29))
    monkeypatch.setattr(script, "train", lambda size, columns, scratch: {"peak_bytes": next(peaks)})
    ratios = script.benchmark(1)["ratios"]
    assert ratios["peak memory over 1 GB"] == {"measured": 0.5, "at_most": 1}
    assert ratios["peak memory, 4 GB over .3 GB of text"] == {"measured": 2.0, "at_most": 1.1}


@pytest.mark.exhaustive
def test_a_table_of_300_megabytes_trains_in_less_than_a_gigabyte(tmp_path):
    script = importlib.import_module("large_table")
    used = script.train(script.SIZES[0], script.COLUMNS, tmp_path)
    assert used["bytes"] >= 3e8 and 0 < used["peak_bytes"] < script.MOST


def test_bytes_and_seconds_are_those_of_the_length(monkeypatch):
    script = importlib.import_module("scaling")
    for name, value in {
        "PARAMETERS": 40_000,
        "WIDTH": 16,
        "BLOCKS": 1,
        "LEAST": 64,
        "TIMED": {"training": (16,), "forward": (16,)},
    }.items():
        monkeypatch.setattr(script, name, value)
    found = script.benchmark(1, ("tcn", "attention"), (16, 64))
    for model in found["models"].values():
        assert (
            abs(model["parameters"] / 40_000 - 1) < 0.01
            and model["training_peak_bytes"][1] > model["training_peak_bytes"][0] > model["forward_peak_bytes"][0]
        )
        assert all(
            model[f"{what}_seconds"][0] > 0 and model[f"{what}_seconds"][1] is None for what in ("training", "forward")
        )
    assert found["crossovers"]["state_bytes"] == {"tcn": 16, "attention": None}
    assert found["pieces"]["models"]["attention"]["pieces"] is None


def test_bytes_of_pieces_are_added_to_the_record(monkeypatch, tmp_path):
    script = importlib.import_module("scaling")
    changes = {"PARAMETERS": 40_000, "WIDTH": 16, "BLOCKS": 1, "LEAST": 64, "PIECE": 32}
    for name, value in changes.items():
        monkeypatch.setattr(script, name, value)
    monkeypatch.setattr(script.measure, "RECORDS", tmp_path)
    (tmp_path / "scaling.json").write_text(json.dumps({"command": "timed", "ratios": {}}))
    found = script.benchmark(0, ("gru", "attention"), (16, 64, 512))
    assert found["command"] == "timed" and found["pieces"]["lengths"] == [64, 512]
    gru, attention = (found["pieces"]["models"][name] for name in ("gru", "attention"))
    assert attention["pieces"] is None
    for whole, cut in zip(gru["whole"]["temporary_bytes"], gru["pieces"]["temporary_bytes"], strict=True):
        assert cut < whole
    assert gru["pieces"]["temporary_bytes"][1] < 2 * gru["pieces"]["temporary_bytes"][0]


def test_recurrent_peaks_are_held_against_what_is_claimed():
    script = importlib.import_module("scaling")
    found = {
        name: {"training_peak_bytes": [9, bytes_]} for name, bytes_ in (("selective", 30), ("lstm", 60), ("gru", 40))
    }
    ratios = script.claimed(found, {"selective": 10, "lstm": 20, "gru": 40}, (1_024, 4_096))
    assert {name: ratio["found"] for name, ratio in ratios.items()} == {
        "training peak at 4096, selective over lstm": 0.5,
        "training peak at 4096 with remat, selective over lstm": 0.5,
        "training peak at 4096, selective over gru": 0.75,
        "training peak at 4096 with remat, selective over gru": 0.25,
    }


def test_attention_has_overtaken_where_it_needs_more_from_there_on():
    script = importlib.import_module("scaling")
    found = {"s5": {"bytes": [3, 3, 3, None]}, "attention": {"bytes": [4, 2, 5, 9]}}
    assert script.overtaken(found, "bytes", "s5", (1, 2, 4, 8)) == 4
    assert script.overtaken(found | {"s5": {"bytes": [9, 9, 9, 9]}}, "bytes", "s5", (1, 2, 4, 8)) is None


@pytest.mark.exhaustive
def test_two_of_eight_blocks_are_removed_by_every_choice(tmp_path, monkeypatch):
    script = importlib.import_module("removal")
    config = script.quickstart.get_config()
    config.optimizer.warmup_steps, config.data.length, config.data.batch_size = 1, 24, 4
    monkeypatch.setattr(script.quickstart, "get_config", lambda: config)
    for name, size in {"SEEDS": 1, "CALIBRATION": 1, "WIDTHS": (8,)}.items():
        monkeypatch.setattr(script, name, size)
    monkeypatch.setattr(script, "TEST", 1)
    monkeypatch.setattr(script, "TUNED", 1)
    found = script.benchmark(1, tmp_path, steps=2, eval_every=2, checkpoint_every=2, log_every=1)
    (seed,) = found["runs"]
    assert set(seed["blocks"]) == {"loss", *script.ONE_PASS, "all pairs", "a pair at random"}
    assert seed["blocks"]["loss"]["evaluations"] == 15 and seed["blocks"]["information"]["evaluations"] == 1
    assert set(seed["tuned"]) == {"whole", "loss", "a pair at random"}
    (times,) = found["decoding"].values()
    assert set(times["fall over the share of blocks that went"]) == {"2", "4", "6"}


@pytest.mark.exhaustive
def test_short_sequences_come_before_long_ones_and_are_as_many_tokens(tmp_path, monkeypatch):
    script = importlib.import_module("curriculum")
    for name, size in {"LENGTH": 8, "LONGER": 16, "SHORT": 2, "LONG": 2, "ROWS": 4, "FEWER": 2}.items():
        monkeypatch.setattr(script, name, size)
    assert script.count_scratch() == 4
    found = script.benchmark(1, tmp_path, log_every=1)
    (seed,) = found["runs"]
    assert set(seed) == {"at 48 steps", "short sequences first", "from scratch"}
    assert (tmp_path / "0" / "long" / "config.json").exists()


def test_a_stream_of_a_benchmark_is_scored_once_its_truth_is_there():
    script = importlib.import_module("stream_ettm1")
    model, params = importlib.import_module("stream").build(4)
    run = types.SimpleNamespace(model=model, params=params)
    rows = np.random.default_rng(0).normal(size=(40, 1)).astype(np.float32)
    still, learnt = (
        script.replay(run, script.Streaming(rate=rate, detector="none"), rows[:10], rows[10:]) for rate in (0.0, 0.1)
    )
    assert np.isnan(still[0]) and np.isfinite(still[1:]).all()
    assert still[1] == learnt[1] and still[-1] != learnt[-1]


@pytest.mark.exhaustive
def test_methods_are_held_against_known_steps(tmp_path, monkeypatch):
    script = importlib.import_module("explain")
    small = {name: (get, data | {"length": 16, "tokens": 2}, 2) for name, (get, data, _) in script.TASKS.items()}
    for name, value in {
        "TASKS": small,
        "MIXERS": ("selective",),
        "SEQUENCES": 64,
        "METHODS": script.METHODS[:3],
    }.items():
        monkeypatch.setattr(script, name, value)
    found = script.benchmark(2, None, tmp_path)
    assert set(found["known steps"]) == {"selective_copying, selective", "induction_heads, selective"}
    assert all(len(seeds) == 2 and set(seeds[0]["auroc"]) >= {"lrp"} for seeds in found["known steps"].values())
    assert found["areas"] == {} and found["lags"] == {}
