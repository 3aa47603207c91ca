"""Quantiles of forecasts: their loss and what minimises it, their order, and all that reads a forecast of them."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import runs
from selssm_jax import data, intervals
from selssm_jax.analysis import examples
from selssm_jax.analysis.gates import Sequence
from selssm_jax.config import Data, Task
from selssm_jax.errors import InputError
from selssm_jax.layers.output_heads import ForecastHead
from selssm_jax.model import SequenceModel
from selssm_jax.predict import load
from selssm_jax.prediction_files import load_calibrated, predict_files
from selssm_jax.report import sections
from selssm_jax.report.example_section import show
from selssm_jax.runs import open_run
from selssm_jax.serving.server import _as_json
from selssm_jax.tasks import kind_of
from selssm_jax.tasks.forecasting import QuantileForecasting
from selssm_jax.testing import check_task
from selssm_jax.training.checkpoint import Workdir
from small_runs import write_untrained

LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
KIND = QuantileForecasting(LEVELS)
TASK = dataclasses.replace(runs.TASKS["forecasting"], quantiles=LEVELS)


def lose(outputs, targets, weights):
    """The pinball loss, and the mse of the median."""
    inputs = jnp.zeros((len(targets), 1, targets.shape[2] * (1 + (weights.ndim == 3))))
    batch = {"inputs": inputs, "targets": jnp.asarray(targets), "weights": jnp.asarray(weights)}
    sums = KIND.score(jnp.asarray(outputs), batch)
    return tuple(float(sums[name][0] / sums[name][1]) for name in ("pinball", "mse"))


def test_the_loss_is_its_definition_and_that_of_one_value_for_all_is_the_absolute_error():
    rng = np.random.default_rng(0)
    outputs, targets = rng.standard_normal((3, 4, 2, 5)), rng.standard_normal((3, 4, 2))
    weights, each = np.array([1.0, 2.0, 0.0]), np.zeros((3, 4, 2))
    for place, level in enumerate(LEVELS):
        error = targets - outputs[..., place]
        each += 2 * np.where(error > 0, level * error, (level - 1) * error) / len(LEVELS)
    found, squares = lose(outputs, targets, weights)
    assert found == pytest.approx(np.average(each.mean(axis=(1, 2)), weights=weights), rel=1e-5)
    error = (outputs[..., 2] - targets) ** 2
    assert squares == pytest.approx(np.average(error.mean(axis=(1, 2)), weights=weights), rel=1e-5)
    same = np.repeat(outputs[..., :1], len(LEVELS), axis=-1)
    absolute = np.abs(same[..., 0] - targets).mean(axis=(1, 2))
    assert lose(same, targets, weights)[0] == pytest.approx(np.average(absolute, weights=weights), rel=1e-5)


def test_its_minimiser_is_the_quantiles_and_order_never_adds_to_it():
    rng = np.random.default_rng(0)
    targets = rng.exponential(size=(2001, 1, 1)).astype(np.float32)
    truth, weights = np.quantile(targets, LEVELS).astype(np.float32), np.ones(2001, np.float32)
    least, _ = lose(np.broadcast_to(truth, (2001, 1, 1, 5)), targets, weights)
    for place in range(5):
        for away in (-0.05, 0.05):
            moved = truth + away * (np.arange(5) == place)
            assert lose(np.broadcast_to(moved, (2001, 1, 1, 5)), targets, weights)[0] > least
    crossed, targets = jnp.asarray(rng.standard_normal((50, 4, 2, 5))), jnp.asarray(rng.standard_normal((50, 4, 2)))
    each = lambda outputs: KIND.errors(outputs, {"targets": targets, "weights": jnp.ones(50)})["pinball"]  # noqa: E731
    assert (each(jnp.sort(crossed)) <= each(crossed) + 1e-6).all()


def test_missing_values_have_no_loss():
    rng = np.random.default_rng(0)
    outputs, targets = rng.standard_normal((3, 4, 2, 5)), rng.standard_normal((3, 4, 2))
    there = rng.random((3, 4, 2)) < 0.6
    weights = there / 8.0
    found = lose(np.where(there[..., None], outputs, np.nan), targets, weights)
    assert found == pytest.approx(lose(outputs, np.where(there, targets, 9.0), weights), rel=1e-6)
    plain = [
        lose(outputs[place][None, None, None], targets[place][None, None, None], np.ones(1))[0]
        for place in zip(*np.nonzero(there), strict=True)
    ]
    assert found[0] == pytest.approx(np.mean(plain), rel=1e-5)


@pytest.mark.parametrize("apart", [False, True])
def test_quantiles_rise_and_go_with_the_scale_of_the_window(apart):
    config = runs.model(pattern=("rnn",), d_model=8, d_state=4, linear_skip=5, channel_independent=apart).of_task(TASK)
    model = SequenceModel(config)
    inputs = jnp.asarray(np.random.default_rng(0).standard_normal((3, 12, 2)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), inputs)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size).reshape(leaf.shape)), params)
    read = jax.jit(lambda inputs: model.apply(params, inputs)[0])
    outputs = read(inputs)
    assert outputs.shape == (3, 4, 2, 5) and (np.diff(outputs) >= 0).all() and np.ptp(outputs, axis=-1).min() > 1e-3
    np.testing.assert_allclose(read(10 * inputs + 3), 10 * outputs + 3, rtol=1e-3, atol=1e-3)
    if apart:
        np.testing.assert_allclose(read(inputs[..., ::-1]), outputs[:, :, ::-1], rtol=1e-5, atol=1e-5)


def test_what_is_known_ahead_moves_each_quantile_by_itself():
    head = ForecastHead(4, 2, 8, known=3, quantiles=5)
    state, x = head.initial_state(1), jnp.zeros((1, 6, 8))
    given = jnp.ones((1, 6, 5))
    params = head.init(jax.random.key(0), x, given, state)
    assert params["params"]["known_kernel"].shape == (3, 10)
    spread = jnp.zeros((3, 2, 5)).at[:, 1].set(jnp.arange(5.0)).reshape(3, 10)
    y, _ = head.apply({"params": {**params["params"], "known_kernel": spread}}, x, given, state)
    np.testing.assert_allclose(y[0, -1], [[0] * 5, [0, 3, 6, 9, 12]], atol=1e-6)


def test_the_task_obeys_the_laws_of_tasks():
    check_task(data.load(Data(source="linear_gaussian", length=12, horizon=3, lag=2, quantiles=LEVELS)))


def test_drawn_targets_have_the_law_of_the_quantiles():
    """The gradient is 0 on average, and M times its covariance is that of the share of targets below each."""
    outputs = jnp.asarray([-2.0, -1.0, 0.0, 0.5, 3.0]).reshape(1, 1, 1, 5)
    targets, factors = KIND.drawn_targets(outputs, 20_000, jax.random.key(0))
    below = np.asarray(targets) < np.asarray(outputs)[0]
    np.testing.assert_allclose(below.reshape(-1, 5).mean(axis=0), LEVELS, atol=0.01)
    u = np.asarray(factors)[:, None] * 2 / 5 * (below.reshape(-1, 5) - LEVELS)
    levels = np.asarray(LEVELS)
    covariance = np.minimum(levels, levels[:, None]) - levels * levels[:, None]
    np.testing.assert_allclose(u.T @ u, 4 / 25 * covariance, atol=2e-3)


def test_sizes_count_each_quantile():
    few, many = (runs.model(d_model=8).of_task(dataclasses.replace(TASK, quantiles=each)) for each in ((), LEVELS))
    kind = kind_of(many.task)
    assert kind.numbers(many, 12) == 5 * kind.numbers(few, 12) == 5 * 4 * 2
    assert kind.weights(many) - kind.weights(few) == 4 * 8 * 4 * 2


def test_a_task_that_a_run_keeps_is_that_task():
    kept = dataclasses.asdict(TASK) | {"quantiles": list(LEVELS), "gone": 1}
    assert Task.recall(kept) == TASK and hash(Task.recall(kept)) == hash(TASK)
    assert Task.recall({"kind": "forecasting", "horizon": 4}) == Task("forecasting", horizon=4)


def test_intervals_of_quantiles_are_as_wide_as_what_comes_is_uncertain():
    """Errors of deviation .2 or 2, of a window that looks the same: half of them each. Quantiles that are too narrow
    by a tenth of its scale are calibrated to 80 and 95 % of both; intervals of one width for all cover nearly all of
    one half, and too few of the other.
    """
    rng = np.random.default_rng(0)

    def draw(count):
        spread = np.where(rng.random((count, 1, 1)) < 0.5, 0.2, 2.0)
        middle = rng.standard_normal((count, 1, 1))
        values = norm.ppf(LEVELS)
        quantiles = {level: middle + spread * z - 0.1 * np.sign(z) for level, z in zip(LEVELS, values, strict=True)}
        window = np.tile([[-1.0], [1.0]], (count, 1, 1))
        return window, middle, quantiles, middle + spread * rng.standard_normal((count, 1, 1)), spread[:, 0, 0] > 1

    def cover(known):
        window, middle, quantiles, values, _ = draw(4000)
        spread = intervals.measure_spread(middle, quantiles if known else {}, window, intervals.LEVELS)
        widths = intervals.find_widths(spread.score(values - middle))
        window, middle, quantiles, values, wide = draw(4000)
        ends = intervals.Intervals(1, widths).around(middle, window, quantiles if known else {})
        inside = {level: ((low <= values) & (values <= high))[:, 0, 0] for level, (low, high) in ends.items()}
        return {level: (now[~wide].mean(), now[wide].mean()) for level, now in inside.items()}, widths

    (known, widths), (unknown, _) = cover(known=True), cover(known=False)
    for level in intervals.LEVELS:
        room = 5 * np.sqrt(level * (1 - level) / 2000)
        np.testing.assert_allclose(known[level], level, atol=room)
        np.testing.assert_allclose(widths[level], 0.1, atol=0.03)
        assert np.mean(unknown[level]) == pytest.approx(level, abs=room) and unknown[level][0] > 0.99
        assert unknown[level][1] < level - 0.03


def test_a_level_takes_the_nearest_quantiles_and_an_interval_holds_the_median():
    assert intervals.pair_of(LEVELS, 0.8) == (0.1, 0.9) and intervals.pair_of(LEVELS, 0.95) == (0.025, 0.975)
    assert intervals.pair_of((0.1, 0.5, 0.9), 0.95) == (0.1, 0.9)
    window, middle = np.array([[-2.0], [2.0]]), np.zeros((3, 1))
    quantiles = {0.1: -np.array([[0.0], [1.0], [2.0]]), 0.5: middle, 0.9: np.array([[2.0], [0.0], [1.0]])}
    spread = intervals.measure_spread(middle, quantiles, window, (0.8,))
    np.testing.assert_allclose(spread.score(np.array([[-1.0], [-3.0], [3.0]]))[0, :, 0], [0.5, 1, 1])
    sides = spread.reach({0.8: np.full((3, 1), -0.75)})[0.8]
    np.testing.assert_allclose(sides[..., 0], [[0, 0, 0.5], [0.5, 0, 0]])
    np.testing.assert_allclose(intervals.measure_errors(np.array([[0.0], [0.0], [-1.0]]), sides), [[0], [0], [2]])
    alone = intervals.measure_spread(middle, {0.5: middle}, window, (0.8, 0.95))  # the median: the scale of the window
    np.testing.assert_array_equal(alone.reach({0.8: np.ones((3, 1))})[0.8], np.full((2, 3, 1), 2.0))


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    """A run whose parameters are as drawn, with calibrated intervals."""
    folder = tmp_path_factory.mktemp("quantiles") / "run"
    write_untrained(folder, dataclasses.replace(files["csv"], length=8, horizon=2, quantiles=LEVELS))
    load_calibrated(folder)
    return folder


@pytest.mark.always
def test_predictions_are_the_median_in_intervals_that_are_not_symmetrical(folder, files):
    trained = load(folder)
    rows = np.random.default_rng(0).standard_normal((2, 8, 2))
    forecast = trained.predict(rows)
    np.testing.assert_array_equal(forecast.quantiles[0.5], forecast.values)
    assert list(forecast.quantiles) == list(LEVELS) and (np.diff([*forecast.quantiles.values()], axis=0) >= 0).all()
    (low, high), (lowest, highest) = (forecast.intervals[level] for level in intervals.LEVELS)
    assert (lowest <= low).all() and (low <= forecast.values).all() and (high <= highest).all()
    below, above = forecast.values - low, high - forecast.values
    assert np.abs(below / above - 1).max() > 0.01
    wider = trained.predict(rows[0]).scale({0.8: 3.0, 0.95: 0.1})
    np.testing.assert_allclose(wider.values - wider.intervals[0.95][0], 3 * below[0], rtol=1e-6)
    json = _as_json(trained.predict(rows[0]))
    np.testing.assert_allclose(json["values"], forecast.values[0], rtol=1e-5)
    header, first, _ = predict_files(trained, [files["csv"].file])
    ends = [f"{end} {level}" for level in ("80%", "95%") for end in ("from", "to")]
    assert header.split(",")[3:] == [f"{channel} {end}" for channel in ("sine", "cosine") for end in ends]
    sine, _, low, high, lowest, highest = map(float, first.split(",")[1:7])
    assert lowest <= low <= sine <= high <= highest
    assert set(trained.score(rows, np.zeros((2, 2, 2)))) == {"mse", "mae"}


def test_coverage_is_told_of_the_quantiles_as_they_are_too(folder):
    run = open_run(folder)
    assert run.dataset.task.quantiles == LEVELS and load(folder).dataset.task == run.dataset.task
    shares = intervals.cover(run, intervals.find(run), "validation")
    outputs, truth = [], []
    for batch in run.dataset.evaluate("validation", 4):
        seen = batch["weights"] > 0
        outputs.append(run.model.apply({"params": run.params}, jnp.asarray(batch["inputs"]))[0][seen])
        truth.append(batch["targets"][seen])
    outputs, truth = np.concatenate(outputs), np.concatenate(truth)
    for level, low, high in ((0.8, 1, 3), (0.95, 0, 4)):
        raw, found = (outputs[..., low] <= truth) & (truth <= outputs[..., high]), shares[str(level)]
        assert found["quantiles"]["coverage"] == pytest.approx(raw.mean(), abs=1e-6)
        assert found["quantiles"]["width"] == pytest.approx((outputs[..., high] - outputs[..., low]).mean(), rel=1e-5)
        assert found["coverage"] >= level
        low, high = outputs[..., low], outputs[..., high]
        outside = np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
        score = (high - low + 2 / (1 - level) * outside).mean()
        assert found["quantiles"]["score"] == pytest.approx(score, rel=1e-5)
    tables = sections._intervals({"intervals": shares})
    assert "own quantiles before calibration" in tables[-1].caption and len(tables[-1].rows) == 2


def test_an_example_is_the_median_in_a_fan(folder, tmp_path):
    run = open_run(folder)
    batch = {name: np.asarray(value[0]) for name, value in next(run.dataset.evaluate("test", 4)).items()}
    outputs = np.asarray(run.model.apply({"params": run.params}, jnp.asarray(batch["inputs"])[None])[0][0])
    (shown,) = examples.show(run, [Sequence(batch, outputs, {})])
    np.testing.assert_array_equal(shown.guess, shown.quantiles[0.5])
    assert list(shown.quantiles) == list(LEVELS) and "median" in shown.words
    assert [block.path.name for block in show([shown], tmp_path)] == ["forecast.png"]


def test_a_run_goes_on_with_its_quantiles_alone(folder):
    run = open_run(folder)
    for quantiles in (LEVELS, LEVELS[1:-1]):
        dataset = dataclasses.replace(run.dataset, task=dataclasses.replace(run.dataset.task, quantiles=quantiles))
        workdir = Workdir(str(folder), run.experiment)
        with (
            contextlib.nullcontext() if quantiles == LEVELS else pytest.raises(InputError, match=r"changed .*\(task\)")
        ):
            workdir.describe(dataset.metadata())
        workdir.close()


def test_errors_by_channel_are_those_of_the_median(folder):
    run = open_run(folder)
    batch = jax.tree.map(jnp.asarray, next(run.dataset.evaluate("test", 4)))
    outputs = run.model.apply({"params": run.params}, batch["inputs"])[0]
    kind, plain = kind_of(run.dataset.task), kind_of(Task("forecasting"))
    one, other = (
        each.error_sums(run.model.config, values, batch) for each, values in ((kind, outputs), (plain, outputs[..., 2]))
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)
