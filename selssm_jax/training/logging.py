"""Where a run's numbers go: one JSON line a record, TensorBoard events, and the terminal."""

import contextlib
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from selssm_jax.tasks.scores import Sums, means
from selssm_jax.training.checkpoint import write_whole


class Meter:
    """Means of the metrics, and steps a second of training alone, since the last reading.

    saved: what `save` returned. Raises KeyError, TypeError, AttributeError or ValueError for another form.
    """

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        self._steps, self._sums, self._seconds = 0, {}, 0.0
        if saved is not None:
            self._steps, self._seconds = saved["steps"], saved["seconds"]
            self._sums = {name: np.array(pair, np.float64) for name, pair in saved["sums"].items()}
            if (
                type(self._steps) is not int
                or type(self._seconds) not in (int, float)
                or any(pair.shape != (2,) for pair in self._sums.values())
            ):
                raise ValueError(f"a meter of another form: {saved!r}")
        self.mark()

    def mark(self) -> None:
        """Leaves the time until now out: it went into compiling, evaluating or saving."""
        self._since = time.monotonic()

    def add(self, sums: Sums) -> None:
        """Adds one step's metrics, and the time since the step before."""
        for name, pair in sums.items():
            self._sums[name] = self._sums.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
        self._steps += 1
        self._seconds += time.monotonic() - self._since
        self.mark()

    def read(self) -> dict[str, float]:
        """Returns the means and starts anew."""
        record = means(self._sums) | {"steps_per_second": self._steps / max(self._seconds, 1e-9)}
        self._steps, self._sums, self._seconds = 0, {}, 0.0
        return record

    def save(self) -> dict[str, Any]:
        """Returns what `Meter(saved)` goes on from, as JSON."""
        return {
            "steps": self._steps,
            "seconds": self._seconds,
            "sums": {name: pair.tolist() for name, pair in self._sums.items()},
        }


class Display:
    """What a person sees of one or several runs: a progress bar over all their steps on a terminal, plain lines where
    it is piped. Processes of a cluster but the first show nothing.
    """

    def __init__(self, *, shown: bool = True) -> None:
        self._first, self._last, self._shown = 0, 0, shown
        self._bar: Any = None

    def expect(self, first: int, last: int) -> None:
        """Counts a run in, which goes from step `first` to step `last`; all are counted in before any moves."""
        self._first, self._last = self._first + first, self._last + last

    def advance(self, steps: int) -> None:
        """Moves the bar by so many steps of all runs together."""
        self._open_bar().update(steps)

    def show(self, name: str, step: int, last: int, split: str, metrics: dict[str, float]) -> None:
        """Shows metrics of a run at a step of `last`: those of training on the bar if there is one, all else as a
        line.
        """
        speed = metrics.get("steps_per_second")
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in metrics.items() if key != "steps_per_second")
        if speed and not self._open_bar().disable:
            self._open_bar().set_postfix_str(name + numbers, refresh=False)
            return
        left = f"  {speed:.3g} steps/s  {tqdm.format_interval((last - step) / speed)} left" if speed else ""
        self.say(f"{name}step {step}/{last}  {split:10s}  {numbers}{left}")

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if self._shown:
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _open_bar(self) -> Any:
        if self._bar is None:
            self._bar = tqdm(
                total=self._last,
                initial=self._first,
                unit="step",
                dynamic_ncols=True,
                disable=not (self._shown and sys.stderr.isatty()),
                smoothing=0.05,
            )
        return self._bar


class Logger:
    """Writes a run's records to metrics.jsonl, TensorBoard and the terminal.

    Args:
      workdir: the run's folder; None: no file is written, as by the processes of a cluster but the first.
      history: the records up to `first`, the step that the run goes on from. A record after it is forgotten: it comes
        again.
      last: the run's last step.
      name: what its lines begin with where several runs have one display, such as "runs/a: ".
      display: where they are shown; none: a display of its own.

    Raises:
      OSError: where a record cannot be written. What was written before it stays.
    """

    def __init__(
        self,
        workdir: pathlib.Path | None,
        history: list[dict[str, Any]],
        first: int,
        last: int,
        *,
        name: str = "",
        display: Display | None = None,
    ) -> None:
        self.history, self._last, self._name = list(history), last, name
        self.display = display or Display(shown=workdir is not None)
        self.display.expect(first, last)
        self._file, self._board = None, None
        if workdir is not None:
            self._file = _reopen(workdir / "metrics.jsonl", self.history)
            (workdir / "tensorboard").mkdir(exist_ok=True)
            self._board = EventsWriter(str(workdir / "tensorboard" / "events"))
        if first and self._board:
            self._board.write_event(
                Event(wall_time=time.time(), step=first + 1, session_log=SessionLog(status=SessionLog.START))
            )
        self._start = time.monotonic() - (self.history[-1].get("time", 0.0) if self.history else 0.0)

    def record(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Logs metrics of a split at a step."""
        record = {"step": step, "split": split, **metrics, "time": round(time.monotonic() - self._start, 3)}
        self.history.append(record)
        self.display.show(self._name, step, self._last, split, metrics)
        if self._file is None or self._board is None:
            return
        self._file.write((json.dumps(record) + "\n").encode())
        values = [Summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in metrics.items()]
        self._board.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._board.flush()

    def close(self) -> None:
        """Closes everything; what was logged stays."""
        self.display.close()
        if self._file is None or self._board is None:
            return
        self._file.close()
        with contextlib.suppress(OSError):  # every record was flushed; a failure was said then
            self._board.close()


def _reopen(path: pathlib.Path, history: list[dict[str, Any]]) -> Any:
    """Rewrites a file of records whole or not at all and opens it, unbuffered, for more."""
    write_whole(path, "".join(json.dumps(record) + "\n" for record in history))
    return path.open("ab", buffering=0)
