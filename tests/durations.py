"""Writes tests/durations.json, which tests take long, from the report of a whole run: `tests/conftest.py` gives them
the mark `slow`.

  python -m pytest --junitxml=report.xml && python tests/durations.py report.xml

The seconds are the mean of a function's cases, of a run on the machine that the record names. Tests that are not in it
are quick. What the run left out, for it is exhaustive, keeps the seconds that it had.
"""

import json
import os
import pathlib
import platform
import sys
from collections import defaultdict
from xml.etree import ElementTree

RECORD = pathlib.Path(__file__).with_name("durations.json")
LONG = 0.5  # seconds: shorter ones are not recorded


def measure_functions(report: str) -> dict[str, float]:
    """Returns the mean seconds of the cases of each test function, "tests/ops/test_ssd.py::test_name", those of its
    fixtures included.
    """
    seconds = defaultdict(list)
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        path = case.get("classname").replace(".", "/") + ".py"
        seconds[f"{path}::{case.get('name').partition('[')[0]}"].append(float(case.get("time")))
    return {name: round(sum(values) / len(values), 2) for name, values in seconds.items()}


def merge(before: dict[str, float], measured: dict[str, float]) -> dict[str, float]:
    """Returns what is recorded after a run: long functions, of those that it left out as they were."""
    return {name: seconds for name, seconds in sorted((before | measured).items()) if seconds >= LONG}


if __name__ == "__main__":
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    seconds = merge(json.loads(RECORD.read_text())["seconds"], measure_functions(sys.argv[1]))
    RECORD.write_text(json.dumps({"machine": machine, "seconds": seconds}, indent=1) + "\n")
    print(f"wrote {RECORD}")
