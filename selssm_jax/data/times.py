"""The times of a table's rows: read from the forms that people write, and checked for order, gaps and doubled rows."""

import datetime
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from selssm_jax.data import mapped

_MONTHS = {
    name: f" {number} "
    for number, name in enumerate(re.findall("...", "janfebmaraprmayjunjulaugsepoctnovdec"), start=1)
}
_MONTH = re.compile(r"(?<![a-z])(" + "|".join(_MONTHS) + r")[a-z]*\.?")
_WEEKDAY = re.compile(r"(?<![a-z])(mon|tue|wed|thu|fri|sat|sun)[a-z]*,?")
_ZONE = re.compile(r"(?<=[\dm.])\s*(?:z|utc|gmt|(?:utc|gmt)?([+-])(\d\d)(?::?(\d\d))?)$")
_CLOCK_LAST = re.compile(r"(:\d\d?([.,]\d+)?|\dt\d{2,6})\s*([ap]\.?m\.?)?$")
_WEEK = re.compile(r"(\d{4})-?w(\d\d)(?:-?([1-7]))?")
_QUARTER = re.compile(r"(?P<year>\d{4})[\s/-]*q(?P<quarter>[1-4])|q(?P<first>[1-4])[\s/-]*(?P<last>\d{4})")
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[ t](\d\d):(\d\d)(?::(\d\d))?)?")
_COMPACT = re.compile(r"^(\d{4})(\d\d)(\d\d)(?:[t ]?(\d\d)(\d\d)(\d\d)?)?$")
_NOON = re.compile(r"\s*([ap])\.?m\.?$")
ORDERS = {"ymd": (0, 1, 2), "dmy": (2, 1, 0), "mdy": (2, 0, 1)}  # places of year, month and day
TWO_DIGITS = 69  # the first year of two digits that is 19xx, as POSIX has it
_FIELDS = 8  # three of the date, hour, minute, second, microsecond, and minutes of the zone
_WORDS = {
    "date",
    "time",
    "timestamp",
    "datetime",
    "ts",
    "epoch",
    "unix",
    "datum",
    "zeit",
    "zeitstempel",
    "uhrzeit",
    "fecha",
    "heure",
    "日期",
    "时间",
    "時間",
    "日時",
}
_BESIDE = {
    "utc",
    "gmt",
    "local",
    "s",
    "sec",
    "seconds",
    "ms",
    "us",
    "ns",
    "of",
    "day",
    "start",
    "begin",
    "observation",
    "measurement",
    "since",
    "1970",
}
SHORTEST_MONTH = 28 * 86_400_000_000  # microseconds
YEARS = {"year", "years", "yr", "jahr", "année", "annee", "año", "ano", "anno", "год", "年"}
TOLERANCE = 0.5  # a step shorter than half the usual one, or longer than one and a half, is no step of the same kind


AT_ONCE = 1 << 20  # times that are looked at together
SAID = 3  # offsets that a note names
UNEVEN = 0.25  # of the usual step, by which one may miss a multiple of it where rows are put in


def fields(cell: str) -> tuple[int, ...] | None:
    """Returns the numbers of a date, with or without a time of day, in the order written and filled up with zeros; None
    for other words.
    """
    text = cell.strip().lower()
    if common := _ISO.fullmatch(text):
        return (*map(int, common.groups("0")), 0, 0)
    if (day := _first_day(text)) is not None:
        return (day.year, day.month, day.day, 0, 0, 0, 0, 0)
    text, zone = _cut_zone(text)
    text, noon = _cut(text, _NOON)
    compact = _COMPACT.match(text)
    text = _MONTH.sub(lambda month: _MONTHS[month[1]], _WEEKDAY.sub("", text))
    numbers = list(compact.groups("0")) if compact else re.findall(r"\d+", text)
    if not 2 <= len(numbers) <= 7 or re.search(r"[^\d\s./:,t_-]", text):
        return None
    date, clock = [*map(int, numbers[:3])], [*map(int, numbers[3:6])]
    if len(date) == 2:  # a month alone
        month_first = 1 <= date[0] <= 12 and len(numbers[1]) == 4 and 1900 <= date[1] < 2100
        if len(numbers[0]) != 4 and not month_first:
            return None
        date = [*(reversed(date) if month_first else date), 1]
    if max(date) > 9999:
        return None
    clock += [0] * (3 - len(clock))
    if noon:
        clock[0] = clock[0] % 12 + 12 * (noon[1] == "p")
    micro = int(numbers[6][:6].ljust(6, "0")) if len(numbers) == 7 else 0
    shift = int(f"{zone[1]}1") * (60 * int(zone[2]) + int(zone[3] or 0)) if zone and zone[1] else 0
    return (*date, *clock, micro, shift)


def days(cells: list[str]) -> bool:
    """Whether whole numbers without a name are days, 20201231, of two centuries, one after or before the other."""
    numbers = np.array([int(cell) for cell in cells if len(cell.strip()) == 8])
    year, month, day = numbers // 10_000, numbers // 100 % 100, numbers % 100
    valid = (year >= 1900) & (year < 2100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    return len(numbers) == len(cells) > 2 and bool(valid.all()) and _one_way(np.diff(numbers))


def _first_day(text: str) -> datetime.date | None:
    """The first day of a week, 2024-W05, or of a quarter, 2023Q1 or Q1 2023; None for other words."""
    if quarter := _QUARTER.fullmatch(text):
        year, number = int(quarter["year"] or quarter["last"]), int(quarter["quarter"] or quarter["first"])
        return datetime.date(year, 3 * number - 2, 1) if year else None
    if week := _WEEK.fullmatch(text):
        try:
            return datetime.date.fromisocalendar(int(week[1]), int(week[2]), int(week[3] or 1))
        except ValueError:  # the 53rd week of a year of 52
            return None
    return None


def _cut_zone(text: str) -> tuple[str, re.Match[str] | None]:
    """Cuts a zone off: one of hours only, or with a minus, only behind a time of day, as -2024 may be a year."""
    before, zone = _cut(text, _ZONE)
    if zone and (zone[1] == "-" or (zone[1] and not zone[3])) and not _CLOCK_LAST.search(before):
        return text, None
    return before, zone


def _cut(text: str, pattern: re.Pattern[str]) -> tuple[str, re.Match[str] | None]:
    match = pattern.search(text)
    return (text[: match.start()], match) if match else (text, None)


class Writing(NamedTuple):
    """How times are written: whether any year has two digits, and the offsets from UTC, in minutes."""

    is_short: bool = False
    offsets: tuple[int, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What a reader of the table should know."""
        named = ", ".join(map(_name_offset, self.offsets[:SAID])) + (", ..." if len(self.offsets) > SAID else "")
        return [
            *(["years of two digits, read as 1969 to 2068"] if self.is_short else []),
            *([f"times of offset {named} turned to UTC, as is their calendar"] if self.offsets else []),
        ]

    @property
    def offset(self) -> int | None:
        """The offset to print times with: that of all rows, or 0; None where the table has none but 0."""
        return None if not self.offsets else self.offsets[0] if len(self.offsets) == 1 else 0


def _name_offset(minutes: int) -> str:
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


class Dates:
    """Times of rows that come block by block, in every order of day, month and year in which all so far are dates.

    Times are microseconds since 1970, int64.
    """

    def __init__(self, column: Callable[[str], Any] | None = None) -> None:
        """`column` gives, for the name of an order, what its times are added to and read from: of arrays where there is
        none.
        """
        self._column = column or (lambda order: _Column())
        self._orders = {name: self._column(name) for name in ORDERS}
        self._last = np.zeros((1, _FIELDS), np.int64)
        self._signs: set[int] = set()
        self._rows = 0
        self._short, self._offsets = False, set[int]()

    def anew(self) -> "Dates":
        """Returns one of no rows that keeps its times in the same way."""
        return Dates(self._column)

    def append(self, parts: np.ndarray) -> None:
        """Adds rows of `fields`, (rows, 8)."""
        for name in tuple(self._orders):
            block = _in_order(parts, ORDERS[name])
            if block is None:
                del self._orders[name]
            else:
                self._orders[name].append(block)
        steps = np.diff(np.concatenate([self._last, parts]) if self._rows else parts, axis=0)
        self._signs |= set(np.sign(steps[np.arange(len(steps)), (steps != 0).argmax(axis=1)]).tolist())
        self._last, self._rows = parts[-1:], self._rows + len(parts)
        self._short |= bool((parts[:, :3] < 100).all(axis=1).any())
        self._offsets |= set(np.unique(parts[:, 7]).tolist())

    def moments(self, rows: slice | np.ndarray = slice(None)) -> Any:
        """Returns the times; None where rows are no dates in any one order.

        Where 3/4 and 4/3 are both dates throughout, the order is taken in which these rows rise or fall by even steps.
        """
        columns = [self._orders.pop(name).array() for name in tuple(self._orders)]
        rising = (
            [times for times in columns if len(times[rows]) < 2 or _one_way(np.diff(times[rows]))]
            if len(columns) > 1
            else columns
        )
        even = [times for times in rising if irregular(times[rows]) is None] if len(rising) > 1 else rising
        return next(iter(even or rising or columns), None)

    def writing(self) -> Writing:
        """Returns how the times of all rows are written."""
        return Writing(self._short, tuple(sorted(self._offsets)) if any(self._offsets) else ())

    def one_way(self) -> int:
        """Returns 1 where the numbers as written rise from row to row, -1 where they fall, 0 for anything else."""
        return int(next(iter(self._signs))) if len(self._signs) == 1 else 0


class _Column:
    """Times in memory."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []

    def append(self, block: np.ndarray) -> None:
        self._blocks.append(block)

    def array(self) -> np.ndarray:
        return np.concatenate(self._blocks)


def _in_order(parts: np.ndarray, order: tuple[int, int, int]) -> np.ndarray | None:
    year, month, day = (parts[:, place] for place in order)
    clock = parts[:, 3:]
    year = np.where(year < 100, year + np.where(year < TWO_DIGITS, 2000, 1900), year)
    within = (
        (1, 12, month),
        (1, 31, day),
        (1000, 9999, year),
        (0, 24, clock[:, 0]),
        (0, 59, clock[:, 1]),
        (0, 60, clock[:, 2]),
    )
    if any((values < low).any() or (values > high).any() for low, high, values in within):
        return None
    first = ((year - 1970) * 12 + month - 1).astype("datetime64[M]")
    days = first.astype("datetime64[D]") + (day - 1).astype("timedelta64[D]")
    if (days.astype("datetime64[M]") != first).any():  # the 31st of a month of 30 days
        return None
    minutes = days.astype(np.int64) * 1440 + clock[:, 0] * 60 + clock[:, 1] - clock[:, 4]
    return (minutes * 60 + clock[:, 2]) * 1_000_000 + clock[:, 3]


def _one_way(steps: np.ndarray) -> bool:
    return bool((steps >= 0).all() or (steps <= 0).all())


def newest_first(times: Any) -> bool:
    """Whether rows go back in time, all but a few that are out of order."""
    back, on = (sum(int((sign * steps > 0).sum()) for steps in _steps(times)) for sign in (-1, 1))
    return back > on


def usual_step(times: Any) -> float:
    """Returns the median step, of many times that of the first."""
    return float(np.median(next(_steps(times))))


def _steps(times: Any) -> Iterator[np.ndarray]:
    """The steps from row to row, many at a time; times are an array, or read like one."""
    for first in range(0, max(len(times) - 1, 1), AT_ONCE):
        yield np.diff(times[first : first + AT_ONCE + 1])


def irregular(times: Any) -> int | None:
    """Returns the first row that does not follow the one before it by the usual step, None where all do.

    Regular are equal steps, up to half of one; months, quarters and years; working days.
    """
    if len(times) < 3:
        late = np.flatnonzero(np.diff(times[:]) <= 0)
        return int(late[0]) + 1 if late.size else None
    usual, before, rising = usual_step(times), 0, True
    place = None
    for steps in _steps(times):
        wrong = (steps <= 0) | (np.abs(steps - usual) > TOLERANCE * abs(usual))
        place = before + int(np.argmax(wrong)) + 1 if place is None and wrong.any() else place
        before, rising = before + len(steps), rising and bool((steps > 0).all())
    # no calendar has so many months or working days
    return None if place is None or (rising and len(times) <= AT_ONCE and _in_calendar(times[:])) else place


def continue_times(times: np.ndarray, count: int, unit: str) -> np.ndarray:
    """Returns the `count` times that follow: by the usual step, or, of dates in microseconds, equally many months or
    working days where they go so. Raises ValueError for fewer than two times.
    """
    if len(times) < 2:
        raise ValueError(f"{len(times)} time tells no step: give at least two")
    ahead = np.arange(1, count + 1)
    last, steps = times[-1], np.diff(times)
    in_months = unit == "date" and steps.min() >= SHORTEST_MONTH and _in_months(times)
    if not in_months and (unit != "date" or (steps == steps[0]).all() or not _in_calendar(times)):
        return last + ahead * np.median(steps).astype(times.dtype)
    day = last.astype("datetime64[us]").astype("datetime64[D]")
    clock = last - day.astype("datetime64[us]").astype(np.int64)
    if in_months:
        months = day.astype("datetime64[M]") + (ahead * _months_apart(times)[-1]).astype("timedelta64[M]")
        days = _in_each_month(months, _day_of_month(times))
    else:
        days = np.busday_offset(day, ahead)
    return days.astype("datetime64[us]").astype(np.int64) + clock


def _in_each_month(months: np.ndarray, day: np.timedelta64) -> np.ndarray:
    """That day of months, counted from 0, or their last one where they are shorter."""
    ends = (months + np.timedelta64(1, "M")).astype("datetime64[D]") - np.timedelta64(1, "D")
    return np.minimum(months.astype("datetime64[D]") + day, ends)


def _day_of_month(times: np.ndarray) -> np.timedelta64:
    """The day of the month, from 0, that all times are on: the largest, as shorter months end before it; the 31st where
    all are on the last.
    """
    days = _days(times)
    largest = (days - days.astype("datetime64[M]").astype("datetime64[D]")).max()
    return np.timedelta64(30, "D") if _are_last(times) else np.timedelta64(largest, "D")


def _in_calendar(times: np.ndarray) -> bool:
    """Whether rows are equally many months apart on one day of the month, or its last; or working days, one after the
    other.
    """
    days = _days(times)
    return _in_months(times) or bool(np.is_busday(days).all() and (np.busday_count(days[:-1], days[1:]) == 1).all())


def _in_months(times: np.ndarray) -> bool:
    apart = _months_apart(times)
    return bool(apart[0] > 0 and (apart == apart[0]).all() and _are_alike(times))


def _are_alike(times: np.ndarray) -> bool:
    """Whether all are on one day of their months, or on the last where it is earlier."""
    days = _days(times)
    return bool((days == _in_each_month(days.astype("datetime64[M]"), _day_of_month(times))).all())


def _months_apart(times: np.ndarray) -> np.ndarray:
    return np.diff(times.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64))


def _are_last(times: np.ndarray) -> bool:
    """Whether all are on the last day of a month."""
    days = _days(times)
    return bool(((days + np.timedelta64(1, "D")).astype("datetime64[M]") > days.astype("datetime64[M]")).all())


def _days(times: np.ndarray) -> np.ndarray:
    return times.astype("datetime64[us]").astype("datetime64[D]")


class Grid(NamedTuple):
    """Where rows stand on a regular grid of times, from 0, and the times of all its places."""

    places: np.ndarray
    times: np.ndarray


def grid(times: np.ndarray, *, dates: bool) -> Grid:
    """Returns the grid that rising times lie on, all but those that are missing: of months, working days or equal
    steps. A place is -1 behind a step that is no multiple of the usual one, or less than half of it.
    """
    if len(times) < 2:
        return Grid(np.zeros(len(times), np.int64), times)
    if dates and (calendar := _calendar_grid(times.astype("datetime64[us]"))):
        return calendar
    steps = np.diff(times)
    share = steps / _lower_median(steps)
    counts = np.floor(share + 0.5).astype(np.int64)
    places = np.append(0, np.cumsum(counts))
    places[1:][(counts < 1) | (np.abs(share - counts) > UNEVEN)] = -1
    return Grid(places, np.interp(np.arange(places.max() + 1), places, times).astype(times.dtype))


def _lower_median(steps: np.ndarray) -> float:
    """A step that there is: the larger half of all is at least as long."""
    return float(np.quantile(steps, 0.5, method="lower"))


def _calendar_grid(stamps: np.ndarray) -> Grid | None:
    """Of rows on one day of the month or its last, and of rows on working days alone, over a weekend at least."""
    days = stamps.astype("datetime64[D]")
    clocks, steps = stamps - days, np.diff(days).astype(np.int64)
    if (clocks != clocks[0]).any():
        return None
    if _lower_median(steps) >= 28 and _are_alike(stamps):
        months = days.astype("datetime64[M]")
        places = (months - months[0]).astype(np.int64)
        places //= max(int(np.gcd.reduce(np.diff(places))), 1)
        every = months[0] + np.arange(places[-1] + 1) * ((months[-1] - months[0]) // max(places[-1], 1))
        whole = _in_each_month(every, _day_of_month(stamps))
    elif _lower_median(steps) == 1 and steps.sum() > 6 and np.is_busday(days).all():
        places = np.busday_count(days[0], days)
        whole = np.busday_offset(days[0], np.arange(places[-1] + 1))
    else:
        return None
    return Grid(places, (whole + clocks[0]).astype(np.int64))


def calendar(moments: np.ndarray, features: tuple[str, ...]) -> np.ndarray:
    """Returns sine and cosine of the place in the hour, the day, the week, the month or the year, (..., 2 features)."""
    stamps = np.asarray(moments).astype(np.int64).astype("datetime64[us]")
    days, months = stamps.astype("datetime64[D]"), stamps.astype("datetime64[M]")
    hours = (stamps - days) / np.timedelta64(1, "h")
    day = (days - months.astype("datetime64[D]")).astype(np.int64)
    yearday = (days - days.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64)
    shares = {
        "minute": hours % 1,
        "hour": hours / 24,
        "weekday": (days.astype(np.int64) + 3) % 7 / 7,  # 1970 began on a Thursday
        "day": day / 31,
        "yearday": yearday / 366,
        "month": months.astype(np.int64) % 12 / 12,
    }
    angles = np.stack([2 * np.pi * shares[feature] for feature in features], axis=-1)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def are_days(times: np.ndarray, unit: str, offset: int | None = None) -> bool:
    """Returns whether times are dates without a time of day, in their offset from UTC."""
    return unit == "date" and not ((times.astype(np.int64) + (offset or 0) * 60_000_000) % 86_400_000_000).any()


def format_time(time: float, unit: str, offset: int | None = None, *, is_day: bool = False) -> str:
    """Returns a time as words: of microseconds a date, with its offset from UTC in minutes where there is one, or where
    it `is_day` the day alone; of anything else the number itself.
    """
    if unit != "date":
        return f"{time:.15g}"
    local = np.datetime64(int(time), "us") + np.timedelta64(offset or 0, "m")
    if is_day:
        return str(local.astype("datetime64[D]"))
    words = str(local.astype("datetime64[s]")).replace("T", " ").removesuffix(":00")
    return words if offset is None else words + _name_offset(offset)


class Survey(NamedTuple):
    """The least and the largest of numbers and of the steps from one to the next, and whether all are whole."""

    low: float
    high: float
    least_step: float
    largest_step: float
    is_whole: bool

    @property
    def goes_one_way(self) -> bool:
        """Whether no number is less than the one before, or none more."""
        return self.least_step >= 0 or self.largest_step <= 0


def survey(values: mapped.Numbers) -> Survey:
    """Returns what a column is like, many numbers at a time; not-a-number where one is."""
    parts = []
    for first in range(0, max(len(values) - 1, 1), AT_ONCE):
        block = np.asarray(values[first : first + AT_ONCE + 1])
        steps = np.diff(block)
        ends = (steps.min(initial=np.inf), steps.max(initial=-np.inf))
        parts.append((block.min(), block.max(), *ends, (block == np.round(block)).all()))
    low, high, least, largest, whole = zip(*parts, strict=True)
    spread = float(np.min(low)), float(np.max(high)), float(np.min(least)), float(np.max(largest))
    return Survey(*spread, bool(np.all(whole)))


def epoch(values: mapped.Numbers) -> bool:
    """Whether whole numbers are seconds, or thousandths, millionths or billionths of them, since 1970, from 1973 to
    2100, in rising or falling order.
    """
    column = survey(values)
    return _ticks(column) is not None and column.is_whole and len(values) > 1 and column.goes_one_way


def _ticks(column: Survey) -> float | None:
    """How many parts of a second numbers count, by their size."""
    scales = (1.0, 1e3, 1e6, 1e9)
    return next((scale for scale in scales if 1e8 * scale <= column.low and column.high <= 4.1e9 * scale), None)


def years(name: str, values: mapped.Numbers) -> bool:
    """Whether whole numbers in a column of that name are years, in rising or falling order."""
    if name.strip().lower() not in YEARS or len(values) < 2:
        return False
    column = survey(values)
    return column.is_whole and column.low >= 1000 and column.high <= 2999 and column.goes_one_way


def to_dates(name: str, values: mapped.Numbers) -> mapped.Numbers | None:
    """Returns the microseconds since 1970 of whole numbers that are times or years; None for other numbers."""
    if years(name, values):
        since = np.round(values[:]).astype(np.int64) - 1970
        return since.astype("datetime64[Y]").astype("datetime64[us]").astype(np.int64)
    ticks = _ticks(survey(values))
    if ticks is None:
        return None
    if isinstance(values, mapped.Mapped):
        return values.multiply(1e6 / ticks)
    return values.astype(np.float64) * (1e6 / ticks)


def speaks_of_time(name: str) -> bool:
    """Whether a column's name says that it holds times: all of its words do, as in "timestamp" or "Date Time", and not
    in "wait time".
    """
    words = [word for word in re.split(r"[^\w]+|_", name.lower()) if word]
    return bool(words) and set(words) <= _WORDS | _BESIDE and bool(set(words) & _WORDS)
