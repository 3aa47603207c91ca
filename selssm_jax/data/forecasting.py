"""Numeric tables to forecast: the literature's splits, scaling and windows, any CSV, and linear baselines."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data import nlinear, tables
from selssm_jax.data.pipeline import SPLITS, WHOLE, Batch, Dataset, in_order, shuffled_rows
from selssm_jax.data.scaling import blocks, moments, restore, standardise
from selssm_jax.errors import InputError

Rows = tuple[int, int]


def ett_split(scale: int) -> dict[str, Rows]:
    """12, 4 and 4 months of 30 days (Zhou et al. 2021): rows 0:8640:11520:14400 of hourly data, times `scale`; the rest
    is unused.
    """
    return {
        "train": (0, 8640 * scale),
        "validation": (8640 * scale, 11520 * scale),
        "test": (11520 * scale, 14400 * scale),
    }


def share_split(rows: int) -> dict[str, Rows]:
    """70 % training, 20 % test at the end, validation between (Wu et al. 2021)."""
    train, test = int(rows * 0.7), int(rows * 0.2)
    return {"train": (0, train), "validation": (train, rows - test), "test": (rows - test, rows)}


def lookback(rows: int, horizon: int) -> int:
    """Returns the rows to look back on where a config leaves that to the table: four horizons, less where training
    would have few windows.
    """
    return max(min(4 * horizon, (share_split(rows)["train"][1] - horizon) // 2), 1)


def phase(clock: tuple[float, float] | None, known: Mapping[str, Any], period: int) -> tuple[int, list[str]]:
    """Returns the place of a table's first row in the cycle of a run, by the clocks (first time, step) of both; and
    what was assumed, as words.

    Raises InputError where the step is another one.
    """
    if not period or not known:
        return 0, []
    if clock is None or not known.get("clock"):
        return 0, ["its first row taken for the beginning of the run's cycle"]
    (first, step), (begun, usual) = clock, known["clock"]
    if abs(step - usual) > 0.01 * abs(usual):
        raise InputError(
            f"the table has a row every {step / 1e6:g} seconds, the run's had one every {usual / 1e6:g}, and "
            f"data.period={period} counts rows: resample it"
        )
    return round((first - begun) / usual) % period, []


def dataset(
    config: Data,
    values: np.ndarray,
    names: tuple[str, ...],
    split: Mapping[str, Rows],
    known: Mapping[str, Any],
    info: Mapping[str, Any],
    *,
    phase: int = 0,
) -> Dataset:
    """Returns the task of forecasting `horizon` rows from the `length` before: standardised by training rows, windows
    of stride 1.

    With `period`, inputs and targets are the series less its mean course over a cycle of the training rows, which
    CycleNet (Lin et al. 2024) learns; batches hold it as `course`. Errors are the same as of the series itself.

    Validation and test windows look back into the split before, as in the literature, so that every row of a split is
    forecast: ETTh1 with lookback and horizon 96 has 8449, 2785 and 2785 windows.

    Args:
      config: lookback (length), horizon, period, and what is trained on.
      values: (rows, channels); overwritten where they are float32.
      names: of the channels.
      split: first row and row after the last of "train", "validation" and "test".
      known: metadata of a training run, whose scaling then holds; the table need then hold one window only, of the
        split "whole".
      info: goes into the metadata; names the table in errors.
      phase: the place of the first row in the cycle of a training run.

    Raises:
      InputError: where a split is too short for one window, or training for one cycle.
    """
    scaling = known.get("scaling") or _scaling(values[slice(*split["train"])], config.period)
    course = _course(scaling, phase, len(values)) if "cycle" in scaling else None
    scaled, course = _scale(values, scaling, course), None if course is None else course.astype(np.float32)
    source = _Windows(
        config.length, config.horizon, config.train_on, scaled, {**split, WHOLE: (0, len(values))}, course
    )
    counts = {f"{name}_windows": len(source.starts(name)) for name in source.split if known or name != WHOLE}
    source.check(str(info.get("file") or info["source"]), (WHOLE,) if known else SPLITS)
    return Dataset(
        task=Task("forecasting", channels=values.shape[1], length=config.length, horizon=config.horizon),
        draw=source.draw,
        cover=source.cover,
        info={**info, **counts, "channels": list(names), "scaling": scaling, "train_on": config.train_on},
        baselines=source.baselines,
        sizes={name: len(source.starts(name)) for name in source.split},
    )


class History:
    """Windows of a series in its own units as a run's model reads them, and its forecasts in those units again.

    Args:
      known: metadata of the run.
    """

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._scaling = known["scaling"]
        self.period = len(self._scaling.get("cycle", ()))

    def encode(self, values: np.ndarray, first_row: int) -> np.ndarray:
        """Returns values (..., T, channels), the first of which is row `first_row` of a cycle, as inputs."""
        course = _course(self._scaling, first_row, values.shape[-2])
        return (standardise(values, self._scaling) - course).astype(np.float32)

    def decode(self, outputs: np.ndarray, first_row: int) -> np.ndarray:
        """Returns forecasts (..., H, channels), or bounds of them, that begin in row `first_row`, in own units."""
        return restore(outputs + _course(self._scaling, first_row, outputs.shape[-2]), self._scaling)


def _course(scaling: Mapping[str, Any], first_row: int, rows: int) -> np.ndarray:
    """The mean course of so many rows, cycle after cycle; 0 where none was taken off."""
    cycle = np.array(scaling.get("cycle", [[0.0]]))
    return cycle[(first_row + np.arange(rows)) % len(cycle)]


def _scaling(train: np.ndarray, period: int) -> dict[str, Any]:
    """Mean and deviation of every channel, and the mean course of the standardised rows over a cycle, which begins at
    the first.
    """
    if not len(train):
        raise InputError(
            "no row of the table is left for training: give at least data.length + data.horizon rows for every split"
        )
    if len(train) < period:
        raise InputError(
            f"data.period={period} is longer than the {len(train)} training rows, whose mean course it is: use a "
            "shorter one, or 0"
        )
    mean, deviation = moments(train)
    scaling = {"mean": mean.tolist(), "deviation": deviation.tolist()}
    if not period:
        return scaling
    scaled = standardise(train.astype(np.float64), scaling)
    return scaling | {"cycle": [scaled[phase::period].mean(axis=0).tolist() for phase in range(period)]}


def _scale(values: np.ndarray, scaling: Mapping[str, Any], course: np.ndarray | None) -> np.ndarray:
    """Standardised rows less their course, in float32; values that are in float32 are overwritten, so that a large
    table is held once.
    """
    scaled = values if values.dtype == np.float32 else np.empty(values.shape, np.float32)
    for rows in blocks(len(values), values.shape[1]):
        part = standardise(values[rows].astype(np.float64), scaling)
        scaled[rows] = part if course is None else part - course[rows]
    return scaled


@dataclasses.dataclass(frozen=True)
class _Windows:
    length: int
    horizon: int
    train_on: str
    values: np.ndarray
    split: Mapping[str, Rows]
    course: np.ndarray | None

    def check(self, table: str, splits: Iterable[str]) -> None:
        for name in splits:
            first, last = self.split[name]
            if not len(self.starts(name)):
                raise InputError(
                    f"the {name} split of {table} has {last - first} rows, too few for one window of "
                    f"data.length={self.length} and data.horizon={self.horizon}: shorten them, or give more rows"
                )

    def starts(self, name: str) -> np.ndarray:
        """First rows of all windows of a split; targets lie inside it, the lookback may begin before it."""
        first, last = self.split[name]
        return np.arange(max(first - self.length, 0), last - self.length - self.horizon + 1)

    def draw(self, seed: int, numbers: np.ndarray) -> Batch:
        return self._take(self._train_starts()[shuffled_rows(seed, numbers, len(self._train_starts()))])

    def cover(self, split: str, batch_size: int) -> Iterator[Batch]:
        starts = self.starts(split)
        return in_order(len(starts), batch_size, lambda rows: self._take(starts[rows]))

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """The last value repeated, and ridge regression on the lookback less its last value (NLinear, Zeng et al.
        2023).

        "ridge" is one map for all channels, "ridge by channel" one for each; fitted on the training windows, with the
        penalty that serves the validation windows best. All of them forecast what is left where a cycle was taken off.
        A table as a whole has no windows beside it to fit on: the last value alone is repeated.
        """
        maps: dict[str, np.ndarray | None] = {"repeat last": None}
        if split != WHOLE and all(len(self.starts(name)) for name in ("train", "validation")):
            maps |= self._ridge
        return nlinear.scores(maps, self._windows(split))

    @functools.cached_property
    def _ridge(self) -> dict[str, np.ndarray]:
        return nlinear.fit(self._windows("train"), self._windows("validation"))

    def _windows(self, split: str) -> nlinear.Windows:
        return nlinear.Windows(self.values, self.starts(split), self.length, self.horizon)

    def _train_starts(self) -> np.ndarray:
        return np.concatenate(
            [self.starts(name) for name in (("train",) if self.train_on == "train" else ("train", "validation"))]
        )

    def _take(self, starts: np.ndarray) -> Batch:
        rows = starts[:, None] + np.arange(self.length + self.horizon)[None]
        inputs, targets = np.split(self.values[rows], [self.length], axis=1)
        ones = {"weights": np.ones(len(starts), np.float32), "valid": np.ones((len(starts), self.length), bool)}
        course = {} if self.course is None else {"course": self.course[rows]}
        return {"inputs": inputs, "targets": targets, **ones, **course}


def read_csv(name: str, text: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns (values, column names) of a table in memory; see `tables.read`. Raises InputError as it does."""
    table = tables.read(name, tables.opener_of(text), most_rows=text.count("\n") + text.count("\r") + 1)
    return table.values.astype(np.float64), table.names
