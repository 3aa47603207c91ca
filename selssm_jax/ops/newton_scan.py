"""h_t = f(h_{t-1}, x_t) for all t at once: Newton's method over a linear scan (theory, section 3)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from selssm_jax.ops.dense_scan import dense_scan
from selssm_jax.ops.linear_scan import linear_scan

JACOBIANS = ("diagonal", "dense")
SOLVERS = ("auto", "sequential", "newton")
LEAST_TRUST = 2.0**-7  # below it a step follows f alone, and is taken whatever it does to the residual
FLOOR = 8.0  # units of rounding: a residual of so many cannot be told from zero

Step = Callable[[Array, Any], Array]
Linear = Callable[[Array], Array]


class Solve(NamedTuple):
    """How a solve ended: the largest |h_t - f(h_{t-1}, x_t)| over the largest |h| until then, the steps taken, and whether it is solved.

    Until then, for a correction may expand so far that what follows hides under it every error before.
    """

    residual: Float[Array, ""]
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]


def newton_scan(
    step: Step, h0: Float[Array, "N"], xs: Any, *, jacobian: str = "diagonal", tol: float = 1e-6, max_iters: int = 100
) -> tuple[Float[Array, "T N"], Solve]:
    """Solves h_t = step(h_{t-1}, x_t) for the whole trajectory of one sequence; use `jax.vmap` for a batch.

    Each iteration evaluates step and its Jacobian J_t at all t of the current trajectory, and solves the recurrence that is
    linear there, u_t = J_t u_{t-1} + (step(h_{t-1}, x_t) - h_t), for the correction u in one parallel scan (DEER, Lim et
    al. 2024). A correction that does not lower the residual is not taken; J is scaled down then, J <- trust J, until one
    does (in the spirit of ELK, Gonzalez et al. 2024), and at last to 0: the iteration h_t <- step(h_{t-1}, x_t), which is
    right up to step k after k of them. So it ends, at the latest after some 2 T iterations, but it pays only where step
    contracts in h (theory, section 5 B5); elsewhere expect `converged` to be False, and take `jax.lax.scan`.

    Work O(T N) an iteration for "diagonal", O(T N^3) for "dense". No iteration is differentiated: derivatives are those of
    the equation at its solution, one more linear scan, forward or in reverse, of any order. They are wrong where
    `converged` is False.

    Args:
      step: (h, x) -> next h, both (N,); differentiable in h, in x and in what it closes over.
      h0: state before the first step. xs: what the steps read, leaves (T, ...).
      jacobian: "diagonal" where component i of step depends on component i of h alone, else "dense". Diagonal for a step
        that is not diagonal still converges, if at all, to the right states, but its derivatives are wrong.
      tol: largest residual that counts as solved, relative to the largest |h| until then; never less than `FLOOR` roundings.
      max_iters: iterations after which it gives up.

    Returns:
      (h, solve): all states, float32 or wider, and how it ended.

    Raises:
      ValueError: for an unknown Jacobian, shapes that do not fit, no steps, or a tol or max_iters out of range.
    """
    h0, xs = jnp.asarray(h0), jax.tree.map(jnp.asarray, xs)
    _check(h0, xs, jacobian, tol, max_iters)
    h0 = h0.astype(jnp.promote_types(h0.dtype, jnp.float32))

    def mismatch(h: Array) -> Array:
        before = jnp.concatenate([h0[None], h[:-1]])
        return h - jax.vmap(step)(before, xs).astype(h.dtype)

    floor = max(tol, FLOOR * float(jnp.finfo(h0.dtype).eps))
    guess = jnp.broadcast_to(h0, (len(jax.tree.leaves(xs)[0]), len(h0)))
    h, report = lax.custom_root(
        mismatch,
        guess - mismatch(guess),
        partial(_iterate, FORMS[jacobian], floor, max_iters),
        partial(_solve_linear, FORMS[jacobian]),
        has_aux=True,
    )
    return h, Solve(report.residual, report.iterations.astype(jnp.int32), report.converged > 0)


def sequential_scan(step: Step, h0: Float[Array, "N"], xs: Any) -> Float[Array, "T N"]:
    """Solves h_t = step(h_{t-1}, x_t) one step after the other; the arguments are those of `newton_scan`."""
    h0 = h0.astype(jnp.promote_types(h0.dtype, jnp.float32))

    def body(h: Array, x: Any) -> tuple[Array, Array]:
        h = step(h, x).astype(h.dtype)
        return h, h

    return lax.scan(body, h0, xs)[1]


def nonlinear_scan(
    step: Step, h0: Float[Array, "B N"], xs: Any, *, jacobian: str = "diagonal", solver: str = "auto", factor: Float[Array, ""] | None = None
) -> tuple[Float[Array, "B T N"], Bool[Array, ""]]:
    """Solves h_t = step(h_{t-1}, x_t) for a batch, and is right whatever step is.

    "newton" takes `sequential_scan` for the whole batch where `newton_scan` does not converge for one of its sequences.
    "auto", decided where the program is lowered, is sequential on a CPU, where all steps cost less than one iteration
    (benchmarks/records/newton_scan.json), and for a single step; elsewhere it is newton where `factor` certifies that step contracts, and
    sequential where it does not, which is by reasoning: no accelerator was measured.

    Args:
      step: (h, x) -> next h of one sequence; jacobian: see `newton_scan`.
      h0: states before the first step. xs: what the steps read, leaves (B, T, ...).
      solver: "auto", "sequential" or "newton".
      factor: kappa, a bound of step's Lipschitz constant in h on the states that are met (`gating.step_factor`); None: unknown, and "auto" tries newton.

    Returns:
      (h, fell_back): all states, and whether newton had to give way.

    Raises:
      ValueError: for an unknown solver, and what `newton_scan` raises.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} is unknown: use one of {', '.join(SOLVERS)}")

    def in_order(h0: Array, xs: Any) -> tuple[Array, Array]:
        return jax.vmap(partial(sequential_scan, step))(h0, xs), jnp.zeros((), bool)

    def newton(h0: Array, xs: Any) -> tuple[Array, Array]:
        h, solve = jax.vmap(partial(newton_scan, step, jacobian=jacobian))(h0, xs)
        solved = solve.converged.all()
        return lax.cond(solved, lambda: h, lambda: in_order(h0, xs)[0]), ~solved

    def where_certified(h0: Array, xs: Any) -> tuple[Array, Array]:
        return newton(h0, xs) if factor is None else lax.cond(factor < 1, newton, in_order, h0, xs)

    if solver == "auto" and jax.tree.leaves(xs)[0].shape[1] > 1:
        return lax.platform_dependent(h0, xs, cpu=in_order, default=where_certified)
    return (newton if solver == "newton" else in_order)(h0, xs)


def expected_iterations(factor: float, steps: int, *, frozen: float = 0.0, tol: float = 1e-6) -> float:
    """Returns how many iterations `newton_scan` may be expected to take where step contracts; inf where it is not known to.

    Errors, relative to the states, go as e <- q e^2 from 1 on, so that k iterations leave q^(2^k - 1); q is an eighth of what the state's
    reach into the gates takes of the room that contraction leaves, (kappa - kappa_0) / (1 - kappa_0). An expectation and no bound:
    the square is Newton's, the eighth was seen on certified layers (tests/stability/test_layers.py).

    Args:
      factor: kappa, of `gating.step_factor`. steps: T, which no solve exceeds. frozen: kappa_0, the factor were gates held still.
      tol: that of `newton_scan`.
    """
    if not frozen <= factor < 1:
        return math.inf
    q = max((factor - frozen) / (1 - frozen) / 8, 1e-300)
    return float(min(steps, max(1, math.ceil(math.log2(1 + math.log(tol) / math.log(q))))))


def _check(h0: Array, xs: Any, jacobian: str, tol: float, max_iters: int) -> None:
    if jacobian not in JACOBIANS:
        raise ValueError(f"jacobian={jacobian!r} is unknown: use one of {', '.join(JACOBIANS)}")
    if h0.ndim != 1 or not jnp.issubdtype(h0.dtype, jnp.floating):
        raise ValueError(f"h0 has shape {h0.shape} and dtype {h0.dtype}, expected (N,) and real numbers; use jax.vmap for a batch")
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(xs)}
    if len(lengths) != 1 or not lengths - {None, 0}:
        raise ValueError(f"leaves of xs have first axes {sorted(map(str, lengths))}, expected one number of steps T >= 1 in all")
    if not (tol >= 0 and max_iters >= 1):
        raise ValueError(f"tol={tol} and max_iters={max_iters}: use a tol from 0 and at least one iteration")


class _Form(NamedTuple):
    """How J is read off a linear map u_t - J_t u_{t-1}, or off its transpose u_t - J_{t+1}' u_{t+1}, and how it is inverted."""

    slopes: Callable[[Linear, Array], Array]
    scan: Callable[..., Array]


def _diagonal_slopes(linear: Linear, like: Array) -> Array:
    """(T, N): the image of ones is 1 - J_t, for no component meets another."""
    ones = jnp.ones_like(like)
    return ones - linear(ones)


def _diagonal_scan(J: Array, b: Array, *, reverse: bool) -> Array:
    return linear_scan(J[None], b[None], reverse=reverse)[0][0]


def _dense_slopes(linear: Linear, like: Array) -> Array:
    """(T, N, N), the same column of every J_t at a time."""
    return jax.vmap(lambda e: e[None] - linear(jnp.broadcast_to(e, like.shape)), out_axes=-1)(jnp.eye(like.shape[1], dtype=like.dtype))


def _dense_scan(J: Array, b: Array, *, reverse: bool) -> Array:
    if reverse:
        return _dense_scan(J[::-1], b[::-1], reverse=False)[::-1]
    return dense_scan(J[None], b[None])[0][0]


FORMS = {"diagonal": _Form(_diagonal_slopes, _diagonal_scan), "dense": _Form(_dense_slopes, _dense_scan)}


def _solve_linear(form: _Form, linear: Linear, b: Array) -> Array:
    """Solves linear(u) = b so that JAX can differentiate and transpose it."""
    return lax.custom_linear_solve(
        linear,
        b,
        solve=lambda linear, b: form.scan(form.slopes(linear, b), b, reverse=False),
        transpose_solve=lambda transposed, b: form.scan(form.slopes(transposed, b), b, reverse=True),
    )


class _State(NamedTuple):
    """Of the iteration: the trajectory, its mismatch, the Jacobian there, and how far J is trusted."""

    h: Array
    mismatch: Array
    J: Array
    residual: Array
    trust: Array
    iterations: Array


def _iterate(form: _Form, floor: float, max_iters: int, mismatch: Linear, guess: Array) -> tuple[Array, Solve]:
    """Damped Newton from `guess`."""

    def at(h: Array, trust: Array, iterations: Array) -> _State:
        value, linear = jax.linearize(mismatch, h)
        scale = jnp.maximum(lax.cummax(jnp.abs(h).max(axis=1)), jnp.finfo(h.dtype).tiny)
        return _State(h, value, form.slopes(linear, h), (jnp.abs(value).max(axis=1) / scale).max(), trust, iterations)

    def corrected(state: _State) -> Array:
        trusted = jnp.where(state.trust < LEAST_TRUST, 0, state.trust)
        return state.h - form.scan(trusted * state.J, state.mismatch, reverse=False)

    def unsolved(state: _State) -> Array:
        return (state.residual > floor) & (state.iterations < max_iters)

    def improve(state: _State) -> _State:
        new = at(corrected(state), jnp.minimum(4 * state.trust, 1), state.iterations + 1)
        old = state._replace(trust=state.trust / 4, iterations=state.iterations + 1)
        taken = (new.residual < state.residual) | (state.trust < LEAST_TRUST)
        return jax.tree.map(partial(jnp.where, taken), new, old)

    one, zero = jnp.ones((), guess.dtype), jnp.zeros((), guess.dtype)
    end = lax.while_loop(unsolved, improve, at(guess, one, zero))
    solved = end.residual <= floor
    # The last correction is known already: it takes the state from a small residual to a small error.
    # The report is in floats, for custom_root differentiates what it returns.
    return jnp.where(solved, corrected(end), end.h), Solve(end.residual, end.iterations, solved.astype(guess.dtype))
