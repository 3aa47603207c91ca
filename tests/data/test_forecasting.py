"""Tables: the literature's windows and scaling, a reader that names what is wrong, baselines against their
definitions.
"""

import json

import numpy as np
import pytest

from selssm_jax import data
from selssm_jax.config import Data
from selssm_jax.data import forecasting
from selssm_jax.errors import InputError

SPLITS = ("train", "validation", "test")


def built(values, split, known=None, **options):
    config = Data(source="etth1", **{"length": 96, "horizon": 96, **options})
    names = tuple(f"channel {index}" for index in range(values.shape[1]))
    return forecasting.dataset(config, values, names, split, known or {}, {"source": "etth1"})


@pytest.fixture(scope="module")
def table():
    """A table of ETTh1's size."""
    return np.cumsum(np.random.default_rng(0).standard_normal((17420, 7)), axis=0)


@pytest.fixture(scope="module")
def hourly(table):
    return built(table, forecasting.ett_split(1))


def covered(dataset, split, batch_size=512):
    """Inputs and targets of all windows of a split, in order."""
    batches = list(dataset.evaluate(split, batch_size))
    kept = [batch["weights"] > 0 for batch in batches]
    return tuple(
        np.concatenate([batch[key][rows] for batch, rows in zip(batches, kept, strict=True)])
        for key in ("inputs", "targets")
    )


@pytest.mark.parametrize(("split", "count"), [("train", 8449), ("validation", 2785), ("test", 2785)])
def test_hourly_table_has_the_literatures_windows(hourly, split, count):
    inputs, targets = covered(hourly, split)
    assert inputs.shape == targets.shape == (count, 96, 7)
    assert hourly.metadata()[f"{split}_windows"] == count


@pytest.mark.parametrize(
    ("length", "horizon", "counts"),
    [(96, 720, (7825, 2161, 2161)), (336, 96, (8209, 2785, 2785)), (512, 192, (7937, 2689, 2689))],
)
def test_counts_for_other_lookbacks_and_horizons(table, length, horizon, counts):
    metadata = built(table, forecasting.ett_split(1), length=length, horizon=horizon).metadata()
    assert tuple(metadata[f"{split}_windows"] for split in SPLITS) == counts


def test_quarter_hourly_table_is_four_times_as_long():
    assert forecasting.ett_split(4) == {"train": (0, 34560), "validation": (34560, 46080), "test": (46080, 57600)}


@pytest.mark.parametrize(("split", "count"), [("validation", 5175), ("test", 10444)])
def test_ten_minutely_weather_has_the_literatures_windows(split, count):
    values = np.random.default_rng(0).standard_normal((52696, 2))
    weather = built(values, forecasting.share_split(len(values)))
    inputs, targets = covered(weather, split)
    assert inputs.shape == targets.shape == (count, 96, 2)
    assert weather.metadata()[f"{split}_windows"] == count


def test_share_split_is_70_10_20():
    assert forecasting.share_split(52696) == {"train": (0, 36887), "validation": (36887, 42157), "test": (42157, 52696)}


@pytest.mark.parametrize(("split", "first"), [("train", 0), ("validation", 8640 - 96), ("test", 11520 - 96)])
def test_windows_hold_the_rows_they_should(hourly, table, split, first):
    scaled = (table - table[:8640].mean(axis=0)) / table[:8640].std(axis=0)
    inputs, targets = covered(hourly, split)
    for window in (0, 1, 1000, len(inputs) - 1):
        start = first + window
        np.testing.assert_allclose(inputs[window], scaled[start : start + 96], atol=1e-5)
        np.testing.assert_allclose(targets[window], scaled[start + 96 : start + 192], atol=1e-5)
    assert first + len(inputs) - 1 + 192 == {"train": 8640, "validation": 11520, "test": 14400}[split]


def test_scaling_reads_training_rows_only(table):
    changed = table.copy()
    changed[8640:] = 1e3 * changed[8640:] + 7
    first, second = (built(values, forecasting.ett_split(1)) for values in (table, changed))
    assert first.metadata()["scaling"] == second.metadata()["scaling"]
    np.testing.assert_array_equal(covered(first, "train")[0], covered(second, "train")[0])
    rows = covered(first, "train")[0][:, 0]
    assert abs(rows.mean()) < 0.1 and rows.std() == pytest.approx(1, abs=0.05)


def test_scaling_of_a_run_holds_for_another_table(table):
    split = {"train": (0, 400), "validation": (400, 600), "test": (600, 800)}
    known = json.loads(json.dumps(built(table[:800], split).metadata()))
    other = built(table[5000:5800], split, known)
    mean, deviation = (np.array(known["scaling"][key]) for key in ("mean", "deviation"))
    np.testing.assert_allclose(covered(other, "train")[0][0], (table[5000:5096] - mean) / deviation, atol=1e-5)
    assert other.metadata()["scaling"] == known["scaling"]


def cyclic(rows=400, cycle=7):
    """Noise around a course of 7 rows."""
    course = np.random.default_rng(1).standard_normal((cycle, 2))
    return 5 * course[np.arange(rows) % cycle] + 0.01 * np.random.default_rng(0).standard_normal((rows, 2)) + 3


@pytest.mark.parametrize("split", SPLITS)
def test_the_course_of_a_cycle_is_taken_off_inputs_and_targets_alike(split):
    values = cyclic()
    plain, adjusted = (
        built(values, forecasting.share_split(400), length=10, horizon=5, period=period) for period in (0, 7)
    )
    whole, rest = (np.concatenate(covered(dataset, split), axis=1) for dataset in (plain, adjusted))
    course = np.concatenate([batch["course"][batch["weights"] > 0] for batch in adjusted.evaluate(split, 512)])
    np.testing.assert_allclose(rest + course, whole, atol=1e-6)
    # what is left is the noise, on rows that no course was fitted to as well
    assert np.abs(rest).max() < 0.05 < whole.std()
    assert "course" not in next(plain.evaluate(split, 4))


def test_the_course_reads_training_rows_only_and_holds_for_another_table():
    values = cyclic()
    changed = values.copy()
    changed[280:] *= -3
    options = {"length": 10, "horizon": 5, "period": 7}
    first, second = (built(table, forecasting.share_split(400), **options) for table in (values, changed))
    assert first.metadata()["scaling"] == second.metadata()["scaling"]
    known = json.loads(json.dumps(first.metadata()))
    other = built(changed, forecasting.share_split(400), known, length=10, horizon=5)
    for batches in zip(second.evaluate("test", 512), other.evaluate("test", 512), strict=True):
        np.testing.assert_array_equal(batches[0]["inputs"], batches[1]["inputs"])
        np.testing.assert_array_equal(batches[0]["course"], batches[1]["course"])


def test_a_cycle_longer_than_training_is_refused():
    with pytest.raises(
        InputError, match=r"data\.period=281 is longer than the 280 training rows, .*: use a shorter one, or 0"
    ):
        built(cyclic(), forecasting.share_split(400), length=10, horizon=5, period=281)


def test_constant_channel_stays_finite():
    values = np.random.default_rng(0).standard_normal((400, 2))
    values[:, 1] = 3.5
    inputs, _ = covered(built(values, forecasting.share_split(400), length=10, horizon=5), "test")
    np.testing.assert_array_equal(inputs[..., 1], 0)


def test_precision_survives_a_large_offset():
    values = 1e6 + np.random.default_rng(0).standard_normal((400, 1))
    dataset = built(values, forecasting.share_split(400), length=10, horizon=5)
    scaled = (values - values[:280].mean()) / values[:280].std()
    np.testing.assert_allclose(covered(dataset, "train")[0][0], scaled[:10], atol=1e-4)


def test_training_draws_every_training_window_once_an_epoch():
    values = np.arange(300.0)[:, None]
    dataset = built(values, forecasting.share_split(300), length=8, horizon=4)
    count = dataset.metadata()["train_windows"]
    assert count == 210 - 8 - 4 + 1
    iterator = dataset.train(count, seed=0)
    for _ in range(2):
        firsts = np.sort(next(iterator)["inputs"][:, 0, 0])
        np.testing.assert_array_equal(firsts, np.sort(covered(dataset, "train")[0][:, 0, 0]))


def test_training_on_validation_adds_its_windows_and_keeps_the_scaling():
    values = np.arange(300.0)[:, None]
    apart, joined = (
        built(values, forecasting.share_split(300), length=8, horizon=4, train_on=option)
        for option in ("train", "train+validation")
    )
    assert apart.metadata()["scaling"] == joined.metadata()["scaling"]
    count = sum(joined.metadata()[f"{split}_windows"] for split in ("train", "validation"))
    targets = next(joined.train(count, seed=0))["targets"]
    expected = np.concatenate([covered(apart, split)[1] for split in ("train", "validation")])
    np.testing.assert_array_equal(np.sort(targets[:, -1, 0]), np.sort(expected[:, -1, 0]))


def test_split_without_a_window_is_refused(table):
    with pytest.raises(
        InputError,
        match=r"the validation split of etth1 has 50 rows, too few .*data\.horizon=96: shorten them, or give more rows",
    ):
        built(table[:1000], {"train": (0, 700), "validation": (700, 750), "test": (750, 1000)})


# Baselines.


def test_repeat_last_equals_its_definition(table):
    dataset = built(table[:1000], forecasting.share_split(1000), length=24, horizon=12)
    for split in SPLITS:
        inputs, targets = (part.astype(np.float64) for part in covered(dataset, split))
        wrong = inputs[:, -1:] - targets
        found = dataset.baselines(split)["repeat last"]
        assert found["mse"] == pytest.approx(np.square(wrong).mean(), rel=1e-5)
        assert found["mae"] == pytest.approx(np.abs(wrong).mean(), rel=1e-5)


def autoregression(steps, channels, memory, seed=0):
    rng = np.random.default_rng(seed)
    values = np.zeros((steps, channels))
    for step in range(1, steps):
        values[step] = memory * values[step - 1] + rng.standard_normal(channels)
    return values


def test_ridge_nears_the_optimum_of_an_autoregression():
    # x_t = m x_{t-1} + e of variance 1, so that cov(x_s, x_t) = m^|s - t|. The forecast is w x with sum(w) = 1, as it
    # is the last value and differences to it: w = S^-1 (c + u 1) with Lagrange's u, S the covariance of the lookback
    # and c that with the target.
    memory, length, ahead = 0.8, 24, np.arange(1, 5)
    found = built(autoregression(20000, 2, memory), forecasting.share_split(20000), length=length, horizon=4).baselines(
        "test"
    )
    step = np.arange(length)
    covariance, ones, errors = memory ** np.abs(step[:, None] - step), np.ones(length), []
    for distance in ahead:
        cross = memory ** (length - 1 - step + distance)
        u = (1 - ones @ np.linalg.solve(covariance, cross)) / (ones @ np.linalg.solve(covariance, ones))
        w = np.linalg.solve(covariance, cross + u * ones)
        errors.append(1 - 2 * w @ cross + w @ covariance @ w)
    assert found["repeat last"]["mse"] == pytest.approx(2 * (1 - memory**ahead).mean(), rel=0.06)
    for name in ("ridge", "ridge by channel"):
        assert found[name]["mse"] == pytest.approx(np.mean(errors), rel=0.06)
        assert found[name]["mse"] < 0.85 * found["repeat last"]["mse"]


def test_ridge_by_channel_wins_where_channels_differ():
    values = np.concatenate([autoregression(6000, 1, 0.95), autoregression(6000, 1, -0.8, seed=1)], axis=1)
    found = built(values, forecasting.share_split(6000), length=8, horizon=4).baselines("test")
    assert found["ridge by channel"]["mse"] < 0.98 * found["ridge"]["mse"] < found["repeat last"]["mse"]


def test_ridge_equals_a_least_squares_fit():
    dataset = built(autoregression(3000, 1, 0.7), forecasting.share_split(3000), length=6, horizon=3)
    (x, y), (x_test, y_test) = (
        tuple(part[..., 0].astype(np.float64) for part in covered(dataset, split)) for split in ("train", "test")
    )
    # The lookback less its last value: its last column is zero, and a column of ones takes its place.
    design, design_test = (np.column_stack([part[:, :-1] - part[:, -1:], np.ones(len(part))]) for part in (x, x_test))
    map_, *_ = np.linalg.lstsq(design, y - x[:, -1:])
    expected = np.square(design_test @ map_ + x_test[:, -1:] - y_test).mean()
    assert dataset.baselines("test")["ridge"]["mse"] == pytest.approx(expected, rel=0.01)


# Tables of one's own.


@pytest.fixture
def load(tmp_path):
    def loaded(text, known=None, **options):
        path = tmp_path / "mine.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return data.load(Data(source="csv", file=str(path), **{"length": 4, "horizon": 2, **options}), known)

    return loaded


def lines(head, row, count=60):
    return "\n".join([*head, *(row.format(i=i, x=i / 2, y=-i) for i in range(count))]) + "\n"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (lines([], "{x},{y}"), ["column 1", "column 2"]),
        (lines(["load,price"], "{x},{y}"), ["load", "price"]),
        (lines(["date,load,price"], "2020-01-01 00:{i:02},{x},{y}"), ["load", "price"]),
        (lines([], "2020-01-01 00:{i:02},{x},{y}"), ["column 2", "column 3"]),
        (lines([",load,price"], "{i},{x},{y}"), ["load", "price"]),
        (lines(["load;price"], "{x};{y}"), ["load", "price"]),
        (lines(["load\tprice"], "{x}\t{y}"), ["load", "price"]),
        (lines(["", "load , price", ""], " {x} , {y} "), ["load", "price"]),
        (lines(["load,price"], "{x},{y}").replace("\n", "\r\n"), ["load", "price"]),
        (lines(["load,price"], '"{x}","{y}"'), ["load", "price"]),
        ("\ufeff" + lines(["load,price"], "{x},{y}"), ["load", "price"]),
    ],
    ids=[
        "bare",
        "header",
        "dates",
        "dates without header",
        "index",
        "semicolons",
        "tabs",
        "spaces",
        "CRLF",
        "quotes",
        "byte order mark",
    ],
)
def test_csv_is_read_as_it_comes(load, text, names):
    dataset = load(text)
    metadata = dataset.metadata()
    assert metadata["channels"] == names and dataset.task.channels == 2
    x = np.arange(60) / 2
    values = np.stack([x, -2 * x], axis=1)
    scaled = (values - values[:42].mean(axis=0)) / values[:42].std(axis=0)
    inputs, targets = covered(dataset, "test")
    np.testing.assert_allclose(inputs[0], scaled[44:48], atol=1e-5)
    np.testing.assert_allclose(targets[-1], scaled[58:60], atol=1e-5)
    assert [metadata[f"{split}_windows"] for split in SPLITS] == [37, 5, 11]


@pytest.mark.parametrize("text", [lines([], "{x}"), lines(["load"], "{x}")])
def test_one_column_is_enough(load, text):
    assert load(text).task.channels == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"mine\.csv is empty: give a CSV"),
        ("\n \n,,\n", r"mine\.csv is empty: give a CSV"),
        ("load,price\n", r"mine\.csv has no numbers below its header"),
        (
            lines(["load,price"], "{x},{y}") + "1,2,3\n",
            r"mine\.csv line 62 has 3 cells, its first line has 2: every row needs the same columns",
        ),
        (lines(["load,price"], "{x},{y}") + "\n1\n", r"mine\.csv line 63 has 1 cells"),
        (
            lines(["load,price"], "{x},{y}") + "1,nan\n",
            r"mine\.csv line 62 column 2 holds 'nan', expected a finite number: fill it in or drop the row",
        ),
        (lines(["load,price"], "{x},{y}") + "inf,1\n", r"line 62 column 1 holds 'inf'"),
        (lines(["load,price"], "{x},{y}") + "1,\n", r"line 62 column 2 holds ''"),
        (lines(["load,2020"], "{x},{y}"), r"line 1 column 1 holds 'load', expected a finite number"),
        (lines([], "{x},{y}") + "end,1\n", r"line 61 column 1 holds 'end', expected a finite number"),
        (lines(["date,load,price"], "2020-01-01,{x},{y}") + "2020-01-02,1,none\n", r"line 62 column 3 holds 'none'"),
        (
            lines(["load,price"], "{x},{y}", 5),
            r"the \w+ split of .*mine\.csv has \d rows, too few for one window of data\.length=4 and data\.horizon=2",
        ),
        (b"\x00\x01\x02\x00\n" * 50, r"mine\.csv"),
    ],
    ids=[
        "empty",
        "blank",
        "header only",
        "long row",
        "short row",
        "nan",
        "infinite",
        "missing cell",
        "half a header",
        "foot",
        "text cell",
        "short",
        "binary",
    ],
)
def test_bad_tables_are_refused_by_line_and_column(load, text, message):
    with pytest.raises(InputError, match=message):
        load(text)


def test_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.file=.*nowhere\.csv.*No such file"):
        data.load(Data(source="csv", file=str(tmp_path / "nowhere.csv")))


def test_folder_in_place_of_a_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.file=.*cannot be read"):
        data.load(Data(source="csv", file=str(tmp_path)))


def test_table_with_other_channels_than_the_run_is_refused(load):
    known = load(lines([], "{x},{y}")).metadata()
    with pytest.raises(
        InputError, match=r"mine\.csv has 1 channels, the run was trained on 2: give a table with the same columns"
    ):
        load(lines([], "{x}"), known)
