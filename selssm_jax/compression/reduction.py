"""Smaller time-invariant systems: balanced truncation, merging of equal poles, and the diagonal form that layers carry
(theory, section 10).

h_t = A h_{t-1} + B x_t, y_t = C h_t, with the transfer function G(z) = C (I - A / z)^{-1} B. What a reduction costs is
bounded over all inputs: the energy of y - y_k is at most `error_bound`^2 times that of x.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Inexact

from selssm_jax.compression.hankel import Hankel, Matrix, as_system, gramians, root

RANK = 1e-8  # of sigma_1: what is below is rounding
MODAL = 1e-6  # relative residual of an eigendecomposition that is accepted


class System(NamedTuple):
    """A (n, n), or (n,) where it is diagonal; B (n, m); C (p, n)."""

    A: Inexact[np.ndarray, "n ..."]
    B: Inexact[np.ndarray, "n m"]
    C: Inexact[np.ndarray, "p n"]


class Reduced(NamedTuple):
    """A smaller system, and a bound on the largest gain of the difference over all frequencies."""

    system: System
    error_bound: float


def balanced_truncation(A: Matrix, B: Matrix, C: Matrix, components: int) -> Reduced:
    """Returns the system of so many components that keeps the directions of the largest Hankel singular values: |G -
    G_k| <= 2 sum_{i>k} sigma_i.

    With P = R R*, Q = L L* and L* R = U S V*: A_k = W* A T, B_k = W* B, C_k = C T for T = R V_k S_k^{-1/2} and W = L
    U_k S_k^{-1/2}, the first k coordinates of those in which both Gramians are S. The smaller system is stable, and
    real if the whole one is; its A is dense: see `diagonalise`.

    Args:
      A, B, C: as for `hankel.gramians`. components: k, from 1 to the number of singular values that are not rounding.

    Raises:
      ValueError: for what `gramians` refuses, another number of components, and one that parts equal singular values so
        that what is left is not stable.

    Source: Moore 1981; the square-root form of Tombs and Postlethwaite 1987; the bound in discrete time, Al-Saggaf and
    Franklin 1987.
    """
    A, B, C = as_system(A, B, C)
    past, future = (root(gramian) for gramian in gramians(A, B, C))
    left, values, right = np.linalg.svd(future.conj().T @ past)
    most = int((values > RANK * values.max(initial=0)).sum())
    if not 1 <= components <= most:
        raise ValueError(
            f"components={components}: use from 1 to {most}, for {most} of {len(values)} directions carry anything "
            "from the past to the future"
        )
    scale = values[:components] ** -0.5
    T, W = past @ right[:components].conj().T * scale, future @ left[:, :components] * scale
    moved = A[:, None] * T if A.ndim == 1 else A @ T
    small = System(W.conj().T @ moved, W.conj().T @ B, C @ T)
    if not np.abs(np.linalg.eigvals(small.A)).max() < 1:
        raise ValueError(
            f"components={components} parts equal singular values, and what is left is not stable: take one more or "
            "one fewer"
        )
    return Reduced(small, 2 * float(values[components:].sum()))


def smallest_within(hankel: Hankel, error: float) -> int:
    """Returns the fewest components whose balanced truncation is certain to lose no more than `error`. Raises
    ValueError for a negative error.
    """
    if not error >= 0:
        raise ValueError(f"error={error}, expected a number from 0: it is compared with the bound of a truncation")
    return max(1, int(np.argmax(hankel.error_bound <= error)))


def merge_equal_poles(a: Matrix, B: Matrix, C: Matrix, *, tolerance: float = 0.0) -> Reduced:
    """Returns the diagonal system in which components whose poles differ by at most `tolerance` have become as few as
    can do their work.

    Components j of one pole act together as M = sum_j C_j B_j', (p, m): as many components are left as M has ranks,
    exactly the same system. Poles that differ are first moved to their mean, weighted by |C_j| |B_j|, which changes G
    by at most |C_j| |B_j| |a_j - a| / ((1 - |a_j|) (1 - |a|)) each.

    Args:
      a: (n,), poles inside the unit circle; B: (n, m); C: (p, n). tolerance: 0 merges equal poles alone.

    Raises:
      ValueError: for shapes that do not fit, numbers that are not finite, a dense A, poles that are not stable, a
        negative tolerance.
    """
    a, B, C = as_system(a, B, C)
    if a.ndim != 1 or not (np.abs(a) < 1).all() or not tolerance >= 0:
        raise ValueError(
            f"A {a.shape} and tolerance={tolerance}: expected poles (n,), all inside the unit circle (see "
            "`diagonalise`), and a tolerance from 0"
        )
    weight = np.linalg.norm(B, axis=1) * np.linalg.norm(C, axis=0)
    parts, bound = [], 0.0
    for group in _groups(a, weight, tolerance):
        share = weight[group] if weight[group].any() else np.ones(len(group))
        # equal poles stay what they are to the last bit
        pole = (share * (a[group] - a[group[0]])).sum() / share.sum() + a[group[0]]
        bound += float((weight[group] * np.abs(a[group] - pole) / ((1 - np.abs(a[group])) * (1 - np.abs(pole)))).sum())
        left, values, right = np.linalg.svd(C[:, group] @ B[group], full_matrices=False)
        rank = int((values > max(C.shape[0], B.shape[1]) * np.finfo(float).eps * values.max(initial=0)).sum())
        if rank >= len(group):
            parts.append((np.full(len(group), pole), B[group], C[:, group]))
        else:
            scale = np.sqrt(values[:rank])
            parts.append((np.full(rank, pole), scale[:, None] * right[:rank], left[:, :rank] * scale))
    poles, inward, outward = zip(*parts, strict=True)
    return Reduced(System(np.concatenate(poles), np.concatenate(inward), np.concatenate(outward, axis=1)), bound)


def _groups(a: np.ndarray, weight: np.ndarray, tolerance: float) -> list[np.ndarray]:
    """Components by the pole that they go to: the heaviest that is near enough and has gone to no other."""
    leaders: list[int] = []
    members: dict[int, list[int]] = {}
    for index in np.argsort(-weight, kind="stable").tolist():
        near = [leader for leader in leaders if abs(a[index] - a[leader]) <= tolerance]
        if not near:
            leaders.append(index)
        members.setdefault(min(near, key=lambda leader: abs(a[index] - a[leader])) if near else index, []).append(index)
    return [np.sort(members[leader]) for leader in sorted(leaders)]


def diagonalise(A: Matrix, B: Matrix, C: Matrix) -> System:
    """Returns the same system in its eigenvectors, A = V diag(a) V^{-1}: poles (n,), V^{-1} B and C V, complex; a real
    system's come in conjugate pairs.

    Raises ValueError for what is no system, and where the eigenvectors are so nearly dependent that V diag(a) V^{-1} is
    not A.
    """
    A, B, C = as_system(A, B, C)
    if A.ndim == 1:
        return System(A.astype(complex), B.astype(complex), C.astype(complex))
    poles, vectors = (part.astype(complex) for part in np.linalg.eig(A))
    try:
        inward = np.linalg.solve(vectors, B.astype(complex))
        residual = np.abs(vectors * poles - A @ vectors).max(initial=0) + np.abs(vectors @ inward - B).max(
            initial=0
        ) / (np.abs(B).max(initial=0) or 1)
        conditioned = np.linalg.cond(vectors) * np.finfo(float).eps
    except np.linalg.LinAlgError:
        residual = conditioned = np.inf
    if not max(residual, conditioned) <= MODAL:
        raise ValueError(
            "A has no basis of eigenvectors in float64: merge or move poles that are nearly equal, or keep the dense "
            "form"
        )
    return System(poles, inward, C @ vectors)


def gain(system: System, frequencies: np.ndarray) -> np.ndarray:
    """Returns |G(e^{i w})|_2, the gain of the system at every frequency w of radians a step."""
    A, B, C = system
    A = np.diag(A) if A.ndim == 1 else A
    inverse = np.eye(len(A)) - np.exp(-1j * frequencies)[:, None, None] * A
    return np.linalg.norm(
        C @ np.linalg.solve(inverse, np.broadcast_to(B, (len(frequencies), *B.shape))), 2, axis=(1, 2)
    )
