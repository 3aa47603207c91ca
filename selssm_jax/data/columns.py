"""Which columns of a table are forecast, which are read beside them, and which are those that a run was trained on."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from selssm_jax.config import Data
from selssm_jax.data import mapped
from selssm_jax.data.row_order import same_step
from selssm_jax.data.tables import Table
from selssm_jax.errors import InputError, suggest

_UNNAMED = re.compile(r"(?:column|channel) (\d+)")


class Roles(NamedTuple):
    """The names of the columns that are forecast, of those that are read beside them as far as they are there, and of
    those that are known of the rows to be forecast.
    """

    targets: tuple[str, ...]
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, in this order."""
        return self.targets + self.past + self.future


def assign_roles(config: Data, name: str, table: Table, known: Mapping[str, Any]) -> Roles:
    """Returns the roles of a table's columns: those of a run, from its metadata, else those of the config, where all
    columns that nothing is said of are targets unless some are named.

    Raises InputError where the table lacks a column that the config names, or nothing is left to forecast.
    """
    if "channels" in known:
        beside = known.get("covariates", {})
        return Roles(tuple(known["channels"]), tuple(beside.get("past", ())), tuple(beside.get("future", ())))
    for role in ("targets", "past_covariates", "future_covariates", "static", "ignore"):
        for label in getattr(config, role):
            if label not in table.names:
                raise InputError(f"{name} has no column {label!r} of data.{role}: {suggest(label, table.names)}")
    past, future = config.past_covariates + config.static, config.future_covariates
    rest = tuple(label for label in table.names if label not in (*past, *future, *config.ignore))
    if not rest:
        raise InputError(f"{name} has no column left to forecast: name one by data.targets")
    return Roles(config.targets or rest, past, future)


def check_static(name: str, table: Table, static: tuple[str, ...]) -> None:
    """Raises InputError where a static column changes within a series."""
    for label in static:
        column, begins = mapped.select(table.values, table.names.index(label)), (0, *table.ends[:-1])
        for first, last in zip(begins, table.ends, strict=True):
            every = [there[~np.isnan(there)] for there in mapped.blocks(mapped.view(column, slice(first, last)))]
            ends = [(there.min(), there.max()) for there in every if there.size]
            if ends and min(low for low, _ in ends) < max(high for _, high in ends):
                raise InputError(
                    f"{name}: data.static names {label!r}, which changes within a series: name it by "
                    "data.past_covariates"
                )


def check_calendar(name: str, table: Table, calendar: tuple[str, ...]) -> None:
    """Raises InputError where features of the calendar are asked of rows without times."""
    if calendar and table.dates is None:
        raise InputError(
            f"{name} has no column of times, which data.calendar={calendar} needs: add one, or leave it out"
        )


def match_columns(name: str, table: Table, wanted: tuple[str, ...]) -> Table:
    """Returns the columns that a run was trained on, by their names, in its order; by place where the run's columns
    have none.

    Raises InputError where a column is missing, or has no name to be told by.
    """
    unnamed = all(_UNNAMED.fullmatch(label) for label in wanted)
    if set(wanted) <= set(table.names) and (table.named or unnamed):
        rest = [label for label in table.names if label not in wanted]
        notes = [f"left out {', '.join(map(repr, rest))} (not of the run)"] if rest else []
        notes += [] if table.named else ["columns by place: the run's have no names"]
        return _select(table, [table.names.index(label) for label in wanted], wanted, notes)
    if len(table.names) != len(wanted) and (unnamed or not table.named):
        raise InputError(
            f"{name} has {len(table.names)} channels, the run was trained on {len(wanted)}: give a table with the same "
            "columns"
        )
    if unnamed:
        numbers = [int(_UNNAMED.fullmatch(label)[1]) for label in wanted]  # type: ignore[index]
        places = np.argsort(np.argsort(numbers)).tolist()
        return _select(table, places, wanted, ["columns by place: the run's have no names"])
    if not table.named:
        raise InputError(
            f"{name} has no line of names, by which the run tells its columns: put {','.join(wanted)} above the "
            "numbers, in the table's order"
        )
    missing = ", ".join(repr(label) for label in wanted if label not in table.names)
    raise InputError(
        f"{name} lacks {missing}, which the run was trained on, and has {', '.join(map(repr, table.names))}: add or "
        "rename the columns"
    )


def join_tables(name: str, parts: Sequence[Table], folder: pathlib.Path | None) -> Table:
    """Returns tables of the same columns one after the other, each a series or several; in a folder where they are
    large.

    Raises InputError where only some have times, or their steps differ.
    """
    timed = [part.moments for part in parts if part.moments is not None]
    if timed and len(timed) < len(parts):
        raise InputError(f"{name}: some of the files have a column of times, others have none: give it to all")
    clocks = [part.clock for part in parts if part.clock is not None]
    for clock in clocks:
        if not same_step(clock[1], clocks[0][1]):
            raise InputError(
                f"{name}: one file has a row every {clocks[0][1] / 1e6:g} seconds, another every {clock[1] / 1e6:g}: "
                "resample them"
            )
    before = np.cumsum([0, *(len(part.values) for part in parts)])
    return dataclasses.replace(
        parts[0],
        values=mapped.join([part.values for part in parts], folder),
        moments=mapped.join(timed, folder and folder.with_name(f"{folder.name}-times")) if timed else None,
        clock=clocks[0] if clocks else None,
        unit=parts[0].unit,
        when=parts[0].when,
        series=tuple(label for part in parts for label in part.series),
        ends=tuple(int(first) + end for first, part in zip(before, parts, strict=False) for end in part.ends),
        notes=(f"{len(parts):,} files", *dict.fromkeys(note for part in parts for note in part.notes)),
    )


def select_columns(table: Table, wanted: tuple[str, ...]) -> Table:
    """Returns the columns of these names, which the table has, in this order; those that are left out are said."""
    rest = [label for label in table.names if label not in wanted]
    notes = [f"left out {', '.join(map(repr, rest))} (of no role)"] if rest else []
    return _select(table, [table.names.index(label) for label in wanted], wanted, notes)


def _select(table: Table, places: list[int], names: tuple[str, ...], notes: list[str]) -> Table:
    return dataclasses.replace(
        table, values=mapped.select(table.values, places), names=names, notes=(*table.notes, *notes)
    )
