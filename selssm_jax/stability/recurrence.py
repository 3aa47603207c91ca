"""The class of recurrences that a certificate is about: its constants, checked, in float64."""

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np

from selssm_jax.ops.gating import pull, row_sums
from selssm_jax.stability.contraction import Growth, fixed_bound, gated_growth, perron_root
from selssm_jax.stability.laws import GateLaw, Law, read_law
from selssm_jax.stability.lipschitz import operator_norm

UPDATES = ("retain", "effective")


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """Gated updates of a transition A by gates in [low, high]; see `certify_recurrence` for the arguments.

    Attributes:
      lipschitz: a number, (n,) or (n, n). drive: (n,), inf where unbounded.
      rivalry: (share, reads) of gates that share a step (`layers.bounds.Rivalry`); None where they do not.
    """

    A: np.ndarray
    low: np.ndarray
    high: np.ndarray
    lipschitz: np.ndarray
    drive: np.ndarray
    law: Law | None
    noise: np.ndarray | None
    update: str
    rivalry: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def reads_state(self) -> bool:
        """Whether gates may change with the state."""
        return self.largest_lipschitz > 0

    @cached_property
    def growth(self) -> Growth:
        """How differences grow under gates that do not read the state."""
        return gated_growth(self.A, self.low, self.high, self.update)

    @cached_property
    def spectral_radius(self) -> float:
        """rho(|A|), from above."""
        size = np.abs(self.A)
        return perron_root(Growth(size, size))

    @cached_property
    def invariant_radius(self) -> np.ndarray | None:
        """M with |h_i| <= M_i for ever once it holds: |A| M + U <= M ("retain"), g_max (|A| M + U) <= M ("effective");
        None if there is none.
        """
        if not np.isfinite(self.drive).all():
            return None
        scale = np.ones(len(self.A)) if self.update == "retain" else self.high
        size = np.abs(self.A) * (scale if self.A.ndim == 1 else scale[:, None])
        return fixed_bound(size, scale * self.drive)

    def state_dependent_growth(self, radius: np.ndarray, share: float = 1.0) -> Growth:
        """How differences grow on the box |h_i| <= radius_i under gates that read the state, by `share` of what they
        may.
        """
        force = share * pull(self.A, radius, self.drive, self.update)
        if self.lipschitz.ndim == 0:
            return dataclasses.replace(self.growth, reach=(force * self.lipschitz, np.eye(len(force))))
        coupling = force * self.lipschitz if self.lipschitz.ndim == 1 else force[:, None] * self.lipschitz
        reach = None if self.rivalry is None else (force * self.rivalry[0], self.rivalry[1])
        return dataclasses.replace(self.growth, coupling=coupling, reach=reach)

    def constants(self) -> dict[str, float]:
        """Returns the numbers behind the verdicts."""
        return {
            "components": float(len(self.A)),
            "gate_min": float(self.low.min()),
            "gate_max": float(self.high.max()),
            "rho(|A|)": self.spectral_radius,
            "|A|_2": operator_norm(self.A, norm="euclidean"),
            "L_G": self.largest_lipschitz,
            "drive_bound": float(self.drive.max()),
        }

    @property
    def largest_lipschitz(self) -> float:
        """L_G in the maximum norm."""
        if self.rivalry is None:
            return float(self.lipschitz) if self.lipschitz.ndim == 0 else operator_norm(self.lipschitz)
        share, reads = self.rivalry
        return float((row_sums(self.lipschitz) + share * row_sums(reads).max()).max())


def read(
    A: Any,
    gate_min: Any,
    gate_max: Any,
    gate_lipschitz: Any,
    drive_bound: Any,
    gate_law: GateLaw | None,
    noise_cov: Any,
    update: str,
) -> Recurrence:
    """Returns the class of recurrences; raises ValueError, naming the argument, for what cannot be one."""
    A = _transition(A)
    n = len(A)
    if update not in UPDATES:
        raise ValueError(f"update={update!r} is unknown: use one of {', '.join(UPDATES)}")
    low, high = _bound("gate_min", gate_min, n), _bound("gate_max", gate_max, n)
    if (low > high).any() or (high > 1).any():
        raise ValueError(
            f"gates in [{low.min():.4g}, {high.max():.4g}] are none: expected 0 <= gate_min <= gate_max <= 1"
        )
    lipschitz = np.asarray(gate_lipschitz, np.float64)
    if lipschitz.shape not in ((), (n,), (n, n)) or not (lipschitz >= 0).all():
        raise ValueError(
            f"gate_lipschitz has shape {lipschitz.shape} and smallest value {lipschitz.min()}, expected numbers from "
            f"0: one, ({n},) or ({n}, {n})"
        )
    if lipschitz.any() and gate_law is not None:
        raise ValueError(
            "gate_law is of gates that do not read the state, but gate_lipschitz is not 0: leave one of them out"
        )
    drive = _bound("drive_bound", np.inf if drive_bound is None else drive_bound, n)
    law = None if gate_law is None else read_law(gate_law, A, low, high, update)
    return Recurrence(A, low, high, lipschitz, drive, law, _noise(noise_cov, n), update)


def _transition(given: Any) -> np.ndarray:
    A = np.asarray(given)
    A = A.astype(np.complex128 if np.iscomplexobj(A) else np.float64)
    if A.ndim not in (1, 2) or not A.size or A.shape[0] != A.shape[-1]:
        raise ValueError(f"A has shape {A.shape}, expected (n,) for a diagonal or (n, n) for a dense transition")
    if A.ndim == 2 and np.iscomplexobj(A):
        raise ValueError(
            "A is dense and complex: gates act on real components; give it as a real matrix of twice the size, or its "
            "poles as (n,)"
        )
    if not np.isfinite(A).all():
        raise ValueError(f"A holds {A[~np.isfinite(A)][0]}, expected finite numbers")
    return A


def _bound(name: str, given: Any, n: int) -> np.ndarray:
    value = np.asarray(given, np.float64)
    if value.shape not in ((), (n,)) or not (value >= 0).all():
        raise ValueError(
            f"{name} has shape {value.shape} and smallest value {value.min()}, expected numbers from 0: one, or one of "
            f"each of the {n} components"
        )
    return np.broadcast_to(value, (n,)).copy()


def _noise(given: Any, n: int) -> np.ndarray | None:
    if given is None:
        return None
    noise = np.asarray(given, np.float64)
    if (
        noise.shape != (n, n)
        or not np.allclose(noise, noise.T)
        or np.linalg.eigvalsh(noise).min() < -1e-9 * max(1.0, np.abs(noise).max())
    ):
        raise ValueError(
            f"noise_cov of shape {noise.shape} is no covariance of {n} components: expected a symmetric positive "
            f"semidefinite ({n}, {n})"
        )
    return noise
