"""Information of nonlinear states against closed forms of linear ones, and against filters on a grid."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.information import gaussian, nonlinear

A, B = np.array([[0.8, 0.3], [-0.2, 0.6]]), np.array([[1.0], [0.5]])
Q, P0 = np.array([[0.3, 0.1], [0.1, 0.2]]), np.array([[0.5, 0.1], [0.1, 0.4]])
STEPS, SIZES = 3, dict(trajectories=2000, conditions=128, paths=128)
NOISE = 0.25  # variance, of the scalar map


def linear(h, x):
    return jnp.asarray(A, h.dtype) @ h + jnp.asarray(B, h.dtype) @ x


def draw_start(key):
    return jnp.asarray(np.linalg.cholesky(P0), jnp.float32) @ jax.random.normal(key, (2,))


def draw_inputs(key):
    return jax.random.normal(key, (STEPS, 1))


def fold(h, x):
    """Two wells, and an input that tips them."""
    return jnp.tanh(3 * h) + 0.5 * x


def log_det(S):
    return np.linalg.slogdet(S)[1]


def assert_holds(bounds, truth, *, width):
    assert bounds.lower - 3 * bounds.stderr <= truth <= bounds.upper + 3 * bounds.stderr
    assert bounds.upper - bounds.lower < width and bounds.stderr < 0.05 and bounds.resolved


@pytest.mark.parametrize("cov", [Q, np.diag(Q)], ids=["full", "diagonal"])
@pytest.mark.parametrize("about", nonlinear.ABOUT)
def test_linear_states_have_their_closed_form(about, cov):
    noise = cov if cov.ndim == 2 else np.diag(cov)
    S, N, Phi = np.zeros((2, 2)), np.zeros((2, 2)), np.eye(2)
    for _ in range(STEPS):
        S, N, Phi = A @ S @ A.T + B @ B.T, A @ N @ A.T + noise, A @ Phi
    start = Phi @ P0 @ Phi.T
    rest = {"inputs": N + start, "start": S + N, "step": noise}[about]
    truth = (log_det(S + N + start) - log_det(rest)) / 2
    if about == "inputs":
        of_all = gaussian.state_information(
            *(jnp.broadcast_to(one, (STEPS, *one.shape)) for one in (A, B)), jnp.eye(1), *map(jnp.asarray, (noise, P0))
        )
        assert truth == pytest.approx(float(of_all[-1]), rel=1e-5)
    bounds = nonlinear.state_information(
        linear, cov, draw_start, draw_inputs, about=about, key=jax.random.key(0), **SIZES
    )
    assert_holds(bounds, truth, width=0.1)


def filter_on_grid(inputs, starts, grid):
    """p(h_T | start, inputs), (starts, grid): the exact recursion, by sums over a grid."""
    width = grid[1] - grid[0]
    law = None
    for x in inputs:
        before = starts if law is None else grid
        means = np.tanh(3 * before) + 0.5 * x
        step = np.exp(-((grid[None] - means[:, None]) ** 2) / (2 * NOISE)) / math.sqrt(2 * math.pi * NOISE)
        law = step if law is None else law @ step * width
    return law


def entropy(densities, grid):
    """Of densities on the grid, the mean over rows, in nats."""
    return -(densities * np.log(np.maximum(densities, 1e-300))).sum(1).mean() * (grid[1] - grid[0])


def test_what_a_linear_state_knows_of_its_start_is_what_an_independent_filter_learns_of_it():
    """cuthbertlib filters (h_0, h_t), of which h_T is read without noise: I(h_T; h_0) is the half log-determinant that
    this takes off the law of h_0.
    """
    oracle = pytest.importorskip("cuthbertlib").kalman
    root = jnp.asarray(np.linalg.cholesky(P0))
    m, both = jnp.zeros(4), jnp.concatenate([jnp.concatenate([root, root]), jnp.zeros((4, 2))], axis=1)
    F = jnp.asarray(np.block([[np.eye(2), np.zeros((2, 2))], [np.zeros((2, 2)), A]]))
    step = np.zeros((4, 4))
    step[2:, 2:] = np.linalg.cholesky(Q + B @ B.T)
    for _ in range(STEPS):
        m, both = oracle.predict(m, both, F, jnp.zeros(4), jnp.asarray(step))
    H = jnp.asarray(np.eye(4)[2:])
    (_, after), _ = oracle.filter_update(m, both, H, jnp.zeros(2), 1e-4 * jnp.eye(2), jnp.zeros(2))
    left = (np.asarray(after, np.float64) @ np.asarray(after, np.float64).T)[:2, :2]
    bounds = nonlinear.state_information(
        linear, Q, draw_start, draw_inputs, about="start", key=jax.random.key(0), **SIZES
    )
    assert_holds(bounds, (log_det(P0) - log_det(left)) / 2, width=0.12)


@pytest.mark.parametrize("about", ["inputs", "start"])
def test_a_nonlinear_state_has_what_a_filter_on_a_grid_says(about):
    grid, starts = np.linspace(-4, 4, 401), np.linspace(-1, 1, 201)[:-1] + 0.005  # a uniform start
    words = itertools.product((-1.0, 1.0), repeat=STEPS)  # inputs, all as likely
    laws = np.stack([filter_on_grid(word, starts, grid) for word in words])
    conditional = laws.mean(1) if about == "inputs" else laws.mean(0)
    truth = entropy(laws.mean((0, 1))[None], grid) - entropy(conditional, grid)
    bounds = nonlinear.state_information(
        fold,
        np.array([NOISE]),
        lambda key: jax.random.uniform(key, (1,), minval=-1, maxval=1),
        lambda key: jax.random.rademacher(key, (STEPS, 1), jnp.float32),
        about=about,
        key=jax.random.key(1),
        **SIZES,
    )
    assert 0.1 < truth < 1
    assert_holds(bounds, truth, width=0.1)


def test_too_few_paths_are_not_resolved():
    bounds = nonlinear.state_information(linear, 1e-6 * Q, draw_start, draw_inputs, key=jax.random.key(0), **SIZES)
    assert not bounds.resolved and bounds.lower < bounds.upper


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(about="future"), "about='future' is unknown: use one of inputs, start, step"),
        (dict(paths=2), "paths=2, expected at least 4"),
        (dict(noise_cov=np.ones(3)), r"noise_cov has shape \(3,\), expected \(2,\) or \(2, 2\)"),
        (dict(noise_cov=np.array([1.0, 0.0])), "noise_cov is singular"),
        (dict(noise_cov=np.array([[1.0, 2.0], [2.0, 1.0]])), "noise_cov is no covariance"),
        (dict(draw_start=lambda key: jnp.zeros(())), r"draw_start returns shape \(\)"),
        (dict(draw_inputs=lambda key: jnp.zeros((0, 1))), "expected .T, m. with T >= 1"),
        (dict(f=lambda h, x: h[:1]), r"f returns shape \(1,\), expected \(2,\)"),
    ],
)
def test_what_cannot_be_meant_is_an_error_before_work(given, words):
    arguments = dict(f=linear, noise_cov=Q, draw_start=draw_start, draw_inputs=draw_inputs) | given
    with pytest.raises(ValueError, match=words):
        nonlinear.state_information(**arguments, key=jax.random.key(0))


@pytest.mark.parametrize("offset", [1e4, 1e7, 1e8])
def test_noise_that_rounding_hides_is_refused(offset):
    def measure():
        return nonlinear.state_information(
            lambda h, x: offset + 0.5 * (h - offset),
            np.ones(1),
            lambda key: offset + jax.random.normal(key, (1,)),
            lambda key: jnp.zeros((1, 1)),
            about="start",
            key=jax.random.key(0),
            trajectories=1000,
            conditions=32,
            paths=128,
        )

    if offset == 1e4:
        assert_holds(measure(), math.log(1.25) / 2, width=0.05)
        return
    with pytest.raises(ValueError, match=r"float32 rounds by .* times the noise of noise_cov"):
        measure()
