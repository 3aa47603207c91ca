"""h_t = f(h_{t-1}, x_t) for all t at once: Newton's method over a linear scan (theory, section 3)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from selssm_jax.ops import shards
from selssm_jax.ops._dense_scan import dense_scan
from selssm_jax.ops._linear_scan import linear_scan
from selssm_jax.ops.boundaries import vary_alike, zeros_beside
from selssm_jax.ops.enclosure import Linearized, encloses, rounding_unit

JACOBIANS = ("diagonal", "dense")
SOLVERS = ("auto", "sequential", "newton")
FLOOR = 8.0  # units of rounding: a residual of so many cannot be told from zero
CLOSE = 1000.0  # times tol: how far from the loop's states, relative to its component, a state may be proved to lie

Step = Callable[[Array, Any], Array]
Linear = Callable[[Array], Array]


class Solve(NamedTuple):
    """How a solve ended: the residual of its last states, the corrections made, and whether those states are close to
    the loop's.

    The residual is the largest |h_t - f(h_{t-1}, x_t)| of any component over the largest size which that component had
    until then; inf where anything is not finite. It does not decide: where f expands, a small residual belongs to
    states far from the loop's.
    """

    residual: Float[Array, ""]
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]


def newton_scan(
    step: Step, h0: Float[Array, "N"], xs: Any, *, jacobian: str = "diagonal", tol: float = 1e-6, max_iters: int = 100
) -> tuple[Float[Array, "T N"], Solve]:
    """Solves h_t = step(h_{t-1}, x_t) for the whole trajectory of one sequence; use `jax.vmap` for a batch.

    Each iteration evaluates step and its Jacobian J_t at all t of the current trajectory, and solves the recurrence
    that is linear there, u_t = J_t u_{t-1} + (step(h_{t-1}, x_t) - h_t), for the correction u in one parallel scan
    (DEER, Lim et al. 2024). After k iterations the first k states are the loop's, whatever step is, so that it ends
    after T of them; but it pays only where step contracts in h (theory, section 5 B5). `converged` is earned: the
    states returned lie within `CLOSE` tol of the loop's, each relative to its own component, by an enclosure of all
    rounding and all residuals (`ops.enclosure`). Where it cannot be proved `converged` is False, though the states may
    be right: take `jax.lax.scan`.

    Work O(T N) an iteration for "diagonal", O(T N^3) for "dense". No iteration is differentiated: derivatives are those
    of the equation at its solution, one more linear scan, forward or in reverse, of any order. They are wrong where
    `converged` is False.

    Args:
      step: (h, x) -> next h, both (N,); differentiable in h, in x and in what it closes over.
      h0: state before the first step. xs: what the steps read, leaves (T, ...).
      jacobian: "diagonal" where component i of step depends on component i of h alone, else "dense". Diagonal for a
        step that is not diagonal still converges, if at all, to the right states, but its derivatives are wrong.
      tol: largest residual at which iterations end, relative to the component's size until then; never less than
        `FLOOR` roundings.
      max_iters: iterations after which it gives up.

    Returns:
      (h, solve): all states, float32 or wider, or h0 at every step where it has not converged, and how it ended.

    Raises:
      ValueError: for an unknown Jacobian, shapes that do not fit, no steps, or a tol or max_iters out of range.
    """
    h0, xs = jnp.asarray(h0), jax.tree.map(jnp.asarray, xs)
    _check(h0, xs, jacobian, tol, max_iters)
    h0 = h0.astype(jnp.promote_types(h0.dtype, jnp.float32))

    step = _in_full_precision(step)
    solver = _Solver(
        FORMS[jacobian],
        lambda before: jax.vmap(step)(before, xs).astype(h0.dtype),
        h0,
        rounding_unit(step, h0, jax.tree.map(lambda leaf: leaf[0], xs)),
        max(tol, FLOOR * float(jnp.finfo(h0.dtype).eps)),
        max_iters,
    )
    guess = solver.images(jnp.broadcast_to(h0, (len(jax.tree.leaves(xs)[0]), len(h0))))
    h, report = lax.custom_root(
        lambda h: h - solver.images(solver.before(h)),
        guess,
        solver.solve,
        partial(_solve_linear, FORMS[jacobian]),
        has_aux=True,
    )
    return h, Solve(report.residual, report.iterations.astype(jnp.int32), report.converged > 0)


def sequential_scan(step: Step, h0: Float[Array, "N"], xs: Any) -> Float[Array, "T N"]:
    """Solves h_t = step(h_{t-1}, x_t) one step after the other; the arguments are those of `newton_scan`."""
    h0 = h0.astype(jnp.promote_types(h0.dtype, jnp.float32))
    step = _in_full_precision(step)

    def body(h: Array, x: Any) -> tuple[Array, Array]:
        h = step(h, x).astype(h.dtype)
        return h, h

    return lax.scan(body, h0, xs)[1]


def nonlinear_scan(
    step: Step,
    h0: Float[Array, "B N"],
    xs: Any,
    *,
    jacobian: str = "diagonal",
    solver: str = "auto",
    factor: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "B T N"], Bool[Array, "B"]]:
    """Solves h_t = step(h_{t-1}, x_t) for a batch, and is right whatever step is.

    "newton" takes `sequential_scan` for the whole batch where `newton_scan` does not converge for one of its sequences.
    "auto", decided where the program is lowered, is sequential on a CPU, where all steps cost less than one iteration
    (benchmarks/records/newton_scan.json), and for a single step; elsewhere, and for a sequence that devices share, it
    is newton where `factor` certifies that step contracts, and sequential where it does not, which is by reasoning: no
    accelerator was measured. Devices that share a sequence (`ops.shards`) take turns where it is sequential.

    Args:
      step: (h, x) -> next h of one sequence; jacobian: see `newton_scan`.
      h0: states before the first step. xs: what the steps read, leaves (B, T, ...).
      solver: "auto", "sequential" or "newton".
      factor: kappa, a bound of step's Lipschitz constant in h on the states that are met (`gating.step_factor`); None:
        unknown, and "auto" tries newton.

    Returns:
      (h, fell_back): all states, and the sequences that newton was asked to solve and could not, for which the whole
      batch gave way.

    Raises:
      ValueError: for an unknown solver, and what `newton_scan` raises.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} is unknown: use one of {', '.join(SOLVERS)}")

    def in_order(h0: Array, xs: Any) -> tuple[Array, Array]:
        h = _take_turns(jax.vmap(partial(sequential_scan, step)), h0, xs)
        return h, zeros_beside(h.shape[:1], h, bool)

    def newton(h0: Array, xs: Any) -> tuple[Array, Array]:
        h, solve = jax.vmap(partial(newton_scan, step, jacobian=jacobian))(h0, xs)
        return lax.cond(solve.converged.all(), lambda: h, lambda: in_order(h0, xs)[0]), ~solve.converged

    def where_certified(h0: Array, xs: Any) -> tuple[Array, Array]:
        if factor is None:
            return newton(h0, xs)
        return lax.cond(shards.largest(factor) < 1, newton, in_order, h0, xs)

    if solver == "auto" and shards.count() > 1:
        return where_certified(h0, xs)
    if solver == "auto" and jax.tree.leaves(xs)[0].shape[1] > 1:
        return lax.platform_dependent(h0, xs, cpu=in_order, default=where_certified)
    return (newton if solver == "newton" else in_order)(h0, xs)


def _take_turns(run: Callable[[Array, Any], Array], h0: Array, xs: Any) -> Array:
    """run(state before, xs) of every shard, each from where the one before it ends."""
    if shards.count() > 1:

        def turn(start: Array, _: None) -> tuple[Array, None]:
            return shards.from_left(run(start, xs)[:, -1], h0), None

        h0 = h0.astype(jnp.promote_types(h0.dtype, jnp.float32))
        h0, _ = lax.scan(jax.checkpoint(turn), h0, None, length=shards.count() - 1)
    return run(h0, xs)


def expected_iterations(factor: float, steps: int, *, frozen: float = 0.0, tol: float = 1e-6) -> float:
    """Returns how many iterations `newton_scan` may be expected to take where step contracts; inf where it is not known
    to.

    Errors, relative to the states, go as e <- q e^2 from 1 on, so that k iterations leave q^(2^k - 1); q is an eighth
    of what the state's reach into the gates takes of the room that contraction leaves, (kappa - kappa_0) / (1 -
    kappa_0). An expectation and no bound: the square is Newton's, the eighth was seen on certified layers
    (tests/stability/test_layers.py).

    Args:
      factor: kappa, of `gating.step_factor`. steps: T, which no solve exceeds. frozen: kappa_0, the factor were gates
        held still.
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
        raise ValueError(
            f"h0 has shape {h0.shape} and dtype {h0.dtype}, expected (N,) and real numbers; use jax.vmap for a batch"
        )
    lengths = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(xs)}
    if len(lengths) != 1 or not lengths - {None, 0}:
        raise ValueError(
            f"leaves of xs have first axes {sorted(map(str, lengths))}, expected one number of steps T >= 1 in all"
        )
    if not (tol >= 0 and max_iters >= 1):
        raise ValueError(f"tol={tol} and max_iters={max_iters}: use a tol from 0 and at least one iteration")


def _in_full_precision(step: Step) -> Step:
    """Products of float32 in float32: accelerators round their factors to 8 or 11 bits unless they are asked not to."""

    def precise(h: Array, x: Any) -> Array:
        with jax.default_matmul_precision("highest"):
            return step(h, x)

    return precise


class _Form(NamedTuple):
    """How J is read off a linear map u_t - J_t u_{t-1}, or off its transpose u_t - J_{t+1}' u_{t+1}, and how it is
    inverted.
    """

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
    unit, _ = vary_alike((jnp.eye(like.shape[1], dtype=like.dtype), like))
    return jax.vmap(lambda e: e[None] - linear(jnp.broadcast_to(e, like.shape)), out_axes=-1)(unit)


def _dense_scan(J: Array, b: Array, *, reverse: bool) -> Array:
    return dense_scan(J[None], b[None], reverse=reverse)[0][0]


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
    """Of the iteration: the trajectory, step's images of it, the Jacobian there, the residual, and the corrections
    made.
    """

    h: Array
    images: Array
    J: Array
    residual: Array
    iterations: Array


class _Solver(NamedTuple):
    """Newton's method for one sequence: `images` is step at every t, `unit` the rounding of one step, `floor` the
    residual at which it ends.
    """

    form: _Form
    images: Linear
    h0: Array
    unit: float
    floor: float
    max_iters: int

    def before(self, h: Array) -> Array:
        """The states before each step."""
        return shards.previous(h, self.h0, axis=0)

    def linearize(self, h: Array) -> Linearized:
        """step at the states h, and its slopes there."""
        images, linear = jax.linearize(self.images, self.before(h))
        return Linearized(images, linear, self.form.slopes(lambda u: u - linear(u), h))

    def residual(self, h: Array, images: Array) -> Array:
        """The largest mismatch over the component's size until then."""
        before = jnp.maximum(jnp.abs(self.h0), jnp.finfo(h.dtype).tiny)
        before = shards.largest_before(jnp.abs(h).max(axis=0), before)
        scale = jnp.maximum(lax.cummax(jnp.abs(h)), before[None])
        residual = jnp.abs(images - h) / scale
        # A maximum may drop NaN: XLA's of float32 on a CPU does, over 4,096 numbers and more.
        return shards.largest(jnp.where(jnp.isfinite(residual).all(), residual.max(), jnp.inf))

    def at(self, h: Array, iterations: Array) -> _State:
        """The iteration that has come to h."""
        linearized = self.linearize(h)
        return _State(h, linearized.images, linearized.J, self.residual(h, linearized.images), iterations)

    def correct(self, state: _State) -> Array:
        """h + u, as f(h_{t-1}) + J u_{t-1}: what is right already stays so beside the largest errors. Always finite."""
        mismatch = state.images - state.h
        new = state.images + (self.form.scan(state.J, mismatch, reverse=False) - mismatch)
        image = jnp.where(jnp.isfinite(state.images), state.images, state.h)
        return jnp.where(jnp.isfinite(new), new, image)

    def solve(self, _: Linear, guess: Array) -> tuple[Array, Solve]:
        """Iterates from `guess`, corrects once more, and asks whether what it returns is close to the loop's states."""
        end = lax.while_loop(
            lambda state: (state.residual > self.floor) & (state.iterations < self.max_iters),
            lambda state: self.at(self.correct(state), state.iterations + 1),
            self.at(guess, zeros_beside((), guess, guess.dtype)),
        )
        h = self.correct(end)
        there = self.linearize(h)
        residual = self.residual(h, there.images)
        close = encloses(
            self.images, there, self.form.scan, self.before(h), h, unit=self.unit, close=CLOSE * self.floor
        )
        # The report is in floats, for custom_root differentiates what it returns.
        # So that derivatives are finite where a batch computes them only to throw them away.
        h = jnp.where(close, h, self.h0[None])
        return h, Solve(residual, end.iterations, close.astype(guess.dtype))
