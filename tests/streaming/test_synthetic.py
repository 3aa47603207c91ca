"""Synthetic streams have the laws and the changes that they say."""

import numpy as np
import pytest

from selssm_jax.streaming.synthetic import SEA, draw_sea, rotate_hyperplane, switch_autoregression


def fit(rows):
    """Coefficients of an autoregression of two lags, and the variance of what it leaves."""
    past = np.stack([rows[1:-1, 0], rows[:-2, 0]], axis=1).astype(np.float64)
    solution, residual, *_ = np.linalg.lstsq(past, rows[2:, 0].astype(np.float64), rcond=None)
    return solution, residual[0] / len(past)


def test_regimes_of_an_autoregression_are_those_that_were_asked_for_and_return():
    regimes = ((1.5, -0.75), (-0.5, 0.3))
    stream = switch_autoregression(0, 40_000, 10_000, regimes)
    assert stream.changes == (10_000, 20_000, 30_000)
    for segment in range(4):
        solution, variance = fit(stream.inputs[10_000 * segment + 2 : 10_000 * (segment + 1)])
        np.testing.assert_allclose(solution, regimes[segment % 2], atol=0.05)
        assert variance == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(stream.inputs[1:], stream.targets[:-1])


def test_a_gradual_change_lies_between():
    stream = switch_autoregression(1, 30_000, 10_000, ((0.8, 0.0), (-0.8, 0.0)), width=10_000)
    solution, _ = fit(stream.inputs[14_000:16_000])
    assert abs(solution[0]) < 0.2
    assert fit(stream.inputs[:9000])[0][0] == pytest.approx(0.8, abs=0.05)


def test_a_regime_that_explodes_is_refused():
    with pytest.raises(ValueError, match="not stationary"):
        switch_autoregression(0, 10, 5, ((1.2, 0.0),))


def test_classes_of_sea_change_by_their_thresholds():
    stream = draw_sea(0, 8000, 2000, noise=0.0)
    total = stream.inputs[:, 0] + stream.inputs[:, 1]
    for segment, threshold in enumerate(SEA):
        rows = slice(2000 * segment, 2000 * (segment + 1))
        np.testing.assert_array_equal(stream.targets[rows], total[rows] <= threshold)
    assert 0.05 < np.mean(draw_sea(0, 8000, 2000).targets != stream.targets) < 0.15


def test_a_hyperplane_turns_slowly_and_is_drawn_anew():
    still = rotate_hyperplane(0, 4000, speed=0.0, noise=0.0)
    solution = np.linalg.lstsq(still.inputs - 0.5, 2.0 * still.targets - 1, rcond=None)[0]
    assert np.mean(((still.inputs - 0.5) @ solution >= 0) == still.targets) > 0.97 and still.changes == ()
    turned = rotate_hyperplane(0, 4000, speed=1e-3, noise=0.0)
    agree = ((turned.inputs - 0.5) @ solution >= 0) == turned.targets
    assert agree[:100].mean() > 0.9 > 0.8 > agree[1000:2000].mean()  # weights have come back after 2000
    assert rotate_hyperplane(0, 4000, every=1500).changes == (1500, 3000)


@pytest.mark.parametrize(
    "draw", [lambda seed: switch_autoregression(seed, 50, 20), lambda seed: draw_sea(seed, 50, 20)]
)
def test_the_same_seed_gives_the_same_stream(draw):
    np.testing.assert_array_equal(draw(3).inputs, draw(3).inputs)
    assert not np.array_equal(draw(3).inputs, draw(4).inputs)
