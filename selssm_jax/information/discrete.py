"""Entropy and mutual information of labels: from known laws, and from counts with corrections for few samples (theory,
section 8).

The entropy of frequencies lies under that of the law, by about (K - 1) / 2N nats for K symbols and N samples; the
mutual information of frequencies lies over the truth for the same reason. The corrections take that away, each in its
own way.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, entr, gammaln, polygamma
from jaxtyping import Array, Float, Int

from selssm_jax.information._estimate import Estimate
from selssm_jax.information.checks import check_distribution

Correction = Literal["none", "miller-madow", "chao-shen", "nsb"]
CORRECTIONS = ("none", "miller-madow", "chao-shen", "nsb")
DISPUTING: tuple[Correction, ...] = ("miller-madow", "chao-shen")  # whose values cost nothing
PERMUTATIONS, FEWER = 20, 3  # pairings at random; of NSB, each of which is a quadrature
MANY, DENSE = 1_000_000, 100  # samples, and samples a cell, above which no bias is looked for
CELLS = 2**24  # of a table of counts
NODES = 2000  # of the quadrature over NSB's concentration
RANGE = (1e-7, 1e7)  # of the concentration, over the number of symbols

Counts = Int[Array | np.ndarray, "K"]
Table = Int[Array | np.ndarray, "K M"]
Cube = Int[Array | np.ndarray, "K M L"]
Labels = Int[Array | np.ndarray, "..."]


def entropy_of(p: Float[Array, "*K"]) -> Float[Array, ""]:
    """H = -sum p log p of a known law, in nats; 0 log 0 = 0. Exact, differentiable where p > 0.

    Raises:
      ValueError: for a p that is no distribution; counts go to `entropy` (values are looked at outside of `jax.jit`
        only).
    """
    check_distribution("p", jnp.ravel(p))
    return jnp.sum(entr(p))


def information_of(p_xy: Float[Array, "X Y"]) -> Float[Array, ""]:
    """I(X; Y) of a known joint law, in nats: H(X) + H(Y) - H(X, Y). Exact.

    Raises:
      ValueError: for a p_xy that is no joint distribution (X, Y); counts go to `mutual_information`.
    """
    p_xy = jnp.asarray(p_xy)
    if p_xy.ndim != 2:
        raise ValueError(f"p_xy has shape {p_xy.shape}, expected (X, Y): a probability for each pair of symbols")
    check_distribution("p_xy", p_xy.ravel())
    return jnp.sum(entr(p_xy.sum(1))) + jnp.sum(entr(p_xy.sum(0))) - jnp.sum(entr(p_xy))


def conditional_information_of(p_xyz: Float[Array, "X Y Z"]) -> Float[Array, ""]:
    """I(X; Y | Z) of a known joint law, in nats: H(X, Z) + H(Y, Z) - H(Z) - H(X, Y, Z). Exact.

    Raises:
      ValueError: for a p_xyz that is no joint distribution (X, Y, Z); counts go to `conditional_information`.
    """
    p_xyz = jnp.asarray(p_xyz)
    if p_xyz.ndim != 3:
        raise ValueError(f"p_xyz has shape {p_xyz.shape}, expected (X, Y, Z): a probability for each triple of symbols")
    check_distribution("p_xyz", p_xyz.ravel())
    with_z = jnp.sum(entr(p_xyz.sum(1))) + jnp.sum(entr(p_xyz.sum(0)))
    return with_z - jnp.sum(entr(p_xyz.sum((0, 1)))) - jnp.sum(entr(p_xyz))


def count(x: Labels, y: Labels, z: Labels | None = None) -> Int[np.ndarray, "K M"] | Int[np.ndarray, "K M L"]:
    """The table of how often each label of x came with each of y, and with each of z where there is one. Labels are any
    integers; only those that occur have a row or a column.

    Raises:
      ValueError: for labels that are no integers or not paired, and more cells than `CELLS`.
    """
    labels = {"x": np.asarray(x), "y": np.asarray(y)} | ({} if z is None else {"z": np.asarray(z)})
    if len(shapes := {value.shape for value in labels.values()}) > 1:
        listed = " and ".join(f"{name} {value.shape}" for name, value in labels.items()).replace(" ", " has shape ", 1)
        raise ValueError(
            f"{listed}, expected the same: a label of x for each of y; flatten both alike if they are paired so"
        )
    if not all(np.issubdtype(value.dtype, np.integer) or value.dtype == bool for value in labels.values()):
        kinds = " and ".join(str(value.dtype) for value in labels.values())
        raise ValueError(
            f"labels have dtypes {kinds}, expected integers: number them first, for example by "
            "np.unique(..., return_inverse=True)"
        )
    if 0 in shapes.pop():
        raise ValueError(f"{' and '.join(labels)} have no labels, expected at least one each")
    numbered = [np.unique(np.ravel(value), return_inverse=True) for value in labels.values()]
    shape = tuple(len(kinds) for kinds, _ in numbered)
    if math.prod(shape) > CELLS:
        raise ValueError(f"a table of {shape} has over {CELLS} cells, far more than samples: merge rare labels first")
    table = np.zeros(shape, int)
    np.add.at(table, tuple(place for _, place in numbered), 1)
    return table


def entropy(counts: Counts, *, correction: Correction = "none") -> Estimate:
    """The entropy of a law from counts of its symbols, in nats.

    "none": of the frequencies. "miller-madow": + (symbols seen - 1) / 2N (Miller 1955). "chao-shen": frequencies shrunk
    by the coverage that the singletons tell of, and weighed by the chance of being seen (Chao and Shen 2003). "nsb":
    the posterior mean under a mixture of Dirichlet laws whose prior entropy is flat (Nemenman, Shafee and Bialek 2001),
    by quadrature in logarithms; symbols that were not seen must be there as zeros, for it asks how many there can be.

    The standard error is the spread of -log p over samples (the posterior's for "nsb"). An estimate, no bound: every
    one of them has some bias. Cost: O(K).

    Raises:
      ValueError: for an unknown correction, counts that are no numbers of things, and none at all.
    """
    counts = _check_counts(counts, 1, correction)
    nats, stderr = _entropy(counts, correction)
    return Estimate(nats, stderr, "estimate", f"entropy of counts, {_name_method(correction)}", _few(counts))


def mutual_information(counts: Table, *, correction: Correction = "none") -> Estimate:
    """I(X; Y) from a table of counts, in nats: H(X) + H(Y) - H(X, Y), each corrected as in `entropy`.

    The standard error is the spread of the pointwise information over samples; beside it the values of the same
    correction for pairs at random, which should be 0, as far as the labels do not tell one another: the bias that is
    left; and how far Miller and Madow's or Chao and Shen's value is from this one: far where cells are few times
    counted. Cost: `PERMUTATIONS` pairings of the samples, for up to a million of them. Errors: see `entropy`.
    """
    counts = _check_counts(counts, 2, correction)
    nats, single, dispute = _correct(counts, correction, lambda how: _of_sides(counts, how))
    p = counts / counts.sum()
    product = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    seen = p > 0
    pointwise = np.log(p[seen] / product[seen])
    spread = math.sqrt(max(float(p[seen] @ pointwise**2 - (p[seen] @ pointwise) ** 2), 0.0) / counts.sum())
    stderr = math.hypot(spread, dispute, _bias_left(counts, nats, single, correction))
    return Estimate(nats, stderr, "estimate", f"mutual information of counts, {_name_method(correction)}", _few(counts))


def conditional_information(counts: Cube, *, correction: Correction = "miller-madow") -> Estimate:
    """I(X; Y | Z) from a table of counts (X, Y, Z), in nats: H(X, Z) + H(Y, Z) - H(Z) - H(X, Y, Z), each corrected as
    in `entropy`.

    Plain frequencies find about (X - 1)(Y - 1) Z / 2N nats where there are none, which is soon much: by default Miller
    and Madow's correction takes that away, to first order. The standard error is as in `mutual_information`, with pairs
    at random within each value of Z. Cost and errors: see there.
    """
    counts = _check_counts(counts, 3, correction)
    nats, single, dispute = _correct(counts, correction, lambda how: _of_sides_given(counts, how))
    p = counts / counts.sum()
    p_xz, p_yz, p_z = p.sum(1, keepdims=True), p.sum(0, keepdims=True), p.sum((0, 1), keepdims=True)
    seen = p > 0
    pointwise = np.log((p * p_z)[seen] / (p_xz * p_yz)[seen])
    spread = math.sqrt(max(float(p[seen] @ pointwise**2 - (p[seen] @ pointwise) ** 2), 0.0) / counts.sum())
    stderr = math.hypot(spread, dispute, _conditional_bias_left(counts, nats, single, correction))
    name = f"conditional mutual information of counts, {_name_method(correction)}"
    return Estimate(nats, stderr, "estimate", name, _few(counts))


def _of_sides(counts: np.ndarray, correction: Correction) -> float:
    """H(X) + H(Y)."""
    return sum(_entropy(counts.sum(axis), correction)[0] for axis in (1, 0))


def _of_sides_given(counts: np.ndarray, correction: Correction) -> float:
    """H(X, Z) + H(Y, Z) - H(Z)."""
    with_z = sum(_entropy(counts.sum(axis).ravel(), correction)[0] for axis in (1, 0))
    return with_z - _entropy(counts.sum((0, 1)), correction)[0]


def _correct(
    counts: np.ndarray, correction: Correction, of_sides: Callable[[Correction], float]
) -> tuple[float, float, float]:
    """The information, what of it is of the sides, and how far it is from what corrections make of it."""
    single = of_sides(correction)
    nats = single - _entropy(counts.ravel(), correction)[0]
    others = [of_sides(how) - _entropy(counts.ravel(), how)[0] for how in DISPUTING if how != correction]
    return nats, single, max(abs(value - nats) for value in others)


def _conditional_bias_left(counts: np.ndarray, nats: float, single: float, correction: Correction) -> float:
    """`_bias_left` with pairs at random within each value of the third label."""
    total = int(counts.sum())
    if total > MANY or total > DENSE * counts.size:
        return 0.0
    x, y, z = (np.repeat(place.ravel(), counts.ravel()) for place in np.indices(counts.shape))
    order, rng, chances = np.argsort(z, kind="stable"), np.random.default_rng(0), []
    for _ in range(FEWER if correction == "nsb" else PERMUTATIONS):
        y[order] = y[np.lexsort((rng.random(total), z))]
        cells = np.ravel_multi_index((x, y, z), counts.shape)
        chances.append(single - _entropy(np.bincount(cells, minlength=counts.size), correction)[0])
    of_z = _entropy(counts.sum((0, 1)), "none")[0]
    least = min(_entropy(counts.sum(axis).ravel(), "none")[0] for axis in (0, 1)) - of_z
    return _weigh_chance(np.array(chances), nats, least)


def _weigh_chance(chances: np.ndarray, nats: float, least: float) -> float:
    """What is found in pairs at random, their bias and their spread, in the share of the smaller entropy that is not
    explained.
    """
    chance, size = float(chances.mean()), math.sqrt(float(np.mean(chances**2)))
    return size * (1 - min(max((nats - chance) / max(least - chance, 1e-9), 0.0), 1.0))


def _bias_left(counts: np.ndarray, nats: float, single: float, correction: Correction) -> float:
    """What the correction finds in pairs at random, in the share of the smaller entropy that is not explained; 0 for
    more than MANY samples.
    """
    total = int(counts.sum())
    if total > MANY or total > DENSE * counts.size:
        return 0.0
    x, y = (np.repeat(place.ravel(), counts.ravel()) for place in np.indices(counts.shape))
    pairings = _pairings(y, FEWER if correction == "nsb" else PERMUTATIONS, shuffle=True)
    chances = [
        single - _entropy(np.bincount(x * counts.shape[1] + z, minlength=counts.size), correction)[0] for z in pairings
    ]
    least = min(_entropy(side, "none")[0] for side in (counts.sum(1), counts.sum(0)))
    return _weigh_chance(np.array(chances), nats, least)


def _pairings(y: np.ndarray, count: int, *, shuffle: bool) -> Iterator[np.ndarray]:
    """y in random orders, or, not to be shuffled, moved in time by random steps."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.permutation(y) if shuffle else np.roll(y, int(rng.integers(len(y) // 4, 3 * len(y) // 4 + 1)))


def of_labels(x: np.ndarray, y: np.ndarray, *, shuffle: bool = True) -> "Counted":
    """I(X; Y) of paired labels 0, 1, ..., (N,), in nats, by the middle of three corrections that agree where cells are
    many times counted.

    With P the plug-in value, P0 its mean over pairs at random and H the smaller entropy by Miller and Madow,
      H (P - P0) / (H_plugin - P0): nothing for independent labels and H for labels that tell one another (Vinh, Epps
      and Bailey 2010); Miller-Madow and Chao-Shen, each less the share 1 - P/H of what it finds in pairs at random.
    The standard error holds the spread of the pointwise information, that over pairs at random and half of the
    difference of the three. Cost: O(N log N).

    shuffle: False for rows in the order of time, of which each is like the next: pairs at random are then made by
    moving y in time.
    """
    N, kinds = len(x), int(y.max()) + 1
    sides = [np.unique(z, return_counts=True)[1] for z in (x, y)]
    joint = lambda other: np.unique(x.astype(np.int64) * kinds + other, return_counts=True)[1]  # noqa: E731
    methods: tuple[Correction, ...] = ("none", "miller-madow", "chao-shen")
    single = np.array([[_entropy(side, method)[0] for side in sides] for method in methods])
    information = lambda counts: single.sum(axis=1) - [_entropy(counts, method)[0] for method in methods]  # noqa: E731
    own = information(joint(y))
    chance = np.array([information(joint(other)) for other in _pairings(y, PERMUTATIONS, shuffle=shuffle)])
    room, most, deviation = (
        float(single[0].min() - chance[:, 0].mean()),
        float(single[1].min()),
        float(chance[:, 0].std(ddof=1)),
    )
    part = (own[0] - chance[:, 0].mean()) / room if room > 0 else 0.0
    values = np.array([part * most, *(own - (1 - np.clip(part, 0, 1)) * chance.mean(axis=0))[1:]])
    pointwise = _pointwise(x, y)
    dispute = float(np.ptp(values)) / 2
    stderr = math.sqrt(pointwise.var() / N + (deviation * most / max(room, deviation, 1e-9)) ** 2 + dispute**2)
    note = "few different values a sample: they are taken for labels, whose order means nothing"
    estimate = Estimate(
        float(np.median(values)),
        stderr,
        "estimate",
        "mutual information of counts, less that of pairs at random",
        (note,),
    )
    return Counted(estimate, dispute, (own[0] - chance[:, 0].mean()) / max(deviation, 1e-9))


class Counted(NamedTuple):
    """An estimate from counts; half the difference of its corrections in nats; its plug-in value above pairs at random,
    in their deviations.
    """

    estimate: Estimate
    dispute: float
    excess: float


def _pointwise(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """log p(x, y) / p(x) p(y) of each sample, by frequencies."""
    a, b = (np.bincount(z)[z].astype(float) for z in (x, y))
    _, member, size = np.unique(x.astype(np.int64) * (int(y.max()) + 1) + y, return_inverse=True, return_counts=True)
    return np.log(size[member.ravel()] * len(x) / (a * b))


def _entropy(counts: np.ndarray, correction: Correction) -> tuple[float, float]:
    total = int(counts.sum())
    p = counts[counts > 0] / total
    plug_in = float(-(p @ np.log(p)))
    spread = math.sqrt(max(float(p @ np.log(p) ** 2) - plug_in**2, 0.0) / total)
    if correction == "miller-madow":
        return plug_in + (len(p) - 1) / (2 * total), spread
    if correction == "chao-shen":
        return _chao_shen(p, total, int((counts == 1).sum())), spread
    return _nsb(counts.ravel()) if correction == "nsb" else (plug_in, spread)


def _chao_shen(p: np.ndarray, total: int, singletons: int) -> float:
    """Where all are singletons, one of them is taken for a repetition, or nothing would be covered."""
    covered = (1 - min(singletons, total - 1) / total) * p
    return float(-np.sum(covered * np.log(covered) / -np.expm1(total * np.log1p(-np.minimum(covered, 1 - 1e-12)))))


def _nsb(counts: np.ndarray) -> tuple[float, float]:
    """Posterior mean and deviation of the entropy over the concentration beta, on a grid even in its logarithm."""
    symbols = len(counts)
    if symbols == 1:
        return 0.0, 0.0
    with jax.enable_x64(True):  # differences of log gamma functions of large arguments
        beta = jnp.geomspace(RANGE[0], RANGE[1], NODES)
        value, times = _distinct(counts)
        log_weight, mean, square = _nsb_terms(jnp.asarray(value, jnp.float64), jnp.asarray(times, jnp.float64), beta)
        weight = jnp.exp(log_weight - log_weight.max())
        weight = weight / weight.sum()
        first, second = float(weight @ mean), float(weight @ square)
    return first, math.sqrt(max(second - first**2, 0.0))


def _distinct(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each count and how often it occurs, filled up by counts that never do to a power of two, so that few shapes are
    compiled.

    N samples have at most sqrt(2 N) distinct counts and the count 0, however many symbols there are.
    """
    value, times = np.unique(counts, return_counts=True)
    fill = (1 << (len(value) - 1).bit_length()) - len(value)
    return np.pad(value, (0, fill)), np.pad(times, (0, fill))


@jax.jit
def _nsb_terms(counts: Array, times: Array, beta: Array) -> tuple[Array, Array, Array]:
    """By beta: log of evidence times prior (d prior entropy / d log beta), and mean and mean square of the entropy.

    Symbols of one count share their terms: sums over symbols are sums over distinct counts, each taken `times`.
    """
    K, N = times.sum(), times @ counts

    def at(beta: Array) -> tuple[Array, Array, Array]:
        whole = K * beta
        evidence = gammaln(whole) - gammaln(N + whole) + times @ (gammaln(counts + beta) - gammaln(beta))
        slope = K * polygamma(1, whole + 1) - polygamma(1, beta + 1)  # of psi(K beta + 1) - psi(beta + 1)
        a, A = counts + beta, N + whole
        mean = digamma(A + 1) - times @ (a * digamma(a + 1)) / A
        return evidence + jnp.log(slope) + jnp.log(beta), mean, _mean_square(a, times, A)

    return jax.lax.map(at, beta)


def _mean_square(a: Array, times: Array, A: Array) -> Array:
    """E H^2 of a Dirichlet law (Wolpert and Wolf 1995): sums over i != j are products of sums less their diagonals."""
    shift, shifted = digamma(A + 2), polygamma(1, A + 2)
    one = digamma(a + 1) - shift
    cross = ((times @ (a * one)) ** 2 - times @ (a * one) ** 2) - shifted * ((times @ a) ** 2 - times @ a**2)
    two = digamma(a + 2) - shift
    own = times @ (a * (a + 1) * (two**2 + polygamma(1, a + 2) - shifted))
    return (cross + own) / (A * (A + 1))


def _check_counts(counts: Array | np.ndarray, axes: int, correction: str) -> np.ndarray:
    if correction not in CORRECTIONS:
        raise ValueError(f"correction={correction!r} is unknown: use one of {', '.join(CORRECTIONS)}")
    counts = np.asarray(counts)
    if counts.ndim != axes or not counts.size or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(
            f"counts has shape {counts.shape} and dtype {counts.dtype}, expected integers with {axes} axes; see "
            "`count` for samples"
        )
    if counts.min() < 0 or counts.sum() == 0:
        raise ValueError(
            f"counts go from {counts.min()} and sum to {counts.sum()}, expected none below 0 and at least one above"
        )
    return counts


def _name_method(correction: Correction) -> str:
    return {"none": "plug-in", "miller-madow": "Miller-Madow", "chao-shen": "Chao-Shen", "nsb": "NSB"}[correction]


def _few(counts: np.ndarray) -> tuple[str, ...]:
    seen, total = int((counts > 0).sum()), int(counts.sum())
    return (
        (f"only {total} samples of {seen} different symbols: all corrections are rough here",)
        if total < 2 * seen
        else ()
    )
