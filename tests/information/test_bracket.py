"""The bracket against known information, its standard error against repetition, and its parts against sums over all
pairs in float64 numpy.
"""

import inspect
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.information import bracket, gaussian

M = 8000  # the size at which the accuracy is promised
SMALL = 600  # no whole number of blocks of PAIRS // 600 rows, and small enough for sums over all pairs


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# One step from h_0 = 0 with b = q = Sx = 1, h = g(x)(x + w), and I(h; x) by quadrature (theory, section 4.2).
ONE_STEP = {
    "sigmoid": (lambda x: sigmoid(2 * x), 0.5903),
    "slow": (lambda x: 1 / (1 + np.abs(x)), 0.2689),
    "latch": (lambda x: 0.1 + 0.9 * sigmoid(4 * (np.abs(x) - 1)), 0.7669),
    "quadratic": (lambda x: 1 / (1 + x**2), 0.3166),
}


def one_step(name, M, seed):
    """(means, covs, states)."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(2, M, 1))
    g = ONE_STEP[name][0](x)
    return g * x, g**2, g * (x + w)


def parallel_channels(information, M, seed, mix=None):
    """h = F (x + v) in n components with the given nats each; F = I and diagonal covs if mix is None."""
    rng = np.random.default_rng(seed)
    noise = 1 / np.expm1(2 * np.asarray(information))
    means = rng.normal(size=(M, len(noise)))
    states = means + np.sqrt(noise) * rng.normal(size=means.shape)
    if mix is None:
        return means, np.broadcast_to(noise, means.shape), states
    return means @ mix.T, np.broadcast_to(mix @ np.diag(noise) @ mix.T, (M, *mix.shape)), states @ mix.T


def selective(n, T, seed, *, dense=False):
    """A layer with a fixed sequence of gates: (A_t, B_t, Sx, Q_t) in float64 numpy, whose information is near 4 nats
    for n = 4.
    """
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, n)) if dense else np.diag(rng.uniform(0.5, 0.95, n))
    A *= 0.9 / np.linalg.norm(A, 2)
    g = rng.uniform(0.1, 1, (T, n))
    A_t = np.eye(n) - g[:, :, None] * (np.eye(n) - A)
    B = rng.normal(size=(n, n)) + 2 * np.eye(n)
    return A_t, g[:, :, None] * B, 0.4 * np.eye(n), (g[:, :, None] * np.eye(n) * g[:, None, :])


def draw_selective(system, M, seed):
    """Means, covs and states of the last step, by plain simulation."""
    A_t, B_t, Sx, Q_t = system
    rng = np.random.default_rng(seed)
    n = A_t.shape[1]
    mean, state, cov = np.zeros((M, n)), np.zeros((M, n)), np.zeros((n, n))
    for A, B, Q in zip(A_t, B_t, Q_t, strict=True):
        drive = rng.normal(size=(M, n)) @ np.linalg.cholesky(Sx).T @ B.T
        mean, state, cov = (
            mean @ A.T + drive,
            state @ A.T + drive + rng.normal(size=(M, n)) * np.sqrt(np.diag(Q)),
            A @ cov @ A.T + Q,
        )
    return mean, np.broadcast_to(cov, (M, n, n)), state


def measure(drawn, dtype=jnp.float32):
    return bracket.state_information(*(jnp.asarray(value, dtype) for value in drawn))


def covers(found, truth):
    return float(found.lower - 2 * found.stderr) <= truth <= float(found.upper + 2 * found.stderr)


def log_densities(means, covs, states):
    """l_ij in float64, pair by pair."""
    covs = np.array([np.diag(cov) for cov in covs]) if covs.ndim == 2 else covs
    gap = states[:, None] - means[None]
    squares = np.einsum("ijk,jkl,ijl->ij", gap, np.linalg.inv(covs), gap)
    return -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covs)[1])


@pytest.mark.parametrize("name", ONE_STEP)
def test_gates_that_read_the_input(name):
    # The 95 of 100, for fewer seeds; by the standard error's caution 98.8 % are expected. The seeds are fixed.
    found = [measure(one_step(name, M, seed)) for seed in range(12)]
    truth = ONE_STEP[name][1]
    assert sum(covers(one, truth) for one in found) >= 11
    assert max(float(one.upper - one.lower) for one in found) <= 0.06
    assert all(one.resolved for one in found)
    # The same formula that realised gates are wrongly put into says 0.347 for every gate (theory, section 4.2).
    assert all(abs(float(one.lower) - 0.5 * math.log(2)) > 0.01 for one in found) or name == "quadratic"


@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
def test_exogenous_gates(dense):
    system = selective(4, 50, 0, dense=dense)
    truth = float(gaussian.state_information(*(jnp.asarray(value, jnp.float32) for value in system))[-1])
    assert 2 < truth < 4
    found = [measure(draw_selective(system, M, seed)) for seed in range(4)]
    assert sum(covers(one, truth) for one in found) == 4
    assert max(float(one.upper - one.lower) for one in found) <= 0.06


@pytest.mark.parametrize("information", [[0.5, 0.5, 0.5, 0.5], [1.0, 1.0, 1.0, 1.0], [3.7, 0.1, 0.1, 0.1]], ids=str)
def test_four_nats_are_within_reach(information):
    found = [measure(parallel_channels(information, M, seed, np.eye(4) + 0.3)) for seed in range(4)]
    assert sum(covers(one, sum(information)) for one in found) == 4
    assert max(float(one.upper - one.lower) for one in found) <= 0.06
    assert all(one.resolved for one in found)


def test_five_seconds_suffice():
    drawn = parallel_channels([1.0] * 4, M, 0, np.eye(4) + 0.3)
    measure(drawn)  # compiles
    seconds = []
    while len(seconds) < 3 and min(seconds, default=5) >= 5:  # another process may hold the machine in one of them
        start = time.perf_counter()
        jax.block_until_ready(measure(drawn))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 5


@pytest.mark.parametrize("information", [[0.01, 0.01], [0.7, 0.1], [2.0, 1.0]], ids=str)
def test_stderr_is_that_of_repetition(information):
    # 200 repetitions know a standard deviation to 5 %: three such, and the jackknife's excess where e^{2I} is not small
    # beside M = 600.
    drawn = [parallel_channels(information, SMALL, seed) for seed in range(200)]
    found = REPEATED(*(jnp.asarray(np.stack(value), jnp.float32) for value in zip(*drawn, strict=True)))
    spread = max(float(found.lower.std()), float(found.upper.std()))
    assert 0.85 <= float(found.stderr.mean()) / (bracket.CAUTION * spread) <= 1.4
    # Both ends hold in expectation: the mean of 200 is known to a 14th of a standard error.
    slack = 3 * spread / math.sqrt(200)
    assert float(found.lower.mean()) - slack <= sum(information) <= float(found.upper.mean()) + slack


REPEATED = jax.jit(jax.vmap(bracket.state_information))


def test_ends_against_sums_over_all_pairs():
    """In float64, but for the control variate: InfoNCE with the exact critic, and the cross-entropy with the defended
    mixture.
    """
    for drawn in (
        parallel_channels([1.5, 0.1], SMALL, 0),
        parallel_channels([1.0, 0.2], SMALL, 0, np.array([[1.0, 0.0], [0.7, 0.5]])),
    ):
        means, covs, states = drawn
        n = means.shape[1]
        logs = log_densities(means, covs, states)
        full = np.array([np.diag(cov) for cov in covs]) if covs.ndim == 2 else covs
        entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * full)[1]
        lower = -entropy - np.log(np.exp(logs).mean(1))
        others = (np.exp(logs) * (1 - np.eye(SMALL))).sum(1) / (SMALL - 1)
        q = np.empty(SMALL)
        for half in (0, 1):
            mean, cov = (
                means[1 - half :: 2].mean(0),
                np.cov(means[1 - half :: 2].T, bias=True).reshape(n, n) + full[1 - half :: 2].mean(0),
            )
            gap = states[half::2] - mean
            q[half::2] = np.exp(-0.5 * np.einsum("ij,jk,ik->i", gap, np.linalg.inv(cov), gap)) / np.sqrt(
                np.linalg.det(2 * np.pi * cov)
            )
        upper = -entropy - np.log((1 - bracket.DEFENCE) * others + bracket.DEFENCE * q)
        with jax.enable_x64(True):
            found = measure(drawn, jnp.float64)
        # the same control variate is taken from both
        assert abs(float(found.upper - found.lower) - (upper - lower).mean()) < 1e-9
        # the control variate is of mean zero and variance n/2 / M at most, 0.06^2
        assert abs(float(found.lower) - lower.mean()) < 0.18


def test_float32_resolves_narrow_noise_far_from_the_origin():
    mix = np.array([[1.0, 0.0], [0.99, 0.05]])  # a condition number of 1500 for the covariances
    means, covs, states = parallel_channels([3.0, 3.0], SMALL, 1, mix)
    with jax.enable_x64(True):
        exact = measure((means, covs, states), jnp.float64)
    shifted = [jnp.asarray(value, jnp.float32) for value in (means, covs, states)]
    found = bracket.state_information(*shifted)
    assert abs(float(found.lower) - float(exact.lower)) < 1e-3 and abs(float(found.upper) - float(exact.upper)) < 1e-3


def test_invariant_under_affine_maps():
    mix, shift = np.array([[2.0, 0.0], [-30.0, 0.1]]), np.array([5.0, -2.0])
    with jax.enable_x64(True):
        plain = measure(parallel_channels([1.0, 0.3], SMALL, 0, np.eye(2)), jnp.float64)
        means, covs, states = parallel_channels([1.0, 0.3], SMALL, 0, mix)
        mapped = measure((means + shift, covs, states + shift), jnp.float64)
        diagonal = measure(parallel_channels([1.0, 0.3], SMALL, 0), jnp.float64)
    np.testing.assert_allclose(np.array(mapped, float), np.array(plain, float), rtol=1e-8)
    np.testing.assert_allclose(np.array(diagonal, float), np.array(plain, float), rtol=1e-10)


def test_more_than_samples_can_tell_is_unresolved():
    found = measure(parallel_channels([4.0, 4.0], SMALL, 0, np.eye(2)))
    assert not found.resolved and float(found.lower) > math.log(SMALL) - 1
    assert float(found.lower) <= 8 <= float(found.upper + 2 * found.stderr)  # still two bounds
    assert measure(parallel_channels([2.0, 2.0], SMALL, 0, np.eye(2))).resolved


def test_inputs_that_say_nothing():
    means, covs, states = parallel_channels([1.0, 1.0], SMALL, 0, np.eye(2))
    found = measure((np.zeros_like(means), covs, states - means))
    # every density is the marginal, and the control explains all
    assert abs(float(found.lower)) < 1e-5 and abs(float(found.upper)) < 1e-5 and found.resolved


def test_derivatives_of_the_lower_end():
    # Central differences of a smooth function in float64: 1e-5 is far above their error of step^2 and eps/step.
    rng = np.random.default_rng(1)
    drawn = parallel_channels([0.8, 0.4], 40, 0, np.array([[1.0, 0.0], [0.5, 0.7]]))
    direction = [0.3 * rng.normal(size=value.shape) for value in drawn]
    direction[1] = direction[1] @ direction[1].mT  # symmetric, as covariances are

    with jax.enable_x64(True):

        @jax.jit
        @jax.value_and_grad
        def lower(step):
            return bracket.state_information(
                *(jnp.asarray(value) + step * jnp.asarray(way) for value, way in zip(drawn, direction, strict=True))
            ).lower

        (up, _), (down, _), (_, slope) = (lower(step) for step in (1e-5, -1e-5, 0.0))
        assert abs(float(slope) - float(up - down) / 2e-5) < 1e-5 < abs(float(slope))


def test_compiled_and_batched_is_the_same():
    drawn = [parallel_channels([0.5, 0.9], SMALL, seed) for seed in range(200)]
    batched = REPEATED(*(jnp.asarray(np.stack(value), jnp.float32) for value in zip(*drawn, strict=True)))
    with jax.enable_x64(True):
        each = [measure(one, jnp.float64) for one in drawn[:3]]
    for i, one in enumerate(each):  # float32 leaves five digits of sums over 600
        np.testing.assert_allclose([float(value[i]) for value in batched], [float(value) for value in one], atol=2e-5)


def test_no_noise_is_never_nan():
    """Where values cannot be looked at, the bracket is all that is certain."""
    drawn = [
        [jnp.asarray(value, jnp.float32) for value in parallel_channels([1.0, 1.0], SMALL, seed)] for seed in range(200)
    ]
    means, covs, states = (jnp.stack(value) for value in zip(*drawn, strict=True))
    found = REPEATED(means, covs.at[4, 7, 1].set(0), states)
    assert (
        np.isinf(found.upper).nonzero()[0].tolist() == [4]
        and np.isfinite(found.lower).all()
        and not np.isnan(found.stderr).any()
    )
    assert found.lower[4] == found.stderr[4] == 0 and not found.resolved[4]
    full = jnp.asarray(parallel_channels([1.0, 1.0], SMALL, 0, np.eye(2))[1], jnp.float32)
    found = jax.jit(bracket.upper_gaussian)(full.at[7].set(1), states[0])
    assert np.isinf(found.nats) and found.stderr == 0


def test_gates_that_read_the_state():
    """I(h_2; h_1, x_2) >= I(h_2; x_{1:2}): both from the one-step law, the second known through the joint law where the
    gate is constant.
    """
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 2, M, 1))
    h1 = 0.5 * (x[0] + w[0])
    for gate in (lambda h: np.full_like(h, 0.5), lambda h: sigmoid(3 * h)):
        g = gate(h1)
        found = measure((h1 + g * (0.8 * h1 + x[1] - h1), g**2, h1 + g * (0.8 * h1 + x[1] + w[1] - h1)))
        assert float(found.upper - found.lower) <= 0.06
        # Invariant of theory 4.1: 1/2 log(1 + s) of all inputs for every exogenous gate; h_1 tells the step more than
        # its inputs do.
        assert float(found.upper) > 0.5 * math.log(2)
        if np.ptp(g) == 0:  # h_2 = 0.9 h_1 + 0.5 (x + w), Var h_1 = 0.5: total 0.81/2 + 0.5, of which noise 0.25
            assert covers(found, 0.5 * math.log((0.405 + 0.5) / 0.25))


@pytest.mark.parametrize("n", [1, 3])
def test_gaussian_upper_bound(n):
    mix = np.tril(np.ones((n, n)))
    drawn = [parallel_channels([0.7] * n, 100, seed, mix) for seed in range(400)]
    with jax.enable_x64(True):
        found = jax.vmap(bracket.upper_gaussian)(
            *(jnp.asarray(np.stack(value)) for value in list(zip(*drawn, strict=True))[1:])
        )
    nats, stderr = np.asarray(found.nats), np.asarray(found.stderr)
    spread = nats.std()
    # 400 repetitions; without the correction for a small sample the mean would be n (n+1) / 400 low, 0.03 for n = 3.
    assert abs(nats.mean() - 0.7 * n) < 3 * spread / 20
    assert 0.85 < stderr.mean() / (bracket.CAUTION * spread) < 1.15


@pytest.mark.parametrize("name", ONE_STEP)
def test_gaussian_upper_bound_lies_over_the_bracket(name):
    means, covs, states = (jnp.asarray(value, jnp.float32) for value in one_step(name, M, 0))
    loose = bracket.upper_gaussian(covs, states)
    g, variance = np.asarray(covs), np.asarray(states).var(ddof=1)
    tight = bracket.state_information(means, covs, states)
    assert float(loose.nats + loose.stderr) > float(tight.lower)
    # but for the correction of order 1/M
    assert abs(float(loose.nats) - (0.5 * math.log(variance) - 0.5 * np.log(g).mean())) < 1e-3


KINDS = [("diagonal", "diagonal"), ("diagonal", "dense"), ("dense", "diagonal"), ("dense", "dense")]


@pytest.mark.parametrize(("transition", "noise"), KINDS)
@pytest.mark.parametrize("start", [None, "diagonal", "dense"])
def test_conditional_moments_against_the_loop(transition, noise, start):
    A_t, B_t, _, Q_t = selective(3, 20, 1, dense=transition == "dense")
    rng = np.random.default_rng(0)
    drives, m0 = np.einsum("tij,tj->ti", B_t, rng.normal(size=(20, 3))), rng.normal(size=3)
    if noise == "dense":
        Q_t = Q_t @ np.swapaxes(Q_t, 1, 2) + np.ones((3, 3))
    P0 = {None: np.zeros((3, 3)), "diagonal": np.diag([1.0, 0.0, 2.0]), "dense": np.eye(3) + 0.5}[start]
    mean, cov, means, covs = m0, P0, [], []
    for A, d, Q in zip(A_t, drives, Q_t, strict=True):
        mean, cov = A @ mean + d, A @ cov @ A.T + Q
        means.append(mean)
        covs.append(cov)
    given = [
        np.diagonal(A_t, axis1=1, axis2=2) if transition == "diagonal" else A_t,
        drives,
        np.diagonal(Q_t, axis1=1, axis2=2) if noise == "diagonal" else Q_t,
    ]
    initial = None if start is None else np.diag(P0) if start == "diagonal" else P0
    with jax.enable_x64(True):
        found = bracket.conditional_moments(
            *(jnp.asarray(value) for value in given), jnp.asarray(m0), None if start is None else jnp.asarray(initial)
        )
    kept = found.covs.ndim == 2
    assert kept == (transition == noise == "diagonal" and start != "dense")
    np.testing.assert_allclose(found.means, means, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        np.array([np.diag(cov) for cov in found.covs]) if kept else found.covs, covs, rtol=1e-12, atol=1e-12
    )


def test_a_layer_from_its_equation_to_its_bracket():
    """h_t = (1 - g) h + g (a h + x + w) with gates that read x, simulated; one step must give the known truth, later
    ones stay under the cheap bound.
    """
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(2, M, 5, 1)).astype(np.float32)
    g, a = sigmoid(2 * x).astype(np.float32), np.float32(0.8)
    A_t, d, Q_t = 1 - g * (1 - a), g * x, g**2
    moments = jax.vmap(bracket.conditional_moments)(jnp.asarray(A_t), jnp.asarray(d), jnp.asarray(Q_t))
    h, states = np.zeros((M, 1), np.float32), []
    for t in range(5):
        h = (1 - g[:, t]) * h + g[:, t] * (a * h + x[:, t] + w[:, t])
        states.append(h)
    states = jnp.asarray(np.stack(states))
    found = [bracket.state_information(moments.means[:, t], moments.covs[:, t], states[t]) for t in range(5)]
    assert covers(found[0], ONE_STEP["sigmoid"][1])
    for t in range(5):
        assert (
            float(found[t].lower)
            <= float(found[t].upper)
            <= float(bracket.upper_gaussian(moments.covs[:, t], states[t]).nats) + 0.02
        )


GOOD = [np.float32(value) for value in parallel_channels([1.0, 1.0], 20, 0, np.eye(2))]
NAN = np.where(np.arange(40).reshape(20, 2) == 5, np.nan, GOOD[0])
SKEW = GOOD[1] + np.float32([[0, 0.1], [0, 0]])
SINGULAR = np.where(np.arange(20)[:, None, None] == 3, np.float32(1), GOOD[1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((GOOD[0][:, 0], *GOOD[1:]), r"means has shape \(20,\), expected \(M, n\)"),
        (
            (GOOD[0], GOOD[1][:5], GOOD[2]),
            r"covs has shape \(5, 2, 2\), expected \(20, 2\) or \(20, 2, 2\) from means; repeat a constant",
        ),
        ((*GOOD[:2], GOOD[2][:, :1]), r"states has shape \(20, 1\), expected \(20, 2\)"),
        (tuple(value[:3] for value in GOOD), r"M=3 rows, expected at least 4: simulate more"),
        ((GOOD[0].astype(int), *GOOD[1:]), r"means has dtype int64, expected real numbers: convert it with .astype"),
        (
            (GOOD[0] + 1j, *GOOD[1:]),
            r"means has dtype complex64, expected real numbers: give complex poles and states as pairs of reals",
        ),
        ((NAN, *GOOD[1:]), r"means holds nan, expected finite numbers"),
        ((GOOD[0], SKEW, GOOD[2]), r"covs\[0\] is not symmetric"),
        (
            (GOOD[0], SINGULAR, GOOD[2]),
            r"covs\[3\] is not positive definite \(1 of 20 are not\): its state has a direction free of noise",
        ),
        ((GOOD[0], np.zeros((20, 2), np.float32), GOOD[2]), r"covs\[0\] is not positive definite \(20 of 20 are not\)"),
    ],
)
def test_mistakes(given, message):
    with jax.enable_x64(True), pytest.raises(ValueError, match=message):
        inspect.unwrap(bracket.state_information)(*map(jnp.asarray, given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((GOOD[1][:3], GOOD[2][:3]), r"states has shape \(3, 2\), expected \(M, n\) with n >= 1 and M >= n \+ 2"),
        ((GOOD[1][:5], GOOD[2]), r"covs has shape \(5, 2, 2\).* from states"),
        ((SINGULAR, GOOD[2]), r"covs\[3\] is not positive definite"),
        ((GOOD[1], np.repeat(GOOD[2][:1], 20, 0)), r"states span fewer than n=2 dimensions"),
    ],
)
def test_mistakes_in_the_gaussian_bound(given, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(bracket.upper_gaussian)(*map(jnp.asarray, given))


STEPS = np.ones((5, 2), np.float32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(drives=STEPS[None]), r"drives has shape \(1, 5, 2\), expected \(T, n\).*use jax.vmap over trajectories"),
        (dict(A_t=STEPS[:1]), r"A_t has shape \(1, 2\), expected \(5, 2\) or \(5, 2, 2\) from drives"),
        (dict(noise_covs=STEPS[:, :1]), r"noise_covs has shape \(5, 1\)"),
        (dict(initial_cov=STEPS), r"initial_cov has shape \(5, 2\), expected \(2,\) or \(2, 2\)"),
        (dict(initial_mean=np.float32([1, np.inf])), r"initial_mean holds inf"),
        (dict(noise_covs=-STEPS), r"noise_covs has the variance -1.0, expected variances from 0"),
        (dict(initial_cov=np.diag([1.0, -2.0]).astype(np.float32)), r"initial_cov has the variance -2.0"),
    ],
)
def test_mistakes_in_the_moments(given, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(bracket.conditional_moments)(
            **jax.tree.map(jnp.asarray, dict(A_t=STEPS, drives=STEPS, noise_covs=STEPS) | given)
        )
