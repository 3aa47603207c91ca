"""What is said of one statement: that it holds, that it is refuted, or that neither was established."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from selssm_jax.stability.contraction import horizon
from selssm_jax.stability.simulate import Witness

Status = Literal["holds", "refuted", "not established"]
MARGINAL = 1e-10  # a growth of 1 may come out so much smaller in float64


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One statement's status, and what it rests on.

    Attributes:
      status: "holds": proved for all recurrences with the constants given; "refuted": false for one of them; else "not
        established".
      rate: factor of a step (`lyapunov`: nats a step); None where there is none.
      reason: why, with the numbers.
      witness: what shows a refutation; `simulate` replays it.
      constant: C, so that distances (`mean_square`: expected squares of them) stay under C rate^t times the first, in
        the maximum norm.
      euclidean_constant: C of the same statement in the Euclidean norm; None where it was not derived. For n components
        either is at most n times the other in `mean_square`: max_i h_i^2 <= sum_i h_i^2 <= n max_i h_i^2.
      weights: v, (n,): in max_i |h_i| / v_i the constant is 1; None where the norm is another.
      interval: of the rate, where it was estimated.
    """

    status: Status
    rate: float | None = None
    reason: str = ""
    witness: Witness | None = None
    constant: float = 1.0
    euclidean_constant: float | None = None
    weights: np.ndarray | None = None
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.status not in ("holds", "refuted", "not established"):
            raise ValueError(f"status={self.status!r} is unknown: use holds, refuted or not established")

    def horizon(self, eps: float) -> float:
        """Returns the steps after which C rate^t <= eps; inf unless the statement holds with a rate below 1."""
        return math.inf if self.status != "holds" or self.rate is None else horizon(self.rate, self.constant, eps)

    def portable(self) -> dict[str, Any]:
        """Returns the verdict as JSON knows values; the witness names its kind."""
        fields = dataclasses.asdict(dataclasses.replace(self, witness=None))
        fields["witness"] = (
            None if self.witness is None else {"kind": type(self.witness).__name__} | dataclasses.asdict(self.witness)
        )
        return plain(fields)

    def __str__(self) -> str:
        return self.describe()

    def describe(self, unit: str = "") -> str:
        """Returns the verdict in words; `unit` is that of its rate, none for a factor of a step."""
        rate = "" if self.rate is None else f" (rate {self.rate:.6g}{unit})"
        return f"{self.status}{rate}. {self.reason}"


def plain(value: Any) -> Any:
    """Returns a value as JSON knows it: lists for arrays, null for what is not finite."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
