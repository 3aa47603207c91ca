"""What the measures of this folder ask of their arguments, before work starts.

Shapes and types are always checked; values where they are there to be looked at, outside of `jax.jit`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

Samples = Num[Array | np.ndarray, "N"] | Num[Array | np.ndarray, "N _"]
"""What public functions take: rows are samples, columns components; one component may go without the second axis."""
ROUNDINGS = 1e3  # units of rounding that a covariance may be away from one


def floating(**given: Array | float) -> list[Array]:
    """All of one real floating type, float32 or wider; Python's own numbers follow the others."""
    arrays = {name: jnp.asarray(value) for name, value in given.items()}
    for name, value in arrays.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            fix = "give complex poles and states as pairs of reals" if jnp.iscomplexobj(value) else "convert it with .astype(jnp.float32)"
            raise ValueError(f"{name} has dtype {value.dtype}, expected real numbers: {fix}")
    # of types, not of arrays: jnp.full's weak float64 would yield to float32
    dtype = jnp.result_type(jnp.float32, *(value.dtype for name, value in arrays.items() if not isinstance(given[name], float)))
    return [value.astype(dtype) for value in arrays.values()]


def check_shape(name: str, value: Array, shapes: list[tuple[int, ...]], origin: str) -> None:
    """The shape is one of those that `origin` asks for."""
    if value.shape not in shapes:
        raise ValueError(f"{name} has shape {value.shape}, expected {' or '.join(map(str, shapes))} from {origin}; repeat a constant with jnp.broadcast_to")


def check_finite(**arrays: Array | np.ndarray) -> None:
    """Neither inf nor nan."""
    for name, value in arrays.items():
        if not isinstance(value, jax.core.Tracer) and not np.isfinite(value).all():
            raise ValueError(f"{name} holds {np.asarray(value)[~np.isfinite(value)][0]}, expected finite numbers: is anything unstable?")


def check_real(**arrays: Array | np.ndarray | float) -> None:
    """Numbers, and none of them complex: an imaginary part would be dropped, or carried into a result that has no meaning."""
    for name, value in arrays.items():
        dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
        if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            fix = "give complex numbers as pairs of reals" if jnp.issubdtype(dtype, jnp.complexfloating) else "convert it with .astype(float)"
            raise ValueError(f"{name} has dtype {dtype}, expected real numbers: {fix}")


def check_whole(least: int, **numbers: Any) -> None:
    """Whole numbers from `least`: 2.5 steps, or nan of them, are a mistake that slicing and shapes would tell of in their own words."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}={value!r}, expected at least {least}, a whole number")


def check_distribution(name: str, p: Array | np.ndarray) -> None:
    """Probabilities over the last axis, or over all axes of a joint law given flat: finite, from 0, of sum 1 up to rounding."""
    check_real(**{name: p})
    if not p.size:
        raise ValueError(f"{name} has shape {p.shape}, expected at least one probability")
    if isinstance(p, jax.core.Tracer):
        return
    rounding = ROUNDINGS * float(jnp.finfo(jnp.promote_types(p.dtype, jnp.float32)).eps)
    values = np.asarray(p, np.float64)
    sums = values.sum(-1)
    if not (np.isfinite(values) & (values >= 0)).all() or (np.abs(sums - 1) > rounding).any():
        worst = sums.flat[np.argmax(np.where(np.isfinite(sums), np.abs(sums - 1), np.inf))]
        raise ValueError(f"{name} has least entry {values.min():.6g} and sum {worst:.6g}, expected probabilities that sum to 1: use {name} / {name}.sum()")


def check_covariance(name: str, matrix: Array, *, fix: str = "use F @ F.mT of a root F") -> None:
    """Finite, symmetric and positive semidefinite, (..., n, n), up to rounding once every component is scaled to unit variance."""
    if isinstance(matrix, jax.core.Tracer):
        return
    check_finite(**{name: matrix})
    rounding = ROUNDINGS * float(jnp.finfo(matrix.dtype).eps)
    matrix = np.asarray(matrix, np.float64)
    power = np.diagonal(matrix, axis1=-2, axis2=-1)
    if (power < 0).any():
        raise ValueError(f"{name} has {power.min()} on its diagonal, expected variances from 0")
    scale = np.where(power > 0, power, 1) ** -0.5
    matrix = matrix * scale[..., :, None] * scale[..., None, :]
    if (np.abs(matrix - np.swapaxes(matrix, -1, -2)) > rounding).any():
        raise ValueError(f"{name} is not symmetric, expected a covariance: use (C + C.mT) / 2 if that is what is meant")
    if (least := _least_eigenvalue(matrix, rounding)) < -rounding:
        raise ValueError(f"{name} is no covariance: scaled to a unit diagonal it has the eigenvalue {least:.3g}, expected from 0; {fix}")


def _least_eigenvalue(matrix: np.ndarray, rounding: float) -> float:
    """0 where a factorisation, which is cheaper, shows that there is none below -rounding."""
    try:
        np.linalg.cholesky(matrix + rounding * np.eye(matrix.shape[-1]))
    except np.linalg.LinAlgError:
        return float(np.linalg.eigvalsh(matrix).min())
    return 0.0


def columns(name: str, samples: Array | np.ndarray) -> np.ndarray:
    """Samples as float64 (N, d)."""
    value = np.asarray(samples)
    if value.ndim not in (1, 2) or not value.size or value.dtype.kind not in "biuf":
        raise ValueError(f"{name} has shape {value.shape} and dtype {value.dtype}, expected real numbers (N,) or (N, d)")
    if not np.isfinite(value).all():
        raise ValueError(f"{name} holds {value[~np.isfinite(value)][0]}, expected finite numbers; leave such rows out of all samples")
    return value.reshape(len(value), -1).astype(np.float64)


def pairs(x: Array | np.ndarray, y: Array | np.ndarray, *, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of as many samples, at least so many, as `columns`."""
    x, y = columns("x", x), columns("y", y)
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} rows and y has {len(y)}: expected pairs, row by row")
    if len(x) < least:
        raise ValueError(f"{len(x)} samples, expected at least {least}")
    return x, y
