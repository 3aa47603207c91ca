"""Contraction in a weighted maximum norm, |h|_v = max_i |h_i| / v_i, over all gates of a box (theory, section 5 B1, B4,
B5).

Two states under the same inputs and noise differ after a step by at most F applied to how they differed before,

  F(d)_i = max_{g in {low_i, high_i}} sum_j |A_g|_ij d_j + pull_i sum_j L_ij d_j,

with |A_g|_ij the size of the gated transition's entries, convex in g and so largest at an end of its range, and L the
gates' Lipschitz constants. F is monotone and homogeneous: where F(v) <= kappa v for one v > 0, |.|_v shrinks by kappa a
step. The best kappa is F's nonlinear Perron root (Gaubert and Gunawardena 2004), found here by policy iteration; kappa
is then read off v itself, so it does not rest on the search. For a_ii >= 0 and L = 0 it is the 1 - g_min (1 - alpha) of
the theory at the best weights.
"""

import dataclasses
import math

import numpy as np

from selssm_jax.ops.gating import effective_transition

HALVINGS = 60  # of the interval that holds the root: to float64's own precision
POLICIES = 100  # of one policy iteration, which ends after a few
SHARES = (1e-4, 1e-3, 1e-2, 0.1, 0.3)  # how far above the root, as shares of what is left to 1, weights are tried
PRECISION = 1e-3  # at which the memory horizon of weights is compared
ROUNDING = 4 * np.finfo(np.float64).eps  # of a sum of nonnegative products, by term: more than there can be


@dataclasses.dataclass(frozen=True)
class Contraction:
    """|h_t - h'_t|_v <= rate^t |h_0 - h'_0|_v for two states under the same inputs and noise.

    Attributes:
      rate: kappa, a step's factor; 1 or more says nothing.
      weights: v, (n,), largest 1.
      constant: max v / min v: in the plain maximum norm distances stay under constant rate^t times the first.
    """

    rate: float
    weights: np.ndarray

    @property
    def constant(self) -> float:
        """The price of the plain maximum norm."""
        return float(self.weights.max() / self.weights.min())

    def horizon(self, eps: float) -> float:
        """Returns the steps after which a difference is below eps times the first; inf where there is no
        contraction.
        """
        return horizon(self.rate, self.constant, eps)


def horizon(rate: float, constant: float, eps: float) -> float:
    """Returns the steps, at least one, after which constant rate^t <= eps; inf for a rate from 1 on."""
    if rate >= 1:
        return math.inf
    return 1.0 if rate <= 0 else max(1.0, math.ceil(math.log(eps / constant) / math.log(rate)))


@dataclasses.dataclass(frozen=True)
class Growth:
    """The map F: nonnegative matrices of the two ends of the gates' range, and what reading the state adds.

    Attributes:
      low, high: (n,) where diagonal, else (n, n).
      coupling: pull_i L_ij, (n,) or (n, n); None for gates that do not read the state.
      reach: (c, reads), (n,) and (m, n), of gates whose change is bounded by a largest: c_i max_k sum_j reads_kj d_j is
        added to F; None without. Of gates of which one number L is known, |G(h) - G(k)|_max <= L |h - k|_max, c is
        pull_i L.
    """

    low: np.ndarray
    high: np.ndarray
    coupling: np.ndarray | None = None
    reach: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, v: np.ndarray) -> np.ndarray:
        """Returns F(v)."""
        grown = np.maximum(_times(self.low, v), _times(self.high, v))
        grown = grown if self.coupling is None else grown + _times(self.coupling, v)
        if self.reach is None:
            return grown
        c, reads = self.reach
        return grown + c * (reads @ v).max()

    @property
    def separable(self) -> bool:
        """Whether every component is by itself."""
        return self.low.ndim == 1 and self.reach is None and (self.coupling is None or self.coupling.ndim == 1)

    def policy(self, v: np.ndarray) -> np.ndarray:
        """Returns the matrix N, (n, n), with N v = F(v)."""
        low, high = _square(self.low), _square(self.high)
        N = np.where((low @ v >= high @ v)[:, None], low, high)
        if self.coupling is not None:
            N = N + _square(self.coupling)
        if self.reach is not None:
            c, reads = self.reach
            N = N + np.outer(c, reads[int((reads @ v).argmax())])
        return N


def gated_growth(A: np.ndarray, low: np.ndarray, high: np.ndarray, update: str) -> Growth:
    """Returns F of gates that do not read the state and lie in [low, high]."""
    return Growth(*(np.abs(effective_transition(gate, A, update)) for gate in (low, high)))


def contract(growth: Growth) -> Contraction:
    """Returns the contraction with the shortest memory horizon among weights near the best rate and equal weights."""
    equal = _measure(growth, np.ones(len(growth.low)))
    if growth.separable:
        return equal
    root = perron_root(growth)
    if root >= 1:
        return Contraction(root, equal.weights) if root < equal.rate else equal
    tried = [_weights(growth, root + share * (1 - root)) for share in SHARES]
    return min(
        [equal, *(_measure(growth, v) for v in tried if v is not None)],
        key=lambda one: (one.horizon(PRECISION), one.rate),
    )


def perron_root(growth: Growth) -> float:
    """Returns the smallest c, up to rounding and from above, such that F(v) <= c v for some v > 0 (theory: rho of |A|
    where g = 1).
    """
    least, most = 0.0, float(growth(np.ones(len(growth.low))).max())
    if growth.separable:
        return most
    if most > 1:  # entries far above the root would leave the halvings no digits of it
        least, most = (0.0, 1.0) if _weights(growth, 1.0) is not None else (1.0, most)
    for _ in range(HALVINGS):
        middle = (least + most) / 2 if most <= 4 * least or not least else math.sqrt(least * most)
        least, most = (least, middle) if _weights(growth, middle) is not None else (middle, most)
        if most - least <= 1e-14 * most:
            break
    return most


def feasible(growth: Growth) -> bool:
    """Returns whether some weighted norm contracts: whether the root is below 1."""
    return bool((growth(np.ones(len(growth.low))) < 1).all()) if growth.separable else _weights(growth, 1.0) is not None


def _weights(growth: Growth, c: float) -> np.ndarray | None:
    """v > 0 with F(v) < c v, checked; None where c is under the root, or so near to it that float64 cannot tell.

    By policy iteration, of v = 1 + F(v) / c: (I - N / c) v = 1 for a nonnegative N has a positive solution if and only
    if rho(N) < c.
    """
    v: np.ndarray = np.ones(len(growth.low))
    if c <= 0:
        return None
    for _ in range(POLICIES):
        try:
            new = np.linalg.solve(np.eye(len(v)) - growth.policy(v) / c, np.ones(len(v)))
        except np.linalg.LinAlgError:
            return None
        if not (np.isfinite(new).all() and new.min() > 0):
            return None
        if (new <= v * (1 + 1e-13)).all():
            return _scale_solution(growth, new, c)
        v = new
    return None


def _scale_solution(growth: Growth, v: np.ndarray, c: float) -> np.ndarray | None:
    """The solution of policy iteration, or the one of (I - N / c) u = v, whose slack is of the same share in every
    component, however large it is.
    """
    if below(growth, v, 0, c):
        return v
    try:
        u = np.linalg.solve(np.eye(len(v)) - growth.policy(v) / c, v)
    except np.linalg.LinAlgError:
        return None
    return u if np.isfinite(u).all() and u.min() > 0 and below(growth, u, 0, c) else None


def below(growth: Growth, v: np.ndarray, constant: np.ndarray | float, c: float = 1.0) -> bool:
    """Returns whether F(v) + constant <= c v, all of them from 0 on, with room for the rounding of the left side."""
    return bool((growth(v) + constant <= c * v * (1 - (len(v) + 4) * ROUNDING)).all())


def fixed_bound(N: np.ndarray, constant: np.ndarray) -> np.ndarray | None:
    """Returns an M, (n,), with N M + constant <= M for a nonnegative N, (n,) or (n, n), checked; None where none was
    found.

    It is the solution of equality, and as much of a v with N v < v on top as makes room for rounding.
    """
    growth, n = Growth(N, N), len(constant)
    v = np.ones(n) if growth.separable else _weights(growth, 1.0)
    if v is None or not below(growth, v, 0):
        return None
    M = constant / (1 - N) if growth.separable else np.maximum(np.linalg.solve(np.eye(n) - N, constant), 0)
    lack = growth(M) + constant - M + 4 * (n + 4) * ROUNDING * M
    share = np.maximum(lack, 0) / (v - growth(v))
    M = M + v * (share if growth.separable else share.max())
    return M if np.isfinite(M).all() and below(growth, M, constant) else None


def _measure(growth: Growth, v: np.ndarray) -> Contraction:
    v = v / v.max()
    return Contraction(float((growth(v) / v).max()), v)


def _times(N: np.ndarray, v: np.ndarray) -> np.ndarray:
    return N @ v if N.ndim == 2 else N * v


def _square(N: np.ndarray) -> np.ndarray:
    return N if N.ndim == 2 else np.diag(N)
