"""Linear forecasts: what a map says, the penalty that validation chooses, and fits that stay affordable."""

import os
import time

import numpy as np
import pytest

from selssm_jax.data import nlinear


def windows(channels=1, memory=0.7, rows=1200, length=6, horizon=3, seed=0):
    noise = np.random.default_rng(seed).standard_normal((rows, channels))
    values = np.zeros((rows, channels), np.float32)
    for row in range(1, rows):
        values[row] = memory * values[row - 1] + noise[row]
    return nlinear.Windows(values, np.arange(rows - length - horizon + 1), length, horizon)


def pairs(given, channel):
    """Lookbacks and horizons, window by window."""
    rows = np.stack(
        [given.values[start : start + given.length + given.horizon, channel] for start in given.starts]
    ).astype(np.float64)
    return rows[:, : given.length], rows[:, given.length :]


def test_errors_are_those_of_the_formula():
    given = windows(channels=2)
    maps = np.random.default_rng(1).standard_normal((2, 7, 3))
    wrong = []
    for channel in range(2):
        x, y = pairs(given, channel)
        last = x[:, -1:]
        wrong.append(last + (x - last) @ maps[channel, :6] + maps[channel, 6] - y)
    found = nlinear.errors(maps, given)
    assert found == {
        "mse": pytest.approx(np.square(wrong).mean(), rel=1e-5),
        "mae": pytest.approx(np.abs(wrong).mean(), rel=1e-5),
    }


def test_one_map_serves_all_channels():
    given = windows(channels=3)
    one = np.random.default_rng(1).standard_normal((1, 7, 3))
    assert nlinear.errors(one, given) == nlinear.errors(np.repeat(one, 3, axis=0), given)


def test_zero_repeats_the_last_value():
    given = windows()
    x, y = pairs(given, 0)
    assert nlinear.errors(np.zeros((1, 7, 3)), given)["mse"] == pytest.approx(np.square(x[:, -1:] - y).mean(), rel=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_fit_gives_one_map_and_one_for_each_channel(channels):
    maps = nlinear.fit(windows(channels), windows(channels, seed=1))
    assert {name: found.shape for name, found in maps.items()} == {
        "ridge": (1, 7, 3),
        "ridge by channel": (channels, 7, 3),
    }
    if channels == 1:
        np.testing.assert_array_equal(maps["ridge"], maps["ridge by channel"])


def test_penalty_is_the_one_that_serves_validation_best():
    train, validation = windows(rows=40), windows(rows=4000, seed=1)  # few windows: a penalty helps
    x, y = pairs(train, 0)
    design = np.column_stack([x - x[:, -1:], np.ones(len(x))])
    maps = [
        np.linalg.solve(design.T @ design + penalty * np.eye(7), design.T @ (y - x[:, -1:]))[None]
        for penalty in nlinear.PENALTIES
    ]
    scores = [nlinear.errors(map_, validation)["mse"] for map_ in maps]
    assert np.argmin(scores) > 0
    np.testing.assert_allclose(nlinear.fit(train, validation)["ridge"], maps[np.argmin(scores)], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("length", "horizon"), [(6, 3), (5, 1), (1, 2)])
def test_products_along_diagonals_are_those_of_the_windows(length, horizon):
    given = windows(channels=2, length=length, horizon=horizon, rows=300)
    # far from zero, and not from the first row on
    given = given._replace(values=given.values + np.float32(1e3), starts=given.starts[20:])
    x, y = pairs(given, 1)
    design = np.column_stack([x - x[:, -1:], np.ones(len(x))])
    gram, cross = nlinear._products(given, 1)
    np.testing.assert_allclose(gram, design.T @ design, atol=1e-3)
    np.testing.assert_allclose(cross, design.T @ (y - x[:, -1:]), atol=1e-3)


@pytest.mark.exhaustive
def test_fits_of_many_channels_are_affordable():
    # 321 channels took 300 s: x'x was summed window by window.
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3000, 321)).astype(np.float32)
    train, validation = (
        nlinear.Windows(values, np.arange(first, last - 120 + 1), 96, 24) for first, last in ((0, 2100), (2004, 2400))
    )
    start = time.process_time()
    maps = nlinear.fit(train, validation)
    found = nlinear.scores({"repeat last": None} | maps, validation)
    assert time.process_time() - start < 10 * (os.cpu_count() or 1)  # threads of the linear algebra that wait count too
    assert found["ridge"]["mse"] < 0.6 * found["repeat last"]["mse"]
