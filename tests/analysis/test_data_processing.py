"""Data processing through a compression: what the bits of a packed state prove, and what they do not."""

import pytest

from selssm_jax.analysis import data_processing


def kept(bits, stderr=0.01, symbols=None):
    return {"lower": [0.0, bits], "stderr": [stderr, stderr], "symbols": symbols}


@pytest.mark.parametrize(
    ("before", "after", "bits", "symbols", "status"),
    [
        (3.0, 0.9, 1, None, "consistent"),  # one bit cannot hold three
        (3.0, 2.5, 96, None, "inconclusive"),
        (3.0, 2.5, 2, None, "violated"),  # two bits cannot hold two and a half: a bound is wrong
        (3.0, 2.5, 96, 4, "violated"),  # nor can a symbol of four
        (2.5, 1.0, 96, 4, "consistent"),
        (1.0, 0.9, 1, None, "inconclusive"),  # within the errors
    ],
)
def test_the_bits_of_a_packed_state_are_an_upper_bound_of_what_it_knows(before, after, bits, symbols, status):
    assert data_processing._verdict(kept(before), kept(after, symbols=symbols), 1, bits).status == status
