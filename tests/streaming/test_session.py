"""A learner beside its rivals, and the command that reads rows as they come: nothing before its truth, killed streams,
bad rows, and what is refused.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import runs
from selssm_jax.analysis import analyse_stream
from selssm_jax.compression.streaming import PackedModel
from selssm_jax.config import Streaming
from selssm_jax.errors import InputError
from selssm_jax.report import render_stream, summarise_stream
from selssm_jax.runs import open_run
from selssm_jax.stream_files import OpenStream, read_rows
from selssm_jax.streaming import LastValue, RecursiveLeastSquares, Session, synthetic
from selssm_jax.streaming.rivals import follow_rows
from selssm_jax.streaming.session import LAST, LEARNER, LEAST_SQUARES
from selssm_jax.training import loop

HORIZON, COLUMNS = 2, ("up", "down")
FAST = ("stream.log_every=5", "stream.save_every=20", "stream.rate=0.01", "stream.lags=3", "stream.detector=none")


def write_table(path, rows, names=COLUMNS):
    lines = [",".join(names)] if names else []
    path.write_text("\n".join([*lines, *(",".join(f"{value:.5f}" for value in row) for row in rows)]) + "\n")


@pytest.fixture(scope="module")
def table():
    """Rows (T, 2) of two autoregressions."""
    parts = [synthetic.switch_autoregression(seed, 320, 160).inputs[:, 0] for seed in (1, 2)]
    return np.stack(parts, axis=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, table):
    """A folder with a small run that can be streamed."""
    folder = tmp_path_factory.mktemp("session")
    write_table(folder / "table.csv", table)
    small = {"pattern": ("selective",), "d_model": 6, "d_state": 5, "mlp_ratio": 0.0, "normalize": False}
    config = runs.experiment(
        data__source="csv",
        data__file=str(folder / "table.csv"),
        data__length=16,
        data__horizon=HORIZON,
        training__steps=3,
        training__eval_every=3,
        training__checkpoint_every=3,
        optimizer__warmup_steps=1,
        **{f"model__{key}": value for key, value in small.items()},
    )
    loop.fit(config, str(folder / "run"))
    return folder / "run"


def open_stream(trained, place, *override):
    """The stream of a copy of the run."""
    if not place.exists():
        place.mkdir()
        for item in trained.iterdir():
            if item.name != "stream":
                os.symlink(item, place / item.name)
    return OpenStream(open_run(place, override=(*FAST, *override), examples=False))


def follow(stream, name):
    return [json.loads(line) for line in stream.follow(str(name))]


def test_rivals_are_those_that_follow_a_recorded_series(trained, table):
    run = open_run(trained, examples=False)
    session = Session(run.model, run.params, Streaming(lags=3, forgetting=0.99, detector="none"))
    entries = [session.advance(row) for row in table[:60]]
    rivals = {LAST: LastValue(HORIZON), LEAST_SQUARES: RecursiveLeastSquares(2, HORIZON, 3, 0.99)}
    for name, rival in rivals.items():
        expected = follow_rows(rival, table[:60].astype(np.float64), HORIZON)
        np.testing.assert_allclose([entry.errors[name] for entry in entries], expected, rtol=1e-9)


def test_nothing_is_learnt_before_its_truth(trained, tmp_path, table):
    """Other numbers from row 40 on change no forecast before it, and the truth of row 39 is learnt from at row 39."""
    changed = table.copy()
    changed[40:] += 3.0
    lines = []
    for name, rows in (("one", table), ("other", changed)):
        write_table(tmp_path / f"{name}.csv", rows[:60])
        lines.append(follow(open_stream(trained, tmp_path / name), tmp_path / f"{name}.csv"))
    assert lines[0][:40] == lines[1][:40]
    assert lines[0][40]["forecast"] != lines[1][40]["forecast"]
    assert "error" not in lines[0][HORIZON - 1] and "error" in lines[0][HORIZON]


@pytest.mark.parametrize("history", [0, 10])
def test_a_stream_in_two_parts_is_the_stream(history, trained, tmp_path, table):
    """A longer table goes on where the shorter one ended, with every number the same."""
    write_table(tmp_path / "short.csv", table[:47])
    write_table(tmp_path / "long.csv", table[:80])
    how = f"stream.history={history}"
    whole = follow(open_stream(trained, tmp_path / "whole", how), tmp_path / "long.csv")
    first = follow(open_stream(trained, tmp_path / "parts", how), tmp_path / "short.csv")
    rest = open_stream(trained, tmp_path / "parts", how)
    assert first + follow(rest, tmp_path / "long.csv") == whole
    assert [entry["row"] for entry in whole] == list(range(80 - history))
    records = [(tmp_path / name / "stream" / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    one, other = ([json.loads(line) | {"time": 0} for line in text.splitlines()] for text in records)
    assert one == other


def test_a_table_that_is_another_is_refused_when_a_stream_goes_on(trained, tmp_path, table):
    write_table(tmp_path / "first.csv", table[:30])
    write_table(tmp_path / "other.csv", table[100:160])
    follow(open_stream(trained, tmp_path / "run"), tmp_path / "first.csv")
    with pytest.raises(InputError, match=r"row 29 of .*other\.csv is not the one that the stream in .* has read"):
        follow(open_stream(trained, tmp_path / "run"), tmp_path / "other.csv")


def test_a_stream_goes_on_with_its_own_settings_alone(trained, tmp_path, table):
    """What decides no number may change; and a kill that cut the last event short is no obstacle."""
    write_table(tmp_path / "table.csv", table[:30])
    follow(open_stream(trained, tmp_path / "run"), tmp_path / "table.csv")
    for changed, words in (
        ("stream.lags=4", r"was begun with stream\.lags=3, not 4: go on with the same, or move"),
        ("stream.fork=9", r"was begun with stream\.fork=0, not 9"),
        ("stream.gradient=pieces", r"was begun with stream\.gradient=exact, not pieces"),
    ):
        with pytest.raises(InputError, match=words):
            open_stream(trained, tmp_path / "run", changed)
    later = dataclasses.replace(open_run(tmp_path / "run", override=FAST, examples=False), step=99)
    with pytest.raises(InputError, match=r"step of the run=3, not 99"):
        OpenStream(later)
    events = tmp_path / "run" / "stream" / "events.jsonl"
    events.write_text('{"row": 7, "event": "rise", "error": 1.0}\n{"row": 29, "ev')
    stream = open_stream(trained, tmp_path / "run", "stream.save_every=7", "stream.changes=[9]")
    assert follow(stream, tmp_path / "table.csv") == []
    assert [event["row"] for event in stream.read_events()] == [7] and events.read_text().endswith("}\n")


def test_a_compressed_run_is_refused(trained):
    run = open_run(trained, examples=False)
    with pytest.raises(InputError, match="is compressed: give the run that it was made of"):
        OpenStream(dataclasses.replace(run, model=PackedModel(run.model, ())))


@pytest.mark.always
def test_a_live_process_answers_row_by_row_and_goes_on_after_a_kill(trained, tmp_path, table):
    """A row in, a forecast out, at once; killed without a word, it goes on from what was saved."""
    write_table(tmp_path / "table.csv", table[:30])
    expected = follow(open_stream(trained, tmp_path / "whole"), tmp_path / "table.csv")
    command = [sys.executable, "eval.py", f"--workdir={tmp_path / 'live'}", "--stream=-"]
    command += [f"--override={one}" for one in (*FAST, "stream.save_every=5")]
    open_stream(trained, tmp_path / "live")  # which copies the run

    def talk(rows, end):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=runs.REPOSITORY, **pipes)
        answers = []
        for row in rows:
            process.stdin.write(",".join(f"{value:.5f}" for value in row) + "\n")
            process.stdin.flush()
            answers.append(json.loads(process.stdout.readline()))
        end(process)
        process.communicate()
        return answers, process.returncode

    first, _ = talk(table[:12], lambda process: process.kill())
    rest, code = talk(table[10:30], lambda process: process.send_signal(signal.SIGTERM))  # 10 rows were saved
    assert first == expected[:12] and rest == expected[10:]
    assert code == 75
    assert (tmp_path / "live" / "stream" / "report" / "index.html").exists()


def test_lines_that_are_no_rows_are_left_out_and_said(tmp_path, capsys):
    (tmp_path / "bad.csv").write_text("\ndown,up,more\n1,2,x\n\nfour,5,6\n7,8\n9,nan,1\n3;4;5\n7,8,9,1\n10,11,12")
    with loop.Stop() as stop:
        rows = list(read_rows(str(tmp_path / "bad.csv"), COLUMNS, stop))
    np.testing.assert_array_equal(rows, [[2, 1], [11, 10]])  # in the run's order
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" of ")[0] for line in said] == [f"line {number}" for number in (1, 4, 5, 6, 7, 8, 9)]
    whys = [line.split("is left out: ")[1] for line in said]
    assert whys[:2] == ["it is empty"] * 2 and "down is 'four', expected a number" in whys[2] and "'nan'" in whys[4]
    cells = [why for why in whys if "cells" in why]
    assert cells == [f"it has {count} cells, expected 3: as the first line names" for count in (2, 1, 4)]


def test_a_line_too_short_or_too_long_without_names_is_left_out_and_said(tmp_path, capsys):
    (tmp_path / "bad.csv").write_text("1,2\n3\n4,5,6\n7,8\n")
    with loop.Stop() as stop:
        np.testing.assert_array_equal(list(read_rows(str(tmp_path / "bad.csv"), COLUMNS, stop)), [[1, 2], [7, 8]])
    said = capsys.readouterr().err
    assert "line 2 of" in said and "it has 1 cells, expected 2: up, down" in said and "line 3 of" in said


@pytest.mark.parametrize(
    ("text", "row"),
    [("1.5,2\n", [1.5, 2]), ("up;down\n1,5;2\n", [1.5, 2]), ("1,5;2", [1.5, 2]), ('"up"\t"down"\r\n1\t2\r\n', [1, 2])],
)
def test_rows_are_read_as_people_write_them(text, row, tmp_path):
    (tmp_path / "table.csv").write_text(text)
    with loop.Stop() as stop:
        np.testing.assert_array_equal(list(read_rows(str(tmp_path / "table.csv"), COLUMNS, stop)), [row])


def test_a_table_without_a_column_and_none_at_all_are_refused(trained, tmp_path):
    (tmp_path / "table.csv").write_text("up,left\n1,2\n")
    stream = open_stream(trained, tmp_path / "run")
    with pytest.raises(InputError, match=r"has the columns up, left, but not down, which the run reads"):
        follow(stream, tmp_path / "table.csv")
    with pytest.raises(InputError, match=r"nothing\.csv cannot be read"):
        follow(stream, tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__source": "delayed_recall", "data__file": "", "data__lag": 4}, "is of forecasts, the run has the task"),
        ({"model__frame": 4, "model__stride": 4}, "train with model.frame=1 and model.stride=1"),
        ({"data__period": 8}, r"train without covariates, a calendar, data\.missing='mask' and data\.period"),
    ],
)
def test_a_run_that_reads_no_rows_one_by_one_is_refused(changes, words, tmp_path, table):
    write_table(tmp_path / "table.csv", table)
    data = {"data__source": "csv", "data__file": str(tmp_path / "table.csv"), "data__horizon": 2}
    short = {"training__steps": 1, "training__eval_every": 1, "training__checkpoint_every": 1}
    config = runs.experiment(
        **(data | short | runs.SMALL | {"data__length": 16, "optimizer__warmup_steps": 0} | changes)
    )
    loop.fit(config, str(tmp_path / "run"))
    with pytest.raises(InputError, match=words):
        OpenStream(open_run(tmp_path / "run", examples=False))


def test_values_out_of_range_are_refused_by_their_key():
    for changes, words in (
        ({"changes": (-1,)}, r"stream\.changes=\(-1,\) are rows of the stream"),
        ({"history": 5000}, r"stream\.history=5000 is more than the stream\.remembered=4096"),
        ({"detector": "kswin"}, r"stream\.detector"),
        ({"rate": -1.0}, r"stream\.rate"),
    ):
        with pytest.raises(InputError, match=words):
            Streaming(**changes)


def test_the_report_says_errors_changes_and_bits_before_and_after(trained, tmp_path, table, monkeypatch):
    for name, value in {"FEWEST": 128, "STRETCH": 8, "LONGEST": 16}.items():
        monkeypatch.setattr(f"selssm_jax.analysis.stream_analysis.{name}", value)
    write_table(tmp_path / "table.csv", table)
    stream = open_stream(trained, tmp_path / "run", "stream.changes=[160]", "stream.remembered=320")
    follow(stream, tmp_path / "table.csv")
    results = analyse_stream(stream)
    (gates,) = results["gates"].values()
    measured = [value is not None for value in gates]  # once there are 256 rows
    assert measured == [step >= 255 for step in results["steps"]] and all(0 < value < 1 for value in gates[52:])
    assert results["rate"] == [0.01] * len(gates)
    memory = results["memory"]
    assert memory["change"] == 160
    (block,) = memory["blocks"].values()
    assert set(block["worlds"]) == {"before", "after"}
    assert all(len(world["bits"]) == len(memory["lags"]) and world["bits"][0] > 0 for world in block["worlds"].values())
    assert results["scores"][LEARNER] > 0 and results["changes"] == [160]
    render_stream(results, stream.folder.report)
    page = (stream.folder.report / "index.html").read_text()
    assert "What the memory holds" in page and "least squares" in page
    assert "times that of the model as it was trained" in summarise_stream(results, stream.folder.report)


def test_a_stream_too_short_for_a_forecast_says_so(trained, tmp_path, table):
    write_table(tmp_path / "table.csv", table[:1])
    stream = open_stream(trained, tmp_path / "run")
    follow(stream, tmp_path / "table.csv")
    results = analyse_stream(stream)
    render_stream(results, stream.folder.report)
    assert "no forecast has met its truth yet" in (stream.folder.report / "report.md").read_text()


def test_a_table_of_a_stream_is_written_once(tmp_path):
    synthetic.main([str(tmp_path / "drift"), "--rows=20", "--worlds=2"])
    assert len((tmp_path / "drift" / "stream.csv").read_text().splitlines()) == 41
    with pytest.raises(SystemExit):
        synthetic.main([str(tmp_path / "drift")])


def test_a_stream_answers_soon_enough_to_be_live(trained, table):
    """A call is milliseconds, of which nothing is compiled anew."""
    run = open_run(trained, examples=False)
    session = Session(run.model, run.params, Streaming(detector="adwin"))
    for row in table[:10]:
        session.advance(row)
    start = time.perf_counter()
    for row in table[10:30]:
        session.advance(row)
    assert time.perf_counter() - start < 2.0


def test_the_last_rows_are_remembered_however_many_have_come(trained, table):
    """The room for them is used again and again."""
    run = open_run(trained, examples=False)
    session = Session(run.model, run.params, Streaming(remembered=256, detector="none", rate=0.0))
    rows = table[:300].astype(np.float32)
    for row in rows:
        session.advance(row)
    np.testing.assert_array_equal(session.recent, rows[-256:])
