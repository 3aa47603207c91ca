"""Where a run's numbers go: one JSON line a record, TensorBoard events, and the terminal."""

import json
import pathlib
import sys
import time
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm


class Logger:
    """Writes records to metrics.jsonl, TensorBoard and the terminal: a progress bar there, plain lines where it is piped."""

    def __init__(self, workdir: pathlib.Path, history: list[dict[str, Any]], first: int, last: int) -> None:
        self.history = list(history)
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        (workdir / "metrics.jsonl").write_text(lines)  # a resumed run forgets what came after its checkpoint
        self._file = (workdir / "metrics.jsonl").open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first + 1)
        self._bar = tqdm(total=last, initial=first, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty(), smoothing=0.05)
        self._start, self._last = time.monotonic(), last

    def advance(self) -> None:
        """Moves the progress bar by one step."""
        self._bar.update()

    def record(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Logs metrics of a split at a step."""
        record = {"step": step, "split": split, **metrics, "time": round(time.monotonic() - self._start, 3)}
        self.history.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{split}/{name}", value, step)
        self._show(step, split, metrics)

    def say(self, line: str) -> None:
        """Prints a line without breaking the progress bar."""
        self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Closes everything; what was logged stays."""
        self._bar.close()
        self._board.close()
        self._file.close()

    def _show(self, step: int, split: str, metrics: dict[str, float]) -> None:
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if split == "train" and not self._bar.disable:
            self._bar.set_postfix_str(numbers, refresh=False)
        else:
            self.say(f"step {step}/{self._last}  {split:10s}  {numbers}")
