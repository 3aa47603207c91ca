"""D(R) from below: what is known of it, and no quantiser under it."""

import numpy as np
import pytest

from selssm_jax.compression.bound import floors, squared_error
from selssm_jax.compression.quantization import fit


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
