"""Gates drawn at random, apart from the state: second moments and the Lyapunov exponent of products A_t ... A_1 (theory, section 5 B2, B3).

The difference of two states under the same inputs and noise is e_t = A_t e_{t-1}. Its second moments follow a linear map of
matrices that keeps positive ones positive; the root of that map is the mean-square radius. Its size follows the exponent
gamma = lim log|A_t ... A_1| / t almost surely (Furstenberg and Kesten 1960), which may be negative where second moments grow.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy.sparse import linalg

from selssm_jax.ops.gating import effective_transition

DRAWS, BATCHES = 65_536, 32  # of a sampler; of them for a dense transition as many as DENSE numbers can hold
DENSE = 2**22
SMALL = 1024  # unknowns up to which the map of second moments is written out as a matrix
WANTED, BASIS = 6, 60  # eigenvalues that Arnoldi looks for, of which the root may not be the first it finds, and vectors it keeps
MARGIN = 1e-3  # by which the rate that is proved lies above the radius
SIGMAS = 4.0  # half width of an interval, in standard errors
CHAINS, BURN_IN, STEPS = 64, 500, 4000  # of the simulated exponent


@dataclasses.dataclass(frozen=True)
class MarkovGates:
    """Gates that follow a Markov chain: g_t = gates[m_t], P(m_t = j | m_{t-1} = i) = transition[i, j].

    Attributes:
      transition: (m, m), rows sum to 1. gates: (m, n), or (m,) for the same gate in every component.
    """

    transition: np.ndarray
    gates: np.ndarray


@dataclasses.dataclass(frozen=True)
class Law:
    """A Markov chain of modes, of which each has a transition matrix; one row of P for gates that are independent in time.

    Attributes:
      P: (m, k) or (1, k). gates: (k, n). modes: A_g, (k, n) if A is diagonal, else (k, n, n). sampled: whether the modes are draws.
    """

    P: np.ndarray
    gates: np.ndarray
    modes: np.ndarray
    sampled: bool = False

    @property
    def stationary(self) -> np.ndarray:
        """The share of time in each mode, (k,): of an ergodic chain."""
        if len(self.P) == 1:
            return self.P[0]
        m = len(self.P)
        equations = np.vstack([self.P.T - np.eye(m), np.ones(m)])
        return np.linalg.lstsq(equations, np.append(np.zeros(m), 1.0), rcond=None)[0]


GateLaw = list[tuple[float, Any]] | tuple[Any, Any] | MarkovGates | Callable[[Any, int], Any]


def read_law(given: GateLaw, A: np.ndarray, low: np.ndarray, high: np.ndarray, update: str) -> Law:
    """Returns the law that `certify_recurrence` was given; raises ValueError for one that is none, or leaves [gate_min, gate_max]."""
    n = len(A)
    given = MarkovGates(*given) if isinstance(given, tuple) and len(given) == 2 and np.ndim(given[0]) == 2 else given
    if callable(given):
        count = DRAWS if A.ndim == 1 else int(np.clip(DENSE // A.size, BATCHES, DRAWS))
        gates = _gates(given(jax.random.key(0), count), n, "gate_law(key, count)")
        P = np.full((1, len(gates)), 1 / len(gates))
    elif isinstance(given, MarkovGates):
        P, gates = np.asarray(given.transition, np.float64), _gates(given.gates, n, "gate_law.gates")
        if P.shape != (len(gates), len(gates)):
            raise ValueError(f"gate_law.transition has shape {P.shape}, expected ({len(gates)}, {len(gates)}): as many modes as gate_law.gates has rows")
    else:
        P = np.array([[float(p) for p, _ in given]])
        gates = _gates(np.stack([np.broadcast_to(np.asarray(gate, np.float64), (n,)) for _, gate in given]), n, "gate_law")
    if not (len(gates) and (P >= 0).all() and np.allclose(P.sum(axis=1), 1, atol=1e-6)):
        raise ValueError(f"gate_law has probabilities that sum to {P.sum(axis=1)}, expected numbers from 0 that sum to 1")
    if (gates < low - 1e-6).any() or (gates > high + 1e-6).any():
        raise ValueError(f"gate_law has gates in [{gates.min():.4g}, {gates.max():.4g}], outside gate_min and gate_max: widen these or mend the law")
    return Law(P / P.sum(axis=1, keepdims=True), gates, effective_transition(gates, A, update), callable(given))


def _gates(given: Any, n: int, name: str) -> np.ndarray:
    gates = np.asarray(given, np.float64)
    gates = np.repeat(gates[:, None], n, axis=1) if gates.ndim == 1 else gates
    if gates.ndim != 2 or gates.shape[1] != n or not np.isfinite(gates).all():
        raise ValueError(f"{name} has shape {np.shape(given)}, expected finite gates (modes, {n}), one column a component")
    return gates


@dataclasses.dataclass(frozen=True)
class MeanSquare:
    """E|e_t|_2^2 <= constant rate^t |e_0|_2^2, in the Euclidean norm, proved where constant is a number.

    Attributes:
      radius: root of the map of second moments. interval: of the radius, wider than a point for sampled gates.
      rate: a little above the radius. constant: None where nothing is proved.
      direction: (n,), the direction in which second moments grow most.
    """

    radius: float
    interval: tuple[float, float]
    rate: float
    constant: float | None
    direction: np.ndarray


def mean_square(law: Law) -> MeanSquare:
    """Returns the mean-square radius: rho(E[A (x) A]) for independent gates, that of the blocks p_ij A_j (x) A_j for a chain."""
    if law.modes.ndim == 2:
        return _by_component(law)
    whole = _by_matrix(law)
    if not law.sampled:
        return whole
    parts = np.array_split(law.modes, BATCHES)
    radii = [_root(Law(np.full((1, len(part)), 1 / len(part)), law.gates, part))[0] for part in parts]
    return dataclasses.replace(whole, interval=_interval(whole.radius, np.asarray(radii)))


def _batch_means(draws: np.ndarray) -> np.ndarray:
    return draws[: len(draws) // BATCHES * BATCHES].reshape(BATCHES, -1).mean(axis=1)


def _interval(value: float, parts: np.ndarray) -> tuple[float, float]:
    """Around a mean, by the spread of the means of its parts."""
    error = SIGMAS * float(np.std(parts, ddof=1)) / np.sqrt(len(parts))
    return value - error, value + error


def _by_component(law: Law) -> MeanSquare:
    """Diagonal transitions: every component has a map of its own, of as many numbers as the chain has modes."""
    power = np.abs(law.modes) ** 2
    if len(law.P) == 1:
        radii = law.P[0] @ power
        worst = int(radii.argmax())
        constant: float | None = 1.0
        radius = rate = float(radii[worst])
    else:
        maps = law.P[None] * power.T[:, None, :]  # (n, m, m)
        radii = np.abs(np.linalg.eigvals(maps)).max(axis=1)
        worst, radius = int(radii.argmax()), float(radii.max())
        rate = _above(radius)
        y = np.linalg.solve(rate * np.eye(len(law.P)) - maps, np.ones((len(maps), len(law.P), 1)))[..., 0]
        constant = float((y.max(axis=1) / y.min(axis=1)).max()) if y.min() > 0 else None
    interval = _interval(radius, _batch_means(power[:, worst])) if law.sampled else (radius, radius)
    return MeanSquare(radius, interval, rate, constant, np.eye(law.modes.shape[1])[worst])


def _above(radius: float) -> float:
    """A rate slightly above, and below 1 where the radius is."""
    return max(min(radius * (1 + MARGIN), (radius + 1) / 2 if radius < 1 else np.inf), np.finfo(np.float64).tiny)


def _by_matrix(law: Law) -> MeanSquare:
    radius, X = _root(law)
    rate = _above(radius)
    constant = _proof(law, rate) if radius < 1 else None
    direction = np.linalg.eigh(X.sum(axis=0))[1][:, -1]
    return MeanSquare(radius, (radius, radius), rate, constant, direction)


def forward(law: Law, X: np.ndarray) -> np.ndarray:
    """Returns the second moments after a step, jointly with the mode: X'_j = sum_i p_ij A_j X_i A_j'; X is (m, n, n)."""
    arriving = np.einsum("ij,iab->jab", law.P, X)
    moved = law.modes @ arriving @ law.modes.swapaxes(-1, -2)
    return moved if len(law.P) > 1 else moved.sum(axis=0, keepdims=True)


def backward(law: Law, Y: np.ndarray) -> np.ndarray:
    """Returns the adjoint, Y'_i = sum_j p_ij A_j' Y_j A_j: what e' Y_i e is expected to be a step later."""
    pulled = law.modes.swapaxes(-1, -2) @ Y @ law.modes
    return np.einsum("ij,jab->iab", law.P, pulled)


def _root(law: Law, step: Callable[[Law, np.ndarray], np.ndarray] = forward) -> tuple[float, np.ndarray]:
    """(radius, the positive semidefinite X that `step`, `forward` or `backward`, scales by it)."""
    shape = (len(law.P), *law.modes.shape[1:])
    size = int(np.prod(shape))
    if size <= SMALL:
        written = _written_out(law)
        values, vectors = np.linalg.eig(written if step is forward else written.T)
    else:
        operator = linalg.LinearOperator((size, size), matvec=lambda x: step(law, x.reshape(shape)).ravel(), dtype=np.float64)
        values, vectors = linalg.eigs(operator, k=WANTED, ncv=BASIS, which="LR", v0=np.broadcast_to(np.eye(shape[-1]), shape).ravel(), tol=1e-9)
    best = int(values.real.argmax())
    X = vectors[:, best].real.reshape(shape)
    X = X if np.trace(X.sum(axis=0)) >= 0 else -X
    return max(float(values[best].real), 0.0), (X + X.swapaxes(-1, -2)) / 2


def _written_out(law: Law) -> np.ndarray:
    """`forward` as a matrix, p_ij A_j (x) A_j in blocks; its transpose is `backward`."""
    m, n = len(law.P), law.modes.shape[-1]
    pattern = "ij,jac,jbd->jabicd" if m > 1 else "ij,jac,jbd->iabcd"
    return np.einsum(pattern, law.P, law.modes, law.modes, optimize=True).reshape(m * n * n, m * n * n)


def _proof(law: Law, rate: float) -> float | None:
    """The condition number of a Y > 0 with backward(Y) <= rate Y, checked in float64; None where none was found.

    (rate - backward)(Y) = I has one, sum_k backward^k(I) / rate^(k+1), where the radius is below the rate; should it be found too
    roughly, the eigenvector of the radius is one, of a worse condition, unless it is singular.
    """
    found = _condition(law, rate, _resolvent(law, rate))
    return found if found is not None else _condition(law, rate, _root(law, backward)[1])


def _condition(law: Law, rate: float, Y: np.ndarray) -> float | None:
    left = np.linalg.eigvalsh(rate * Y - backward(law, Y)).min()
    sizes = np.linalg.eigvalsh(Y)
    return float(sizes.max() / sizes.min()) if left > 0 and sizes.min() > 1e-12 * sizes.max() else None


def _resolvent(law: Law, rate: float) -> np.ndarray:
    shape = (len(law.P), *law.modes.shape[1:])
    size, identity = int(np.prod(shape)), np.broadcast_to(np.eye(shape[-1]), shape).ravel()
    if size <= SMALL:
        Y = np.linalg.solve(rate * np.eye(size) - _written_out(law).T, identity).reshape(shape)
    else:
        operator = linalg.LinearOperator((size, size), matvec=lambda y: rate * y - backward(law, y.reshape(shape)).ravel(), dtype=np.float64)
        Y = linalg.gmres(operator, identity, rtol=1e-6, restart=60, maxiter=40)[0].reshape(shape)
    return (Y + Y.swapaxes(-1, -2)) / 2


@dataclasses.dataclass(frozen=True)
class Exponent:
    """gamma in nats a step and an interval for it; `gates` (T, n) are those of a path."""

    gamma: float
    interval: tuple[float, float]
    gates: np.ndarray


def lyapunov(law: Law, *, seed: int = 0) -> Exponent:
    """Returns the top Lyapunov exponent: exact for diagonal transitions, else by simulation and batch means."""
    rng = np.random.default_rng(seed)
    if law.modes.ndim == 2:
        return _exact_exponent(law, rng)
    path = _path(law, rng, CHAINS, BURN_IN + STEPS)
    h = rng.standard_normal((CHAINS, law.modes.shape[-1], 1))
    growth = np.empty((BURN_IN + STEPS, CHAINS))
    for step, mode in enumerate(path):
        h = law.modes[mode] @ h
        size = np.linalg.norm(h, axis=1, keepdims=True)  # the R of a QR decomposition of one column
        if not size.all():
            return Exponent(-np.inf, (-np.inf, -np.inf), law.gates[path[: step + 1, 0]])
        growth[step], h = np.log(size[:, 0, 0]), h / size
    batches = growth[BURN_IN:].reshape(STEPS // BURN_IN, BURN_IN, CHAINS).mean(axis=1).ravel()
    gamma = float(batches.mean())
    return Exponent(gamma, _interval(gamma, batches), law.gates[path[:, 0]])


def _exact_exponent(law: Law, rng: np.random.Generator) -> Exponent:
    with np.errstate(divide="ignore"):
        logs = np.log(np.abs(law.modes))
    share = law.stationary
    visited = share > 0  # 0 times log 0 is 0 here
    means = share[visited] @ logs[visited]
    worst = int(means.argmax())
    gamma = float(means[worst])
    sampled = law.sampled and np.isfinite(gamma)
    interval = _interval(gamma, _batch_means(logs[:, worst])) if sampled else (gamma, gamma)
    return Exponent(gamma, interval, law.gates[_path(law, rng, 1, BURN_IN)[:, 0]])


def _path(law: Law, rng: np.random.Generator, chains: int, steps: int) -> np.ndarray:
    """Modes of independent chains, (steps, chains), begun in the stationary law."""
    share = np.clip(law.stationary, 0, None)
    now = rng.choice(len(share), size=chains, p=share / share.sum())
    cumulative = np.cumsum(law.P, axis=1)
    path = np.empty((steps, chains), int)
    for step in range(steps):
        row = cumulative[now if len(law.P) > 1 else np.zeros_like(now)]
        now = np.minimum((rng.random((chains, 1)) > row).sum(axis=1), len(share) - 1)
        path[step] = now
    return path
