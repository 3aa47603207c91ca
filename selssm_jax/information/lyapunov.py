"""The discrete Lyapunov equation in float64, solved and proved: what a stable linear recurrence accumulates."""

import numpy as np
from jaxtyping import Inexact
from scipy.linalg import solve_discrete_lyapunov

ACCURACY = 1e-6  # relative error of a solution that is proved, or the solution is refused
REFINEMENTS = 3  # of a solution by the solution of its residual


def solve_lyapunov(A: Inexact[np.ndarray, "n n"], Q: Inexact[np.ndarray, "n n"]) -> Inexact[np.ndarray, "n n"]:
    """Returns X with A X A* - X + Q = 0, X = sum_k A^k Q A*^k, for a stable A and a Hermitian Q, refined, and proved
    right by its residual.

    With E = A E A* + I, a residual R of X leaves an error of at most |R| |E| in the spectral norm; that E itself is
    right, and A stable, follows from E > 0 and a residual of E below 1 (Lyapunov). SciPy's solver alone is wrong for
    real A and complex Q (scipy#26177), and loses digits near a pole of -1.

    Raises:
      ValueError: where the error cannot be shown to be below `ACCURACY` of |X|.
    """
    kind = np.result_type(A, Q, np.float64)
    A, Q, identity = A.astype(kind), Q.astype(kind), np.eye(len(A), dtype=kind)
    (X, left), (E, error) = (_refine(A, right) for right in (Q, identity))
    stable = error < 0.5 and np.linalg.eigvalsh(E).min(initial=1) > 0
    size = float(np.linalg.norm(X, 2)) if X.size else 0.0
    check_accuracy(
        left * float(np.linalg.norm(E, 2)) / (1 - error) / size if stable and size else (0.0 if stable else np.inf)
    )
    return X


def check_accuracy(relative: float) -> None:
    """Raises ValueError for a relative error above `ACCURACY`."""
    if not relative <= ACCURACY:
        raise ValueError(
            f"sum_k A^k Q A*^k is known to a relative error of {relative:.2g} only, expected at most {ACCURACY:g}: A "
            "is too near to an unstable matrix, or too far from a normal one, for float64; scale the state's "
            "components alike, or move the poles inwards"
        )


def _refine(A: np.ndarray, Q: np.ndarray) -> tuple[np.ndarray, float]:
    """(the Hermitian solution, the spectral norm of its residual)."""
    X = solve_discrete_lyapunov(A, Q)
    best, least = X, np.inf
    for _ in range(REFINEMENTS):
        X = (X + X.conj().T) / 2
        residual = A @ X @ A.conj().T - X + Q
        if not np.isfinite(residual).all() or not (size := float(np.linalg.norm(residual, 2))) < least:
            break
        best, least = X, size
        X = X + solve_discrete_lyapunov(A, residual)
    return best, least
