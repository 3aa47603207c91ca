"""A filter, a gain and a certificate make a control loop: LQG costs what its formula says, the loop is certified, and a
gain that destabilises is refused (notebooks/control.ipynb shows it).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, signal

from selssm_jax.ops import kalman_scan, linear_scan
from selssm_jax.stability import certify_recurrence

DT = 0.1
CART_POLE = signal.cont2discrete(
    (
        np.array([[0, 1, 0, 0], [0, -0.1, -0.98, 0], [0, 0, 0, 1], [0, 0.2, 21.56, 0]]),
        np.array([[0.0], [1.0], [0.0], [-2.0]]),
        np.eye(4),
        np.zeros((4, 1)),
    ),
    0.02,
)[:2]  # near upright, 1 kg on 0.1 kg and half a metre, with friction


@dataclasses.dataclass(frozen=True)
class Plant:
    """x' = A x + B u + w, y = C x + v, w ~ N(0, W), v ~ N(0, V); a step costs x' S x + u' R u."""

    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    W: np.ndarray
    V: np.ndarray
    S: np.ndarray
    R: np.ndarray


PLANTS = {
    "double integrator": Plant(
        np.array([[1, DT], [0, 1]]),
        np.array([[DT**2 / 2], [DT]]),
        np.array([[1.0, 0.0]]),
        np.diag([1e-4, 1e-2]),
        np.array([[0.04]]),
        np.diag([1.0, 0.1]),
        np.array([[0.1]]),
    ),
    "cart-pole": Plant(
        *CART_POLE,
        np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0]]),
        np.diag([1e-6, 1e-4, 1e-6, 1e-4]),
        1e-4 * np.eye(2),
        np.diag([1.0, 0.1, 1.0, 0.1]),
        np.array([[0.1]]),
    ),
}


def design(plant):
    """(L, K, the analytic cost of a step)."""
    A, B, C = plant.A, plant.B, plant.C
    P = linalg.solve_discrete_are(A, B, plant.S, plant.R)
    L = np.linalg.solve(plant.R + B.T @ P @ B, B.T @ P @ A)
    predicted = linalg.solve_discrete_are(A.T, C.T, plant.W, plant.V)
    K = predicted @ C.T @ np.linalg.inv(C @ predicted @ C.T + plant.V)
    error = predicted - K @ C @ predicted
    return L, K, np.trace(P @ plant.W) + np.trace(L.T @ (plant.R + B.T @ P @ B) @ L @ error)


def close_loop(plant, L, K):
    """M with (x, m)' = M (x, m) + noise."""
    A, B, C = plant.A, plant.B, plant.C
    return np.block([[A, -B @ L], [K @ C @ A, A - B @ L - K @ C @ A]])


def simulate(plant, L, K, rollouts, steps):
    """(mean cost of each rollout's steps, readings and means of the first), the filter and the plant step by step."""
    rng = np.random.default_rng(0)
    A, B, C = plant.A, plant.B, plant.C
    W, V = np.linalg.cholesky(plant.W).T, np.linalg.cholesky(plant.V).T
    x, m = np.zeros((2, rollouts, len(A)))
    costs, readings, means = np.zeros(rollouts), [], []
    for t in range(steps):
        u = -m @ L.T
        costs += (t >= steps // 10) * (((x @ plant.S) * x).sum(1) + ((u @ plant.R) * u).sum(1))
        x = x @ A.T + u @ B.T + rng.normal(size=x.shape) @ W
        y = x @ C.T + rng.normal(size=(rollouts, len(C))) @ V
        m = m @ A.T + u @ B.T
        m = m + (y - m @ C.T) @ K.T
        readings.append(y[0])
        means.append(m[0])
    return costs / (steps - steps // 10), np.stack(readings), np.stack(means)


@pytest.mark.always
@pytest.mark.parametrize("name", PLANTS)
def test_lqg_costs_what_its_formula_says_and_its_filter_is_a_scan(name):
    plant = PLANTS[name]
    L, K, analytic = design(plant)
    costs, readings, means = simulate(plant, L, K, rollouts=1024, steps=3000)
    assert costs.std() / np.sqrt(len(costs)) < 0.0035 * analytic
    assert costs.mean() == pytest.approx(analytic, rel=0.01)

    F = (np.eye(len(K)) - K @ plant.C) @ (plant.A - plant.B @ L)
    poles, vectors = np.linalg.eig(F)
    drive = readings @ (np.linalg.inv(vectors) @ K).T
    a = jnp.broadcast_to(jnp.asarray(poles, jnp.complex64), (1, *drive.shape))
    modes, _ = linear_scan(a, jnp.asarray(drive, jnp.complex64)[None])
    np.testing.assert_allclose((np.asarray(modes[0]) @ vectors.T).real, means, atol=1e-4 * np.abs(means).max())


@pytest.mark.parametrize("name", PLANTS)
def test_a_closed_loop_is_certified_and_a_gain_that_destabilises_is_refused(name):
    plant = PLANTS[name]
    L, K, _ = design(plant)
    M = close_loop(plant, L, K)
    radius = np.abs(np.linalg.eigvals(M)).max()
    verdict = certify_recurrence(np.linalg.eigvals(M), gate_min=1.0).contraction
    assert verdict.status == "holds" and verdict.rate == pytest.approx(radius) and radius < 0.98

    bad = close_loop(plant, -0.1 * L, K)
    refused = certify_recurrence(bad, gate_min=1.0).contraction
    assert refused.status == "refuted" and refused.rate == pytest.approx(np.abs(np.linalg.eigvals(bad)).max())
    growth = refused.witness.replay(bad, "retain", periods=400 // len(refused.witness.gates))
    assert growth[-1] > 1e6


def test_a_dense_loop_is_certified_as_it_is():
    plant = PLANTS["double integrator"]
    M = close_loop(plant, *design(plant)[:2])
    verdict = certify_recurrence(M, gate_min=1.0).contraction
    powers = [np.linalg.norm(np.linalg.matrix_power(M, t), np.inf) for t in range(200)]
    assert verdict.status == "holds" and (powers <= verdict.constant * verdict.rate ** np.arange(200) * 1.001).all()


def test_the_filter_of_independent_modes_is_a_kalman_scan_unstable_ones_too():
    A, _ = CART_POLE
    a, modes = np.linalg.eig(A)
    q, r, shape = 1e-5, 1e-3, (1, 1000, 4)
    predicted = linalg.solve_discrete_are(A.T, np.eye(4), q * modes @ modes.T, r * modes @ modes.T)
    K = predicted @ np.linalg.inv(predicted + r * modes @ modes.T)
    steady = kalman_scan(*(jnp.broadcast_to(jnp.float32(value), shape) for value in (a, q, r)), jnp.zeros(shape))
    assert a.max() > 1.05
    np.testing.assert_allclose(np.asarray(steady.P[0, -1]) / r, np.diag(np.linalg.solve(modes, K @ modes)), rtol=1e-5)
    left = (steady.gained - steady.forgotten)[0, -1, a.argmax()]
    assert left == pytest.approx(np.log(a.max()), rel=1e-4)
