"""The paper's theorem as printed, |A| L_G < 1, and what refutes it (theory, section 5, K1 to K5): every witness is
replayed.
"""

import jax
import numpy as np
import pytest

from selssm_jax.stability import MarkovGates, certify_recurrence, laws
from selssm_jax.stability.simulate import gated_update, simulate_coupled

ANGLE = np.deg2rad(130.25)
ROTATION = 0.9 * np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]])
SWITCHING = np.array([[1.0, 0.0], [0.0, 1.0]])


def switching(p):
    return MarkovGates(np.array([[1 - p, p], [p, 1 - p]]), SWITCHING)


def test_k1_an_open_gate_on_an_unstable_transition_diverges():
    A = 2 * np.eye(3)
    found = certify_recurrence(A, gate_min=1.0)
    assert found.printed_condition.status == "holds"
    assert found.uniform.status == found.state_dependent.status == found.stationary_law.status == "refuted"
    sizes = found.uniform.witness.replay(A, "retain", periods=20)
    np.testing.assert_allclose(sizes, 2.0 ** np.arange(21))
    assert found.horizon() == np.inf


def test_k2_a_closed_gate_never_forgets():
    A = np.full(4, 0.5)
    found = certify_recurrence(A, gate_min=0.0, gate_max=0.0, noise_cov=np.eye(4))
    assert found.printed_condition.status == "holds"
    assert found.uniform.status == found.stationary_law.status == "refuted"
    np.testing.assert_array_equal(found.uniform.witness.replay(A, "retain", periods=50), 1.0)


def test_k3_an_effective_update_has_two_fixed_points():
    A, L, U = np.array([0.9]), 0.9, 6.0
    found = certify_recurrence(A, gate_min=0.0, gate_lipschitz=L, drive_bound=U, update="effective")
    assert found.printed_condition.status == "holds"  # .81
    assert found.state_dependent.status == "refuted"
    distances = found.state_dependent.witness.replay(A, "effective", periods=200)
    assert distances.min() > 50 and distances.max() < 61  # the sigmoid's own fixed points are 0.0046 and 60.0
    assert_within_constants(found.state_dependent.witness, L, U)

    def step(h, x):
        return gated_update(A, h, 1 / (1 + np.exp(-3.6 * (h - 2))), x, "effective")

    apart = simulate_coupled(step, np.array([[0.0], [60.0]]), [U] * 500)
    assert apart[-1] == pytest.approx(60.0 - 0.0046, abs=0.01)


def test_k4_a_latch_has_two_attractors():
    A, L, U = np.zeros(1), 0.98 * 20 / 4, 2.0
    found = certify_recurrence(A, gate_min=0.02, gate_lipschitz=L, drive_bound=U)
    assert found.printed_condition.status == "holds"  # |A| L_G = 0
    assert found.state_dependent.status == "refuted"
    distances = found.state_dependent.witness.replay(A, "retain", periods=500)
    assert distances.min() > 1.5
    assert_within_constants(found.state_dependent.witness, L, U)


def test_k5_a_norm_below_one_is_not_enough():
    found = certify_recurrence(ROTATION, gate_min=0.0, gate_law=switching(0.7))
    assert np.linalg.norm(ROTATION, ord=2) < 1 and found.printed_condition.status == "holds"
    assert found.uniform.status == "refuted"
    sizes = found.uniform.witness.replay(ROTATION, "retain", periods=10)
    assert sizes[-1] > 4  # theory: 1.39 a pair
    assert found.uniform.rate**2 == pytest.approx(1.39, abs=0.01)


def test_k5_is_stable_or_not_by_how_often_it_switches():
    stable, unstable = (
        certify_recurrence(ROTATION, gate_min=0.0, gate_law=switching(p)).mean_square for p in (0.5, 0.7)
    )
    assert stable.status == "holds" and stable.rate < 1
    assert unstable.status == "refuted" and unstable.rate > 1


@pytest.mark.parametrize("p", [0.5, 0.7])
def test_k5_second_moments_are_those_of_simulated_chains(p):
    law = laws.read_law(switching(p), ROTATION, np.zeros(2), np.ones(2), "retain")
    rng = np.random.default_rng(0)
    path = laws._path(law, rng, 200_000, 12)
    e = np.broadcast_to(np.array([[1.0], [0.0]]), (200_000, 2, 1))
    X = law.stationary[:, None, None] * np.diag([1.0, 0.0])[None]
    powers = []
    for modes in path:
        e = law.modes[modes] @ e
        X = laws.forward(law, X)
        powers.append(((e**2).sum(axis=1).mean(), np.trace(X.sum(axis=0))))
    seen, expected = np.array(powers).T
    np.testing.assert_allclose(seen, expected, rtol=0.05)  # 2e5 chains, heavy tails at step 12
    assert (expected[-1] > expected[-3]) == (p == 0.7)


def test_the_growing_direction_is_a_witness():
    found = certify_recurrence(ROTATION, gate_min=0.0, gate_law=switching(0.7)).mean_square
    law = laws.read_law(switching(0.7), ROTATION, np.zeros(2), np.ones(2), "retain")
    X = law.stationary[:, None, None] * np.outer(found.witness.start, found.witness.start)[None]
    traces = []
    for _ in range(200):
        X = laws.forward(law, X)
        traces.append(np.trace(X.sum(axis=0)))
    assert traces[-1] > traces[-21] > traces[-41] and (traces[-1] / traces[-21]) ** (1 / 20) == pytest.approx(
        found.rate, rel=1e-6
    )


def test_open_and_closed_gates_may_settle_without_a_variance():
    found = certify_recurrence(np.array([-3.0]), gate_min=0.25, gate_law=[(0.5, 0.25), (0.5, 1.0)], noise_cov=np.eye(1))
    assert found.mean_square.status == "refuted" and found.mean_square.rate == pytest.approx(4.5)
    assert found.lyapunov.status == "holds"
    assert found.stationary_law.status == "holds" and "stationary, infinite variance" in found.stationary_law.reason


def test_a_discontinuous_gate_has_a_law_and_no_pathwise_contraction():
    found = certify_recurrence(
        np.array([0.5, -0.3]), gate_min=0.1, gate_lipschitz=np.inf, drive_bound=1.0, noise_cov=np.eye(2)
    )
    assert found.state_dependent.status == "not established" and "not Lipschitz" in found.state_dependent.reason
    assert found.stationary_law.status == "holds" and "Harris" in found.stationary_law.reason
    # without noise
    assert (
        certify_recurrence(np.array([0.5, -0.3]), gate_min=0.1, gate_lipschitz=np.inf).stationary_law.status
        == "not established"
    )


def assert_within_constants(witness, lipschitz, drive):
    """The witness is one of the recurrences that were asked about."""
    assert (np.abs(witness.drives) <= drive).all()
    h = np.linspace(-100, 100, 20_001)[:, None]
    for u in witness.drives:
        gates = witness.gate(h, u)
        assert (gates >= witness.low).all() and (gates <= witness.high).all()
        assert (np.abs(np.diff(gates, axis=0)) <= lipschitz * np.diff(h, axis=0) * (1 + 1e-9)).all()


def test_a_sampler_is_judged_up_to_its_error():
    def draw(key, count):
        return jax.random.bernoulli(key, 0.5, (count, 1)) * 0.75 + 0.25

    found = certify_recurrence(np.array([-3.0]), gate_min=0.25, gate_law=draw)
    assert found.mean_square.status == "refuted"
    low, high = found.mean_square.interval
    assert low < 4.5 < high and high - low < 0.5
