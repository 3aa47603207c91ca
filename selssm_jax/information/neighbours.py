"""Estimates of information and entropy from the distances of nearest neighbours (theory, section 8).

They need no model of the law and no training, and their bias is small where the law is nearly flat over the k nearest
neighbours: up to about six columns in all and two nats. Beyond, they say too little. They are no bounds.
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
from jax.scipy.special import gammaln
from jaxtyping import Array
from scipy.spatial import cKDTree

from selssm_jax.information._estimate import Estimate
from selssm_jax.information.checks import TAIL, Samples, centre, columns, pairs, scores, spread, standardise, triples

# samples whose neighbours are looked for at once, and candidates a turn: their k distances stay in the fastest cache
BLOCK, UNROLL = 1024, 8
# disjoint parts of the samples, whose mean shows what fewer samples, and so larger distances, make of the value
PARTS = 10
STEEPEST = 2.0  # times what the parts change: the most that smoothing is allowed for
JITTER = 1e-5  # deviations of the middle half: what ties are parted by
SMALLEST, LARGEST = 1e-18, 1e18  # distances whose squares float32 holds
MERGED = 0.01  # share of the steps between neighbouring values that float32 may lose; else all is computed in float64
# units of rounding of squared distances: programs that round one differently (fused multiply-adds) must count alike
ROUNDING = 8
UNSEEN = 2.0**-40  # relative, of values: noise that parts equal distances, eight thousand units of rounding
FARTHEST = 1e150  # whose square float64 holds
APART = 1e6  # of labels, in units of what lies beside them
DEPENDENT = 1e-12  # relative, of a direction in which columns do not vary
SKEWED = 4.0  # standard errors that a value is away from that of normal scores, from which on a note says so
COLUMNS, NATS = 6, 2.0  # beyond which a note says that neighbours lose information


_Distances = Callable[[Array, int], tuple[Array, ...]]
"""(turn, which of its candidates) -> squared distances of a block of samples in x and in y."""


class _Neighbours(NamedTuple):
    """Of every sample: its radius, and how many others lie within it in x and in y; for variant 2, within a radius
    each.
    """

    radius: Array
    of_x: Array
    of_y: Array


def ksg(x: Samples, y: Samples, *, k: int = 5, variant: Literal[1, 2] = 1) -> Estimate:
    """I(x; y) by Kraskov, Stoegbauer and Grassberger (2004), in nats.

    With eps_i the distance to the k-th neighbour in the larger of the (Euclidean) distances in x and in y, of
      `inputs.standardise` columns: variant 1: psi(k) + psi(N) - <psi(n_x + 1) + psi(n_y + 1)>, n_x and n_y the others
      nearer than eps_i in x and in y; variant 2: psi(k) - 1/k + psi(N) - <psi(n_x) + psi(n_y)>, counted up to the
      largest distance of the k neighbours in x, and in y.

    No bound: low where the law bends within eps_i, hence in many columns and at high information; a note says where it
    is out of its range. Ties, which the method does not know, are parted by noise of 1e-5 standard deviations, with a
    warning; a constant column says nothing. The standard error is that of the mean over samples or of parts of them,
    whichever is larger, never of a bootstrap, whose repetitions are ties; beside it what smoothing has cost by
    `smoothing`, and how far the value is from that of normal scores of the columns, which have as much information: far
    where columns are skewed. Cost: O(N^2 d).

    Raises:
      ValueError: for samples that are no numbers, not finite or not paired, k below 1 or not below N, and another
        variant.
    """
    if variant not in (1, 2):
        raise ValueError(f"variant={variant!r} is unknown: use 1 or 2")
    given = pairs(x, y, least=2)
    sides, notes = _part_ties(given, k)
    terms = partial(_ksg, k=k, variant=variant)
    return _estimate(terms, _round_if_distinct(*sides), given, k, f"KSG {variant}, k={k}", notes)


def mixed(x: Samples, y: Samples, *, k: int = 5) -> Estimate:
    """I(x; y) where x, y or both may be discrete, continuous or mixtures, in nats, after Gao, Kannan, Oh and Viswanath
    (2017).

    <psi(k_i) - psi(n_x) - psi(n_y)> + psi(N), counted with the sample itself. Where more than k samples are the same in
    both: k_i of these, and n_x and n_y that are the same in x and in y. Elsewhere k_i = k and n_x, n_y those nearer
    than the k-th neighbour, where others as far away as it stand in random order, each side's in one of its own:
    counted all or none, they make a bias of some tenths of a nat. Columns whose values repeat are taken as normal
    scores of their ranks, so that an atom lies apart from what is beside it. Ties are what it is for. No bound. Cost
    and errors: see `ksg`.
    """
    return _mixture(pairs(x, y, least=2), k, f"KSG for mixtures, k={k}")


def conditional(x: Samples, y: Samples, z: Samples, *, k: int = 5) -> Estimate:
    """I(x; y | z) by Frenzel and Pompe (2007), in nats: psi(k) - <psi(n_xz + 1) + psi(n_yz + 1) - psi(n_z + 1)>.

    eps_i is the distance to the k-th neighbour in (x, y, z), n_xz the others nearer than it in (x, z), and so on, all
    by the largest difference of any of the `checks.standardise` columns. No bound. The value is low where the law of x
    or y given z bends within eps_i: many columns, and x or y that z nearly determines, draw it to 0. The standard error
    is that of `ksg`, for samples that are independent. Ties are parted as in `ksg`; a constant column of z changes
    nothing. Cost: O(N log N) in few columns, O(N^2) in many; float64.

    Raises:
      ValueError: for samples that are no numbers, not finite or not paired, and k below 1 or not below N.
    """
    given = triples(x, y, z, least=2)
    sides, notes = _part_ties(given, k)
    terms = partial(_conditional_terms, k=k)
    return _estimate(terms, sides, given, k, f"conditional KSG (Frenzel-Pompe), k={k}", notes)


def conditional_mixed(x: Samples, y: Samples, z: Samples, *, k: int = 5) -> Estimate:
    """I(x; y | z) where any of them may be discrete, continuous or mixtures, after Mesner and Shalizi (2019), in nats.

    As `conditional`, with ties as in `mixed`: where more than k samples are the same in (x, y, z), by the samples that
    are the same in (x, y, z), in (x, z), in (y, z) and in z. Labels are numbers here: give those that are not in order
    a column each. More than k samples a cell of labels are needed, or neighbours come from other cells. No bound. Cost
    and errors: see `conditional`.
    """
    return _mixture(triples(x, y, z, least=2), k, f"conditional KSG for mixtures, k={k}")


def _mixture(given: tuple[np.ndarray, ...], k: int, method: str) -> Estimate:
    _check_k(k, len(given[0]))
    order = _mixed_order(len(given[0]))
    return _estimate(partial(_mixture_terms, k=k), tuple(_place(side)[order] for side in given), given, k, method, ())


def _place(z: np.ndarray) -> np.ndarray:
    """Columns whose values repeat as `checks.scores`, where an atom lies apart from what is beside it; others as
    `checks.standardise` makes them.
    """
    return np.where(_repeats(z), scores(z), standardise(z))


def _estimate(
    terms: Callable[..., np.ndarray],
    sides: tuple[np.ndarray, ...],
    given: tuple[np.ndarray, ...],
    k: int,
    method: str,
    notes: tuple[str, ...],
) -> Estimate:
    """The mean of the terms of these sides, made of those that were given, and all of its error.

    Information is the same for all invertible maps of a column, and this value is not: how far it is from that of
    normal scores is an error too, and most of it where a column is skewed or has heavy tails.
    """
    nats, deviation, shift = _value(terms, sides, k)
    normal = float(_mixture_terms(*(scores(side) for side in given), k=k).mean())
    notes = (*notes, *_range(nats, sum(side.shape[1] for side in sides)))
    if math.isfinite(shift[0]) and abs(nats - normal) > SKEWED * deviation:
        notes = (
            *notes,
            f"normal scores of the columns give {normal:.2f} nats, this value is {nats:.2f}: skewed columns, heavy "
            "tails or ties? take logarithms or ranks of such columns",
        )
    return Estimate(nats, math.hypot(deviation, *shift, nats - normal), "estimate", method, notes)


def of_scores(x: np.ndarray, y: np.ndarray, *, k: int = 5) -> Estimate:
    """`ksg` of columns without ties on one scale, such as `inputs.scores` in random order, with what smoothing has cost
    added.
    """
    nats, deviation, (lack, unsure) = _value(partial(_ksg, k=k, variant=1), _round_if_distinct(x, y), k)
    return Estimate(nats + lack, math.hypot(deviation, unsure), "estimate", f"KSG 1, k={k}, corrected for smoothing")


def mixtures(label: np.ndarray, y: np.ndarray, *, k: int = 5) -> Estimate:
    """`mixed` of labels (N,), any two of which are as far apart as can be, and columns (N, d), with what smoothing has
    cost added (Ross 2014).
    """
    terms = partial(_mixture_terms, k=k)
    nats, deviation, (lack, unsure) = _value(terms, (APART * label[:, None], y), k, columns=y.shape[1])
    return Estimate(nats + lack, math.hypot(deviation, unsure), "estimate", f"KSG for mixtures, k={k}, within labels")


def entropy(x: Samples, *, k: int = 5) -> float:
    """The differential entropy of x by Kozachenko and Leonenko (1987), in nats: psi(N) - psi(k) + log V_d + d <log
    eps_i> + sum_j log s_j.

    Euclidean distances of columns in units s_j of their own, the deviation of their middle half, so that any unit will
    do. -inf where the law has no density: where more than k samples coincide, a column is constant or columns follow
    from one another. An estimate. Cost: see `ksg`.

    Raises:
      ValueError: for samples that are no numbers or not finite, k below 1 or not below N, and values so far apart that
        their squares overflow.
    """
    x = columns("x", x)
    _check_k(k, len(x))
    (z, exponent), (N, d) = centre(x), x.shape
    scale = spread(z)
    if not scale.all():
        return -math.inf
    farthest = float((np.abs(z).max(axis=0) / scale).max())
    if not farthest < FARTHEST:
        raise ValueError(
            f"x reaches to {farthest:.0e} times the spread of its middle half, expected under {FARTHEST:.0e}: leave "
            "fill values out"
        )
    z = z / scale[None]
    near = z[np.abs(z).max(axis=1) <= TAIL]
    if np.linalg.matrix_rank(near, tol=DEPENDENT * np.linalg.norm(near)) < d:
        return -math.inf
    radius = _neighbours(*_round_if_distinct(z, np.zeros((N, 1))), k, "radius").radius.astype(np.float64)
    with np.errstate(divide="ignore"):
        mean = float(np.mean(np.log(radius))) / 2
    volume = 0.5 * d * math.log(math.pi) - float(gammaln(d / 2 + 1))
    unit = float(np.sum(np.log(scale) + exponent * math.log(2)))
    return _psi(N) - _psi(k) + volume + d * mean + unit


def smoothing(value: float, of_parts: float, parts: int, columns: int) -> tuple[float, float]:
    """How much less than the truth a nearest-neighbour value may be, and how unsure that is, from the mean value of so
    many parts of the samples.

    The distances to neighbours fall as N^(-1/d), and what they smooth away with them, at edges, or with their squares,
    in smooth laws: with a = 1/d and 2/d the value of all samples still lacks (value - of_parts) / (parts^a - 1).
    Returns the middle of the two, and as much as its error: which of them holds, and whether either does already, the
    samples do not say.
    """
    lack = float(np.mean([min(1 / math.expm1(a / columns * math.log(parts)), STEEPEST) for a in (1, 2)])) * (
        value - of_parts
    )
    return lack, abs(lack)


def _ksg(x: np.ndarray, y: np.ndarray, *, k: int, variant: int) -> np.ndarray:
    """The terms whose mean is the value, one a sample."""
    neighbours = _neighbours(x, y, k, "below" if variant == 1 else "each")
    counts = np.stack([neighbours.of_x, neighbours.of_y]).astype(np.float64) + (1 if variant == 1 else 0)
    return _psi(k) - (0 if variant == 1 else 1 / k) + _psi(len(x)) - _psi_table(len(x))[counts.astype(int)].sum(axis=0)


def _mixture_terms(*sides: np.ndarray, k: int) -> np.ndarray:
    """The terms whose mean is the value, one a sample, of x, y and, if it is given, z."""
    alike = _same(np.concatenate(sides, axis=1))
    rng = np.random.default_rng(2)
    parted = (_part_equal_distances(side, rng) for side in sides)
    if len(sides) == 2:
        psi, (x, y) = _psi_table(len(alike)), sides
        counted = psi[alike] + psi[len(alike)] - psi[_same(x)] - psi[_same(y)]
        near = lambda: _ksg(*_round_if_distinct(*parted), k=k, variant=1)  # noqa: E731
    else:
        counted = _add_digammas(alike, _same, *sides)
        near = lambda: _conditional_terms(*parted, k=k)  # noqa: E731
    return counted if (alike > k).all() else np.where(alike > k, counted, near())


def _conditional_terms(x: np.ndarray, y: np.ndarray, z: np.ndarray, *, k: int) -> np.ndarray:
    """The terms whose mean is the value, one a sample."""
    joint = np.concatenate([x, y, z], axis=1)
    radius = cKDTree(joint).query(joint, k + 1, p=math.inf)[0][:, k]  # the nearest of all is the sample itself
    below = np.nextafter(radius, 0)  # distances are exact differences: strictly nearer is nearer by a unit of rounding

    def count(points: np.ndarray) -> np.ndarray:
        return cKDTree(points).query_ball_point(points, below, p=math.inf, return_length=True)  # with the sample itself

    return _add_digammas(k, count, x, y, z)


def _add_digammas(
    alike: int | np.ndarray, count: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray, z: np.ndarray
) -> np.ndarray:
    """psi(n_xyz) - psi(n_xz) - psi(n_yz) + psi(n_z), of the samples alike or near in these columns."""
    psi = _psi_table(len(z))
    of_xz, of_yz = (count(np.concatenate([side, z], axis=1)) for side in (x, y))
    return psi[alike] - psi[of_xz] - psi[of_yz] + psi[count(z)]


def _part_equal_distances(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Columns whose values repeat, with noise far below what samples can see: those that are equally far from another
    are in random order then. It is independent of the other side, so it makes no information.
    """
    return z + np.where(_repeats(z), UNSEEN * np.maximum(1, np.abs(z)), 0) * rng.uniform(-1, 1, z.shape)


def _repeats(z: np.ndarray) -> np.ndarray:
    """In which columns values repeat."""
    return np.array([len(np.unique(column)) < len(column) for column in z.T])


def _same(z: np.ndarray) -> np.ndarray:
    """How many samples are the same point as each, itself included."""
    _, member, size = np.unique(z, axis=0, return_inverse=True, return_counts=True)
    return size[member.ravel()]


def _psi(n: float) -> float:
    return float(_psi_table(int(n))[int(n)])


def _psi_table(largest: int) -> np.ndarray:
    """psi(0..largest), exact sums of float64: psi(1) = -gamma, psi(n + 1) = psi(n) + 1/n; psi(0) stands for none and is
    not used.
    """
    return np.concatenate(
        [[math.nan], -np.euler_gamma + np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, largest + 1))])]
    )


def _neighbours(x: np.ndarray, y: np.ndarray, k: int, counted: str) -> _Neighbours:
    """Squared radii and counts of `_round_if_distinct` samples; counted: "below" the joint radius, up to "each" one's
    own, or the "radius" alone.

    On a CPU the samples are shared by threads, for XLA runs a loop on one core.
    """

    def of(row: np.ndarray) -> _Neighbours:
        with jax.enable_x64(x.dtype == np.float64):  # a setting of each thread
            return jax.device_get(_neighbours_of(x[row], y[row], x, y, k, counted))

    workers = min(_cores(), -(-len(x) // BLOCK)) if jax.default_backend() == "cpu" else 1
    rows = np.arange(workers * -(-len(x) // workers)).reshape(workers, -1) % len(x)
    with ThreadPoolExecutor(workers) as pool:
        neighbours = list(pool.map(of, rows))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(x)], *neighbours)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@partial(jax.jit, static_argnums=(4, 5))
def _neighbours_of(asking_x: Array, asking_y: Array, x: Array, y: Array, k: int, counted: str) -> _Neighbours:
    """Of some of the samples among all of them.

    The k smallest distances are kept by k minima and maxima a candidate, all in registers: `lax.top_k` takes fifty
    times as long on a CPU.
    """
    N, blocks, turns = len(asking_x), -(-len(asking_x) // BLOCK), -(-len(x) // UNROLL)
    asking = [
        jnp.pad(z.T, ((0, 0), (0, blocks * BLOCK - N))).reshape(-1, blocks, BLOCK).swapaxes(0, 1)
        for z in (asking_x, asking_y)
    ]
    others = [
        jnp.pad(z, ((0, turns * UNROLL - len(x)), (0, 0)), constant_values=jnp.inf).reshape(turns, UNROLL, -1)
        for z in (x, y)
    ]

    def block(asking: tuple[Array, Array]) -> _Neighbours:
        distances = lambda turn, u: tuple(  # noqa: E731
            _square(mine, theirs[turn, u]) for mine, theirs in zip(asking, others, strict=True)
        )
        radii = _radii(distances, turns, k, counted)
        if counted == "radius":
            return _Neighbours(radii[0], radii[0], radii[0])
        return _Neighbours(radii[0], *_counts(distances, turns, radii, strict=counted == "below"))

    neighbours = lax.map(block, tuple(asking))
    return jax.tree.map(lambda value: value.reshape(-1)[:N], neighbours)


def _radii(distances: _Distances, turns: int, k: int, counted: str) -> tuple[Array, Array]:
    """The radius in x and in y: the k-th joint distance for both, or the largest in each of the k neighbours."""

    def turn(i: Array, best: tuple[tuple[Array, ...], ...]) -> tuple[tuple[Array, ...], ...]:
        for u in range(UNROLL):
            of_x, of_y = distances(i, u)
            best = _insert(best, (jnp.maximum(of_x, of_y), *((of_x, of_y) if counted == "each" else ())))
        return best

    far = jnp.full_like(distances(jnp.zeros((), int), 0)[0], jnp.inf)
    best = lax.fori_loop(0, turns, turn, tuple((far,) * (3 if counted == "each" else 1) for _ in range(k + 1)))
    if counted != "each":
        return best[k][0], best[k][0]
    _, in_x, in_y = (jnp.stack(radii).max(axis=0) for radii in zip(*best, strict=True))
    return in_x, in_y


def _insert(best: tuple[tuple[Array, ...], ...], new: tuple[Array, ...]) -> tuple[tuple[Array, ...], ...]:
    """The sorted list with one more and its largest dropped; what goes with a distance goes where it goes."""
    kept = []
    for entry in best:
        nearer = new[0] < entry[0]
        kept.append(tuple(jnp.where(nearer, a, b) for a, b in zip(new, entry, strict=True)))
        new = tuple(jnp.where(nearer, b, a) for a, b in zip(new, entry, strict=True))
    return tuple(kept)


def _counts(distances: _Distances, turns: int, radii: tuple[Array, Array], *, strict: bool) -> tuple[Array, Array]:
    """How many others lie within the radii, or strictly within.

    A distance is computed here once more, and may differ by its rounding from the radius that it was: nearer is nearer
    by more than that.
    """
    slack = ROUNDING * jnp.finfo(radii[0].dtype).eps
    edges = tuple(radius * (1 - slack if strict else 1 + slack) for radius in radii)

    def turn(i: Array, counts: tuple[Array, Array]) -> tuple[Array, Array]:
        for u in range(UNROLL):
            in_x, in_y = (
                d < radius if strict else d <= radius for d, radius in zip(distances(i, u), edges, strict=True)
            )
            counts = counts[0] + in_x, counts[1] + in_y
        return counts

    none = jnp.zeros_like(radii[0])
    itself = 1.0 if not strict else (radii[0] > 0).astype(none.dtype)
    in_x, in_y = lax.fori_loop(0, turns, turn, (none, none))
    return in_x - itself, in_y - itself


def _square(mine: Array, theirs: Array) -> Array:
    """|mine - theirs|^2, one component after the other: differences first, so that nothing cancels."""
    total = (mine[0] - theirs[0]) ** 2
    for a, b in zip(mine[1:], theirs[1:], strict=True):
        total = total + (a - b) ** 2
    return total


def _value(
    terms: Callable[..., np.ndarray], sides: tuple[np.ndarray, ...], k: int, *, columns: int | None = None
) -> tuple[float, float, tuple[float, float]]:
    """The value, its standard error over samples, and what smoothing has cost; nan for too few samples."""
    own, parts = terms(*sides), min(PARTS, len(sides[0]) // (4 * k))
    nats, deviation = float(own.mean()), float(own.std() / len(own) ** 0.5)
    if parts < 2:
        return nats, deviation, (math.nan, math.nan)
    cut = [z[: parts * (len(z) // parts)].reshape(parts, -1, z.shape[1]) for z in sides]
    with ThreadPoolExecutor(_cores()) as pool:
        of_parts = np.array([float(part.mean()) for part in pool.map(terms, *cut)])
    # samples that are each other's neighbours have terms that go together, which the spread of terms does not show
    deviation = max(deviation, float(of_parts.std(ddof=1) / parts**0.5))
    columns = columns or sum(z.shape[1] for z in sides)
    return nats, deviation, smoothing(nats, float(of_parts.mean()), parts, columns)


def _range(nats: float, columns: int) -> tuple[str, ...]:
    if columns <= COLUMNS and nats <= NATS:
        return ()
    return (
        f"outside of what nearest neighbours are good for, {COLUMNS} columns and {NATS:g} nats (here {columns} and "
        f"{nats:.2f}): probably too low",
    )


def _part_ties(sides: tuple[np.ndarray, ...], k: int) -> tuple[tuple[np.ndarray, ...], tuple[str, ...]]:
    """Standardised columns without ties, in a random order, and notes on what was done for that."""
    N = len(sides[0])
    _check_k(k, N)
    rng, notes = np.random.default_rng(0), []
    tied = len(np.unique(np.concatenate(sides, axis=1), axis=0)) < N or any(
        len(np.unique(column)) < N // 2 for side in sides for column in side.T
    )
    sides = tuple(standardise(side) for side in sides)
    if tied:
        sides = tuple(
            z + JITTER * np.where((width := spread(z)) > 0, width, 1)[None] * rng.standard_normal(z.shape)
            for z in sides
        )
        better = "mixed()" if len(sides) == 2 else "conditional.mixed()"
        notes = [f"ties were parted by noise of 1e-5 standard deviations; if they mean something, use {better}"]
        warnings.warn(f"samples coincide: {notes[0]}", stacklevel=3)
    return tuple(z[_mixed_order(N)] for z in sides), tuple(notes)


def _mixed_order(N: int) -> np.ndarray:
    """Samples may come sorted, and a part of the samples that is cut from these in a row would be no small sample of
    their law.
    """
    return np.random.default_rng(1).permutation(N)


def _round_if_distinct(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in float32 where that keeps apart what is apart, else in float64; ties are looked for, and counted, among
    these numbers alone.
    """

    def share_lost(column: np.ndarray) -> float:
        column = np.sort(column)
        apart = np.diff(column) > 0
        if column[-1] - column[0] > LARGEST:
            return 1.0
        return float((np.diff(column.astype(np.float32)) < SMALLEST)[apart].mean()) if apart.any() else 0.0

    dtype = np.float32 if all(share_lost(column) <= MERGED for column in (*x.T, *y.T)) else np.float64
    return x.astype(dtype), y.astype(dtype)


def _check_k(k: int, N: int) -> None:
    if not isinstance(k, int | np.integer) or not 1 <= k < N:
        raise ValueError(f"k={k} neighbours of {N} samples: expected 1 <= k < N, a whole number")
