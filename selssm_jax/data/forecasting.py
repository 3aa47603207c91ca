"""Numeric tables to forecast: the literature's splits, scaling and windows, any CSV, and linear baselines."""

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data import nlinear
from selssm_jax.data.pipeline import Batch, Dataset, in_order, shuffled_rows
from selssm_jax.errors import InputError

Rows = tuple[int, int]


def ett_split(scale: int) -> dict[str, Rows]:
    """12, 4 and 4 months of 30 days (Zhou et al. 2021): rows 0:8640:11520:14400 of hourly data, times `scale`; the rest is unused."""
    return {"train": (0, 8640 * scale), "validation": (8640 * scale, 11520 * scale), "test": (11520 * scale, 14400 * scale)}


def share_split(rows: int) -> dict[str, Rows]:
    """70 % training, 20 % test at the end, validation between (Wu et al. 2021)."""
    train, test = int(rows * 0.7), int(rows * 0.2)
    return {"train": (0, train), "validation": (train, rows - test), "test": (rows - test, rows)}


def dataset(config: Data, values: np.ndarray, names: tuple[str, ...], split: Mapping[str, Rows], known: Mapping[str, Any], info: Mapping[str, Any]) -> Dataset:
    """Returns the task of forecasting `horizon` rows from the `length` before: standardised by training rows, windows of stride 1.

    With `cycle`, inputs and targets are the series less its mean course over a cycle of the training rows, which CycleNet (Lin
    et al. 2024) learns; batches hold it as `course`. Errors are the same as of the series itself.

    Validation and test windows look back into the split before, as in the literature, so that every row of a split is
    forecast: ETTh1 with lookback and horizon 96 has 8449, 2785 and 2785 windows.

    Args:
      config: lookback (length), horizon, cycle, and what is trained on.
      values: (rows, channels).
      names: of the channels.
      split: first row and row after the last of "train", "validation" and "test".
      known: metadata of a training run, whose scaling then holds.
      info: goes into the metadata; names the table in errors.

    Raises:
      InputError: where a split is too short for one window, or training for one cycle.
    """
    scaling = known.get("scaling") or _scaling(values[slice(*split["train"])].astype(np.float64), config.cycle)
    scaled, course = _standardised(values, scaling), None
    if "cycle" in scaling:
        course = np.resize(scaling["cycle"], values.shape)  # cycle after cycle
        scaled, course = scaled - course, course.astype(np.float32)
    source = _Windows(config.length, config.horizon, config.train_on, scaled.astype(np.float32), split, course)
    source.check(str(info.get("file") or info["source"]))
    counts = {f"{name}_windows": len(source.starts(name)) for name in split}
    return Dataset(
        task=Task("forecasting", channels=values.shape[1], length=config.length, horizon=config.horizon),
        draw=source.draw,
        cover=source.cover,
        info={**info, **counts, "channels": list(names), "scaling": scaling, "train_on": config.train_on},
        baselines=source.baselines,
    )


def _scaling(train: np.ndarray, cycle: int) -> dict[str, Any]:
    """Mean and deviation of every channel, and the mean course of the standardised rows over a cycle, which begins at the first."""
    if len(train) < cycle:
        raise InputError(f"data.cycle={cycle} is longer than the {len(train)} training rows, whose mean course it is: use a shorter one, or 0")
    scaling = {"mean": train.mean(axis=0).tolist(), "deviation": train.std(axis=0).tolist()}
    if not cycle:
        return scaling
    scaled = _standardised(train, scaling)
    return scaling | {"cycle": [scaled[phase::cycle].mean(axis=0).tolist() for phase in range(cycle)]}


def _standardised(values: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    mean, deviation = np.array(scaling["mean"]), np.array(scaling["deviation"])
    return (values - mean) / np.where(deviation > 0, deviation, 1)


@dataclasses.dataclass(frozen=True)
class _Windows:
    length: int
    horizon: int
    train_on: str
    values: np.ndarray
    split: Mapping[str, Rows]
    course: np.ndarray | None

    def check(self, table: str) -> None:
        for name, (first, last) in self.split.items():
            if not len(self.starts(name)):
                raise InputError(
                    f"the {name} split of {table} has {last - first} rows, too few for one window of data.length={self.length} "
                    f"and data.horizon={self.horizon}: shorten them, or give more rows"
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
        """The last value repeated, and ridge regression on the lookback less its last value (NLinear, Zeng et al. 2023).

        "ridge" is one map for all channels, "ridge by channel" one for each; fitted on the training windows, with the
        penalty that serves the validation windows best. All of them forecast what is left where a cycle was taken off.
        """
        maps = {"repeat last": np.zeros((1, self.length + 1, self.horizon))} | nlinear.fit(self._windows("train"), self._windows("validation"))
        return {name: nlinear.errors(weights, self._windows(split)) for name, weights in maps.items()}

    def _windows(self, split: str) -> nlinear.Windows:
        return nlinear.Windows(self.values, self.starts(split), self.length, self.horizon)

    def _train_starts(self) -> np.ndarray:
        return np.concatenate([self.starts(name) for name in (("train",) if self.train_on == "train" else ("train", "validation"))])

    def _take(self, starts: np.ndarray) -> Batch:
        rows = starts[:, None] + np.arange(self.length + self.horizon)[None]
        inputs, targets = np.split(self.values[rows], [self.length], axis=1)
        ones = {"weights": np.ones(len(starts), np.float32), "valid": np.ones((len(starts), self.length), bool)}
        course = {} if self.course is None else {"course": self.course[rows]}
        return {"inputs": inputs, "targets": targets, **ones, **course}


def read_csv(name: str, text: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns (values, column names) of a table of numbers: one row a time step, one column a channel.

    A header is recognised, and a first column is left out where it holds dates or has no name. Cells stand between commas;
    between semicolons or tabs where the first line has no comma.

    Raises:
      InputError: for an empty table, a ragged row, a cell that is no finite number; it names line and column.
    """
    rows = _rows(name, text)
    first = rows[0][1]
    header = _is_header(first)
    body = rows[1:] if header else rows
    if not body:
        raise InputError(f"{name} has no numbers below its header: give one row a time step and one column a channel")
    dates = all(_number(row[0]) is None for _, row in (body[0], body[-1]))  # one such cell among numbers is an error below
    skip = int(dates or (header and not first[0].strip())) if len(first) > 1 else 0
    names = tuple(cell.strip() for cell in first) if header else tuple(f"column {index + 1}" for index in range(len(first)))
    for line, row in body:
        if len(row) != len(first):
            raise InputError(f"{name} line {line} has {len(row)} cells, its first line has {len(first)}: every row needs the same columns")
    return _values(name, body, skip), names[skip:]


def _rows(name: str, text: str) -> list[tuple[int, list[str]]]:
    """Line numbers and cells of all lines that are not blank."""
    head = text.lstrip().split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=next((mark for mark in ",;\t" if mark in head), ","))
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{name} line {reader.line_num} is no CSV ({error}): give numbers between commas") from error
    if not rows:
        raise InputError(f"{name} is empty: give a CSV with one row a time step and one column a channel")
    return rows


def _is_header(first: list[str]) -> bool:
    """Whether the first line names the columns: it holds words, or counts them from 0 behind a first cell that is no number."""
    rest = first[1:] or first
    words = all(_number(cell) is None for cell in rest) and any(cell.strip() for cell in rest)
    return words or (_number(first[0]) is None and rest == [str(index) for index in range(len(rest))])


def _values(name: str, body: list[tuple[int, list[str]]], skip: int) -> np.ndarray:
    try:
        values = np.array([row[skip:] for _, row in body], np.float64)
    except ValueError:
        values = np.array(np.nan)
    if not np.isfinite(values).all():
        cells = ((line, column, cell) for line, row in body for column, cell in enumerate(row[skip:], start=skip + 1))
        line, column, cell = next(found for found in cells if (value := _number(found[2])) is None or not np.isfinite(value))
        raise InputError(f"{name} line {line} column {column} holds {cell!r}, expected a finite number: fill it in or drop the row")
    return values


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
