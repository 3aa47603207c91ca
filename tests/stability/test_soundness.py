"""No certificate is ever exceeded: 500 random systems of each class, two coupled trajectories each, 2000 steps (theory, section 5).

Differences of systems whose gates do not read the state are simulated exactly, as products; those of gates that read it down to
the rounding of float64, below which no difference is looked at.
"""

import dataclasses

import numpy as np
import pytest

from selssm_jax.ops.gating import effective_transition
from selssm_jax.stability import certify_recurrence, laws
from selssm_jax.stability.simulate import observed_rate

SYSTEMS, STEPS = 500, 2000
ROUNDING = 1e-12  # of a distance of trajectories of size 1 that were each computed in float64
SLACK = 1 + 1e-9  # 2000 products of float64


def systems(seed, *, dense):
    """Random transitions of 1 to 4 components, some of which contract only in a weighted norm."""
    rng = np.random.default_rng(seed)
    for _ in range(SYSTEMS):
        n = int(rng.integers(1, 5))
        if dense:
            A = rng.standard_normal((n, n)) * 10 ** rng.uniform(-1, 1, (n, 1))
            A *= rng.uniform(0.2, 1.1) / np.abs(np.linalg.eigvals(np.abs(A))).max()
        else:
            A = rng.uniform(-1.05, 1.05, n)
        yield rng, A, n


def adversarial(rng, low, high, steps):
    """Gates at either end of their range, now at random, now held."""
    held = rng.integers(1, 20)
    chosen = np.repeat(rng.random((-(-steps // held), len(low))) < rng.random(), held, axis=0)[:steps]
    return np.where(chosen, high, low)


def assert_never_exceeded(distances, verdict):
    """distances[t] <= constant rate^t distances[0], in logarithms, where neither can underflow."""
    t = np.arange(len(distances))
    alive = distances > 1e-250
    allowed = np.log(distances[0]) + np.log(verdict.constant) + t * np.log(max(verdict.rate, 1e-300))
    assert (np.log(np.where(alive, distances, 1)) <= np.where(alive, allowed + t * 1e-12 + 1e-9, np.inf)).all()


def products(A, gates, update, e, weights=None):
    """|A_t ... A_1 e| in the (weighted) maximum norm."""
    v = np.ones(len(e)) if weights is None else weights
    sizes = [np.abs(e / v).max()]
    for one in effective_transition(gates, A, update):
        e = one @ e if A.ndim == 2 else one * e
        sizes.append(np.abs(e / v).max())
    return np.array(sizes)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("name", "update"), [("uniform", "retain"), ("uniform", "effective"), ("slow_gates", "retain")])
def test_certified_products_stay_under_their_rate(name, update, dense):
    certified = 0
    for rng, A, n in systems(1, dense=dense):
        high = rng.uniform(0.2, 1, n)
        low = high * rng.uniform(0.0, 1, n)
        verdict = getattr(certify_recurrence(A, gate_min=low, gate_max=high, update=update), name)
        if verdict.status != "holds":
            continue
        certified += 1
        gates = adversarial(rng, low, high, STEPS)
        e = rng.standard_normal(n)
        assert_never_exceeded(products(A, gates, update, e), verdict)
        if verdict.weights is not None:
            assert_never_exceeded(products(A, gates, update, e, verdict.weights), dataclasses.replace(verdict, constant=1.0))
    assert certified > SYSTEMS / 4


def test_refuted_products_come_with_gates_that_grow():
    refuted = 0
    for rng, A, n in systems(2, dense=True):
        low = rng.uniform(0.05, 0.5, n)
        verdict = certify_recurrence(2 * A, gate_min=low).uniform
        if verdict.status == "refuted":
            refuted += 1
            gates = verdict.witness.gates
            assert (gates >= low).all() and (gates <= 1).all()
            sizes = verdict.witness.replay(2 * A, "retain", periods=40)
            assert sizes[-1] >= 0.9 * verdict.witness.growth ** (40 * len(gates))  # |P^k| >= rho(P)^k, up to rounding
    assert refuted > 50


def test_certified_second_moments_stay_under_their_rate():
    certified = 0
    for rng, A, n in systems(3, dense=True):
        modes = int(rng.integers(1, 4))
        gates, p = rng.uniform(0.05, 1, (modes, n)), rng.dirichlet(np.ones(modes))
        verdict = certify_recurrence(A, gate_min=0.05, gate_law=list(zip(p, gates, strict=True))).mean_square
        if verdict.status != "holds":
            continue
        certified += 1
        law = laws.read_law(list(zip(p, gates, strict=True)), A, np.zeros(n), np.ones(n), "retain")
        e = rng.standard_normal(n)
        X = np.outer(e, e)[None]
        moments = [np.trace(X[0])]
        for _ in range(STEPS):
            X = laws.forward(law, X)
            moments.append(np.trace(X[0]))
        assert_never_exceeded(np.array(moments), verdict)
        if moments[-1] > 1e-200:  # the radius is the rate of the moments in the long run
            assert (moments[-1] / moments[-501]) ** (1 / 500) == pytest.approx(verdict.rate, rel=0.01)
    assert certified > SYSTEMS / 4


def test_certified_without_a_law_holds_for_any_independent_gates():
    """1 - g (1 - |A|_2^2) is dimension-free: it asks nothing of |A|'s spectral radius (theory, section 5 B2)."""
    certified = 0
    for rng, A, n in systems(4, dense=True):
        A = A * rng.uniform(0.5, 0.99) / np.linalg.norm(A, ord=2)
        low = rng.uniform(0.05, 0.9)
        verdict = certify_recurrence(A, gate_min=low).mean_square
        assert verdict.status == "holds"
        certified += 1
        gates = [(0.5, rng.uniform(low, 1, n)) for _ in range(2)]
        law = laws.read_law(gates, A, np.zeros(n), np.ones(n), "retain")
        assert laws.mean_square(law).radius <= verdict.rate * SLACK
    assert certified == SYSTEMS


def coupled_sigmoids(rng, A, n, low, L, U, update):
    """Two trajectories under a sigmoid gate of slope L and drives of size U, held for a while, from the invariant box's corners."""
    W = rng.choice([-1, 1], (n, n)) * rng.dirichlet(np.ones(n), n) * 4 * L / (1 - low)
    b, bx = rng.standard_normal(n), 4 * rng.standard_normal(n)
    held = int(rng.integers(1, 30))
    drives = np.repeat(rng.choice([-1.0, 1.0], (-(-STEPS // held), n)), held, axis=0)[:STEPS] * U
    target = np.abs(A) if A.ndim == 2 else np.diag(np.abs(A))
    M = np.linalg.solve(np.eye(n) - target, np.full(n, U))
    h = np.stack([M, -M]) * rng.uniform(0.2, 1)
    distances = [np.abs(h[0] - h[1]).max()]
    for u in drives:
        g = low + (1 - low) / (1 + np.exp(-(h @ W.T + b + bx * u)))
        move = (h @ A.T if A.ndim == 2 else A * h) + u
        h = (1 - g) * h + g * move if update == "retain" else g * move
        distances.append(np.abs(h[0] - h[1]).max())
    return np.array(distances)


@pytest.mark.parametrize("update", ["retain", "effective"])
def test_certified_gates_that_read_the_state_stay_under_their_rate(update, capsys):
    certified, tightness = 0, []
    for rng, A, n in systems(5, dense=True):
        A = A if n > 1 or update == "effective" else A[0]
        low, U = rng.uniform(0.05, 0.9), rng.uniform(0.1, 2)
        alpha = float(np.abs(np.linalg.eigvals(np.abs(A) if A.ndim == 2 else np.diag(np.abs(A)))).max())
        L = rng.uniform(0, 1.2) * low * max(1 - alpha, 0.02) ** 2 / (2 * U)
        verdict = certify_recurrence(A, gate_min=low, gate_lipschitz=L, drive_bound=U, update=update).state_dependent
        if verdict.status != "holds":
            continue
        certified += 1
        distances = coupled_sigmoids(rng, A, n, low, L, U, update)
        above = distances > ROUNDING * distances[0]
        t = np.arange(len(distances))
        assert (distances[above] <= (verdict.constant * verdict.rate**t * distances[0] * SLACK)[above]).all()
        rate = observed_rate(distances)
        assert rate <= verdict.rate * verdict.constant ** (1 / max(above.sum() - 1, 1)) * SLACK
        tightness.append(np.log(verdict.rate) / np.log(max(rate, 1e-300)) if rate < 1 else np.nan)
    with capsys.disabled():
        print(f"\n{update}: {certified} of {SYSTEMS} certified; log kappa / log of the observed rate, median {np.nanmedian(tightness):.2f}")
    assert certified > SYSTEMS / 4
