"""What a map h' = f(h, x) is seen to do in a box: orbits along which differences grow, states that leave, the largest
derivatives that gradient ascent finds, all in float64; and what differences of f itself, in the type that it runs in,
say of bounds and of those derivatives.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from selssm_jax.stability.simulate import Escape, ExpandingOrbit
from selssm_jax.stability.verdict import MARGINAL

Map = Callable[[Any, Any], Any]
ENDLESS = 10.0  # half the width that is searched of a side without ends
# orbits that are followed, of which those from corners only tell whether they leave, and have no part in exponents;
# batches whose means tell the error of an exponent
CHAINS, CORNERS, STEPS, BATCHES = 24, 8, 8192, 16
SHOWN = 512  # steps of an orbit under changing inputs that a witness holds
SIGMAS = 4.0  # standard errors by which an exponent has to be above 0
# of Newton's method for fixed points: starts, iterations, how well a fixed point has to repeat itself, and what keeps
# a map that moves nothing from a division by 0
STARTS, NEWTON, SOLVED, RIDGE = 64, 30, 1e-9, 1e-9
PAIRS, HALVINGS = 512, 12  # pairs of points whose secants are compared with a bound, and how often they are halved
# units of rounding by which a secant may be off; states of an orbit at which derivatives are compared with secants, the
# share of them that has to agree, for a map may have corners, and how well
SLACK, COMPARED, AGREE, ALIKE = 64.0, 16, 0.75, 1e-2
POINTS, ASCENT, REACH = 256, 60, 0.1  # starts of gradient ascent, its steps, the first as a share of the box


@dataclasses.dataclass(frozen=True)
class Region:
    """States in [low, high], (n,), and inputs, (m,), likewise; both may be endless."""

    low: np.ndarray
    high: np.ndarray
    input_low: np.ndarray
    input_high: np.ndarray

    def draw(self, rng: np.random.Generator, count: int, corners: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Returns states and inputs, drawn evenly but for the last `corners`, each of which is at a corner."""
        at_corner = (np.arange(count) >= count - corners)[:, None]
        low, high = self.ends
        even = rng.uniform(low, high, (count, len(low)))
        drawn = np.where(at_corner, np.where(rng.random(even.shape) < 0.5, low, high), even)
        return drawn[:, : len(self.low)], drawn[:, len(self.low) :]

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The box of states and inputs, (n + m,) each, cut where it has no ends."""
        low, high = np.concatenate([self.low, self.input_low]), np.concatenate([self.high, self.input_high])
        with np.errstate(invalid="ignore"):
            return (
                np.where(np.isfinite(low), low, np.where(np.isfinite(high), high - 2 * ENDLESS, -ENDLESS)),
                np.where(np.isfinite(high), high, np.where(np.isfinite(low), low + 2 * ENDLESS, ENDLESS)),
            )

    def holds(self, states: np.ndarray, room: np.ndarray) -> np.ndarray:
        """Returns whether states, (..., n), lie in the box, or beside it by at most `room`."""
        return ((states >= self.low - room) & (states <= self.high + room)).all(-1)


class Slopes(NamedTuple):
    """The largest |df_i/dz_j| seen, (n, n + m), z = (h, x), and where, (n, n + m, n + m)."""

    largest: np.ndarray
    points: np.ndarray


class Orbits(NamedTuple):
    """What following orbits showed.

    Attributes:
      expanding: of those that stayed in the box the one along which differences grow most, where they surely do.
      escape: a state that leaves the box.
      stderr: of the logarithm of the growth of `expanding`.
    """

    expanding: ExpandingOrbit | None
    escape: Escape | None
    stderr: float


def follow_orbits(f: Map, region: Region, noise: np.ndarray, room: np.ndarray, seed: int) -> Orbits:
    """Follows orbits from states of the box: half under one input for ever, half under inputs that change.

    An orbit is one of f alone. It escapes where a noise, at most so large, could take it out of the box.
    """
    rng = np.random.default_rng(seed)
    h, x = region.draw(rng, CHAINS, CORNERS)
    changing = np.arange(CHAINS) % 2 == 1
    inputs = np.where(changing[:, None], region.draw(rng, STEPS * CHAINS)[1].reshape(STEPS, CHAINS, -1), x)
    with jax.enable_x64(True):
        states, tangents, growth = (np.asarray(part) for part in _follow(f, h, rng.standard_normal(h.shape), inputs))
    inside = region.holds(states, room)
    exponents, least = _exponents(growth[:, :-CORNERS], np.all(inside[:, :-CORNERS], axis=0))
    best, start = int(least.argmax()), STEPS // 2
    growing = ExpandingOrbit(
        states[start, best],
        tangents[start, best],
        inputs[start : start + SHOWN, best] if changing[best] else inputs[:1, best],
        float(np.exp(exponents[best])),
    )
    leaves = inside[:-1] & ~region.holds(states[1:], room - noise)
    place = tuple(np.argwhere(leaves)[0]) if leaves.any() else None
    escape = None if place is None else Escape(states[place], inputs[place], states[place[0] + 1, place[1]])
    stderr = float(exponents[best] - least[best]) / SIGMAS if np.isfinite(least[best]) else np.inf
    return Orbits(growing if least[best] > 0 else None, escape, stderr)


def _exponents(growth: np.ndarray, stays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every orbit, nats a step over its second half, and those that it surely has; -inf for one that left."""
    late = growth[STEPS // 2 :].reshape(BATCHES, -1, growth.shape[1]).mean(1)
    stays = stays & np.isfinite(late).all(0)
    late = np.where(stays, late, 0)
    exponents = np.where(stays, late.mean(0), -np.inf)
    return exponents, exponents - SIGMAS * late.std(0, ddof=1) / np.sqrt(BATCHES)


@partial(jax.jit, static_argnums=0)
def _follow(f: Map, h: Any, tangent: Any, inputs: Any) -> tuple[Any, Any, Any]:
    """States before every step and after the last, tangents before, and how much each step grew them."""

    def step(before: tuple[Any, Any], x: Any) -> tuple[tuple[Any, Any], tuple[Any, Any, Any]]:
        h, tangent = before
        after, grown = f(h, x).astype(h.dtype), _jacobian(f)(h, x) @ tangent
        size = jnp.linalg.norm(grown)
        return (after, grown / jnp.where(size > 0, size, 1)), (h, tangent, jnp.log(size))

    tangent = tangent / jnp.linalg.norm(tangent, axis=1, keepdims=True)
    (last, _), (states, tangents, growth) = jax.lax.scan(jax.vmap(step), (h, tangent), inputs)
    return jnp.concatenate([states, last[None]]), tangents, growth


def find_unstable_fixed_point(f: Map, region: Region, room: np.ndarray, seed: int) -> ExpandingOrbit | None:
    """Searches, by Newton's method, a state of the box that an input leaves as it is and around which differences do
    not shrink.
    """
    h, x = region.draw(np.random.default_rng(seed), STARTS, STARTS // 2)
    identity = (1 + RIDGE) * np.eye(h.shape[1])
    for _ in range(NEWTON):
        images, J = _linearize(f, h, x)
        h = np.nan_to_num(h + np.linalg.solve(identity - J, (images - h)[..., None])[..., 0], nan=np.inf)
    images, J = _linearize(f, h, x)
    with np.errstate(invalid="ignore"):  # those that went to infinity
        solved = np.abs(images - h).max(1) <= SOLVED * np.maximum(1, np.abs(h).max(1))
    solved &= region.holds(h, room)
    if not solved.any():
        return None
    values, vectors = np.linalg.eig(J[solved])
    radii = np.abs(values).max(1)
    best = int(radii.argmax())
    if radii[best] < 1 - MARGINAL:
        return None
    direction = vectors[best, :, np.abs(values[best]).argmax()].real
    return ExpandingOrbit(
        h[solved][best], direction / np.linalg.norm(direction), x[solved][best][None], float(radii[best])
    )


def _linearize(f: Map, h: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with jax.enable_x64(True):
        images, J = _images_and_jacobians(f, h, x)
        return np.asarray(images, np.float64), np.nan_to_num(np.asarray(J, np.float64), posinf=0.0, neginf=0.0)


@partial(jax.jit, static_argnums=0)
def _images_and_jacobians(f: Map, h: Any, x: Any) -> tuple[Any, Any]:
    return jax.vmap(f)(h, x), jax.vmap(_jacobian(f))(h, x)


def _jacobian(f: Map) -> Map:
    """By reverse mode: scans with gradients of their own, as those of `ops`, know no other."""
    return jax.jacrev(lambda h, x: f(h, x).astype(h.dtype))


def agrees_with_secants(f: Map, region: Region, orbit: ExpandingOrbit, steps: int = COMPARED) -> bool:
    """Whether along an orbit derivatives are what differences of f say, in the type that it runs in: a rule of its own
    (`jax.custom_jvp`) may differentiate another function.
    """
    h, unit = jnp.asarray(orbit.start), _unit()
    states: list[Any] = []
    inputs: list[Any] = []
    for step in range(steps):
        states, inputs = [*states, h], [*inputs, jnp.asarray(orbit.inputs[step % len(orbit.inputs)])]
        h = f(h, inputs[-1])
    low, high = (end[: len(region.low)] for end in region.ends)
    width = np.where(high > low, high - low, np.maximum(1, np.abs(low)))
    reach = unit ** (1 / 3) * np.diag(width)  # the step at which rounding and curvature weigh the same
    forth, back = (np.asarray(states)[:, None] + side * reach for side in (1, -1))
    forth, back = (np.where(high > low, np.clip(ends, low, high), ends) for ends in (forth, back))
    J = _linearize(f, np.asarray(states, np.float64), np.asarray(inputs, np.float64))[1]
    ends = jnp.asarray(np.stack([forth, back], axis=2))
    images = np.asarray(_images_of_ends(f, ends, jnp.stack(inputs)), np.float64)
    moved = np.diagonal(forth - back, axis1=1, axis2=2)[:, None]
    with np.errstate(all="ignore"):
        secants = (images[:, :, 0] - images[:, :, 1]).swapaxes(1, 2) / moved
        alike = (np.abs(secants - J) <= ALIKE * np.abs(J).max(axis=(1, 2), keepdims=True)).all(axis=(1, 2))
    return bool(alike.mean() >= AGREE)


@partial(jax.jit, static_argnums=0)
def _images_of_ends(f: Map, ends: Any, x: Any) -> Any:
    """Of the ends of secants, (T, n, 2, n)."""
    return jax.vmap(lambda ends, x: jax.vmap(jax.vmap(lambda h: f(h, x)))(ends))(ends, x)


def _unit() -> float:
    return float(jnp.finfo(jnp.zeros(0).dtype).eps)


class Secant(NamedTuple):
    """Two points z = (h, x), (2, n + m), between which component `i` of f changes by `change`, where a bound allows
    `allowed`; NaN where f is no number.
    """

    ends: np.ndarray
    i: int
    change: float
    allowed: float


def climb_secants(f: Map, region: Region, J: np.ndarray, K: np.ndarray | None, seed: int) -> Secant | None:
    """Searches two points of the box between which f, in the type that it runs in, changes by more than |df/dh| <= J
    and |df/dx| <= K allow, at most all widths and halved again and again: of each pair the half that is steeper.
    """
    rng, n, unit = np.random.default_rng(seed), len(region.low), _unit()
    low, high = region.ends
    a = np.concatenate(region.draw(rng, PAIRS, PAIRS // 8), axis=1)
    moves = rng.uniform(-1, 1, a.shape) * 10.0 ** rng.integers(-3, 1, (PAIRS, 1)) * (high - low)
    moves[::2] *= np.eye(a.shape[1])[rng.integers(a.shape[1], size=PAIRS)][::2]  # one variable alone
    moves[:, n:] *= K is not None
    bound = np.concatenate([J, np.zeros((n, a.shape[1] - n)) if K is None else K], axis=1)
    a, b = (np.asarray(jnp.asarray(z), np.float64) for z in (a, np.clip(a + moves, low, high)))
    at_a, at_b = _images(f, n, a), _images(f, n, b)
    rows = np.arange(PAIRS)
    worst = _excess(a, b, at_a, at_b, bound, unit)[0].argmax(1)
    for _ in range(HALVINGS):
        excess, change, allowed = _excess(a, b, at_a, at_b, bound, unit)
        if (excess > 0).any():
            pair, i = (int(place) for place in np.unravel_index(excess.argmax(), excess.shape))
            return Secant(np.stack([a[pair], b[pair]]), i, float(change[pair, i]), float(allowed[pair, i]))
        middle = np.asarray(jnp.asarray((a + b) / 2), np.float64)
        at_middle = _images(f, n, middle)
        first = _excess(a, middle, at_a, at_middle, bound, unit)[0][rows, worst]
        steeper = (first >= _excess(middle, b, at_middle, at_b, bound, unit)[0][rows, worst])[:, None]
        a, at_a = np.where(steeper, a, middle), np.where(steeper, at_a, at_middle)
        b, at_b = np.where(steeper, middle, b), np.where(steeper, at_middle, at_b)
    return None


def _excess(a: Any, b: Any, at_a: Any, at_b: Any, bound: np.ndarray, unit: float) -> tuple[Any, Any, Any]:
    """By how much changes of f, (P, n), exceed what is allowed, rounding included; inf where f is no number."""
    change, allowed = np.abs(at_b - at_a), np.abs(b - a) @ bound.T
    rounding = SLACK * unit * (np.abs(at_a) + np.abs(at_b) + np.maximum(np.abs(a), np.abs(b)) @ bound.T)
    excess = change - allowed * (1 + SLACK * unit) - rounding
    return np.where(np.isfinite(change), excess, np.inf), change, allowed


def _images(f: Map, n: int, z: np.ndarray) -> np.ndarray:
    return np.asarray(_images_of_many(f, jnp.asarray(z[:, :n]), jnp.asarray(z[:, n:])), np.float64)


@partial(jax.jit, static_argnums=0)
def _images_of_many(f: Map, h: Any, x: Any) -> Any:
    return jax.vmap(f)(h, x)


def climb_slopes(f: Map, region: Region, seed: int) -> Slopes:
    """Returns the largest derivatives seen at points of the box, and on the way up by gradient ascent on the norm of
    the Jacobian.
    """
    h, x = region.draw(np.random.default_rng(seed), POINTS, POINTS // 2)
    with jax.enable_x64(True):
        largest, points = _climb(f, len(region.low), np.concatenate([h, x], axis=1), *region.ends)
        return Slopes(np.asarray(largest), np.asarray(points))


@partial(jax.jit, static_argnums=(0, 1))
def _climb(f: Map, n: int, z: Any, low: Any, high: Any) -> tuple[Any, Any]:
    def norm(z: Any) -> tuple[Any, Any]:
        size = jnp.abs(_jacobian(lambda z, _: f(z[:n], z[n:]))(z, None))
        return size[:, :n].sum(1).max(), size

    def step(state: tuple[Any, Any, Any], reach: Any) -> tuple[tuple[Any, Any, Any], None]:
        z, largest, points = state
        slope, size = jax.vmap(jax.grad(norm, has_aux=True))(z)
        size = jnp.where(jnp.isfinite(size), size, jnp.inf)
        best = size.argmax(0)
        larger = size.max(0) > largest
        points = jnp.where(larger[..., None], z[best], points)
        upwards = jnp.nan_to_num(jnp.sign(slope)) * (reach * (high - low))[None]
        return (jnp.clip(z + upwards, low[None], high[None]), jnp.maximum(largest, size.max(0)), points), None

    start = z, jnp.full((n, z.shape[1]), -1.0, z.dtype), jnp.zeros((n, z.shape[1], z.shape[1]), z.dtype)
    reach = REACH * 0.9 ** jnp.arange(ASCENT, dtype=z.dtype)
    return jax.lax.scan(step, start, reach)[0][1:]
