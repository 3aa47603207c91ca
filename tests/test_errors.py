"""A user's mistake ends in one message and exit code 2; any other error keeps its traceback."""

import subprocess
import sys

import pytest

from selssm_jax.errors import InputError, report_errors, suggest


def test_input_error_is_reported_without_traceback(capsys):
    with pytest.raises(SystemExit) as stop, report_errors():
        raise InputError("data.file='x.csv' does not exist: set data.file to your file")
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: data.file='x.csv' does not exist: set data.file to your file\n")


@pytest.mark.parametrize("error", [ValueError("bug"), KeyError("bug"), KeyboardInterrupt(), SystemExit(0)])
def test_other_errors_pass_through(error):
    with pytest.raises(type(error)) as caught, report_errors():
        raise error
    assert caught.value is error


def test_nothing_is_reported_when_nothing_is_wrong(capsys):
    with report_errors():
        pass
    assert capsys.readouterr() == ("", "")


def test_exit_code_of_a_process_is_2():
    code = (
        "from selssm_jax.errors import InputError, report_errors\nwith report_errors():\n    raise InputError('the "
        "thing and the fix')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: the thing and the fix\n")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("etth2", "did you mean 'etth1'? known: csv, etth1, fsdd"),
        ("nothing like it", "known: csv, etth1, fsdd"),
        ("", "known: csv, etth1, fsdd"),
    ],
)
def test_suggestion(found, expected):
    assert suggest(found, ["fsdd", "etth1", "csv"]) == expected


def test_suggestion_reads_any_iterable_once():
    assert suggest("fsd", iter(["fsdd", "csv"])) == "did you mean 'fsdd'? known: csv, fsdd"
