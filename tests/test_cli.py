"""What every command does besides its work: Ctrl-C ends it in a line, and a reader that goes away does not end it."""

import os
import subprocess
import sys

import pytest

import runs
from selssm_jax import cli

PRINTING = """
import sys
from selssm_jax import cli
with cli.command():
    for number in range(100_000):
        print(number)
        print(number, file=sys.stderr)
open(sys.argv[1], "w").write("came to its end")
"""


def test_a_closed_pipe_does_not_end_a_command(tmp_path):
    """As in "train.py 2>&1 | head": the run lost what it had not saved, in a traceback."""
    ended = tmp_path / "ended"
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTING, str(ended)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=runs.REPOSITORY,
    )
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert ended.read_text() == "came to its end"


def test_a_stream_without_a_reader_takes_what_comes_and_its_process_may_end():
    there, here = os.pipe()
    stream = os.fdopen(here, "w")
    lasting = cli.Lasting(stream)
    os.close(there)
    for _ in range(3):
        assert lasting.write("nobody reads this") == 17
        lasting.flush()
    stream.close()


def test_what_is_read_is_written_at_once():
    there, here = os.pipe()
    with os.fdopen(here, "w") as stream, os.fdopen(there) as reader:
        cli.Lasting(stream).write("one\n")
        assert reader.readline() == "one\n" and not cli.Lasting(stream).isatty()


@pytest.mark.parametrize("script", ["eval.py", "train.py"])
def test_ctrl_c_is_one_line_and_exit_code_130(script, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("selssm_jax.runs.open_run", interrupted)
    monkeypatch.setattr("selssm_jax.training.loop.fit", interrupted)
    arguments = [f"--workdir={tmp_path}"] + (["--config=configs/smoke.py"] if script == "train.py" else [])
    assert runs.command(script, *arguments) == 130
    assert capsys.readouterr().err == "interrupted\n"
