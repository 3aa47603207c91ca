"""A cycle that a forecast learns, against arrays taken off and put back by hand; where a row is in it, for every split
and for new rows; and vectors that tell apart channels which share their weights.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax import data
from selssm_jax.compression import streaming
from selssm_jax.config import Data, Model, Task
from selssm_jax.data import forecasting
from selssm_jax.errors import InputError
from selssm_jax.layers.encoders import FrameEncoder, LearnedCycle
from selssm_jax.model import SequenceModel
from selssm_jax.predict import load
from selssm_jax.prediction_files import predict_files
from selssm_jax.testing import check_task
from selssm_jax.training import optimizer, pieces
from small_runs import write_untrained

PERIOD, LENGTH, HORIZON, CHANNELS, ROWS = 5, 12, 4, 2, 3
TASK = Task("forecasting", channels=CHANNELS, length=LENGTH, horizon=HORIZON, period=PERIOD)
SMALL = {"pattern": ("selective",), "d_model": 8, "d_state": 4}
RNG = np.random.default_rng(0)
CYCLE = RNG.standard_normal((PERIOD, CHANNELS)).astype(np.float32)
FORMS = {
    "together": {"linear_skip": 6, "head_context": 3},
    "apart": {"linear_skip": 6, "frame": 4, "stride": 2, "channel_independent": True, "channel_embedding": True},
    "mixed": {"channel_independent": True, "channel_mixing": True, "frame": 4, "stride": 2},
    "level alone": {"normalize_scale": False, "channel_independent": True},
    "as it is": {"normalize": False},
}
FIRST = np.array([0, 3, 9])  # rows of the first steps, which lie anywhere in the cycle


def build(name, task=TASK):
    """(The model, its parameters with a cycle that is not 0, the model without a cycle and its parameters)."""
    model = SequenceModel(Model(**SMALL, **FORMS[name], task=task))
    params = model.init(jax.random.key(0), jnp.zeros((1, LENGTH, task.width)))["params"]
    np.testing.assert_array_equal(params["cycle"]["cycle"], 0)
    skips = {
        key: jax.random.normal(jax.random.key(2), leaf.shape) for key, leaf in params["head"].items() if key != "out"
    }
    params = {**params, "head": {**params["head"], **skips}, "cycle": {"cycle": jnp.asarray(CYCLE)}}
    plain = dataclasses.replace(model.config, normalize=False, task=dataclasses.replace(task, period=0))
    return model, params, SequenceModel(plain), {name: leaf for name, leaf in params.items() if name != "cycle"}


def with_places(values, first=FIRST):
    """Values (B, T, C), and behind them the place of each row in the cycle."""
    places = (np.asarray(first)[:, None] + np.arange(values.shape[1])) % PERIOD
    return jnp.asarray(np.concatenate([values, places[..., None]], axis=-1), jnp.float32)


def draw(width=CHANNELS):
    return RNG.standard_normal((ROWS, LENGTH, width)).astype(np.float32) * 3 + 1


def forecast_by_hand(name, plain, params, values, cycle):
    """The cycle taken off at the scale of the window and put back before that is undone."""
    options, rows = FORMS[name], FIRST[:, None] + np.arange(LENGTH + HORIZON)
    mean, deviation = jnp.zeros((ROWS, 1, CHANNELS)), jnp.ones((ROWS, 1, CHANNELS))
    if options.get("normalize", True):
        mean = values.mean(axis=1, keepdims=True)
        if options.get("normalize_scale", True):
            deviation = jnp.sqrt(jnp.square(values - mean).mean(axis=1, keepdims=True) + 1e-5)
    course = jnp.einsum("btp,pc->btc", jax.nn.one_hot(rows % PERIOD, PERIOD), cycle)
    outputs, _ = plain.apply({"params": params}, (values - mean) / deviation - course[:, :LENGTH])
    return (outputs + course[:, LENGTH:]) * deviation + mean


@pytest.mark.parametrize("name", FORMS)
def test_a_cycle_is_taken_off_inside_the_normalisation_and_put_back_there(name):
    model, params, plain, rest = build(name)
    values, wanted = draw(), RNG.standard_normal((ROWS, HORIZON, CHANNELS))

    def compare(outputs):
        return jnp.square(outputs - wanted).sum(), outputs

    by_hand = jax.value_and_grad(lambda q: compare(forecast_by_hand(name, plain, rest, values, q)), has_aux=True)
    itself = jax.value_and_grad(
        lambda q: compare(model.apply({"params": params | {"cycle": {"cycle": q}}}, with_places(values))[0]),
        has_aux=True,
    )
    ((_, one), slope), ((_, other), known) = itself(jnp.asarray(CYCLE)), by_hand(jnp.asarray(CYCLE))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slope, known, rtol=1e-3, atol=1e-3)
    assert np.abs(known).min() > 1e-3  # every place of every channel is read


@pytest.mark.parametrize("name", FORMS)
def test_a_cycle_that_is_0_changes_nothing(name):
    model, params, plain, rest = build(name)
    params = params | {"cycle": {"cycle": jnp.zeros_like(CYCLE)}}
    plain = SequenceModel(dataclasses.replace(model.config, task=plain.config.task))
    values = draw()
    np.testing.assert_array_equal(
        model.apply({"params": params}, with_places(values))[0], plain.apply({"params": rest}, jnp.asarray(values))[0]
    )


def test_places_wrap_round_and_a_row_that_is_not_there_has_no_course():
    cycle = LearnedCycle(PERIOD, CHANNELS)
    phase = jnp.asarray([0.0, 4.0, 5.0, 13.0, -1.0])
    course = cycle.apply({"params": {"cycle": jnp.asarray(CYCLE)}}, phase)
    np.testing.assert_array_equal(course, np.concatenate([CYCLE[[0, 4, 0, 3]], np.zeros((1, CHANNELS))]))


def test_missing_values_covariates_and_quantiles_beside_a_cycle():
    """Missing values stay 0 whatever the cycle says; covariates are read as they are; quantiles move alike."""
    task = dataclasses.replace(TASK, masked=True, covariates=3, known_ahead=2, quantiles=(0.1, 0.5, 0.9))
    for name in ("together", "apart"):
        model, params, plain, rest = build(name, task)
        values, there = draw(), RNG.random((ROWS, LENGTH, CHANNELS)) < 0.7
        beside = RNG.standard_normal((ROWS, LENGTH, 3)).astype(np.float32)
        mean = (values * there).sum(axis=1, keepdims=True) / there.sum(axis=1, keepdims=True)
        square = (np.square(values - mean) * there).sum(axis=1, keepdims=True) / there.sum(axis=1, keepdims=True)
        deviation = np.sqrt(square + 1e-5)
        course = CYCLE[(FIRST[:, None] + np.arange(LENGTH + HORIZON)) % PERIOD]
        read = np.where(there, (values - mean) / deviation - course[:, :LENGTH], 0)
        outputs, _ = plain.apply({"params": rest}, jnp.asarray(np.concatenate([read, there, beside], axis=-1)))
        expected = (outputs + course[:, LENGTH:, :, None]) * deviation[..., None] + mean[..., None]
        inputs = with_places(np.concatenate([values * there, there, beside], axis=-1))
        np.testing.assert_allclose(model.apply({"params": params}, inputs)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["together", "apart"])
def test_one_call_is_any_split_of_it_and_what_came_before_a_reset_is_not_there(name):
    model, params, *_ = build(name)
    inputs = with_places(draw())
    whole, end = model.apply({"params": params}, inputs)
    batch = {"inputs": inputs, "valid": jnp.ones(inputs.shape[:2], bool)}
    shown = list(
        pieces.walk(
            jax.jit(lambda state, part, _: model.apply({"params": params}, part["inputs"], state)),
            model,
            params,
            batch,
            4,
        )
    )
    np.testing.assert_allclose(shown[-1][0], whole, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), shown[-1][1], end)
    if name == "together":
        reset = jnp.zeros(inputs.shape[:2], bool).at[:, 5].set(True)
        packed = model.apply({"params": params}, inputs.at[:, :5].set(jnp.nan), reset=reset)[0]
        np.testing.assert_allclose(packed, model.apply({"params": params}, inputs[:, 5:])[0], rtol=1e-4, atol=1e-4)


def test_a_memory_that_is_read_step_by_step_is_the_scan():
    model, params, *_ = build("apart")
    inputs = with_places(draw())
    reading = streaming.read(model, params, inputs, None, lambda vector, _: (vector, None))
    np.testing.assert_allclose(reading.outputs, model.apply({"params": params}, inputs)[0], rtol=1e-4, atol=1e-4)


# Vectors of channels.


def test_a_channel_adds_its_vector_to_every_frame():
    encoder = FrameEncoder(6, 1, frame=4, stride=2, embedded=3)
    x = jax.random.normal(jax.random.key(0), (2 * 3, 8, 1))
    params = encoder.init(jax.random.key(1), x)["params"]
    (y, _), table = encoder.apply({"params": params}, x), np.asarray(params["channel_embedding"])
    plain = {"in": params["in"]}
    bare, _ = FrameEncoder(6, 1, frame=4, stride=2).apply({"params": plain}, x)
    np.testing.assert_allclose(y, np.asarray(bare) + np.tile(table, (2, 1))[:, None], rtol=1e-6, atol=1e-6)
    assert not optimizer.is_decayed(("encoder", "channel_embedding")) and not optimizer.is_decayed(("cycle", "cycle"))


def test_channels_read_one_another_as_much_as_the_weights_say_and_not_at_all_at_the_start():
    encoder = FrameEncoder(6, 1, frame=4, stride=2, mixed=3)
    x = jax.random.normal(jax.random.key(0), (2 * 3, 8, 1))
    params = encoder.init(jax.random.key(1), x)["params"]
    bare, _ = FrameEncoder(6, 1, frame=4, stride=2).apply({"params": {"in": params["in"]}}, x)
    np.testing.assert_array_equal(encoder.apply({"params": params}, x)[0], bare)
    leaves, tree = jax.tree.flatten(params["mix"])
    rng = np.random.default_rng(0)
    mix = tree.unflatten([jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32) for leaf in leaves])
    y, _ = encoder.apply({"params": {**params, "mix": mix}}, x)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), mix)
    e = np.asarray(bare, np.float64)
    n = e / np.sqrt(np.square(e).mean(axis=-1, keepdims=True) + 1e-6) * p["norm"]["scale"]
    s = np.exp(p["weights"]) / np.exp(p["weights"]).sum(axis=1, keepdims=True)
    for row in range(6):
        others = slice(row // 3 * 3, row // 3 * 3 + 3)
        read = np.einsum("e,efd->fd", s[row % 3], n[others] @ p["value"])
        z = n[row] @ p["gate"]
        np.testing.assert_allclose(y[row], e[row] + (z / (1 + np.exp(-z)) * read) @ p["out"], rtol=1e-4, atol=1e-4)


def test_channels_that_swap_their_vectors_and_cycles_swap_their_forecasts():
    model, params, *_ = build("apart")
    values = draw()
    y, _ = model.apply({"params": params}, with_places(values))
    table = params["encoder"]["channel_embedding"]
    moved = {
        **params,
        "encoder": {**params["encoder"], "channel_embedding": table[::-1]},
        "cycle": {"cycle": jnp.asarray(CYCLE[:, ::-1])},
    }
    swapped, _ = model.apply({"params": moved}, with_places(values[..., ::-1]))
    np.testing.assert_allclose(swapped, y[..., ::-1], rtol=1e-4, atol=1e-4)
    still, _ = model.apply({"params": params}, with_places(values[..., ::-1]))
    assert np.abs(still - y[..., ::-1]).max() > 0.01


# The place of a row.


def counted(rows=400):
    """A table whose first column counts its rows."""
    return np.stack([np.arange(rows, dtype=float), RNG.standard_normal(rows)], axis=1)


def load_table(values, known=None, **options):
    options = {"length": LENGTH, "horizon": HORIZON, "period": PERIOD, "course": "learned"} | options
    config = Data(source="etth1", **options)
    split = forecasting.share_split(len(values))
    return forecasting.dataset(config, values.copy(), ("row", "noise"), split, known or {}, {"source": "etth1"})


@pytest.mark.parametrize("split", ["train", "validation", "test", "whole"])
def test_every_row_of_every_split_has_its_place(split):
    dataset = load_table(counted())
    assert dataset.task.period == PERIOD and dataset.task.width == 3 and "cycle" not in dataset.info["scaling"]
    scaling, seen = dataset.info["scaling"], 0
    for batch in [*dataset.evaluate(split, 16), *([next(dataset.train(16, seed=0))] if split == "train" else [])]:
        rows = np.round(batch["inputs"][..., 0] * scaling["deviation"][0] + scaling["mean"][0])
        np.testing.assert_array_equal(batch["inputs"][..., -1], rows % PERIOD)
        assert "course" not in batch
        seen += int((batch["weights"] > 0).sum())
    assert seen >= dataset.sizes[split]


def test_a_course_that_is_learned_is_left_in():
    values = counted()
    config = Data(source="etth1", length=LENGTH, horizon=HORIZON)
    split = forecasting.share_split(len(values))
    plain = forecasting.dataset(config, values.copy(), ("row", "noise"), split, {}, {"source": "etth1"})
    for one, other in zip(load_table(values).evaluate("test", 64), plain.evaluate("test", 64), strict=True):
        np.testing.assert_array_equal(one["inputs"][..., :-1], other["inputs"])
        np.testing.assert_array_equal(one["targets"], other["targets"])
    assert load_table(values).baselines("test") == plain.baselines("test")


@pytest.mark.always
def test_nothing_after_a_window_reaches_its_forecast():
    values = counted()
    dataset = load_table(values)
    model = SequenceModel(Model(**SMALL, **FORMS["apart"], task=dataset.task))
    batch = next(dataset.evaluate("test", 8))
    params = model.init(jax.random.key(0), jnp.asarray(batch["inputs"]))["params"]
    params = params | {"cycle": {"cycle": jnp.asarray(CYCLE)}}
    first = 400 - 80 - LENGTH  # of the first test window
    for window in (0, 7):
        changed = values.copy()
        changed[first + window + LENGTH :] = 1e3 * RNG.standard_normal((len(changed) - first - window - LENGTH, 2))
        other = next(load_table(changed).evaluate("test", 8))
        assert np.abs(other["targets"][window] - batch["targets"][window]).min() > 0
        one, two = (
            model.apply({"params": params}, jnp.asarray(each["inputs"][window : window + 1]))[0]
            for each in (batch, other)
        )
        np.testing.assert_array_equal(one, two)


def test_the_task_obeys_the_laws_of_tasks():
    check_task(load_table(counted()))


def write_hours(path, first, count):
    """A table of hours that begins so many hours after another."""
    start = np.datetime64("2020-02-28T00", "h") + np.timedelta64(first, "h")
    rows = [f"{start + hour},{np.sin((first + hour) / 4):.5f},{(first + hour) % 7}" for hour in range(count)]
    path.write_text("\n".join(["when,warm,seventh", *rows]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a table, with a cycle that is not 0."""
    folder = tmp_path_factory.mktemp("cycle")
    table = Data(source="csv", file=write_hours(folder / "own.csv", 0, 200), batch_size=4, length=16, horizon=8)
    write_untrained(folder / "run", dataclasses.replace(table, period=PERIOD, course="learned"))
    trained = load(folder / "run")
    trained.params = {**trained.params, "cycle": {"cycle": jnp.asarray(CYCLE)}}
    return trained


def expect(trained, rows, first):
    """The forecast from the last rows of a table, the first of which is row `first` of the run's."""
    scaling = trained.about["scaling"]
    mean, deviation = np.array(scaling["mean"]), np.array(scaling["deviation"])
    places = (first + len(rows) - 16 + np.arange(16)) % PERIOD
    inputs = np.concatenate([(rows[-16:] - mean) / deviation, places[:, None]], axis=1)
    outputs, _ = trained.model.apply({"params": trained.params}, jnp.asarray(inputs[None], jnp.float32))
    return np.asarray(outputs, np.float64)[0] * deviation + mean


@pytest.mark.parametrize("first", [0, 33])
def test_a_forecast_of_new_rows_knows_their_place(trained, tmp_path, first):
    file = write_hours(tmp_path / "new.csv", first, 60)
    rows = np.loadtxt(file, delimiter=",", skiprows=1, usecols=(1, 2))
    expected = expect(trained, rows, first)
    np.testing.assert_allclose(trained.predict(rows, first_row=first).values, expected, rtol=1e-5, atol=1e-6)
    lines = list(predict_files(trained, [file]))[1:]
    said = [[float(cell) for cell in line.split(",")[1:3]] for line in lines]
    np.testing.assert_allclose(said, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expect(trained, rows, first + 1) - expected).max() > 0.01  # another place is another forecast
    window, state = trained.read(rows[:16], first_row=first)
    for row in range(16, 20):
        later, state = trained.step(rows[row], state, first_row=first + row)
    whole, _ = trained.read(rows[16:20], trained.read(rows[:16], first_row=first)[1], first_row=first + 16)
    np.testing.assert_allclose(later.values, whole.values, rtol=1e-4, atol=1e-5)
    assert window.values.shape == (8, 2)
    with pytest.raises(ValueError, match="give first_row"):
        trained.predict(rows)


def test_another_table_is_evaluated_at_the_runs_place(trained, tmp_path):
    other = dataclasses.replace(trained.config.data, file=write_hours(tmp_path / "new.csv", 33, 24))
    (batch,) = data.load(other, trained.dataset.metadata()).evaluate("whole", 1)
    np.testing.assert_array_equal(batch["inputs"][0, :, -1], (33 + np.arange(16)) % PERIOD)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"period": 281}, r"data\.period=281 is longer than the 280 training rows, whose course it is"),
        ({"period": (1 << 24) + 1}, r"data\.period=16777217 has more places than float32"),
    ],
)
def test_a_cycle_that_cannot_be_learned_is_refused(keys, message):
    with pytest.raises(InputError, match=message):
        load_table(counted(), **keys)


def test_several_series_have_no_common_cycle(tmp_path):
    names = [write_hours(tmp_path / f"{first}.csv", first, 120) for first in (0, 3)]
    config = Data(source="csv", file=",".join(names), length=16, horizon=8, period=PERIOD, course="learned")
    with pytest.raises(InputError, match=r"data\.period=5 is of one series, found 2: use data\.calendar"):
        data.load(config)


@pytest.mark.parametrize(
    ("key", "does"),
    [("embedding", "tells channels apart"), ("mixing", "lets channels that run apart read one another")],
)
def test_what_is_of_channels_that_run_apart_needs_them(key, does):
    with pytest.raises(InputError, match=rf"model\.channel_{key}=True {does}.*: set channel_independent=True"):
        runs.model(**{f"channel_{key}": True})
