"""The certificate as people and programs read it, its parts against known values, and what it refuses."""

import json

import jax
import numpy as np
import pytest
from scipy import linalg

from selssm_jax.ops.gating import invariant_radius, propagate_radius, pull, step_factor
from selssm_jax.stability import MarkovGates, certify_recurrence, switching
from selssm_jax.stability.contraction import Growth, contract, perron_root
from selssm_jax.stability.simulate import gated_update, laws_agree
from selssm_jax.stability.switching import joint_spectral_radius


def test_b1_is_the_formula_of_the_theory_at_the_best_weights():
    """kappa = 1 - g_min (1 - rho(|A|)) in the limit of the best weights, for a_ii >= 0."""
    A = np.random.default_rng(0).uniform(0, 1, (6, 6))
    A *= 0.8 / np.abs(np.linalg.eigvals(A)).max()
    found = certify_recurrence(A, gate_min=0.1).uniform
    assert 1 - 0.1 * (1 - 0.8) <= found.rate <= 1 - 0.1 * (1 - 0.8) * 0.99


def test_b5_is_sharper_than_the_formula_of_the_theory():
    """kappa = 1 - g_min (1 - alpha) + 2 U L / (1 - alpha) for a >= 0, where |(A - I) h + u| <= 2 U."""
    g, alpha, U, L = 0.3, 0.5, 1.0, 0.02
    printed = 1 - g * (1 - alpha) + 2 * U * L / (1 - alpha)
    found = certify_recurrence(np.full(3, alpha), gate_min=g, gate_lipschitz=L, drive_bound=U).state_dependent
    assert found.status == "holds" and found.rate == pytest.approx(1 - g * (1 - alpha) + 2 * U * L)
    assert found.rate < printed
    assert (
        certify_recurrence(
            np.full(3, alpha), gate_min=g, gate_lipschitz=g * (1 - alpha) / (2 * U), drive_bound=U
        ).state_dependent.status
        != "holds"
    )


def test_reducible_transitions_contract_in_some_weights():
    A = np.array([[0.5, 100.0, 0.0], [0.0, 0.5, 100.0], [0.0, 0.0, 0.5]])
    found = certify_recurrence(A, gate_min=0.2)
    assert found.uniform.status == "holds" and 0.9 <= found.uniform.rate < 0.95
    assert found.uniform.constant > 1e4 and found.horizon() < 1000


@pytest.mark.parametrize("crossing", [1e3, 1e9, 1e15, 1e30])
@pytest.mark.parametrize("gap", [1e-1, 1e-6])
def test_a_crossing_of_any_size_leaves_the_root_that_the_diagonal_has(crossing, gap):
    """Of a memory whose mean owes its variance much, as precise readings make it: triangular, so that it contracts."""
    a = np.array([1 - gap, 0.3])
    N = np.block([[np.diag(a), crossing * np.eye(2)], [np.zeros((2, 2)), np.diag(a**2)]])
    growth = Growth(N, N)
    assert perron_root(growth) == pytest.approx(1 - gap, rel=1e-9)
    found = contract(growth)
    assert 1 - gap <= found.rate < 1 and (N @ found.weights <= found.rate * found.weights * (1 + 1e-12)).all()
    large = Growth(3 * N, 3 * N)
    assert perron_root(large) == pytest.approx(3 * (1 - gap), rel=1e-6) and contract(large).rate >= 1


def test_units_of_components_leave_the_root_as_it_is():
    rng = np.random.default_rng(0)
    for _ in range(20):
        N, units = rng.uniform(0, 1, (5, 5)), 10.0 ** rng.uniform(-8, 8, 5)
        root = np.abs(np.linalg.eigvals(N)).max()
        scaled = 0.99 * N / root * units[:, None] / units
        assert perron_root(Growth(scaled, scaled)) == pytest.approx(0.99, rel=1e-9)
        assert contract(Growth(scaled, scaled)).rate < 1


def test_the_nonlinear_root_is_that_of_the_worst_rows():
    rng = np.random.default_rng(0)
    low, high = rng.uniform(0, 1, (2, 3, 3))
    rows = [np.stack([(low, high)[(choice >> i) & 1][i] for i in range(3)]) for choice in range(8)]
    expected = max(np.abs(np.linalg.eigvals(matrix)).max() for matrix in rows)
    assert perron_root(Growth(low, high)) == pytest.approx(expected, rel=1e-9)
    scaled = Growth(low / (2 * expected), high / (2 * expected))
    assert 0.5 <= contract(scaled).rate < 0.7


def test_the_joint_spectral_radius_of_known_pairs():
    golden = np.array([[[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]]])
    found = joint_spectral_radius(golden)  # attained by the product of both, of radius ((1 + sqrt 5) / 2)^2
    assert found.lower == pytest.approx((1 + np.sqrt(5)) / 2) and found.lower <= found.upper <= found.lower + 0.006
    assert sorted(found.word) == [0, 1]
    rng = np.random.default_rng(0)
    for _ in range(200):  # |P| <= constant upper^k
        word = rng.integers(0, 2, rng.integers(1, 30))
        product = np.linalg.multi_dot([np.eye(2), *golden[word], np.eye(2)])
        assert np.linalg.norm(product, ord=2) <= found.constant * found.upper ** len(word) * (1 + 1e-9)


def test_products_may_contract_where_no_weighted_maximum_norm_does():
    A = 0.95 * np.array([[0.0, -1.0], [1.0, 0.0]])
    low, high = 0.45, 0.55
    found = certify_recurrence(A * 1.5, gate_min=low, gate_max=high).uniform
    assert found.status == "holds" and found.weights is None and "joint spectral radius" in found.reason


def test_slow_gates_forgive_overshoot():
    found = certify_recurrence(np.array([-3.0]), gate_min=0.1, gate_max=0.4)
    # mu = -1: chord of |1 - 4 g| at .4
    assert found.slow_gates.status == "holds" and found.slow_gates.rate == pytest.approx(0.9)
    assert certify_recurrence(np.array([-3.0]), gate_min=0.1).slow_gates.status == "not established"
    closed = certify_recurrence(np.array([0.5]), gate_min=0.0).slow_gates
    assert closed.status == "not established" and "gate time, by exp(-0.5 " in closed.reason


def test_complex_poles_are_certified_by_their_modulus():
    poles = 0.9 * np.exp(1j * np.array([0.1, 2.0]))
    found = certify_recurrence(poles, gate_min=0.2)
    worst = max(abs(1 - g * (1 - pole)) for g in (0.2, 1.0) for pole in poles)
    assert found.uniform.rate == pytest.approx(worst)


def test_markov_gates_of_a_diagonal_transition():
    law = MarkovGates(np.array([[0.9, 0.1], [0.5, 0.5]]), np.array([0.1, 1.0]))
    found = certify_recurrence(np.array([0.5, -0.5]), gate_min=0.1, gate_law=law)
    a = 1 - law.gates[:, None] * (1 - np.array([0.5, -0.5]))
    radius = max(np.abs(np.linalg.eigvals(law.transition * a[:, i] ** 2)).max() for i in range(2))
    assert radius <= found.mean_square.rate <= radius * 1.002
    assert (
        certify_recurrence(np.array([0.5, -0.5]), gate_min=0.1, gate_law=(law.transition, law.gates)).mean_square
        == found.mean_square
    )
    share = np.array([5 / 6, 1 / 6])
    assert found.lyapunov.rate == pytest.approx(max(share @ np.log(np.abs(a))))
    assert found.lyapunov.rate <= 0.5 * np.log(found.mean_square.rate)  # theory, section 5 B3


def test_the_exponent_of_a_product_is_that_of_its_law():
    """Scaled rotations: gamma is the mean logarithm of the scales, which no diagonal form shows."""
    turn = np.array([[np.cos(1.0), -np.sin(1.0)], [np.sin(1.0), np.cos(1.0)]])
    found = certify_recurrence(0.8 * turn, gate_min=0.5, gate_law=[(0.5, 0.5), (0.5, 1.0)], update="effective").lyapunov
    expected = 0.5 * np.log(0.8) + 0.5 * np.log(0.4)
    low, high = found.interval
    assert low <= expected <= high and high - low < 0.05 and found.status == "holds"


def test_large_transitions_are_judged_without_their_kronecker_square():
    A = np.random.default_rng(0).standard_normal((40, 40)) / 10
    law = [(0.3, 0.2), (0.7, np.linspace(0.1, 1, 40))]
    found = certify_recurrence(A, gate_min=0.1, gate_law=law).mean_square
    modes = [np.eye(40) - np.diag(np.broadcast_to(g, 40)) @ (np.eye(40) - A) for _, g in law]
    X = np.eye(40)
    for _ in range(4000):
        new = 0.3 * modes[0] @ X @ modes[0].T + 0.7 * modes[1] @ X @ modes[1].T
        radius, X = np.trace(new) / np.trace(X), new / np.trace(new)
    assert found.status == "holds" and found.rate == pytest.approx(radius, rel=2e-3)


def test_horizon_is_where_the_bound_reaches_the_precision():
    found = certify_recurrence(np.full(2, 0.5), gate_min=0.2)
    steps = found.horizon(1e-3)
    assert found.uniform.rate**steps <= 1e-3 < found.uniform.rate ** (steps - 1)
    assert certify_recurrence(np.zeros(2), gate_min=1.0).horizon() == 1
    with pytest.raises(ValueError, match="between 0 and 1"):
        found.horizon(2.0)


def test_people_and_programs_read_the_same():
    found = certify_recurrence(np.diag([0.5, 0.2]), gate_min=0.0, gate_max=0.0, noise_cov=np.eye(2))
    text, values = str(found), json.loads(found.to_json())
    assert "No memory horizon is certified." in text and "refuted (rate 1)" in text
    assert values["uniform"]["status"] == "refuted" and values["uniform"]["witness"]["kind"] == "GateSequence"
    assert values["horizon"] is None and values["constants"]["drive_bound"] is None
    assert "after 33 steps" in str(certify_recurrence(np.full(2, 0.5), gate_min=0.38))


@pytest.mark.parametrize("update", ["retain", "effective"])
def test_laws_settle_where_it_is_certified_and_not_where_it_is_refuted(update):
    def draw(rng, count):
        return rng.uniform(0.3, 1, (count, 2)), rng.standard_normal((count, 2))

    def step(A):
        return lambda h, now: gated_update(A, h, *now, update)

    settled, exploding = np.array([[0.5, 0.3], [-0.2, 0.4]]), 1.05 * np.eye(2) / (1.0 if update == "retain" else 0.6)
    assert certify_recurrence(settled, gate_min=0.3, update=update).stationary_law.status == "holds"
    assert laws_agree(step(settled), np.zeros(2), draw, steps=60) > 1e-3
    assert certify_recurrence(exploding, gate_min=0.3, update=update).stationary_law.status == "refuted"
    assert laws_agree(step(exploding), np.zeros(2), draw, steps=60) < 1e-6


def test_formulas_are_the_same_in_jax():
    rng = np.random.default_rng(0)
    A, M, U, low, high, L = (
        rng.uniform(-0.2, 0.2, (4, 4)),
        *rng.uniform(0, 0.5, (2, 4)),
        rng.uniform(0, 0.4, 4),
        rng.uniform(0.5, 1, 4),
        rng.uniform(0, 1, (4, 4)),
    )
    for A, L in ((A, L), (A[0], L[0])):  # noqa: B020
        for update in ("retain", "effective"):
            given = (A, low, high, L, M, U)
            inside = jax.jit(lambda *arrays, update=update: step_factor(*arrays, update))(*map(np.float32, given))
            np.testing.assert_allclose(inside, step_factor(*given, update), rtol=1e-5)
        np.testing.assert_allclose(
            invariant_radius(A, U) >= propagate_radius(A, invariant_radius(A, U)) + U - 1e-12, True
        )
        assert (pull(A, M, U, "retain") >= pull(A, 0 * M, U, "retain")).all()
    assert np.isinf(invariant_radius(np.array([1.0, 0.5]), np.ones(2))).tolist() == [True, False]
    assert propagate_radius(np.array([0.0, 1.0]), np.array([np.inf, np.inf])).tolist() == [0.0, np.inf]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"A": np.ones((2, 3))}, r"A has shape \(2, 3\), expected"),
        ({"A": np.array([np.nan, 1.0])}, "A holds nan"),
        ({"A": 1j * np.eye(2)}, "dense and complex"),
        ({"gate_min": 0.5, "gate_max": 0.4}, r"gates in \[0.5, 0.4\] are none"),
        ({"gate_max": 1.5}, "are none"),
        ({"gate_min": np.ones(3)}, r"gate_min has shape \(3,\)"),
        ({"gate_min": -0.1}, "gate_min has shape .* smallest value -0.1"),
        ({"gate_lipschitz": -1.0}, "gate_lipschitz"),
        ({"gate_lipschitz": 1.0, "gate_law": [(1.0, 0.5)]}, "leave one of them out"),
        ({"drive_bound": -1.0}, "drive_bound"),
        ({"noise_cov": -np.eye(2)}, "no covariance"),
        ({"update": "keep"}, "update='keep' is unknown"),
        ({"gate_law": [(0.5, 0.5)]}, "sum to 1"),
        ({"gate_law": [(1.0, 0.1)]}, "outside gate_min and gate_max"),
        ({"gate_law": MarkovGates(np.eye(3), np.array([0.5, 1.0]))}, r"transition has shape \(3, 3\)"),
        ({"gate_law": lambda key, count: np.ones((count, 3))}, "one column a component"),
    ],
)
def test_what_cannot_be_a_recurrence_is_said(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        certify_recurrence(**({"A": np.full(2, 0.5), "gate_min": 0.2} | changes))


def test_the_constant_of_second_moments_holds_in_the_norm_that_it_is_stated_for():
    """A Hadamard transition gathers 16 equal components into one: its square, in the maximum norm, grows 15.7 times in
    a step, and shrinks in the Euclidean.
    """
    A = 0.99 * linalg.hadamard(16) / 4
    e = A @ np.ones(16)
    for law in (None, [(1.0, 1.0)]):
        found = certify_recurrence(A, gate_min=1.0, gate_law=law).mean_square
        assert found.status == "holds" and found.rate < 1
        assert (
            np.abs(e).max() ** 2 == pytest.approx(15.7, rel=0.01)
            and np.abs(e).max() ** 2 <= found.constant * found.rate
        )
        assert e @ e <= found.euclidean_constant * found.rate * 16
    assert found.constant == pytest.approx(16 * found.euclidean_constant), (
        "of a law, whose rate is that of the Euclidean norm"
    )


def test_second_moments_of_components_that_survive_in_turn_need_as_many_times_the_constant():
    """Of n components one survives a step, each as often: every E e_i^2 falls to 1 / n, and max_i e_i^2 stays 1."""
    n = 5
    law = [(1 / n, 1.0 - np.eye(n)[survivor]) for survivor in range(n)]
    found = certify_recurrence(np.zeros(n), gate_min=0.0, gate_law=law).mean_square
    assert found.rate == pytest.approx(1 / n) and found.constant * found.rate >= 1 - 1e-12
    assert found.euclidean_constant * found.rate * n >= 1 - 1e-12, "sum_i E e_i^2 = 1 of a start of ones"


def test_paths_that_contract_in_the_maximum_norm_have_second_moments_in_both():
    A = np.array([[0.0, 0.9], [0.0, 0.0]])
    found = certify_recurrence(A, gate_min=1.0)
    e = A @ np.array([0.0, 1.0])
    verdict = found.mean_square
    slack = 1 + 1e-9
    assert (
        np.abs(e).max() ** 2 <= slack * verdict.constant * verdict.rate
        and e @ e <= slack * verdict.euclidean_constant * verdict.rate
    )


@pytest.mark.parametrize("update", ["retain", "effective"])
def test_a_large_transition_is_searched_in_bounded_work_to_the_same_answer(update, monkeypatch):
    rng = np.random.default_rng(0)
    for _ in range(4):
        A, low, high = rng.standard_normal((10, 10)) / 3, rng.uniform(0.05, 0.3, 10), np.ones(10)
        expected = switching.growing_gates(A, low, high, update)[1]
        with monkeypatch.context() as patch:
            patch.setattr(switching, "EXACT", 4)
            gates, growth = switching.growing_gates(A, low, high, update)
        assert growth == pytest.approx(expected, rel=0.01) and (growth >= 1) == (expected >= 1)
        assert growth == pytest.approx(
            np.abs(np.linalg.eigvals(switching.period_product(A, gates, update))).max() ** (1 / len(gates))
        )


def test_the_roots_of_a_few_products_are_computed_however_many_components_there_are(monkeypatch):
    roots = []
    eigvals = np.linalg.eigvals
    monkeypatch.setattr(np.linalg, "eigvals", lambda matrix: roots.append(len(matrix)) or eigvals(matrix))
    A = np.random.default_rng(0).standard_normal((96, 96)) / 10
    found = certify_recurrence(A, gate_min=0.1).uniform
    assert found.status in ("refuted", "not established") and len(roots) <= switching.FOLLOWED
