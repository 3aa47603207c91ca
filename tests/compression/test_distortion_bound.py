"""D(R) from below: what is known of it, and no quantiser under it; and how far apart rounding can keep two states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.compression.distortion_bound import floors, rounding_errors, rounding_radius, squared_error
from selssm_jax.compression.quantization import Quantizer, fit


def test_a_code_without_bits_has_the_variance_and_two_values_need_one_bit():
    values = np.tile([-1.0, 3.0], 32)
    found = floors(values, np.array([-1.0, 3.0]))
    assert found[0] == pytest.approx(values.var(), rel=1e-4)
    assert found[1:] == pytest.approx(0, abs=1e-5)


def test_rate_and_distortion_of_an_equal_binary_source_at_half_a_bit_lie_on_the_supporting_lines():
    """Bounds fall with bits and are convex in them, as D(R) is."""
    found = floors(np.random.default_rng(0).standard_normal(64), np.zeros(1))
    assert (np.diff(found) <= 1e-9).all() and (np.diff(found, 2) >= -1e-6).all()


@pytest.mark.parametrize("law", ["normal", "two humps", "few values"])
def test_no_quantiser_lies_below(law):
    rng = np.random.default_rng(1)
    samples = rng.standard_normal((2000, 2))
    if law == "two humps":
        samples = samples * 0.1 + rng.choice([-1.0, 1.0], samples.shape)
    if law == "few values":
        samples = samples.round()
    for bits in (0, 1, 2, 4):
        measured, least = squared_error(fit(samples, (bits, bits)), samples, [0, 1])
        assert 0 <= least <= measured + 1e-5  # rounding of float32 in the certified points
    assert least < 0.05


def test_a_component_that_does_not_vary_costs_nothing():
    np.testing.assert_array_equal(floors(np.ones(64), np.ones(1)), np.zeros(9))


def farthest(turn, gap, rounding, steps=80):
    """How far apart an adversary who chooses inputs and dither, greedily, brings two states h' = Q(A h + x) that begin
    as one, A = 0.9 times a rotation.
    """
    levels = Quantizer(jnp.asarray(np.tile(gap * np.arange(-32.0, 32.0), (2, 1)), jnp.float32), (6, 6))
    A = 0.9 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    rng, h, k, most = np.random.default_rng(0), np.zeros(2), np.zeros(2), 0.0
    snap = jax.jit(levels.snap) if rounding == "stochastic" else jax.jit(lambda h, noise: levels.snap(h))
    ends = np.array([(0.0, 0.0), (0.0, 1 - 1e-6), (1 - 1e-6, 0.0), (1 - 1e-6, 1 - 1e-6)])
    for _ in range(steps):
        x = np.repeat(rng.uniform(-3, 3, (100, 2)), 16, axis=0)
        one, other = np.tile(np.repeat(ends, 4, axis=0), (100, 1)), np.tile(ends, (400, 1))
        pairs = [
            np.asarray(snap(jnp.asarray(A @ state + x, jnp.float32), jnp.asarray(noise, jnp.float32)))
            for state, noise in ((h, one), (k, other))
        ]
        best = np.linalg.norm(pairs[0] - pairs[1], axis=1).argmax()
        h, k = pairs[0][best], pairs[1][best]
        most = max(most, float(np.linalg.norm(h - k)))
    return levels, most


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("turn", [0.0, 0.7])  # of a complex pole: both parts are rounded
def test_no_adversary_brings_two_packed_states_further_apart_than_the_radius(rounding, turn):
    levels, seen = farthest(turn, 0.5, rounding)
    parts = rounding_errors(levels, rounding)
    radius = rounding_radius(np.array([np.hypot(*parts)]), 0.9, np.ones(1))
    assert seen <= radius
    assert radius == pytest.approx(2 * np.hypot(0.5, 0.5) * (0.5 if rounding == "nearest" else 1) / 0.1)
    if rounding == "stochastic":
        assert seen > 0.5 / (1 - 0.9)  # what was once claimed: one distance of two levels, over 1 - rate


def test_the_radius_is_of_the_weighted_norm_and_of_the_levels_in_use():
    levels = Quantizer(jnp.array([[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 4.0, 4.5], [2.0, 9.0, 9.0, 9.0]]), (1, 2, 0))
    np.testing.assert_allclose(rounding_errors(levels, "stochastic"), [1, 3, 0])
    np.testing.assert_allclose(rounding_errors(levels, "nearest"), [0.5, 1.5, 0])
    assert rounding_radius(np.array([1.0, 3.0]), 0.5, np.array([0.1, 1.0])) == pytest.approx(2 * 10 / 0.5)
