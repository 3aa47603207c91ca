"""Gates drawn at random, apart from the state: second moments and the Lyapunov exponent of products A_t ... A_1
(theory, section 5 B2, B3).

The difference of two states under the same inputs and noise is e_t = A_t e_{t-1}. Its second moments follow a linear
map of matrices that keeps positive ones positive; the root of that map is the mean-square radius. Its size follows the
exponent gamma = lim log|A_t ... A_1| / t almost surely (Furstenberg and Kesten 1960), which may be negative where
second moments grow.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import numpy as np
from scipy import special
from scipy.sparse import csgraph

from selssm_jax.ops.gating import effective_transition, row_sums

DRAWS, BATCHES = 65_536, 32  # of a sampler; of them for a dense transition as many as DENSE numbers can hold
DENSE = 2**22
SMALL = 256  # unknowns up to which the map of second moments is written out as a matrix
# multiplications that powers of a larger map may take, and how many powers that may be
WORK, FEWEST, MOST = 2**33, 64, 1000
BLOCK = 50  # powers after which it is asked whether they are enough
MARGIN = 1e-3  # by which the rate that is proved lies above the radius
NEAREST = 1 - 1e-6  # the last rate that is tried, for a radius that rounding moved
ROUNDING = 16 * np.finfo(np.float64).eps  # of a sum of products, by term: more than there can be
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
    """A Markov chain of modes, of which each has a transition matrix; one row of P for gates that are independent in
    time.

    Attributes:
      P: (m, k) or (1, k). gates: (k, n). A: (n,) or (n, n). update: as in `certify_recurrence`. sampled: whether the
        modes are draws.
    """

    P: np.ndarray
    gates: np.ndarray
    A: np.ndarray
    update: str
    sampled: bool = False

    @cached_property
    def modes(self) -> np.ndarray:
        """A_g, (k, n) if A is diagonal, else (k, n, n)."""
        return effective_transition(self.gates, self.A, self.update)

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(S, E g, E g g') of independent gates with A_t = I + G_t S, or G_t S in the effective update: two products a
        step, however many modes there are.
        """
        share = self.P[0]
        S = self.A - np.eye(len(self.A)) if self.update == "retain" else self.A
        return S, share @ self.gates, (self.gates.T * share) @ self.gates

    @property
    def shape(self) -> tuple[int, ...]:
        """Of second moments, jointly with the mode: (m, n, n), or (1, n, n)."""
        return (len(self.P), *self.A.shape)

    def draws(self, chosen: np.ndarray) -> "Law":
        """The law of some of the gates of a sampler."""
        return Law(np.full((1, len(chosen)), 1 / len(chosen)), self.gates[chosen], self.A, self.update)

    @property
    def stationary(self) -> np.ndarray:
        """The share of time in each mode, (k,)."""
        if len(self.P) == 1:
            return self.P[0]
        m = len(self.P)
        equations = np.vstack([self.P.T - np.eye(m), np.ones(m)])
        return np.linalg.lstsq(equations, np.append(np.zeros(m), 1.0), rcond=None)[0]


GateLaw = list[tuple[float, Any]] | tuple[Any, Any] | MarkovGates | Callable[[Any, int], Any]


def read_law(given: GateLaw, A: np.ndarray, low: np.ndarray, high: np.ndarray, update: str) -> Law:
    """Returns the law that `certify_recurrence` was given; raises ValueError for one that is none, or leaves [gate_min,
    gate_max].
    """
    n = len(A)
    given = MarkovGates(*given) if isinstance(given, tuple) and len(given) == 2 and np.ndim(given[0]) == 2 else given
    if callable(given):
        count = DRAWS if A.ndim == 1 else int(np.clip(DENSE // A.size, BATCHES, DRAWS))
        gates = _gates(given(jax.random.key(0), count), n, "gate_law(key, count)")
        P = np.full((1, len(gates)), 1 / len(gates))
    elif isinstance(given, MarkovGates):
        P, gates = np.asarray(given.transition, np.float64), _gates(given.gates, n, "gate_law.gates")
        if P.shape != (len(gates), len(gates)):
            raise ValueError(
                f"gate_law.transition has shape {P.shape}, expected ({len(gates)}, {len(gates)}): as many modes as "
                "gate_law.gates has rows"
            )
    else:
        P = np.array([[float(p) for p, _ in given]])
        gates = _gates(
            np.stack([np.broadcast_to(np.asarray(gate, np.float64), (n,)) for _, gate in given]), n, "gate_law"
        )
    if not (len(gates) and (P >= 0).all() and np.allclose(P.sum(axis=1), 1, atol=1e-6)):
        raise ValueError(
            f"gate_law has probabilities that sum to {P.sum(axis=1)}, expected numbers from 0 that sum to 1"
        )
    if (gates < low - 1e-6).any() or (gates > high + 1e-6).any():
        raise ValueError(
            f"gate_law has gates in [{gates.min():.4g}, {gates.max():.4g}], outside gate_min and gate_max: widen these "
            "or mend the law"
        )
    if A.ndim == 2 and np.max(row_sums(A)) > np.sqrt(np.finfo(np.float64).max):
        raise ValueError(
            f"A holds numbers up to {np.abs(A).max():.4g}, whose squares float64 does not have: second moments cannot "
            "be computed"
        )
    _check_one_class(P)
    return Law(P / P.sum(axis=1, keepdims=True), gates, A, update, callable(given))


def _check_one_class(P: np.ndarray) -> None:
    """A chain that may stay for ever in one of several parts has no law of its own: it depends on where it began."""
    if len(P) == 1:
        return
    count, part = csgraph.connected_components(P > 0, connection="strong")
    leaves = {int(part[i]) for i, j in np.argwhere(P > 0) if part[i] != part[j]}
    if count - len(leaves) > 1:
        raise ValueError(
            f"gate_law.transition has {count - len(leaves)} closed classes of modes, expected one: certify the law of "
            "each by itself"
        )


def _gates(given: Any, n: int, name: str) -> np.ndarray:
    gates = np.asarray(given, np.float64)
    gates = np.repeat(gates[:, None], n, axis=1) if gates.ndim == 1 else gates
    if gates.ndim != 2 or gates.shape[1] != n or not np.isfinite(gates).all():
        raise ValueError(
            f"{name} has shape {np.shape(given)}, expected finite gates (modes, {n}), one column a component"
        )
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
    """Returns the mean-square radius: rho(E[A (x) A]) for independent gates, that of the blocks p_ij A_j (x) A_j for a
    chain.
    """
    if law.A.ndim == 1:
        return _by_component(law)
    if np.prod(law.shape) > SMALL:
        return _by_powers(law)
    whole = _by_matrix(law)
    if not law.sampled:
        return whole
    radii = [_root(law.draws(chosen))[0] for chosen in _batches(law)]
    return dataclasses.replace(whole, interval=_interval(whole.radius, np.asarray(radii)))


def _batches(law: Law) -> list[np.ndarray]:
    return np.array_split(np.arange(len(law.gates)), BATCHES)


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
        worst = int(radii.argmax())
        radius, rate, constant = _prove_rate(
            float(radii[worst]), float(maps.sum(axis=2).max()), lambda rate: _positive(maps, rate)
        )
        return MeanSquare(
            radius,
            (radius, radius) if constant is not None else _around(radius, maps[worst]),
            rate,
            constant,
            np.eye(len(law.A))[worst],
        )
    interval = _interval(radius, _batch_means(power[:, worst])) if law.sampled else (radius, radius)
    return MeanSquare(radius, interval, rate, constant, np.eye(len(law.A))[worst])


def _positive(maps: np.ndarray, rate: float) -> float | None:
    """max y / min y of the y > 0 with M y <= rate y for every map M, (n, m, m), checked with room for rounding; None
    where none was found.
    """
    m = maps.shape[-1]
    try:
        y = np.linalg.solve(rate * np.eye(m) - maps, np.ones((len(maps), m, 1)))
    except np.linalg.LinAlgError:
        return None
    if not (np.isfinite(y).all() and y.min() > 0 and (maps @ y * (1 + m * ROUNDING) <= rate * y).all()):
        return None
    return float((y.max(axis=1) / y.min(axis=1)).max())


def _prove_rate(
    radius: float, size: float, proof: Callable[[float], float | None]
) -> tuple[float, float, float | None]:
    """(radius, rate, constant): the first of a few rates above the radius that `proof` has a constant for; None for it
    where there is none.

    Eigenvalues of a map far from normal may come out far from where they are, so a rate below 1 is tried whatever the
    radius seems to be; one that is proved bounds the radius. `size` is the map's: a rate too small beside it has a
    proof that float64 cannot hold.
    """
    for rate in sorted({_above(radius, size), (radius + 1) / 2, NEAREST}):
        constant = proof(rate) if radius < rate < 1 or rate == NEAREST else None
        if constant is not None:
            return min(radius, rate), rate, constant
    return radius, _above(radius, size), None


def _above(radius: float, size: float) -> float:
    """A rate slightly above, and below 1 where the radius is."""
    above = max(radius * (1 + MARGIN), MARGIN * size, np.finfo(np.float64).tiny)
    return min(above, (radius + 1) / 2) if radius < 1 else above


def _around(radius: float, maps: np.ndarray) -> tuple[float, float]:
    """Around the radius of maps far from normal, which rounding moves far: ten times as far as a random change of
    rounding's size does.
    """
    size = maps.shape[-1]
    change = (
        np.random.default_rng(0).standard_normal(maps.shape)
        * np.linalg.norm(maps, axis=(-2, -1), keepdims=True)
        / np.sqrt(size)
    )
    moved = np.linalg.eigvals(maps + np.finfo(np.float64).eps * change).real.max()
    return radius - 10 * abs(moved - radius), radius + 10 * abs(moved - radius)


def _by_matrix(law: Law) -> MeanSquare:
    radius, X = _root(law)
    size = float(
        np.linalg.norm(backward(law, np.broadcast_to(np.eye(len(law.A)), law.shape)), ord=2, axis=(1, 2)).max()
    )
    radius, rate, constant = _prove_rate(radius, size, lambda rate: _proof(law, rate))
    interval = (radius, radius) if constant is not None else _around(radius, _written_out(law))
    return MeanSquare(radius, interval, rate, constant, np.linalg.eigh(X.sum(axis=0))[1][:, -1])


def forward(law: Law, X: np.ndarray) -> np.ndarray:
    """Returns the second moments after a step, jointly with the mode: X'_j = sum_i p_ij A_j X_i A_j'; X is (m, n, n),
    symmetric.
    """
    if len(law.P) > 1:
        return law.modes @ np.tensordot(law.P.T, X, axes=1) @ law.modes.swapaxes(-1, -2)
    S, mean, pairs = law.moments
    SX = S @ X
    moved = pairs * (SX @ S.T)
    if law.update == "effective":
        return moved
    return _symmetric(X + 2 * mean[:, None] * SX + moved)


def backward(law: Law, Y: np.ndarray) -> np.ndarray:
    """Returns the adjoint, Y'_i = sum_j p_ij A_j' Y_j A_j: what e' Y_i e is expected to be a step later; Y is
    symmetric.
    """
    if len(law.P) > 1:
        return np.tensordot(law.P, law.modes.swapaxes(-1, -2) @ Y @ law.modes, axes=1)
    S, mean, pairs = law.moments
    pulled = S.T @ (pairs * Y) @ S
    if law.update == "effective":
        return pulled
    return _symmetric(Y + 2 * S.T @ (mean[:, None] * Y) + pulled)


def _symmetric(X: np.ndarray) -> np.ndarray:
    """Without what is rounding, which may grow faster than anything positive does."""
    return (X + X.swapaxes(-1, -2)) / 2


def _root(law: Law, step: Callable[[Law, np.ndarray], np.ndarray] = forward) -> tuple[float, np.ndarray]:
    """(radius, the positive semidefinite X that `step`, `forward` or `backward`, scales by it)."""
    written = _written_out(law)
    values, vectors = np.linalg.eig(written if step is forward else written.T)
    best = int(values.real.argmax())
    X = vectors[:, best].real.reshape(law.shape)
    X = X if np.trace(X.sum(axis=0)) >= 0 else -X
    return max(float(values[best].real), 0.0), _symmetric(X)


def _written_out(law: Law) -> np.ndarray:
    """`forward` as a matrix, p_ij A_j (x) A_j in blocks; its transpose is `backward`."""
    m, n = law.shape[:2]
    pattern = "ij,jac,jbd->jabicd" if m > 1 else "ij,jac,jbd->iabcd"
    return np.einsum(pattern, law.P, law.modes, law.modes, optimize=True).reshape(m * n * n, m * n * n)


def _proof(law: Law, rate: float) -> float | None:
    """The condition number of a Y > 0 with backward(Y) <= rate Y, checked in float64 with room for its rounding; None
    where none was found.

    (rate - backward)(Y) = I has one, sum_k backward^k(I) / rate^(k+1), where the radius is below the rate; should it be
    found too roughly, the eigenvector of the radius is one, of a worse condition, unless it is singular.
    """
    condition = _condition(law, rate, _resolvent(law, rate))
    return condition if condition is not None else _condition(law, rate, _root(law, backward)[1])


def _condition(law: Law, rate: float, Y: np.ndarray | None) -> float | None:
    if Y is None or not np.isfinite(Y).all():
        return None
    sizes = np.linalg.eigvalsh(Y)
    left = np.linalg.eigvalsh(rate * Y - backward(law, Y)).min()
    rounding = len(law.A) * ROUNDING * (rate + _roughness(law)) * sizes.max()
    return float(sizes.max() / sizes.min()) if left > rounding and sizes.min() > 1e-12 * sizes.max() else None


def _roughness(law: Law) -> float:
    """What rounding a step of second moments is in proportion to: the square of the largest terms that are added up in
    it.
    """
    return float((1 + np.linalg.norm(law.A)) ** 2)


def _resolvent(law: Law, rate: float) -> np.ndarray | None:
    size, identity = int(np.prod(law.shape)), np.broadcast_to(np.eye(len(law.A)), law.shape).ravel()
    try:
        Y = np.linalg.solve(rate * np.eye(size) - _written_out(law).T, identity).reshape(law.shape)
    except np.linalg.LinAlgError:
        return None
    return _symmetric(Y)


def _by_powers(law: Law) -> MeanSquare:
    """For a map too large to be written out: E|e_t|^2 <= |B^t(I)|_2 |e_0|^2 with B = `backward`, and |B^t(I)| <=
    |B^K(I)|^(t // K) |B^(t mod K)(I)|.

    So the rate |B^K(I)|^(1/K) is proved by powers alone, for any K, and max_t |B^t(I)| / rate^t over t < K is its
    constant.
    """
    logs, Y = _powers(law, backward)
    radius, off = _settling(logs)
    logs = _bound_powers(law, logs)
    roots = logs[1:] / np.arange(1, len(logs))
    best = int(roots.argmin())
    rate = float(np.exp(roots[best]))
    constant = float(np.exp((logs[: best + 1] - np.arange(best + 1) * roots[best]).max())) if rate < 1 else None
    radius = min(radius, rate)
    if rate < 1 and not law.sampled:
        return MeanSquare(radius, (radius - off, rate), rate, constant, np.eye(len(law.A))[0])
    _, X = _powers(law, forward)
    interval = (radius - off, rate)
    if law.sampled:  # of the first order in how a batch's law differs
        low, high = _interval(
            radius, np.asarray([(Y * forward(law.draws(chosen), X)).sum() / (Y * X).sum() for chosen in _batches(law)])
        )
        interval = (low - off, high + off)
    return MeanSquare(radius, interval, rate, constant, np.linalg.eigh(X.sum(axis=0))[1][:, -1])


def _settling(logs: np.ndarray) -> tuple[float, float]:
    """(growth a step over the last quarter, how far off it may be).

    Powers of a map far from normal grow by r (1 + c / t), which falls between quarters by a third of what it still has
    to fall, or more.
    """
    if not np.isfinite(logs[-1]):
        return 0.0, 0.0
    quarter = len(logs) // 4
    before, last = np.exp((logs[[-1 - quarter, -1]] - logs[[-1 - 2 * quarter, -1 - quarter]]) / quarter)
    return float(last), 4 * abs(float(last - before))


def _powers(law: Law, step: Callable[[Law, np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(log |step^t(I)| for t from 0 on, from above, and the last of them scaled to 1), for as many t as are needed and
    WORK allows.
    """
    cost = 4 * np.prod(law.shape) * len(law.A)
    allowed = int(np.clip(WORK // cost, FEWEST, MOST))
    Z, logs = np.broadcast_to(np.eye(len(law.A)), law.shape), [0.0]
    while len(logs) <= allowed and np.isfinite(logs[-1]):
        moved = step(law, Z)
        size = _size(moved)
        if size == 0:  # the map is nilpotent
            return np.append(logs, -np.inf), Z
        Z, logs = moved / size, [*logs, logs[-1] + np.log(size)]
        t = len(logs) - 1
        settled = t % BLOCK == 0 and logs[t] / t <= (logs[t] - logs[t // 2]) / (t - t // 2) + MARGIN
        if settled and abs(logs[t]) > 1:
            break
    return np.asarray(logs), Z


def _size(Z: np.ndarray) -> float:
    """The spectral norm of positive matrices, the largest of them, from above."""
    return float(np.minimum(np.linalg.norm(Z, axis=(1, 2)), np.abs(Z).sum(axis=2).max(axis=1)).max())


def _bound_powers(law: Law, logs: np.ndarray) -> np.ndarray:
    """log |B^t(I)| with room for rounding, up to the first t at which there is more of that than of the power itself.

    What rounding adds to step s is moved on by the t - 1 - s steps after it: sum_s |B^s(I)| |B^(t-1-s)(I)| times its
    size, twice for what it adds to these.
    """
    share = np.log(2 * len(law.A) * ROUNDING * _roughness(law))
    bounds = [0.0]
    for t in range(1, len(logs)):
        bounds.append(float(np.logaddexp(logs[t], share + special.logsumexp(logs[:t] + logs[:t][::-1]))))
        if bounds[t] > logs[t] + np.log(1.5):
            break
    return np.asarray(bounds)


@dataclasses.dataclass(frozen=True)
class Exponent:
    """gamma in nats a step and an interval for it; `gates` (T, n) are those of a path."""

    gamma: float
    interval: tuple[float, float]
    gates: np.ndarray


def lyapunov(law: Law, *, seed: int = 0) -> Exponent:
    """Returns the top Lyapunov exponent: exact for diagonal transitions, else by simulation and batch means."""
    rng = np.random.default_rng(seed)
    if law.A.ndim == 1:
        return _exact_exponent(law, rng)
    path = _path(law, rng, CHAINS, BURN_IN + STEPS)
    h = rng.standard_normal((CHAINS, len(law.A)))
    growth = np.empty((BURN_IN + STEPS, CHAINS))
    for step, mode in enumerate(path):
        target, gate = h @ law.A.T, law.gates[mode]
        h = (1 - gate) * h + gate * target if law.update == "retain" else gate * target
        size = np.linalg.norm(h, axis=1, keepdims=True)  # the R of a QR decomposition of one column
        if not size.all():
            return Exponent(-np.inf, (-np.inf, -np.inf), law.gates[path[: step + 1, 0]])
        growth[step], h = np.log(size[:, 0]), h / size
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
