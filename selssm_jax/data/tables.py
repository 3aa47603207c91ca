"""Tables of numbers as people write them: read right, or refused by the name of what is unclear; what is left out is
said.
"""

import csv
import dataclasses
import io
import itertools
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from selssm_jax.data import mapped, row_order, times
from selssm_jax.data.scaling import describe_bad_number, find_bad_number
from selssm_jax.errors import InputError, suggest

Opener = Callable[[], io.TextIOBase]
SAMPLE = 100  # rows that the layout is read from
CELLS = 1 << 14  # read at a time
MARKS = (";", "\t", "|", ",")  # between cells; a comma stands for decimals too, so it comes last
VALUES, MOMENTS, SERIES = "values", "moments", "series.npy"  # files of a folder that keeps a large table
# names of columns that count rows
COUNTS = {"", "unnamed: 0", "index", "idx", "id", "row", "rows", "no", "nr", "n", "#", "i", "t", "step"} | times.YEARS
# Digits with a sign, marks of decimals and thousands, and what people write behind a number.
_NUMBERLIKE = re.compile(
    r"[+-]?[$€£¥]?\s*[+-]?(\d[\d.,'\s]*|[.,]\d+)(e[+-]?\d+)?\s*(%|‰|[$€£¥]|[a-zµ°²³/]{1,5})?", re.IGNORECASE
)
_WHOLE = re.compile(r"\s*[+-]?\d+\s*")
MISSING = {"", "na", "n/a", "nan", "null", "-", "?"}  # words of a cell that has no value
_UNSIGNED = re.compile(r"\s*\d+\s*")
_DIGITS = re.compile(r"\s*\d{8}(\d{4}(\d\d)?)?\s*")  # of a date, 20201231
_GROUP_POINT = r"\d{1,3}(\.\d{3})"
_DECIMAL_COMMA = re.compile(rf"[+-]?(({_GROUP_POINT}*|\d+),\d+(e[+-]?\d+)?|,\d+|{_GROUP_POINT}{{2,}})", re.IGNORECASE)
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)  # commas between thousands
_COMMA, _POINT = ",", "."


@dataclasses.dataclass(frozen=True)
class Table:
    """Values (rows, columns), the columns' names, whether the file gives them, what was noticed in reading, as words.

    `clock` is the time of the first row and the usual step, in microseconds, where times tell. `moments` are the times
    of all rows, in microseconds where `unit` is "date", and `when` is the name of their column. `offset` is that from
    UTC, in minutes, with which dates are to be written, None without one. `ends` are the rows
    after the last of every series, `series` their names. Values that are missing are not-a-number.
    """

    values: mapped.Numbers
    names: tuple[str, ...]
    named: bool
    notes: tuple[str, ...] = ()
    clock: tuple[float, float] | None = None
    moments: mapped.Numbers | None = None
    unit: str = ""
    when: str = ""
    offset: int | None = None
    ends: tuple[int, ...] = ()
    series: tuple[str, ...] = ()

    @property
    def dates(self) -> mapped.Numbers | None:
        """The times of all rows in microseconds since 1970, None where they are not told."""
        if self.moments is None or self.unit == "date":
            return self.moments
        return times.to_dates(self.when, self.moments) if self.unit == "time" else None


class _Layout(NamedTuple):
    """How the lines of a file are to be read."""

    mark: str  # between cells
    names: tuple[str, ...]
    named: bool
    numbers: tuple[int, ...]  # columns that hold numbers
    times: tuple[int, ...]  # columns whose words are dates; with two, the second is the time of day
    labels: tuple[int, ...]  # a column of other words
    series: int  # the column that tells which series a row is of, -1: the table is one


def read(
    name: str,
    opener: Opener,
    *,
    most_rows: int,
    gaps: str = "refuse",
    missing: str = "refuse",
    series: str = "",
    folder: pathlib.Path | None = None,
) -> Table:
    """Returns the table that a text holds: one row a time step, one column a channel.

    Commas, semicolons, tabs or bars between cells, a line of names, decimal commas and marks between thousands are told
    from the text as a whole. Left out, and said in `notes`: a column of times, of row numbers, or of one label a row.
    Rows that begin with the newest are turned round.

    Args:
      name: of the file, for messages.
      opener: opens the text at its beginning; it is read in pieces, once or twice.
      most_rows: about the number of rows, for which memory is set aside.
      gaps: "refuse" raises where a time is missing or there twice, "ignore" takes such rows as if each followed the one
        before, "fill" puts in rows without values, and of those of one time takes the last.
      missing: "refuse" raises at a cell without a value, "mask" takes it for not-a-number.
      series: the column that tells which series a row is of; its rows then stand together, in order of time.
      folder: where to keep the numbers of a text of this content that is too large for memory, or where they are.

    Raises:
      InputError: for an empty table, a ragged row, a cell that is no finite number, and for whatever could be read in
        two ways.
    """
    layout, masked = _layout(name, opener, series), missing == "mask"
    if folder is None:
        content = _parse(name, opener, layout, masked, lambda: _Growing(most_rows, len(layout.numbers)), times.Dates())
    else:
        content = _recall(folder, layout, lambda place: _parse_into(place, name, opener, layout, masked))
    return _in_time(name, layout, content, gaps, masked=masked)


class _Content(NamedTuple):
    """What the rows of a text hold, as they come.

    Attributes:
      values: (rows, numbers). moments, unit: the times that words tell, as `_Words.order` has them.
      series: the rows of each. decimal: the mark of decimals. writing: how the times are written.
    """

    values: Any
    moments: Any
    unit: str
    series: list[row_order.Series]
    decimal: str
    writing: times.Writing


def _parse(
    name: str, opener: Opener, layout: _Layout, masked: bool, sink: Callable[[], "_Sink"], dates: times.Dates
) -> _Content:
    """Reads all rows, once more where a comma in a number is found to be of decimals; values go to a `sink`."""
    decimal = _POINT
    try:
        values, words = _read(name, opener, layout, sink(), _Words(layout, dates), _Style(decimal, masked))
    except _Commas:
        decimal = _decimal_mark(name, opener, layout)
        words = _Words(layout, dates.anew())
        values, words = _read(name, opener, layout, sink(), words, _Style(decimal, masked))
    series = words.series()
    moments, unit = words.order(name, series[0].rows) if (*layout.times, *layout.labels) else (None, "")
    writing = words.dates.writing() if unit == "date" else times.Writing()
    return _Content(values, moments, unit, series, decimal, writing)


def _parse_into(folder: pathlib.Path, name: str, opener: Opener, layout: _Layout, masked: bool) -> dict[str, Any]:
    """Reads all rows into files of a folder, and returns what `_recall` needs besides."""
    width = len(layout.numbers)
    sink = lambda: mapped.Writer(folder / VALUES, width, np.float64)  # noqa: E731
    dates = times.Dates(lambda order: mapped.Writer(folder / order, 0, np.int64))
    content = _parse(name, opener, layout, masked, sink, dates)
    kind = None if content.moments is None else content.moments.dtype.str
    if content.moments is not None:
        moments = mapped.Writer(folder / MOMENTS, 0, kind)
        for block in mapped.blocks(content.moments):
            moments.append(block)
    for order in times.ORDERS:
        (folder / order).unlink(missing_ok=True)
    rows = [part.rows for part in content.series if isinstance(part.rows, np.ndarray)]
    if rows:  # of series that stand one after the other their lengths say it
        np.save(folder / SERIES, np.concatenate(rows), allow_pickle=False)
    return {
        "format": mapped.FORMAT,
        "columns": width,
        "moments": kind,
        "unit": content.unit,
        "decimal": content.decimal,
        "writing": content.writing,
        "series": [[part.name, part.size] for part in content.series] if layout.series >= 0 else [],
    }


def _recall(folder: pathlib.Path, layout: _Layout, make: Callable[[pathlib.Path], dict[str, Any]]) -> _Content:
    """What a folder holds, which is made where it is not there."""
    about = mapped.keep(folder, make)
    values = mapped.Mapped(folder / VALUES, about["columns"], np.float64)
    moments = mapped.Mapped(folder / MOMENTS, 0, about["moments"]) if about["moments"] else None
    series = [row_order.Series("", slice(None))]
    if about["series"]:
        labels, counts = zip(*about["series"], strict=True)
        series = row_order.split_series(labels, counts)
        if (folder / SERIES).exists():
            rows = np.split(np.load(folder / SERIES), np.cumsum(counts)[:-1])
            series = [row_order.Series(label, part) for label, part in zip(labels, rows, strict=True)]
    short, offsets = about["writing"]
    return _Content(values, moments, about["unit"], series, about["decimal"], times.Writing(short, tuple(offsets)))


class _Style(NamedTuple):
    """How numbers are written: the mark of decimals, and whether a cell may have none."""

    decimal: str
    masked: bool


class _Commas(Exception):
    """A number holds a comma: what it means depends on the other numbers of the table."""


# The layout, from the first rows.


def _layout(name: str, opener: Opener, series: str) -> _Layout:
    with opener() as text:
        lines = [line for line in itertools.islice(text, 4 * SAMPLE) if line.strip(" \t\r\n,;")][: SAMPLE + 1]
    mark = _mark(lines)
    rows = [row for _, row in itertools.islice(_rows(name, opener, mark), SAMPLE + 1)]
    if not rows:
        raise InputError(f"{name} is empty: give a CSV with one row a time step and one column a channel")
    named = _is_header(name, rows)
    body = rows[1:] if named else rows
    if not body:
        raise InputError(f"{name} has no numbers below its header: give one row a time step and one column a channel")
    if not named and mark == _COMMA and not times.days([row[0] for row in rows]):
        _refuse_split_decimals(name, rows)
    width = len(rows[0])
    names = tuple(cell.strip() for cell in rows[0]) if named else tuple(f"column {index + 1}" for index in range(width))
    twice = [label for label, count in Counter(names).items() if count > 1 and label]
    if twice:
        raise InputError(f"{name} names {names.count(twice[0])} columns {twice[0]!r}: give each a name of its own")
    if series and series not in names:
        raise InputError(f"{name} has no column data.series_id={series!r}: {suggest(series, names)}")
    column = names.index(series) if series else -1
    body = [row for row in body if len(row) == width]
    return _Layout(mark, names, named, *_kinds(body, names, named=named, but=column), column)


def _mark(lines: list[str]) -> str:
    """What stands between cells: the first mark that cuts all lines into equally many, else the first that the first
    line has.
    """
    for mark in MARKS:
        counts = {len(row) for row in csv.reader(lines, delimiter=mark)} if lines else set()
        if len(counts) == 1 and counts != {1}:
            return mark
    below = [line.strip() for line in lines[1:]]
    if below and "," not in lines[0] and all(line.count(",") == 1 and _DECIMAL_COMMA.fullmatch(line) for line in below):
        return "\x1f"  # one column of decimal commas below its name
    return next((mark for mark in (",", ";", "\t", "|") if lines and mark in lines[0]), ",")


def _rows(name: str, opener: Opener, mark: str) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of all lines that are not blank."""
    with opener() as text:
        reader = csv.reader(text, delimiter=mark)
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
        except csv.Error as error:
            raise InputError(
                f"{name} line {reader.line_num} is no CSV ({error}): give numbers between commas"
            ) from error


def _is_header(name: str, rows: list[list[str]]) -> bool:
    """Whether the first line names the columns. Raises InputError where it may be names or numbers."""
    first, body = rows[0], rows[1:]
    rest = first[1:] or first
    if not any(map(_numeric, rest)):
        return any(cell.strip() for cell in rest)
    if not _numeric(first[0]) and all(map(_numeric, rest)) and len(first) > 1:
        counts = rest == [str(index) for index in range(len(rest))]
        dated = bool(body) and times.fields(first[0]) is None and all(times.fields(row[0]) is not None for row in body)
        return counts or dated
    return all(map(_numeric, first)) and _counts_columns(name, first, body)


def _counts_columns(name: str, first: list[str], body: list[list[str]]) -> bool:
    """Whether a first line of numbers 0, 1, 2 is the names that pandas gives: a column of decimals stands below
    them.
    """
    if len(first) < 2 or not all(_UNSIGNED.fullmatch(cell) for cell in first):
        return False
    start = int(first[0])
    if [int(cell) for cell in first] != list(range(start, start + len(first))) or not body:
        return False
    decimals = any(all(index < len(row) and "." in row[index] for row in body) for index in range(len(first)))
    if start == 0 and decimals:
        return True
    if decimals or start == 0:
        raise InputError(
            f"{name} line 1 holds {', '.join(first)}, which may be names of columns or numbers: put a line of names "
            "with letters above the numbers"
        )
    return False


def _refuse_split_decimals(name: str, rows: list[list[str]]) -> None:
    """Raises InputError where commas may stand in numbers as well as between them: whole numbers alone, in pairs,
    without names.
    """
    pairs = all(
        len(row) % 2 == 0 and all(map(_WHOLE.fullmatch, row)) and all(map(_UNSIGNED.fullmatch, row[1::2]))
        for row in rows
    )
    if pairs:
        raise InputError(
            f"{name} line 1 holds {','.join(rows[0])}, which may be {len(rows[0])} whole numbers or "
            f"{len(rows[0]) // 2} with decimal commas: put a line of names above the numbers"
        )


def _kinds(
    body: list[list[str]], names: tuple[str, ...], *, named: bool, but: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Columns of numbers, of dates, and of labels, by the cells of the first rows; words in other columns are refused
    where they are read. `but`: a column that is none of these.
    """
    width = len(names)
    columns = [index for index in range(width) if index != but]
    words = [index for index in columns if width > 1 and body and not any(_numeric(row[index]) for row in body)]
    compact = [
        index
        for index in columns
        if all(_DIGITS.fullmatch(row[index]) for row in body)
        and (times.speaks_of_time(names[index]) or (index == 0 and not named and times.days([row[0] for row in body])))
    ]
    dates = [
        index
        for index in sorted({*words, *compact})
        if body and all(times.fields(row[index]) is not None for row in body)
    ][:1]
    if (
        dates
        and (clock := dates[0] + 1) in words
        and all(re.fullmatch(r"\s*\d?\d:\d\d(:\d\d)?(\.\d+)?\s*", row[clock]) for row in body)
    ):
        dates.append(clock)
    labels = [
        index
        for index in words
        if index == columns[0]
        and not dates
        and not any(_NUMBERLIKE.fullmatch(row[index].strip()) for row in body)
        and not all(_is_missing(row[index]) for row in body)
    ]
    return tuple(index for index in columns if index not in (*dates, *labels)), tuple(dates), tuple(labels)


def _numeric(cell: str) -> bool:
    """Whether a cell is a number as people write one: with a point or a comma for decimals, and marks between
    thousands.
    """
    text = cell.strip()
    return _number(text) is not None or bool(_DECIMAL_COMMA.fullmatch(text) or _GROUPED.fullmatch(text))


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


# The cells.


@runtime_checkable
class _Sink(Protocol):
    """What blocks of rows are added to, and all of them then read from."""

    def append(self, block: np.ndarray) -> None: ...

    def array(self) -> Any: ...


class _Growing:
    """Rows in float32 for as long as that loses nothing, else in float64: whole numbers of few digits then take no more
    room than their text.
    """

    def __init__(self, most_rows: int, columns: int) -> None:
        self._values: np.ndarray = np.empty((most_rows, columns), np.float32)
        self._count = 0

    def append(self, block: np.ndarray) -> None:
        """Adds rows."""
        self._values = _with_room(self._values, self._count + len(block))
        with np.errstate(over="ignore"):
            narrow = block.astype(np.float32)
        if self._values.dtype == np.float32 and not np.array_equal(narrow, block, equal_nan=True):
            wide = np.empty(self._values.shape, np.float64)
            wide[: self._count] = self._values[: self._count]
            self._values = wide
        self._values[self._count : self._count + len(block)] = block
        self._count += len(block)

    def array(self) -> np.ndarray:
        """Returns all rows so far."""
        return self._values[: self._count]


def _with_room(rows: np.ndarray, count: int) -> np.ndarray:
    """The rows, with room for `count`."""
    return (
        rows
        if count <= len(rows)
        else np.concatenate([rows, np.empty((max(count, 2 * len(rows)) - len(rows), *rows.shape[1:]), rows.dtype)])
    )


class _Words:
    """What the words of rows say of their order: dates, or labels that end with numbers."""

    def __init__(self, layout: _Layout, dates: times.Dates) -> None:
        self._layout, self.dates = layout, dates
        self._labels: list[tuple[np.ndarray, np.ndarray]] = []
        self._ids: dict[str, int] = {}
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []  # codes of series, and how many rows each stands for

    def append(self, name: str, block: list[tuple[int, list[str]]]) -> None:
        """Adds rows. Raises InputError for a cell that is no date among dates."""
        if self._layout.times:
            self.dates.append(np.array([self._date(name, line, row) for line, row in block], np.int64))
        if (place := self._layout.series) >= 0:
            codes = np.array([self._ids.setdefault(row[place].strip(), len(self._ids)) for _, row in block], np.int32)
            begins = np.flatnonzero(np.append(True, np.diff(codes) != 0))
            self._runs.append((codes[begins], np.diff(np.append(begins, len(codes)))))
        for column in self._layout.labels:
            cells = [row[column].strip() for _, row in block]
            ends = [re.search(r"\d+$", cell) for cell in cells]
            self._labels.append(
                (np.array([hash(cell) for cell in cells]), np.array([float(end[0]) if end else np.nan for end in ends]))
            )

    def series(self) -> list[row_order.Series]:
        """Returns the series, in the order in which they come first, and the rows of each."""
        if not self._runs:
            return [row_order.Series("", slice(None))]
        codes, counts = (np.concatenate(parts) for parts in zip(*self._runs, strict=True))
        if (np.diff(codes) >= 0).all():  # one series after the other
            return row_order.split_series(self._ids, np.bincount(codes, counts).astype(np.int64).tolist())
        codes = np.repeat(codes, counts)
        rows = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        return [row_order.Series(label, part) for label, part in zip(self._ids, rows, strict=True)]

    def order(self, name: str, rows: slice | np.ndarray) -> tuple[Any, str]:
        """Returns times and "date", or numbers that order the rows, None where words do not, and "label".

        Whether 3/4 is in March is told by `rows`, those of one series.

        Raises InputError for a label that more than one row has, and for dates that cannot be told.
        """
        column = self._layout.names[(*self._layout.times, *self._layout.labels)[0]]
        if self._layout.labels:
            labels, ends = (np.concatenate(parts) for parts in zip(*self._labels, strict=True))
            order = np.argsort(labels, kind="stable")
            if (again := np.flatnonzero(np.diff(labels[order]) == 0)).size:
                first, second = order[again[0]] + 1, order[again[0] + 1] + 1
                raise InputError(
                    f"{name}: column {column!r} holds the same words in rows {first} and {second}: give one row a time "
                    "step, without columns of words"
                )
            return (ends if np.isfinite(ends).all() else None), "label"
        if (moments := self.dates.moments(rows)) is not None:
            return moments, "date"
        sign = self.dates.one_way() if isinstance(rows, slice) else 0
        if not sign:
            raise InputError(
                f"{name}: the dates of column {column!r} follow no one order of day, month and year: sort the rows, "
                "and write 2020-12-31 23:59"
            )
        return np.array([0, sign]), "label"

    def _date(self, name: str, line: int, row: list[str]) -> tuple[int, ...]:
        cell = " ".join(row[column].strip() for column in self._layout.times)
        fields = times.fields(cell)
        if fields is None:
            raise InputError(
                f"{name} line {line} column {self._layout.times[0] + 1} holds {cell!r}, expected a date as in the "
                "other rows: mend it or drop the row"
            )
        return fields


def _read(
    name: str, opener: Opener, layout: _Layout, values: "_Sink", words: _Words, style: _Style
) -> tuple[Any, _Words]:
    """Values of the columns of numbers, and of every row its date, as `times.fields` has it, or its label."""
    rows = itertools.islice(_rows(name, opener, layout.mark), int(layout.named), None)
    size = max(CELLS // len(layout.names), 1)
    while block := list(itertools.islice(rows, size)):
        for line, row in block:
            if len(row) != len(layout.names):
                raise InputError(
                    f"{name} line {line} has {len(row)} cells, its first line has {len(layout.names)}: every row needs "
                    "the same columns"
                )
        values.append(_values(name, block, layout.numbers, style))
        words.append(name, block)
    return values.array(), words


def _values(name: str, block: list[tuple[int, list[str]]], columns: tuple[int, ...], style: _Style) -> np.ndarray:
    cells = [[row[column] for column in columns] for _, row in block]
    if style.decimal == _COMMA:
        cells = [[_with_point(cell) for cell in row] for row in cells]
    try:
        values = np.array(cells, np.float64)
    except ValueError:
        values = np.array([[_plain(cell, style.decimal) for cell in row] for row in cells], np.float64)
    bad = find_bad_number(values)
    if bad is not None and style.masked:
        bad = find_bad_number(np.where([[_is_missing(cell) for cell in row] for row in cells], 0.0, values))
    if bad is not None:
        line, row = block[bad[0]]
        raise InputError(
            f"{name} line {line} column {columns[bad[1]] + 1} holds "
            + _describe_bad_cell(row[columns[bad[1]]], float(values[bad]))
        )
    return values


def _describe_bad_cell(cell: str, value: float) -> str:
    """What a cell holds, what is expected, and how to mend it."""
    words = f"{cell!r}, {describe_bad_number(value)}"
    if _is_missing(cell):
        return words + ", or train with data.missing='mask', which takes it for a value that is missing"
    unit = np.isnan(value) and _NUMBERLIKE.fullmatch(cell.strip())
    return words + (", and write numbers without units" if unit else "")


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING


def _plain(cell: str, decimal: str) -> float:
    """The number of a cell with marks between thousands; not a number for other words."""
    text = cell.strip()
    value = _number(text)
    if value is not None or ("," not in text and not _DECIMAL_COMMA.fullmatch(text)):
        return np.nan if value is None else value
    if not _DECIMAL_COMMA.fullmatch(text) and not _GROUPED.fullmatch(text):
        return np.nan
    if decimal == _POINT:
        raise _Commas
    return float(text.replace(",", ""))


def _with_point(cell: str) -> str:
    text = cell.strip()
    return (
        text.replace(".", "").replace(",", ".")
        if _DECIMAL_COMMA.fullmatch(text) or re.fullmatch(r"[+-]?\d{1,3}(\.\d{3})+", text)
        else cell
    )


def _decimal_mark(name: str, opener: Opener, layout: _Layout) -> str:
    """Whether commas in numbers are of decimals (","), or of thousands (""), by all numbers of the table that can be
    read in one way only.

    Raises InputError where none can, or some in one way and some in the other.
    """
    evidence: dict[str, str] = {}
    unclear = ""
    for line, row in itertools.islice(_rows(name, opener, layout.mark), int(layout.named), None):
        for column in layout.numbers:
            text = row[column].strip() if column < len(row) else ""
            meaning = _meaning(text)
            if meaning is not None:
                evidence.setdefault(meaning, f"line {line} column {column + 1} holds {text!r}")
            elif "," in text:
                unclear = unclear or f"line {line} column {column + 1} holds {text!r}"
    if len(evidence) == 1:
        return next(iter(evidence))
    if evidence:
        raise InputError(
            f"{name} {evidence[_COMMA]} with a decimal comma, and {evidence['']} with a decimal point: write all "
            "numbers in one way"
        )
    raise InputError(
        f"{name} {unclear}, which may be a number of thousands or one with a decimal comma: write it without marks "
        "between thousands"
    )


def _meaning(text: str) -> str | None:
    """Returns a comma for a number that has a decimal comma for certain, nothing for one with a decimal point, None for
    one that could have either.
    """
    if not any(mark in text for mark in ".,"):
        return None
    comma, point = bool(_DECIMAL_COMMA.fullmatch(text)), bool(_GROUPED.fullmatch(text)) or _number(text) is not None
    if point and not comma and _number(text) is not None and re.fullmatch(r"[+-]?[1-9]\d{0,2}\.\d{3}", text):
        return None  # thousands, where decimals have a comma
    if comma and point:
        return _COMMA if re.fullmatch(r"[+-]?0\d*,\d+", text) else None
    return _COMMA if comma else "" if point else None


# Rows in time.


def _in_time(name: str, layout: _Layout, content: _Content, gaps: str, *, masked: bool) -> Table:
    """The table with its rows in order of time, series after series, less the columns that tell when or which row."""
    values, moments, unit, series, decimal, writing = content
    notes = ["decimal commas"] if decimal == _COMMA else []
    names = [layout.names[column] for column in layout.numbers]
    left_out = [layout.names[column] for column in (*layout.times, *layout.labels)]
    if not names:
        raise InputError(f"{name} has no column of numbers besides {left_out[0]!r}: give one column for each channel")
    if not left_out:
        place, unit = _find_counter(name, names, layout.named, mapped.view(values, series[0].rows))
        if unit:
            left_out, moments = [names.pop(place)], mapped.select(values, place)
            values = mapped.select(values, [other for other in range(len(names) + 1) if other != place])
    _check_names(name, names, layout.named)
    if left_out:
        notes.append(f"left out {' and '.join(map(repr, left_out))} ({_UNITS[unit]})")
    notes += _describe_times(left_out, unit, writing)
    where = f"{name}, times in UTC" if writing.offsets else name
    values, moments, ends = row_order.arrange(where, series, values, moments, unit, gaps, notes)
    if absent := sum(int(np.isnan(block).sum()) for block in mapped.blocks(values)) if masked else 0:
        notes.append(f"values missing, masked: {absent:,}")
    if len(series) > 1:
        notes.append(f"{len(series):,} series, told by {layout.names[layout.series]!r}")
    table = Table(values, tuple(names), layout.named, ends=ends, series=tuple(part.name for part in series))
    if moments is not None and unit != "label":
        table = dataclasses.replace(table, moments=moments, unit=unit, when=left_out[0], offset=writing.offset)
    return dataclasses.replace(table, notes=tuple(notes), clock=row_order.clock(name, table.dates, ends, gaps))


def _describe_times(left_out: list[str], unit: str, writing: times.Writing) -> list[str]:
    """What is to be said of times: how they were read, or that they were not."""
    unread = [label for label in left_out if unit == "label" and times.speaks_of_time(label)]
    return writing.notes + [f"{label!r} is not read as times: order and gaps are not checked" for label in unread]


_UNITS = {"date": "times", "time": "times", "label": "labels", "row": "row numbers"}


def _check_names(name: str, names: list[str], named: bool) -> None:
    for place, label in enumerate(names):
        if named and not label:
            raise InputError(
                f"{name}: column {place + 1} of its numbers has no name, and is not the first that counts its rows: "
                "name it, or drop it"
            )


def _find_counter(name: str, names: list[str], named: bool, values: Any) -> tuple[int, str]:
    """The column of numbers that tells the time ("time") or the row ("row"), if there is one, else ""."""
    begin = values[:SAMPLE]  # what its first rows are not, a column is not
    for place, label in enumerate(names if len(values) > 1 else []):
        speaks = times.speaks_of_time(label) or (place == 0 and (not named or label.lower() in COUNTS))
        if speaks and times.epoch(begin[:, place]) and times.epoch(mapped.select(values, place)):
            return place, "time"
        years = named and place == 0 and len(names) > 1 and times.years(label, begin[:, 0])
        if years and times.years(label, mapped.select(values, 0)):
            return 0, "time"
    first = names[0].lower()
    if len(names) < 2 or len(values) < 2 or not named or not (times.speaks_of_time(first) or first in COUNTS):
        return 0, ""
    column = times.survey(mapped.select(values, 0))
    if times.speaks_of_time(first):
        if not column.goes_one_way:
            raise InputError(
                f"{name}: column {names[0]!r} neither rises nor falls, so it is no time: sort the rows by it, or give "
                "it another name"
            )
        return 0, "time"
    strict = column.least_step > 0 or column.largest_step < 0
    return 0, "row" if column.is_whole and (strict or first in ("", "unnamed: 0")) else ""


def opener_of(text: str) -> Opener:
    """Returns what opens a text in memory."""
    return lambda: io.StringIO(text, newline="")
