"""The benchmarks' page says what the records say, and every script runs: at sizes that take no time, whose numbers mean nothing."""

import importlib
import json
import pathlib
import sys

import jax
import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Makes the scripts import one another as they do when they are run, and forgets them afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in (set(sys.modules) - before) & {path.stem for path in FOLDER.glob("*.py")}:
        del sys.modules[name]


def test_the_page_is_that_of_the_records():
    records = {path.stem: json.loads(path.read_text()) for path in (FOLDER / "records").glob("*.json")}
    assert (FOLDER / "README.md").read_text() == importlib.import_module("readme").text(dict(sorted(records.items())))


def test_every_record_names_a_script_that_exists():
    for path in (FOLDER / "records").glob("*.json"):
        program = json.loads(path.read_text())["command"].split()[1]
        assert (FOLDER.parent / program).is_file(), path.name


def test_every_op_of_growth_and_its_floor_is_measured():
    growth = importlib.import_module("growth")
    for run, draw in growth.OPS.values():
        found = growth.at_length(run, draw, 32, 1)
        assert found["steps"] == 32 and found["milliseconds"]["value_and_grad"]["median"] > 0
    assert growth.slope([3.0 * steps for steps in growth.LENGTHS]) == pytest.approx(1.0)


def test_newton_is_compared_with_the_loop():
    found = importlib.import_module("newton_scan").compare(1, steps=64, width=4)
    assert found["converged"] and found["error"] < 1e-5


@pytest.mark.parametrize(("name", "shape"), [("linear_scan", (1, 64, 4)), ("ssd", (1, 64, 2, 4, 4))])
def test_methods_are_compared_at_every_shape(name, shape):
    script = importlib.import_module(name)
    found = (script.every_method if name == "linear_scan" else script.every_chunk)(shape, 1)
    assert found["shape"] == shape and all(value["median"] > 0 for key, value in found.items() if key != "shape")


def test_the_recurrences_that_ssd_is_measured_against_are_its_own():
    script = importlib.import_module("ssd")
    _, *given = script.inputs((1, 40, 2, 4, 3))
    ours = script.ssd(*given)[0]
    for peer in (script.as_selective_scan, script.step_by_step):
        assert jax.numpy.abs(ours - peer(*given)).max() < 1e-4
