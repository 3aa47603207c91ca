"""What the measures of this folder ask of their arguments, before work starts.

Shapes and types are always checked; values where they are there to be looked at, outside of `jax.jit`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Num
from scipy.special import ndtri
from scipy.stats import rankdata

Samples = Num[Array | np.ndarray, "N"] | Num[Array | np.ndarray, "N _"]
"""What public functions take: rows are samples, columns components; one component may go without the second axis."""
ROUNDINGS = 1e3  # units of rounding that a covariance may be away from one
WHOLE = 2**53  # up to which float64 tells all whole numbers apart
QUARTERS = 1.349  # standard deviations between the quartiles of a normal law
ROUGH = 1e-3  # standard deviations that rounding may take
OUTLYING = 1e3  # standard deviations in `spread`s above which outliers, and little else, make them
TAIL = 1e6  # spreads, from which on only the order of magnitude of an outlier is kept near


def floating(**given: Array | float) -> list[Array]:
    """All of one real floating type, float32 or wider; Python's own numbers follow the others."""
    arrays = {name: jnp.asarray(value) for name, value in given.items()}
    for name, value in arrays.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            fix = (
                "give complex poles and states as pairs of reals"
                if jnp.iscomplexobj(value)
                else "convert it with .astype(jnp.float32)"
            )
            raise ValueError(f"{name} has dtype {value.dtype}, expected real numbers: {fix}")
    # of types, not of arrays: jnp.full's weak float64 would yield to float32
    dtype = jnp.result_type(
        jnp.float32, *(value.dtype for name, value in arrays.items() if not isinstance(given[name], float))
    )
    return [value.astype(dtype) for value in arrays.values()]


def check_shape(name: str, value: Array, shapes: list[tuple[int, ...]], origin: str) -> None:
    """The shape is one of those that `origin` asks for."""
    if value.shape not in shapes:
        raise ValueError(
            f"{name} has shape {value.shape}, expected {' or '.join(map(str, shapes))} from {origin}; repeat a "
            "constant with jnp.broadcast_to"
        )


def check_finite(**arrays: Array | np.ndarray) -> None:
    """Neither inf nor nan."""
    for name, value in arrays.items():
        if not isinstance(value, jax.core.Tracer) and not np.isfinite(value).all():
            raise ValueError(
                f"{name} holds {np.asarray(value)[~np.isfinite(value)][0]}, expected finite numbers: is anything "
                "unstable?"
            )


def check_real(**arrays: ArrayLike) -> None:
    """Numbers, and none of them complex: an imaginary part would be dropped, or carried into a result that has no
    meaning. None is masked: what is behind a mask would be taken for a value.
    """
    for name, value in arrays.items():
        if np.ma.is_masked(value):
            raise ValueError(f"{name} has {np.ma.count_masked(value)} masked values, expected none: fill or drop them")
        dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
        if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            fix = (
                "give complex numbers as pairs of reals"
                if jnp.issubdtype(dtype, jnp.complexfloating)
                else "convert it with .astype(float)"
            )
            raise ValueError(f"{name} has dtype {dtype}, expected real numbers: {fix}")


def check_whole(least: int, **numbers: Any) -> None:
    """Whole numbers from `least`: 2.5 steps, or nan of them, are a mistake that slicing and shapes would tell of in
    their own words.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}={value!r}, expected at least {least}, a whole number")


def choose_rows(n: int, groups: dict[str, Sequence[int]], *, optional: str) -> dict[str, list[int]]:
    """Disjoint groups of rows 0..n-1, of which one alone may be empty."""
    names, every = ", ".join(groups), [row for group in groups.values() for row in group]
    if not all(isinstance(row, int | np.integer) and not isinstance(row, bool) and 0 <= row < n for row in every):
        raise ValueError(f"{names} are the rows {every}, expected whole numbers from 0 to {n - 1}")
    if len(set(every)) < len(every):
        raise ValueError(f"{names} are the rows {every}, expected each in one of them, once")
    if empty := [name for name, group in groups.items() if not len(group) and name != optional]:
        raise ValueError(f"{empty[0]} has no rows, expected at least one")
    return {name: [int(row) for row in group] for name, group in groups.items()}


def check_distribution(name: str, p: Array | np.ndarray) -> None:
    """Probabilities over the last axis, or over all axes of a joint law given flat: finite, from 0, of sum 1 up to
    rounding.
    """
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
        raise ValueError(
            f"{name} has least entry {values.min():.6g} and sum {worst:.6g}, expected probabilities that sum to 1: use "
            f"{name} / {name}.sum()"
        )


def check_covariance(name: str, matrix: Array | np.ndarray, *, fix: str = "use F @ F.mT of a root F") -> None:
    """Finite, symmetric and positive semidefinite, (..., n, n), up to rounding once every component is scaled to unit
    variance.
    """
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
        raise ValueError(
            f"{name} is no covariance: scaled to a unit diagonal it has the eigenvalue {least:.3g}, expected from 0; "
            f"{fix}"
        )


def _least_eigenvalue(matrix: np.ndarray, rounding: float) -> float:
    """0 where a factorisation, which is cheaper, shows that there is none below -rounding."""
    try:
        np.linalg.cholesky(matrix + rounding * np.eye(matrix.shape[-1]))
    except np.linalg.LinAlgError:
        return float(np.linalg.eigvalsh(matrix).min())
    return 0.0


def columns(name: str, samples: Array | np.ndarray) -> np.ndarray:
    """Samples as float64 (N, d), the one entrance of all that is estimated from them: nothing is rounded to less before
    it is ranked or scaled.

    Whole numbers too large for float64 are counted from the least of their column, which no measure of information
    notices.
    """
    value = np.asarray(samples)
    real = jnp.issubdtype(value.dtype, jnp.floating) or value.dtype.kind in "biu"  # bfloat16 is no kind of NumPy's own
    if value.ndim not in (1, 2) or not value.size or not real:
        raise ValueError(
            f"{name} has shape {value.shape} and dtype {value.dtype}, expected real numbers (N,) or (N, d)"
        )
    if np.ma.is_masked(samples):
        raise ValueError(
            f"{name} has {np.ma.count_masked(samples)} masked values, expected none: leave such rows out of all "
            "samples, or a fill value enters"
        )
    value = value.reshape(len(value), -1)
    if value.dtype.kind in "iu" and max(int(value.max()), -int(value.min())) > WHOLE:
        value = np.stack([(column - column.min()).view(f"u{column.itemsize}") for column in value.T], axis=1)
    value = value.astype(np.float64)
    if not np.isfinite(value).all():
        raise ValueError(
            f"{name} holds {value[~np.isfinite(value)][0]}, expected finite numbers; leave such rows out of all samples"
        )
    return value


def pairs(x: Array | np.ndarray, y: Array | np.ndarray, *, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of as many samples, at least so many, as `columns`."""
    x, y = columns("x", x), columns("y", y)
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} rows and y has {len(y)}: expected pairs, row by row")
    if len(x) < least:
        raise ValueError(f"{len(x)} samples, expected at least {least}")
    return x, y


def triples(
    x: Array | np.ndarray, y: Array | np.ndarray, z: Array | np.ndarray, *, least: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three sets of as many samples, at least so many, as `columns`; z is what is given."""
    x, y = pairs(x, y, least=least)
    z = columns("z", z)
    if len(z) != len(x):
        raise ValueError(f"x has {len(x)} rows and z has {len(z)}: expected triples, row by row")
    return x, y, z


def check_rounding(name: str, z: np.ndarray) -> None:
    """JAX's floating type tells the samples apart, where they must stay in their own units."""
    error = np.abs(np.asarray(jnp.asarray(z), np.float64) - z).max(axis=0)
    if (error > ROUGH * z.std(axis=0)).any() or not np.isfinite(error).all():
        raise ValueError(
            f"{name} loses {error.max():.3g} to the rounding of {jnp.asarray(z).dtype}, beside a spread of "
            f"{z.std(axis=0).min():.3g}: take its place away from both the samples and the density, or set "
            "jax_enable_x64"
        )


def centre(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns from their medians, in units 2^e that leave them between -2 and 2, and e: an exact change of units, so
    that no square over- or underflows.
    """
    exponent = np.frexp(np.abs(z).max(axis=0))[1]
    z = np.ldexp(z, -exponent[None])
    return z - np.median(z, axis=0, keepdims=True), exponent


def spread(z: np.ndarray) -> np.ndarray:
    """The deviation of the middle half of centred columns, whatever the outliers; of what is not the median where half
    or more is; 0 of a constant.
    """

    def middle(column: np.ndarray) -> float:
        low, high = np.quantile(column, [0.25, 0.75])
        rest = np.abs(column[column != 0])
        return float(high - low) / QUARTERS if high > low else float(np.median(rest)) if len(rest) else 0.0

    return np.array([middle(column) for column in z.T])


def standardise(z: np.ndarray) -> np.ndarray:
    """Columns from their medians in standard deviations; where outliers alone make these, in `spread`s, far tails
    shortened by a logarithm.

    Either is an invertible map of each column, so information is the same. A fill value of 1e36 leaves the others as
    far apart as they were.
    """
    z, _ = centre(z)
    deviation, middle = z.std(axis=0), spread(z)
    outlying = deviation > OUTLYING * middle
    scale = np.where(outlying, middle, deviation)
    z = z / np.where(scale > 0, scale, 1)[None]
    far = outlying[None] & (np.abs(z) > TAIL)
    return np.where(far, np.sign(z) * TAIL * (1 + np.log(np.maximum(np.abs(z) / TAIL, 1))), z)


def ranks(z: np.ndarray) -> np.ndarray:
    """Places of values among the different values of their column, from 0: as much information, and exact in
    float32.
    """
    return np.stack([np.unique(column, return_inverse=True)[1].ravel() for column in z.T], axis=1)


def scores(z: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """Normal quantiles of the ranks of each column: mid-ranks, or, with a generator, ranks whose ties are put in a
    random order.

    In random order the scores have no ties and a law that is normal whatever that of z is; and z can be read from them,
    so that they say as much of anything else as z does.
    """
    if rng is None:
        return ndtri((rankdata(z, axis=0) - 0.5) / len(z))
    order = np.lexsort((rng.random(z.shape), z), axis=0)
    return ndtri((np.argsort(order, axis=0) + 0.5) / len(z))
