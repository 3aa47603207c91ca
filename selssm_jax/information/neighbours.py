"""Estimates of information and entropy from the distances of nearest neighbours (theory, section 8).

They need no model of the law and no training, and their bias is small where the law is nearly flat over the k nearest neighbours: up to about
six columns in all and two nats. Beyond, they say too little. They are no bounds.
"""

import math
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array

from selssm_jax.information.estimate import Estimate
from selssm_jax.information.inputs import Samples, columns, pairs

BLOCK, UNROLL = 1024, 8  # samples whose neighbours are looked for at once, and candidates a turn: their k distances stay in the fastest cache
PARTS = 10  # disjoint parts of the samples, whose spread gives the standard error
JITTER = 1e-5  # standard deviations: what ties are parted by, and what float32 still tells apart
ROUNDING = 1e-6  # relative, of squared distances: programs that round one differently (fused multiply-adds) must count alike
COLUMNS, NATS = 6, 2.0  # beyond which a note says that neighbours lose information


_Distances = Callable[[Array, int], tuple[Array, ...]]
"""(turn, which of its candidates) -> squared distances of a block of samples in x and in y."""


class _Neighbours(NamedTuple):
    """Of every sample: its radius, and how many others lie within it in x and in y; for variant 2, within a radius each."""

    radius: Array
    of_x: Array
    of_y: Array


def ksg(x: Samples, y: Samples, *, k: int = 5, variant: Literal[1, 2] = 1) -> Estimate:
    """I(x; y) by Kraskov, Stoegbauer and Grassberger (2004), in nats.

    With eps_i the distance to the k-th neighbour in the larger of the (Euclidean) distances in x and in y, of standardised columns:
      variant 1: psi(k) + psi(N) - <psi(n_x + 1) + psi(n_y + 1)>, n_x and n_y the others nearer than eps_i in x and in y;
      variant 2: psi(k) - 1/k + psi(N) - <psi(n_x) + psi(n_y)>, counted up to the largest distance of the k neighbours in x, and in y.

    No bound: low where the law bends within eps_i, hence in many columns and at high information; a note says where it is out of its
    range. Ties, which the method does not know, are parted by noise of 1e-5 standard deviations, with a warning; a constant column
    says nothing. The standard error is that of disjoint tenths, never of a bootstrap, whose repetitions are ties. Cost: O(N^2 d).

    Raises:
      ValueError: for samples that are no numbers, not finite or not paired, k below 1 or not below N, and another variant.
    """
    if variant not in (1, 2):
        raise ValueError(f"variant={variant!r} is unknown: use 1 or 2")
    x, y, notes = _prepared(x, y, k)
    values = partial(_ksg, k=k, variant=variant)
    nats, stderr = values(x, y), _stderr(values, x, y, k)
    return Estimate(nats, stderr, "estimate", f"KSG {variant}, k={k}", (*notes, *_range(nats, x.shape[1] + y.shape[1])))


def mixed(x: Samples, y: Samples, *, k: int = 5) -> Estimate:
    """I(x; y) where x, y or both may be discrete, continuous or mixtures, by Gao, Kannan, Oh and Viswanath (2017), in nats.

    log N + <psi(k_i) - psi(n_x) - psi(n_y)>, with k_i = k and n_x, n_y the samples nearer than eps_i, itself included; where the k-th
    neighbour is at distance 0, the samples that are the same in both, in x and in y. (psi as in the authors' program: the logarithm of
    the paper, which is the same for many neighbours, loses 0.2 nats for five.) Ties are what it is for. No bound. Cost and errors: see `ksg`.
    """
    x, y = pairs(x, y, least=2)
    _check_k(k, len(x))
    x, y = _standardised(x), _standardised(y)
    nats, stderr = _mixed(x, y, k), _stderr(partial(_mixed, k=k), x, y, k)
    return Estimate(nats, stderr, "estimate", f"KSG for mixtures, k={k}", _range(nats, x.shape[1] + y.shape[1]))


def entropy(x: Samples, *, k: int = 5) -> float:
    """The differential entropy of x by Kozachenko and Leonenko (1987), in nats: psi(N) - psi(k) + log V_d + d <log eps_i>.

    Euclidean distances in the units of x; -inf where more than k samples coincide. An estimate. Cost and errors: see `ksg`.
    """
    x = columns("x", x)
    _check_k(k, len(x))
    N, d = x.shape
    radius = _neighbours(x - x.mean(axis=0, keepdims=True), np.zeros((N, 1)), k, "radius").radius.astype(np.float64)
    with np.errstate(divide="ignore"):
        mean = float(np.mean(np.log(radius))) / 2
    volume = 0.5 * d * math.log(math.pi) - float(gammaln(d / 2 + 1))
    return float(digamma(jnp.float32(N))) - float(digamma(jnp.float32(k))) + volume + d * mean


def _ksg(x: np.ndarray, y: np.ndarray, *, k: int, variant: int) -> float:
    found = _neighbours(x, y, k, "below" if variant == 1 else "each")
    counts = np.stack([found.of_x, found.of_y]).astype(np.float64) + (1 if variant == 1 else 0)
    return _psi(k) - (0 if variant == 1 else 1 / k) + _psi(len(x)) - float(np.mean(_psi_table(len(x))[counts.astype(int)].sum(axis=0)))


def _mixed(x: np.ndarray, y: np.ndarray, k: int) -> float:
    found = _neighbours(x, y, k, "below")
    tied = np.asarray(found.radius) == 0
    own = np.where(tied, _same(np.concatenate([x, y], axis=1)), k)
    of_x, of_y = (np.where(tied, _same(z), np.asarray(count).astype(int) + 1) for z, count in ((x, found.of_x), (y, found.of_y)))
    psi = _psi_table(len(x))
    return float(np.mean(psi[own] - psi[of_x] - psi[of_y])) + math.log(len(x))


def _same(z: np.ndarray) -> np.ndarray:
    """How many samples are the same point as each, itself included."""
    _, member, size = np.unique(z, axis=0, return_inverse=True, return_counts=True)
    return size[member.ravel()]


def _psi(n: float) -> float:
    return float(_psi_table(int(n))[int(n)])


def _psi_table(largest: int) -> np.ndarray:
    """psi(0..largest), exact sums of float64: psi(1) = -gamma, psi(n + 1) = psi(n) + 1/n; psi(0) stands for none and is not used."""
    return np.concatenate([[math.nan], -np.euler_gamma + np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, largest + 1))])])


def _neighbours(x: np.ndarray, y: np.ndarray, k: int, counted: str) -> _Neighbours:
    """Squared radii and counts; counted: "below" the joint radius, up to "each" one's own, or the "radius" alone.

    On a CPU the samples are shared by threads, for XLA runs a loop on one core.
    """
    x, y = (np.asarray(z, np.float32) for z in (x, y))
    workers = min(_cores(), -(-len(x) // BLOCK)) if jax.default_backend() == "cpu" else 1
    rows = np.arange(workers * -(-len(x) // workers)).reshape(workers, -1) % len(x)
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda row: jax.device_get(_neighbours_of(x[row], y[row], x, y, k, counted)), rows))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(x)], *found)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@partial(jax.jit, static_argnums=(4, 5))
def _neighbours_of(asking_x: Array, asking_y: Array, x: Array, y: Array, k: int, counted: str) -> _Neighbours:
    """Of some of the samples among all of them.

    The k smallest distances are kept by k minima and maxima a candidate, all in registers: `lax.top_k` takes fifty times as long on a CPU.
    """
    N, blocks, turns = len(asking_x), -(-len(asking_x) // BLOCK), -(-len(x) // UNROLL)
    asking = [jnp.pad(z.T, ((0, 0), (0, blocks * BLOCK - N))).reshape(-1, blocks, BLOCK).swapaxes(0, 1) for z in (asking_x, asking_y)]
    others = [jnp.pad(z, ((0, turns * UNROLL - len(x)), (0, 0)), constant_values=jnp.inf).reshape(turns, UNROLL, -1) for z in (x, y)]

    def block(asking: tuple[Array, Array]) -> _Neighbours:
        distances = lambda turn, u: tuple(_square(mine, theirs[turn, u]) for mine, theirs in zip(asking, others, strict=True))  # noqa: E731
        radii = _radii(distances, turns, k, counted)
        if counted == "radius":
            return _Neighbours(radii[0], radii[0], radii[0])
        return _Neighbours(radii[0], *_counts(distances, turns, radii, strict=counted == "below"))

    found = lax.map(block, tuple(asking))
    return jax.tree.map(lambda value: value.reshape(-1)[:N], found)


def _radii(distances: _Distances, turns: int, k: int, counted: str) -> tuple[Array, Array]:
    """The radius in x and in y: the k-th joint distance for both, or the largest in each of the k neighbours."""

    def turn(i: Array, best: tuple[tuple[Array, ...], ...]) -> tuple[tuple[Array, ...], ...]:
        for u in range(UNROLL):
            of_x, of_y = distances(i, u)
            best = _inserted(best, (jnp.maximum(of_x, of_y), *((of_x, of_y) if counted == "each" else ())))
        return best

    far = jnp.full(BLOCK, jnp.inf)
    best = lax.fori_loop(0, turns, turn, tuple((far,) * (3 if counted == "each" else 1) for _ in range(k + 1)))
    if counted != "each":
        return best[k][0], best[k][0]
    return tuple(jnp.stack([entry[axis] for entry in best]).max(axis=0) for axis in (1, 2))


def _inserted(best: tuple[tuple[Array, ...], ...], new: tuple[Array, ...]) -> tuple[tuple[Array, ...], ...]:
    """The sorted list with one more and its largest dropped; what goes with a distance goes where it goes."""
    kept = []
    for entry in best:
        nearer = new[0] < entry[0]
        kept.append(tuple(jnp.where(nearer, a, b) for a, b in zip(new, entry, strict=True)))
        new = tuple(jnp.where(nearer, b, a) for a, b in zip(new, entry, strict=True))
    return tuple(kept)


def _counts(distances: _Distances, turns: int, radii: tuple[Array, Array], *, strict: bool) -> tuple[Array, Array]:
    """How many others lie within the radii, or strictly within.

    A distance is computed here once more, and may differ by its rounding from the radius that it was: nearer is nearer by more than that.
    """
    edges = tuple(radius * (1 - ROUNDING if strict else 1 + ROUNDING) for radius in radii)

    def turn(i: Array, counts: tuple[Array, Array]) -> tuple[Array, Array]:
        for u in range(UNROLL):
            inside = [d < radius if strict else d <= radius for d, radius in zip(distances(i, u), edges, strict=True)]
            counts = tuple(count + one for count, one in zip(counts, inside, strict=True))
        return counts

    none = jnp.zeros(BLOCK)
    itself = 1.0 if not strict else (radii[0] > 0).astype(jnp.float32)
    return tuple(count - itself for count in lax.fori_loop(0, turns, turn, (none, none)))


def _square(mine: Array, theirs: Array) -> Array:
    """|mine - theirs|^2, one component after the other: differences first, so that nothing cancels."""
    total = (mine[0] - theirs[0]) ** 2
    for a, b in zip(mine[1:], theirs[1:], strict=True):
        total = total + (a - b) ** 2
    return total


def _stderr(estimator: Callable[[np.ndarray, np.ndarray], float], x: np.ndarray, y: np.ndarray, k: int) -> float:
    size = len(x) // PARTS
    if size <= 2 * k:
        return math.nan
    with ThreadPoolExecutor(_cores()) as pool:
        parts = list(pool.map(estimator, *(z[: PARTS * size].reshape(PARTS, size, -1) for z in (x, y))))
    return float(np.std(parts, ddof=1) / PARTS**0.5)


def _range(nats: float, columns: int) -> tuple[str, ...]:
    if columns <= COLUMNS and nats <= NATS:
        return ()
    return (f"outside of what nearest neighbours are good for, {COLUMNS} columns and {NATS:g} nats (here {columns} and {nats:.2f}): probably too low",)


def _prepared(x: Array | np.ndarray, y: Array | np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Standardised columns without ties, and notes on what was done for that."""
    x, y = pairs(x, y, least=2)
    _check_k(k, len(x))
    rng, notes = np.random.default_rng(0), []
    tied = len(np.unique(np.concatenate([x, y], axis=1), axis=0)) < len(x) or any(len(np.unique(column)) < len(x) // 2 for column in (*x.T, *y.T))
    x, y = _standardised(x), _standardised(y)
    if tied:
        x, y = (z + JITTER * rng.standard_normal(z.shape) for z in (x, y))
        notes = ["ties were parted by noise of 1e-5 standard deviations; if they mean something, use mixed()"]
        warnings.warn(f"samples coincide: {notes[0]}", stacklevel=3)
    return x, y, tuple(notes)


def _standardised(z: np.ndarray) -> np.ndarray:
    deviation = z.std(axis=0, keepdims=True)
    return (z - z.mean(axis=0, keepdims=True)) / np.where(deviation > 0, deviation, 1)


def _check_k(k: int, N: int) -> None:
    if not 1 <= k < N:
        raise ValueError(f"k={k} neighbours of {N} samples: expected 1 <= k < N")
