"""Hankel singular values: how much each direction of a time-invariant system's state carries from past to future
(theory, section 10).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Inexact

from selssm_jax.information.lyapunov import check_accuracy, solve_lyapunov

Matrix = Inexact[Array | np.ndarray, "..."]


class Hankel(NamedTuple):
    """Of a stable system of n components: singular values in falling order, and what truncation to k = 0..n of them
    costs at most.

    error_bound[k] = 2 sum_{i>k} sigma_i bounds the largest gain of G - G_k over all frequencies, G_k the balanced
    truncation to k.
    """

    values: Float[np.ndarray, "n"]
    error_bound: Float[np.ndarray, "n+1"]


class Gramians(NamedTuple):
    """P = sum_k A^k B B* A*^k, what the past can have put into the state, and Q = sum_k A*^k C* C A^k, what the future
    will read of it.
    """

    past: Inexact[np.ndarray, "n n"]
    future: Inexact[np.ndarray, "n n"]


def gramians(A: Matrix, B: Matrix, C: Matrix) -> Gramians:
    """Returns the Gramians of h_t = A h_{t-1} + B x_t, y_t = C h_t, in float64: A P A* + B B* = P, A* Q A + C* C = Q.

    Every solution is checked: see `information.lyapunov`.

    Args:
      A: (n, n), or (n,), its diagonal; real or complex. B: (n, m). C: (p, n).

    Raises:
      ValueError: for shapes that do not fit, for numbers that are not finite, for an A that is not stable, as the sums
        have no limit then, and for one so near to that, or so far from normal, that float64 does not determine its
        Gramians.
    """
    A, B, C = as_system(A, B, C)
    poles = A if A.ndim == 1 else np.linalg.eigvals(A)
    if not abs(poles).max(initial=0) < 1:
        raise ValueError(
            f"A has a pole of modulus {abs(poles).max():g}, expected all below 1: an unstable system has no Gramians"
        )
    past, future = B @ B.conj().T, C.conj().T @ C
    if A.ndim == 2:
        return Gramians(solve_lyapunov(A, past), solve_lyapunov(A.conj().T, future))
    turns = 1 - A[:, None] * A.conj()[None]
    check_accuracy(4 * np.finfo(float).eps / abs(turns).min(initial=1))
    return Gramians(past / turns, future / turns.conj())


def as_system(A: Matrix, B: Matrix, C: Matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the three in one dtype, float64 or complex128. Raises ValueError for shapes that do not fit and numbers
    that are not finite.
    """
    A, B, C = (np.asarray(value) for value in (A, B, C))
    if A.ndim not in (1, 2) or B.ndim != 2 or C.ndim != 2 or A.shape != (len(B),) * A.ndim or C.shape[1] != len(B):
        raise ValueError(
            f"A {A.shape}, B {B.shape} and C {C.shape} are no system: expected (n,) or (n, n), (n, m) and (p, n)"
        )
    kind = np.result_type(A, B, C, np.float64)
    A, B, C = (value.astype(kind) for value in (A, B, C))
    for name, value in (("A", A), ("B", B), ("C", C)):
        if not np.isfinite(value).all():
            raise ValueError(f"{name} holds numbers that are not finite: expected a system that can be run")
    return A, B, C


def hankel_singular_values(A: Matrix, B: Matrix, C: Matrix) -> Hankel:
    """sigma_i = sqrt(lambda_i(P Q)): the singular values of the map from all past inputs to all future outputs, h
    between them.

    Invariant under any change of the state's coordinates; sigma_1 <= largest gain over frequencies <= 2 sum_i sigma_i.
    They are those of the Hankel matrix with blocks C A^{i+j} B, i, j >= 0, which counts the present input and output
    in. Values below about 1e-8 sigma_1 are rounding. Arguments and errors: see `gramians`.

    Source: Glover 1984; Al-Saggaf and Franklin 1987 for the bound in discrete time.
    """
    past, future = gramians(A, B, C)
    values = np.linalg.svd(root(future).conj().T @ root(past), compute_uv=False)
    return Hankel(values, 2 * np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]]))


def root(gramian: Inexact[np.ndarray, "n n"]) -> Inexact[np.ndarray, "n n"]:
    """Returns R with R R* the Gramian; eigenvalues that rounding made negative are 0."""
    values, vectors = np.linalg.eigh((gramian + gramian.conj().T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0))
