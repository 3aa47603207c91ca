"""Numeric tables to forecast: the literature's splits, scaling and windows, any CSV, and linear baselines."""

import csv
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data.pipeline import Batch, Dataset, in_order, shuffled_rows
from selssm_jax.errors import InputError

Rows = tuple[int, int]
RIDGE_PENALTIES = (1e-2, 1.0, 1e2, 1e3, 1e4)
RIDGE_WINDOWS = 3000


def etth_split(values: np.ndarray) -> dict[str, Rows]:
    """12, 4 and 4 months of 30 days (Zhou et al. 2021): rows 0:8640:11520:14400 of hourly data, the rest unused."""
    scale = 4 if len(values) > 20_000 else 1
    return {"train": (0, 8640 * scale), "validation": (8640 * scale, 11520 * scale), "test": (11520 * scale, 14400 * scale)}


def share_split(values: np.ndarray) -> dict[str, Rows]:
    """70 % training, 20 % test at the end, validation between (Wu et al. 2021)."""
    train, test = int(len(values) * 0.7), int(len(values) * 0.2)
    return {"train": (0, train), "validation": (train, len(values) - test), "test": (len(values) - test, len(values))}


def dataset(config: Data, values: np.ndarray, names: tuple[str, ...], split: Mapping[str, Rows], scaling: Mapping[str, list[float]] | None, info: Mapping[str, object]) -> Dataset:
    """Returns the task of forecasting `horizon` rows from `length`: standardised by training rows, windows of stride 1.

    Validation and test windows may look back into the split before, as in the literature. `scaling` is that of a training run.
    """
    train = values[slice(*split["train"])]
    mean, deviation = (train.mean(axis=0), train.std(axis=0)) if scaling is None else (np.array(scaling[name]) for name in ("mean", "deviation"))
    scaled = ((values - mean) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
    source = _Windows(config.length, config.horizon, config.train_on, scaled, split)
    source.check()
    counts = {f"{name}_windows": len(source.starts(name)) for name in split}
    return Dataset(
        task=Task("forecasting", channels=values.shape[1], length=config.length, horizon=config.horizon),
        draw=source.draw,
        cover=source.cover,
        info={**info, **counts, "channels": list(names), "scaling": {"mean": mean.tolist(), "deviation": deviation.tolist()}},
        baselines=source.baselines,
    )


@dataclasses.dataclass(frozen=True)
class _Windows:
    length: int
    horizon: int
    train_on: str
    values: np.ndarray
    split: Mapping[str, Rows]

    def check(self) -> None:
        for name, (first, last) in self.split.items():
            if not len(self.starts(name)):
                raise InputError(
                    f"the {name} split has {last - first} rows, too few for one window of data.length={self.length} and data.horizon={self.horizon}: "
                    "shorten them, or give more rows"
                )

    def starts(self, name: str) -> np.ndarray:
        """First rows of all windows of a split; targets lie inside it, the lookback may begin before it."""
        first, last = self.split[name]
        return np.arange(max(first - self.length, 0) if name != "train" else first, last - self.length - self.horizon + 1)

    def draw(self, seed: int, number: int, batch_size: int) -> Batch:
        names = ("train",) if self.train_on == "train" else ("train", "validation")
        starts = np.concatenate([self.starts(name) for name in names])
        return self._take(starts[shuffled_rows(seed, number, batch_size, len(starts))])

    def cover(self, split: str, batch_size: int) -> Iterator[Batch]:
        starts = self.starts(split)
        return in_order(len(starts), batch_size, lambda rows: self._take(starts[rows]))

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """The last value repeated, and ridge regression on the lookback less its last value, one map for all channels (NLinear)."""
        train, validation = (self._take(_thinned(self.starts(name))) for name in ("train", "validation"))
        maps, test = _ridge(train, RIDGE_PENALTIES), self._take(self.starts(split))
        chosen = min(maps, key=lambda weights: _errors(_linear(weights, validation["inputs"]), validation["targets"])["mse"])
        repeated = np.broadcast_to(test["inputs"][:, -1:], test["targets"].shape)
        return {"repeat last": _errors(repeated, test["targets"]), "ridge": _errors(_linear(chosen, test["inputs"]), test["targets"])}

    def _take(self, starts: np.ndarray) -> Batch:
        rows = starts[:, None] + np.arange(self.length + self.horizon)[None]
        window = self.values[rows]
        ones = np.ones(len(starts), np.float32)
        return {"inputs": window[:, : self.length], "targets": window[:, self.length :], "weights": ones, "valid": np.ones((len(starts), self.length), bool)}


def _thinned(starts: np.ndarray) -> np.ndarray:
    """Every n-th window, so that a baseline takes seconds: neighbours differ by one row."""
    return starts[:: max(len(starts) // RIDGE_WINDOWS, 1)]


def _ridge(batch: Batch, penalties: tuple[float, ...]) -> list[np.ndarray]:
    """Maps (length + 1, horizon) from the lookback less its last value, and 1, to the horizon less it; one for each penalty."""
    x, y = (_rows(batch[name] - batch["inputs"][:, -1:]) for name in ("inputs", "targets"))
    x = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)
    gram, cross = (x.T @ x).astype(np.float64), (x.T @ y).astype(np.float64)
    return [np.linalg.solve(gram + penalty * np.eye(len(gram)), cross).astype(np.float32) for penalty in penalties]


def _linear(weights: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    last = inputs[:, -1:]
    return np.einsum("blc,lh->bhc", inputs - last, weights[:-1], optimize=True) + weights[-1][None, :, None] + last


def _rows(values: np.ndarray) -> np.ndarray:
    return values.swapaxes(1, 2).reshape(-1, values.shape[1])


def _errors(forecast: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    error = forecast - targets
    return {"mse": float((error**2).mean()), "mae": float(np.abs(error).mean())}


def read_csv(path: pathlib.Path, text: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns (values, column names) of a table of numbers; a header and a first column of dates are recognised.

    Raises:
      InputError: for an empty table, a ragged row, a cell that is no finite number; it names line and column.
    """
    rows = [(number, row) for number, row in enumerate(csv.reader(text.splitlines()), start=1) if any(cell.strip() for cell in row)]
    if not rows:
        raise InputError(f"{path} is empty: give a CSV with one row a time step and one column a channel")
    names, body = _header(rows)
    skip = 0 if not body or _number(body[0][1][0]) is not None else 1
    values = np.array([_cells(path, number, row, len(rows[0][1]), skip) for number, row in body], np.float32)
    if not values.size:
        raise InputError(f"{path} has no numbers below its header: give one row a time step and one column a channel")
    return values, names[skip:]


def _header(rows: list[tuple[int, list[str]]]) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    first = rows[0][1]
    if any(_number(cell) is not None for cell in first[-1:]):
        return tuple(f"column {index + 1}" for index in range(len(first))), rows
    return tuple(cell.strip() for cell in first), rows[1:]


def _cells(path: pathlib.Path, line: int, row: list[str], width: int, skip: int) -> list[float]:
    if len(row) != width:
        raise InputError(f"{path} line {line} has {len(row)} cells, the first line has {width}: every row needs the same columns")
    found = [_number(cell) for cell in row[skip:]]
    for column, value in enumerate(found, start=skip + 1):
        if value is None or not np.isfinite(value):
            raise InputError(f"{path} line {line} column {column} holds {row[column - 1]!r}, expected a finite number: fill it in or drop the row")
    return [value for value in found if value is not None]


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
