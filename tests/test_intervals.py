"""Intervals of forecasts: of conformal quantiles, they cover what is exchangeable, and go with a run."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax import intervals
from selssm_jax.errors import InputError
from selssm_jax.intervals import Follower, Intervals, calibrate, cover, recall, scale_of
from selssm_jax.predict import load
from selssm_jax.prediction_files import load_calibrated, predict_files
from selssm_jax.runs import open_run


def scores(run, split):
    """Of every window, by itself."""
    rows = []
    for batch in run.dataset.evaluate(split, 4):
        outputs, _ = run.model.apply({"params": run.params}, jnp.asarray(batch["inputs"]))
        error = np.abs(outputs - batch["targets"]) / np.maximum(batch["inputs"].std(axis=1, keepdims=True), 0.05)
        rows.append(error[batch["weights"] > 0])
    return np.concatenate(rows)


def test_widths_are_the_conformal_quantiles_of_the_validation_windows(untrained):
    run = open_run(untrained("csv", length=8, horizon=2))
    expected, found = np.sort(scores(run, "validation"), axis=0), calibrate(run)
    for level in (0.8, 0.95):
        place = int(np.ceil(level * (len(expected) + 1)))
        np.testing.assert_allclose(found.widths[level], expected[min(place, len(expected)) - 1], rtol=1e-5)
    report = cover(run, found, "validation")
    inside = (scores(run, "validation") <= found.widths[0.8] * (1 + 1e-6)).mean()
    assert report["0.8"]["coverage"] == pytest.approx(inside, abs=1e-6) and inside >= 0.8


def test_what_is_exchangeable_is_covered():
    """Of 400 calibrations with 99 errors each, 80 and 95 % of new errors lie inside, within three deviations."""
    rng = np.random.default_rng(0)
    window = rng.standard_normal((400, 20, 1)) * np.exp(rng.standard_normal((400, 1, 1)))
    error = np.sort(rng.standard_t(3, (99, 400)), axis=0)
    error = np.sort(np.abs(error), axis=0)
    for level in (0.8, 0.95):
        width = error[int(np.ceil(level * 100)) - 1]
        new = rng.standard_t(3, (400, 500)) * scale_of(window)[:, 0]
        inside = []
        for each, row, drawn in zip(width, window, new, strict=True):
            low, high = Intervals(1, {level: np.full((1, 1), each)}).around(np.zeros((1, 1)), row)[level]
            inside.append(((low <= drawn) & (drawn <= high)).mean())
        inside = np.mean(inside)
        assert abs(inside - level) < 3 * np.sqrt(level * (1 - level) / 100 / 400 + level * (1 - level) / 200_000)


def test_they_go_with_the_run_and_into_its_predictions(untrained, files):
    folder = untrained("csv", length=8, horizon=2)
    assert load(folder).predict(np.ones((8, 2))).intervals == {}
    trained = load_calibrated(folder)
    header, first, _ = predict_files(trained, [files["csv"].file])
    ends = [f"{end} {level}" for level in ("80%", "95%") for end in ("from", "to")]
    assert header.split(",")[3:] == [f"{channel} {end}" for channel in ("sine", "cosine") for end in ends]
    sine, _, low, high, lowest, highest = map(float, first.split(",")[1:7])
    assert lowest <= low <= sine <= high <= highest
    rows = np.random.default_rng(0).standard_normal((3, 8, 2))
    again = load(folder).predict(rows)
    for level, (lower, upper) in trained.predict(rows).intervals.items():
        np.testing.assert_allclose(again.intervals[level], (lower, upper))
        np.testing.assert_allclose((lower + upper) / 2, again.values, rtol=1e-5, atol=1e-5)
    answer, state = trained.read(rows[0])
    assert answer.intervals and not trained.step(rows[0, 0], state)[0].intervals
    assert recall(folder, 4) is None and recall(folder, 3) is not None


def test_a_damaged_file_is_made_again(untrained):
    folder = untrained("csv", length=8, horizon=2)
    load_calibrated(folder)
    whole = (folder / intervals.FILE).read_bytes()
    for damaged in (b"PK", b"", whole[:300], whole[:-30]):
        (folder / intervals.FILE).write_bytes(damaged)
        assert recall(folder, 3) is None
    assert load_calibrated(folder).predict(np.ones((8, 2))).intervals


def test_too_few_windows_are_refused_and_predictions_go_without(untrained, capsys):
    folder = untrained("csv", length=16, horizon=8)
    with pytest.raises(InputError, match="13 windows"):
        calibrate(open_run(folder))
    assert not load_calibrated(folder).predict(np.ones((16, 2))).intervals
    assert "no intervals" in capsys.readouterr().err


def test_what_drifts_is_covered_by_intervals_that_follow():
    """Errors grow tenfold: a width that stays covers few, one that follows as many as it says, by its own bound."""
    rng, horizon, windows = np.random.default_rng(0), 4, 4000
    follower, inside = Follower((0.8,), horizon), []
    for number in range(windows):
        error = np.abs(rng.standard_normal((horizon, 2))) * np.array([1, 1 + 9 * number / windows]) / 1.2816
        inside.append((error <= follower.factors[0.8]).mean(axis=0))
        follower.read({0.8: error})
    np.testing.assert_allclose(np.mean(inside, axis=0), 0.8, atol=(np.log(15) + 0.02 * horizon) / (0.02 * windows))
    np.testing.assert_allclose(follower.factors[0.8], [1, 10], rtol=0.3)


def test_a_follower_waits_for_what_comes_and_skips_what_is_missing():
    follower = Follower((0.8,), 3)
    for _ in range(3):
        follower.read({0.8: np.full((3, 1), 9.0)})
        assert follower.factors[0.8] == 1  # the horizon of the first window is not over
    follower.read({0.8: np.full((3, 1), np.nan)})
    np.testing.assert_allclose(follower.factors[0.8], np.exp(0.02 * 0.8))
    for _ in range(6):
        follower.read({0.8: np.full((3, 1), np.nan)})
    np.testing.assert_allclose(follower.factors[0.8], np.exp(3 * 0.02 * 0.8))  # three were missed, none since is known


def test_levels_stay_in_one_another(untrained):
    trained = load_calibrated(untrained("csv", length=8, horizon=2))
    forecast = trained.predict(np.random.default_rng(0).standard_normal((8, 2))).scale({0.8: 3.0, 0.95: 0.1})
    (low, high), (lowest, highest) = forecast.intervals.values()
    assert (lowest <= low).all() and (high <= highest).all()


def test_a_forecast_of_a_table_follows_its_earlier_windows(untrained):
    trained = load_calibrated(untrained("csv", length=8, horizon=2))
    rows = np.random.default_rng(0).standard_normal((60, 2)) * 50  # far from what it learned: all is missed
    followed, still = trained.follow(rows), trained.predict(rows)
    np.testing.assert_array_equal(followed.values, still.values)
    width, before = (ends[1] - ends[0] for ends in (followed.intervals[0.8], still.intervals[0.8]))
    assert (width != before).any()
    windows = [rows[start : start + 10] for start in range(51)]
    follower = Follower((0.8, 0.95), 2)
    for window in windows:
        earlier = trained.predict(window[:8])
        follower.read(
            {
                level: np.abs(window[8:] - earlier.values) / ((high - low) / 2)
                for level, (low, high) in earlier.intervals.items()
            }
        )
    np.testing.assert_allclose(width / before, np.broadcast_to(follower.factors[0.8], (2, 2)), rtol=1e-4)


def test_validation_that_was_trained_on_calibrates_nothing(untrained):
    run = open_run(untrained("csv", length=8, horizon=2))
    data = dataclasses.replace(run.experiment.data, train_on="train+validation")
    with pytest.raises(InputError, match=r"data.train_on='train\+validation'"):
        calibrate(dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, data=data)))


def test_a_channel_of_few_values_calibrates_nothing(untrained, monkeypatch):
    run = open_run(untrained("csv", length=8, horizon=2))
    every = intervals._errors(run, "validation", 1)
    gaps = [(np.where(np.arange(2) == 1, np.nan, errors), spread) for errors, spread in every]
    monkeypatch.setattr(intervals, "_errors", lambda run, split, every: iter(gaps))
    with pytest.raises(InputError, match="channel 2 has 0 values"):
        calibrate(run)


def test_series_are_followed_one_at_a_time(untrained):
    trained = load_calibrated(untrained("csv", length=8, horizon=2))
    with pytest.raises(ValueError, match="follow one at a time"):
        trained.follow(np.zeros((2, 30, 2)))
