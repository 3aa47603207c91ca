"""Records in a file, as TensorBoard events and on the terminal; a resumed run's file has no record twice."""

import io
import json
import pathlib
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from selssm_jax.training.logging import Display, Logger, Meter


def events(folder: pathlib.Path) -> list[Event]:
    """All events of a folder, in order; a record is a length, a checksum, the event and a checksum."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def lines(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_record_is_a_line_an_event_and_a_plain_line_where_it_is_piped(tmp_path, capsys):
    log = Logger(tmp_path, [], 0, 40)
    log.record(10, "train", {"nats": 1.5, "steps_per_second": 2.0})
    log.record(10, "validation", {"nats": 1.25})
    log.close()
    assert [(line["step"], line["split"], line["nats"]) for line in lines(tmp_path)] == [
        (10, "train", 1.5),
        (10, "validation", 1.25),
    ]
    values = [
        (event.step, value.tag, value.simple_value) for event in events(tmp_path) for value in event.summary.value
    ]
    assert values == [(10, "train/nats", 1.5), (10, "train/steps_per_second", 2.0), (10, "validation/nats", 1.25)]
    said = capsys.readouterr().err.splitlines()
    assert said == ["step 10/40  train       nats 1.5  2 steps/s  00:15 left", "step 10/40  validation  nats 1.25"]


def test_a_resumed_run_appends_and_forgets_what_came_after_its_checkpoint(tmp_path):
    log = Logger(tmp_path, [], 0, 40)
    for step in (10, 20):
        log.record(step, "train", {"nats": 1.0})
    log.close()
    kept = log.history[:1]
    kept[0]["time"] = 100.0
    log = Logger(tmp_path, kept, 10, 40)
    log.record(20, "train", {"nats": 2.0})
    log.close()
    assert [(line["step"], line["nats"]) for line in lines(tmp_path)] == [(10, 1.0), (20, 2.0)]
    assert lines(tmp_path)[1]["time"] >= 100.0, "the clock goes on"
    assert [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START] == [11], (
        "TensorBoard drops what comes after"
    )


def test_a_terminal_has_a_bar_with_the_loss_and_the_time_left(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    log = Logger(tmp_path, [], 5, 40)
    log.record(10, "train", {"nats": 1.5, "steps_per_second": 2.0})
    log.display.advance(0)
    log.record(10, "validation", {"nats": 1.25})
    log.close()
    shown = sys.stderr.getvalue()
    assert "5/40" in shown and "step/s" in shown and "nats 1.5" in shown and "<" in shown
    assert "step 10/40  validation  nats 1.25" in shown
    assert "step 10/40  train" not in shown


def test_several_runs_have_one_bar(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    display, logs = Display(), []
    for name, first in (("a", 5), ("b", 3)):
        (tmp_path / name).mkdir()
        logs.append(Logger(tmp_path / name, [], first, 40, name=f"{name}: ", display=display))
    display.advance(2)
    logs[1].record(10, "train", {"nats": 1.5, "steps_per_second": 2.0})
    display.advance(0)
    logs[0].record(10, "validation", {"nats": 1.25})
    for log in logs:
        log.close()
    shown = sys.stderr.getvalue()
    assert (
        "8/80" in shown
        and "10/80" in shown
        and "b: nats 1.5" in shown
        and "a: step 10/40  validation  nats 1.25" in shown
    )
    assert [len(lines(tmp_path / name)) for name in ("a", "b")] == [1, 1]


def test_a_meter_goes_on_where_it_was_saved():
    sums = [{"nats": np.array([float(value), 2.0])} for value in (2, 4, 9)]
    through, before = Meter(), Meter()
    for pair in sums:
        through.add(pair)
    before.add(sums[0])
    after = Meter(json.loads(json.dumps(before.save())))
    after.add(sums[1])
    after.add(sums[2])
    found = after.read()
    assert found["nats"] == through.read()["nats"] == pytest.approx(15 / 6)
    assert found["steps_per_second"] > 0
    assert after.save()["steps"] == 0


def test_a_meter_counts_the_time_of_training_only(monkeypatch):
    now = iter([0.0, 100.0, 102.0, 102.0, 104.0, 104.0])
    monkeypatch.setattr("selssm_jax.training.logging.time.monotonic", lambda: next(now))
    meter = Meter()  # at 0
    meter.mark()  # at 100, after a compilation
    for _ in range(2):
        meter.add({"nats": np.ones(2)})  # at 102, at 104
    assert meter.read()["steps_per_second"] == pytest.approx(2 / 4)
