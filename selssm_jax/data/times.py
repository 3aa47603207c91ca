"""The times of a table's rows: read from the forms that people write, and checked for order, gaps and doubled rows."""

import re

import numpy as np

_MONTHS = {
    name: f" {number} "
    for number, name in enumerate(re.findall("...", "janfebmaraprmayjunjulaugsepoctnovdec"), start=1)
}
_MONTH = re.compile(r"(?<![a-z])(" + "|".join(_MONTHS) + r")[a-z]*\.?")
_WEEKDAY = re.compile(r"(?<![a-z])(mon|tue|wed|thu|fri|sat|sun)[a-z]*,?")
_ZONE = re.compile(r"(?<=\d)\s*(?:z|utc|gmt|([+-])(\d\d):?(\d\d))$")
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[ t](\d\d):(\d\d)(?::(\d\d))?)?")
_COMPACT = re.compile(r"^(\d{4})(\d\d)(\d\d)(?:[t ]?(\d\d)(\d\d)(\d\d)?)?$")
_NOON = re.compile(r"\s*([ap])\.?m\.?$")
_ORDERS = {"ymd": (0, 1, 2), "dmy": (2, 1, 0), "mdy": (2, 0, 1)}  # places of year, month and day
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
TOLERANCE = 0.5  # a step shorter than half the usual one, or longer than one and a half, is no step of the same kind


def fields(cell: str) -> tuple[int, ...] | None:
    """Returns the numbers of a date, with or without a time of day, in the order written and filled up with zeros; None
    for other words.
    """
    text = cell.strip().lower()
    if common := _ISO.fullmatch(text):
        return (*map(int, common.groups("0")), 0, 0)
    text, noon = _cut(text, _NOON)
    text, zone = _cut(text, _ZONE)
    compact = _COMPACT.match(text)
    text = _MONTH.sub(lambda month: _MONTHS[month[1]], _WEEKDAY.sub("", text))
    numbers = list(compact.groups("0")) if compact else re.findall(r"\d+", text)
    if not 2 <= len(numbers) <= 7 or re.search(r"[^\d\s./:,t_-]", text) or (len(numbers) == 2 and len(numbers[0]) != 4):
        return None
    date, clock = [*map(int, numbers[:3])], [*map(int, numbers[3:6])]
    if len(date) == 2:
        date.append(1)  # a month alone
    if max(date) > 9999:
        return None
    clock += [0] * (3 - len(clock))
    if noon:
        clock[0] = clock[0] % 12 + 12 * (noon[1] == "p")
    micro = int(numbers[6][:6].ljust(6, "0")) if len(numbers) == 7 else 0
    shift = int(f"{zone[1]}1") * (60 * int(zone[2]) + int(zone[3])) if zone and zone[1] else 0
    return (*date, *clock, micro, shift)


def _cut(text: str, pattern: re.Pattern[str]) -> tuple[str, re.Match[str] | None]:
    match = pattern.search(text)
    return (text[: match.start()], match) if match else (text, None)


class Dates:
    """Times of rows that come block by block, in every order of day, month and year in which all so far are dates.

    Times are microseconds since 1970, int64.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, list[np.ndarray]] = {name: [] for name in _ORDERS}
        self._last = np.zeros((1, _FIELDS), np.int64)
        self._signs: list[np.ndarray] = []

    def append(self, parts: np.ndarray) -> None:
        """Adds rows of `fields`, (rows, 8)."""
        for name in tuple(self._blocks):
            block = _in_order(parts, _ORDERS[name])
            if block is None:
                del self._blocks[name]
            else:
                self._blocks[name].append(block)
        steps = np.diff(np.concatenate([self._last, parts]), axis=0)
        self._signs.append(np.sign(steps[np.arange(len(steps)), (steps != 0).argmax(axis=1)]).astype(np.int8))
        self._last = parts[-1:]

    def moments(self) -> np.ndarray | None:
        """Returns the times; None where rows are no dates in any one order.

        Where 3/4 and 4/3 are both dates throughout, the order in which the rows rise or fall by even steps is taken.
        """
        columns = [np.concatenate(self._blocks.pop(name)) for name in tuple(self._blocks)]
        rising = (
            [times for times in columns if len(times) < 2 or _one_way(np.diff(times))] if len(columns) > 1 else columns
        )
        even = [times for times in rising if irregular(times) is None] if len(rising) > 1 else rising
        return next(iter(even or rising or columns), None)

    def one_way(self) -> int:
        """Returns 1 where the numbers as written rise from row to row, -1 where they fall, 0 for anything else."""
        signs = np.concatenate(self._signs)[1:]
        return int(signs[0]) if signs.size and (signs == signs[0]).all() else 0


def _in_order(parts: np.ndarray, order: tuple[int, int, int]) -> np.ndarray | None:
    year, month, day = (parts[:, place] for place in order)
    clock = parts[:, 3:]
    year = np.where(year < 100, 2000 + year, year)
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


def newest_first(times: np.ndarray) -> bool:
    """Whether rows go back in time, all but a few that are out of order."""
    steps = np.diff(times)
    return bool((steps < 0).sum() > (steps > 0).sum())


def irregular(times: np.ndarray) -> int | None:
    """Returns the first row that does not follow the one before it by the usual step, None where all do.

    Regular are equal steps, up to half of one; months, quarters and years; working days.
    """
    if len(times) < 3:
        late = np.flatnonzero(np.diff(times) <= 0)
        return int(late[0]) + 1 if late.size else None
    steps = np.diff(times)
    usual = np.median(steps)
    wrong = (steps <= 0) | (np.abs(steps - usual) > TOLERANCE * abs(usual))
    if not wrong.any() or ((steps > 0).all() and _in_calendar(times)):
        return None
    return int(np.argmax(wrong)) + 1


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
        days = _add_months(day, ahead * _months_apart(times)[-1], is_last=_are_last(times))
    else:
        days = np.busday_offset(day, ahead)
    return days.astype("datetime64[us]").astype(np.int64) + clock


def _add_months(day: np.datetime64, months: np.ndarray, *, is_last: bool) -> np.ndarray:
    """The same day of later months, or their last one."""
    month = day.astype("datetime64[M]")
    first = month + months.astype("timedelta64[M]")
    end = (first + np.timedelta64(1, "M")).astype("datetime64[D]") - np.timedelta64(1, "D")
    return end if is_last else np.minimum(first.astype("datetime64[D]") + (day - month.astype("datetime64[D]")), end)


def _in_calendar(times: np.ndarray) -> bool:
    """Whether rows are equally many months apart on one day of the month, or its last; or working days, one after the
    other.
    """
    days = _days(times)
    return _in_months(times) or bool(np.is_busday(days).all() and (np.busday_count(days[:-1], days[1:]) == 1).all())


def _in_months(times: np.ndarray) -> bool:
    apart, days = _months_apart(times), _days(times)
    place = days - days.astype("datetime64[M]").astype("datetime64[D]")
    return bool(apart[0] > 0 and (apart == apart[0]).all() and ((place == place[0]).all() or _are_last(times)))


def _months_apart(times: np.ndarray) -> np.ndarray:
    return np.diff(times.astype("datetime64[us]").astype("datetime64[M]").astype(np.int64))


def _are_last(times: np.ndarray) -> bool:
    """Whether all are on the last day of a month."""
    days = _days(times)
    return bool(((days + np.timedelta64(1, "D")).astype("datetime64[M]") > days.astype("datetime64[M]")).all())


def _days(times: np.ndarray) -> np.ndarray:
    return times.astype("datetime64[us]").astype("datetime64[D]")


def format_time(time: float, unit: str) -> str:
    """Returns a time as words: of microseconds a date, of anything else the number itself."""
    if unit != "date":
        return f"{time:.15g}"
    return str(np.datetime64(int(time), "us").astype("datetime64[s]")).replace("T", " ").removesuffix(":00")


def epoch(values: np.ndarray) -> bool:
    """Whether whole numbers are seconds, or thousandths, millionths or billionths of them, since 1970, from 1973 to
    2100, in rising or falling order.
    """
    low, high = values.min(), values.max()
    scale = next((scale for scale in (1.0, 1e3, 1e6, 1e9) if 1e8 * scale <= low and high <= 4.1e9 * scale), None)
    return (
        scale is not None and bool((values == np.round(values)).all()) and len(values) > 1 and _one_way(np.diff(values))
    )


def speaks_of_time(name: str) -> bool:
    """Whether a column's name says that it holds times: all of its words do, as in "timestamp" or "Date Time", and not
    in "wait time".
    """
    words = [word for word in re.split(r"[^\w]+|_", name.lower()) if word]
    return bool(words) and set(words) <= _WORDS | _BESIDE and bool(set(words) & _WORDS)
