"""Rows of a table as they come, from a file or from standard input: each is answered by a forecast and learnt from when
its truth is there. All that the stream is lies in RUN/stream, and the same command goes on from it.
"""

import json
import math
import os
import pathlib
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from selssm_jax.data import forecasting
from selssm_jax.errors import ArgumentError, InputError, as_input_error
from selssm_jax.model import SequenceModel
from selssm_jax.paths import check_regular
from selssm_jax.runs import Run, read_history
from selssm_jax.streaming.session import LEARNER, Entry, Session
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training.logging import Display, Logger
from selssm_jax.training.loop import Stop

STANDARD_INPUT = "-"
MARKS = (";", "\t", "|", ",")  # between cells; a comma may stand for decimals where it is another
EVENTS = {1: "rise", -1: "fall"}
BYTES, SECONDS = 1 << 16, 0.2  # read at a time; between two looks whether a signal came
DIGITS = 6  # of a number that is written


class StreamFolder(NamedTuple):
    """Where a stream lies: its state, its records and its report."""

    path: pathlib.Path

    @property
    def state(self) -> pathlib.Path:
        """Checkpoints of the session."""
        return self.path / "state"

    @property
    def events(self) -> pathlib.Path:
        """Changes that were seen, JSON a line."""
        return self.path / "events.jsonl"

    @property
    def report(self) -> pathlib.Path:
        """The page."""
        return self.path / "report"


class OpenStream:
    """A run that reads on from a table as it grows.

    Attributes:
      run, folder, session: what reads, where, and how far it is. stopped: whether a signal ended it.

    Raises:
      InputError: for a run that cannot be read row by row, and a folder that cannot be written.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.folder, self.stopped = run, StreamFolder(run.workdir / "stream"), False
        self._known = run.dataset.metadata()
        _check_run(run, self._known)
        assert isinstance(run.model, SequenceModel)
        self._options = run.experiment.stream
        self._scale = forecasting.History(self._known, run.model.config.task)
        with as_input_error(f"{run.workdir} cannot be read row by row: "):
            self.session = Session(run.model, run.params, self._options)
        self.resumed = self.session.restore(self.folder.state)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are read, in their order."""
        return self._scale.columns

    def follow(self, name: str) -> Iterator[str]:
        """Yields a line of JSON for each row of a file, or of standard input where it is "-".

        "row" is its number, "forecast" the rows that follow, in the table's own units, "error" the learner's faded mean
        squared error of standardised values, and "event" what was seen. Rows of a file that were read before are passed
        over; a line that is no row is left out, and said on standard error.

        Raises:
          InputError: for a file that cannot be read, other columns, and a file whose rows are not those that were read.
        """
        self.folder.path.mkdir(exist_ok=True)
        log = Logger(
            self.folder.path,
            [
                record
                for record in read_history(self.folder.path / "metrics.jsonl")
                if record["step"] < self.session.rows
            ],
            self.session.rows,
            0,
            display=Display(shown=False),
        )
        _keep_before(self.folder.events, self.session.rows)
        skipped = 0 if name == STANDARD_INPUT else self._count_read()
        try:
            with Stop() as stop:
                for number, row in enumerate(read_rows(name, self.columns, stop)):
                    if number < skipped:
                        self._check_passed(name, row, last=number == skipped - 1)
                        continue
                    yield from self._take(row, log)
                self.stopped = stop.is_requested()
        finally:
            self.session.save(self.folder.state)
            log.close()

    def _count_read(self) -> int:
        """Rows that were read before, those of the history among them."""
        return self.session.rows + self.session.read

    def _take(self, row: np.ndarray, log: Logger) -> Iterator[str]:
        """Reads a row, and yields its line unless it is history."""
        values = self._scale.encode(row[None], 0)[0]
        if self.session.read < self._options.history:
            self.session.read_history(values)
            return
        entry = self.session.advance(values)
        self._record(entry, log)
        if self.session.rows % self._options.save_every == 0:
            self.session.save(self.folder.state)
        yield json.dumps(self._describe(entry))

    def _describe(self, entry: Entry) -> dict[str, Any]:
        forecast = self._scale.decode(entry.forecast, 0)
        line: dict[str, Any] = {"row": entry.row, "forecast": [[_round(value) for value in step] for step in forecast]}
        if math.isfinite(entry.scores[LEARNER]):
            line["error"] = _round(entry.scores[LEARNER])
        return line | ({"event": _name_event(entry)} if _name_event(entry) else {})

    def _record(self, entry: Entry, log: Logger) -> None:
        event = _name_event(entry)
        if event:
            with self.folder.events.open("a") as file:
                file.write(json.dumps({"row": entry.row, "event": event, "error": entry.scores[LEARNER]}) + "\n")
        if event or entry.row % self._options.log_every == 0:
            known = {name: value for name, value in entry.scores.items() if math.isfinite(value)}
            log.record(entry.row, "stream", known | {"boost": entry.boost, "change": float(entry.change)})

    def _check_passed(self, name: str, row: np.ndarray, *, last: bool) -> None:
        """Raises InputError where the newest row that was read is another in this file."""
        if last and not np.allclose(self._scale.encode(row[None], 0)[0], self.session.recent[-1], rtol=1e-5, atol=1e-6):
            raise InputError(
                f"row {self._count_read() - 1} of {name} is not the one that the stream in {self.folder.path} "
                "has read: give the same table, longer, or move that folder away to begin anew"
            )


def read_rows(name: str, columns: Sequence[str], stop: Stop) -> Iterator[np.ndarray]:
    """Yields the rows of a table, (C,) each, as they come, until its end or a signal.

    A first line of names says which columns are read, in any order; without one a line has exactly these. What is no
    row is left out: standard error has its line and why.

    Raises:
      InputError: for a file that cannot be read, and names that lack a column.
    """
    places, mark = None, ","
    for number, line in enumerate(_read_lines(name, stop), 1):
        if not line.strip():
            continue
        if number == 1:
            mark = next((sign for sign in MARKS if sign in line), ",")
            cells = [cell.strip().strip('"').removeprefix("\ufeff") for cell in line.split(mark)]
            if any(_number(cell, mark) is None for cell in cells):
                places = _find_places(name, cells, columns)
                continue
        row, why = _parse_row(line.split(mark), places, columns, mark)
        if row is None:
            print(f"line {number} of {_title(name)} is left out: {why}", file=sys.stderr, flush=True)
        else:
            yield row


def _read_lines(name: str, stop: Stop) -> Iterator[str]:
    """Whole lines of a file or of standard input, looking for signals while there is none; the last may lack an end."""
    rest = b""
    descriptor = sys.stdin.fileno() if name == STANDARD_INPUT else _open(name)
    try:
        while not stop.is_requested():
            if not select.select([descriptor], [], [], SECONDS)[0]:
                continue
            piece = os.read(descriptor, BYTES)
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.decode("utf-8", errors="replace").rstrip("\r")
                if stop.is_requested():
                    return
            if not piece:
                if rest:
                    yield rest.decode("utf-8", errors="replace")
                return
    finally:
        if name != STANDARD_INPUT:
            os.close(descriptor)


def _open(name: str) -> int:
    try:
        check_regular(name)
        return os.open(name, os.O_RDONLY)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            "stream", f"={name} cannot be read ({error}): name a table, or - for standard input"
        ) from error


def _find_places(name: str, cells: list[str], columns: Sequence[str]) -> list[int]:
    missing = [column for column in columns if column not in cells]
    if missing:
        raise InputError(
            f"{_title(name)} has the columns {', '.join(cells)}, but not {', '.join(missing)}, which the run reads: "
            "rename them, or leave the first line out and give the numbers in the run's order"
        )
    return [cells.index(column) for column in columns]


def _parse_row(
    cells: list[str], places: list[int] | None, columns: Sequence[str], mark: str
) -> tuple[np.ndarray | None, str]:
    """(The numbers of a row, why there are none)."""
    if places is None and len(cells) != len(columns):
        return None, f"it has {len(cells)} cells, expected {len(columns)} numbers: {', '.join(columns)}"
    if places is not None and len(cells) <= max(places):
        return None, f"it has {len(cells)} cells, and a column of the run is the {max(places) + 1}th"
    values = [_number(cells[place], mark) for place in (places or range(len(columns)))]
    for column, place, value in zip(columns, places or range(len(columns)), values, strict=True):
        if value is None or not math.isfinite(value):
            return None, f"{column} is {cells[place].strip()!r}, expected a number"
    return np.array(values, np.float64), ""


def _number(cell: str, mark: str) -> float | None:
    text = cell.strip().strip('"')
    if mark != "," and "." not in text:
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError:
        return None


def _title(name: str) -> str:
    return "standard input" if name == STANDARD_INPUT else name


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _name_event(entry: Entry) -> str:
    return "replaced" if entry.replaced else EVENTS.get(entry.change, "")


def _keep_before(path: pathlib.Path, rows: int) -> None:
    """Leaves the events of rows before this one: the others come again."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["row"] < rows]
        path.write_text("".join(f"{line}\n" for line in kept))


def _check_run(run: Run, known: Mapping[str, Any]) -> None:
    """Raises InputError for a run that does not forecast a table from its own channels alone."""
    config = run.model.config
    task, kind = config.task, kind_of(config.task)
    if not kind.forecasts:
        raise ArgumentError(
            "stream", f" is of forecasts, the run has the task {task.kind!r}: selssm_jax.streaming.Stream reads others"
        )
    if task.width != task.channels or task.period or known.get("scaling", {}).get("cycle"):
        raise ArgumentError(
            "stream",
            " reads the channels alone: train without covariates, a calendar, data.missing='mask' and data.period",
        )
    if config.stride != 1:
        raise ArgumentError(
            "stream",
            f" reads a row at a time, the run's model {config.stride} (model.frame={config.frame}): train with "
            "model.frame=1 and model.stride=1",
        )
