"""Bounds from both sides on the information of nonlinear states, h_t = f(h_{t-1}, x_t) + w_t with w_t ~ N(0, Q), f and
the laws of start and inputs given by you.

The density of one step is known, p(h_t | h_{t-1}, x_t) = N(f(h_{t-1}, x_t), Q); that of h_T given what came earlier is
a mean of it over trajectories. For a Z from which the trajectory is drawn, the inputs or the start,

  I(h_T; Z) = I(h_T; h_{T-1}, x_T) - I(h_T; h_{T-1}, x_T | Z),

for h_T reads Z through (h_{T-1}, x_T) alone. `bracket.state_information` holds the first term between two ends from
independent trajectories, the second from trajectories that share a Z. Each end of the difference takes the opposite one
of the second term, so both hold in expectation (nested Monte Carlo with contrastive samples: Foster et al. 2020).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from selssm_jax.information.bracket import CAUTION, Bracket
from selssm_jax.information.bracket import state_information as bracket_information
from selssm_jax.information.channel import einsum
from selssm_jax.information.checks import check_covariance, check_shape, check_whole, floating

ROUNDING = 1 / 64  # of states, as a share of the noise: it would be noise of its own, or hide what there is
ABOUT = ("inputs", "start", "step")
Map = Callable[[Any, Any], Any]
Draw = Callable[[Key[Array, ""]], Any]


def state_information(
    f: Map,
    noise_cov: Float[Array | np.ndarray, "n"] | Float[Array | np.ndarray, "n n"],
    draw_start: Draw,
    draw_inputs: Draw,
    *,
    about: str = "inputs",
    key: Key[Array, ""],
    trajectories: int = 4000,
    conditions: int = 256,
    paths: int = 256,
) -> Bracket:
    """Brackets what h_T, after the T inputs that are drawn, says of what came before, in nats. Lower and upper.

    The ends are apart by about e^{2 I} / M for each term, of M `trajectories` or `paths` and the I of that term: much
    noise that spreads over many steps makes the second wide. `resolved` is false where either term is beyond log M - 1.
    The ends are not cut at 0.

    Cost: trajectories^2 + conditions paths^2 pairs of n components; memory for the inputs and the noise of all paths,
    conditions paths T (m + n) numbers.

    Args:
      f: (h, x) -> the mean of the next state, (n,). noise_cov: Q, its diagonal or whole, positive definite.
      draw_start: key -> h_0, (n,). draw_inputs: key -> x_{1:T}, (T, m), independent of the start.
      about: Z. "inputs": I(h_T; x_{1:T}), over starts that are unknown; "start": I(h_T; h_0), over inputs that are
        unknown; "step": I(h_T; h_{T-1}, x_T), at least both.
      trajectories: independent ones. conditions: draws of Z. paths: trajectories that share each.

    Raises:
      ValueError: for shapes that do not fit, a Q that is not positive definite, too few of anything, and states so
        large that their rounding is no less than a 64th of the noise.

    Source: theory, sections 4.2 and 4.3.
    """
    if about not in ABOUT:
        raise ValueError(f"about={about!r} is unknown: use one of {', '.join(ABOUT)}")
    check_whole(4, trajectories=trajectories, conditions=conditions, paths=paths)
    root = _read(f, noise_cov, draw_start, draw_inputs)

    def draw(key: Array, groups: int, size: int) -> tuple[Array, Array]:
        """Trajectories in groups, (G, K, n), that have Z in common: h_T's mean given the step before, and h_T."""
        keys = dict(zip(("start", "inputs", "noise"), jax.random.split(key, 3), strict=True))
        draws: dict[str, Array] = {}
        for name, draw_value in (("start", draw_start), ("inputs", draw_inputs)):
            each = 1 if name == about else size
            values = jax.vmap(draw_value)(jax.random.split(keys[name], groups * each))
            draws[name] = jnp.repeat(values, size // each, axis=0)
        normal = jax.random.normal(keys["noise"], (*draws["inputs"].shape[:2], len(root)), root.dtype)
        *values, largest = _simulate(f, root, draws["start"].astype(root.dtype), draws["inputs"], normal)
        _check_rounding(root, largest)
        return tuple(value.reshape(groups, size, len(root)) for value in values)

    first, second = jax.random.split(key)
    of_step = _bracket(*(value[:, 0] for value in draw(first, trajectories, 1)))
    return of_step if about == "step" else _subtract(of_step, _bracket_each(*draw(second, conditions, paths)))


@partial(jax.jit, static_argnums=0)
def _simulate(f: Map, root: Array, start: Array, inputs: Array, normal: Array) -> tuple[Array, Array, Array]:
    """h_T's mean given the step before, and h_T, (N, n), in coordinates in which Q is 1: they know as much; and the
    largest sizes of components on the way, (n,).

    All that is random was drawn before: programs that draw take seconds to compile.
    """

    def step(h: Array, given: tuple[Array, Array]) -> tuple[Array, Array]:
        x, normal = given
        mean = jax.vmap(f)(h, x).astype(h.dtype)
        return mean + einsum("mj,ij->mi", normal, root), mean

    means = lax.scan(step, start, (inputs.swapaxes(0, 1), normal.swapaxes(0, 1)))[1]
    mean = jax.scipy.linalg.solve_triangular(root, means[-1].T, lower=True).T
    largest = jnp.maximum(jnp.abs(means).max(axis=(0, 1)), jnp.abs(start).max(axis=0))
    return mean, mean + normal[:, -1], largest


def _check_rounding(root: Array, largest: Array) -> None:
    """What states round, in coordinates in which Q is 1, has to be far below 1."""
    size, of_noise = np.asarray(largest, np.float64), np.linalg.inv(np.asarray(root, np.float64))
    rounding = np.abs(of_noise) @ (size * float(jnp.finfo(root.dtype).eps))
    if not (rounding <= ROUNDING).all():
        raise ValueError(
            f"f or draw_start returns states up to {size.max():.4g}, which {root.dtype} rounds by {rounding.max():.2g} "
            f"times the noise of noise_cov, expected at most {ROUNDING:.2g}: subtract the offset from states, use "
            "jax_enable_x64, or give the noise that there is"
        )


def _bracket(means: Array, states: Array) -> Bracket:
    return bracket_information(means, jnp.ones_like(means), states)


@jax.jit
def _bracket_each(means: Array, states: Array) -> Bracket:
    """Of every group, (G, K, n)."""
    return lax.map(lambda given: _bracket(*given), (means, states))


def _read(f: Map, noise_cov: Any, draw_start: Draw, draw_inputs: Draw) -> Array:
    """The triangular root of Q, (n, n); raises ValueError, naming the argument, for what does not fit."""
    (noise,) = floating(noise_cov=jnp.asarray(noise_cov))
    key = jax.random.key(0)
    start, inputs = jax.eval_shape(draw_start, key), jax.eval_shape(draw_inputs, key)
    if len(start.shape) != 1 or not start.shape[0]:
        raise ValueError(f"draw_start returns shape {start.shape}, expected (n,) with n >= 1: one start")
    if not inputs.shape or not inputs.shape[0]:
        raise ValueError(f"draw_inputs returns shape {inputs.shape}, expected (T, m) with T >= 1: one sequence")
    n = start.shape[0]
    image = jax.eval_shape(f, start, jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype))
    if image.shape != (n,):
        raise ValueError(f"f returns shape {image.shape}, expected ({n},) from draw_start: the mean of the next state")
    check_shape("noise_cov", noise, [(n,), (n, n)], "draw_start")
    noise = jnp.diag(noise) if noise.ndim == 1 else noise
    check_covariance("noise_cov", noise)
    root = jnp.linalg.cholesky(noise)
    if not jnp.isfinite(root).all():
        raise ValueError(
            "noise_cov is singular, expected a positive definite covariance: a direction free of noise says infinitely "
            "much of a continuous input"
        )
    return root


def _subtract(of_step: Bracket, given: Bracket) -> Bracket:
    """The first term less the mean of the second over conditions, which are independent of it and of one another."""
    ends = jnp.stack([given.lower, given.upper])
    spread = CAUTION * jnp.std(ends, axis=1, ddof=1).max() / jnp.sqrt(ends.shape[1])
    return Bracket(
        of_step.lower - ends[1].mean(),
        of_step.upper - ends[0].mean(),
        jnp.hypot(of_step.stderr, spread),
        of_step.resolved & given.resolved.all(),
    )
