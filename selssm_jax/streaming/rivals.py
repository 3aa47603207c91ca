"""What a learner of streams is held against: the last value, and linear regression on the last rows, learnt online; and
errors as time goes.

They are told truths as a `Stream` is, in float64 with NumPy: sixty numbers in double precision need no accelerator, and
the recursion of least squares loses its symmetry in float32 within some ten thousand steps.
"""

from collections import deque
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.signal
from jaxtyping import Float


@runtime_checkable
class Rival(Protocol):
    """What answers and learns row by row."""

    def predict(self, row: Any) -> Float[np.ndarray, "H C"]:
        """Reads a row (C,) and returns the forecast after it."""
        ...

    def learn(self, truth: Any) -> None:
        """Tells the truth (H, C) of the oldest forecast that has none."""
        ...


class LastValue:
    """The last row, for each row ahead.

    Attributes:
      horizon: rows ahead.
    """

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon

    def predict(self, row: Any) -> Float[np.ndarray, "H C"]:
        """See `Rival`."""
        return np.repeat(np.asarray(row, np.float64)[None], self.horizon, axis=0)

    def learn(self, truth: Any) -> None:
        """Learns nothing."""


class RecursiveLeastSquares:
    """Ridge regression on the last rows and a constant, f_t, with a weight of forgetting^k for what is k truths old.

    k = P f / (forgetting + f' P f),  W <- W + k (y - W' f)',  P <- (P - k f' P) / forgetting,  P_0 = I / ridge

    (Plackett 1950; Haykin 2002, chapter 9). After n truths W is argmin sum_i forgetting^(n - i) |y_i - W' f_i|^2 +
    forgetting^n ridge |W|^2. Where nothing moves f, P grows as forgetting^-n: it does so until its trace is 1e12 /
    ridge.

    Args:
      channels: C. horizon: rows ahead, all of which are forecast at once. lags: rows that are read. forgetting: above
        0, at most 1. ridge: above 0.

    Raises:
      ValueError: for values out of range.
    """

    def __init__(
        self, channels: int, horizon: int = 1, lags: int = 2, forgetting: float = 1.0, ridge: float = 1e-2
    ) -> None:
        if not (0 < forgetting <= 1 and ridge > 0 and lags >= 1):
            raise ValueError(
                f"forgetting={forgetting}, ridge={ridge}, lags={lags} are out of range: use a factor above 0, at most "
                "1, a ridge above 0 and at least one lag"
            )
        self.forgetting, self._most = forgetting, 1e12 / ridge
        self._shape, features = (horizon, channels), lags * channels + 1
        self.weights = np.zeros((features, horizon * channels))
        self.covariance = np.eye(features) / ridge
        self._rows = np.zeros((lags, channels))
        self._waiting: deque[np.ndarray] = deque()

    @property
    def state(self) -> tuple[np.ndarray, ...]:
        """All that decides what comes, in arrays whose shapes never change: weights, P, the last rows, what forecasts
        that wait were made of, the oldest first, and how many they are, of at most `horizon`.
        """
        waiting = np.zeros((self._shape[0], len(self.covariance)))
        waiting[: len(self._waiting)] = list(self._waiting) or waiting[:0]
        return self.weights, self.covariance, self._rows, waiting, np.asarray(len(self._waiting))

    @state.setter
    def state(self, state: tuple[np.ndarray, ...]) -> None:
        """Goes on from these."""
        self.weights, self.covariance, self._rows, waiting, count = state
        self._waiting = deque(waiting[: int(count)])

    def read(self, row: Any) -> None:
        """Reads a row of which no forecast is asked."""
        self._rows = np.concatenate([np.asarray(row, np.float64)[None], self._rows[:-1]])

    def predict(self, row: Any) -> Float[np.ndarray, "H C"]:
        """See `Rival`."""
        self.read(row)
        features = np.concatenate([self._rows.ravel(), [1.0]])
        self._waiting.append(features)
        return (features @ self.weights).reshape(self._shape)

    def learn(self, truth: Any) -> None:
        """See `Rival`. Raises IndexError where no forecast waits."""
        features = self._waiting.popleft()
        seen = self.covariance @ features
        scale = self.forgetting + features @ seen
        self.weights += np.outer(seen, np.ravel(truth) - features @ self.weights) / scale
        # symmetric to the last digit: what is not grows as forgetting^-n
        self.covariance -= np.outer(seen, seen) / scale
        if np.trace(self.covariance) < self._most:
            self.covariance /= self.forgetting


class Follower:
    """A rival on a series: each forecast is scored as it was given, and then learnt from, when its truth is there.

    Attributes:
      rival: what forecasts. answers: (H, H, C), forecasts that wait, the oldest first.
    """

    def __init__(self, rival: Rival, horizon: int, channels: int) -> None:
        self.rival, self.answers = rival, np.zeros((horizon, horizon, channels))

    def advance(self, row: Float[np.ndarray, "C"], truth: Float[np.ndarray, "H C"] | None) -> float:
        """Reads a row and returns the mean squared error of the oldest forecast; not-a-number where there is no truth
        of one yet.
        """
        error = float("nan")
        if truth is not None:
            error = float(np.square(self.answers[0] - truth).mean())
            self.rival.learn(truth)
        self.answers = np.concatenate([self.answers[1:], self.rival.predict(row)[None]])
        return error


def follow_rows(rival: Rival, rows: Float[np.ndarray, "T C"], horizon: int) -> Float[np.ndarray, "T"]:
    """Returns the errors of `Follower` by the row that the horizon of a forecast ends with; not-a-number of the first
    `horizon` rows.
    """
    follower = Follower(rival, horizon, rows.shape[1])
    truths = [rows[step - horizon + 1 : step + 1] if step >= horizon else None for step in range(len(rows))]
    return np.array([follower.advance(row, truth) for row, truth in zip(rows, truths, strict=True)])


def fade(errors: Float[np.ndarray, "T"], factor: float = 0.999) -> Float[np.ndarray, "T"]:
    """Returns sum_k factor^k e_{t-k} / sum_k factor^k for every t (Gama, Sebastiao and Rodrigues 2013); what is
    not-a-number counts for nothing.
    """
    there = np.isfinite(errors)
    total, weight = (
        scipy.signal.lfilter([1.0], [1.0, -factor], values) for values in (np.where(there, errors, 0), there)
    )
    return total / np.where(weight > 0, weight, np.nan)
