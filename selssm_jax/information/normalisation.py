"""Information as a number from 0 to 1. There is no one normalisation: each function says which it is.

`share` and `of_counts` divide by an entropy, which labels have; numbers have none (a differential entropy has any sign,
and changes with the unit). `correlation` is for these: Linfoot's coefficient.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from selssm_jax.information._estimate import SIGNS, Direction, Estimate
from selssm_jax.information.discrete import Correction, Table, entropy, mutual_information

Divisor = Literal["x", "y", "smaller", "larger", "mean", "geometric", "joint"]
DIVISORS = ("x", "y", "smaller", "larger", "mean", "geometric", "joint")


@dataclasses.dataclass(frozen=True)
class Normalised:
    """Information over what it is divided by, with its standard error and the direction of the information.

    Attributes:
      value: without a unit. Below 0 where an estimate of the information is, which only its error explains.
      stderr: standard error of the value, to first order; nan where that of the information is.
      direction: see `Estimate`.
      normalisation: the formula, as one would cite it.
      method, notes: of the information.
    """

    value: float
    stderr: float
    direction: Direction
    normalisation: str
    method: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        sign = SIGNS[self.direction]
        spread = "" if math.isnan(self.stderr) else f" +- {self.stderr:.3f}"
        return "\n  note: ".join(
            [f"{sign} {self.value:.3f}{spread} ({self.normalisation}; {self.method})", *self.notes]
        )


def correlation(information: Estimate) -> Normalised:
    """Linfoot's (1957) coefficient sqrt(1 - e^(-2 I)): the |correlation| of the two jointly normal numbers that have as
    much information.

    Of a conditional information: a partial correlation. Its square is the share of the variance that the best predictor
    of a normal variable explains; of the transfer entropy of a linear-Gaussian system, the share of the prediction
    error that the source takes away, 1 - V / V'. It grows with I, so a bound stays a bound of the same direction. An
    estimate below 0 goes to -sqrt(1 - e^(2 I)). The standard error is the largest slope within one standard error times
    it: at I = 0 the root has an infinite one. Works for any number of columns, where it is 1 only for I = inf.
    """
    nats, stderr = information.nats, information.stderr
    spread = max(_linfoot(nats + stderr) - _linfoot(nats), _linfoot(nats) - _linfoot(nats - stderr))
    return Normalised(
        _linfoot(nats),
        0.0 if math.isinf(nats) else spread,
        information.direction,
        "Linfoot's coefficient, sqrt(1 - exp(-2 I))",
        information.method,
        information.notes,
    )


def share(information: Estimate, entropy: float) -> Normalised:
    """I / H for a known entropy H in nats, for example log M of M equally likely labels: the share of what there is to
    know. The direction stays.

    Of the transfer entropy between labels, H(target_t | its past) makes it the share of what the past left open.

    Raises:
      ValueError: for an entropy that is not positive and finite: where nothing is open, nothing can be told.
    """
    if not 0 < entropy < math.inf:
        raise ValueError(f"entropy={entropy}, expected a positive number of nats: of what is the information a share?")
    return Normalised(
        information.nats / entropy,
        information.stderr / entropy,
        information.direction,
        f"I / H, H = {entropy:.4g} nats",
        information.method,
        information.notes,
    )


def of_counts(counts: Table, *, by: Divisor = "smaller", correction: Correction = "none") -> Normalised:
    """I(X; Y) / H from a table of counts, by one of seven entropies H.

    "y": the share of Y that X tells (Theil's uncertainty coefficient), "x" the other way round. "smaller": 1 where one
    label tells the other. "larger", "mean" (arithmetic), "geometric" and "joint": 1 only where each tells the other;
    1 - I / H by "larger" or "joint" is a metric (Vinh, Epps and Bailey 2010). All are 0 for independent labels, but
    those of frequencies are above it, by about (X - 1)(Y - 1) / 2 N H: take a correction where cells are many.

    An estimate. Its standard error is the spread over samples of the quotient, to first order, and what
    `discrete.mutual_information` says of the bias that its correction leaves.

    Raises:
      ValueError: for an unknown `by`, a divisor of no entropy (a label that never changes), and what
        `discrete.mutual_information` raises.
    """
    if by not in DIVISORS:
        raise ValueError(f"by={by!r} is unknown: use one of {', '.join(DIVISORS)}")
    information = mutual_information(counts, correction=correction)
    counts = np.asarray(counts)
    x, y, joint = (entropy(part, correction=correction).nats for part in (counts.sum(1), counts.sum(0), counts.ravel()))
    formula, divisor, slopes = _divide_by(by, x, y, joint)
    if not divisor > 0:
        raise ValueError(f"{formula} is {divisor:.3g} nats: a label that never changes has no share to give")
    value = information.nats / divisor
    spread, of_information = _spread(counts, value, slopes)
    bias = max(information.stderr**2 - of_information**2, 0.0)
    name = f"I / {formula}, H = {divisor:.4g} nats"
    stderr = math.sqrt(spread**2 + bias) / divisor
    return Normalised(value, stderr, "estimate", name, information.method, information.notes)


def _divide_by(by: Divisor, x: float, y: float, joint: float) -> tuple[str, float, tuple[float, float, float]]:
    """The divisor's formula, its value, and its slopes by H(X), H(Y) and H(X, Y)."""
    root = math.sqrt(max(x * y, 0.0))
    of_x, of_y = ("H(X)", x, (1.0, 0.0, 0.0)), ("H(Y)", y, (0.0, 1.0, 0.0))
    return {
        "x": of_x,
        "y": of_y,
        "smaller": ("min(H(X), H(Y))", *(of_x if x < y else of_y)[1:]),
        "larger": ("max(H(X), H(Y))", *(of_y if x < y else of_x)[1:]),
        "mean": ("((H(X) + H(Y)) / 2)", (x + y) / 2, (0.5, 0.5, 0.0)),
        "geometric": ("sqrt(H(X) H(Y))", root, (y / (2 * root), x / (2 * root), 0.0) if root else (0.0, 0.0, 0.0)),
        "joint": ("H(X, Y)", joint, (0.0, 0.0, 1.0)),
    }[by]


def _spread(counts: np.ndarray, value: float, slopes: tuple[float, float, float]) -> tuple[float, float]:
    """The deviation over samples of I - value * H, whose slopes are given, and of I alone."""
    p = counts / counts.sum()
    seen = p > 0
    x, y = (
        np.broadcast_to(-np.log(np.where(side > 0, side, 1)), p.shape)[seen]
        for side in (p.sum(1)[:, None], p.sum(0)[None])
    )
    p, joint = p[seen], -np.log(p[seen])
    information = x + y - joint
    quotient = information - value * (slopes[0] * x + slopes[1] * y + slopes[2] * joint)
    spreads = [math.sqrt(max(float(p @ z**2 - (p @ z) ** 2), 0.0) / counts.sum()) for z in (quotient, information)]
    return spreads[0], spreads[1]


def _linfoot(nats: float) -> float:
    return math.copysign(math.sqrt(-math.expm1(-2 * abs(nats))), nats)
