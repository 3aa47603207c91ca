"""Tables as people have them: each is read right, or refused by the name of what could be read in two ways."""

import tracemalloc

import numpy as np
import pytest

from selssm_jax import data
from selssm_jax.config import Data
from selssm_jax.data import tables, times
from selssm_jax.errors import InputError


def read(text, **options):
    return tables.read("t.csv", tables.opener_of(text), most_rows=3, **options)


def dated(form, values=(1.5, 2.5, 4.0), head="date,a"):
    return "\n".join([head, *(f"{form.format(i=i, j=i + 1)},{value}" for i, value in enumerate(values))]) + "\n"


RIGHT = {
    "semicolons, decimal commas, a comma in the header": (
        "date;load, in kW\n2020-01-01;1,5\n2020-01-02;2,7\n",
        ["load, in kW"],
        [[1.5], [2.7]],
    ),
    "decimal commas without dates": (
        "price;amount\n12,50;100\n13,75;90\n",
        ["price", "amount"],
        [[12.5, 100], [13.75, 90]],
    ),
    "one named column of decimal commas": ("load\n0,126\n0,250\n", ["load"], [[0.126], [0.25]]),
    "points between thousands": ("a;b\n1.234,5;2\n5.678;3\n", ["a", "b"], [[1234.5, 2], [5678, 3]]),
    "commas between thousands": ('a,b\n"1,000,126.0",2.1\n"1,127",2.2\n', ["a", "b"], [[1000126, 2.1], [1127, 2.2]]),
    "bars": ("a|b\n1|2.5\n3|4.5\n", ["a", "b"], [[1, 2.5], [3, 4.5]]),
    "names of pandas": ("0,1,2\n1.5,2.5,3.5\n2.5,3.5,4.5\n", ["0", "1", "2"], [[1.5, 2.5, 3.5], [2.5, 3.5, 4.5]]),
    "years as names": (
        "date,2020,2021\n2020-01-01,1.5,2.5\n2020-01-02,3.5,4.5\n",
        ["2020", "2021"],
        [[1.5, 2.5], [3.5, 4.5]],
    ),
    "seconds since 1970": ("timestamp,a\n1577836800,1\n1577840400,3\n", ["a"], [[1], [3]]),
    "milliseconds since 1970, in any column": ("a,ts\n1,1577836800000\n3,1577840400000\n", ["a"], [[1], [3]]),
    "compact dates over the end of a month": ("date,a\n20200131,1\n20200201,3\n20200202,4\n", ["a"], [[1], [3], [4]]),
    "row numbers": ("Unnamed: 0,a\n0,1\n1,3\n", ["a"], [[1], [3]]),
    "newest first": ("date,a\n2020-01-03,4\n2020-01-02,2.5\n2020-01-01,1.5\n", ["a"], [[1.5], [2.5], [4]]),
    "newest first, days before months": (
        "date;a\n15.01.2020;4,5\n14.01.2020;2,5\n13.01.2020;1,5\n",
        ["a"],
        [[1.5], [2.5], [4.5]],
    ),
    "newest first, with hyphens": ("date,a\n15-01-2020,4\n14-01-2020,2\n13-01-2020,1\n", ["a"], [[1], [2], [4]]),
    "newest first, months": ("date,a\n01-2020,4\n12-2019,2\n11-2019,1\n", ["a"], [[1], [2], [4]]),
    "newest first, weeks": ("week,a\n2021-W01,4\n2020-W53,2\n2020-W52,1\n", ["a"], [[1], [2], [4]]),
    "newest first, quarters": ("q,a\n2020Q1,4\n2019Q4,2\n2019Q3,1\n", ["a"], [[1], [2], [4]]),
    "over the end of a century": ("date,a\n30.12.99,1\n31.12.99,2\n01.01.00,4\n", ["a"], [[1], [2], [4]]),
    "date and time of day": (
        "Date;Time;P\n16/12/2006;23:59:00;4,2\n17/12/2006;00:00:00;4,3\n17/12/2006;00:01:00;4,4\n",
        ["P"],
        [[4.2], [4.3], [4.4]],
    ),
    "noon and midnight": (
        dated("1/1/2020 1{i}:00 AM")[:-1].replace("12:00 AM", "12:00 PM"),
        ["a"],
        [[1.5], [2.5], [4.0]],
    ),
    "the hour that comes twice, with its zone": (
        "date,a\n2020-10-25T02:00:00+02:00,1\n2020-10-25T02:00:00+01:00,2\n2020-10-25T03:00:00+01:00,3\n",
        ["a"],
        [[1], [2], [3]],
    ),
    "months": ("date,a\n2020-01-31,1\n2020-02-29,2\n2020-03-31,4\n", ["a"], [[1], [2], [4]]),
    "working days": ("date,a\n2020-01-02,1\n2020-01-03,2\n2020-01-06,4\n", ["a"], [[1], [2], [4]]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_table_is_read_as_its_writer_meant_it(name):
    text, names, values = RIGHT[name]
    table = read(text)
    assert list(table.names) == names
    np.testing.assert_allclose(table.values, values, rtol=1e-6)
    assert (
        len(names) == text.splitlines()[0].count(";" if ";" in text else "|" if "|" in text else ",") + 1
        or table.notes
        or "decimal" in name
    )


UNCLEAR = {
    "one column of decimal commas, or two": (
        "0,126\n0,250\n",
        r"line 1 holds 0,126, which may be 2 whole numbers or 1 with decimal commas: put a line of names",
    ),
    "two columns of decimal commas, or four": (
        "1,5,2,7\n1,6,2,8\n",
        "which may be 4 whole numbers or 2 with decimal commas",
    ),
    "thousands or decimals": (
        "a;b\n1,234;2\n5,678;3\n",
        r"line 2 column 1 holds '1,234', which may be a number of thousands or one with a decimal comma",
    ),
    "both marks": (
        "a;b\n1,25;2.5\n5,6;3.5\n",
        r"holds '1,25' with a decimal comma, and line 2 column 2 holds '2.5' with a decimal point",
    ),
    "percent": ("a,b\n0.1%,2\n0.2%,3\n", r"line 2 column 1 holds '0.1%', expected a finite number: .*without units"),
    "currency": ("a,b\n€5,2\n€6,3\n", "holds '€5', expected a finite number"),
    "spaces between thousands": ("a,b\n1 234,2\n1 235,3\n", "holds '1 234', expected a finite number"),
    "names or numbers": ("0,1,2\n1,2,3\n4,5,6\n", "line 1 holds 0, 1, 2, which may be names of columns or numbers"),
    "names or numbers from 1": ("1,2,3\n1.5,2.5,3.5\n", "line 1 holds 1, 2, 3, which may be names"),
    "one name for two": ("a,a\n1.5,2.5\n", "names 2 columns 'a': give each a name of its own"),
    "no name": ("a,,b\n1.5,2.5,1\n3.5,2.5,1\n", "column 2 of its numbers has no name"),
    "a gap": (
        dated("2020-01-01 0{i}:00", (1, 2, 3)) + "2020-01-01 05:00,4\n",
        r"2020-01-01 02:00 is followed by 2020-01-01 05:00, which is not the step",
    ),
    "an hour twice": (
        dated("2020-10-25 0{i}:00", (1, 2, 3)) + "2020-10-25 02:00,4\n",
        "2020-10-25 02:00 comes twice: fill what is missing and keep one row a time",
    ),
    "a second missing": (
        "timestamp,a\n1577836800,1\n1577836801,3\n1577836802,3\n1577836809,3\n",
        "1577836802 is followed by 1577836809",
    ),
    "a row missing": (",a\n0,1\n1,2\n3,4\n4,5\n", "1 is followed by 3"),
    "rows out of order": ("time,a\n3,1\n1,2\n2,5\n", "column 'time' neither rises nor falls, so it is no time"),
    "a gap of days, with hyphens": (
        "date,a\n29-12-2019,1\n30-12-2019,2\n31-12-2019,3\n05-01-2020,4\n",
        "2019-12-31 00:00 is followed by 2020-01-05 00:00, which is not the step",
    ),
    "a quarter that is missing": (
        "q,a\n2019Q3,1\n2019Q4,2\n2020Q1,3\n2020Q3,4\n",
        "2020-01-01 00:00 is followed by 2020-07-01 00:00, which is not the step",
    ),
    "no dates": (
        "date,a\n31/02/2020,1\n01/03/2020,2\n15/02/2020,2\n",
        "the dates of column 'date' follow no one order",
    ),
    "one row a town": (
        "town,a\nx,1\ny,2\nx,3\n",
        "column 'town' holds the same words in rows 1 and 3: give one row a time step",
    ),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_could_be_read_in_two_ways_is_refused_by_name(name):
    text, message = UNCLEAR[name]
    with pytest.raises(InputError, match=rf"^t\.csv:? .*{message}|^t\.csv:? {message}"):
        read(text)


FILL, MASK = {"gaps": "fill", "missing": "mask"}, {"missing": "mask"}
NAN = float("nan")
CHOSEN = {
    "a gap of hours": (dated("2020-01-01 0{i}:00", (1, 2, 3)) + "2020-01-01 05:00,4\n", FILL, [1, 2, 3, NAN, NAN, 4]),
    "a time twice, the last row counts": (
        dated("2020-01-0{j}", (1, 2)) + "2020-01-02,5\n2020-01-03,6\n",
        FILL,
        [1, 5, 6],
    ),
    "rows out of order": ("date,a\n2020-01-02,2\n2020-01-01,1\n2020-01-04,4\n2020-01-03,3\n", FILL, [1, 2, 3, 4]),
    "newest first, with a gap": (
        "date,a\n2020-01-08,1\n2020-01-07,2\n2020-01-05,4\n2020-01-04,7\n",
        FILL,
        [7, 4, NAN, 2, 1],
    ),
    "a month missing, at its last day": (
        "date,a\n2020-01-31,1\n2020-02-29,2\n2020-04-30,4\n2020-05-31,5\n",
        FILL,
        [1, 2, NAN, 4, 5],
    ),
    "a holiday among working days": (
        "date,a\n2020-01-02,1\n2020-01-03,2\n2020-01-06,3\n2020-01-07,4\n2020-01-09,6\n2020-01-10,7\n",
        FILL,
        [1, 2, 3, 4, NAN, 6, 7],
    ),
    "seconds since 1970, one missing": (
        "timestamp,a\n1577836800,1\n1577836801,2\n1577836803,4\n",
        FILL,
        [1, 2, NAN, 4],
    ),
    "a year missing": ("year,a\n1950,1\n1951,2\n1953,4\n", FILL, [1, 2, NAN, 4]),
    "row numbers, one missing": (",a\n0,1\n1,2\n3,4\n", FILL, [1, 2, NAN, 4]),
    "times that jitter": (
        "date,a\n2020-01-01 00:00:01,1\n2020-01-01 00:59:58,2\n2020-01-01 03:00:03,4\n2020-01-01 04:00:00,5\n",
        FILL,
        [1, 2, NAN, 4, 5],
    ),
    "empty cells": ("a,b\n1,1\n,2\n3,3\n", MASK, [1, NAN, 3]),
    "NA and nan": ("a,b\n1,1\nNA,2\nnan,3\n4,5\n", MASK, [1, NAN, NAN, 4]),
    "null, a dash, a question mark": ("a,b\nnull,1\n-,2\n?,3\n4,5\n", MASK, [NAN, NAN, NAN, 4]),
    "decimal commas and empty cells": ("a;b\n1,5;1\n;2\n-;3\n4,5;4\n", MASK, [1.5, NAN, NAN, 4.5]),
    "a first column without a value for long": (
        "a,b\n" + "NA,1\n" * 120 + "2,1\n",
        MASK,
        [NAN] * 120 + [2],
    ),
    "a comma in a quoted name": ('date,"load, kW"\n2020-01-01,1\n2020-01-02,2\n', {}, [1, 2]),
    "days as whole numbers, without names": ("20200130,1\n20200131,2\n20200201,3\n", {}, [1, 2, 3]),
    "years": ("Year,a\n1950,1\n1951,2\n1952,3\n", {}, [1, 2, 3]),
    "two series, row by row": (
        "id,date,a\nx,2020-01-01,1\ny,2020-02-02,5\nx,2020-01-02,2\ny,2020-02-03,6\n",
        {"series": "id"},
        [1, 2, 5, 6],
    ),
    "series of numbers, one newest first": (
        "date,shop,a\n2020-01-01,7,1\n2020-01-02,7,2\n2020-01-03,9,6\n2020-01-02,9,5\n",
        {"series": "shop"},
        [1, 2, 5, 6],
    ),
    "a gap in one of two series": (
        "id,date,a\n"
        + "".join(f"x,2020-01-0{day},{day}\n" for day in (1, 2, 3))
        + "".join(f"y,2020-01-0{day},{day}\n" for day in (4, 5, 7)),
        {"series": "id", **FILL},
        [1, 2, 3, 4, 5, NAN, 7],
    ),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_a_table_is_read_as_is_chosen(name):
    text, options, values = CHOSEN[name]
    table = read(text, **options)
    np.testing.assert_array_equal(table.values[:, 0], values)
    assert ("masked" in " ".join(table.notes)) == bool(np.isnan(table.values).any())
    if "gap" in name or "missing" in name or "holiday" in name:
        assert "rows put in for missing times: " in " ".join(table.notes)


REFUSED = {
    "no times to fill by": ("a,b\n1,2\n3,4\n", FILL, r"has no column of times, by which data\.gaps='fill'"),
    "no multiple of the step": (
        "date,a\n2020-01-01,1\n2020-01-02,2\n2020-01-03 12:00,3\n2020-01-04 12:00,4\n",
        FILL,
        r"2020-01-02 00:00 is followed by 2020-01-03 12:00, no multiple of the step",
    ),
    "a leap of years": (
        dated("2020-01-01 0{i}:00", (1, 2, 3)) + "2024-01-01 05:00,4\n",
        FILL,
        r"data\.gaps='fill' would make 35,070 rows of 4: cut the table",
    ),
    "a value that is infinite": ("a,b\n1,2\ninf,3\n", MASK, r"line 3 column 1 holds 'inf', expected a finite number"),
    "a word among missing values": ("a,b\n1,2\n-,3\nbroken,4\n", MASK, r"line 4 column 1 holds 'broken'"),
    "a missing value": ("a,b\n1,2\n-,3\n", {}, r"line 3 column 1 holds '-'.*or train with data\.missing='mask'"),
    "no such series": ("a,b\n1,2\n", {"series": "shop"}, r"has no column data\.series_id='shop'"),
    "a gap in a series": (
        "id,date,a\n" + "".join(f"x,2020-01-0{day},{day}\n" for day in (1, 2, 3, 5)) + "y,2020-01-01,3\n",
        {"series": "id"},
        r"series 'x': 2020-01-03 00:00 is followed by 2020-01-05 00:00",
    ),
    "series of other steps": (
        "id,date,a\n"
        + "".join(f"x,2020-01-0{day},{day}\n" for day in (1, 2, 3))
        + "".join(f"y,2020-01-01 0{hour}:00,{hour}\n" for hour in (1, 2, 3)),
        {"series": "id"},
        "the series that begins at 2020-01-01 01:00 has another step than the first",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_as_is_chosen_is_refused_by_name(name):
    text, options, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        read(text, **options)


def test_whole_numbers_that_are_times_tell_the_clock():
    hours = read("timestamp,a\n1577836800000,1\n1577840400000,3\n")
    years = read("year,a\n1969,1\n1970,2\n1971,3\n")
    assert hours.clock == (1577836800e6, 3600e6) and years.clock == (-365 * 86400e6, 365 * 86400e6)


def test_gaps_are_ignored_where_that_is_asked_for_and_said():
    table = read(UNCLEAR["a gap"][0], gaps="ignore")
    assert table.values[:, 0].tolist() == [1, 2, 3, 4]
    assert table.notes[-1] == "irregular times ignored, the first after 2020-01-01 02:00"


def test_what_is_left_out_is_said():
    assert read("Unnamed: 0,a\n1,1\n0,3\n").notes == (
        "left out 'Unnamed: 0' (row numbers)",
        "newest first, turned round",
    )
    assert read("day,a\nday 1,1\nday 2,3\n").notes == ("left out 'day' (labels)",)


def test_how_times_are_read_is_said():
    short = read("date,a\n31.12.99,1\n01.01.00,3\n")
    assert short.notes[-1] == "years of two digits, read as 1969 to 2068" and short.offset is None
    assert times.format_time(short.clock[0], "date") == "1999-12-31 00:00"
    summer = read("date,a\n2024-04-07T00:00+02:00,1\n2024-04-08T00:00+02:00,3\n")
    assert summer.notes[-1] == "times of offset +02:00 turned to UTC, as is their calendar" and summer.offset == 120
    assert times.format_time(summer.clock[0], "date", summer.offset) == "2024-04-07 00:00+02:00"
    both = read(RIGHT["the hour that comes twice, with its zone"][0])
    assert both.notes[-1] == "times of offset +01:00, +02:00 turned to UTC, as is their calendar"
    assert times.format_time(both.clock[0], "date", both.offset) == "2020-10-25 00:00+00:00"
    half = read("date,a\n2024-04-07 00:00-03:30,1\n2024-04-08 00:00-03:30,3\n")
    assert times.format_time(half.clock[0], "date", half.offset) == "2024-04-07 00:00-03:30"
    plain = read("date,a\n2024-04-07T00:00Z,1\n2024-04-08T00:00Z,3\n")
    assert plain.notes == ("left out 'date' (times)",) and plain.offset is None
    unread = read("date,a\nfirst of May,1\nsecond of May,3\n")
    assert unread.notes[-1] == "'date' is not read as times: order and gaps are not checked"


def test_a_time_in_utc_is_named_so():
    rows = "".join(f"2024-04-07T0{hour}:00+02:00,1\n" for hour in (3, 4, 5, 9))
    with pytest.raises(InputError, match=r"t\.csv, times in UTC: 2024-04-07 03:00 is followed by 2024-04-07 07:00"):
        read("date,a\n" + rows)


def test_a_mark_of_decimals_is_told_by_the_table_as_a_whole():
    rows = ["a;b", *(f"1.{i:03};{i},5" for i in range(100, 900))]  # the first block of rows could be read either way
    table = read("\n".join(rows))
    assert table.values[0].tolist() == [1100, 100.5] and table.values[-1].tolist() == [1899, 899.5]


@pytest.mark.parametrize(
    ("cell", "parts"),
    [
        ("2020-12-31 23:59:58", (2020, 12, 31, 23, 59, 58, 0, 0)),
        ("31-Dec-2020 11:59 pm", (31, 12, 2020, 23, 59, 0, 0, 0)),
        ("Thu, 31 December 2020", (31, 12, 2020, 0, 0, 0, 0, 0)),
        ("2020-12-31T23:59:58.25+02:00", (2020, 12, 31, 23, 59, 58, 250_000, 120)),
        ("2020-12", (2020, 12, 1, 0, 0, 0, 0, 0)),
        ("31-12-2024", (31, 12, 2024, 0, 0, 0, 0, 0)),
        ("31-12-2024 10:00 -0530", (31, 12, 2024, 10, 0, 0, 0, -330)),
        ("05-2024", (2024, 5, 1, 0, 0, 0, 0, 0)),
        ("May 2024", (2024, 5, 1, 0, 0, 0, 0, 0)),
        ("2024-W05", (2024, 1, 29, 0, 0, 0, 0, 0)),
        ("2024-W54", None),
        ("2023Q1", (2023, 1, 1, 0, 0, 0, 0, 0)),
        ("Q4 2023", (2023, 10, 1, 0, 0, 0, 0, 0)),
        ("2024-05-01 10:00:00-05", (2024, 5, 1, 10, 0, 0, 0, -300)),
        ("2024-05-01 10:00:00.5+02", (2024, 5, 1, 10, 0, 0, 500_000, 120)),
        ("1/5/2024 11:00 pm UTC", (1, 5, 2024, 23, 0, 0, 0, 0)),
        ("20240501T100000Z", (2024, 5, 1, 10, 0, 0, 0, 0)),
        ("2020-12-31+02:00", (2020, 12, 31, 0, 0, 0, 0, 120)),
        ("12-3456", None),
        ("12.5 kW", None),
        ("north", None),
    ],
)
def test_dates_are_read_in_the_forms_that_people_write(cell, parts):
    assert times.fields(cell) == parts


# Another table than the run's own.


def table(path, columns, rows=400, *, head=True):
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=rows), "b": 1000 + 50 * rng.normal(size=rows), "c": rng.normal(size=rows)}
    body = "".join(",".join(f"{values[name][row]:.6f}" for name in columns) + "\n" for row in range(rows))
    path.write_text((",".join(columns) + "\n" if head else "") + body)
    return Data(source="csv", file=str(path), length=16, horizon=4)


@pytest.mark.parametrize("columns", ["ba", "acb"])
def test_columns_are_matched_by_name(tmp_path, columns):
    known = data.load(table(tmp_path / "own.csv", "ab")).metadata()
    own, other = (
        data.load(table(tmp_path / "same.csv", "ab"), known),
        data.load(table(tmp_path / "other.csv", columns), known),
    )
    for mine, theirs in zip(own.evaluate("whole", 64), other.evaluate("whole", 64), strict=True):
        np.testing.assert_array_equal(mine["inputs"], theirs["inputs"])
    assert ("left out 'c' (not of the run)" in other.reading) == ("c" in columns)


def test_a_column_that_is_missing_or_has_no_name_is_refused(tmp_path):
    known = data.load(table(tmp_path / "own.csv", "ab")).metadata()
    with pytest.raises(
        InputError, match=r"other\.csv lacks 'b', which the run was trained on, and has 'a', 'c': add or rename"
    ):
        data.load(table(tmp_path / "other.csv", "ac"), known)
    with pytest.raises(
        InputError,
        match=r"bare\.csv has no line of names, by which the run tells its columns: put a,b above the numbers",
    ):
        data.load(table(tmp_path / "bare.csv", "ba", head=False), known)


@pytest.mark.parametrize("period", [24, -1])
def test_a_table_is_evaluated_whole_at_the_runs_place_in_its_cycle(tmp_path, period):
    def days(path, first, count):
        start = np.datetime64("2020-01-06T00", "h") + np.timedelta64(first, "h")
        rows = "".join(
            f"{start + np.timedelta64(i, 'h')},{np.sin((first + i) * 2 * np.pi / 24):.6f}\n" for i in range(count)
        )
        path.write_text("date,a\n" + rows)
        return Data(source="csv", file=str(path), length=8, horizon=4, period=period)

    own = data.load(days(tmp_path / "own.csv", 0, 400))
    assert ("a cycle of 24 rows found in the training rows" in own.reading) == (period < 0)
    known = own.metadata()
    other = data.load(days(tmp_path / "other.csv", 7, 12), known)  # one window, which begins at seven
    (batch,) = other.evaluate("whole", 1)
    assert np.abs(batch["inputs"]).max() < 1e-4 < np.abs(batch["course"]).max()
    with pytest.raises(InputError, match=r"the test split of .*too small for one example: evaluate --split=whole"):
        other.evaluate("test", 1)


@pytest.mark.parametrize(("form", "most"), [("{:d}", 3.0), ("{:.1f}", 3.0), ("{:.4f}", 3.0)])
def test_memory_is_a_few_times_the_file(tmp_path, form, most):
    values = np.random.default_rng(0).random((6000, 100)) * 9
    path = tmp_path / "large.csv"
    path.write_text(
        "\n".join(
            [
                ",".join(f"c{i}" for i in range(100)),
                *(",".join(form.format(int(v) if "d" in form else v) for v in row) for row in values),
            ]
        )
    )
    tracemalloc.start()
    try:
        dataset = data.load(Data(source="csv", file=str(path), length=16, horizon=4))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most * path.stat().st_size + 12e6  # a block of rows as cells
    batch = next(iter(dataset.evaluate("train", 1)))["inputs"][0]
    own = np.array([[float(form.format(int(v) if "d" in form else v)) for v in row] for row in values])
    np.testing.assert_allclose(batch, (own[:16] - own[:4200].mean(axis=0)) / own[:4200].std(axis=0), atol=1e-5)
