"""The rows of a table in order of time, series after series: turned round, filled up, or refused."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from selssm_jax.data import mapped, times
from selssm_jax.errors import InputError

MOST_FILLED = 10  # times the rows of a table that it may have with those that are put in
SAID = 3  # notes on single series
APART, MONTHS_APART = 0.01, 0.15  # the share by which steps of one length may differ


class Series(NamedTuple):
    """The name of a series, and its rows in the table."""

    name: str
    rows: slice | np.ndarray

    @property
    def size(self) -> int:
        """How many rows it has."""
        return self.rows.stop - self.rows.start if isinstance(self.rows, slice) else len(self.rows)


def split_series(names: Iterable[str], counts: Sequence[int]) -> list[Series]:
    """Returns series that stand one after the other in a table."""
    ends = np.cumsum(counts).tolist()
    return [Series(name, slice(end - count, end)) for name, count, end in zip(names, counts, ends, strict=True)]


def arrange(
    name: str,
    series: list[Series],
    values: mapped.Numbers,
    moments: mapped.Numbers | None,
    unit: str,
    gaps: str,
    notes: list[str],
) -> tuple[mapped.Numbers, mapped.Numbers | None, tuple[int, ...]]:
    """Returns values and times of the rows in order, and the rows after the last of every series.

    Args:
      name: of the file, for messages. moments: the time of every row, in a unit: "date", "time", "row", or "label", of
        which nothing is asked.
      gaps: as `tables.read` has it. notes: what is to be said is added.

    Raises:
      InputError: for gaps that are refused, or cannot be filled.
    """
    if len(series) == 1:
        rows, moments = _order(name, moments, unit, gaps, notes)
        values = mapped.view(values, rows)
        return values, moments, (len(values),)
    orders: list[slice | np.ndarray] = []
    clocks: list[Any] = []
    said: list[str] = []
    for label, rows in series:
        mine: list[str] = []
        timed = None if moments is None else mapped.view(moments, rows)
        order, ordered = _order(f"{name}, series {label!r}", timed, unit, gaps, mine)
        orders.append(order)
        clocks.append(ordered)
        said += [f"series {label!r}: {note}" for note in mine]
    notes += said[:SAID] + [f"and {len(said) - SAID:,} notes more of series"] * (len(said) > SAID)
    if all(isinstance(part.rows, slice) for part in series) and all(
        isinstance(order, slice) and order.step is None for order in orders
    ):
        return values, moments, tuple(np.cumsum([part.size for part in series]).tolist())
    every = [_reorder(part.rows, order) for part, order in zip(series, orders, strict=True)]
    ends = tuple(np.cumsum([len(rows) for rows in every]).tolist())
    moments = None if moments is None else np.concatenate([ordered[:] for ordered in clocks])
    return mapped.view(values, np.concatenate(every)), moments, ends


def _reorder(rows: slice | np.ndarray, order: slice | np.ndarray) -> np.ndarray:
    """Rows of the table in the order of their series, -1 for those that are put in."""
    rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
    return rows[order] if isinstance(order, slice) else np.where(order < 0, -1, rows[order])


def clock(name: str, moments: mapped.Numbers | None, ends: tuple[int, ...], gaps: str) -> tuple[float, float] | None:
    """Returns the time of the first row and the usual step, of the first series that has one; None without times.

    Raises InputError where series have other steps, unless gaps are ignored.
    """
    if moments is None:
        return None
    begins = (0, *ends[:-1])
    steps = [
        (first, times.usual_step(mapped.view(moments, slice(first, last))))
        for first, last in zip(begins, ends, strict=True)
        if last - first > 1
    ]
    other = [place for place, step in steps if not same_step(step, steps[0][1])]
    if other and gaps != "ignore":
        raise InputError(
            f"{name}: the series that begins at {times.format_time(float(moments[other[0]]), 'date')} has another step "
            "than the first: resample it, or set data.gaps='ignore'"
        )
    return (float(moments[steps[0][0]]), steps[0][1]) if steps else None


def same_step(step: float, other: float) -> bool:
    """Whether two steps, in microseconds, are one but for rounding; months are of 28 to 31 days."""
    return abs(step - other) <= (APART if other < 27 * 86_400e6 else MONTHS_APART) * abs(other)


def _order(
    name: str, moments: mapped.Numbers | None, unit: str, gaps: str, notes: list[str]
) -> tuple[slice | np.ndarray, mapped.Numbers | None]:
    """Which rows to take in which order, -1 for one that is put in, and their times."""
    rows = slice(None)
    if moments is not None and times.newest_first(moments):
        rows, moments = slice(None, None, -1), mapped.view(moments, slice(None, None, -1))
        notes.append("newest first, turned round")
    if moments is None or unit == "label":
        if gaps == "fill":
            raise InputError(
                f"{name} has no column of times, by which data.gaps='fill' would put rows in: add one, or leave it out"
            )
        return rows, moments
    if gaps != "fill":
        _check_steps(name, moments, unit, gaps, notes)
        return rows, moments
    order, filled = _fill(name, moments[:], unit, notes)
    return (order if rows.step is None else np.where(order < 0, -1, len(moments) - 1 - order)), filled


def _fill(name: str, moments: np.ndarray, unit: str, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `_order`: rows by their times, the last of those of one time, and one for each time that is missing."""
    order = np.argsort(moments, kind="stable")
    if (np.diff(moments) < 0).any():
        notes.append("rows sorted by time")
    last = np.append(np.diff(moments[order]) > 0, True)
    if not last.all():
        notes.append(f"rows left out for a later one of the same time: {(~last).sum():,}")
    order = order[last]
    grid = times.grid(moments[order], dates=unit == "date")
    say = lambda time: times.format_time(float(time), unit)  # noqa: E731
    if (uneven := np.flatnonzero(grid.places < 0)).size:
        before, after = moments[order][uneven[0] - 1], moments[order][uneven[0]]
        raise InputError(
            f"{name}: {say(before)} is followed by {say(after)}, no multiple of the step of the other rows: resample "
            "the table"
        )
    if len(grid.times) > MOST_FILLED * len(order):
        raise InputError(
            f"{name}: data.gaps='fill' would make {len(grid.times):,} rows of {len(order):,}: cut the table where its "
            "times leap, or resample it"
        )
    filled = np.full(len(grid.times), -1)
    filled[grid.places] = order
    if (absent := np.flatnonzero(filled < 0)).size:
        notes.append(f"rows put in for missing times: {absent.size:,}, the first at {say(grid.times[absent[0]])}")
    return filled, grid.times


def _check_steps(name: str, moments: mapped.Numbers, unit: str, gaps: str, notes: list[str]) -> None:
    place = times.irregular(moments)
    if place is None:
        return
    before, after = (times.format_time(float(moments[row]), unit) for row in (place - 1, place))
    step = "comes twice" if before == after else f"is followed by {after}, which is not the step of the other rows"
    if gaps == "refuse":
        raise InputError(
            f"{name}: {before} {step}: fill what is missing and keep one row a time, or set data.gaps='ignore' to take "
            "each row as following the one before, or 'fill' with data.missing='mask' to put in what is missing"
        )
    notes.append(f"irregular times ignored, the first after {before}")
