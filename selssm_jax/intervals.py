"""Intervals around forecasts by split conformal prediction (Papadopoulos et al. 2002; Lei et al. 2018), with the errors
of the validation windows.

The score of a value is |y - forecast| / s, with s the deviation of its channel over the window that was read, for a
model that sees windows at their own scale errs at it. Of n windows the interval of level p is forecast +- s q, with q
the ceil(p (n + 1))-th smallest score of that channel and step of the horizon. It covers with probability p at least
where the next window is exchangeable with those of validation; a series that drifts is not, so `cover` says how often
it did.

A model that forecasts quantiles says itself how far it may be off, below and above (Romano, Patterson and Candes 2019).
With [lo, hi] the quantiles nearest to the ends of the level, and m their median, the score of a value below m is (lo -
y) / s, of one above it (y - hi) / s; the interval is [lo - s q, hi + s q], and holds m. Any score covers so, and q
makes up for quantiles that are wrong, or not those of the level.

For such series a `Follower` widens and narrows the intervals by what came: a factor on the widths of each channel,
whose logarithm moves by rate (share of misses - (1 - p)) for each window whose horizon is over (quantile tracking:
Gibbs and Candes 2021; Angelopoulos, Candes and Tibshirani 2023). Over n windows the share of misses is 1 - p to within
(largest - smallest logarithm + rate H) / (rate n), whatever the series does: nothing is assumed of it.
"""

import contextlib
import math
import os
import pathlib
import warnings
import zipfile
import zlib
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from selssm_jax.errors import InputError
from selssm_jax.model import ModelLike
from selssm_jax.runs import Run, exposure
from selssm_jax.tasks.forecasting import mark_missing, show_missing
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import pieces

LEVELS = (0.8, 0.95)
FEWEST = 19  # windows: of fewer, no error is the 95th in a hundred
MOST = 2**26  # scores that are held: of longer splits every k-th window counts
TINY = float(np.finfo(np.float32).tiny)  # a width: what never erred has one of 0
FLOOR = 0.05  # deviations of training: a window that stands still has at least this scale
INSIDE = 1 + 1e-6  # of an interval's reach: the value that it was calibrated by is inside, however it is rounded
RATE = 0.02  # largest step of a factor's logarithm, for a window that was missed whole
FILE = "intervals.npz"  # in the run's folder


class Intervals(NamedTuple):
    """Widths of intervals, on either side, in deviations of a window, without what quantiles say of them; `step` of the
    parameters they are of.
    """

    step: int
    widths: dict[float, Float[np.ndarray, "H C"]]

    def around(
        self,
        forecast: Float[np.ndarray, "*B H C"],
        inputs: Float[np.ndarray, "*B T E"],
        quantiles: Mapping[float, Float[np.ndarray, "*B H C"]] | None = None,
        *,
        masked: bool = False,
    ) -> dict[float, tuple[np.ndarray, np.ndarray]]:
        """Returns {level: (lower ends, upper ends)} of the forecast of some inputs, and of its quantiles where it has
        any, all in standardised units.
        """
        window = show_missing(inputs, forecast.shape[-1], masked=masked)
        sides = measure_spread(forecast, quantiles or {}, window, self.widths).reach(self.widths)
        return {level: (forecast - below, forecast + above) for level, (below, above) in sides.items()}


class Follower:
    """Factors on the widths of intervals that follow how often windows were missed, read in the order of time.

    A window is `horizon` windows old before what came of it is known, so that many wait; the rate is at most one over
    it, or what was missed would be answered again and again before the answer shows.
    """

    def __init__(self, levels: Iterable[float], horizon: int) -> None:
        self._logarithm: dict[float, np.ndarray | float] = dict.fromkeys(levels, 0.0)
        self._waiting: dict[float, deque[np.ndarray]] = {level: deque() for level in self._logarithm}
        self._horizon, self._rate = horizon, min(RATE, 1 / horizon)

    @property
    def factors(self) -> dict[float, np.ndarray | float]:
        """Returns, by level, the factors of all channels, (C,), that hold for the next window; 1 before any is read."""
        return {level: np.exp(logarithm) for level, logarithm in self._logarithm.items()}

    def read(self, errors: dict[float, Float[np.ndarray, "H C"]]) -> None:
        """Takes the errors of the next window, by level in widths of its interval without a factor; not-a-number where
        a value is missing.
        """
        for level, factor in self.factors.items():
            missed, there = (errors[level] > factor).sum(axis=0), (~np.isnan(errors[level])).sum(axis=0)
            waiting = self._waiting[level]
            waiting.append(np.where(there > 0, missed / np.maximum(there, 1) - (1 - level), 0))
            if len(waiting) > self._horizon:
                self._logarithm[level] = self._logarithm[level] + self._rate * waiting.popleft()


def nest(widths: Mapping[float, np.ndarray]) -> dict[float, np.ndarray]:
    """Returns widths by level, of which none is less than one of a lower level."""
    nested: dict[float, np.ndarray] = {}
    for level in sorted(widths):
        below = [nested[lower] for lower in nested]
        nested[level] = np.maximum(widths[level], below[-1]) if below else widths[level]
    return nested


def scale_of(window: Float[np.ndarray, "*B T C"]) -> Float[np.ndarray, "*B 1 C"]:
    """Returns the deviation of every channel of a window, of the values that are there, at least FLOOR."""
    if not np.isnan(window).any():
        return np.maximum(window.std(axis=-2, keepdims=True), FLOOR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of windows without a value
        return np.fmax(np.nanstd(window, axis=-2, keepdims=True), FLOOR).astype(window.dtype)


class Spread(NamedTuple):
    """How far what comes may be from a forecast: `said`, how far the quantiles of each level lie below and above it,
    without quantiles 0 for all levels, L = 1; and the `scale` of the window.
    """

    said: Float[np.ndarray, "L 2 *B H C"]
    scale: Float[np.ndarray, "*B 1 C"]

    def score(self, error: Float[np.ndarray, "*B H C"]) -> Float[np.ndarray, "L *B H C"]:
        """Returns how far what comes less its forecast is outside of the quantiles, in units of the scale."""
        return (np.abs(error) - np.where(error < 0, self.said[:, 0], self.said[:, 1])) / self.scale

    def reach(self, widths: Mapping[float, Float[np.ndarray, "H C"]]) -> dict[float, Float[np.ndarray, "2 *B H C"]]:
        """Returns, by level, how far intervals of these widths reach below and above the forecast."""
        said = self.by_level(widths)
        return nest({level: np.maximum(said[level] + self.scale * width, 0) for level, width in widths.items()})

    def by_level(self, levels: Collection[float]) -> dict[float, np.ndarray]:
        """Returns what is said of each level."""
        return _by_level(self.said, levels)


def measure_spread(
    forecast: Float[np.ndarray, "*B H C"],
    quantiles: Mapping[float, Float[np.ndarray, "*B H C"]],
    window: Float[np.ndarray, "*B T C"],
    levels: Collection[float],
) -> Spread:
    """Returns the spread around the forecasts of some windows, of each level by the quantiles nearest to its ends."""
    rising = sorted(quantiles)
    if len(rising) < 3:
        return Spread(np.zeros((1, 2, *forecast.shape), forecast.dtype), scale_of(window))
    pairs = [pair_of(rising, level) for level in levels]
    said = np.stack([[forecast - quantiles[low], quantiles[high] - forecast] for low, high in pairs])
    return Spread(said, scale_of(window))


def pair_of(quantiles: Sequence[float], level: float) -> tuple[float, float]:
    """Returns those of rising quantiles, in pairs around the median, that are nearest to the ends of a level."""
    place = min(range(len(quantiles) // 2), key=lambda place: abs(quantiles[place] - (1 - level) / 2))
    return quantiles[place], quantiles[-1 - place]


def measure_errors(
    error: Float[np.ndarray, "*B H C"], sides: Float[np.ndarray, "2 *B H C"]
) -> Float[np.ndarray, "*B H C"]:
    """Returns what comes less its forecast, in units of how far its interval reaches to that side."""
    return np.abs(error) / np.maximum(np.where(error < 0, *sides), TINY)


def _by_level(values: np.ndarray, levels: Collection[float]) -> dict[float, np.ndarray]:
    """What is of each level, or the same of all, by level."""
    return dict(zip(levels, np.broadcast_to(values, (len(levels), *values.shape[1:])), strict=True))


def find(run: Run) -> Intervals:
    """Returns the intervals that a run keeps, or calibrates them. Raises InputError as `calibrate` does."""
    return recall(run.workdir, run.step) or calibrate(run)


def calibrate(run: Run) -> Intervals:
    """Returns the intervals of a run, and keeps them in its folder. Raises InputError where its validation split has
    too few windows, or a channel too few values in them, where it was trained on that split, and where it was opened
    with another file than its own.
    """
    if not run.is_own:
        raise InputError("intervals are calibrated on the data that a run was trained on: open it without another file")
    if exposure(run, "validation") == "trained":
        raise InputError(
            f"intervals are calibrated on validation windows, on which data.train_on={run.experiment.data.train_on!r} "
            "trained, so that errors are smaller there than they will be: train on 'train'"
        )
    windows = run.dataset.sizes.get("validation", 0)
    if windows < FEWEST:
        raise InputError(
            f"the validation split has {windows} windows, intervals need at least {FEWEST}: give more rows, or a "
            "shorter data.horizon"
        )
    task = run.dataset.task
    kinds = len(LEVELS) if len(task.quantiles) > 1 else 1  # of scores
    every = math.ceil(kinds * windows * task.horizon * task.channels / MOST)
    scores = np.concatenate([spread.score(error) for error, spread in _errors(run, "validation", every)], axis=1)
    intervals = Intervals(run.step, find_widths(scores))
    arrays: dict[str, Any] = {str(level): width for level, width in intervals.widths.items()}
    with contextlib.suppress(OSError):  # a folder that is only read: they are computed again the next time
        fresh = run.workdir / f".{os.getpid()}.{FILE}"  # whole or not at all: others may read it
        np.savez(fresh, step=run.step, **arrays)
        fresh.replace(run.workdir / FILE)
    return intervals


def find_widths(scores: Float[np.ndarray, "L n H C"]) -> dict[float, Float[np.ndarray, "H C"]]:
    """Returns, by level, the conformal quantiles of the scores of n windows, one set of them for each level or for all,
    which are sorted in place. Raises InputError where a channel has too few of them; those that are missing are
    not-a-number.
    """
    scores.sort(axis=1)
    count = (~np.isnan(scores[0])).sum(axis=0, keepdims=True)  # those that are missing stand last
    if count.min() < FEWEST:
        channel = int(count.min(axis=(0, 1)).argmin())
        raise InputError(
            f"channel {channel + 1} has {count.min()} values at some step of the horizon in the validation split, "
            f"intervals need at least {FEWEST}: give more rows, or leave it out by data.ignore"
        )
    places = {level: np.minimum(np.ceil(level * (count + 1)).astype(int), count) - 1 for level in LEVELS}
    return {
        level: np.take_along_axis(ranked, places[level], axis=0)[0]
        for level, ranked in _by_level(scores, LEVELS).items()
    }


def recall(folder: str | pathlib.Path, step: int) -> Intervals | None:
    """Returns the intervals that were kept in a run's folder; None where there are none of these parameters."""
    path = pathlib.Path(folder) / FILE
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            widths = {level: arrays[str(level)] for level in LEVELS}
            return Intervals(step, widths) if int(arrays["step"]) == step else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):  # damaged: they are made again
        return None


def cover(run: Run, intervals: Intervals, split: str) -> dict[str, Any]:
    """Returns, by level p, the share of a split's values that lie in their intervals, by channel and in all, and in
    deviations of training the mean width of an interval and its score, which is least for the right quantiles: the
    width plus 2 / (1 - p) times what a value lies outside (Gneiting and Raftery 2007).

    Of one series, under "following" the same of intervals that a `Follower` scales; of a level whose quantiles the
    model forecasts, under "quantiles" the same of these as they are.
    """
    widths, quantiles = intervals.widths, sorted(run.dataset.task.quantiles)
    follower, ones = Follower(widths, run.dataset.task.horizon), dict.fromkeys(widths, 1.0)
    ways: dict[str, list[dict[float, _Covered]]] = {"still": [], "following": [], "quantiles": []}
    for error, spread in _errors(run, split, 1):
        calibrated, said = spread.reach(widths), spread.by_level(widths)
        for number, window in enumerate(error):
            sides, own = ({level: side[:, number] for level, side in part.items()} for part in (calibrated, said))
            ways["still"].append(_cover_window(window, sides, ones))
            ways["following"].append(_cover_window(window, sides, follower.factors))
            if quantiles:
                ways["quantiles"].append(_cover_window(window, own, ones))
            follower.read({level: measure_errors(window, side) for level, side in sides.items()})
    several = bool(run.experiment.data.series_id)
    shown = {level: {"following": not several, "quantiles": _has_pair(quantiles, level)} for level in widths}
    return {
        str(level): _summary([window[level] for window in ways["still"]])
        | {way: _summary([window[level] for window in ways[way]]) for way, there in shown[level].items() if there}
        for level in widths
    }


def _has_pair(quantiles: Sequence[float], level: float) -> bool:
    return len(quantiles) > 1 and math.isclose(pair_of(quantiles, level)[0], (1 - level) / 2, abs_tol=1e-6)


class _Covered(NamedTuple):
    """Of one window: the share of values inside, (C,), not-a-number where all are missing, mean width and score."""

    share: np.ndarray
    width: float
    score: float


def _cover_window(
    error: np.ndarray, sides: Mapping[float, np.ndarray], factors: Mapping[float, np.ndarray | float]
) -> dict[float, _Covered]:
    """Of what comes less its forecast, (H, C), and how far intervals reach, times factors."""
    covered = {}
    for level, side in nest({level: side * factors[level] for level, side in sides.items()}).items():
        width = float(side.sum(axis=0).mean())
        outside = np.nanmean(np.maximum(np.abs(error) - np.where(error < 0, *side), 0))
        score = width + 2 / (1 - level) * float(outside)
        covered[level] = _Covered(_share(measure_errors(error, side)), width, score)
    return covered


def _summary(windows: list[_Covered]) -> dict[str, Any]:
    shares = np.stack([window.share for window in windows])
    return {
        "coverage": float(np.nanmean(shares)),
        "by_channel": np.nanmean(shares, axis=0).tolist(),
        "width": float(np.mean([window.width for window in windows])),
        "score": float(np.mean([window.score for window in windows])),
    }


def _share(errors: np.ndarray) -> np.ndarray:
    count = (~np.isnan(errors)).sum(axis=0)
    return np.where(count > 0, (errors <= INSIDE).sum(axis=0) / np.maximum(count, 1), np.nan)


def _errors(run: Run, split: str, every: int) -> Iterator[tuple[np.ndarray, Spread]]:
    """(What came less its forecast, (n, H, C), the spread around it) of every k-th window of a split, a batch at a
    time.
    """
    data, piece, seen = run.experiment.data, run.experiment.training.piece, 0
    kind = kind_of(run.dataset.task)
    for number, batch in enumerate(run.dataset.evaluate(split, data.eval_batch_size or data.batch_size)):
        rows = np.flatnonzero(batch["weights"].reshape(len(batch["weights"]), -1).any(axis=1))
        rows = rows[-seen % every :: every]
        seen += len(batch["weights"])
        if len(rows):
            arrays = {name: jnp.asarray(value) for name, value in batch.items()}
            outputs = np.asarray(_forecast(run.params, arrays, number, model=run.model, piece=piece))[rows]
            window, targets = mark_missing(*(batch[name][rows] for name in ("inputs", "targets", "weights")))
            forecast = kind.point(outputs)
            yield targets - forecast, measure_spread(forecast, kind.quantiles(outputs), window, LEVELS)


@partial(jax.jit, static_argnames=("model", "piece"))  # compiled once for calibration and coverage
def _forecast(params: Any, batch: Any, number: Any, *, model: ModelLike, piece: int) -> jax.Array:
    read = pieces.make_reader(model, params, jax.random.fold_in(jax.random.key(0), number))
    return pieces.fold(read, _keep, model, params, batch, piece)[1]["outputs"]


def _keep(outputs: Any, batch: Any) -> dict[str, Any]:
    del batch
    return {"outputs": outputs}
