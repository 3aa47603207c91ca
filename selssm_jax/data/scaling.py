"""Level and scale of every channel, over arrays of any type and size, in float64."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from selssm_jax.data.mapped import Numbers

BLOCK = 1 << 18  # numbers that are cast at a time
AT_ONCE = 1 << 20  # the most that are summed in one go
TAIL, REACH = 0.05, 2.0  # a value counts up to REACH times the range of the middle 90 % beyond it
# of signals that stand still for most of the time, the middle has no range until it is taken wide enough
TAILS = (TAIL, 0.01, 0.001)
SAMPLE = 1 << 20  # numbers of a channel that quantiles are taken over
LARGEST = 1e150  # of a value: its square is a number of float64


def describe_bad_number(value: float) -> str:
    """Returns what is expected of a number that has no level or scale, and how to mend it."""
    if np.isfinite(value):
        return f"expected at most {LARGEST:g}: give it in a larger unit"
    return "expected a finite number: fill it in or drop the row"


def find_bad_number(values: np.ndarray) -> tuple[int, ...] | None:
    """Returns where the first number stands that is not finite or larger than LARGEST, None where there is none."""
    largest = LARGEST if values.dtype.itemsize >= 8 else np.finfo(values.dtype).max
    good = np.abs(values) <= largest
    return None if good.all() else tuple(map(int, np.argwhere(~good)[0]))


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yields slices of rows that hold at most BLOCK numbers each."""
    size = max(BLOCK // max(columns, 1), 1)
    for first in range(0, rows, size):
        yield slice(first, first + size)


def moments(
    values: Numbers, low: np.ndarray | None = None, high: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of every column of (rows, columns), of values cut to [low, high]
    where given.
    """
    parts = list(blocks(*values.shape)) if values.size > AT_ONCE else [slice(None)]

    def part(rows: slice) -> np.ndarray:
        wide = values[rows].astype(np.float64)
        return wide if low is None else np.clip(wide, low, high)

    if len(parts) < 2:
        whole = part(parts[0])
        return whole.mean(axis=0), whole.std(axis=0)
    mean = sum(part(rows).sum(axis=0) for rows in parts) / len(values)
    square = sum(np.square(part(rows) - mean).sum(axis=0) for rows in parts)
    return np.asarray(mean), np.sqrt(square / len(values))


def moments_of_observed(parts: Sequence[Numbers]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of every column over the rows of several arrays, of the values that
    are there: not-a-number where a column has none.
    """

    def average(center: np.ndarray | float, power: int) -> np.ndarray:
        total = count = np.zeros(parts[0].shape[1])
        for part in parts:
            for rows in blocks(*part.shape):
                wide = part[rows].astype(np.float64) - center
                total, count = total + np.nansum(wide**power, axis=0), count + (~np.isnan(wide)).sum(axis=0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    mean = average(0.0, 1)
    return mean, np.sqrt(average(mean, 2))


def robust_moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a mean and a deviation of every column that few wild values cannot move far.

    Values further than REACH times the range of the middle 90 % beyond it count as if they stood there: eight
    deviations of a Gaussian, so that ordinary data are taken as they are, and up to a twentieth of wild values on
    either side changes the scale by a factor, not at will. A column that is constant but for rare values has their
    plain deviation.
    """
    low, high = np.full(values.shape[1], -np.inf), np.full(values.shape[1], np.inf)
    every = max(len(values) // SAMPLE, 1)
    for column in range(values.shape[1]):
        sample = values[::every, column].astype(np.float64)
        for tail in TAILS:
            first, last = np.quantile(sample, (tail, 1 - tail))
            if last > first:
                low[column], high[column] = first - REACH * (last - first), last + REACH * (last - first)
                break
    return moments(values, low, high)


def standardise(values: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """Returns values (..., channels) less the mean of each channel, over its deviation where that is not 0."""
    return (values - np.array(scaling["mean"])) / _divisor(scaling)


def restore(values: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """Returns the values whose `standardise` these are, in float64."""
    return values * _divisor(scaling) + np.array(scaling["mean"])


def _divisor(scaling: Mapping[str, Any]) -> np.ndarray:
    deviation = np.array(scaling["deviation"])
    return np.where(deviation > 0, deviation, 1)
