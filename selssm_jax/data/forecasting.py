"""Numeric tables to forecast: the literature's splits, scaling and windows, any CSV, and linear baselines."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data import mapped, nlinear, tables, times
from selssm_jax.data.cycles import find_period
from selssm_jax.data.pipeline import SPLITS, WHOLE, Batch, Dataset, in_order, shuffled_rows
from selssm_jax.data.scaling import blocks, moments, moments_of_observed, restore, standardise
from selssm_jax.data.spans import Spans, spans_of
from selssm_jax.errors import InputError

Rows = tuple[int, int]
Split = Mapping[str, Rows]


@dataclasses.dataclass(frozen=True)
class Covariates:
    """What is read beside the channels: columns behind theirs, and features of the calendar.

    Attributes:
      past: columns that are read as far as they are there, static ones among them. future: columns behind those, which
        are known of the rows to be forecast.
      calendar: features of `times.calendar`, which are known too. moments: the time of every row, microseconds.
    """

    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    calendar: tuple[str, ...] = ()
    moments: mapped.Numbers | None = None

    def known_ahead(self, *, masked: bool) -> int:
        """Returns how many numbers tell of a row that is to be forecast."""
        return len(self.future) * (1 + masked) + 2 * len(self.calendar)

    def count(self, *, masked: bool) -> int:
        """Returns how many numbers are read beside the channels."""
        return len(self.past) * (1 + masked) + self.known_ahead(masked=masked)

    def describe(self) -> dict[str, list[str]]:
        """Returns the names, as JSON."""
        return {name: list(getattr(self, name)) for name in ("past", "future", "calendar")}


NONE = Covariates()


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


def split_series(first: int, last: int) -> dict[str, Rows]:
    """Returns the shares of `share_split` of a series that begins at a row of a table, and all of it."""
    shares = {name: (first + start, first + stop) for name, (start, stop) in share_split(last - first).items()}
    return {**shares, WHOLE: (first, last)}


def lookback(rows: int, horizon: int) -> int:
    """Returns the rows to look back on where a config leaves that to the table: four horizons, less where training
    would have few windows.
    """
    return max(min(4 * horizon, (share_split(rows)["train"][1] - horizon) // 2), 1)


def phase(clock: tuple[float, float] | None, known: Mapping[str, Any], period: int) -> tuple[int, list[str]]:
    """Returns the place of a table's first row in the cycle of a run, by the clocks (first time, step) of both; and
    what was assumed, as words. A negative period is the one that the run found.

    Raises InputError where the step is another one.
    """
    period = known.get("period", 0) if period < 0 else period
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
    values: mapped.Numbers,
    names: tuple[str, ...],
    split: Split | Sequence[Split],
    known: Mapping[str, Any],
    info: Mapping[str, Any],
    *,
    phase: int = 0,
    beside: Covariates = NONE,
) -> Dataset:
    """Returns the task of forecasting `horizon` rows from the `length` before: standardised by training rows, windows
    of stride 1.

    With `period`, inputs and targets are the series less its mean course over a cycle of the training rows; batches
    hold it as `course`. Errors are the same as of the series. Where it is learned, inputs end with the place in it.

    Validation and test windows look back into the split before, as in the literature, so that every row of a split is
    forecast: ETTh1 with lookback and horizon 96 has 8449, 2785 and 2785 windows.

    Args:
      config: lookback (length), horizon, period, what is trained on, and whether values may be missing.
      values: (rows, channels and covariates), an array, overwritten where it is float32, or what is read like one.
      names: of the channels.
      split: first row and row after the last of "train", "validation" and "test"; of several series, which lie one
        after the other, one for each, with "whole".
      known: metadata of a training run, whose scaling then holds; the table need then hold one window only, of the
        split "whole". info: goes into the metadata; names the table in errors.
      phase: the place of the first row in the cycle of a training run. beside: what is read beside the channels.

    Raises:
      InputError: where a split is too short for one window, or training for one cycle.
    """
    masked, table = config.missing == "mask", str(info.get("file") or info["source"])
    splits = [{WHOLE: (0, len(values)), **split}] if isinstance(split, Mapping) else list(split)
    config, settled = _settle_period(config, values, splits, known, len(names))
    scaling, outer = _find_scaling(config, values, (*names, *beside.past, *beside.future), splits, known, len(names))
    whole = {key: [*scaling[key], *outer.get(key, [])] for key in ("mean", "deviation")}
    course = _course(scaling, phase) if "cycle" in scaling else None
    scaled = _scale(values, whole, course, len(names))
    source = _Windows(config, len(names), scaled, splits, course, beside, masked, phase)
    source.check(table, (WHOLE,) if known else SPLITS)
    counts = {f"{name}_windows": source.starts(name).size for name in ((*SPLITS, WHOLE) if known else SPLITS)}
    extra = ({"masked": True} if masked else {}) | ({"covariates": beside.describe() | outer} if beside != NONE else {})
    return Dataset(
        task=_describe_task(config, len(names), beside, masked=masked),
        draw=source.draw,
        cover=source.cover,
        info={
            **info,
            **settled,
            **counts,
            "channels": list(names),
            "scaling": scaling,
            "train_on": config.train_on,
            **extra,
        },
        baselines=source.baselines,
        sizes={name: source.starts(name).size for name in (*SPLITS, WHOLE)},
    )


def _describe_task(config: Data, channels: int, beside: Covariates, *, masked: bool) -> Task:
    """What a model is asked, of data whose period is settled."""
    return Task(
        "forecasting",
        channels=channels,
        length=config.length,
        horizon=config.horizon,
        masked=masked,
        covariates=beside.count(masked=masked),
        known_ahead=beside.known_ahead(masked=masked),
        period=config.learned_period,
    )


class History:
    """Windows of a table in its own units as a run's model reads them, and its forecasts in those units again.

    Args:
      known: metadata of the run. task: what it asks.

    Attributes:
      columns: those that are read: what is forecast, past covariates, and those that are known ahead. period: rows of
        the cycle that is taken off, by the data or by the model, 0 for none. ahead: how many rows after the last one
        are read, of what is known.
      beside: what is read beside the channels.
    """

    def __init__(self, known: Mapping[str, Any], task: Task) -> None:
        outer = known.get("covariates", {})
        past, future, calendar = (tuple(outer.get(role, ())) for role in ("past", "future", "calendar"))
        self.beside = Covariates(past, future, calendar)
        self._channels, self._masked = task.channels, task.masked
        plain = {"mean": [0.0] * task.channels, "deviation": [1.0] * task.channels}
        self._scaling = known.get("scaling", plain)
        self._whole = {key: [*self._scaling[key], *outer.get(key, [])] for key in ("mean", "deviation")}
        names = known.get("channels") or [f"channel {place + 1}" for place in range(self._channels)]
        self.columns = (*map(str, names), *self.beside.past, *self.beside.future)
        self.period, self._learned = task.period or len(self._scaling.get("cycle", ())), task.period > 0
        self.ahead = task.horizon if self.beside.known_ahead(masked=False) else 0

    def check(self, values: np.ndarray) -> None:
        """Raises ValueError where a value that is read of `encode`'s rows is not finite, but for those of a run that
        reads missing ones.
        """
        bad = [np.isinf(part) if self._masked else ~np.isfinite(part) for part in self._split(values)]
        bad = [part.any(axis=tuple(range(part.ndim - 1))) for part in bad]
        if (places := np.flatnonzero(np.concatenate(bad))).size:
            raise ValueError(f"inputs hold numbers of {self.columns[places[0]]!r} that are not finite: fill them in")

    def encode(self, values: np.ndarray, first_row: int, moments: np.ndarray | None = None) -> np.ndarray:
        """Returns rows (..., T + ahead, columns), the first of which is row `first_row` of a cycle, as inputs (..., T,
        width); of the last `ahead` those columns alone are read that are known. Missing values are not-a-number.

        `moments` are the times of all rows, microseconds, of a run that reads a calendar.
        """
        scaled = standardise(values, self._whole)
        scaled[..., : self._channels] -= _course(self._scaling, first_row).at(np.arange(values.shape[-2]))
        read, known = self._split(scaled.astype(np.float32))
        stamps = None if moments is None else moments[..., self.ahead :]
        place = (first_row + np.arange(read.shape[-2])) % self.period if self._learned else None
        return _lay_out(read, known, stamps, self.beside, self._channels, masked=self._masked, place=place)

    def decode(self, outputs: np.ndarray, first_row: int) -> np.ndarray:
        """Returns forecasts (..., H, channels), or bounds of them, that begin in row `first_row`, in own units."""
        course = _course(self._scaling, first_row).at(np.arange(outputs.shape[-2]))
        return restore(outputs + course, self._scaling)

    def _split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is read of each row, and what is known of the row `ahead` later."""
        first = self._channels + len(self.beside.past)
        return values[..., : values.shape[-2] - self.ahead, :first], values[..., self.ahead :, first:]


def _find_scaling(
    config: Data,
    values: mapped.Numbers,
    columns: tuple[str, ...],
    splits: Sequence[Split],
    known: Mapping[str, Any],
    channels: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scaling of the channels and of the columns beside them: of the run, or of the training rows."""
    if known.get("scaling"):
        outer = known.get("covariates", {})
        return known["scaling"], {key: outer[key] for key in ("mean", "deviation") if key in outer}
    train = _training_rows(values, splits)
    scaling = _scaling(train, columns, config)
    outer = {key: scaling[key][channels:] for key in ("mean", "deviation")} if len(columns) > channels else {}
    scaling = {key: value[:channels] for key, value in scaling.items()}
    if config.period:
        _check_period(train, config)
        if not config.learned_period:
            scaling["cycle"] = _cycle(train, scaling, config)
    return scaling, outer


def _scaling(train: Sequence[mapped.Numbers], columns: tuple[str, ...], config: Data) -> dict[str, Any]:
    """Mean and deviation of every column."""
    plain = len(train) == 1 and config.missing != "mask"
    mean, deviation = moments(train[0]) if plain else moments_of_observed(train)
    if absent := [name for name, value in zip(columns, mean, strict=True) if np.isnan(value)]:
        raise InputError(f"the column {absent[0]!r} has no value in the training rows: drop it, by data.ignore")
    return {"mean": mean.tolist(), "deviation": deviation.tolist()}


def _settle_period(
    config: Data, values: mapped.Numbers, splits: Sequence[Split], known: Mapping[str, Any], channels: int
) -> tuple[Data, dict[str, int]]:
    """Where the config asks to look for a period, (the config with that of the run, or of the training rows; what
    metadata say of it).
    """
    if config.period >= 0:
        return config, {}
    if known:
        period = known.get("period", 0)
    else:
        train = _training_rows(values, splits)
        _check_period(train, config)
        period = find_period(mapped.select(train[0], list(range(channels))))
    return dataclasses.replace(config, period=period), {"period": period}


def _training_rows(values: mapped.Numbers, splits: Sequence[Split]) -> list[mapped.Numbers]:
    """Those of every series that has any. Raises InputError where none has."""
    train = [mapped.view(values, slice(*split["train"])) for split in splits if split["train"][1] > split["train"][0]]
    if not train:
        raise InputError(
            "no row of the table is left for training: give at least data.length + data.horizon rows for every split"
        )
    return train


def _check_period(train: Sequence[mapped.Numbers], config: Data) -> None:
    """Raises InputError where the training rows are of several series, or less than one cycle."""
    period, rows = config.period, sum(map(len, train))
    if len(train) > 1:  # they need not begin at one place of a cycle
        raise InputError(
            f"data.period={period} is of one series, found {len(train)}: use data.calendar, which tells of each row "
            "where it is"
        )
    if rows < period:
        raise InputError(
            f"data.period={period} is longer than the {rows} training rows, whose course it is: use a shorter one, or 0"
        )


def _cycle(train: Sequence[mapped.Numbers], scaling: Mapping[str, Any], config: Data) -> list[list[float]]:
    """The mean course of the standardised rows over a cycle, which begins at the first; 0 where none has a value."""
    channels, cycle = len(scaling["mean"]), []
    for phase in range(config.period):
        total = count = np.zeros(channels)
        for block in mapped.blocks(mapped.view(train[0], slice(phase, None, config.period))):
            scaled = standardise(block[:, :channels].astype(np.float64), scaling)
            total, count = total + np.nansum(scaled, axis=0), count + (~np.isnan(scaled)).sum(axis=0)
        cycle.append((total / np.maximum(count, 1)).tolist())
    return cycle


@dataclasses.dataclass(frozen=True)
class _Course:
    """The mean course of the channels, cycle after cycle: (period, channels), and the place of the first row in it."""

    cycle: np.ndarray
    phase: int

    def at(self, rows: np.ndarray) -> np.ndarray:
        return self.cycle[(rows + self.phase) % len(self.cycle)]


def _course(scaling: Mapping[str, Any], phase: int) -> _Course:
    """The course that was taken off, 0 where none was."""
    return _Course(np.array(scaling.get("cycle", [[0.0]])), phase)


class _Scaled:
    """Rows that are standardised when they are read."""

    def __init__(
        self, values: mapped.Mapped, scaling: Mapping[str, Any], course: _Course | None, channels: int
    ) -> None:
        self._values, self._course, self._channels = values, course, channels
        self._mean, self._deviation = np.array(scaling["mean"]), np.array(scaling["deviation"])
        self.shape = values.shape

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        scaling = {"mean": self._mean[columns], "deviation": self._deviation[columns]}
        part = standardise(self._values[rows, columns], scaling)
        if self._course is not None:
            place = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
            course = self._course.at(place)
            if isinstance(columns, slice):
                part[..., : self._channels] -= course
            elif columns < self._channels:
                part -= course[..., columns]
        return part.astype(np.float32)


def _scale(values: mapped.Numbers, scaling: Mapping[str, Any], course: _Course | None, channels: int) -> Any:
    """Standardised rows, the channels less their course, in float32; values that are in float32 are overwritten, so
    that a large table is held once; those of a file are scaled as they are read.
    """
    if isinstance(values, mapped.Mapped):
        return _Scaled(values, scaling, course, channels)
    scaled = values if values.dtype == np.float32 else np.empty(values.shape, np.float32)
    for rows in blocks(len(values), values.shape[1]):
        part = standardise(values[rows].astype(np.float64), scaling)
        if course is not None:
            part[:, :channels] -= course.at(np.arange(*rows.indices(len(values))))
        scaled[rows] = part
    return scaled


@dataclasses.dataclass(frozen=True)
class _Windows:
    config: Data
    channels: int
    values: Any
    splits: Sequence[Split]
    course: _Course | None
    beside: Covariates
    masked: bool
    phase: int  # of the first row in a cycle that the model learns

    def check(self, table: str, splits: Iterable[str]) -> None:
        length, horizon = self.config.length, self.config.horizon
        if (self.beside.future or self.beside.calendar) and length < horizon:
            raise InputError(
                f"{table} is looked back on for {length} rows, fewer than data.horizon={horizon}, which data.calendar "
                "and data.future_covariates tell of: set data.length to as many at least"
            )
        for name in splits:
            if not self.starts(name).size:
                rows = sum(split[name][1] - split[name][0] for split in self.splits)
                series = f" in {len(self.splits)} series" if len(self.splits) > 1 else ""
                raise InputError(
                    f"the {name} split of {table} has {rows} rows{series}, too few for one window of "
                    f"data.length={length} and data.horizon={horizon}: shorten them, or give more rows"
                )

    def starts(self, name: str) -> Spans:
        """First rows of all windows of a split; targets lie inside it, the lookback may begin before it, in the same
        series. Where values may be missing, windows without a target are left out.
        """
        return self._starts[name]

    @functools.cached_property
    def _starts(self) -> dict[str, Spans]:
        names, span = {name for split in self.splits for name in split}, self.config.length + self.config.horizon
        runs = {}
        for name in names:
            firsts = [max(split[name][0] - self.config.length, split[WHOLE][0]) for split in self.splits]
            ends = [split[name][1] - span + 1 for split in self.splits]
            runs[name] = Spans.of((first, end - first) for first, end in zip(firsts, ends, strict=True))
        return {name: self._with_targets(starts) for name, starts in runs.items()} if self.masked else runs

    def _with_targets(self, starts: Spans) -> Spans:
        """Those of windows that have a target."""
        horizon, most = self.config.horizon, max(mapped.BLOCK // self.values.shape[1], 1)
        parts = []
        for start, count in starts.runs(most):
            first = start + self.config.length
            there = ~np.isnan(self.values[first : first + count + horizon - 1, : self.channels]).all(axis=1)
            before = np.append(0, np.cumsum(there))  # rows with a target, before each
            parts.append(spans_of(start + np.flatnonzero(before[horizon:] > before[:count])))
        return Spans.join(parts)

    def draw(self, seed: int, numbers: np.ndarray) -> Batch:
        return self._take(self._train_starts.at(shuffled_rows(seed, numbers, self._train_starts.size)))

    def cover(self, split: str, batch_size: int) -> Iterator[Batch]:
        starts = self.starts(split)
        return in_order(starts.size, batch_size, lambda rows: self._take(starts.at(rows)))

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """The last value repeated, and ridge regression on the lookback less its last value (NLinear, Zeng et al.
        2023).

        "ridge" is one map for all channels, "ridge by channel" one for each; fitted on the training windows, with the
        penalty that serves the validation windows best. All of them forecast what is left where a cycle was taken off.
        A table as a whole has no windows beside it to fit on: the last value alone is repeated.
        """
        maps: dict[str, np.ndarray | None] = {"repeat last": None}
        if split != WHOLE and all(self.starts(name).size for name in ("train", "validation")):
            maps |= self._ridge
        return nlinear.scores(maps, self._windows(split))

    @functools.cached_property
    def _ridge(self) -> dict[str, np.ndarray]:
        return nlinear.fit(self._windows("train"), self._windows("validation"))

    def _windows(self, split: str) -> nlinear.Windows:
        values = self.values[:, : self.channels] if isinstance(self.values, np.ndarray) else self.values
        return nlinear.Windows(values, self.starts(split), self.config.length, self.config.horizon, self.channels)

    @functools.cached_property
    def _train_starts(self) -> Spans:
        names = ("train",) if self.config.train_on == "train" else ("train", "validation")
        return Spans.join([self.starts(name) for name in names])

    def _take(self, starts: np.ndarray) -> Batch:
        length, horizon = self.config.length, self.config.horizon
        rows = starts[:, None] + np.arange(length + horizon)[None]
        values = self.values[rows]
        targets = values[:, length:, : self.channels]
        batch = {
            "targets": targets,
            "weights": np.ones(len(starts), np.float32),
            "valid": np.ones((len(starts), length), bool),
        }
        if self.course is not None:
            batch["course"] = self.course.at(rows).astype(np.float32)
        if self.masked:
            there = ~np.isnan(targets)
            batch["weights"] = there.astype(np.float32) / np.float32(there[0].size)  # a window counts for 1, as others
            batch["targets"] = np.where(there, targets, 0)
        columns, beside = self.channels + len(self.beside.past), self.beside
        stamps = beside.moments[rows[:, horizon:]] if beside.calendar and beside.moments is not None else None
        read, known = values[:, :length, :columns], values[:, horizon:, columns:]
        period = self.config.learned_period
        place = (rows[:, :length] + self.phase) % period if period else None
        batch["inputs"] = _lay_out(read, known, stamps, beside, self.channels, masked=self.masked, place=place)
        return batch


def _lay_out(
    read: np.ndarray,
    known: np.ndarray,
    stamps: np.ndarray | None,
    beside: Covariates,
    channels: int,
    *,
    masked: bool,
    place: np.ndarray | None = None,
) -> np.ndarray:
    """Inputs (..., T, width): the channels, past covariates, and what is known of the row `horizon` steps ahead, so
    that after the last step all rows to be forecast are known; each with a mask behind it, if values may be missing.

    `read` are channels and past covariates of each row; `known` and `stamps` covariates and time of the row ahead;
    `place` that of each row in a cycle that the model learns, which comes last.
    """
    parts = [read[..., :channels], read[..., channels:], known]
    parts = [filled for part in parts if part.shape[-1] for filled in (_fill(part) if masked else [part])]
    if beside.calendar and stamps is not None:
        parts.append(times.calendar(stamps, beside.calendar))
    if place is not None:
        parts.append(np.broadcast_to(place, read.shape[:-1])[..., None].astype(np.float32))
    return np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def _fill(values: np.ndarray) -> list[np.ndarray]:
    """Values, 0 where they are missing, the mean of training, and where they are there."""
    there = ~np.isnan(values)
    return [np.where(there, values, 0), there.astype(np.float32)]


def read_csv(name: str, text: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns (values, column names) of a table in memory; see `tables.read`. Raises InputError as it does."""
    table = tables.read(name, tables.opener_of(text), most_rows=text.count("\n") + text.count("\r") + 1)
    return np.asarray(table.values, np.float64), table.names
