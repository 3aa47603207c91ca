"""Reductions of time-invariant systems: no further from the whole than their bounds, on any frequency and on
sequences.
"""

import pathlib
import re

import numpy as np
import pytest
from scipy.linalg import block_diag

from selssm_jax.compression.hankel import hankel_singular_values
from selssm_jax.compression.reduction import (
    System,
    balanced_truncation,
    diagonalise,
    gain,
    merge_equal_poles,
    smallest_within,
)

CIRCLE = np.linspace(-np.pi, np.pi, 301)


def system(seed, n=6, *, complex_=False):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape) + 1j * complex_ * rng.standard_normal(shape)  # noqa: E731
    A = draw(n, n)
    B, C = draw(n, 2), draw(3, n)
    A, B, C = (part if complex_ else part.real for part in (0.9 * A / abs(np.linalg.eigvals(A)).max(), B, C))
    return A, B, C


def difference(one, other):
    """The system whose output is the one's less the other's."""
    A = block_diag(*(part if part.ndim == 2 else np.diag(part) for part in (one.A, other.A)))
    return System(A, np.concatenate([one.B, other.B]), np.concatenate([one.C, -other.C], axis=1))


def outputs(one, x):
    h, y = np.zeros(len(one.B), complex), []
    for step in x:
        h = (one.A @ h if one.A.ndim == 2 else one.A * h) + one.B @ step
        y.append(one.C @ h)
    return np.array(y)


@pytest.mark.parametrize("complex_", [False, True])
def test_a_truncation_errs_between_the_next_singular_value_and_twice_the_sum_of_all_that_went(complex_):
    for seed in range(4):
        whole = System(*system(seed, complex_=complex_))
        values = hankel_singular_values(*whole).values
        for k in range(1, 6):
            small, bound = balanced_truncation(*whole, k)
            assert np.iscomplexobj(small.A) == complex_
            assert bound == pytest.approx(2 * values[k:].sum())
            assert values[k] * 0.999 <= gain(difference(whole, small), CIRCLE).max() <= bound * (1 + 1e-9)
        x = np.random.default_rng(seed).standard_normal((60, 2))
        assert np.linalg.norm(outputs(whole, x) - outputs(small, x)) <= bound * np.linalg.norm(x)


def test_all_components_or_all_that_carry_anything_are_the_same_system():
    A, B, C = system(0)
    padded = System(
        block_diag(A, 0.5 * np.eye(2)),
        np.concatenate([B, np.ones((2, 2))]),
        np.concatenate([C, np.zeros((3, 2))], axis=1),
    )
    small, bound = balanced_truncation(*padded, 6)  # two components are never read
    assert bound < 1e-7 and gain(difference(padded, small), CIRCLE).max() < 1e-7
    with pytest.raises(ValueError, match="use from 1 to 6, for 6 of 8 directions carry anything"):
        balanced_truncation(*padded, 7)
    hankel = hankel_singular_values(A, B, C)
    assert (
        smallest_within(hankel, hankel.error_bound[3]) == 3
        and smallest_within(hankel, 0.0) == 6
        and smallest_within(hankel, np.inf) == 1
    )


def test_equal_poles_become_as_few_components_as_their_work_has_ranks():
    rng = np.random.default_rng(0)
    a = np.array([0.9j, 0.5, 0.9j, 0.9j, 0.5, 0.9j])
    whole = System(a, rng.standard_normal((6, 2)) + 0j, rng.standard_normal((3, 6)) + 0j)
    small, bound = merge_equal_poles(*whole)
    assert sorted(small.A.tolist(), key=abs) == [0.5, 0.5, 0.9j, 0.9j] and bound == 0  # two inputs: of rank two each
    assert gain(difference(whole, small), CIRCLE).max() < 1e-12
    single, bound = merge_equal_poles(a, np.ones((6, 1)), rng.standard_normal((1, 6)))
    assert len(single.A) == 2 and bound == 0


@pytest.mark.parametrize("tolerance", [1e-3, 0.05, 0.5])
def test_nearly_equal_poles_cost_no_more_than_their_bound(tolerance):
    rng = np.random.default_rng(1)
    a = 0.95 * rng.random(12) * np.exp(1j * rng.uniform(0, np.pi, 12))
    a[6:] = a[:6] + 0.02 * (rng.random(6) - 0.5)
    whole = System(a, rng.standard_normal((12, 1)) + 0j, rng.standard_normal((1, 12)) + 0j)
    small, bound = merge_equal_poles(*whole, tolerance=tolerance)
    assert len(small.A) < 12 or tolerance == 1e-3
    assert gain(difference(whole, small), CIRCLE).max() <= bound + 1e-12


def test_the_diagonal_form_is_the_same_system_or_is_refused():
    for seed in range(3):
        whole = System(*system(seed))
        modal = diagonalise(*whole)
        assert modal.A.shape == (6,) and gain(difference(whole, modal), CIRCLE).max() < 1e-10
    with pytest.raises(ValueError, match="no basis of eigenvectors"):
        diagonalise(np.array([[0.5, 1.0], [0.0, 0.5]]), np.ones((2, 1)), np.ones((1, 2)))


def test_the_page_shows_a_program_that_runs(capsys):
    page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "compression.md"
    (program,) = [
        part
        for part in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        if "reduction" in part
    ]
    names: dict = {}
    exec(program, names)
    assert len(names["merged"].A) == 3 and len(names["small"].A) == 2
    assert "[" in capsys.readouterr().out


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="expected poles"):
        merge_equal_poles(np.eye(2) / 2, np.ones((2, 1)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="all inside the unit circle"):
        merge_equal_poles(np.array([1.0]), np.ones((1, 1)), np.ones((1, 1)))
    with pytest.raises(ValueError, match="error=-1"):
        smallest_within(hankel_singular_values(np.array([0.5]), np.ones((1, 1)), np.ones((1, 1))), -1)
    with pytest.raises(ValueError, match="not finite"):
        balanced_truncation(np.array([0.5, np.nan]), np.ones((2, 1)), np.ones((1, 2)), 1)
