"""Exact information against brute-force joints and loops in float64 numpy, invariants, limits, derivatives,
mistakes.
"""

import inspect
import sys
from functools import partial, reduce

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.information import gaussian

KINDS = ("diagonal", "dense", "complex")


def draw(kind, n, T, *, m=2, update="retain", seed=0, gates=None):
    """A system whose gates are 0 or 1 in a third of the steps each: (A_t, B_t, Sx, Q_t, P_0) in float64 numpy."""
    rng = np.random.default_rng(seed)
    g = rng.choice([0.0, 1.0, np.nan], (T, n)) if gates is None else gates
    g = np.where(np.isnan(g), rng.uniform(size=(T, n)), g)
    if kind == "diagonal":
        A = np.diag(rng.uniform(-0.95, 0.95, n))
    elif kind == "dense":
        A = rng.normal(size=(n, n))
        A *= 0.95 / np.linalg.norm(A, 2)
    else:  # a pole r exp(i w) as the pair of reals r [[cos w, -sin w], [sin w, cos w]]
        A = np.zeros((n, n))
        for i in range(0, n, 2):
            r, w = rng.uniform(0.3, 0.95), rng.uniform(0, np.pi)
            A[i : i + 2, i : i + 2] = r * np.array([[np.cos(w), -np.sin(w)], [np.sin(w), np.cos(w)]])
    A_t = np.eye(n) - g[:, :, None] * (np.eye(n) - A) if update == "retain" else g[:, :, None] * A
    Q, Sx, P = (covariance(rng, size) for size in (n, m, n))
    B_t = g[:, :, None] * rng.normal(size=(n, m))
    return A_t, B_t, Sx, g[:, :, None] * Q * g[:, None, :], P


def covariance(rng, n):
    F = rng.normal(size=(n, 3 * n))
    return F @ F.T / (3 * n)


def given(system, kind, dtype=jnp.float64):
    A_t, *rest = system
    A_t = np.diagonal(A_t, axis1=1, axis2=2) if kind == "diagonal" else A_t
    return [jnp.asarray(value, dtype) for value in (A_t, *rest)]


def loadings(A_t, B_t, t):
    """H_s = Phi(t, s) B_s for s = 0..t, by plain products."""
    H, Phi = [], np.eye(A_t.shape[1])
    for s in range(t, -1, -1):
        H.insert(0, Phi @ B_t[s])
        Phi = Phi @ A_t[s]
    return H, Phi


def noise_of(A_t, Q_t, P, t):
    N = P
    for s in range(t + 1):
        N = A_t[s] @ N @ A_t[s].T + Q_t[s]
    return N


def joint(system, t, which):
    """I(h_t; x_s for s in which) from the dense covariance of (h_t, x_0..x_t): log det Sigma_h + log det Sigma_x - log
    det of both.
    """
    A_t, B_t, Sx, Q_t, P = system
    H, _ = loadings(A_t, B_t, t)
    Sigma = noise_of(A_t, Q_t, P, t) + sum(h @ Sx @ h.T for h in H)
    cross = np.concatenate([H[s] @ Sx for s in which], axis=1)
    inputs = np.kron(np.eye(len(which)), Sx)
    alive = np.diagonal(Sigma) > 0  # an erased component says nothing
    Sigma, cross = Sigma[np.ix_(alive, alive)], cross[alive]
    both = np.block([[Sigma, cross], [cross.T, inputs]])
    return 0.5 * (np.linalg.slogdet(Sigma)[1] + np.linalg.slogdet(inputs)[1] - np.linalg.slogdet(both)[1])


@pytest.mark.parametrize("update", ["retain", "effective"])
@pytest.mark.parametrize(("n", "T"), [(2, 1), (16, 200)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_form_equals_the_dense_joint(kind, n, T, update):
    system = draw(kind, n, T, update=update)
    steps = sorted({0, T // 3, T - 1})
    expected = np.array([joint(system, t, range(t + 1)) for t in steps])
    with jax.enable_x64(True):
        found = gaussian.state_information(*given(system, kind))[np.array(steps)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    single = gaussian.state_information(*given(system, kind, jnp.float32))[np.array(steps)]
    assert single.dtype == jnp.float32 and (np.abs(single - expected) <= 1e-4 * (1 + expected)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_lag_equals_the_dense_joint(kind):
    system, t = draw(kind, 4, 40), 33
    A_t, B_t, Sx, Q_t, P = system
    alone = [joint(system, t, [t - k]) for k in range(t + 1)]
    past = [joint(system, t, range(t - k + 1)) for k in range(t + 1)]
    since = np.array([0.0, *(joint(system, t, range(t - k, t + 1)) for k in range(t + 1))])
    with jax.enable_x64(True):
        A_t, B_t, Sx, Q_t, P = given(system, kind)
        run = dict(A_t=A_t, B_t=B_t, input_cov=Sx, noise_cov=Q_t, initial_cov=P, t=t)
        np.testing.assert_allclose(gaussian.retention(**run, lags=t + 1), alone, rtol=0, atol=1e-9)
        np.testing.assert_allclose(gaussian.past_information(**run, lags=t + 1), past, rtol=0, atol=1e-9)
        terms = gaussian.chain_terms(**run)
        np.testing.assert_allclose(terms, np.diff(since), rtol=0, atol=1e-9)
        np.testing.assert_allclose(terms.sum(), gaussian.state_information(A_t, B_t, Sx, Q_t, P)[t], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_scan_equals_loop(kind):
    system = draw(kind, 6, 200)
    A_t, B_t, Sx, Q_t, P = system
    S, N, expected = np.zeros_like(P), P, []
    for A, B, Q in zip(A_t, B_t, Q_t, strict=True):
        S, N = A @ S @ A.T + B @ Sx @ B.T, A @ N @ A.T + Q
        expected.append((S, N))
    with jax.enable_x64(True):
        for method in gaussian.METHODS:
            found = gaussian.covariances(*given(system, kind), method=method)
            for part, name in enumerate(("signal", "noise")):
                np.testing.assert_allclose(getattr(found, name), [pair[part] for pair in expected], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_chain_terms_sum_to_the_total_and_lags_to_no_more(dtype):
    tolerance = 1e-9 if dtype == jnp.float64 else 1e-4  # of float32: a thousand roundings
    with jax.enable_x64(dtype == jnp.float64):
        A_t, B_t, Sx, Q_t, P = given(draw("dense", 16, 200), "dense", dtype)
        total = gaussian.state_information(A_t, B_t, Sx, Q_t, P)[150]
        terms = gaussian.chain_terms(A_t, B_t, Sx, Q_t, t=150, initial_cov=P)
        assert terms.shape == (151,) and (terms >= 0).all() and abs(terms.sum() - total) <= tolerance * (1 + total)
        lags = gaussian.retention(A_t, B_t, Sx, Q_t, t=150, lags=100, initial_cov=P)
        assert lags.shape == (100,) and (lags >= 0).all()
        assert (lags <= terms[:100] + tolerance).all() and lags.sum() <= total + tolerance


# Invariants.


@pytest.mark.parametrize("rank", [4, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_drive_in_proportion_to_noise_gives_half_the_rank_times_log(kind, rank):
    """B Sx B' = c Q and P_0 = 0: whatever A and the gates are. A component that was never open holds neither noise nor
    signal.
    """
    rng, c = np.random.default_rng(1), 3.7
    gates = np.where(np.arange(40)[:, None] >= np.array([0, 0, 3, 9])[None], rng.choice([0.0, 0.3, 1.0], (40, 4)), 0.0)
    gates[0, :2] = gates[3, 2] = gates[9, 3] = 1
    A_t, _, _, _, _ = draw(kind, 4, 40, gates=gates)
    F = np.eye(4)[:, :rank] if rank < 4 else rng.normal(size=(4, 4))
    if rank < 4:  # what is never driven stays apart
        A_t = A_t * (np.arange(4) < rank)[None, :, None] * (np.arange(4) < rank)[None, None]
        counts = np.minimum(rank, np.cumsum(gates > 0, axis=0).astype(bool)[:, :rank].sum(1))
    else:
        counts = None
    Q_t = gates[:, :, None] * (F @ F.T) * gates[:, None]
    N, ranks = np.zeros((4, 4)), []
    for A, Q in zip(A_t, Q_t, strict=True):
        N = A @ N @ A.T + Q
        ranks.append(np.linalg.matrix_rank(N, hermitian=True))
    assert counts is None or (counts == ranks).all()
    with jax.enable_x64(True):
        system = A_t, gates[:, :, None] * F, c * np.eye(F.shape[1]), Q_t
        np.testing.assert_allclose(
            gaussian.state_information(*given(system, kind)), 0.5 * np.array(ranks) * np.log1p(c), rtol=0, atol=1e-9
        )


def test_a_scalar_with_a_constant_gate_forgets_geometrically():
    """Theory 4.1: I(h_inf; x_{t-k}) = -1/2 log(1 - (s/(1+s)) (1 - alpha^2) alpha^{2k})."""
    g, a, b, q, Sx, T = 0.4, 0.7, 1.3, 0.5, 2.0, 400  # alpha^800 is zero to float64
    alpha, s, k = 1 - g + g * a, b * b * Sx / q, np.arange(50)
    with jax.enable_x64(True):
        system = jnp.full((T, 1), alpha), jnp.full((T, 1, 1), g * b), jnp.full((1, 1), Sx), jnp.full((1, 1), g * g * q)
        found = gaussian.retention(*system, t=T - 1, lags=50)
        np.testing.assert_allclose(found, -0.5 * np.log1p(-s / (1 + s) * (1 - alpha**2) * alpha ** (2 * k)), rtol=1e-12)
        np.testing.assert_allclose(
            gaussian.capacity(jnp.full((1, 1), b), *system[2:3], jnp.full((1, 1), q)), 0.5 * np.log1p(s), rtol=1e-14
        )
        np.testing.assert_allclose(gaussian.state_information(*system), 0.5 * np.log1p(s), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gates_exceed_the_capacity_and_something_reaches_it(kind):
    rng, n = np.random.default_rng(5), 4
    with jax.enable_x64(True):
        B, Q, Sx = rng.normal(size=(n, n)), covariance(rng, n), covariance(rng, n)
        bound = float(gaussian.capacity(*map(jnp.asarray, (B, Sx, Q))))
        root = np.linalg.inv(np.linalg.cholesky(Q))
        np.testing.assert_allclose(
            bound, n / 2 * np.log1p(np.linalg.norm(root @ B @ np.linalg.cholesky(Sx), 2) ** 2), rtol=1e-12
        )
        for seed in range(5):
            gates = np.random.default_rng(seed).choice([0.0, 0.5, 1.0], (40, n))
            A_t = draw(kind, n, 40, gates=gates, seed=seed)[0]
            system = A_t, gates[:, :, None] * B, Sx, gates[:, :, None] * Q * gates[:, None]
            assert gaussian.state_information(*given(system, kind)).max() <= bound + 1e-9
            each = gaussian.capacity(*(jnp.asarray(value) for value in system[1:]))
            assert each <= bound + 1e-9
        proportional = jnp.linalg.cholesky(jnp.asarray(Q))
        np.testing.assert_allclose(
            gaussian.capacity(proportional, 3 * jnp.eye(n), jnp.asarray(Q)), n / 2 * np.log(4), rtol=1e-12
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_units_of_the_state_do_not_matter(kind):
    A_t, B_t, Sx, Q_t, P = draw(kind, 4, 40)
    units = 10.0 ** np.array([-6, 0, 3, 8])
    scaled = (
        units[:, None] * A_t / units,
        units[:, None] * B_t,
        Sx,
        units[:, None] * Q_t * units,
        units[:, None] * P * units,
    )
    with jax.enable_x64(True):
        found = [gaussian.state_information(*given(system, kind)) for system in ((A_t, B_t, Sx, Q_t, P), scaled)]
        np.testing.assert_allclose(*found, rtol=0, atol=1e-9)


# Strong data processing.


@pytest.mark.parametrize("kind", KINDS)
def test_forgetting_is_bounded_step_by_step(kind):
    system = draw(kind, 4, 40, seed=3)
    with jax.enable_x64(True):
        A_t, B_t, Sx, Q_t, P = given(system, kind)
        run = dict(
            A_t=A_t, B_t=B_t, input_cov=Sx, noise_cov=Q_t + 0.01 * jnp.eye(4)[None], initial_cov=P, t=33, lags=34
        )
        bound, past = gaussian.forgetting_bound(**run), gaussian.past_information(**run)
        assert (past <= bound + 1e-9).all() and bound[20] < bound[0]
        np.testing.assert_allclose(bound[0], past[0], atol=1e-12)
    A_t, B_t, Sx, Q_t, P = system
    Q_t, before = Q_t + 0.01 * np.eye(4), [h @ Sx @ h.T for h in loadings(A_t, B_t, 32)[0]]
    Sigma = noise_of(A_t, Q_t, P, 32) + sum(before)
    after = A_t[33] @ Sigma @ A_t[33].T + B_t[33] @ Sx @ B_t[33].T + Q_t[33]
    root = np.linalg.cholesky(Sigma)
    rho = np.linalg.eigvalsh(root.T @ A_t[33].T @ np.linalg.inv(after) @ A_t[33] @ root)[-1]
    np.testing.assert_allclose(bound[1], rho * joint((A_t, B_t, Sx, Q_t, P), 32, range(33)), rtol=1e-9)


def test_a_scalar_attains_the_strong_bound_to_first_order():
    """For one component rho^2 scales the squared correlation, exactly: I = -1/2 log(1 - r^2)."""
    with jax.enable_x64(True):
        run = dict(
            A_t=jnp.full((40, 1), 0.8),
            B_t=jnp.ones((40, 1, 1)),
            input_cov=jnp.full((1, 1), 1e-6),
            noise_cov=jnp.eye(1),
            t=39,
            lags=20,
        )
        np.testing.assert_allclose(gaussian.forgetting_bound(**run), gaussian.past_information(**run), rtol=1e-5)


# Outputs.


@pytest.mark.parametrize("each", [False, True])
def test_outputs_equal_the_dense_joint(each):
    system, t, rng = draw("dense", 4, 30), 21, np.random.default_rng(7)
    A_t, B_t, Sx, Q_t, P = system
    C, R = rng.normal(size=(30, 3, 4)) if each else rng.normal(size=(3, 4)), covariance(rng, 3)
    C_t = C if each else np.broadcast_to(C, (30, 3, 4))
    N = noise_of(A_t, Q_t, P, t)
    Sigma = N + sum(h @ Sx @ h.T for h in loadings(A_t, B_t, t)[0])
    Y, noise = C_t[t] @ Sigma @ C_t[t].T + R, C_t[t] @ N @ C_t[t].T + R
    with jax.enable_x64(True):
        found = gaussian.output_information(*given(system, "dense")[:4], jnp.asarray(C), jnp.asarray(R), jnp.asarray(P))
        total = gaussian.state_information(*given(system, "dense"))
        joint_det = np.linalg.slogdet(np.block([[Sigma, Sigma @ C_t[t].T], [C_t[t] @ Sigma, Y]]))[1]
        np.testing.assert_allclose(
            found.state[t], 0.5 * (np.linalg.slogdet(Sigma)[1] + np.linalg.slogdet(Y)[1] - joint_det), atol=1e-9
        )
        np.testing.assert_allclose(
            found.inputs[t], 0.5 * (np.linalg.slogdet(Y)[1] - np.linalg.slogdet(noise)[1]), atol=1e-9
        )
        assert (found.inputs <= total + 1e-9).all() and (found.inputs <= found.state + 1e-9).all()  # data processing


@pytest.mark.parametrize("kind", KINDS)
def test_the_filter_equals_the_dense_joint_of_all_outputs(kind):
    system, t, rng = draw(kind, 4, 20), 14, np.random.default_rng(8)
    A_t, B_t, Sx, Q_t, P = system
    C, R = rng.normal(size=(3, 4)), covariance(rng, 3)
    Sigmas = [noise_of(A_t, Q_t + B_t @ Sx @ np.swapaxes(B_t, 1, 2), P, s) for s in range(t + 1)]

    def across(s, r):  # Cov(h_s, h_r)
        return across(r, s).T if s < r else reduce(np.matmul, [*A_t[s:r:-1], Sigmas[r]])

    Y = np.block([[C @ across(s, r) @ C.T + R * (s == r) for r in range(t + 1)] for s in range(t + 1)])
    HY = np.concatenate([across(t, s) @ C.T for s in range(t + 1)], axis=1)
    left = Sigmas[t] - HY @ np.linalg.solve(Y, HY.T)
    with jax.enable_x64(True):
        found = gaussian.filtering_information(*given(system, kind)[:4], jnp.asarray(C), jnp.asarray(R), jnp.asarray(P))
        np.testing.assert_allclose(
            found[t], 0.5 * (np.linalg.slogdet(Sigmas[t])[1] - np.linalg.slogdet(left)[1]), atol=1e-9
        )


# Inputs with memory.


def test_coloured_inputs_equal_the_dense_joint_and_the_white_formula_does_not():
    system, t, rng = draw("dense", 3, 25), 24, np.random.default_rng(9)
    A_t, B_t, _, Q_t, P = system
    F, H, E, Z = rng.normal(size=(2, 2)) * 0.4, rng.normal(size=(2, 2)), covariance(rng, 2), covariance(rng, 2)
    variance = [Z]
    for _ in range(t + 1):
        variance.append(F @ variance[-1] @ F.T + E)

    def across(s, r):  # Cov(x_s, x_r)
        return H @ np.linalg.matrix_power(F, s - r) @ variance[r + 1] @ H.T if s >= r else across(r, s).T

    inputs = np.block([[across(s, r) for r in range(t + 1)] for s in range(t + 1)])
    L = np.concatenate(loadings(A_t, B_t, t)[0], axis=1)
    N = noise_of(A_t, Q_t, P, t)
    expected = 0.5 * (np.linalg.slogdet(N + L @ inputs @ L.T)[1] - np.linalg.slogdet(N)[1])
    with jax.enable_x64(True):
        A_t, B_t, _, Q_t, P = given(system, "dense")
        found = gaussian.coloured_information(A_t, B_t, Q_t, *map(jnp.asarray, (F, H, E)), P, source_cov=jnp.asarray(Z))
        np.testing.assert_allclose(found[t], expected, atol=1e-9)
        white = gaussian.state_information(A_t, B_t, jnp.asarray(across(t, t)), Q_t, P)
        assert abs(white[t] - expected) > 1e-3
        same = gaussian.coloured_information(A_t, B_t, Q_t, jnp.zeros((2, 2)), jnp.eye(2), jnp.asarray(E), P)
        np.testing.assert_allclose(same, gaussian.state_information(A_t, B_t, jnp.asarray(E), Q_t, P), atol=1e-12)


# Limits.


@pytest.mark.parametrize(("kind", "dtype"), [("diagonal", jnp.float64), ("dense", jnp.float32)])
def test_no_noise_is_infinite_and_no_input_is_nothing(kind, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        A_t, B_t, Sx, Q_t, _ = given(draw(kind, 4, 40, gates=np.full((40, 4), 0.5)), kind, dtype)
        assert (gaussian.state_information(A_t, B_t, Sx, 0 * Q_t) == jnp.inf).all()
        assert (gaussian.state_information(A_t, 0 * B_t, Sx, Q_t) == 0).all()
        assert (gaussian.state_information(A_t, 0 * B_t, Sx, 0 * Q_t) == 0).all()
        assert (gaussian.chain_terms(A_t, B_t, Sx, 0 * Q_t, t=20) >= 0).all()
        assert gaussian.chain_terms(A_t, B_t, Sx, 0 * Q_t, t=20).sum() == jnp.inf
        assert gaussian.forgetting_bound(0 * A_t, B_t, Sx, 0 * Q_t, t=9, lags=3).tolist() == [jnp.inf, 0, 0]
        assert (
            gaussian.capacity(B_t[0], Sx, 0 * Q_t[0]) == jnp.inf and gaussian.capacity(0 * B_t[0], Sx, 0 * Q_t[0]) == 0
        )
        closed = given(draw(kind, 4, 40, gates=np.zeros((40, 4))), kind, dtype)
        assert (gaussian.state_information(*closed[:4]) == 0).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_one_direction_without_noise_is_infinite_only_if_an_input_reaches_it(dtype):
    """The noise is on v alone, which no axis is: A = 0.9 I keeps it there. Inputs along v see noise, all others do
    not.
    """
    with jax.enable_x64(dtype == jnp.float64):
        v, T = jnp.asarray([1.0, -2.0, 0.5], dtype), 200
        A_t, Sx, Q = jnp.full((T, 3), 0.9, dtype), jnp.eye(1, dtype=dtype), v[:, None] * v[None]
        along, across = (
            jnp.broadcast_to(b[None, :, None], (T, 3, 1)) for b in (3 * v, v + jnp.asarray([0.0, 0, 1e-2], dtype))
        )
        np.testing.assert_allclose(gaussian.state_information(A_t, along, Sx, Q), 0.5 * np.log(10), rtol=1e-5)
        assert (gaussian.state_information(A_t, across, Sx, Q) == jnp.inf).all()
        first = gaussian.chain_terms(A_t, along, Sx, Q, t=T - 1)
        np.testing.assert_allclose(first.sum(), 0.5 * np.log(10), rtol=1e-4)


def test_noise_is_infinite_until_it_has_spread():
    """One noise source in a rotation: the plane is noisy from the second step on, and the information finite."""
    with jax.enable_x64(True):
        w = 1.0
        A_t = jnp.broadcast_to(0.9 * jnp.asarray([[np.cos(w), -np.sin(w)], [np.sin(w), np.cos(w)]])[None], (5, 2, 2))
        found = gaussian.state_information(A_t, jnp.ones((5, 2, 1)), jnp.eye(1), jnp.diag(jnp.asarray([1.0, 0.0])))
        assert found[0] == jnp.inf and jnp.isfinite(found[1:]).all()


def test_small_and_large_information_keep_their_digits():
    S, N = jnp.diag(jnp.asarray([1e-12, 1e-30])), jnp.diag(jnp.asarray([1.0, 1e-20]))
    np.testing.assert_allclose(gaussian.channel_information(S, N), 0.5 * (1e-12 + 1e-10), rtol=1e-5)
    np.testing.assert_allclose(gaussian.channel_information(1e20 * jnp.eye(2), jnp.eye(2)), np.log(1e20), rtol=1e-6)


# Derivatives.


def test_gradients_equal_finite_differences():
    """Central differences of width 1e-5 in float64 err by about 1e-10 of the third derivative and 1e-11 of the
    value.
    """
    with jax.enable_x64(True):
        gates = np.random.default_rng(0).uniform(size=(12, 3))
        # shut in one component: with two, rho is 1 twice, and the bound has a kink
        gates[::3, 0], gates[1::3, 0] = 0, 1

        def total(A_t, B_t, Sx, Q_t, P):
            run = dict(A_t=A_t, B_t=B_t, input_cov=Sx, noise_cov=Q_t, initial_cov=P, t=11)
            lags = (
                gaussian.retention(**run, lags=12)[3]
                + gaussian.past_information(**run, lags=5)[2]
                + gaussian.forgetting_bound(**run, lags=6)[5]
            )
            outputs = gaussian.output_information(A_t, B_t, Sx, Q_t, B_t[0].T, jnp.eye(2), P)
            filtered = gaussian.filtering_information(A_t, B_t, Sx, Q_t, B_t[0].T + 1, jnp.eye(2), P)[-1]
            whole = jnp.sin(gaussian.state_information(A_t, B_t, Sx, Q_t, P)).sum() + gaussian.chain_terms(**run)[2]
            return (
                whole
                + lags
                + outputs.state[5]
                + outputs.inputs[7]
                + filtered
                + gaussian.capacity(B_t[0] + 0.1, Sx, Q_t[0] + P)
            )

        compare(total, given(draw("dense", 3, 12, gates=gates), "dense"), 1e-5)


def test_gradients_do_not_mind_repeated_eigenvalues():
    with jax.enable_x64(True):
        A_t, B_t, Sx, *_ = given(draw("diagonal", 3, 12, gates=np.full((12, 3), 0.5)), "diagonal")

        def total(A_t, B_t, Q):
            found = gaussian.state_information(0 * A_t + A_t.mean(), B_t, Sx, Q, jnp.eye(3))
            return jnp.sin(found).sum() + gaussian.capacity(B_t[0], Sx, Q)

        compare(total, (A_t, B_t, jnp.eye(3)), 1e-5)


def compare(function, arguments, tolerance):
    both, rng = jax.jit(jax.value_and_grad(function, argnums=tuple(range(len(arguments))))), np.random.default_rng(0)
    gradient = both(*arguments)[1]
    for index, slope in enumerate(gradient):
        direction = rng.normal(size=slope.shape)
        # covariances stay symmetric
        direction = direction + np.swapaxes(direction, -1, -2) if index >= 2 else direction
        moved = [
            both(*arguments[:index], arguments[index] + step * direction, *arguments[index + 1 :])[0]
            for step in (1e-5, -1e-5)
        ]
        expected = (moved[0] - moved[1]) / 2e-5
        assert abs(jnp.sum(slope * direction) - expected) <= tolerance * (1 + abs(expected)), index


def test_second_derivatives():
    with jax.enable_x64(True):
        A_t, B_t, Sx, _, P = given(draw("diagonal", 3, 6), "diagonal")

        def slope(A_t, B_t):
            return jnp.sum(
                jax.grad(lambda B_t: gaussian.state_information(A_t, B_t, Sx, jnp.eye(3), P).sum())(B_t) ** 2
            )

        compare(slope, (A_t, B_t), 1e-5)


def test_gradients_are_finite_where_information_is_infinite_or_a_gate_is_shut():
    with jax.enable_x64(True):
        A_t, B_t, Sx, Q_t, _ = given(draw("dense", 3, 8), "dense")
        shut = jnp.asarray([0.0, 1.0, 1.0])

        def total(noise, B_t):
            found = gaussian.state_information(A_t * shut[None, :, None], B_t * shut[None, :, None], Sx, noise)
            return jnp.where(jnp.isfinite(found), found, 0).sum()

        for noise in (Q_t * shut[None, :, None] * shut[None, None], 0 * Q_t):
            assert all(jnp.isfinite(leaf).all() for leaf in jax.grad(total, argnums=(0, 1))(noise, B_t))


# In JAX.


def test_jit_vmap_and_the_plain_call_agree():
    systems = [given(draw("dense", 3, 10, seed=seed), "dense", jnp.float32) for seed in range(3)]
    batch = [jnp.stack(values) for values in zip(*systems, strict=True)]
    found = jax.jit(jax.vmap(gaussian.state_information))(*batch)
    lags = jax.jit(
        jax.vmap(lambda A_t, B_t, Sx, Q_t, P: gaussian.retention(A_t, B_t, Sx, Q_t, t=9, lags=4, initial_cov=P))
    )(*batch)
    for row, system in enumerate(systems):
        np.testing.assert_allclose(found[row], gaussian.state_information(*system), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            lags[row], gaussian.retention(*system[:4], t=9, lags=4, initial_cov=system[4]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["diagonal", "dense"])
def test_auto_is_sequential_on_a_cpu_and_parallel_elsewhere(kind, monkeypatch):
    for op in ("linear_scan", "dense_scan"):  # the method alone, without the single steps that it gives way to
        monkeypatch.setattr(
            sys.modules[f"selssm_jax.ops._{op}"],
            "composed_or_stepped",
            lambda safe, composed, stepped, *operands: composed(*operands),
        )
    system = given(draw(kind, 3, 64), kind, jnp.float32)

    def whiles(method, platform):
        run = jax.jit(partial(gaussian.covariances, method=method))
        return jax.export.export(run, platforms=[platform])(*system).mlir_module().count("stablehlo.while")

    assert whiles("auto", "cpu") == whiles("sequential", "cpu") == 1
    assert whiles("auto", "tpu") == whiles("associative", "tpu") == 0


# Mistakes.

A, B, ONE, Q = (np.ones(shape, np.float32) for shape in ((5, 3), (5, 3, 2), (2, 2), (3,)))
GOOD = dict(A_t=A, B_t=B, input_cov=np.eye(2, dtype=np.float32), noise_cov=np.eye(3, dtype=np.float32))
LOPSIDED = np.eye(3, dtype=np.float32) + np.float32(0.5) * np.eye(3, k=1, dtype=np.float32)
INDEFINITE = np.eye(3, dtype=np.float32) + 2 * np.ones((3, 3), np.float32) * (1 - np.eye(3, dtype=np.float32))
MISTAKES = {
    "no steps": (
        dict(A_t=A[:0]),
        r"A_t has shape \(0, 3\), expected \(T, n\) for diagonals or \(T, n, n\) with T, n >= 1; repeat a constant A",
    ),
    "not square": (dict(A_t=np.ones((5, 3, 2), np.float32)), r"A_t has shape \(5, 3, 2\), expected"),
    "complex": (
        dict(A_t=A * 1j),
        "A_t has dtype complex64, expected real numbers: give complex poles and states as pairs of reals",
    ),
    "integers": (
        dict(B_t=B.astype(np.int32)),
        r"B_t has dtype int32, expected real numbers: convert it with .astype\(jnp.float32\)",
    ),
    "constant B": (
        dict(B_t=B[0]),
        r"B_t has shape \(3, 2\), expected \(T, n, m\) = \(5, 3, m\) with m >= 1; repeat a constant B",
    ),
    "inputs": (
        dict(input_cov=np.eye(3, dtype=np.float32)),
        r"input_cov has shape \(3, 3\), expected \(2, 2\) from B_t",
    ),
    "diagonal noise": (dict(noise_cov=Q), r"noise_cov has shape \(3,\), expected \(3, 3\) or \(5, 3, 3\) from A_t"),
    "start": (dict(initial_cov=Q), r"initial_cov has shape \(3,\), expected \(3, 3\) from A_t"),
    "nan": (dict(A_t=A * np.nan), "A_t holds nan, expected finite numbers"),
    "negative": (
        dict(noise_cov=-np.eye(3, dtype=np.float32)),
        "noise_cov has -1.0 on its diagonal, expected variances from 0",
    ),
    "not symmetric": (
        dict(noise_cov=LOPSIDED),
        r"noise_cov is not symmetric, expected a covariance: use \(C \+ C.mT\) / 2",
    ),
    "indefinite": (
        dict(noise_cov=INDEFINITE),
        "noise_cov is no covariance: scaled to a unit diagonal it has the eigenvalue -1, expected from 0",
    ),
    "no such step": (dict(t=5), "t=5 is no step: expected an index from 0 to 4, for A_t has T=5 steps"),
    "before the start": (
        dict(t=2, lags=4),
        "lags=4 at t=2: expected from 1 to 3, for lag 2 is that of the first input",
    ),
    "explosion": (
        dict(A_t=np.full((5, 3), 1e10, np.float32)),
        r"covariances overflow \(first at entry 0 of the result\): A_t expands too far",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_their_fix(mistake):
    wrong, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(gaussian.retention)(
            **dict(t=4, lags=2)
            | {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in (GOOD | wrong).items()}
        )


def test_mistakes_of_the_other_functions():
    good, eye = {name: jnp.asarray(value) for name, value in GOOD.items()}, jnp.eye(2)
    cases = [
        (
            gaussian.covariances,
            dict(good, method="chunked"),
            "method='chunked' is unknown: use one of auto, sequential, associative",
        ),
        (
            gaussian.output_information,
            dict(good, C=jnp.ones((2, 4)), observation_cov=eye),
            r"C has shape \(2, 4\), expected \(p, 3\) or \(5, p, 3\) from A_t",
        ),
        (
            gaussian.output_information,
            dict(good, C=jnp.ones((1, 3)), observation_cov=eye),
            r"observation_cov has shape \(2, 2\), expected \(1, 1\) from C",
        ),
        (
            gaussian.filtering_information,
            dict(good, C=jnp.ones((2, 3)), observation_cov=0 * eye),
            "observation_cov is singular, expected a positive definite",
        ),
        (
            gaussian.capacity,
            dict(B=jnp.ones(3), input_cov=eye, noise_cov=eye),
            r"B has shape \(3,\), expected \(n, m\) or \(T, n, m\)",
        ),
        (
            gaussian.capacity,
            dict(B=jnp.ones((3, 2)), input_cov=eye, noise_cov=eye),
            r"noise_cov has shape \(2, 2\), expected \(3, 3\) from B",
        ),
    ]
    coloured = dict(A_t=good["A_t"], B_t=good["B_t"], noise_cov=good["noise_cov"], F=eye, H=eye, innovation_cov=eye)
    cases += [
        (gaussian.coloured_information, coloured | dict(H=jnp.ones(2)), r"H has shape \(2,\), expected \(m, d\)"),
        (
            gaussian.coloured_information,
            coloured | dict(F=jnp.eye(3)),
            r"F has shape \(3, 3\), expected \(2, 2\) from H",
        ),
    ]
    for function, arguments, words in cases:
        with pytest.raises(ValueError, match=words):
            inspect.unwrap(function)(**arguments)
