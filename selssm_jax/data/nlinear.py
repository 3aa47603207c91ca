"""Linear forecasts, the rivals of every forecaster: ridge regression on the lookback less its last value (NLinear, Zeng
et al. 2023).

A map W (length + 1, horizon) forecasts y_h = x_last + sum_l (x_l - x_last) W[l, h] + W[length, h] for every channel
alone; W = 0 repeats the last value.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import linalg

Products = tuple[np.ndarray, np.ndarray]
PENALTIES = (1.0, 1e2, 1e3, 1e4, 1e5, 1e6)
# channels, evenly spaced, that choose the penalty of maps by channel: solving all channels for every penalty would take
# most of the time
JUDGES = 16


class Windows(NamedTuple):
    """All windows of `length` rows and the `horizon` after them that begin at `starts`, one row after the other: values
    (rows, channels).
    """

    values: np.ndarray
    starts: np.ndarray
    length: int
    horizon: int


def errors(maps: np.ndarray | None, windows: Windows) -> dict[str, float]:
    """Returns the mean squared and absolute errors of maps (1 or channels, length + 1, horizon), over windows, steps
    and channels; None is 0.
    """
    return scores({"": maps}, windows)[""]


def scores(maps: Mapping[str, np.ndarray | None], windows: Windows) -> dict[str, dict[str, float]]:
    """Returns the errors of several maps by their names, from one reading of the windows."""
    channels = windows.values.shape[1]
    total = {name: np.zeros(2) for name in maps}
    for channel in range(channels):
        x, y = _pairs(windows, channel)
        for name, weights in maps.items():
            wrong = y
            if weights is not None:
                mine = weights[channel if len(weights) > 1 else 0].astype(np.float32)
                # values near 1e38: the error is inf, and a report says that it is no number
                with np.errstate(over="ignore", invalid="ignore"):
                    wrong = x @ mine[:-1] + mine[-1] - y
            total[name] += [np.square(wrong, dtype=np.float64).mean(), np.abs(wrong).mean(dtype=np.float64)]
    return {
        name: {"mse": float(squared / channels), "mae": float(absolute / channels)}
        for name, (squared, absolute) in total.items()
    }


def fit(train: Windows, validation: Windows) -> dict[str, np.ndarray]:
    """Returns {"ridge": one map for all channels, "ridge by channel": one for each}, with the penalty that serves
    validation best.

    Of least |x W - y|^2 = W' x'x W - 2 W' x'y + const; where there are many channels, JUDGES of them choose the one
    penalty that the maps by channel share.
    """
    channels = train.values.shape[1]
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

    With z the rows from the first window on, s_ij = sum_k z_(k+i) z_(k+j) over n windows follows along diagonals,
    s_(i+1)(j+1) = s_ij - z_i z_j + z_(n+i) z_(n+j), so that the windows themselves are never made.
    """
    length, span, count = windows.length, windows.length + windows.horizon, len(windows.starts)
    z = windows.values[windows.starts[0] : windows.starts[0] + count + span - 1, channel].astype(np.float64)
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


def _pairs(windows: Windows, channel: int) -> tuple[np.ndarray, np.ndarray]:
    """The lookback less its last value, (n, length), and the horizon less it, (n, horizon), of one channel."""
    rows = np.lib.stride_tricks.sliding_window_view(windows.values[:, channel], windows.length + windows.horizon)[
        windows.starts
    ]
    rows = rows - rows[:, windows.length - 1 : windows.length]
    return rows[:, : windows.length], rows[:, windows.length :]
