"""kalman_scan is the Kalman filter: its values and gradients those of a float64 loop, its gain that of the Riccati
equation, its nats those of the joint Gaussian.

That it equals its loop at random shapes, types, splits and resets, test_sweep says; what resets hide, test_boundaries;
shards of a sequence, test_shards.
"""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from selssm_jax.information.gaussian import filtering_information
from selssm_jax.ops import kalman_scan

METHODS = pytest.mark.parametrize("method", ["sequential", "associative"])
DECADES = (-6, 6)


def draw(shape, seed=0, decades=DECADES, dtype=np.float32):
    """(a, q, r, z), variances log-uniform."""
    rng = np.random.default_rng(seed)
    q, r = 10 ** rng.uniform(*decades, (2, *shape))
    return [value.astype(dtype) for value in (rng.uniform(-1, 1, shape), q, r, rng.normal(size=shape))]


def loop(a, q, r, z):
    """(m, P, gained) in float64 from h_0 = 0, none formed by a subtraction."""
    a, q, r, z = (value.astype(np.float64) for value in (a, q, r, z))
    m, P = np.zeros(a[:, 0].shape), np.zeros(a[:, 0].shape)
    steps = []
    for t in range(a.shape[1]):
        predicted = a[:, t] ** 2 * P + q[:, t]
        keep = r[:, t] / (predicted + r[:, t])
        m, P = keep * a[:, t] * m + predicted / (predicted + r[:, t]) * z[:, t], keep * predicted
        steps.append((m, P, np.log1p(predicted / r[:, t]) / 2))
    return [np.stack(values, axis=1) for values in zip(*steps, strict=True)]


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        ("sequential", 10_000),
        ("associative", 100),
        pytest.param("associative", 10_000, marks=pytest.mark.exhaustive),
    ],
)
def test_float32_equals_a_float64_loop_over_twelve_decades(method, steps):
    given = draw((2, steps, 4))
    found, expected = jax.jit(partial(kalman_scan, method=method))(*given), loop(*given)
    np.testing.assert_allclose(found.m, expected[0], atol=1e-6)
    np.testing.assert_allclose(found.P, expected[1], rtol=1e-6)
    np.testing.assert_allclose(found.gained, expected[2], rtol=1e-6, atol=1e-6)


def reference(a, q, r, z):
    """The filter without a gradient of its own."""

    def step(state, now):
        (m, P), (a, q, r, z) = state, now
        predicted = a**2 * P + q
        state = (r * a * m + predicted * z) / (predicted + r), predicted * r / (predicted + r)
        return state, state

    start = jnp.zeros_like(a[:, 0]), jnp.zeros_like(a[:, 0])
    return [out.swapaxes(0, 1) for out in jax.lax.scan(step, start, [x.swapaxes(0, 1) for x in (a, q, r, z)])[1]]


def by_logarithms(run, given, weights):
    """The gradient of a loss over all means and log variances, by a, log q, log r and z."""

    def loss(a, q, r, z):
        m, P = run(a, jnp.exp(q), jnp.exp(r), z)[:2]
        return (weights[0] * m + weights[1] * jnp.log(P)).sum()

    a, q, r, z = given
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(a, jnp.log(q), jnp.log(r), z)


@METHODS
def test_gradients_equal_those_of_a_float64_loop_over_twelve_decades(method):
    given, weights = draw((2, 60, 4)), np.random.default_rng(1).normal(size=(2, 2, 60, 4))
    with jax.enable_x64(True):
        wide = [jnp.asarray(value, jnp.float64) for value in given]
        expected = by_logarithms(reference, wide, weights)
    found = by_logarithms(partial(kalman_scan, method=method), given, weights.astype(np.float32))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(np.asarray(other)).max())


def test_second_derivatives_are_those_of_the_loop():
    given = draw((1, 5, 1), decades=(-1, 1), dtype=np.float64)
    with jax.enable_x64(True):

        def curvature(run):
            def loss(flat):
                m, P = run(*flat.reshape(4, 1, 5, 1))[:2]
                return (m**3 + P * m).sum()

            return jax.jit(jax.hessian(loss) if run is reference else jax.jacrev(jax.grad(loss)))(
                jnp.stack([jnp.asarray(value) for value in given]).ravel()
            )

        np.testing.assert_allclose(curvature(kalman_scan), curvature(reference), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("a", "q", "r"), [(0.9, 0.3, 2.0), (-0.999, 1e-4, 10.0), (1.2, 0.5, 0.1)])
def test_the_steady_gain_solves_the_riccati_equation(a, q, r):
    with jax.enable_x64(True):
        given = [jnp.full((1, 20_000, 1), value) for value in (a, q, r, 0.0)]
        P = float(kalman_scan(*given).last.P[0, 0])
    predicted = scipy.linalg.solve_discrete_are(*(np.array([[value]]) for value in (a, 1.0, q, r)))[0, 0]
    np.testing.assert_allclose((a**2 * P + q) / (a**2 * P + q + r), predicted / (predicted + r), rtol=1e-12)


def test_nats_are_those_of_the_joint_gaussian():
    """I(h_t; z_{1:t}) by brute force, and by `information.gaussian`, which knows no gates."""
    T = 30
    a, q, r, z = draw((1, T, 3), decades=(-1, 1), dtype=np.float64)
    with jax.enable_x64(True):
        run = jax.jit(kalman_scan)
        found = run(a, q, r, z, P0=jnp.full((1, 3), 0.5))
        held = np.cumsum(np.asarray(found.gained - found.forgotten), axis=1)[0]
        np.testing.assert_allclose(held[-1], np.log(found.last.prior / found.last.P)[0] / 2, rtol=1e-12)
        for n in range(3):
            # h_t = Phi_t h_0 + ..., a row for each t, a column for each independent number
            columns = np.concatenate([[0.5], q[0, :, n]])
            maps, row = [], np.zeros(T + 1)
            row[0] = 1
            for t in range(T):
                row = row * a[0, t, n]
                row[t + 1] = 1
                maps.append(row.copy())
            cov = np.stack(maps) * columns @ np.stack(maps).T
            for t in (0, 1, 12, T - 1):
                read = cov[: t + 1, : t + 1] + np.diag(r[0, : t + 1, n])
                left = cov[t, t] - cov[t, : t + 1] @ np.linalg.solve(read, cov[t, : t + 1])
                np.testing.assert_allclose(held[t, n], np.log(cov[t, t] / left) / 2, atol=1e-9)
        # with a constant r, the readout is one of `information.gaussian`, whose inputs are none here
        same = run(a, q, np.full_like(r, 0.7), z, P0=jnp.full((1, 3), 0.5))
        diagonal = jax.vmap(jnp.diag)
        expected = [
            filtering_information(
                jnp.asarray(a[0, :, n : n + 1]),
                jnp.zeros((T, 1, 1)),
                jnp.eye(1),
                diagonal(jnp.asarray(q[0, :, n : n + 1])),
                jnp.eye(1),
                0.7 * jnp.eye(1),
                0.5 * jnp.eye(1),
            )
            for n in range(3)
        ]
        np.testing.assert_allclose(
            np.cumsum(np.asarray(same.gained - same.forgotten), axis=1)[0].T, expected, atol=1e-6
        )


@METHODS
def test_what_grows_without_end_is_held_by_what_it_gains(method):
    """Once nothing of the start is left, a step gains log|a| nats more than it forgets: the least that holds an
    unstable plant (the data-rate theorem, Nair and Evans 2004).
    """
    a = jnp.full((1, 3000, 1), 1.2)
    found = kalman_scan(a, jnp.full_like(a, 1e-4), jnp.full_like(a, 0.1), jnp.zeros_like(a), method=method)
    assert not jnp.isfinite(found.last.prior).all() and jnp.isfinite(jnp.stack(found[:4])).all()
    np.testing.assert_allclose(found.gained[:, 100:] - found.forgotten[:, 100:], np.log(1.2), atol=1e-6)


@METHODS
def test_a_reading_of_infinite_variance_is_none_whatever_it_says(method):
    a, q, r, z = draw((1, 12, 2), decades=(-1, 1))
    missing = np.arange(12)[None, :, None] % 3 == 1
    r = np.where(missing, np.inf, r)
    run = jax.jit(partial(kalman_scan, method=method))
    found, hidden = run(a, q, r, z), run(a, q, r, np.where(missing, np.nan, z))
    np.testing.assert_array_equal(found.m, hidden.m)
    np.testing.assert_allclose(found.P, loop(a, q, np.where(missing, 1e30, r), z)[1], rtol=1e-5)
    assert (np.asarray(found.gained)[np.broadcast_to(missing, r.shape)] == 0).all()
    gradient = jax.jit(jax.grad(lambda r: run(a, q, r, np.where(missing, np.nan, z)).m.sum()))(r)
    assert np.isfinite(gradient).all()


@METHODS
def test_what_is_known_exactly_has_the_gradients_of_what_nearly_is(method):
    """At P- = 0 the gain is 0, but a variance that grows would open it; only r = inf shuts a reading out."""
    one = jnp.ones((1, 1, 1))

    def run(q, of):
        return getattr(
            kalman_scan(
                one, q, 0.5 * one, 2 * one, P0=0.4 * one[0] * (of == "forgotten"), prior0=0.9 * one[0], method=method
            ),
            of,
        ).sum()

    for of in ("m", "gained", "forgotten"):
        slope = jax.jit(jax.grad(run), static_argnums=1)
        np.testing.assert_allclose(slope(0 * one, of), slope(1e-6 * one, of), rtol=1e-4)
        assert slope(0 * one, of) > 0.5


def test_what_leaves_the_range_is_run_step_by_step():
    """Products of maps would be 0 or inf where single steps are numbers."""
    a, q, r, z = draw((1, 40, 2), decades=(-1, 1))
    for a, q, r in ((a * 30, q * 0, r * 0 + np.inf), (a, q * 1e-25, r), (a, q, r * 1e25)):  # noqa: B020
        start = np.full((1, 2), 1e-30, np.float32)
        found, expected = (
            jax.jit(partial(kalman_scan, method=method))(a, q, r, z, P0=start)
            for method in ("associative", "sequential")
        )
        np.testing.assert_allclose(found.P, expected.P, rtol=1e-6)


def test_vmap_is_the_batch():
    given = draw((2, 9, 3), decades=(-1, 1))
    each = jax.vmap(lambda *rows: jax.tree.map(lambda out: out[0], kalman_scan(*(row[None] for row in rows))))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), jax.jit(each)(*given), jax.jit(kalman_scan)(*given))


def test_a_mean_has_the_type_of_its_readings_and_variances_are_float32():
    given = [jnp.asarray(value, jnp.bfloat16) for value in draw((1, 4, 2), decades=(-1, 1))]
    found = kalman_scan(*given)
    assert found.m.dtype == jnp.bfloat16
    assert {value.dtype for value in (*found[1:4], *found.last)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "fast"}, "method='fast' is unknown: use one of auto, sequential, associative"),
        ({"q": np.ones((2, 5, 4), np.float32)}, r"q has shape \(2, 5, 4\), expected \(2, 5, 3\) from a"),
        ({"P0": np.ones((2, 4), np.float32)}, r"P0 has shape \(2, 4\), expected \(2, 3\) from a"),
        ({"z": np.ones((2, 5, 3), int)}, r"z has dtype int\d\d, expected real numbers"),
        ({"a": np.ones((2, 5, 3), np.complex64)}, "a has dtype complex64, expected real numbers"),
        ({"a": np.ones((2, 0, 3), np.float32)}, r"a has shape \(2, 0, 3\), expected \(B, T, ...\) with T >= 1"),
        ({"reset": np.ones((2, 4), bool)}, r"reset has shape \(2, 4\), expected \(2, 5\) from a"),
    ],
)
def test_what_does_not_fit_is_said(change, words):
    given = dict(zip("aqrz", draw((2, 5, 3), decades=(-1, 1)), strict=True))
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(kalman_scan)(**(given | change))  # the tests' own check of types would be first


@pytest.mark.parametrize("method", ["sequential", "associative"])
def test_an_independent_filter_says_the_same(method):
    """cuthbertlib, whose filter is of matrices and carries roots of covariances: means, variances, and of what a step
    gains the half log-determinant that its update takes off.
    """
    oracle = pytest.importorskip("cuthbertlib").kalman
    with jax.enable_x64(True):
        a, q, r, z = draw((1, 50, 3), decades=(-2, 2), dtype=np.float64)
        found = kalman_scan(*map(jnp.asarray, (a, q, r, z)), method=method)
        m, root = jnp.zeros(3), jnp.zeros((3, 3))
        for t in range(50):
            m, root = oracle.predict(m, root, jnp.diag(a[0, t]), jnp.zeros(3), jnp.diag(jnp.sqrt(q[0, t])))
            before = jnp.linalg.slogdet(root)[1]
            (m, root), _ = oracle.filter_update(
                m, root, jnp.eye(3), jnp.zeros(3), jnp.diag(jnp.sqrt(r[0, t])), jnp.asarray(z[0, t])
            )
            np.testing.assert_allclose(found.m[0, t], m, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(found.P[0, t], jnp.diag(root @ root.T), rtol=1e-8)
            gained = float(before - jnp.linalg.slogdet(root)[1])
            np.testing.assert_allclose(found.gained[0, t].sum(), gained, rtol=1e-6, atol=1e-9)
