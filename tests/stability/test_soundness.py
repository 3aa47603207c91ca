"""No certificate is ever exceeded: 500 random systems of each class, two coupled trajectories each, 2000 steps (theory,
section 5).

Differences of systems whose gates do not read the state are simulated exactly, as products; those of gates that read it
down to the rounding of float64, below which no difference is looked at.
"""

import itertools

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


def padded(values, value=0.0):
    """Vectors (n,), matrices (n, n) or sequences (T, n) of systems of different size, stacked for 4 components."""
    square = [array.ndim == 2 and array.shape[0] == array.shape[1] <= 4 for array in values]
    widths = [
        [(0, 4 - array.shape[-1] if axis == array.ndim - 1 or full else 0) for axis in range(array.ndim)]
        for array, full in zip(values, square, strict=True)
    ]
    return np.stack([np.pad(array, width, constant_values=value) for array, width in zip(values, widths, strict=True)])


def assert_never_exceeded(distances, rates, constants, floor=1e-250):
    """distances[t, s] <= constants[s] rates[s]^t distances[0, s], in logarithms, while above `floor` times the
    first.
    """
    t = np.arange(len(distances))[:, None]
    alive = distances > floor * distances[0]
    allowed = np.log(distances[0] * constants) + t * np.log(np.maximum(rates, 1e-300)) + np.log(SLACK)
    assert (np.log(np.where(alive, distances, 1)) <= np.where(alive, allowed, np.inf)).all()


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    ("name", "update"), [("uniform", "retain"), ("uniform", "effective"), ("slow_gates", "retain")]
)
def test_certified_products_stay_under_their_rate(name, update, dense):
    certified = []
    for rng, A, n in systems(1, dense=dense):
        high = rng.uniform(0.2, 1, n)
        low = high * rng.uniform(0.0, 1, n)
        verdict = getattr(certify_recurrence(A, gate_min=low, gate_max=high, update=update), name)
        if verdict.status == "holds":
            certified.append(
                (verdict, A if dense else np.diag(A), adversarial(rng, low, high, STEPS), rng.standard_normal(n))
            )
    assert len(certified) > SYSTEMS / 4
    verdicts, A, gates, e = zip(*certified, strict=True)
    A, gates, e = padded(A), padded(gates, 1.0), padded(e)
    weights = padded([np.ones(4) if one.weights is None else one.weights for one in verdicts], 1.0)
    sizes = [(np.abs(e).max(axis=1), np.abs(e / weights).max(axis=1))]
    for t in range(STEPS):
        e = step(A, gates[:, t], e, update)
        sizes.append((np.abs(e).max(axis=1), np.abs(e / weights).max(axis=1)))
    plain, weighted = np.array(sizes).swapaxes(0, 1)
    rates = np.array([one.rate for one in verdicts])
    assert_never_exceeded(plain, rates, np.array([one.constant for one in verdicts]))
    normed = np.array([one.weights is not None for one in verdicts])
    assert_never_exceeded(weighted[:, normed], rates[normed], 1.0)


def step(A, gate, e, update):
    """A_t e, by the definition."""
    moved = np.einsum("sij,sj->si", A, e)
    return (1 - gate) * e + gate * moved if update == "retain" else gate * moved


def test_refuted_products_come_with_gates_that_grow():
    refuted = 0
    for rng, A, n in itertools.islice(systems(2, dense=True), 150):
        low = rng.uniform(0.05, 0.5, n)
        verdict = certify_recurrence(2 * A, gate_min=low).uniform
        if verdict.status == "refuted":
            refuted += 1
            gates = verdict.witness.gates
            assert (gates >= low).all() and (gates <= 1).all()
            sizes = verdict.witness.replay(2 * A, "retain", periods=40)
            assert sizes[-1] >= 0.9 * verdict.witness.growth ** (40 * len(gates))  # |P^k| >= rho(P)^k, up to rounding
    assert refuted > 30


def test_certified_second_moments_stay_under_their_rate():
    certified = []
    for rng, A, n in systems(3, dense=True):
        modes = int(rng.integers(1, 4))
        gates, p = rng.uniform(0.05, 1, (modes, n)), rng.dirichlet(np.ones(modes))
        verdict = laws.mean_square(
            laws.read_law(list(zip(p, gates, strict=True)), A, np.zeros(n), np.ones(n), "retain")
        )
        if verdict.constant is not None:
            steps = effective_transition(gates, A, "retain")
            moments = sum(share * np.kron(one, one) for share, one in zip(p, steps, strict=True))
            e = rng.standard_normal(n)
            certified.append(
                (
                    verdict,
                    np.pad(moments, (0, 16 - n * n)),
                    np.pad(np.kron(e, e), (0, 16 - n * n)),
                    np.pad(np.eye(n).ravel(), (0, 16 - n * n)),
                )
            )
    assert len(certified) > SYSTEMS / 4
    verdicts, moments, X, trace = zip(*certified, strict=True)
    moments, X, trace = np.stack(moments), np.stack(X), np.stack(trace)
    traces = [(X * trace).sum(axis=1)]
    for _ in range(STEPS):
        X = np.einsum("sij,sj->si", moments, X)
        traces.append((X * trace).sum(axis=1))
    traces, rates = np.array(traces), np.array([one.rate for one in verdicts])
    assert_never_exceeded(traces, rates, np.array([one.constant for one in verdicts]))
    long = traces[600] > 1e-280  # in the long run the rate of the moments is the radius
    np.testing.assert_allclose((traces[600, long] / traces[100, long]) ** (1 / 500), rates[long], rtol=0.01)
    assert long.sum() > 100


def test_certified_without_a_law_holds_for_any_independent_gates():
    """1 - g (1 - |A|_2^2) is dimension-free: it asks nothing of |A|'s spectral radius (theory, section 5 B2)."""
    for rng, A, n in systems(4, dense=True):
        A = A * rng.uniform(0.5, 0.99) / np.linalg.norm(A, ord=2)
        low = rng.uniform(0.05, 0.9)
        verdict = certify_recurrence(A, gate_min=low).mean_square
        assert verdict.status == "holds"
        gates = [(0.5, rng.uniform(low, 1, n)) for _ in range(2)]
        law = laws.read_law(gates, A, np.zeros(n), np.ones(n), "retain")
        assert laws.mean_square(law).radius <= verdict.rate * SLACK


@pytest.mark.parametrize("update", ["retain", "effective"])
def test_certified_gates_that_read_the_state_stay_under_their_rate(update, capsys):
    certified = []
    for rng, A, n in systems(5, dense=True):
        low, U = rng.uniform(0.05, 0.9), rng.uniform(0.1, 2)
        alpha = float(np.abs(np.linalg.eigvals(np.abs(A))).max())
        L = rng.uniform(0, 1.2) * low * max(1 - alpha, 0.02) ** 2 / (2 * U)
        verdict = certify_recurrence(A, gate_min=low, gate_lipschitz=L, drive_bound=U, update=update).state_dependent
        if verdict.status == "holds":
            certified.append((verdict, low, A, *sigmoid_gates(rng, n, low, L), *drives(rng, A, U)))
    assert len(certified) > SYSTEMS / 4
    verdicts, low, *arrays = zip(*certified, strict=True)
    distances = coupled_sigmoids(np.array(low)[:, None, None], *map(padded, arrays), update)
    rates, constants = np.array([one.rate for one in verdicts]), np.array([one.constant for one in verdicts])
    assert_never_exceeded(distances, rates, constants, floor=ROUNDING)
    seen = np.array([observed_rate(one) for one in distances.T])
    ratio = np.log(rates) / np.log(np.maximum(seen, 1e-300))
    with capsys.disabled():
        print(
            f"\n{update}: {len(rates)} of {SYSTEMS} certified; log kappa over that of the observed rate: median "
            f"{np.median(ratio):.2f}, most {ratio.max():.2f}"
        )
    alive = (distances > ROUNDING * distances[0]).sum(axis=0)
    # kappa is never below the observed rate
    assert (seen <= rates * constants ** (1 / np.maximum(alive - 1, 1)) * SLACK).all()


def sigmoid_gates(rng, n, low, L):
    """Weights on the state whose rows have the slope L, on the drive, and biases."""
    W = rng.choice([-1, 1], (n, n)) * rng.dirichlet(np.ones(n), n) * 4 * L / (1 - low)
    return W, 4 * rng.standard_normal(n), rng.standard_normal(n)


def drives(rng, A, U):
    """Drives of size U, held for a while, and a corner of the invariant box."""
    n, held = len(A), int(rng.integers(1, 30))
    radius = np.linalg.solve(np.eye(n) - np.abs(A), np.full(n, U)) * rng.uniform(0.2, 1)
    return np.repeat(rng.choice([-1.0, 1.0], (-(-STEPS // held), n)), held, axis=0)[:STEPS] * U, radius


def coupled_sigmoids(low, A, W, on_drive, bias, drives, radius, update):
    """Distances (T + 1, systems) of two trajectories from opposite corners under sigmoid gates and the same drives."""
    h = np.stack([radius, -radius], axis=1)
    distances = [np.abs(h[:, 0] - h[:, 1]).max(axis=1)]
    for t in range(STEPS):
        u = drives[:, t, None]
        g = low + (1 - low) / (1 + np.exp(-(h @ W.swapaxes(1, 2) + bias[:, None] + on_drive[:, None] * u)))
        move = h @ A.swapaxes(1, 2) + u
        h = (1 - g) * h + g * move if update == "retain" else g * move
        distances.append(np.abs(h[:, 0] - h[:, 1]).max(axis=1))
    return np.array(distances)
