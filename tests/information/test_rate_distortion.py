"""Rate and distortion against closed forms, bisection, plain Blahut-Arimoto, converses and the paper's
counterexamples.
"""

import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.cluster import vq

from selssm_jax.information import rate_distortion

CLOSED = 1e-8  # what the closed forms and the certificates are asked to keep, in float64


def covariance(rng, n):
    F = rng.normal(size=(n, 2 * n)) * np.logspace(0, -2, n)[:, None]
    return F @ F.T


def bisected(variances, distortion):
    """R(D) by halving the interval of the level theta, 200 times."""
    low, high = 0.0, variances.max()
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if np.minimum(theta, variances).sum() < distortion else (low, theta)
    return 0.5 * np.log(np.maximum(variances / theta, 1)).sum()


def binary_entropy(x):
    return -x * np.log(x) - (1 - x) * np.log(1 - x)


def draw_problems(rng, count, X=16, Y=16):
    """Sources from nearly uniform to nearly certain; distortions real, tied and metric; slopes over five decades."""
    p = np.stack([rng.dirichlet(np.full(X, 10 ** rng.uniform(-2, 1))) for _ in range(count)])
    d = rng.exponential(size=(count, X, Y)) ** 2
    d[::3] = rng.integers(0, 3, d[::3].shape)
    d[1::3] = (rng.normal(size=(len(d[1::3]), X, 1)) - rng.normal(size=(len(d[1::3]), 1, Y))) ** 2
    return p / p.sum(1, keepdims=True), d, 10 ** rng.uniform(-2, 3, count)


def test_gaussian_is_its_closed_form():
    with jax.enable_x64(True):
        D = jnp.array([0.1, 0.5, 1.7])
        np.testing.assert_allclose(rate_distortion.gaussian(jnp.array([1.7]), D), 0.5 * np.log(1.7 / D), atol=CLOSED)
        np.testing.assert_allclose(
            rate_distortion.gaussian(1.7 * jnp.eye(3), D), 1.5 * np.log(3 * 1.7 / D), atol=CLOSED
        )
        # theta = 1/2 leaves 1/4 to the least component and 1/2 to each of the others: 1/2 log 8 + 1/2 log 2 = log 4.
        np.testing.assert_allclose(rate_distortion.gaussian(jnp.array([0.25, 4.0, 1.0]), 1.25), np.log(4), atol=CLOSED)


def test_gaussian_is_what_bisection_finds():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for _ in range(20):
            cov = covariance(rng, 6)
            D = np.trace(cov) * np.array([[1e-6, 1e-3, 0.1], [0.5, 0.9, 0.999]])
            expected = [[bisected(np.linalg.eigvalsh(cov), value) for value in row] for row in D]
            np.testing.assert_allclose(
                rate_distortion.gaussian(jnp.asarray(cov), jnp.asarray(D)), expected, atol=CLOSED
            )


def test_distortion_rate_inverts_rate_distortion():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        for _ in range(20):
            cov = jnp.asarray(covariance(rng, 6))
            R = jnp.asarray(np.append(0.0, 10 ** rng.uniform(-3, 1.5, 7)))
            D = rate_distortion.gaussian_inverse(cov, R)
            np.testing.assert_allclose(rate_distortion.gaussian(cov, D), R, atol=CLOSED)
            np.testing.assert_allclose(
                rate_distortion.gaussian_inverse(cov, rate_distortion.gaussian(cov, D)), D, rtol=CLOSED
            )


def test_gaussian_rate_falls_is_convex_and_has_the_slope_of_its_level():
    with jax.enable_x64(True):
        cov = jnp.asarray(covariance(np.random.default_rng(2), 6))
        D = jnp.linspace(0.01, 1, 60) * jnp.trace(cov)
        rate, theta = rate_distortion.gaussian(cov, D), rate_distortion.water_filling(cov, D).theta
        assert (np.diff(rate) < 0).all()
        assert (np.diff(rate, 2) > -CLOSED).all()
        slopes = jax.grad(lambda D: rate_distortion.gaussian(cov, D).sum())(D)
        # at D = tr cov, the last, there is a kink
        np.testing.assert_allclose(slopes[:-1], -0.5 / theta[:-1], rtol=CLOSED)
        R = jnp.linspace(0, 12, 60)
        assert (np.diff(rate_distortion.gaussian_inverse(cov, R)) < 0).all()
        assert (np.diff(rate_distortion.gaussian_inverse(cov, R), 2) > -CLOSED).all()


def test_gradients_are_finite_differences():
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        direction = rng.normal(size=(6, 6))
        direction = jnp.asarray(direction + direction.T)
        spectra = (covariance(rng, 6), np.diag([2.0, 2, 2, 1, 1, 1]))  # repeated eigenvalues have derivatives too
        for cov in map(jnp.asarray, spectra):
            for function, level in (
                (rate_distortion.gaussian, 0.3 * jnp.trace(cov)),
                (rate_distortion.gaussian_inverse, 2.0),
            ):
                gradient = (jax.grad(lambda cov, f=function, level=level: f(cov, level))(cov) * direction).sum()
                ends = [function(cov + step * direction, level) for step in (1e-6, -1e-6)]
                # 1e-5 relative: the differences' own error, of order step^2 and rounding / step
                np.testing.assert_allclose(gradient, (ends[0] - ends[1]) / 2e-6, rtol=1e-5)


def test_gaussian_limits_are_numbers():
    cov = jnp.array([[1.0, 1.0], [1.0, 1.0]])  # rank one: eigenvalues 2 and 0, but for rounding
    D = jnp.array([0.0, 1.0, 2.0, 7.0, jnp.inf])
    np.testing.assert_allclose(rate_distortion.gaussian(cov, D), [np.inf, 0.5 * np.log(2), 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        rate_distortion.gaussian_inverse(cov, jnp.array([0.0, 0.5 * np.log(2), jnp.inf])), [2, 1, 0], atol=1e-6
    )
    assert rate_distortion.gaussian(jnp.zeros(3), 0) == 0
    assert rate_distortion.gaussian_inverse(jnp.zeros(3), 1.0) == 0
    np.testing.assert_array_equal(rate_distortion.water_filling(jnp.array([1.0, 0.0]), 0.0).rates, [np.inf, 0])
    for D in (0.0, 1.0, 5.0):
        assert np.isfinite(jax.grad(rate_distortion.gaussian)(jnp.eye(2), D)).all()
    jitted = jax.jit(rate_distortion.gaussian)  # where values are not looked at, the impossible costs inf
    assert jitted(jnp.eye(2), jnp.array(-1.0)) == jitted(jnp.eye(2), jnp.array(jnp.nan)) == np.inf


def test_allocation_adds_up_in_the_order_of_the_components():
    allocation = rate_distortion.water_filling(jnp.array([0.25, 4.0, 1.0]), jnp.array([1.25, 6.0]))
    np.testing.assert_allclose(allocation.theta, [0.5, 4])
    np.testing.assert_allclose(allocation.rates, [[0, 0.5 * np.log(8), 0.5 * np.log(2)], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(allocation.distortions, [[0.25, 0.5, 0.5], [0.25, 4, 1]])


def test_gaussian_under_jit_and_vmap():
    covs = jnp.stack([jnp.eye(2), jnp.diag(jnp.array([4.0, 1.0]))])
    rates = jax.jit(jax.vmap(rate_distortion.gaussian))(covs, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(rates, [np.log(2), 0.5 * np.log(4)], rtol=1e-6)


def test_gauss_markov_is_its_formula():
    with jax.enable_x64(True):
        rate = rate_distortion.gauss_markov(jnp.array(0.9), 2.0, jnp.array([0.0, 0.1, 2 / (1 - 0.81), 20.0]))
        np.testing.assert_allclose(rate, [np.inf, 0.5 * np.log(0.81 + 20), 0, 0], atol=CLOSED)
        np.testing.assert_allclose(
            rate_distortion.gauss_markov(0.0, 2.0, 0.1), rate_distortion.gaussian(jnp.array([2.0]), 0.1), atol=CLOSED
        )
        # What an unstable state needs however much error is allowed, and where there is no noise at all.
        np.testing.assert_allclose(
            rate_distortion.gauss_markov(-2.0, 0.0, jnp.array([0.0, 1e9])), np.log(2), atol=CLOSED
        )


def test_causal_code_pays_at_least_what_one_that_waits_pays():
    with jax.enable_x64(True):
        a, q, D = 0.9, 1.0, 0.2
        frequencies = np.linspace(0, np.pi, 20001)
        spectrum = q / np.abs(1 - a * np.exp(1j * frequencies)) ** 2
        assert spectrum.min() > D  # so that the level is D at every frequency
        waits = 0.5 * np.trapezoid(np.log(spectrum / D), frequencies) / np.pi
        np.testing.assert_allclose(waits, 0.5 * np.log(q / D), atol=1e-7)  # Kolmogorov's formula
        assert waits < rate_distortion.gauss_markov(a, q, D)


def test_shannon_lower_bound_is_tight_for_a_gaussian_until_the_level_meets_a_component():
    with jax.enable_x64(True):
        variances = jnp.array([4.0, 1.0, 0.5])
        entropy = float(0.5 * jnp.log(2 * jnp.pi * jnp.e * variances).sum())
        D = jnp.array([0.0, 0.3, 1.5, 2.5, 5.5, 9.0])
        bound, rate = rate_distortion.shannon_lower_bound(entropy, 3, D), rate_distortion.gaussian(variances, D)
        np.testing.assert_allclose(bound[:3], rate[:3], atol=CLOSED)  # D <= n lambda_min
        assert (bound[3:] < rate[3:]).all()
        assert bound[-1] < 0  # not clamped


def laplace(cells):
    """Cells of a Laplace source of variance 1: probabilities and centroids; and its entropy."""
    b = np.sqrt(0.5)
    edges = np.linspace(0, 6, cells // 2)
    tail = np.append(np.exp(-edges / b), 0)
    moment = np.append((edges + b) * np.exp(-edges / b), 0)
    mass, first = -np.diff(tail) / 2, -np.diff(moment) / 2
    return np.concatenate([mass[::-1], mass]), np.concatenate([-(first / mass)[::-1], first / mass]), 1 + np.log(2 * b)


def uniform(cells):
    """The same of a uniform source of variance 1."""
    edges = np.linspace(-np.sqrt(3), np.sqrt(3), cells + 1)
    return np.full(cells, 1 / cells), (edges[1:] + edges[:-1]) / 2, 0.5 * np.log(12)


@pytest.mark.parametrize("source", [laplace, uniform])
def test_shannon_bound_truth_and_gaussian_bound_are_in_order(source):
    """For X in cells with centroids X', delta^2 = E(X - X')^2 = 1 - Var X', and reproductions on a grid of spacing h:

    a code of X' with distortion D is one of X with D + delta^2, for X - X' is orthogonal to it: R_X(D + delta^2) <=
    rate; a code of X is one of X' with reproductions moved by at most h/2: rate - gap <= R_X((sqrt D - delta - h/2)^2).
    """
    mass, centroids, entropy = source(200)
    grid = np.linspace(centroids[0], centroids[-1], 301)
    delta, half = np.sqrt(1 - mass @ centroids**2), (grid[1] - grid[0]) / 2
    with jax.enable_x64(True):
        d = (centroids[:, None] - grid[None]) ** 2
        point = rate_distortion.curve(jnp.asarray(mass), jnp.asarray(d), jnp.array([0.7, 2.0, 6.0]))
        assert (point.gap <= CLOSED).all()
        assert (rate_distortion.shannon_lower_bound(entropy, 1, point.distortion + delta**2) <= point.rate).all()
        assert (
            point.rate - point.gap
            <= rate_distortion.gaussian(jnp.ones(1), (jnp.sqrt(point.distortion) - delta - half) ** 2)
        ).all()
        # Neither is idle: from theory, h of these sources is at most 0.18 nats under the Gaussian's.
        assert (point.rate - rate_distortion.shannon_lower_bound(entropy, 1, point.distortion + delta**2) < 0.18).all()


def test_blahut_arimoto_of_binary_and_8_ary_symbols_under_hamming_distortion():
    with jax.enable_x64(True):
        slopes = jnp.array([0.9, 1.5, 3.0, 8.0])
        point = rate_distortion.curve(jnp.array([0.3, 0.7]), 1 - jnp.eye(2), slopes)
        # a minimum: its place is known to the root of its value
        np.testing.assert_allclose(point.distortion, 1 / (1 + np.exp(slopes)), atol=1e-6)
        np.testing.assert_allclose(point.rate, binary_entropy(0.3) - binary_entropy(point.distortion), atol=CLOSED)
        point = rate_distortion.curve(jnp.full(8, 1 / 8), 1 - jnp.eye(8), slopes)
        truth = np.log(8) - binary_entropy(point.distortion) - point.distortion * np.log(7)
        np.testing.assert_allclose(point.rate, truth, atol=CLOSED)
        np.testing.assert_allclose(point.distortion, 7 / (7 + np.exp(slopes)), atol=1e-6)
        assert (point.gap <= CLOSED).all()


@pytest.mark.parametrize(("X", "Y"), [(16, 16), (3, 16)])
def test_certified_gap_of_random_problems(X, Y):
    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        p, d, slopes = map(jnp.asarray, draw_problems(rng, 300, X, Y))
        point = jax.jit(jax.vmap(rate_distortion.blahut_arimoto))(p, d, slopes)
        assert (point.gap <= CLOSED).all() and (point.gap >= 0).all()
        assert (point.rate >= 0).all() and (point.distortion >= (p * d.min(2)).sum(1) - 1e-12).all()


def test_certificate_holds_against_plain_iterations_and_where_it_was_cut_short():
    """F* <= F(q) for the q of every method, and F* >= (rate - gap) + s D, whatever the number of steps."""
    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        p, d, slopes = draw_problems(rng, 60, 5, 6)
        for limit in (1, 4, 100):
            point = jax.vmap(partial(rate_distortion.blahut_arimoto, max_iterations=limit))(
                *map(jnp.asarray, (p, d, slopes))
            )
            A = np.exp(-slopes[:, None, None] * (d - d.min(2, keepdims=True)))
            q = np.full((60, 6), 1 / 6)
            for _ in range(2000):
                q = q * np.einsum("bx,bxj->bj", p / np.einsum("bxj,bj->bx", A, q), A)
            plain = -(p * np.log(np.einsum("bxj,bj->bx", A, q))).sum(1) + slopes * (p * d.min(2)).sum(1)
            reached = np.asarray(point.rate + slopes * point.distortion)
            rounding = 1e-12 * (1 + np.abs(plain))
            assert (reached - point.gap <= plain + rounding).all()
            if limit == 100:
                assert (reached <= plain + CLOSED + rounding).all()
                assert (point.gap <= CLOSED).all()


def test_blahut_arimoto_cut_short_brackets_the_truth():
    with jax.enable_x64(True):
        for limit in (1, 2, 3, 5):
            point = rate_distortion.blahut_arimoto(jnp.array([0.3, 0.7]), 1 - jnp.eye(2), 1.5, max_iterations=limit)
            truth = binary_entropy(0.3) - binary_entropy(point.distortion)
            assert point.rate - point.gap - 1e-12 <= truth <= point.rate + 1e-12


def test_blahut_arimoto_with_forbidden_reproductions():
    """Erasures: a symbol is told or erased, never mistaken. R(D) = (1 - D) log 2, a straight line of slope log 2."""
    d = jnp.array([[0.0, jnp.inf, 1.0], [jnp.inf, 0.0, 1.0]])
    with jax.enable_x64(True):
        point = rate_distortion.curve(jnp.array([0.5, 0.5]), d, jnp.array([0.0, 0.5, np.log(2), 1.0, 30.0]))
        np.testing.assert_allclose(point.rate, (1 - point.distortion) * np.log(2), atol=CLOSED)
        np.testing.assert_allclose(point.distortion[jnp.array([1, 3, 4])], [1, 0, 0], atol=1e-7)  # gap / |s - log 2|


def test_blahut_arimoto_at_slope_zero_and_in_float32():
    rng = np.random.default_rng(6)
    p, d, slopes = (jnp.asarray(value, jnp.float32) for value in draw_problems(rng, 300, 16, 16))
    assert rate_distortion.blahut_arimoto(p[0], d[0], 0).rate == 0
    point = jax.jit(jax.vmap(rate_distortion.blahut_arimoto))(p, d, slopes)
    assert all(np.isfinite(value).all() for value in point)
    with jax.enable_x64(True):
        exact = jax.jit(jax.vmap(rate_distortion.blahut_arimoto))(
            *(value.astype(jnp.float64) for value in (p / p.sum(1, keepdims=True), d, slopes))
        )
        height = (point.rate - exact.rate) + slopes * (point.distortion - exact.distortion)
        # The certificate, and rounding: sums of 32 terms in float32, s d of up to some thousands among them.
        assert (
            np.abs(height) <= point.gap + 32 * np.finfo(np.float32).eps * (1 + exact.rate + slopes * exact.distortion)
        ).all()
        assert np.median(point.gap) < 1e-6


def test_paper_theorem_1_is_false_and_the_converse_is_not():
    with jax.enable_x64(True):
        # h~ = -(h + N): all the information of h + N, yet read without a decoder it errs by more than 4 var
        v, noise = 2.0, 0.1
        information = 0.5 * np.log(1 + v / noise)
        least = rate_distortion.converse(jnp.array([v]), information)
        np.testing.assert_allclose(least, v * noise / (v + noise), rtol=CLOSED)  # what the MMSE decoder reaches
        np.testing.assert_allclose(least, v * np.exp(-2 * information), rtol=CLOSED)
        assert 4 * v + noise > 80 * least
        variances = jnp.array([1.0, 0.01])  # three nats, all about the weak component
        error = 1 + 0.01 * np.exp(-2 * 3)
        assert round(error, 5) == 1.00002
        assert round(float(rate_distortion.converse(variances, 3.0)), 5) == 0.00996
        assert rate_distortion.converse(variances, jnp.inf) == 0


def test_no_jointly_gaussian_pair_beats_the_converse():
    """D_rwf(I) <= tr Sigma_{h|h~} <= tr Sigma_h - lambda_min(Sigma_h) (1 - e^{-2 I})."""
    rng = np.random.default_rng(7)
    with jax.enable_x64(True):
        cov, errors, information = [], [], []
        for _ in range(300):
            F = rng.normal(size=(6, 6)) * 10 ** rng.uniform(-1.5, 0, 6)[:, None]
            S = F @ F.T
            left = S[:3, :3] - S[:3, 3:] @ np.linalg.solve(S[3:, 3:], S[3:, :3])
            cov, errors = [*cov, S[:3, :3]], [*errors, np.trace(left)]
            information.append(0.5 * (np.linalg.slogdet(S[:3, :3])[1] - np.linalg.slogdet(left)[1]))
        cov, information = np.stack(cov), np.array(information)
        least = jax.vmap(rate_distortion.converse)(jnp.asarray(cov), jnp.asarray(information))
        most = np.trace(cov, axis1=1, axis2=2) - np.linalg.eigvalsh(cov)[:, 0] * (1 - np.exp(-2 * information))
        rounding = 1e-9 * most
        assert (least <= np.array(errors) + rounding).all() and (np.array(errors) <= most + rounding).all()


def height(point, slope, truth):
    """How far a point lies over the line of slope -s under the curve, which meets it at the true point; and three
    standard errors.
    """
    return float(point.rate + slope * point.distortion) - truth, 3 * float(
        point.rate_stderr + slope * point.distortion_stderr
    )


def test_the_sandwich_holds_and_both_ends_are_met():
    """Random jointly Gaussian codes lie between; water-filling and a code of the weakest axis attain the ends
    (docs/theorems.md).
    """
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(1, 6))
        root = rng.standard_normal((n, n))
        cov = root @ root.T + 0.01 * np.eye(n)
        seen = rng.standard_normal((int(rng.integers(1, n + 1)), n)) * 10 ** rng.uniform(-1, 1)
        gain = cov @ seen.T @ np.linalg.inv(seen @ cov @ seen.T + np.eye(len(seen)))
        left = cov - gain @ seen @ cov
        nats = 0.5 * (np.linalg.slogdet(cov)[1] - np.linalg.slogdet(left)[1])
        with jax.enable_x64(True):
            lower, upper = map(float, rate_distortion.sandwich(jnp.asarray(cov), nats))
        assert lower * (1 - 1e-9) <= np.trace(left) <= upper * (1 + 1e-9)
    variances = jnp.array([4.0, 1.0, 0.25])
    lower, upper = rate_distortion.sandwich(variances, jnp.array([0.0, 0.5, 2.0, jnp.inf]))
    np.testing.assert_allclose(upper, 5.25 - 0.25 * (1 - np.exp(-2 * np.array([0.0, 0.5, 2.0, np.inf]))), rtol=1e-6)
    np.testing.assert_allclose(
        lower, rate_distortion.converse(variances, jnp.array([0.0, 0.5, 2.0, jnp.inf])), rtol=1e-6
    )
    one = rate_distortion.sandwich(jnp.array([2.0]), 0.7)
    np.testing.assert_allclose(one, 2 * np.exp(-1.4), rtol=1e-5)


def test_no_trained_compression_lies_below_the_converse():
    """Lloyd's quantisers trained on the states of a gated recurrence: what they err on states they have not seen is at
    least D(I), I <= log K.

    The states are Gaussian, for the gates do not read them. Two slacks of five standard errors: of the distortion, and
    of D through the sample covariance.
    """
    rng = np.random.default_rng(0)
    A, gates = np.array([0.9, 0.5, -0.4]), rng.uniform(0.1, 1, (40, 3))
    h = np.zeros((20_000, 3))
    for g in gates:
        h = (1 - g) * h + g * (
            A * h
            + rng.standard_normal((20_000, 2)) @ np.array([[1.0, 0.5, 0.2], [0.0, 1.0, -0.7]])
            + 0.1 * rng.standard_normal(h.shape)
        )
    fitted, unseen = h[:10_000], h[10_000:]
    for codewords in (2, 8, 32, 128):
        codebook, _ = vq.kmeans2(fitted, codewords, seed=0, minit="++")
        errors = ((unseen - codebook[vq.vq(unseen, codebook)[0]]) ** 2).sum(axis=1)
        least = float(rate_distortion.converse(jnp.asarray(np.cov(h.T), jnp.float32), math.log(codewords)))
        assert errors.mean() + 5 * errors.std() / 100 >= least * (1 - 5 * math.sqrt(2 / 20_000))
        assert errors.mean() < 6 * least  # and the bound is not idle


def test_neural_finds_the_curve_of_a_gaussian():
    rng = np.random.default_rng(8)
    F = np.array([[1.0, 0.3], [0.0, 0.5]])
    samples, cov = jnp.asarray(rng.normal(size=(8000, 2)) @ F.T, jnp.float32), jnp.asarray(F @ F.T, jnp.float32)
    for slope in (1.0, 5.0):
        point = rate_distortion.neural(samples, slope)
        assert abs(point.rate - rate_distortion.gaussian(cov, point.distortion)) < 0.05
        D = jnp.minimum(0.5 / slope, jnp.linalg.eigvalsh(cov)).sum()  # theta = 1/(2 s)
        above, error = height(point, slope, float(rate_distortion.gaussian(cov, D) + slope * D))
        assert -error < above < 0.05  # an upper bound, in expectation
        assert point.resolved
    fine = rate_distortion.neural(samples, 1e5)  # more nats than the codebook holds: on the safe side, and said
    assert not fine.resolved and fine.rate <= np.log(2048) + 1e-3
    assert fine.rate > rate_distortion.gaussian(cov, fine.distortion)


def test_neural_learns_a_source_that_is_not_gaussian():
    """Two narrow heaps, and a component so weak that it gets no rate and adds its variance to the distortion."""
    rng = np.random.default_rng(9)
    samples = jnp.asarray(
        np.stack([rng.choice([-1.0, 1.0], 8000), np.zeros(8000)], 1) + 0.1 * rng.normal(size=(8000, 2)), jnp.float32
    )
    grid = np.linspace(-1.6, 1.6, 161)
    density = np.exp(-((grid - 1) ** 2) / 0.02) + np.exp(-((grid + 1) ** 2) / 0.02)
    with jax.enable_x64(True):
        truth = rate_distortion.blahut_arimoto(
            jnp.asarray(density / density.sum()), jnp.asarray((grid[:, None] - grid[None]) ** 2), 2.0
        )
        line = float(truth.rate + 2 * (truth.distortion + 0.01))
    point = rate_distortion.neural(samples, 2.0)
    above, error = height(point, 2, line)
    assert -error < above < 0.05
    assert point.rate < rate_distortion.gaussian(jnp.array([1.01, 0.01]), point.distortion) - 0.2
    assert point == rate_distortion.neural(samples, 2.0)
    assert point != rate_distortion.neural(samples, 2.0, seed=1)


EYE, HALF, HAMMING = jnp.eye(2), jnp.array([0.5, 0.5]), 1 - jnp.eye(2)
SAMPLES = jnp.arange(32.0)[:, None]
MISTAKES = {
    "negative distortion": ("gaussian", (EYE, -0.5), "distortion holds -0.5, expected numbers from 0"),
    "distortion not a number": ("water_filling", (EYE, jnp.array([1.0, jnp.nan])), "distortion holds nan"),
    "negative rate": ("gaussian_inverse", (EYE, -1.0), "rate holds -1"),
    "negative information": ("converse", (EYE, -1.0), "information holds -1"),
    "not square": ("gaussian", (jnp.ones((2, 3)), 1.0), r"cov has shape \(2, 3\)"),
    "not symmetric": ("gaussian", (jnp.array([[1.0, 0.5], [0.0, 1.0]]), 1.0), "cov is not symmetric"),
    "not a covariance": ("gaussian", (jnp.array([[1.0, 2.0], [2.0, 1.0]]), 1.0), "eigenvalue -1"),
    "negative variance": ("gaussian", (jnp.array([1.0, -2.0]), 1.0), "cov holds -2"),
    "infinite covariance": ("gaussian", (jnp.inf * HAMMING, 1.0), "cov holds nan, expected finite numbers"),
    "infinite a": ("gauss_markov", (jnp.inf, 1.0, 1.0), "a holds inf, expected finite numbers$"),
    "negative q": ("gauss_markov", (0.5, -1.0, 1.0), "q holds -1, expected finite numbers from 0"),
    "negative distortion of a process": ("gauss_markov", (0.5, 1.0, -1.0), "distortion holds -1"),
    "infinite entropy": ("shannon_lower_bound", (-jnp.inf, 1, 1.0), "entropy holds -inf"),
    "no dimension": ("shannon_lower_bound", (1.0, 0, 1.0), "dimension=0"),
    "negative distortion of a bound": ("shannon_lower_bound", (1.0, 1, -1.0), "distortion holds -1"),
    "shapes": ("blahut_arimoto", (HALF, jnp.ones((3, 2)), 1.0), r"p has shape \(2,\) and d \(3, 2\)"),
    "negative p": (
        "blahut_arimoto",
        (jnp.array([1.5, -0.5]), HAMMING, 1.0),
        "p has least entry -0.5 and sum 1, expected",
    ),
    "sum of p": (
        "blahut_arimoto",
        (jnp.array([0.5, 0.4]), HAMMING, 1.0),
        "p has least entry 0.4 and sum 0.9, expected probabilities that sum to 1",
    ),
    "negative d": ("blahut_arimoto", (HALF, -HAMMING, 1.0), "d holds -1"),
    "nothing allowed": (
        "blahut_arimoto",
        (HALF, jnp.array([[0.0, 1.0], [jnp.inf, jnp.inf]]), 1.0),
        "d has a row of inf",
    ),
    "many slopes": ("blahut_arimoto", (HALF, HAMMING, jnp.ones(3)), "expected one number: use curve"),
    "negative slope": ("curve", (HALF, HAMMING, jnp.array([1.0, -1.0])), "slope holds -1"),
    "vector of samples": ("neural", (SAMPLES[:, 0], 1.0), r"use samples\[:, None\]"),
    "few samples": ("neural", (SAMPLES[:8], 1.0), "N from 16"),
    "infinite samples": ("neural", (SAMPLES / 0, 1.0), "samples holds nan"),
    "constant samples": ("neural", (0 * SAMPLES, 1.0), "samples do not vary"),
    "infinite slope": ("neural", (SAMPLES, jnp.inf), "slope holds inf"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    name, given, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(getattr(rate_distortion, name))(*given)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"codebook": 0}, "codebook=0"),
        ({"codebook": 3}, "expected from 4"),
        ({"steps": 30}, "multiple of 20"),
        ({"learning_rate": -1.0}, "more than 0"),
    ],
)
def test_settings_of_a_training_are_named(setting, words):
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(rate_distortion.neural)(SAMPLES, 1.0, **setting)


@pytest.mark.parametrize("leaf", [0, 1])
def test_what_is_no_number_under_jit_is_no_rate(leaf):
    """Where nothing can be refused a distortion of NaN was taken for one of inf: a rate of 0 within 8e-8."""
    given = [jnp.ones(3) / 3, jnp.ones((3, 5)).at[0, 0].set(0)]
    solve = jax.jit(lambda p, d: rate_distortion.blahut_arimoto(p, d, 1.0))
    assert np.isfinite(solve(*given)).all()
    given[leaf] = given[leaf].at[(1,) * given[leaf].ndim].set(jnp.nan)
    assert np.isnan(solve(*given)).all()
