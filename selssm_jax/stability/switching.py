"""Products of gated transitions in any order: the joint spectral radius from both sides, and gate sequences that do not
forget.

The joint spectral radius of a set of matrices is the growth a step of its worst products (Rota and Strang 1960; Jungers
2009). Every rho(P)^(1/k) of a product P of k of them is a lower bound, and max |P| over all of k a upper bound to the
power k; of gates in a box only the corners matter, for the radius of a set is that of its convex hull.
"""

import dataclasses
import itertools

import numpy as np

from selssm_jax.ops.gating import effective_transition

CORNERS = 5  # components up to which all 2^n corners of the box are looked at
NODES = 4000  # products that the search holds at once
DEPTH = 40  # longest product of the search
GAP = 0.005  # between both bounds at which the search ends
STEPS, STARTS, LONGEST = 120, 16, 12  # of the greedy search, and its longest period
# components up to which every period's root is computed; else those of so many, after so many periods
EXACT, FOLLOWED, REPEATS = 64, 8, 32


@dataclasses.dataclass(frozen=True)
class Radius:
    """lower <= the joint spectral radius <= upper.

    Attributes:
      lower, upper: growth a step.
      word: indices of the matrices of the product that attains the lower bound, first step first.
      constant: |P| <= constant upper^k for every product P of k matrices, in the spectral norm.
    """

    lower: float
    upper: float
    word: tuple[int, ...]
    constant: float


def joint_spectral_radius(matrices: np.ndarray, *, gap: float = GAP, nodes: int = NODES, depth: int = DEPTH) -> Radius:
    """Brackets the joint spectral radius of (k, n, n) matrices (Gripenberg 1996: branch and bound over products).

    A product is followed no further once the smallest |P_j|^(1/j) of its beginnings P_j is within `gap` of the best
    lower bound. The search gives up, with a wider bracket, at more than `nodes` products of one length, or at length
    `depth`.

    Raises:
      ValueError: for matrices that are not real and finite.
    """
    matrices = np.asarray(matrices)
    if np.iscomplexobj(matrices) or not np.isfinite(matrices).all():
        raise ValueError(
            f"matrices of dtype {matrices.dtype} are not all real and finite: a complex matrix is a real one of twice "
            "the size"
        )
    search = _Search(matrices.astype(np.float64))
    while len(search.words) and search.length < depth and len(search.words) * len(matrices) <= nodes:
        search.extend(gap)
    upper = float(max(search.lower + gap, search.rates.max(initial=0.0)))
    return Radius(search.lower, upper, search.word, search.constant(upper))


class _Search:
    """Gripenberg's tree, one length after the other."""

    def __init__(self, matrices: np.ndarray) -> None:
        n = matrices.shape[-1]
        self.matrices, self.length = matrices, 0
        self.products, self.words = np.eye(n)[None], np.zeros((1, 0), int)
        self.rates = np.full(1, np.inf)  # the smallest |P_j|^(1/j) so far of every product that is still followed
        self.lower, self.word = 0.0, (0,)
        self._largest = [1.0]  # by length, the largest norm of a product that is followed

    def extend(self, gap: float) -> None:
        self.length += 1
        self.products = np.einsum("kij,pjl->pkil", self.matrices, self.products).reshape(-1, *self.matrices.shape[1:])
        index = np.tile(np.arange(len(self.matrices)), len(self.words))
        self.words = np.column_stack([np.repeat(self.words, len(self.matrices), axis=0), index])
        norms = np.linalg.norm(self.products, ord=2, axis=(1, 2))
        self.rates = np.minimum(np.repeat(self.rates, len(self.matrices)), norms ** (1 / self.length))
        radii = np.abs(np.linalg.eigvals(self.products)).max(axis=1) ** (1 / self.length)
        if radii.max() > self.lower:
            self.lower, self.word = float(radii.max()), tuple(self.words[radii.argmax()].tolist())
        kept = self.rates > self.lower + gap
        self._largest.append(float(norms[kept].max(initial=0.0)))
        self.products, self.words, self.rates = self.products[kept], self.words[kept], self.rates[kept]

    def constant(self, upper: float) -> float:
        """Every long product falls into pieces that meet their rate and one last piece that is still followed."""
        pieces = [norm / upper**length for length, norm in enumerate(self._largest)]
        return max(pieces) if upper > 0 else 1.0


def corners(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Returns the corners of a box of gates, (2^f, n) for the f gates whose range is not a point."""
    free = np.flatnonzero(high > low)
    chosen = np.array(list(itertools.product((False, True), repeat=len(free))), bool).reshape(2 ** len(free), len(free))
    gates = np.repeat(low[None], len(chosen), axis=0)
    gates[:, free] = np.where(chosen, high[free], low[free])
    return gates


def growing_gates(
    A: np.ndarray, low: np.ndarray, high: np.ndarray, update: str, *, seed: int = 0
) -> tuple[np.ndarray, float]:
    """Searches gates in [low, high] whose periodic repetition grows most; returns (gates (P, n), growth a step).

    Tried are the constant corners all closed and all open, each component's gate alone closed or open, and from random
    states the gates that make each component largest, step by step, cut into periods. A growth of 1 or more proves that
    no rate below 1 holds uniformly.
    """
    n = len(low)
    alone = np.arange(n) == np.arange(min(n, 2 * STARTS))[:, None]
    words = [gates[None] for gates in (low, high, *np.where(alone, high, low), *np.where(alone, low, high))]
    words += [
        word
        for start in np.random.default_rng(seed).standard_normal((STARTS, n))
        for word in _greedy(A, low, high, update, start)
    ]
    words = _promising(A, words, update) if A.ndim == 2 and n > EXACT else words
    growths = [_growth(A, word, update) for word in words]
    best = int(np.argmax(np.round(growths, 12)))
    return words[best], float(growths[best])


def _promising(A: np.ndarray, words: list[np.ndarray], update: str) -> list[np.ndarray]:
    """The `FOLLOWED` periods under which a random state grows most: the eigenvalues of every product would take
    minutes.
    """
    rng, rates = np.random.default_rng(0), np.empty(len(words))
    for period in {len(word) for word in words}:
        same = [index for index, word in enumerate(words) if len(word) == period]
        gates = np.stack([words[index] for index in same], axis=1)  # (P, words, n)
        h, logarithm = rng.standard_normal(gates.shape[1:]), 0.0
        for repeat in range(REPEATS):
            for gate in gates:
                target = h @ A.T
                h = (1 - gate) * h + gate * target if update == "retain" else gate * target
            size = np.maximum(np.linalg.norm(h, axis=1, keepdims=True), np.finfo(np.float64).tiny)
            h = h / size
            logarithm = logarithm + np.log(size[:, 0]) * (repeat >= REPEATS // 2)
        rates[same] = logarithm / period
    return [words[index] for index in np.sort(np.argsort(-rates, kind="stable")[:FOLLOWED])]


def _greedy(A: np.ndarray, low: np.ndarray, high: np.ndarray, update: str, h: np.ndarray) -> list[np.ndarray]:
    """The last gates of a state that is made large, as periods of 1 to LONGEST steps."""
    gates = np.empty((STEPS, len(low)))
    for step in range(STEPS):
        target = A @ h if A.ndim == 2 else A * h
        ends = [(1 - g) * h + g * target if update == "retain" else g * target for g in (low, high)]
        gates[step] = np.where(np.abs(ends[0]) >= np.abs(ends[1]), low, high)
        h = np.where(gates[step] == low, *ends)
        size = np.abs(h).max()
        if not 0 < size < np.inf:
            return []
        h = h / size
    return [gates[-period:] for period in range(1, LONGEST + 1)]


def _growth(A: np.ndarray, gates: np.ndarray, update: str) -> float:
    """rho of the product of one period, a step."""
    product = period_product(A, gates, update)
    radius = np.abs(product).max() if A.ndim == 1 else np.abs(np.linalg.eigvals(product)).max()
    return float(radius ** (1 / len(gates)))


def period_product(A: np.ndarray, gates: np.ndarray, update: str) -> np.ndarray:
    """Returns A_P ... A_1 of gates (P, n), (n,) if A is diagonal, else (n, n)."""
    steps = effective_transition(gates, A, update)
    if A.ndim == 1:
        return steps.prod(axis=0)
    product = np.eye(len(A))
    for step in steps:
        product = step @ product
    return product
