"""Transfer entropy (Schreiber 2000), in nats: what the past of one series says of the next value of another beyond the
latter's own past, I(source_{<t}; target_t | target_{<t}, given_{<t}).

Exact for stationary linear-Gaussian systems, where twice its value is Granger causality (Barnett, Barrett and Seth
2009): `of_state_space` and `of_autoregression`. From samples of any law: `entropy`, which asks a conditional estimator
about the last `lags` steps. A model without `given` sees a common driver of both series as transfer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from scipy.linalg import solve_discrete_are

from selssm_jax.information._estimate import Estimate
from selssm_jax.information.checks import (
    Samples,
    check_covariance,
    check_finite,
    check_real,
    check_whole,
    choose_rows,
)
from selssm_jax.information.conditional import ksg, of_covariance
from selssm_jax.information.lyapunov import solve_lyapunov

SETTLED = 1e-10  # relative error of prediction errors, from what a step of the filter changes and how it contracts
SLOWEST = 1e-9  # share of an output's variance that is new in each step
STEPS = 1000  # of the filter, that refine a solution
SERIAL = (
    "rows overlap in time: the standard error takes them for independent; for one that does not, see "
    "inference.jackknife_interval of `embed_past`'s rows"
)

Matrix = Float[Array | np.ndarray, "_ _"]
Coefficients = Float[Array | np.ndarray, "p m m"]


class Embedding(NamedTuple):
    """Rows for a conditional estimator, one for each step from the `lags`-th on: the source's past, the target now, and
    the past of the target and of what is given. Newest steps first.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


class _System(NamedTuple):
    """h_{t+1} = A h_t + w_t, y_t = C h_t + v_t, with the covariances Q of w, R of v and S = Cov(w, v)."""

    A: np.ndarray
    C: np.ndarray
    Q: np.ndarray
    R: np.ndarray
    S: np.ndarray

    def observe(self, rows: list[int]) -> "_System":
        """Returns the system of some of its outputs."""
        return self._replace(C=self.C[rows], R=self.R[np.ix_(rows, rows)], S=self.S[:, rows])


def of_autoregression(
    coefficients: Coefficients,
    noise_cov: Matrix,
    *,
    source: Sequence[int],
    target: Sequence[int],
    given: Sequence[int] = (),
    lags: int | None = None,
) -> float:
    """Transfer entropy of the stationary y_t = F_1 y_{t-1} + .. + F_p y_{t-p} + e_t, e_t ~ N(0, E), in nats. Exact.

    Components that are none of source, target and given are not seen, as in `of_state_space`, of which this is the case
    of the companion form. A subset of the components is no autoregression of order p: its past is taken whole, or to
    `lags` steps.

    Args:
      coefficients: F_1..F_p. noise_cov: E. source, target, given, lags: see `of_state_space`.

    Raises:
      ValueError: for shapes that do not fit, and what `of_state_space` raises.
    """
    check_real(coefficients=coefficients)
    F = np.asarray(coefficients, np.float64)
    if F.ndim != 3 or 0 in F.shape or F.shape[1] != F.shape[2]:
        raise ValueError(f"coefficients have shape {F.shape}, expected (p, m, m) with p, m >= 1")
    p, m, _ = F.shape
    E = _check_matrix("noise_cov", noise_cov, (m, m))
    check_covariance("noise_cov", E)
    units = np.where(np.diagonal(E) > 0, np.diagonal(E), 1) ** 0.5
    F, E = F * units[None] / units[:, None], E / units[:, None] / units[None]
    companion = np.concatenate([F.transpose(1, 0, 2).reshape(m, p * m), np.eye((p - 1) * m, p * m)])
    return of_state_space(
        companion,
        np.eye(m, p * m),
        np.pad(E, (0, (p - 1) * m)),
        np.zeros((m, m)),
        source=source,
        target=target,
        given=given,
        lags=lags,
    )


def of_state_space(
    A: Matrix,
    C: Matrix,
    process_cov: Matrix,
    observation_cov: Matrix,
    *,
    source: Sequence[int],
    target: Sequence[int],
    given: Sequence[int] = (),
    lags: int | None = None,
) -> float:
    """Transfer entropy between outputs of the stationary h_t = A h_{t-1} + w_t, y_t = C h_t + v_t, in nats. Exact.

    w_t ~ N(0, Q), v_t ~ N(0, R). With the whole past it is 1/2 log det V' - 1/2 log det V, V and V' the covariances of
    the target's one-step prediction errors with and without the source, each by a Riccati equation (Barnett and Seth
    2015); with `lags`, the conditional information of the joint covariance of lags + 1 steps, by a Lyapunov equation:
    what an estimator of as many lags estimates. In NumPy's float64. Cost: O(n^3 + p^3), and O((lags p)^3) for `lags`.

    Args:
      A, C: transition (n, n), of a spectral radius under 1, and readout (p, n). process_cov: Q. observation_cov: R.
      source, target, given: which outputs. Those of no group are not seen.
      lags: steps of the past that are seen, of all groups; the whole past if None.

    Returns:
      nats, from 0 up to rounding; it may be inf for `lags`, where the target follows from the source without noise.

    Raises:
      ValueError: for shapes that do not fit, values that are not finite, matrices that are no covariances, an A that
        has no stationary law, outputs that are none, or in two groups, outputs that are known beforehand without noise
        (one follows from another, or from the past), and where float64 does not determine the prediction errors.
    """
    system = _check_system(A, C, process_cov, observation_cov)
    groups = choose_rows(len(system.C), {"source": source, "target": target, "given": given}, optional="given")
    if lags is not None:
        check_whole(1, lags=lags)
        return _of_lags(system, groups, lags)
    rows = [*groups["target"], *groups["given"]]
    n = len(groups["target"])
    system = _scale(_predict(system))
    errors = [_prediction_errors(system.observe(seen))[:n, :n] for seen in ([*rows, *groups["source"]], rows)]
    (_, with_source), (_, without) = (np.linalg.slogdet(error) for error in errors)
    return float(without - with_source) / 2


def embed_past(source: Samples, target: Samples, given: Samples | None = None, *, lags: int = 1) -> Embedding:
    """The rows of series (T,) or (T, d): x, the last `lags` steps of the source; y, the target; z, the last `lags`
    steps of the target and of `given`. Any conditional estimator takes them.

    Raises:
      ValueError: for series of unequal length or other shapes, `lags` that are no whole number from 1, and fewer than
        two rows.
    """
    check_whole(1, lags=lags)
    series = {"source": source, "target": target} | ({} if given is None else {"given": given})
    columns = {name: _check_series(name, value) for name, value in series.items()}
    steps = {name: len(value) for name, value in columns.items()}
    if len(set(steps.values())) > 1:
        raise ValueError(f"series have different numbers of steps, {steps}: expected the same times in each")
    T = len(columns["target"])
    if lags + 2 > T:
        raise ValueError(f"{T} steps of a series with lags={lags}, expected at least {lags + 2}: {lags} and two rows")
    past = {
        name: np.concatenate([value[lags - back : T - back] for back in range(1, lags + 1)], axis=1)
        for name, value in columns.items()
    }
    z = np.concatenate([past["target"], *([past["given"]] if given is not None else [])], axis=1)
    return Embedding(past["source"], columns["target"][lags:], z)


def entropy(
    source: Samples,
    target: Samples,
    given: Samples | None = None,
    *,
    lags: int = 1,
    estimator: Callable[..., Estimate] = ksg,
) -> Estimate:
    """Transfer entropy from samples of stationary series (T,) or (T, d), in nats: `estimator(x, y, z)` of `embed_past`.

    conditional.ksg for numbers, conditional.gaussian for linear systems, conditional.discrete for labels. It is the
    information within `lags` steps, which is neither at least nor at most that of the whole past: what a shorter past
    of the target leaves out, the source may stand for. Direction and limits are the estimator's. Its standard error
    takes rows for independent, which those of a series are not; a note says so.

    Raises:
      ValueError: what `embed_past` and the estimator raise.
    """
    estimate = estimator(*embed_past(source, target, given, lags=lags))
    method = f"transfer entropy, {lags} {'lag' if lags == 1 else 'lags'}: {estimate.method}"
    return dataclasses.replace(estimate, method=method, notes=(*estimate.notes, SERIAL))


def _check_series(name: str, series: Array | np.ndarray) -> np.ndarray:
    """(T, d), of the type that it has: an estimator of labels asks for whole numbers."""
    values = np.asarray(series)
    if values.ndim not in (1, 2) or not values.size:
        raise ValueError(f"{name} has shape {values.shape}, expected a series (T,) or (T, d)")
    if np.ma.is_masked(series):
        raise ValueError(f"{name} has masked values, expected none: a series has no steps left out")
    check_real(**{name: values})
    check_finite(**{name: values})
    return values.reshape(len(values), -1)


def _check_matrix(name: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    check_real(**{name: value})
    matrix = np.asarray(value, np.float64)
    if matrix.shape != shape or 0 in shape:
        raise ValueError(f"{name} has shape {matrix.shape}, expected {shape}, with at least one row and column")
    check_finite(**{name: matrix})
    return matrix


def _check_system(A: ArrayLike, C: ArrayLike, process_cov: ArrayLike, observation_cov: ArrayLike) -> _System:
    n, p = np.shape(A)[:1] or (0,), np.shape(C)[:1] or (0,)
    A, C = _check_matrix("A", A, (*n, *n)), _check_matrix("C", C, (*p, *n))
    Q = _check_matrix("process_cov", process_cov, (*n, *n))
    R = _check_matrix("observation_cov", observation_cov, (*p, *p))
    check_covariance("process_cov", Q)
    check_covariance("observation_cov", R)
    if not (radius := float(np.abs(np.linalg.eigvals(A)).max())) < 1:
        raise ValueError(
            f"the transition has spectral radius {radius:.6g}, expected under 1: there is no stationary law; "
            "difference the process, or scale it down"
        )
    return _System(A, C, Q, R, np.zeros((*n, *p)))


def _of_lags(system: _System, groups: dict[str, list[int]], lags: int) -> float:
    A, C, Q, R, _ = system
    p, lagged = len(C), [solve_lyapunov(A, Q)]
    while len(lagged) <= lags:
        lagged.append(A @ lagged[-1])
    lagged = [C @ value @ C.T + (0 if back else R) for back, value in enumerate(lagged)]
    _check_slowness(np.diagonal(C @ Q @ C.T + R) / np.maximum(np.diagonal(lagged[0]), np.finfo(float).tiny), groups)
    # newest first: block (i, j) is the covariance of y_{t-i} and y_{t-j}
    rows = [[lagged[j - i] if j >= i else lagged[i - j].T for j in range(lags + 1)] for i in range(lags + 1)]
    past = {name: [p * back + row for back in range(1, lags + 1) for row in group] for name, group in groups.items()}
    return of_covariance(np.block(rows), past["source"], groups["target"], [*past["target"], *past["given"]])


def _check_slowness(news: np.ndarray, groups: dict[str, list[int]]) -> None:
    """What is new of the outputs in each step, a share of their variance, is far above rounding, or nothing at all."""
    seen = [row for group in groups.values() for row in group]
    if slow := [row for row in seen if 0 < news[row] < SLOWEST]:
        raise ValueError(
            f"output {slow[0]} is so slow that {news[slow[0]]:.2g} of its variance is new in a step, expected at least "
            f"{SLOWEST:g}: float64 does not determine what its last steps leave open; use lags=None, or differences"
        )


def _predict(system: _System) -> _System:
    """The same outputs of the state a step before, y_t = C A h_{t-1} + (C w_t + v_t): what is observed without noise
    has noise here.
    """
    A, C, Q, R, _ = system
    return _System(A, C @ A, Q, C @ Q @ C.T + R, Q @ C.T)


def _scale(system: _System) -> _System:
    """Outputs in units of their noise, which transfer entropy does not notice."""
    power = np.diagonal(system.R)
    scale = np.where(power > 0, power, 1) ** -0.5
    return system._replace(
        C=scale[:, None] * system.C, R=scale[:, None] * system.R * scale[None], S=system.S * scale[None]
    )


def _prediction_errors(system: _System) -> np.ndarray:
    """C P C' + R of the stationary filter, refined by its own steps, which contract."""
    A, C, Q, R, S = system
    if np.linalg.eigvalsh(R)[0] <= len(R) * np.finfo(float).eps:
        raise ValueError(
            "the outputs' innovations C Q C' + R are singular: one of source, target and given follows from the others "
            "or from the past without noise; add observation noise, or leave it out"
        )
    try:
        P = solve_discrete_are(A.T, C.T, Q, R, s=S)
    except (np.linalg.LinAlgError, ValueError):
        P = solve_lyapunov(A, Q)  # of no observations: a start from which the filter's own steps settle, if slowly
    for _ in range(STEPS):
        V, mixed = C @ P @ C.T + R, A @ P @ C.T + S
        after = A @ P @ A.T + Q - mixed @ np.linalg.solve(V, mixed.T)
        sizes = np.sqrt(np.diagonal(V))
        change = np.abs(C @ (after - P) @ C.T / sizes[:, None] / sizes[None]).max()
        radius = np.abs(np.linalg.eigvals(A - np.linalg.solve(V, mixed.T).T @ C)).max()
        P = (after + after.T) / 2
        # what is left, and each rounding, changes by radius^2 of that at each further step
        if change + np.finfo(float).eps <= SETTLED * (1 - radius**2):
            return C @ P @ C.T + R
    raise ValueError(
        f"prediction errors are not known to {SETTLED:g} after {STEPS} steps of the filter, which contracts by "
        f"{radius:.9g}: the outputs that are seen have a zero at the unit circle (a series differenced too often?); "
        "use lags="
    )
