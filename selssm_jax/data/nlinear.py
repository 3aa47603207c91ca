"""Linear forecasts, the rivals of every forecaster: ridge regression on the lookback less its last value (NLinear, Zeng
et al. 2023).

A map W (length + 1, horizon) forecasts y_h = x_last + sum_l (x_l - x_last) W[l, h] + W[length, h] for every channel
alone; W = 0 repeats the last value.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg

from selssm_jax.data.spans import Spans, spans_of

Products = tuple[np.ndarray, np.ndarray]
PENALTIES = (1.0, 1e2, 1e3, 1e4, 1e5, 1e6)
# channels, evenly spaced, that choose the penalty of maps by channel: solving all channels for every penalty would take
# most of the time
JUDGES = 16
WHOLE, PART = 1 << 26, 1 << 22  # numbers of windows that are made at a time; where there are more, in parts
FITTED = 1 << 20  # windows whose products are taken at a time


class Windows(NamedTuple):
    """All windows of `length` rows and the `horizon` after them that begin at `starts`: values (rows, channels).

    For a value that is missing, not-a-number, stands the last before it, and no error counts it.
    """

    values: Any  # an array, or what is read like one
    starts: np.ndarray | Spans
    length: int
    horizon: int
    channels: int = 0  # of the columns, the first that are forecast; 0: all

    @property
    def width(self) -> int:
        """How many channels are forecast."""
        return self.channels or int(self.values.shape[1])


def errors(maps: np.ndarray | None, windows: Windows) -> dict[str, float]:
    """Returns the mean squared and absolute errors of maps (1 or channels, length + 1, horizon), over windows, steps
    and channels; None is 0.
    """
    return scores({"": maps}, windows)[""]


def scores(maps: Mapping[str, np.ndarray | None], windows: Windows) -> dict[str, dict[str, float]]:
    """Returns the errors of several maps by their names, from one reading of the windows."""
    by_channel: dict[str, list[np.ndarray]] = {name: [] for name in maps}
    for channel in range(windows.width):
        parts: dict[str, list[np.ndarray]] = {name: [] for name in maps}
        for x, y, there in _pairs(windows, channel):
            for name, weights in maps.items():
                wrong = y
                if weights is not None:
                    mine = weights[channel if len(weights) > 1 else 0].astype(np.float32)
                    # values near 1e38: the error is inf, and a report says that it is no number
                    with np.errstate(over="ignore", invalid="ignore"):
                        wrong = x @ mine[:-1] + mine[-1] - y
                parts[name].append(_average(wrong if there is None else wrong[there]))
        for name, each in parts.items():
            by_channel[name].append(_merge(np.array(each)))
    merged = {name: _merge(np.array(each)) for name, each in by_channel.items()}
    return {name: {"mse": float(squared), "mae": float(absolute)} for name, (squared, absolute, _) in merged.items()}


def _average(wrong: np.ndarray) -> np.ndarray:
    """Means of the squares and of the absolute values of errors, and how many there are."""
    if not wrong.size:
        return np.zeros(3)
    return np.array([np.square(wrong, dtype=np.float64).mean(), np.abs(wrong).mean(dtype=np.float64), wrong.size])


def _merge(parts: np.ndarray) -> np.ndarray:
    """The same of all errors from those of parts, (parts, 3)."""
    counts = parts[:, 2]
    if (counts == counts[0]).all():
        return np.append(parts[:, :2].sum(axis=0) / len(parts), counts.sum())
    return np.append((parts[:, :2] * counts[:, None]).sum(axis=0) / counts.sum(), counts.sum())


def fit(train: Windows, validation: Windows) -> dict[str, np.ndarray]:
    """Returns {"ridge": one map for all channels, "ridge by channel": one for each}, with the penalty that serves
    validation best.

    Of least |x W - y|^2 = W' x'x W - 2 W' x'y + const; where there are many channels, JUDGES of them choose the one
    penalty that the maps by channel share.
    """
    channels = train.width
    judges = set(np.linspace(0, channels - 1, min(channels, JUDGES)).round().astype(int).tolist())
    losses = np.zeros(len(PENALTIES))
    for channel in judges:
        fitted, judged = (_products(windows, channel) for windows in (train, validation))
        losses += [_loss(_solve(fitted, penalty), judged) for penalty in PENALTIES]
    penalty, each = PENALTIES[int(np.argmin(losses))], []
    together: list[Products] = []
    for channel in range(channels):
        products = [_products(windows, channel) for windows in (train, validation)]
        each.append(_solve(products[0], penalty).astype(np.float32))
        together = (
            [(total[0] + one[0], total[1] + one[1]) for total, one in zip(together, products, strict=True)]
            if together
            else products
        )
    shared = min(
        (_solve(together[0], penalty) for penalty in PENALTIES), key=lambda weights: _loss(weights, together[1])
    )
    return {"ridge": shared[None].astype(np.float32), "ridge by channel": np.stack(each)}


def _solve(products: Products, penalty: float) -> np.ndarray:
    gram = products[0].copy()
    np.fill_diagonal(gram, gram.diagonal() + penalty)
    return linalg.solve(gram, products[1], assume_a="pos", overwrite_a=True)


def _loss(weights: np.ndarray, products: Products) -> float:
    return float((weights * (products[0] @ weights - 2 * products[1])).sum())


def _products(windows: Windows, channel: int) -> Products:
    """x'x (length + 1, length + 1) and x'y (length + 1, horizon) of one channel, x being the lookback less its last
    value and a one.
    """
    runs = [_products_of_run(windows, channel, *run) for run in spans_of(windows.starts).runs(FITTED)]
    return sum((gram for gram, _ in runs[1:]), runs[0][0]), sum((cross for _, cross in runs[1:]), runs[0][1])


def _products_of_run(windows: Windows, channel: int, first: int, count: int) -> Products:
    """The same over windows that follow one another.

    With z the rows from the first window on, s_ij = sum_k z_(k+i) z_(k+j) over n windows follows along diagonals,
    s_(i+1)(j+1) = s_ij - z_i z_j + z_(n+i) z_(n+j), so that the windows themselves are never made.
    """
    length, span = windows.length, windows.length + windows.horizon
    z = _column(windows, channel, first, count + span - 1)[0].astype(np.float64)
    z = z - z.mean()
    s = np.empty((length, span))
    s[0] = np.correlate(z, z[:count], "valid")
    s[1:, 0] = s[0, 1:length]
    for i in range(length - 1):
        s[i + 1, 1:] = s[i, :-1] - z[i] * z[: span - 1] + z[count + i] * z[count : count + span - 1]
    total = np.cumsum(np.append(0, z))
    sums = total[count : count + span] - total[:span]
    # The same of z less the last value of its lookback.
    s = s - s[:, length - 1 : length] - s[length - 1] + s[length - 1, length - 1]
    sums = sums - sums[length - 1]
    s = np.concatenate([s, sums[None]])
    gram = np.concatenate([s[:, :length], np.append(sums[:length], count)[:, None]], axis=1)
    return gram, s[:, length:]


def _pairs(windows: Windows, channel: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """The lookback less its last value, (n, length), and the horizon less it, (n, horizon), of one channel, and which
    of the latter are there, None: all.
    """
    length, span, starts = windows.length, windows.length + windows.horizon, spans_of(windows.starts)
    most = starts.size if starts.size * span <= WHOLE else max(PART // span, 1)
    for first, count in starts.runs(most):
        z, there = _column(windows, channel, first, count + span - 1)
        rows = np.lib.stride_tricks.sliding_window_view(z, span)
        rows = np.subtract(rows, rows[:, length - 1 : length], order="C")
        ahead = None if there is None else np.lib.stride_tricks.sliding_window_view(there, span)[:, length:]
        yield rows[:, :length], rows[:, length:], ahead


def _column(windows: Windows, channel: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of one channel, the last value where one is missing, and which are there, None: all; before the first value
    stands 0, the training mean.
    """
    z = np.ascontiguousarray(windows.values[first : first + count, channel])
    there = ~np.isnan(z)
    if there.all():
        return z, None
    last = np.maximum.accumulate(np.where(there, np.arange(count), -1))
    return np.where(last < 0, 0, z[last]).astype(z.dtype), there
