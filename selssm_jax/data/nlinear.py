"""Linear forecasts, the rivals of every forecaster: ridge regression on the lookback less its last value (NLinear, Zeng et al. 2023).

A map W (length + 1, horizon) forecasts y_h = x_last + sum_l (x_l - x_last) W[l, h] + W[length, h] for every channel alone;
W = 0 repeats the last value.
"""

from typing import NamedTuple

import numpy as np

Products = tuple[np.ndarray, np.ndarray]
PENALTIES = (1.0, 1e2, 1e3, 1e4, 1e5, 1e6)
BUDGET = 1e11  # multiplications of a fit; beyond it every n-th window is taken: neighbours differ by one row


class Windows(NamedTuple):
    """All windows of `length` rows and the `horizon` after them that begin at `starts`: values (rows, channels)."""

    values: np.ndarray
    starts: np.ndarray
    length: int
    horizon: int


def errors(maps: np.ndarray, windows: Windows) -> dict[str, float]:
    """Returns the mean squared and absolute errors of maps (1 or channels, length + 1, horizon), over windows, steps and channels."""
    squared, absolute, channels = 0.0, 0.0, windows.values.shape[1]
    for channel, weights in zip(range(channels), np.broadcast_to(maps, (channels, *maps.shape[1:])), strict=True):
        x, y = _pairs(windows, channel)
        with np.errstate(over="ignore", invalid="ignore"):  # values near 1e38: the error is inf, and a report says that it is no number
            wrong = x @ weights.astype(np.float32) - y
        squared += float(np.square(wrong, dtype=np.float64).mean())
        absolute += float(np.abs(wrong).mean(dtype=np.float64))
    return {"mse": squared / channels, "mae": absolute / channels}


def fit(train: Windows, validation: Windows) -> dict[str, np.ndarray]:
    """Returns {"ridge": one map for all channels, "ridge by channel": one for each}, with the penalty that serves validation best."""
    fitted, judged = _products(train), _products(validation)
    return {
        "ridge": _best(*(tuple(part.sum(axis=0, keepdims=True) for part in found) for found in (fitted, judged))),
        "ridge by channel": _best(fitted, judged),
    }


def _best(fitted: Products, judged: Products) -> np.ndarray:
    """The ridge solution of least squared error |x W - y|^2 = W' x'x W - 2 W' x'y + const on other windows."""
    eye = np.eye(fitted[0].shape[-1])
    maps = [np.linalg.solve(fitted[0] + penalty * eye, fitted[1]) for penalty in PENALTIES]
    return min(maps, key=lambda weights: float((weights * (judged[0] @ weights - 2 * judged[1])).sum()))


def _products(windows: Windows) -> Products:
    """x'x (channels, length + 1, length + 1) and x'y (channels, length + 1, horizon)."""
    cost = len(windows.starts) * windows.values.shape[1] * (windows.length + 1.0) * (windows.length + 1 + windows.horizon)
    thinned = windows._replace(starts=windows.starts[:: int(cost // BUDGET) + 1])
    pairs = (_pairs(thinned, channel) for channel in range(windows.values.shape[1]))
    products = [((x.T @ x).astype(np.float64), (x.T @ y).astype(np.float64)) for x, y in pairs]
    return np.stack([gram for gram, _ in products]), np.stack([cross for _, cross in products])


def _pairs(windows: Windows, channel: int) -> tuple[np.ndarray, np.ndarray]:
    """The lookback less its last value and a one, (n, length + 1), and the horizon less it, (n, horizon), of one channel."""
    rows = np.lib.stride_tricks.sliding_window_view(windows.values[:, channel], windows.length + windows.horizon)[windows.starts]
    rows = rows - rows[:, windows.length - 1 : windows.length]
    return np.concatenate([rows[:, : windows.length], np.ones((len(rows), 1), rows.dtype)], axis=1), rows[:, windows.length :]
