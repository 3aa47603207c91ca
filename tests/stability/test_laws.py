"""Second moments and exponents of gates drawn at random: what is proved is proved, in bounded work, and what rounding
hides is not established.
"""

from fractions import Fraction

import jax
import numpy as np
import pytest

from selssm_jax.stability import MarkovGates, certify_recurrence, laws
from selssm_jax.stability.contraction import Growth, below, feasible, fixed_bound, perron_root

# modes that are passed through once, and one that closes
WIDE = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


def moments(law, e, steps):
    """E|e_t|^2 for t from 0 on, jointly with the first mode."""
    X = law.stationary[:, None, None] * np.outer(e, e)[None] if len(law.P) > 1 else np.outer(e, e)[None]
    traces = [np.trace(X.sum(axis=0))]
    for _ in range(steps):
        X = laws.forward(law, X)
        traces.append(np.trace(X.sum(axis=0)))
    return np.array(traces)


def test_modes_that_die_out_have_second_moments_with_a_finite_constant():
    """The map of this chain is nilpotent: a rate of the smallest number had the constant inf, and was said to hold."""
    found = certify_recurrence(
        np.ones(1), gate_min=0, gate_law=MarkovGates(WIDE, np.array([1.0, 1.0, 0.0])), update="effective"
    ).mean_square
    assert found.status == "holds" and 0 < found.rate < 1 and np.isfinite(found.constant)
    assert found.constant * found.rate >= 1, "a state that begins in the first mode is carried one step whole"


@pytest.mark.parametrize("n", [2, 24])
def test_a_dense_transition_that_dies_out_has_a_finite_constant_too(n):
    """n = 2 was a LinAlgError; 24 components are too many for a map that is written out."""
    A = np.eye(n, k=1)
    found = certify_recurrence(A, gate_min=1, gate_law=[(1.0, 1.0)]).mean_square
    assert found.status == "holds" and 0 < found.rate < 1 and np.isfinite(found.constant)
    sizes = [np.linalg.norm(np.linalg.matrix_power(A, t), ord=2) ** 2 for t in range(n + 1)]
    assert (sizes <= found.euclidean_constant * found.rate ** np.arange(n + 1) * (1 + 1e-9)).all()


def test_rounding_refutes_nothing_far_from_normal():
    """Its second moments shrink by .9025 a step; eigenvalues of their map come out at 1.002."""
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))[0]
    A = 0.95 * np.eye(12) + 0.3 * turn @ np.eye(12, k=1) @ turn.T
    assert certify_recurrence(A, gate_min=1, gate_law=[(1.0, 1.0)]).mean_square.status != "refuted"


def test_rounding_refutes_no_chain_of_modes_either():
    """.97 on the diagonal of a cycle of twelve that is all but cut open: the root of .9999 comes out above 1 or below,
    by how it is rounded.
    """
    m = 12
    P = 0.5 * (np.eye(m) + np.roll(np.eye(m), 1, axis=1))
    P[-1] = 0
    P[-1, [0, -1]] = 1e-14, 1 - 1e-14
    gates = np.append(np.ones(m - 1), 0.01)
    for order in (np.arange(m), np.random.default_rng(0).permutation(m)):
        law = MarkovGates(P[np.ix_(order, order)], gates[order])
        found = certify_recurrence(
            np.full(1, np.sqrt(0.97 / 0.5)), gate_min=0, gate_law=law, update="effective"
        ).mean_square
        assert found.status != "refuted" and (found.status != "holds" or found.rate > 0.97)


def test_a_chain_that_may_stay_in_one_of_two_parts_is_refused():
    """Half of all paths stay at the gate 1, where states grow by 1.5 a step: the mean of both parts said that all
    forget.
    """
    with pytest.raises(ValueError, match="2 closed classes of modes, expected one"):
        certify_recurrence(np.array([-1.5]), gate_min=0.2, gate_law=MarkovGates(np.eye(2), np.array([0.4, 1.0])))
    assert (
        certify_recurrence(np.array([0.5]), gate_min=0.0, gate_law=MarkovGates(WIDE, np.ones(3))).lyapunov.status
        == "holds"
    )


def test_transitions_whose_squares_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match=r"A holds numbers up to 1e\+200, whose squares"):
        certify_recurrence(np.full((2, 2), 1e200), gate_min=0.5, gate_law=[(1.0, 0.5)])


def test_the_invariant_box_is_never_left_not_even_by_rounding():
    """In exact numbers |A| M + U <= M, for transitions within 1e-9 of none and of scales from 1e-5 to 1e5."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        scale = 10.0 ** rng.uniform(-5, 5, 8)
        A = rng.uniform(size=(8, 8))
        A *= (1 - 1e-9) / np.abs(np.linalg.eigvals(A)).max()
        A = A * scale[:, None] / scale
        M = certify_recurrence(A, gate_min=0.1, gate_lipschitz=1e-30, drive_bound=1.0).invariant_radius
        exact = [sum(Fraction(a) * Fraction(m) for a, m in zip(row, M, strict=True)) + 1 for row in A]
        assert all(new <= Fraction(m) for new, m in zip(exact, M, strict=True))


def test_a_box_of_single_components_is_not_left_either_and_roots_lie_above():
    a = np.array([0.0, 0.3, 1 - 1e-6, 1 - 1e-12])
    M = fixed_bound(a, np.array([1.0, 0.1, 0.7, 3.0]))
    assert all(
        Fraction(x) * Fraction(m) + Fraction(u) <= Fraction(m)
        for x, m, u in zip(a, M, (1.0, 0.1, 0.7, 3.0), strict=True)
    )
    np.testing.assert_allclose(M * (1 - a), [1.0, 0.1, 0.7, 3.0], rtol=0.1)
    assert fixed_bound(np.array([1.0]), np.ones(1)) is None and fixed_bound(np.eye(2), np.ones(2)) is None
    N = np.array([[0.5, 1e8], [1e-9, 0.5]])  # of root .5 + sqrt(.1), by weights a hundred million apart
    root = perron_root(Growth(N, N))
    assert root == pytest.approx(0.5 + np.sqrt(0.1), rel=1e-9) and root >= 0.5 + np.sqrt(0.1)
    assert feasible(Growth(N, N)) and not feasible(Growth(N / root * (1 + 1e-9), N / root * (1 + 1e-9)))
    assert below(Growth(N, N), np.array([1e4, 1e-4]) * np.sqrt([10.0, 1.0]), 0)


@pytest.mark.parametrize("kind", ["independent", "chain"])
@pytest.mark.parametrize("update", ["retain", "effective"])
def test_powers_of_a_large_map_prove_a_rate_that_second_moments_stay_under(kind, update):
    rng, n = np.random.default_rng(0), 20
    A = 0.7 * rng.standard_normal((n, n)) / np.sqrt(n)
    gates = rng.uniform(0.3, 1, (2, n))
    given = (
        list(zip((0.3, 0.7), gates, strict=True))
        if kind == "independent"
        else MarkovGates(np.array([[0.9, 0.1], [0.4, 0.6]]), gates)
    )
    law = laws.read_law(given, A, np.zeros(n), np.ones(n), update)
    found = laws.mean_square(law)
    assert found.constant is not None and found.radius <= found.rate < 1
    for e in (np.ones(n), np.eye(n)[-1]):
        seen = moments(law, e, 300)
        assert (seen <= found.constant * found.rate ** np.arange(301) * seen[0] * (1 + 1e-9)).all()
    assert (seen[300] / seen[200]) ** 0.01 == pytest.approx(found.rate, rel=0.01)


@pytest.mark.parametrize("kind", ["list", "sampler"])
@pytest.mark.parametrize(("scale", "status"), [(0.5, "holds"), (1.3, "refuted")])
def test_a_hundred_and_twenty_eight_components_are_judged_in_bounded_work(kind, scale, status, monkeypatch):
    """The search for eigenvalues and the proof took minutes, of a sampler more: they are a thousand small products now,
    however many draws there are.
    """
    rng, n = np.random.default_rng(0), 128
    A = scale * rng.standard_normal((n, n)) / np.sqrt(n)
    given = (
        [(0.3, 0.2), (0.7, np.linspace(0.1, 1, n))]
        if kind == "list"
        else lambda key, count: jax.random.uniform(key, (count, n), minval=0.1)
    )
    law = laws.read_law(given, A, np.zeros(n), np.ones(n), "retain")
    steps = []

    def counted(step):
        return lambda law, X: steps.append(X.shape) or step(law, X)

    for step in (laws.forward, laws.backward):
        monkeypatch.setattr(laws, step.__name__, counted(step))
    monkeypatch.setattr(laws, "MOST", 200)
    found = laws.mean_square(law)
    assert len(steps) <= 2 * 200 + laws.BATCHES and set(steps) == {(1, n, n)}
    assert (found.constant is not None) == (status == "holds") and (found.interval[0] > 1) == (status == "refuted")
