"""What certificates say, seen to happen: coupled trajectories, laws of two times, and witnesses that can be replayed.

Trajectories are coupled where inputs and noise are shared. Two copies with noises of their own never meet: their
difference keeps a variance of its own (theory, section 5), and convergence is then that of the law, which `laws_agree`
tests.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy import stats

from selssm_jax.stability.switching import period_product

SETTLE = 4000  # steps that a pair is given to reach its attractors
CYCLES = ((1.0,), (1.0, -1.0), (1.0, 0.0), (1.0, 1.0, -1.0, -1.0))  # shapes of drives, times their bound
PLACES = np.linspace(0.1, 0.9, 9)  # of the latch's threshold, between both attractors
# an attractor repeats itself so well, and is so far from the other; times the larger of both
REPEATED, APART = 1e-9, 1e-3
PROJECTIONS = 8  # random directions in which laws are compared, beside the components

Step = Callable[[np.ndarray, Any], np.ndarray]


def simulate_coupled(
    step: Step, starts: np.ndarray, inputs: Iterable[Any], *, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns the distances max_i |h_i - k_i| / v_i of two trajectories under the same inputs, before and after every
    step.

    Args:
      step: (h, x) -> next h, (n,). starts: both first states, (2, n). inputs: one x a step, noise included. weights: v;
        ones if None.
    """
    h, k = starts
    v = np.ones(len(h)) if weights is None else weights
    distances = [np.abs((h - k) / v).max()]
    for x in inputs:
        h, k = step(h, x), step(k, x)
        distances.append(np.abs((h - k) / v).max())
    return np.asarray(distances)


def observed_rate(distances: np.ndarray, *, floor: float = 1e-12) -> float:
    """Returns the geometric mean factor of a step while distances are above `floor` times the largest; 0 where none
    is.
    """
    alive = np.flatnonzero(distances > floor * distances.max())
    if len(alive) < 2:
        return 0.0
    first, last = alive[0], alive[-1]
    return float((distances[last] / distances[first]) ** (1 / (last - first)))


def gated_update(A: np.ndarray, h: np.ndarray, gate: np.ndarray, drive: np.ndarray | float, update: str) -> np.ndarray:
    """Returns the state after h, (..., n): (1 - g) h + g (A h + u) for "retain", g (A h + u) for "effective"."""
    target = (h @ A.T if A.ndim == 2 else A * h) + drive
    return (1 - gate) * h + gate * target if update == "retain" else gate * target


def laws_agree(
    step: Step,
    start: np.ndarray,
    draw: Callable[[np.random.Generator, int], Any],
    *,
    steps: int,
    count: int = 2000,
    seed: int = 0,
) -> float:
    """Returns a p-value of the law after `steps` steps being that after twice as many: small where it still moves.

    Two independent sets of `count` trajectories are compared in every component and in some random directions by
    Kolmogorov and Smirnov's test; the smallest p-value is corrected for their number (Bonferroni).

    Args:
      step: as in `simulate_coupled`, for states (count, n). start: (n,). draw: (generator, count) -> the inputs of one
        step, noise included.
    """
    rng = np.random.default_rng(seed)
    ends = []
    for length in (steps, 2 * steps):
        h = np.repeat(start[None], count, axis=0)
        for _ in range(length):
            h = step(h, draw(rng, count))
        ends.append(h)
    directions = np.concatenate([np.eye(len(start)), rng.standard_normal((PROJECTIONS, len(start)))])
    p_values = [stats.ks_2samp(ends[0] @ direction, ends[1] @ direction).pvalue for direction in directions]
    return float(min(1.0, min(p_values) * len(p_values)))


@dataclasses.dataclass(frozen=True)
class GateSequence:
    """Gates, (P, n), that a recurrence does not forget under when they are repeated: growth a step of 1 or more,
    rho(A_P ... A_1)^(1/P).
    """

    gates: np.ndarray
    growth: float

    def replay(self, A: np.ndarray, update: str, *, periods: int) -> np.ndarray:
        """Returns |A_P ... A_1|^k, the spectral norm, after k = 0 ... periods periods."""
        product = period_product(A, self.gates, update)
        product = np.diag(product) if A.ndim == 1 else product
        return np.asarray([np.linalg.norm(np.linalg.matrix_power(product, k), ord=2) for k in range(periods + 1)])


@dataclasses.dataclass(frozen=True)
class Direction:
    """A difference of states, (n,), whose second moment grows by `radius`, 1 or more, a step under the law of the
    gates.
    """

    start: np.ndarray
    radius: float


@dataclasses.dataclass(frozen=True)
class GatePath:
    """Gates drawn from their law, (T, n), under which differences grow by exp(gamma) a step in the long run."""

    gates: np.ndarray
    gamma: float


@dataclasses.dataclass(frozen=True)
class LatchPair:
    """Two starts, (2, n), that stay apart under the same drives, (P, n), repeated, with a latch for a gate.

    g_i = clip(low_i + slope_i (h_i - threshold_i), low_i, high_i) where the drive is positive, low_i where it is not.
    The slope is at most the Lipschitz constant that was given, so this gate is one of those that were asked about.
    """

    starts: np.ndarray
    drives: np.ndarray
    slope: np.ndarray
    threshold: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def gate(self, h: np.ndarray, drive: np.ndarray) -> np.ndarray:
        """Returns the latch's gates."""
        armed = np.clip(self.low + self.slope * (h - self.threshold), self.low, self.high)
        return np.where(drive > 0, armed, self.low)

    def replay(self, A: np.ndarray, update: str, *, periods: int) -> np.ndarray:
        """Returns the distance of both trajectories before and after every step."""
        drives = np.tile(self.drives, (periods, 1))
        return simulate_coupled(lambda h, u: gated_update(A, h, self.gate(h, u), u, update), self.starts, drives)


@dataclasses.dataclass(frozen=True)
class ExpandingOrbit:
    """A start, (n,), and inputs, (P, m), repeated, along whose orbit under a map differences in `direction`, (n,), grow
    by `growth`, 1 or more, a step.
    """

    start: np.ndarray
    direction: np.ndarray
    inputs: np.ndarray
    growth: float

    def replay(self, f: Step, *, steps: int, displacement: float = 1e-3) -> np.ndarray:
        """Returns the distances of the orbit of h' = f(h, x) and of one that begins beside it."""
        starts = np.stack([self.start, self.start + displacement * self.direction])
        inputs = (self.inputs[step % len(self.inputs)] for step in range(steps))
        return simulate_coupled(lambda h, x: np.asarray(f(h, x)), starts, inputs)


@dataclasses.dataclass(frozen=True)
class Escape:
    """A state, (n,), of a box and an input, (m,), whose image under a map is outside."""

    state: np.ndarray
    input: np.ndarray
    image: np.ndarray


Witness = GateSequence | Direction | GatePath | LatchPair | ExpandingOrbit | Escape


def diverging_pair(
    A: np.ndarray, low: np.ndarray, high: np.ndarray, slope: np.ndarray, drive: np.ndarray, update: str
) -> LatchPair | None:
    """Searches a latch and a drive, within the constants given, under which two starts never meet; None where none was
    found.
    """
    if not (np.isfinite(slope).all() and np.isfinite(drive).all() and (slope > 0).any()):
        return None
    for cycle in CYCLES:
        drives = np.asarray(cycle)[:, None] * drive
        ends = np.stack([_settle(A, drives, low, armed, update) for armed in (low, high)])
        thresholds = (
            ends[0] + PLACES[:, None, None] * (ends[1] - ends[0]) - (high - low) / (2 * np.where(slope > 0, slope, 1))
        )
        pair = (
            _find_latch(A, LatchPair(ends, drives, slope, thresholds, low, high), update)
            if np.isfinite(ends).all()
            else None
        )
        if pair is not None:
            return pair
    return None


def _settle(A: np.ndarray, drives: np.ndarray, low: np.ndarray, armed: np.ndarray, update: str) -> np.ndarray:
    """The state before each cycle in the long run, with gates `armed` where the drive is positive and `low`
    elsewhere.
    """

    def cycle(h: np.ndarray) -> np.ndarray:
        for u in drives:
            h = gated_update(A, h, np.where(u > 0, armed, low), u, update)
        return h

    return _repeat_cycle(cycle, np.zeros(len(A)), len(drives))[1]


def _find_latch(A: np.ndarray, tried: LatchPair, update: str) -> LatchPair | None:
    """Of latches with thresholds (places, 1, n), one whose attractors repeat themselves and stay apart: slow forgetting
    is not taken for none.
    """

    def cycle(h: np.ndarray) -> np.ndarray:
        for u in tried.drives:
            h = gated_update(A, h, tried.gate(h, u), u, update)
        return h

    before, ends = _repeat_cycle(cycle, np.repeat(tried.starts[None], len(PLACES), axis=0), len(tried.drives))
    scale = np.maximum(np.abs(ends).max(axis=(1, 2)), np.finfo(np.float64).tiny)
    repeats = np.abs(ends - before).max(axis=(1, 2)) <= REPEATED * scale
    latched = np.flatnonzero(repeats & (np.abs(ends[:, 0] - ends[:, 1]).max(axis=1) > APART * scale))
    if not len(latched):
        return None
    return dataclasses.replace(tried, starts=ends[latched[0]], threshold=tried.threshold[latched[0], 0])


def _repeat_cycle(
    cycle: Callable[[np.ndarray], np.ndarray], h: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The states before and after the last cycle of SETTLE steps, or of fewer once nothing moves; inf where they leave
    the finite numbers.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        for count in range(SETTLE // length):
            before, h = h, cycle(h)
            if count % 16 == 15 and np.abs(h - before).max() <= 4 * np.finfo(np.float64).eps * np.abs(h).max():
                break
    return before, np.nan_to_num(h, nan=np.inf)
