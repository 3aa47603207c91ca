"""Conditional mutual information I(X; Y | Z): exact of Gaussian laws, and estimates from samples (theory, section 8).

`ksg`, `mixed`, `gaussian` and `discrete` take samples x (N, dx), y (N, dy) and z (N, dz), or (N,) for one column, rows
paired, and return an `Estimate` in nats. None is a bound. A difference of two bounds, I(X; Y, Z) - I(X; Z), would be
none either: there is no `hybrid` here.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, Int

from selssm_jax.information._estimate import Estimate
from selssm_jax.information.canonical import conditional as gaussian
from selssm_jax.information.channel import FLOOR
from selssm_jax.information.checks import check_covariance, check_real, choose_rows, columns
from selssm_jax.information.discrete import Correction, conditional_information, count
from selssm_jax.information.neighbours import conditional as ksg
from selssm_jax.information.neighbours import conditional_mixed as mixed

__all__ = ["discrete", "gaussian", "ksg", "mixed", "of_covariance"]

Labels = Int[Array | np.ndarray, "N"] | Int[Array | np.ndarray, "N _"]
Covariance = Float[Array | np.ndarray, "n n"]
SAME = 1e-12  # 1 - rho^2 under which a direction of X and one of Y count as the same


def of_covariance(cov: Covariance, x: Sequence[int], y: Sequence[int], z: Sequence[int] = ()) -> float:
    """I(X; Y | Z) of a Gaussian law by its covariance, in nats: -1/2 sum log(1 - rho_i^2) over the canonical
    correlations of X and Y given Z.

    Exact, in NumPy's float64, from the covariance C_ww - C_wz C_zz^- C_zw of W = (X, Y) given Z. inf where X and Y
    share a direction that has no noise given Z; directions that Z determines, up to rounding (`channel.FLOOR`), say
    nothing. What Z leaves of a direction, a share r of its variance, is known to a relative 1e-16 / r. Without z:
    I(X; Y).

    Args:
      cov: covariance of all components, in any units. x, y, z: which of its rows X, Y and Z are; none is in two.

    Raises:
      ValueError: for a cov that is no covariance, and rows that are none, are there twice, or none at all of x or y.
    """
    cov = _check_square(cov)
    rows = choose_rows(len(cov), {"x": x, "y": y, "z": z}, optional="z")
    power = np.diagonal(cov)
    scale = np.where(power > 0, power, 1) ** -0.5
    cov = cov * scale[:, None] * scale[None]
    both = [*rows["x"], *rows["y"]]
    given = _whiten(cov[np.ix_(rows["z"], rows["z"])])
    known = cov[np.ix_(both, rows["z"])] @ given
    left, n = cov[np.ix_(both, both)] - known @ known.T, len(rows["x"])
    roots = _whiten(left[:n, :n]), _whiten(left[n:, n:])
    square = np.linalg.svd(roots[0].T @ left[:n, n:] @ roots[1], compute_uv=False) ** 2
    if (square > 1 - SAME).any():
        return float("inf")
    return float(-0.5 * np.log1p(-square).sum())


def discrete(x: Labels, y: Labels, z: Labels, *, correction: Correction = "miller-madow") -> Estimate:
    """I(x; y | z) of labels, any integers; the columns of each together are one label. See
    `discrete.conditional_information`.

    Raises:
      ValueError: for labels that are no integers or not paired, and more cells than `discrete.count` makes.
    """
    return conditional_information(
        count(*(_join(name, labels) for name, labels in (("x", x), ("y", y), ("z", z)))), correction=correction
    )


def _join(name: str, labels: Array | np.ndarray) -> np.ndarray:
    """One label a row, from 0."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu":
        raise ValueError(
            f"{name} has dtype {labels.dtype}, expected labels, integers: number them first, for example by "
            "np.unique(..., return_inverse=True), or use ksg for numbers"
        )
    return np.unique(columns(name, labels), axis=0, return_inverse=True)[1].ravel()


def _check_square(cov: Array | np.ndarray) -> np.ndarray:
    check_real(cov=cov)
    cov = np.asarray(cov)
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1] or not cov.size or cov.dtype.kind not in "fiu":
        raise ValueError(f"cov has shape {cov.shape} and dtype {cov.dtype}, expected real numbers (n, n) with n >= 1")
    cov = cov.astype(np.promote_types(cov.dtype, np.float32))  # to its own rounding
    check_covariance("cov", cov)
    return cov.astype(np.float64)


def _whiten(cov: np.ndarray) -> np.ndarray:
    """W (n, r) with W' cov W = I on the directions of which more than rounding is left, of components that had unit
    variance.
    """
    sizes, vectors = np.linalg.eigh(cov)
    usable = sizes > FLOOR * np.finfo(float).eps * len(cov)
    return vectors[:, usable] * sizes[usable] ** -0.5
