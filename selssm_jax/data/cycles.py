"""The period of a series: how many rows its cycle has, if it has one."""

import warnings

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from selssm_jax.data import mapped

ROWS, CHANNELS = 1 << 15, 8  # that are looked at: the last rows, and channels evenly over all
PEAKS = 8  # of the spectrum, whose periods are tried
WIDTH = 32  # integers at most that are tried around a peak
SHORTEST = 16  # rows of a series of which anything can be said
TIMES = (1, 2, 3, 4, 5, 6, 7)  # whole cycles of a peak that may make the cycle of the series: seven days a week
NEAR = 0.9  # share of the most that is explained, from which on a shorter period is as good
CLOSE = 0.05  # share by which periods differ at most that are of one cycle, of which the best counts
PARTS = 4  # of the rows, whose courses are compared
ALIKE = 0.5  # share of the variance of their courses that they have in common where there is a cycle
LEAST = 0.02  # share of the variance that a cycle explains where there is one


def find_period(values: mapped.Numbers) -> int:
    """Returns the rows of the cycle of a series (rows, channels), 0 where it has none.

    The highest peaks of the spectrum of differences, over those around them, say which periods are tried, and whole
    multiples of them. Each is judged by the mean courses over the cycles of four quarters of the rows, less the mean
    over a cycle around each row: by the variance of what they have in common, as a share of the channels'. The shortest
    period that explains `NEAR` of the most is the one, if that is `LEAST` or more and the quarters are `ALIKE`. So a
    cycle is seen at least four times. Missing values are not-a-number.

    Cost: some hundred passes over at most `ROWS` rows of `CHANNELS` channels.
    """
    rows = np.asarray(values[max(len(values) - ROWS, 0) :], np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a channel without a value has no deviation, and is left out
        mean, spread = np.nanmean(rows, axis=0), np.nanstd(rows, axis=0)
    changing = np.flatnonzero(spread > 0)
    changing = changing[:: max(-(-len(changing) // CHANNELS), 1)]
    if len(rows) < SHORTEST or not changing.size:
        return 0
    rows = np.nan_to_num((rows[:, changing] - mean[changing]) / spread[changing])
    candidates = _list_candidates(rows)
    sums = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0)])
    explained = np.array([_explain(rows, sums, period) for period in candidates])
    periods = np.array(candidates)
    if explained.max(initial=0.0) < LEAST:
        return 0
    shortest = periods[explained >= NEAR * explained.max()].min()
    return int(periods[np.argmax(np.where(np.abs(periods - shortest) <= CLOSE * shortest, explained, -np.inf))])


def _list_candidates(rows: np.ndarray) -> list[int]:
    """Periods of the highest peaks and of whole multiples of them."""
    longest, steps = len(rows) // 4, len(rows) - 1
    power = np.square(np.abs(np.fft.rfft(np.diff(rows, axis=0), axis=0)))
    power = (power / np.maximum(power.sum(axis=0), np.finfo(float).tiny)).mean(axis=1)
    around = np.median(sliding_window_view(np.pad(power, 16, mode="reflect"), 33), axis=1)
    height = power / np.maximum(around, np.finfo(float).tiny)
    inner = np.arange(1, len(power) - 1)
    peaks = inner[(power[inner] >= power[inner - 1]) & (power[inner] >= power[inner + 1])]
    peaks = peaks[np.argsort(-height[peaks], kind="stable")][:PEAKS]
    periods: set[int] = set()
    for peak in peaks:
        low, high = steps / (peak + 1), steps / max(peak - 1, 0.5)
        for times in TIMES:
            near = (
                np.linspace(times * low, times * high, WIDTH)
                if times * (high - low) > WIDTH
                else np.arange(np.floor(times * low), np.ceil(times * high) + 1)
            )
            periods.update(int(period) for period in np.round(near) if 2 <= period <= longest)
    return sorted(periods)


def _explain(rows: np.ndarray, sums: np.ndarray, period: int) -> float:
    """The share of the variance that the quarters' mean courses have in common, 0 where they are not `ALIKE`; `sums`
    are those of the rows before each.

    The mean product of two of them has the variance of the course that they share as its mean, chance none.
    """
    centre = period // 2
    local = rows[centre : centre + len(rows) - period + 1] - (sums[period:] - sums[:-period]) / period
    cycles = len(local) // (PARTS * period)
    if not cycles:
        return 0.0
    courses = local[: PARTS * cycles * period].reshape(PARTS, cycles, period, rows.shape[1]).mean(axis=1)
    size = np.square(courses).mean()
    common = (np.square(courses.sum(axis=0)).mean() - PARTS * size) / (PARTS * (PARTS - 1))
    return float(common) if common >= ALIKE * size else 0.0
