"""Public functions refuse what no law allows: nan, complex numbers, widths that do not fit, fractions of a step."""

import json
import pathlib
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.information import discrete, rate_distortion
from selssm_jax.stability.lipschitz import spectral_norm_bound

SCRIPT = pathlib.Path(__file__).with_name("bad_arguments.py")
# Functions that compile little; the exhaustive test calls them all.
QUICK = [
    "discrete",
    "rate_distortion.gauss",
    "rate_distortion.water",
    "limits",
    "samplers",
    "hankel",
    "quantization",
    "sparsity",
    "trace",
    "operator",
    "spectral",
]


def attack(*names: str) -> dict:
    done = subprocess.run([sys.executable, str(SCRIPT), *names], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_bad_arguments_of_quick_functions_are_refused():
    report = attack(*QUICK)
    assert report["calls"] > 200
    assert report["silent"] == []


@pytest.mark.exhaustive
def test_bad_arguments_of_all_functions_are_refused():
    report = attack()
    assert report["calls"] > 1000
    assert report["silent"] == []


def test_counts_are_no_probabilities():
    with pytest.raises(ValueError, match="p_xy has least entry 1 and sum 15, expected probabilities"):
        discrete.information_of(jnp.array([[5.0, 2.0], [1.0, 7.0]]))
    with pytest.raises(ValueError, match="p has least entry 1 and sum 3"):
        discrete.entropy_of(jnp.array([1.0, 2.0]))


def test_labels_of_different_shapes_are_not_flattened_into_pairs():
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\) and y \(3, 2\)"):
        discrete.count(np.zeros((2, 3), int), np.zeros((3, 2), int))


def test_variances_out_of_the_range_of_their_type_are_refused_and_not_overflowed():
    for cov in ([1e38] * 4, [1e-40, 1e-40]):
        with pytest.raises(ValueError, match="give it in other units"):
            rate_distortion.gaussian(jnp.array(cov, jnp.float32), 1.0)
    assert rate_distortion.gaussian(jnp.array([1e37] * 4, jnp.float32), 1e37) == pytest.approx(
        0.5 * 4 * np.log(4), rel=1e-5
    )


@pytest.mark.parametrize("scale", [1e200, 1e-200, 1e308])
def test_a_spectral_norm_is_right_in_any_units(scale):
    W = np.array([[3.0, 0.0], [4.0, 5.0]]) / 10
    assert spectral_norm_bound(scale * W) == pytest.approx(scale * np.linalg.svd(W)[1][0], rel=1e-4)


def test_a_spectral_norm_of_a_complex_matrix_keeps_its_imaginary_part():
    assert spectral_norm_bound(np.array([[1j, 0], [0, 0.5]])) == pytest.approx(1, rel=1e-4)


def test_entropy_by_nsb_costs_what_its_distinct_counts_cost():
    counts = np.zeros(100_000, int)
    counts[:2000] = 5
    start = time.process_time()
    estimate = discrete.entropy(counts, correction="nsb")
    assert time.process_time() - start < 20  # 146 s by a sum over symbols
    assert np.log(2000) < estimate.nats < np.log(2300)
