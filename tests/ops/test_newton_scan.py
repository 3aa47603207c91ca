"""newton_scan: the states and derivatives of the loop where the step contracts, an honest report where it does not,
mistakes.
"""

import inspect
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from recurrences import error
from selssm_jax.ops import newton_scan, nonlinear_scan, sequential_scan

FLOOR, ALPHA, DRIVE = 0.3, 0.5, 1.0  # smallest gate, largest |a|, largest |drive|


def contractive_gain(share, floor=FLOOR):
    """|W| at a share of theory 5 B5: L_G < g_min (1 - alpha)^2 / (2 U), where L_G = (1 - floor) |W| / 4 for a
    sigmoid.
    """
    return share * floor * (1 - ALPHA) ** 2 / (2 * DRIVE) * 4 / (1 - floor)


def gate_step(W, A, h, now, floor=FLOOR):
    z, drive = now
    gate = floor + (1 - floor) * jax.nn.sigmoid(z + (W @ h if W.ndim == 2 else W * h))
    return (1 - gate) * h + gate * (A * h + drive)


def draw(steps, size=4, *, gain, dense=False, seed=0):
    """(W, A), h0, (z, drive) with |A| <= ALPHA, |drive| <= DRIVE and |W| = gain in the maximum norm."""
    rng = np.random.default_rng(seed)
    W = rng.choice([-1.0, 1.0], (size, size) if dense else size) * gain / (size if dense else 1)
    sequences = rng.normal(size=(steps, size)), rng.uniform(-DRIVE, DRIVE, (steps, size))
    return jax.tree.map(
        partial(jnp.asarray, dtype=jnp.float32),
        ((W, rng.uniform(-ALPHA, ALPHA, size)), rng.uniform(-1, 1, size), sequences),
    )


def residual(step, h0, sequences, h):
    """Largest |h_t - f(h_{t-1}, x_t)| over the largest |h| until then."""
    after = jax.vmap(step)(jnp.concatenate([h0[None], h[:-1]]), sequences)
    return (jnp.abs(h - after).max(axis=1) / np.maximum.accumulate(jnp.abs(h).max(axis=1))).max()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_certified_contractions_take_few_iterations_however_long(share):
    for steps in (1, 1000, 16_384):
        weights, h0, sequences = draw(steps, gain=contractive_gain(share))
        h, solve = jax.jit(partial(newton_scan, partial(gate_step, *weights)))(h0, sequences)
        assert solve.converged and solve.iterations <= 12 and solve.residual < 1e-6
        expected = sequential_scan(partial(gate_step, *weights), h0, sequences)
        assert error(h, np.asarray(expected, np.float64)) < 1e-5


@pytest.mark.parametrize("jacobian", ["diagonal", "dense"])
@pytest.mark.parametrize("solve", [newton_scan, sequential_scan])
def test_first_and_second_gradients_equal_those_of_the_loop_in_float64(solve, jacobian):
    dense = jacobian == "dense"
    given = draw(40, gain=contractive_gain(0.9), dense=dense)
    run = partial(newton_scan, jacobian=jacobian) if solve is newton_scan else solve

    def total(solve, given):
        weights, h0, sequences = given
        h = solve(partial(gate_step, *weights), h0, sequences)
        return jnp.sum(jnp.sin(3 * (h[0] if isinstance(h, tuple) else h)))

    def twice(solve, given):
        first = jax.grad(partial(total, solve))
        return first(given), jax.grad(lambda given: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(first(given))))(
            given
        )

    with jax.enable_x64(True):
        expected = jax.jit(partial(twice, sequential_scan))(
            jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), given)
        )
    found = jax.jit(partial(twice, run))(given)
    assert (
        max(error(x, np.asarray(y)) for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
        < 1e-4
    )


def test_gradients_over_many_steps():
    given = draw(16_384, gain=contractive_gain(0.9))

    def total(solve, given):
        weights, h0, sequences = given
        h = solve(partial(gate_step, *weights), h0, sequences)
        return jnp.sum(jnp.sin(h[0] if isinstance(h, tuple) else h))

    found, expected = (jax.jit(jax.grad(partial(total, solve)))(given) for solve in (newton_scan, sequential_scan))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert error(x, np.asarray(y, np.float64)) < 1e-4


def test_forward_mode():
    weights, h0, sequences = draw(40, gain=contractive_gain(0.9))

    def derivative(solve):
        return jax.jvp(
            lambda W: solve(partial(gate_step, W, weights[1]), h0, sequences), (weights[0],), (jnp.ones(4),)
        )[1]

    found, expected = derivative(lambda *given: newton_scan(*given)[0]), derivative(sequential_scan)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_diagonal_jacobian_finds_the_states_of_a_step_that_is_nearly_diagonal():
    weights, h0, sequences = draw(200, gain=contractive_gain(0.5), dense=True)
    h, solve = newton_scan(partial(gate_step, *weights), h0, sequences, jacobian="diagonal")
    assert solve.converged and residual(partial(gate_step, *weights), h0, sequences, h) < 2e-6


def test_a_linear_step_takes_one_iteration():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.uniform(-1, 1, (300, 3)), jnp.float32) for _ in range(2))
    h, solve = newton_scan(lambda h, now: now[0] * h + now[1], jnp.ones(3), (a, b))
    assert solve.converged and solve.iterations <= 1
    np.testing.assert_allclose(
        h, sequential_scan(lambda h, now: now[0] * h + now[1], jnp.ones(3), (a, b)), rtol=1e-5, atol=1e-6
    )


# Where the step does not contract.


def wild(steps=1000):
    """A step whose gates may close and whose drive is large: it expands here and contracts there."""
    weights, h0, (z, drive) = draw(steps, gain=3.0)
    return partial(gate_step, *weights, floor=0.0), h0, (z, 5 * drive)


def test_without_contraction_it_says_so():
    step, h0, sequences = wild()
    _, solve = jax.jit(partial(newton_scan, step, max_iters=50))(h0, sequences)
    assert not solve.converged and solve.iterations == 50 and solve.residual > 1e-6


def test_a_trajectory_that_explodes_is_not_taken_for_a_solution():
    """A closed gate keeps any state, however wrong and large: relative to that one, the errors before it are small."""
    weights, h0, (z, drive) = draw(1024, size=64, gain=13.0)
    step = partial(gate_step, *weights, floor=0.0)
    h, solve = newton_scan(step, h0, (z, 5 * drive))
    assert not solve.converged or residual(step, h0, (z, 5 * drive), h) < 2e-6
    assert (
        error(
            nonlinear_scan(step, h0[None], (z[None], 5 * drive[None]), solver="newton")[0][0],
            np.asarray(sequential_scan(step, h0, (z, 5 * drive))),
        )
        < 1e-5
    )


def test_damping_ends_after_some_iterations_a_step():
    step, h0, sequences = wild(60)
    h, solve = newton_scan(step, h0, sequences, max_iters=2 * 60 + 10)
    assert solve.converged and residual(step, h0, sequences, h) < 2e-6


@pytest.mark.parametrize("jacobian", ["diagonal", "dense"])
def test_newton_gives_way_to_the_loop_for_the_whole_batch(jacobian):
    step, h0, sequences = wild()
    batch = jnp.stack([h0, -h0]), jax.tree.map(lambda value: jnp.stack([value, -value]), sequences)
    run = jax.jit(partial(nonlinear_scan, step, jacobian=jacobian, solver="newton"))
    h, fell_back = run(*batch)
    assert fell_back.all()
    for row in range(2):
        assert residual(step, batch[0][row], jax.tree.map(lambda value, row=row: value[row], batch[1]), h[row]) < 2e-6
    gradient = jax.grad(lambda h0: jnp.sum(run(h0, batch[1])[0][:, :5]))(batch[0])
    loop = jax.grad(lambda h0: jnp.sum(nonlinear_scan(step, h0, batch[1], solver="sequential")[0][:, :5]))(batch[0])
    np.testing.assert_allclose(gradient, loop, rtol=1e-3, atol=1e-4)


def test_newton_does_not_give_way_where_it_converges():
    weights, h0, sequences = draw(300, gain=contractive_gain(0.9))
    batch = h0[None], jax.tree.map(lambda value: value[None], sequences)
    h, fell_back = nonlinear_scan(partial(gate_step, *weights), *batch, solver="newton")
    expected, never = nonlinear_scan(partial(gate_step, *weights), *batch, solver="sequential")
    assert not fell_back and not never
    np.testing.assert_allclose(h, expected, rtol=1e-5, atol=1e-6)


def test_auto_is_sequential_on_a_cpu_and_newton_elsewhere():
    weights, h0, sequences = draw(300, gain=0.1)

    def whiles(solver, platform, steps=300):
        batch = h0[None], jax.tree.map(lambda value: value[None, :steps], sequences)
        run = jax.jit(lambda *batch: nonlinear_scan(partial(gate_step, *weights), *batch, solver=solver))
        return jax.export.export(run, platforms=[platform])(*batch).mlir_module().count("stablehlo.while(")

    assert whiles("auto", "cpu") == whiles("sequential", "cpu") == 1
    assert whiles("auto", "tpu") == whiles("newton", "tpu") > 1
    assert whiles("auto", "tpu", steps=1) == whiles("sequential", "tpu", steps=1), (
        "a model that reads step by step solves nothing"
    )


# What has said "converged" and was wrong.


def loop(step, h0, xs):
    return jax.lax.scan(lambda h, x: (step(h, x),) * 2, h0, xs)[1]


def solve(step, h0, xs, **options):
    return jax.jit(partial(newton_scan, step, **options))(h0, xs)


def test_steep_gates_that_throw_the_solver_far_off_do_not_converge():
    """Gates of gain 20: the last of one iteration's corrections was unchecked, and ended at 1e26."""
    keys = jax.random.split(jax.random.key(3), 4)
    w, a = 20 * jax.random.normal(keys[0], (32,)), jax.random.uniform(keys[1], (32,), minval=0.3, maxval=0.95)

    def step(h, u):
        g = 0.05 + 0.95 * jax.nn.sigmoid(w * h + u[0])
        return (1 - g) * h + g * (a * h + u[1])

    xs = jax.random.normal(keys[2], (4096, 32)), 0.5 * jax.random.normal(keys[3], (4096, 32))
    h, ended = solve(step, jnp.zeros(32), xs)
    assert not ended.converged or error(h, np.asarray(loop(step, jnp.zeros(32), xs))) < 1e-4


def test_chaos_that_overflows_does_not_converge_at_any_length():
    """A float32 maximum over 4,096 numbers or more drops NaN on a CPU."""
    _, ended = solve(lambda h, x: 3.9 * h * (1 - h), jnp.full(1, 0.3), jnp.zeros((4096, 1)), max_iters=20)
    assert not ended.converged and ended.residual > 0.01


def test_chaos_that_is_solved_step_by_step_is_not_called_close():
    """Every state solves its equation to the last bit, and 200 steps double a rounding 100 times: the loop's states may
    be any others.
    """
    _, ended = solve(lambda h, x: 3.9 * h * (1 - h), jnp.full(1, 0.3), jnp.zeros((90, 1)), max_iters=200)
    assert ended.residual < 1e-6 and not ended.converged


def test_a_small_component_beside_a_large_one_converges_by_its_own_size():
    given = draw(200, gain=contractive_gain(0.5))
    (W, A), h0, (z, drive) = given
    unit = jnp.array([1e6, 1.0, 1e-3, 1e-9])

    def step(h, now):
        return unit * gate_step(W, A, h / unit, now)

    expected = loop(step, unit * h0, (z, drive)) / unit[None]
    h, ended = solve(step, unit * h0, (z, drive))
    assert ended.converged
    np.testing.assert_allclose(h / unit[None], expected, atol=1e-5)
    h, ended = solve(step, unit * h0, (z, drive), max_iters=1)
    assert not ended.converged or np.abs(h / unit[None] - expected).max() < 1e-4


def test_a_component_that_was_large_once_is_judged_by_what_it_is_now():
    """From 1e8 down to 1 in some steps: an error of 1e-3 of the largest would be all of it."""

    def step(h, x):
        return 0.5 * h + jnp.sin(20 * x + jnp.tanh(h)) / 2

    xs = jnp.linspace(0, 1, 64)[:, None]
    h, ended = solve(step, jnp.full(1, 1e8), xs)
    assert not ended.converged or np.abs(h - loop(step, jnp.full(1, 1e8), xs))[40:].max() < 1e-4


def test_a_step_that_rounds_to_bfloat16_is_not_called_close():
    """XLA may round elsewhere in a loop than in a vector, and then it is another step by 0.4 %."""

    def step(h, x):
        return 0.5 * h + jax.nn.sigmoid(x)

    x = jax.random.normal(jax.random.key(0), (64, 3))
    assert solve(step, jnp.zeros(3), x)[1].converged
    assert not solve(step, jnp.zeros(3), x.astype(jnp.bfloat16))[1].converged
    assert solve(lambda h, x: step(h, x.astype(h.dtype)), jnp.zeros(3), x.astype(jnp.bfloat16))[1].converged


def test_a_step_declared_diagonal_that_is_not_is_held_to_what_its_other_components_do():
    """Rows of the Jacobian that sum to 0 hide an expansion by 3 from a diagonal."""
    R = 3 * jnp.array([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]]) / 3**0.5
    x = jax.random.normal(jax.random.key(0), (40, 3))

    def step(h, x):
        return jnp.tanh(R @ h + x)

    h, ended = solve(step, jnp.ones(3), x)
    assert not ended.converged or error(h, np.asarray(loop(step, jnp.ones(3), x))) < 1e-3


@pytest.mark.parametrize("solver", ["sequential", "newton"])
def test_a_batch_of_solves_that_fails_and_is_thrown_away_leaves_no_nan_in_gradients(solver):
    """Under vmap both branches are computed, and 0 times the infinite derivative of a state of 1e38 is NaN."""

    def last(r):
        h, fell_back = nonlinear_scan(
            lambda h, x: r * h * (1 - h), jnp.full((1, 1), 0.3), jnp.zeros((1, 120, 1)), solver=solver
        )
        return h[0, -1, 0], fell_back

    slope, fell_back = jax.jit(jax.vmap(jax.grad(last, has_aux=True)))(jnp.array([2.5, 3.9]))
    assert fell_back.ravel().tolist() == [False, solver == "newton"] and jnp.isfinite(slope).all()
    np.testing.assert_allclose(slope[0], 1 / 2.5**2, rtol=1e-3)  # of the fixed point 1 - 1 / r


def test_solving_takes_as_many_iterations_as_newton_needs_beyond_contraction():
    """No correction is refused: 61 iterations it took when those were that made the residual larger."""
    weights, h0, sequences = draw(1000, 8, gain=contractive_gain(300))
    h, ended = solve(partial(gate_step, *weights), h0, sequences)
    assert ended.converged and ended.iterations <= 32
    assert error(h, np.asarray(loop(partial(gate_step, *weights), h0, sequences))) < 1e-5


# Mistakes.

XS = (np.ones((5, 3), np.float32),)
MISTAKES = {
    "jacobian": (dict(jacobian="full"), "jacobian='full' is unknown: use one of diagonal, dense"),
    "batch": (
        dict(h0=np.ones((2, 3), np.float32)),
        r"h0 has shape \(2, 3\) and dtype float32, expected \(N,\) and real numbers; use jax.vmap for a batch",
    ),
    "integers": (dict(h0=np.ones(3, np.int32)), "h0 has shape .* and dtype int32, expected"),
    "lengths": (
        dict(xs=(*XS, np.ones((4, 3)))),
        r"leaves of xs have first axes \['4', '5'\], expected one number of steps",
    ),
    "no steps": (dict(xs=(XS[0][:0],)), "expected one number of steps T >= 1"),
    "tolerance": (dict(tol=-1.0), "tol=-1.0 and max_iters=100"),
    "iterations": (dict(max_iters=0), "max_iters=0: use a tol from 0 and at least one iteration"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_their_fix(mistake):
    given, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(newton_scan)(**{"step": lambda h, x: h, "h0": np.ones(3, np.float32), "xs": XS, **given})


def test_an_unknown_solver_is_named_with_the_choices():
    with pytest.raises(ValueError, match="solver='deer' is unknown: use one of auto, sequential, newton"):
        nonlinear_scan(lambda h, x: h, jnp.ones((1, 3)), (jnp.ones((1, 5, 3)),), solver="deer")


@pytest.mark.parametrize(("factor", "gives_way"), [(None, True), (2.0, False), (0.9, True)])
def test_auto_on_accelerators_tries_newton_only_where_step_is_certified(factor, gives_way, monkeypatch):
    """The branch that accelerators take, run here: a step that newton cannot solve tells whether it was tried."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, cpu, default: default(*arrays))
    step, h0, sequences = wild()
    batch = h0[None], jax.tree.map(lambda value: value[None], sequences)
    h, fell_back = nonlinear_scan(step, *batch, factor=None if factor is None else jnp.float32(factor))
    assert bool(fell_back) == gives_way
    np.testing.assert_allclose(h[0], sequential_scan(step, h0, sequences), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_auto_lowers_for_accelerators_with_and_without_a_certificate(platform):
    weights, h0, (z, drive) = draw(50, gain=1.0)
    run = jax.jit(lambda h0, xs, factor: nonlinear_scan(partial(gate_step, *weights), h0, xs, factor=factor)[0])
    text = jax.export.export(run, platforms=[platform])(
        h0[None], (z[None], drive[None]), jnp.float32(0.5)
    ).mlir_module()
    assert "stablehlo.case" in text or "stablehlo.if" in text
