"""Memory and time against the length of the input: the record of every model from 1k to 64k steps, its exponents and
ratios.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.paper.records import contents, raise_damaged

QUANTITIES = {
    "training_peak_bytes": "peak of a training step (bytes)",
    "training_seconds": "training step (s)",
    "forward_peak_bytes": "peak of a forward pass (bytes)",
    "forward_seconds": "forward pass (s)",
    "state_bytes": "state of one sequence (bytes)",
}


@dataclasses.dataclass(frozen=True)
class Scaling:
    """`benchmarks/records/scaling.json`: each quantity of each model at each length, None where it was not measured.

    `pieces` has the bytes of a training step that reads a sequence whole, and in pieces.
    """

    machine: Any
    command: str
    lengths: tuple[int, ...]
    models: Mapping[str, Mapping[str, Any]]
    crossovers: Mapping[str, Mapping[str, Any]]
    pieces: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def series(self, model: str, quantity: str) -> dict[int, float]:
        """Returns {length: value} of what was measured, {} for a model that was not."""
        values = self.models.get(model, {}).get(quantity) or []
        return {length: float(value) for length, value in zip(self.lengths, values, strict=False) if value}

    def exponent(self, model: str, quantity: str) -> float | None:
        """Returns e of T^e between the longest length and the one at a quarter of it or next below; None where two are
        not measured.
        """
        series = self.series(model, quantity)
        if len(series) < 2:
            return None
        last = max(series)
        first = max((length for length in series if length <= last / 4), default=min(series))
        return math.log(series[last] / series[first]) / math.log(last / first)

    def ratios(self, model: str, other: str, quantity: str, *, least: int = 0) -> dict[int, float]:
        """Returns {length: the model's value over the other's} at all lengths from `least` on that both have."""
        ours, theirs = self.series(model, quantity), self.series(other, quantity)
        return {length: ours[length] / theirs[length] for length in ours if length in theirs and length >= least}


def read(path: pathlib.Path) -> Scaling | None:
    """Returns the record, None where there is no such file. Raises InputError that names a damaged one."""
    if not path.exists():
        return None
    found = contents(path)
    for key in ("lengths", "models"):
        if key not in found:
            raise_damaged(path, f"{key!r} is missing")
    for model, values in found["models"].items():
        for quantity in QUANTITIES:
            if values.get(quantity) and len(values[quantity]) != len(found["lengths"]):
                raise_damaged(
                    path,
                    f"models.{model}.{quantity} has {len(values[quantity])} values for {len(found['lengths'])} lengths",
                )
    return Scaling(
        found.get("machine", ""),
        found.get("command", ""),
        tuple(found["lengths"]),
        found["models"],
        found.get("crossovers") or {},
        found.get("pieces") or {},
    )
