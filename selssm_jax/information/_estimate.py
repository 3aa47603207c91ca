"""What an estimator returns: a number, how sure it is, and in which direction it may be believed."""

import dataclasses
import math
from typing import Literal

Direction = Literal["exact", "lower", "upper", "estimate"]
"""What a number is to the truth: equal to it; in expectation at most, or at least, it; or none of these."""
SIGNS: dict[str, str] = {"exact": "=", "lower": ">=", "upper": "<=", "estimate": "~"}  # of the truth, beside the number


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mutual information in nats, with its standard error and its direction.

    Attributes:
      nats: the value; inf for infinite information.
      stderr: standard error of the value over samples of this size; nan where the method has none to give.
      direction: see `Direction`. "lower" and "upper" hold in expectation: allow for the standard error.
      method: the estimator and what it was run with, as one would cite it.
      notes: what a reader must know before believing the value: a saturated bound, ties, a contradiction. Empty if
        nothing.
    """

    nats: float
    stderr: float
    direction: Direction
    method: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.direction not in SIGNS:
            raise ValueError(f"direction={self.direction!r} is unknown: use exact, lower, upper or estimate")
        if math.isnan(self.nats):
            raise ValueError(f"nats={self.nats} is no information: expected a number or inf")
        if self.stderr < 0:
            raise ValueError(f"stderr={self.stderr} is below 0: expected the size of an error, or nan for none")

    @property
    def bits(self) -> float:
        """The value in bits, as reports print it."""
        return self.nats / math.log(2)

    def __str__(self) -> str:
        sign = SIGNS[self.direction]
        spread = "" if math.isnan(self.stderr) else f" +- {self.stderr / math.log(2):.3f}"
        return "\n  note: ".join([f"{sign} {self.bits:.3f}{spread} bits ({self.method})", *self.notes])
