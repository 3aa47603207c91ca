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

from selssm_jax.data import forecasting, tables
from selssm_jax.errors import ArgumentError, InputError, as_input_error
from selssm_jax.model import SequenceModel
from selssm_jax.paths import check_regular
from selssm_jax.runs import Run, parse_json, read_history
from selssm_jax.streaming.session import LEARNER, Entry, Session
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training.checkpoint import write_whole
from selssm_jax.training.logging import Display, Logger
from selssm_jax.training.loop import Stop

STANDARD_INPUT = "-"
EVENTS = {1: "rise", -1: "fall"}
BYTES, SECONDS = 1 << 16, 0.2  # read at a time; between two looks whether a signal came
DIGITS = 6  # of a number that is written
GATE = "gate of "  # before a block's name in a record
LOOSE = ("log_every", "save_every", "changes")  # settings that a stream may go on with others of


class StreamFolder(NamedTuple):
    """Where a stream lies: its state, its records and its report."""

    path: pathlib.Path

    @property
    def state(self) -> pathlib.Path:
        """Checkpoints of the session."""
        return self.path / "state"

    @property
    def settings(self) -> pathlib.Path:
        """What decides the numbers of the stream, as JSON: it goes on with the same alone."""
        return self.path / "settings.json"

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
      InputError: for a run that cannot be read row by row, and for a stream that was begun with other settings.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.folder, self.stopped = run, StreamFolder(run.workdir / "stream"), False
        self._known = run.dataset.metadata()
        model = _check_run(run, self._known)
        self._options = run.experiment.stream
        self._scale = forecasting.History(self._known, run.model.config.task)
        with as_input_error(f"{run.workdir} cannot be read row by row: "):
            self.session = Session(model, run.params, self._options)
        self._check_settings()
        self.session.restore(self.folder.state)

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
        write_whole(self.folder.settings, json.dumps(self._list_settings()) + "\n")
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
        kept = [event for event in self.read_events() if event["row"] < self.session.rows]  # the others come again
        write_whole(self.folder.events, "".join(json.dumps(event) + "\n" for event in kept))
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

    def read_events(self) -> list[dict[str, Any]]:
        """Returns the changes that were seen; a last line that a kill cut short comes again."""
        path = self.folder.events
        return [event for line in path.read_text().splitlines() if (event := _parse(line))] if path.exists() else []

    def _list_settings(self) -> dict[str, Any]:
        """What decides the numbers of the stream."""
        options = {f"stream.{key}": value for key, value in vars(self._options).items() if key not in LOOSE}
        return options | {"step of the run": self.run.step}

    def _check_settings(self) -> None:
        """Raises InputError where a stream that was saved has other settings, or was begun from other parameters."""
        path = self.folder.settings
        if not path.exists() or not self.folder.state.exists():
            return
        begun, now = _parse(path.read_text()) or {}, self._list_settings()
        other = [f"{key}={begun.get(key)}, not {now[key]}" for key in now if begun.get(key) != now[key]]
        if other:
            raise InputError(
                f"the stream in {self.folder.path} was begun with {'; '.join(other)}: go on with the same, or move "
                "that folder away to begin anew"
            )

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
            log.record(entry.row, "stream", known | self._list_rates(entry))

    def _list_rates(self, entry: Entry) -> dict[str, float]:
        """The learner's step size, what its detector says, and its gates."""
        gates = {f"{GATE}{name}": value for name, value in self.session.measure_gates().items()}
        return {"rate": self._options.rate * entry.boost, "change": float(entry.change)} | gates

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
    row is left out, an empty line and one of another number of cells too: standard error has its number and why.

    Raises:
      InputError: for a file that cannot be read, and names that lack a column.
    """
    table: _Form | None = None
    for number, line in enumerate(_read_lines(name, stop), 1):
        row, why = None, "it is empty"
        if line.strip():
            begins = table is None
            table = table or _read_form(name, line, columns)
            if begins and table.named:
                continue
            row, why = _parse_row(line, table, columns)
        if row is None:
            print(f"line {number} of {_title(name)} is left out: {why}", file=sys.stderr, flush=True)
        else:
            yield row


class _Form(NamedTuple):
    """How the lines of a table are read: the mark between cells, how many there are, the places of the columns, and
    whether the first line names them.
    """

    mark: str
    cells: int
    places: list[int]
    named: bool


def _read_form(name: str, line: str, columns: Sequence[str]) -> _Form:
    """What the first line says. Raises InputError for names that lack a column."""
    mark = next((sign for sign in tables.MARKS if sign in line), ",")
    cells = [cell.strip().strip('"').removeprefix("\ufeff") for cell in line.split(mark)]
    if all(_number(cell, mark) is not None for cell in cells):
        return _Form(mark, len(columns), list(range(len(columns))), named=False)
    return _Form(mark, len(cells), _find_places(name, cells, columns), named=True)


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


def _parse_row(line: str, table: _Form, columns: Sequence[str]) -> tuple[np.ndarray | None, str]:
    """(The numbers of a row, why there are none)."""
    cells = line.split(table.mark)
    if len(cells) != table.cells:
        whose = "as the first line names" if table.named else ", ".join(columns)
        return None, f"it has {len(cells)} cells, expected {table.cells}: {whose}"
    values = [_number(cells[place], table.mark) for place in table.places]
    for column, place, value in zip(columns, table.places, values, strict=True):
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


def _parse(line: str) -> dict[str, Any] | None:
    """A JSON object, None where it is none."""
    value = parse_json(line)
    return value if isinstance(value, dict) else None


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _name_event(entry: Entry) -> str:
    return "replaced" if entry.replaced else EVENTS.get(entry.change, "")


def _check_run(run: Run, known: Mapping[str, Any]) -> SequenceModel:
    """Returns the model. Raises InputError for a run that does not forecast a table from its own channels alone."""
    if not isinstance(run.model, SequenceModel):
        raise ArgumentError("stream", f" learns on, and {run.workdir} is compressed: give the run that it was made of")
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
    return run.model
