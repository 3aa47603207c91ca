"""Levels of scalar quantisers of least squared error: dynamic programming over a fine histogram, then Lloyd's and Max's
conditions on all samples.

Lloyd's iteration alone finds the best of what lies near its start: from the quantiles it is several times off at 8
bits, and wastes levels where samples repeat a value. Contiguous cells of sorted values have a Monge cost, so the best
cells of a histogram are found exactly (Wu 1991; Grønlund et al. 2017).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

LLOYD, SETTLED = 200, 1e-6  # most iterations of Lloyd and Max, and the share by which the last one lowers the error
FINEST, COARSEST, PER_CELL = 1024, 256, 8  # bins of a histogram, most and least, and of each cell between
TOGETHER = 2**22  # cells times bins of all histograms that are solved at once


def least_error_levels(samples: Sequence[Float[np.ndarray, "_"]], count: int) -> list[Float[np.ndarray, "L"]]:
    """Returns, for each of several sets of samples, `count` rising levels of least mean squared error; the last is
    repeated where fewer values occur.

    Exact on a histogram whose bins are finer than the cells, and from there on a fixed point of Lloyd's iteration on
    the samples themselves.
    """
    ordered = [np.sort(np.asarray(one, np.float64)) for one in samples]
    edges = [_bins(one, count) for one in ordered]
    levels: list[np.ndarray] = [np.zeros(0)] * len(ordered)
    many = [index for index, part in enumerate(edges) if len(part) - 1 > count]
    for index in set(range(len(edges))) - set(many):
        levels[index] = _means(ordered[index], edges[index])
    many.sort(key=lambda index: len(edges[index]))  # alike in size, so that little is filled up
    size = max(1, TOGETHER // max([count * len(edges[index]) for index in many], default=1))
    for first in range(0, len(many), size):
        chosen = many[first : first + size]
        for index, cells in zip(
            chosen,
            _best_cells([ordered[index] for index in chosen], [edges[index] for index in chosen], count),
            strict=True,
        ):
            levels[index] = _lloyd(ordered[index], _means(ordered[index], cells))
    return [np.pad(one, (0, count - len(one)), mode="edge") for one in levels]


def _bins(ordered: Float[np.ndarray, "M"], count: int) -> Int[np.ndarray, "b"]:
    """Edges of bins, as places among the sorted samples: every distinct value by itself where these are few, else bins
    that fall with the cells.

    Half of them hold equal shares of the samples, half equal shares of density^(1/3), as the best cells of many levels
    do (Panter and Dite 1951); the largest gaps are edges too: no bin reaches over one, and every far sample of a heavy
    tail, worth a level of its own, has its own.
    """
    bins = min(max(PER_CELL * count, COARSEST), FINEST)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1, [len(ordered)]])
    if len(starts) - 1 <= max(2 * bins, count):
        return starts
    gaps = 1 + np.argpartition(np.diff(ordered), -bins // 4)[-bins // 4 :]
    blocks = np.unique(np.concatenate([np.linspace(0, len(ordered), bins // 2 + 1).astype(int), gaps]))
    width = np.diff(ordered[np.minimum(blocks, len(ordered) - 1)])
    measure = np.concatenate(
        [[0.0], np.cumsum(np.cbrt(np.diff(blocks) * width**2) + 1e-12 * np.ptp(ordered) ** (2 / 3))]
    )
    dense = np.interp(np.linspace(0, measure[-1], bins // 2 + 1), measure, blocks).astype(int)
    value = ordered[np.minimum(np.concatenate([blocks, dense]), len(ordered) - 1)]
    low, high = np.searchsorted(ordered, value), np.searchsorted(ordered, value, side="right")
    return np.unique(np.concatenate([[0, len(ordered)], low, high[high - low > 1]]))


def _means(ordered: np.ndarray, edges: np.ndarray) -> np.ndarray:
    centre = ordered[len(ordered) // 2]
    return np.add.reduceat(ordered - centre, edges[:-1]) / np.diff(edges) + centre


def _best_cells(ordered: Sequence[np.ndarray], edges: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """For every histogram, the edges of the `count` cells of bins of least squared error; cost of a cell, but for a
    constant: -(sum)^2 / samples.
    """
    most = max(map(len, edges))
    held, total = (np.zeros((len(edges), most)) for _ in range(2))
    for row, (one, at) in enumerate(zip(ordered, edges, strict=True)):
        scaled = (one - one[len(one) // 2]) / (one[-1] - one[0])
        sums = np.concatenate([[0.0], np.cumsum(scaled)])[at]
        held[row], total[row] = (np.pad(part, (0, most - len(at)), mode="edge") for part in (at.astype(float), sums))
    best, choices = -(total**2) / np.maximum(held, 1), np.zeros((count, len(edges), most), np.int32)
    for cell in range(1, count):
        best, choices[cell] = _with_one_more(best, choices[cell - 1], held, total)
    edges_of_cells, rows = np.empty((len(edges), count + 1), int), np.arange(len(edges))
    edges_of_cells[:, count] = [len(at) - 1 for at in edges]
    for cell in range(count - 1, -1, -1):
        edges_of_cells[:, cell] = choices[cell, rows, edges_of_cells[:, cell + 1]]
    return [np.unique(at[cells]) for at, cells in zip(edges, edges_of_cells, strict=True)]


def _with_one_more(
    before: np.ndarray, starts: np.ndarray, held: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least costs of all prefixes with one cell more, and where that cell starts.

    The start moves right with the end of the prefix and with the number of cells, so ends are solved by halving:
    between two that are known.
    """
    rows, most = before.shape
    least, choice = before.copy(), np.zeros((rows, most), np.int64)
    stride = 1 << (most - 1).bit_length()
    while stride:
        ends = np.arange(stride, most, 2 * stride)
        if len(ends):
            low = np.maximum(choice[:, ends - stride], starts[:, ends])
            high = np.where(ends + stride < most, choice[:, np.minimum(ends + stride, most - 1)], ends[None])
            _solve(
                np.broadcast_to(ends, low.shape),
                low,
                np.clip(high, low, ends[None]),
                before,
                held,
                total,
                least,
                choice,
            )
        stride //= 2
    return least, choice


def _solve(
    ends: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    before: np.ndarray,
    held: np.ndarray,
    total: np.ndarray,
    *out: np.ndarray,
) -> None:
    """Writes (least cost, where) of every end, over starts from low to high."""
    width = before.shape[1]
    row = np.broadcast_to(np.arange(len(ends))[:, None], ends.shape)
    lengths = (high - low + 1).ravel()
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    start = np.arange(lengths.sum()) + np.repeat((low + row * width).ravel() - first, lengths)
    end = (ends + row * width).ravel()
    samples = np.repeat(held.ravel()[end], lengths) - held.ravel()[start]
    sums = np.repeat(total.ravel()[end], lengths) - total.ravel()[start]
    cost = before.ravel()[start] - sums**2 / np.maximum(samples, 1)
    least = np.minimum.reduceat(cost, first)
    place = np.flatnonzero(cost == np.repeat(least, lengths))
    mine = np.searchsorted(place, first)
    out[0].ravel()[end] = least
    out[1].ravel()[end] = start[place[mine]] - (row * width).ravel()


def _lloyd(ordered: Float[np.ndarray, "M"], levels: Float[np.ndarray, "L"]) -> Float[np.ndarray, "L"]:
    """The fixed point near these levels; sums over sorted samples make an iteration as cheap as its thresholds."""
    centre = ordered[len(ordered) // 2]
    ordered, levels = ordered - centre, levels - centre
    sums, squares = (np.concatenate([[0.0], np.cumsum(power)]) for power in (ordered, ordered**2))
    error = float(np.finfo(np.float64).max)
    for _ in range(LLOYD):
        edges = np.concatenate([[0], np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2), [len(ordered)]])
        held, total, power = np.diff(edges), np.diff(sums[edges]), np.diff(squares[edges])
        levels = np.where(held > 0, total / np.maximum(held, 1), levels)
        before, error = error, float((power - 2 * levels * total + held * levels**2).sum())
        if before - error <= SETTLED * before:
            break
    return levels + centre
