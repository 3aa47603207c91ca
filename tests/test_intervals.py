"""Intervals of forecasts: of conformal quantiles, they cover what is exchangeable, and go with a run."""

import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax import intervals
from selssm_jax.errors import InputError
from selssm_jax.intervals import Intervals, calibrate, cover, recall, scale_of
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
    (folder / intervals.FILE).write_bytes(b"PK")
    assert recall(folder, 3) is None and load_calibrated(folder).predict(np.ones((8, 2))).intervals


def test_too_few_windows_are_refused_and_predictions_go_without(untrained, capsys):
    folder = untrained("csv", length=16, horizon=8)
    with pytest.raises(InputError, match="13 windows"):
        calibrate(open_run(folder))
    assert not load_calibrated(folder).predict(np.ones((16, 2))).intervals
    assert "no intervals" in capsys.readouterr().err
