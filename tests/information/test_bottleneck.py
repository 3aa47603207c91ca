"""Bottlenecks against closed forms, dense joints, Mrs Gerber's lemma and convex envelopes; memories under their curve;
mistakes.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.information import bottleneck

BETAS = np.array([0.5, 1.0, 1.01, 1.5, 3.0, 10.0, 100.0, 1e6])


def draw(n, m, seed=0):
    """The blocks of a random covariance of n + m variables with units that differ."""
    rng = np.random.default_rng(seed)
    F = rng.normal(size=(n + m, 2 * (n + m))) * 10.0 ** rng.uniform(-1, 1, (n + m, 1))
    return blocks(F @ F.T, n)


def blocks(joint, n):
    return joint[:n, :n], joint[:n, n:], joint[n:, n:]


def given(covs, dtype=jnp.float64):
    return [jnp.asarray(block, dtype) for block in covs]


def dense_information(joint, n):
    """I between the first n variables and the rest, from determinants."""
    return 0.5 * (
        np.linalg.slogdet(joint[:n, :n])[1] + np.linalg.slogdet(joint[n:, n:])[1] - np.linalg.slogdet(joint)[1]
    )


def chechik(covs, beta):
    """(I(T;X), I(T;Y)) as the paper has it: from the eigenvalues of Sigma_{x|y} Sigma_x^{-1}."""
    X, C, Y = covs
    eigenvalues = np.linalg.eigvals((X - C @ np.linalg.solve(Y, C.T)) @ np.linalg.inv(X)).real
    eigenvalues = eigenvalues[beta * (1 - eigenvalues) > 1]
    complexity = 0.5 * np.log((beta - 1) * (1 - eigenvalues) / eigenvalues).sum()
    return complexity, complexity - 0.5 * np.log(beta * (1 - eigenvalues)).sum()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 3), (3, 5)])
def test_gaussian_curve_is_chechiks(n, m):
    with jax.enable_x64(True):
        for seed in range(10):
            covs = draw(n, m, seed)
            curve = bottleneck.gaussian(*given(covs), jnp.asarray(BETAS))
            expected = np.array([chechik(covs, beta) for beta in BETAS])
            # as the specification demands
            np.testing.assert_allclose(np.stack(curve[1:], 1), expected, rtol=0, atol=1e-8)


def test_gaussian_curve_in_float32():
    covs = draw(4, 3)
    curve = bottleneck.gaussian(*given(covs, jnp.float32), jnp.asarray(BETAS, jnp.float32))
    assert curve.relevance.dtype == jnp.float32
    expected = np.array([chechik(covs, beta) for beta in BETAS])
    assert np.all(np.abs(np.stack(curve[1:], 1) - expected) < 1e-4 * (1 + expected))


def test_gaussian_encoder_reaches_the_curve():
    with jax.enable_x64(True):
        for n, m in [(4, 3), (3, 5)]:
            covs = draw(n, m)
            curve = bottleneck.gaussian(*given(covs), jnp.asarray(BETAS[3:7]))
            for k, beta in enumerate(curve.beta):
                encoder = bottleneck.gaussian_encoder(*given(covs), beta)
                point = bottleneck.encoder_information(encoder, *given(covs))
                # Determinants of the joint covariance of (T, X) and (T, Y), T = A X + N(0, I).
                A, (X, C, Y) = np.asarray(encoder.weights), covs
                T = A @ X @ A.T + np.eye(len(A))
                dense = [
                    dense_information(np.block([[T, A @ cross], [(A @ cross).T, other]]), len(A))
                    for cross, other in ((X, X), (C, Y))
                ]
                for value in (point, dense):
                    np.testing.assert_allclose(value, [curve.complexity[k], curve.relevance[k]], rtol=0, atol=1e-8)


def test_scalar_curve_is_the_closed_form():
    with jax.enable_x64(True):
        complexity = jnp.asarray([0.0, 1e-6, 0.01, 0.3, 1.0, 5.0, jnp.inf])
        for rho in (1e-3, -0.5, 0.9, 0.999):
            bound = bottleneck.gaussian_relevance(
                jnp.array([[4.0]]), jnp.array([[6.0 * rho]]), jnp.array([[9.0]]), complexity
            )
            np.testing.assert_allclose(
                bound, -0.5 * np.log1p(rho**2 * np.expm1(-2 * np.asarray(complexity))), rtol=1e-8, atol=1e-14
            )


def test_relevance_at_a_complexity_is_the_curve():
    with jax.enable_x64(True):
        covs = given(draw(4, 3))
        curve = bottleneck.gaussian(*covs, jnp.logspace(0.01, 8, 200))
        bound = bottleneck.gaussian_relevance(*covs, curve.complexity)
        np.testing.assert_allclose(bound, curve.relevance, rtol=0, atol=1e-12)
        slope = jax.vmap(jax.grad(lambda size: bottleneck.gaussian_relevance(*covs, size)))(curve.complexity)
        used = np.asarray(curve.complexity) > 0
        # 1/beta is the price; differs by rounding times beta
        np.testing.assert_allclose(np.asarray(slope * curve.beta)[used], 1, atol=1e-6)
        steps = np.diff(bottleneck.gaussian_relevance(*covs, jnp.linspace(0, 6, 300)))
        assert (steps > 0).all() and (np.diff(steps) < 1e-12).all()


def test_all_of_the_information_in_the_limit():
    with jax.enable_x64(True):
        for n, m in [(4, 3), (3, 5)]:
            X, C, Y = covs = draw(n, m)
            total = dense_information(np.block([[X, C], [C.T, Y]]), n)
            curve = bottleneck.gaussian(*given(covs), jnp.array([1e12, jnp.inf]))
            np.testing.assert_allclose(curve.relevance, total, rtol=0, atol=1e-10)
            assert np.isinf(curve.complexity[1]) and np.isfinite(curve.complexity[0])
            np.testing.assert_allclose(bottleneck.gaussian_relevance(*given(covs), jnp.inf), total, rtol=0, atol=1e-10)


def test_uncorrelated_parts_are_never_used():
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            X, C, Y = given(draw(3, 3), dtype)
            curve = bottleneck.gaussian(X, 0 * C, Y, jnp.asarray([2.0, 1e12, jnp.inf], dtype))
            assert not np.any(curve.complexity) and not np.any(curve.relevance)
            assert bottleneck.gaussian_relevance(X, 0 * C, Y, 3.0) == 0
            assert not np.any(bottleneck.gaussian_encoder(X, 0 * C, Y, 1e6).weights)


def test_a_deterministic_part_is_infinite_information():
    """Y = (M X, X_1 + noise): from beta > 1 on both are inf, and every nat of a finite memory can be of use."""
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            X, _, _ = draw(3, 2)
            M = np.array([[1.0, 2.0, -1.0], [1.0, 0.0, 0.0]])
            Y = M @ X @ M.T + np.diag([0.0, X[0, 0]])
            covs = given((X, X @ M.T, Y), dtype)
            curve = bottleneck.gaussian(*covs, jnp.asarray([1.0, 1.5, jnp.inf], dtype))
            np.testing.assert_array_equal(curve.complexity, [0, np.inf, np.inf])
            np.testing.assert_array_equal(curve.relevance, [0, np.inf, np.inf])
            complexity = jnp.asarray([0.0, 0.7, jnp.inf], dtype)
            np.testing.assert_array_equal(bottleneck.gaussian_relevance(*covs, complexity), complexity)
            weights = bottleneck.gaussian_encoder(*covs, 1.5).weights
            assert np.isinf(weights).any() and not np.isnan(weights).any()


def test_singular_covariances_count_on_their_range():
    """A variable given twice, and one that is constant, change nothing."""
    with jax.enable_x64(True):
        X, C, Y = covs = draw(3, 2)
        E = np.concatenate([np.eye(3), np.eye(3)[:1], np.zeros((1, 3))])
        betas = jnp.asarray(BETAS)
        plain, twice = (
            bottleneck.gaussian(*given(covs), betas),
            bottleneck.gaussian(*given((E @ X @ E.T, E @ C, Y)), betas),
        )
        np.testing.assert_allclose(np.stack(twice[1:]), np.stack(plain[1:]), rtol=0, atol=1e-8)


def test_derivatives_are_those_of_finite_differences():
    with jax.enable_x64(True):
        # all three correlations equal
        repeated = np.block([[np.eye(3), 0.6 * np.eye(3)], [0.6 * np.eye(3), np.eye(3)]])

        def of_curve(joint):
            curve = bottleneck.gaussian(*blocks(joint, 3), jnp.array([4.0, 30.0]))
            return jnp.sum(curve.complexity) + 2 * jnp.sum(curve.relevance)

        def of_memory(joint):
            encoder = bottleneck.Encoder(jnp.array([[1.0, 2.0, 0.5]]), jnp.array([[0.3]]))
            return bottleneck.gaussian_relevance(*blocks(joint, 3), 0.8) + sum(
                bottleneck.encoder_information(encoder, *blocks(joint, 3))
            )

        rng = np.random.default_rng(0)
        X, C, Y = draw(3, 3, 1)
        for joint in (np.block([[X, C], [C.T, Y]]), repeated):
            F = rng.normal(size=(6, 6))
            direction = 1e-2 * joint * (F + F.T)
            for function in (of_curve, of_memory):
                slope = np.sum(np.asarray(jax.grad(function)(jnp.asarray(joint))) * direction)
                up, down = (float(function(jnp.asarray(joint + sign * 1e-4 * direction))) for sign in (1, -1))
                np.testing.assert_allclose(slope, (up - down) / 2e-4, rtol=1e-5, atol=1e-7)


def test_derivatives_are_numbers_at_the_limits():
    def total(betas, complexity, *covs):
        curve = bottleneck.gaussian(*covs, betas)
        return jnp.stack(
            [
                jnp.sum(curve.complexity),
                jnp.sum(curve.relevance),
                jnp.sum(bottleneck.gaussian_relevance(*covs, complexity)),
            ]
        )

    slopes_of = jax.jit(jax.jacrev(total, argnums=(0, 1, 2, 3, 4)))
    for covs in (draw(2, 2), [np.eye(2)] * 3, [np.eye(2), np.zeros((2, 2)), np.eye(2)]):
        slopes = slopes_of(jnp.array([0.5, 2.0, jnp.inf]), jnp.array([0.0, 1.0, jnp.inf]), *given(covs, jnp.float32))
        assert all(np.isfinite(slope).all() for slope in slopes)


def test_vmap_is_one_by_one():
    with jax.enable_x64(True):
        covs = [jnp.stack(parts) for parts in zip(*(given(draw(3, 2, seed)) for seed in range(4)), strict=True)]
        betas = jnp.asarray(BETAS)
        batch = jax.jit(jax.vmap(bottleneck.gaussian, in_axes=(0, 0, 0, None), out_axes=0))(*covs, betas)
        for k in range(4):
            np.testing.assert_allclose(
                batch.relevance[k], bottleneck.gaussian(*(cov[k] for cov in covs), betas).relevance, rtol=0, atol=1e-12
            )


def test_no_gaussian_encoder_is_above_the_curve():
    with jax.enable_x64(True):
        covs = given(draw(4, 3))
        rng = np.random.default_rng(0)
        weights = jnp.asarray(rng.normal(size=(500, 2, 4)) * 10.0 ** rng.uniform(-2, 1, (500, 1, 1)))
        noise = jnp.broadcast_to(jnp.eye(2)[None], (500, 2, 2))
        point = jax.vmap(lambda A, N: bottleneck.encoder_information(bottleneck.Encoder(A, N), *covs))(weights, noise)
        under = bottleneck.memory_efficiency(point.complexity, point.relevance, *covs)
        assert (under.gap > -1e-10).all() and (under.efficiency < 1 + 1e-8).all()
        assert under.efficiency.max() > 0.5  # the curve is not merely far above


def test_efficiency_at_the_limits_and_beyond():
    covs = given(draw(2, 2), jnp.float32)
    total = float(bottleneck.gaussian(*covs, jnp.array([jnp.inf])).relevance[0])
    past, future = jnp.array([0.0, jnp.inf, 0.0, 1.0]), jnp.array([0.0, total, 0.25, 3.0])
    bound, efficiency, gap = bottleneck.memory_efficiency(past, future, *covs)
    np.testing.assert_allclose(efficiency, [1, 1, np.inf, 3.0 / bound[3]], rtol=1e-6)
    np.testing.assert_allclose(gap, [0, 0, -0.25, bound[3] - 3.0], atol=1e-6)  # negative: not clamped
    assert gap[3] < 0
    certain = bottleneck.memory_efficiency(jnp.inf, jnp.inf, *[jnp.eye(1)] * 3)
    assert (certain.bound, certain.efficiency, certain.gap) == (jnp.inf, 1, 0)


# Time series.


def process(rng, order=2, m=2):
    """Coefficients of a stable autoregression, and the covariance of its innovations, by the companion's spectral
    radius.
    """
    F = rng.normal(size=(order, m, m))
    companion = np.concatenate([np.concatenate(list(F), 1), np.eye((order - 1) * m, order * m)])
    radius = np.abs(np.linalg.eigvals(companion)).max()
    F = F * (0.9 / radius) ** np.arange(1, order + 1)[:, None, None]
    G = rng.normal(size=(m, m))
    return F, G @ G.T + 0.1 * np.eye(m)


def test_autocovariance_solves_yule_walker():
    with jax.enable_x64(True):
        F, E = process(np.random.default_rng(0))
        G = np.asarray(bottleneck.autoregressive_autocovariance(*given((F, E)), lags=6))
        lag = {k: G[k] if k >= 0 else G[-k].T for k in range(-2, 6)}
        for k in range(6):
            np.testing.assert_allclose(
                G[k], sum(F[i] @ lag[k - 1 - i] for i in range(2)) + (E if k == 0 else 0), atol=1e-10
            )


def test_blocks_are_those_of_the_process():
    with jax.enable_x64(True):
        F, E = process(np.random.default_rng(1))
        G = bottleneck.autoregressive_autocovariance(*given((F, E)), lags=7)
        series = bottleneck.time_series_covariances(G, past=4, future=3)
        joint = np.block([[series.past, series.cross], [series.cross.T, series.future]])
        for s in range(7):
            for t in range(7):
                np.testing.assert_array_equal(
                    joint[2 * s : 2 * s + 2, 2 * t : 2 * t + 2], G[s - t] if s >= t else G[t - s].T
                )
        assert np.linalg.eigvalsh(joint)[0] > 0


def test_sample_autocovariance_is_a_covariance_and_near_the_truth():
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        F, E = process(rng)
        x, root = np.zeros((20_000, 2)), np.linalg.cholesky(E)
        for t in range(2, len(x)):
            x[t] = F[0] @ x[t - 1] + F[1] @ x[t - 2] + root @ rng.normal(size=2)
        truth = bottleneck.autoregressive_autocovariance(*given((F, E)), lags=5)
        found = bottleneck.sample_autocovariance(jnp.asarray(x), lags=5)
        # some 5 standard errors with a memory of 10 steps
        assert np.abs(found - truth).max() < 0.1 * np.abs(truth).max()
        # few samples, all lags: still no negative variance
        long = bottleneck.sample_autocovariance(jnp.asarray(x[:12]), lags=12)
        series = bottleneck.time_series_covariances(long, past=6, future=6)
        assert np.linalg.eigvalsh(np.block([[series.past, series.cross], [series.cross.T, series.future]]))[0] > -1e-10


def points_of_states(systems, past=6, future=4):
    """Past and future information of states, and how they lie under the curve."""
    F, E, A, B, Q = (jnp.asarray(np.stack(parts)) for parts in zip(*systems, strict=True))

    def point(F, E, A, B, Q):
        series = bottleneck.time_series_covariances(
            bottleneck.autoregressive_autocovariance(F, E, lags=past + future), past=past, future=future
        )
        steps = [jnp.broadcast_to(matrix[None], (past, *matrix.shape)) for matrix in (A, B)]
        encoder = bottleneck.state_encoder(*steps, Q)
        seen = bottleneck.encoder_information(encoder, *series)
        return seen, bottleneck.memory_efficiency(*seen, *series), encoder, series

    return jax.jit(jax.vmap(point))(F, E, A, B, Q)


def random_state(rng, n=3, m=2):
    A, G = rng.normal(size=(n, n)), rng.normal(size=(n, n))
    return (
        A * rng.uniform(0, 1) / np.abs(np.linalg.eigvals(A)).max(),
        rng.normal(size=(n, m)),
        10.0 ** rng.uniform(-2, 1) * (G @ G.T + 0.1 * np.eye(n)),
    )


def test_states_lie_under_the_curve():
    """200 random linear states driven by random autoregressions; the first of them by dense determinants too."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        systems = [(*process(rng), *random_state(rng)) for _ in range(200)]
        seen, under, encoder, series = points_of_states(systems)
        assert np.isfinite(under.gap).all() and (under.gap > -1e-9).all()
        assert 0.01 < np.median(under.efficiency) < 1 and (under.efficiency < 1 + 1e-8).all()
        for k in range(5):
            (L, N), (P, C, Y) = ([np.asarray(part[k]) for part in group] for group in (encoder, series))
            A, B, Q = systems[k][2:]
            np.testing.assert_allclose(
                L, np.concatenate([np.linalg.matrix_power(A, 5 - s) @ B for s in range(6)], 1), atol=1e-12
            )
            np.testing.assert_allclose(
                N, sum(np.linalg.matrix_power(A, s) @ Q @ np.linalg.matrix_power(A, s).T for s in range(6)), atol=1e-10
            )
            H = L @ P @ L.T + N
            dense = [
                dense_information(np.block([[H, L @ cross], [(L @ cross).T, other]]), len(H))
                for cross, other in ((P, P), (C, Y))
            ]
            np.testing.assert_allclose([seen.complexity[k], seen.relevance[k]], dense, rtol=0, atol=1e-9)


def test_a_state_that_holds_the_last_input_of_a_first_order_process_is_on_the_curve():
    """The future of AR(1) depends on x_t alone: h_t = x_t + noise is optimal, and whatever else h_t holds of the past
    is waste.
    """
    with jax.enable_x64(True):
        one = np.ones((1, 1))
        systems = [(0.8 * one[None], one, a * one, one, q * one) for a in (0.0, 0.7) for q in (0.1, 3.0)]
        _, under, _, _ = points_of_states(systems)
        np.testing.assert_allclose(under.gap[:2], 0, atol=1e-10)
        np.testing.assert_allclose(under.efficiency[:2], 1, atol=1e-10)
        assert (under.gap[2:] > 1e-3).all()


# The discrete bottleneck.


def entropy(p):
    p = np.asarray(p)
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1)


def best_values(curve):
    return np.asarray(curve.relevance) - np.asarray(curve.complexity) / np.asarray(curve.beta)


def test_binary_symmetric_channel_is_mrs_gerbers_lemma():
    """I(T;Y) = log 2 - h(a * delta), a = h^{-1}(log 2 - I(T;X)), a * b = a (1 - b) + b (1 - a) (Wyner and Ziv 1973)."""
    grid = np.concatenate([[0], np.logspace(-12, np.log10(0.5), 20_000)])
    for delta in (0.05, 0.1, 0.3):
        # a symbol that never occurs changes nothing
        p = jnp.asarray([[1 - delta, delta, 0], [delta, 1 - delta, 0]], jnp.float32) / 2
        curve = bottleneck.discrete(p, jnp.asarray(np.linspace(1.1, 12, 24), jnp.float32))
        a = np.interp(np.log(2) - np.asarray(curve.complexity), entropy(np.stack([grid, 1 - grid], 1)), grid)
        flipped = a * (1 - delta) + delta * (1 - a)
        np.testing.assert_allclose(curve.relevance, np.log(2) - entropy(np.stack([flipped, 1 - flipped], 1)), atol=1e-3)
        # both ends, not the origin alone
        assert curve.complexity[0] < 1e-3 and (delta == 0.3 or curve.complexity[-1] > 0.6)


def test_binary_x_is_the_convex_envelope():
    """max I(T;Y) - I(T;X)/beta = H(Y) - H(X)/beta - conv[H(Y|p) - h(p)/beta] at p(x), exact for two inputs: no
    search.
    """
    p_x, rows = np.array([0.3, 0.7]), np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    betas = np.linspace(1.1, 20, 24)
    curve = bottleneck.discrete(jnp.asarray(p_x[:, None] * rows, jnp.float32), jnp.asarray(betas, jnp.float32))
    # finest at the ends, near which the best p(x|t) lie at large beta
    grid = 1 / (1 + np.exp(-np.linspace(-30, 30, 3001)))
    mixed = np.stack([grid, 1 - grid], 1)
    left, right = np.meshgrid(grid[grid < 0.3], grid[grid > 0.3], indexing="ij")
    share = (right - 0.3) / (right - left)
    for beta, value in zip(betas, best_values(curve), strict=True):
        cost = entropy(mixed @ rows) - entropy(mixed) / beta
        pairs = share * cost[grid < 0.3][:, None] + (1 - share) * cost[grid > 0.3][None, :]
        exact = entropy(p_x @ rows) - entropy(p_x) / beta - min(pairs.min(), entropy(p_x @ rows) - entropy(p_x) / beta)
        np.testing.assert_allclose(value, exact, atol=2e-6)  # float32, and a grid of 1/100 in log odds


def random_joint(X, Y, seed):
    p = np.random.default_rng(seed).dirichlet(np.full(X * Y, 0.4)).reshape(X, Y)
    return jnp.asarray(p / p.sum(), jnp.float32)


def test_discrete_curve_is_concave_under_the_information_and_stable():
    betas = jnp.asarray(np.concatenate([np.linspace(0.5, 8, 26), [15.0, 30.0, 100.0, 1000.0]]), jnp.float32)
    for k in range(3):
        p = random_joint(6, 5, k)
        one, two = (bottleneck.discrete(p, betas, seed=seed) for seed in (0, 1))
        total = float(bottleneck._mutual_information(p))
        for curve in (one, two):
            I_X, I_Y = np.asarray(curve.complexity, np.float64), np.asarray(curve.relevance, np.float64)
            assert (
                (np.diff(I_X) > -1e-5).all()
                and (np.diff(I_Y) > -1e-5).all()
                and I_Y.max() < total + 1e-6
                and (I_Y < I_X + 1e-6).all()
            )
            # Concave from the origin: every point is, at its own slope, the best of all (float32).
            values = np.append(I_Y, 0)[None] - np.append(I_X, 0)[None] / np.asarray(betas)[:, None]
            assert (values.max(1) - np.diagonal(values) < 1e-6).all()
            # nothing is used below beta = 1, nearly all in the end
            assert max(abs(I_X[0]), abs(I_Y[0])) < 1e-6 and I_Y[-1] > total - 1e-3
            np.testing.assert_allclose(np.asarray(curve.encoder).sum(2), 1, atol=1e-5)
        sizes = np.linspace(0, float(one.complexity[-1]), 50)
        hulls = [
            np.interp(sizes, np.append(0, curve.complexity), np.append(0, curve.relevance)) for curve in (one, two)
        ]
        np.testing.assert_allclose(*hulls, atol=1e-3)


def test_discrete_points_are_those_of_their_encoders():
    p, betas = random_joint(6, 5, 7), jnp.asarray([3.0, 1.5, 20.0], jnp.float32)  # in no order
    curve = bottleneck.discrete(p, betas, cardinality=3, restarts=2)
    assert curve.encoder.shape == (3, 6, 3)
    for encoder, I_X, I_Y in zip(np.asarray(curve.encoder, np.float64), curve.complexity, curve.relevance, strict=True):
        p_xt = np.asarray(p, np.float64).sum(1)[:, None] * encoder
        p_ty = encoder.T @ np.asarray(p, np.float64)
        for joint, value in ((p_xt, I_X), (p_ty, I_Y)):
            np.testing.assert_allclose(
                value, entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint.ravel()), atol=1e-5
            )
    assert curve.complexity.max() < np.log(3) + 1e-5 and curve.relevance[1] < curve.relevance[0] < curve.relevance[2]


def test_symbols_that_never_occur_and_copies():
    """Y = X of three symbols, others never seen: from beta > 1 on all of H(X); probabilities of 0 make no NaN."""
    p = jnp.zeros((6, 5), jnp.float32).at[jnp.arange(3), jnp.arange(3)].set(jnp.asarray([0.5, 0.3, 0.2], jnp.float32))
    curve = bottleneck.discrete(p, jnp.repeat(jnp.asarray([0.9, 1.5, 50.0], jnp.float32), 10))
    np.testing.assert_allclose(curve.complexity[::10], [0, *[entropy([0.5, 0.3, 0.2])] * 2], atol=1e-5)
    np.testing.assert_allclose(curve.relevance, curve.complexity, atol=1e-5)


# The variational bottleneck.


def sigma_points(covariance):
    """2n equally likely points with this covariance and no mean: expectations of quadratic functions over them are
    exact.
    """
    root = np.linalg.cholesky(covariance) * np.sqrt(len(covariance))
    return np.concatenate([root.T, -root.T])


def test_variational_bounds_are_tight_at_the_optimum_and_valid_elsewhere():
    with jax.enable_x64(True):
        X, C, Y = covs = draw(3, 3)
        curve = bottleneck.gaussian(*given(covs), jnp.array([6.0]))
        A = np.asarray(bottleneck.gaussian_encoder(*given(covs), 6.0).weights)
        T, TY = A @ X @ A.T + np.eye(3), A @ C
        points = sigma_points(np.block([[X, C, X @ A.T], [C.T, Y, C.T @ A.T], [A @ X, A @ C, T]]))
        x, y, t = points[:, :3], points[:, 3:6], points[:, 6:]
        gain = np.linalg.solve(T, TY).T
        R = Y - gain @ TY
        h_y = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * Y)[1]

        def bounds(gain, spread):
            error = y - t @ gain.T
            score = (
                -0.5 * np.einsum("ni,ij,nj->n", error, np.linalg.inv(R), error)
                - 0.5 * np.linalg.slogdet(2 * np.pi * R)[1]
            )
            mean, log_variance = jnp.asarray(x @ A.T), jnp.zeros((len(x), 3))
            weights = dict(rate_weight=1 / 6.0, target_entropy=float(h_y))
            return bottleneck.variational(
                mean, log_variance, jnp.asarray(score), **weights, marginal_log_variance=jnp.asarray(spread)
            )

        exact = bounds(gain, np.log(np.diagonal(T)))  # T is diagonal at the optimum, so that r may be its very law
        np.testing.assert_allclose(
            [exact.complexity, exact.relevance], [curve.complexity[0], curve.relevance[0]], atol=1e-9
        )
        np.testing.assert_allclose(exact.loss, curve.complexity[0] / 6 + h_y - curve.relevance[0], atol=1e-9)
        loose = bounds(0.9 * gain, np.zeros(3))
        assert (
            loose.complexity > exact.complexity + 1e-3
            and loose.relevance < exact.relevance - 1e-4
            and loose.loss > exact.loss
        )


def test_variational_default_marginal_is_standard_normal_and_trains():
    rng = np.random.default_rng(0)
    mean, log_variance = (jnp.asarray(rng.normal(size=(50, 2)), jnp.float32) for _ in range(2))
    score = jnp.asarray(rng.normal(size=50), jnp.float32)
    weights = dict(rate_weight=0.1, target_entropy=2.0)
    plain = bottleneck.variational(mean, log_variance, score, **weights)
    kl = 0.5 * np.mean(np.sum(np.exp(log_variance) + np.square(mean) - 1 - log_variance, axis=1))
    np.testing.assert_allclose(plain, [0.1 * kl - score.mean(), kl, 2.0 + score.mean()], rtol=1e-5)

    def loss(marginal):
        return bottleneck.variational(
            mean, log_variance, score, **weights, marginal_mean=marginal[0], marginal_log_variance=marginal[1]
        ).loss

    # The best marginal has the moments of the aggregate: there the gradient vanishes.
    centre = mean.mean(0)
    aggregate = jnp.stack([centre, jnp.log(jnp.mean(jnp.exp(log_variance) + (mean - centre[None]) ** 2, axis=0))])
    np.testing.assert_allclose(jax.grad(loss)(aggregate), 0, atol=1e-6)
    assert loss(aggregate) < plain.loss


# Mistakes.

ONE, TWO, CROSS, BETA = np.eye(1), np.eye(2), np.full((2, 1), 0.5), np.array([2.0])
SERIES = np.ones((3, 2, 2)) * 0.1
COVARIANCES = dict(cov_x=TWO, cov_xy=CROSS, cov_y=ONE)
CURVE = COVARIANCES | dict(betas=BETA)
MISTAKES = {
    "transposed": (
        "gaussian",
        CURVE | dict(cov_xy=CROSS.T),
        r"cov_x \(2, 2\), cov_xy \(1, 2\) and cov_y \(1, 1\) do not fit: expected \(n, n\), \(n, m\)",
    ),
    "vector": ("gaussian", CURVE | dict(cov_xy=CROSS[:, 0]), r"cov_xy \(2,\)"),
    "integers": (
        "gaussian",
        CURVE | dict(cov_x=np.eye(2, dtype=int)),
        r"cov_x has dtype int32, expected real numbers: convert it with .astype",
    ),
    "nan": ("gaussian", CURVE | dict(cov_x=TWO * np.nan), "holds nan, expected finite numbers"),
    "negative": ("gaussian", CURVE | dict(cov_y=-ONE), "has -1.* on its diagonal, expected variances from 0"),
    "lopsided": ("gaussian", CURVE | dict(cov_x=TWO + np.eye(2, k=1) / 2), "is not symmetric, expected a covariance"),
    "too much": (
        "gaussian",
        CURVE | dict(cov_xy=2 * CROSS),
        r"has the eigenvalue -0.414, expected from 0; estimate all blocks",
    ),
    "no price": ("gaussian", CURVE | dict(betas=0 * BETA), "betas hold 0.0, expected positive multipliers"),
    "number": ("gaussian", CURVE | dict(betas=BETA[0]), r"betas have shape \(\), expected \(K,\)"),
    "infinite": (
        "gaussian_encoder",
        COVARIANCES | dict(beta=np.inf),
        "betas hold inf, expected positive finite multipliers",
    ),
    "less than none": (
        "gaussian_relevance",
        COVARIANCES | dict(complexity=-BETA),
        r"complexity holds -2.0, expected information from 0, in nats",
    ),
    "nan memory": (
        "gaussian_relevance",
        COVARIANCES | dict(complexity=np.nan),
        "complexity holds nan, expected information from 0",
    ),
    "wide": (
        "encoder_information",
        COVARIANCES | dict(encoder=bottleneck.Encoder(jnp.ones((1, 3)), jnp.eye(1))),
        r"encoder has weights \(1, 3\) and noise_cov \(1, 1\), expected \(r, 2\) and \(r, r\) from cov_x",
    ),
    "counts": (
        "discrete",
        dict(p_xy=TWO, betas=BETA),
        r"p_xy has least entry 0 and sum 2, expected probabilities that sum to 1: use p_xy / p_xy.sum\(\)",
    ),
    "no table": ("discrete", dict(p_xy=BETA / 2, betas=BETA), r"p_xy has shape \(1,\), expected \(X, Y\)"),
    "no start": ("discrete", dict(p_xy=TWO / 2, betas=BETA, restarts=0), "restarts=0, expected at least 1"),
    "no symbol": ("discrete", dict(p_xy=TWO / 2, betas=BETA, cardinality=0), "cardinality=0, expected at least 1"),
    "scores": (
        "variational",
        dict(mean=TWO, log_variance=TWO, log_likelihood=np.ones(3), rate_weight=1.0, target_entropy=0.0),
        r"log_likelihood has shape \(3,\), expected \(2,\) from mean",
    ),
    "point": (
        "memory_efficiency",
        dict(
            past_information=np.ones(2), future_information=np.ones(3), cov_past=ONE, cov_cross=ONE / 2, cov_future=ONE
        ),
        r"future_information has shape \(3,\), expected \(2,\) from past_information",
    ),
    "nan point": (
        "memory_efficiency",
        dict(past_information=1.0, future_information=np.nan, cov_past=ONE, cov_cross=ONE / 2, cov_future=ONE),
        "holds nan",
    ),
    "few lags": (
        "time_series_covariances",
        dict(autocovariance=SERIES, past=2, future=2),
        r"expected \(L, m, m\) with L >= past \+ future = 4 lags",
    ),
    "no steps": (
        "time_series_covariances",
        dict(autocovariance=SERIES, past=0, future=2),
        "past=0, expected at least 1",
    ),
    "unstable": (
        "autoregressive_autocovariance",
        dict(coefficients=TWO[None], innovation_cov=TWO, lags=2),
        "coefficients have spectral radius 1, expected",
    ),
    "one step": (
        "autoregressive_autocovariance",
        dict(coefficients=TWO, innovation_cov=TWO, lags=2),
        r"expected \(p, m, m\) with p >= 1 and \(m, m\)",
    ),
    "no lag": (
        "autoregressive_autocovariance",
        dict(coefficients=TWO[None] / 2, innovation_cov=TWO, lags=0),
        "lags=0, expected at least 1",
    ),
    "short": (
        "sample_autocovariance",
        dict(samples=np.ones((3, 1)), lags=4),
        r"samples have shape \(3, 1\) for lags=4, expected",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_their_fix(mistake):
    name, arguments, words = MISTAKES[mistake]
    arrays = {key: jnp.asarray(value) if isinstance(value, np.ndarray) else value for key, value in arguments.items()}
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(getattr(bottleneck, name))(**arrays)
