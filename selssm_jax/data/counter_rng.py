"""Random numbers that are functions of their place: number `i` of example `place` under a key, in any order, on any
machine.

The bits are SplitMix64 (Steele, Lea and Flood 2014) started at a hash of (key, place): whole batches at a few
nanoseconds a number, where a generator for every example would cost more than the example.
"""

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform(key: tuple[int, ...], places: np.ndarray, count: int) -> np.ndarray:
    """Returns numbers in [0, 1): float64 (len(places), count); row r depends on the key and places[r] alone."""
    start = np.zeros(1, np.uint64)
    for part in key:
        start = _mix_bits(start + np.array([part % 2**64], np.uint64) + np.uint64(_GOLDEN))
    start = _mix_bits(start + places.astype(np.uint64) * np.uint64(_GOLDEN))
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    return (_mix_bits(start[:, None] + steps[None]) >> np.uint64(11)) * 2.0**-53


def integers(key: tuple[int, ...], places: np.ndarray, count: int, below: int) -> np.ndarray:
    """Returns whole numbers from 0 to below - 1: int32 (len(places), count)."""
    return (uniform(key, places, count) * below).astype(np.int32)


def normal(key: tuple[int, ...], places: np.ndarray, count: int) -> np.ndarray:
    """Returns standard normal numbers: float64 (len(places), count), by Box and Muller."""
    u = uniform(key, places, 2 * count)
    return np.sqrt(-2 * np.log1p(-u[:, :count])) * np.cos(2 * np.pi * u[:, count:])


def _mix_bits(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
