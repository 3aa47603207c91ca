"""How sure an estimate from samples is: p-values against independence, and confidence intervals, for any estimator.

An estimator here is a function of arrays with paired rows that returns an `Estimate`: those of `estimators`, of
`conditional`, of your own, with settings bound by `functools.partial`. A p-value is (1 + count) / (1 + n), count the
rearranged samples among n whose value is at least that of the samples. It is about the law, whatever the direction of
the estimate: where rearranging leaves the law as it is under independence, P(p <= a) <= a for every a, for bounds and
biased estimators alike. Each test says when that is so.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit
from scipy.stats import rankdata

from selssm_jax.information._estimate import Estimate
from selssm_jax.information.checks import check_whole, columns

Estimator = Callable[..., Estimate]
"""(x, y) or (x, y, z), rows paired, -> `Estimate`."""
TIE = 1e-12  # relative, of values that differ by the order of their sums alone


@dataclasses.dataclass(frozen=True, eq=False)
class Significance:
    """A test of independence by rearranged samples.

    Attributes:
      p_value: (1 + those of `null` that are at least the estimate) / (1 + their number).
      estimate: of the samples as they are, with its direction.
      null: values of the rearranged samples in nats, (n,).
      condition: under which P(p_value <= a) <= a holds where there is no dependence.
    """

    p_value: float
    estimate: Estimate
    null: np.ndarray
    condition: str

    def __str__(self) -> str:
        return f"p = {self.p_value:.3g} of {self.estimate}\n  valid for {self.condition}"


@dataclasses.dataclass(frozen=True)
class Interval:
    """Confidence limits of information in nats, one-sided where the estimate is a bound.

    Attributes:
      lower, upper: limits; -inf or inf on the side of which a bound says nothing. An interval is not cut at 0: one that
        ends below it says that the errors are too small.
      level: share of samples of which the interval holds the truth, as far as the standard error is right.
      estimate: which the limits are about, with its direction.
      stderr: standard error that the limits are made of. method: how.
    """

    lower: float
    upper: float
    level: float
    estimate: Estimate
    stderr: float
    method: str

    def __str__(self) -> str:
        low, high = (limit / math.log(2) for limit in (self.lower, self.upper))
        return f"{low:.3f} to {high:.3f} bits at {self.level:.0%} ({self.method}) of {self.estimate}"


def permutation_test(estimator: Estimator, x: Any, y: Any, *, permutations: int = 199, seed: int = 0) -> Significance:
    """Tests that x and y are independent: x, in random orders, against y.

    Exact for rows that are independent of one another, in any number, for any law and any estimator: 199 permutations
    tell p from .005. Rows of a series are not independent: see `shift_test`. Cost: `permutations` + 1 estimates.

    Raises:
      ValueError: for x and y of different numbers of rows, no permutations, and what the estimator raises.
    """
    check_whole(1, permutations=permutations)
    x, y = _check_rows(x=x, y=y)
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(len(x)) for _ in range(permutations))
    return _compare(estimator, (x, y), orders, "rows that are independent of one another: exact")


def shift_test(estimator: Estimator, x: Any, y: Any, *, shifts: int = 199, seed: int = 0) -> Significance:
    """Tests that two series x and y are independent: x, moved in time by steps drawn without repetition, its end put
    before its beginning, against y.

    Each series keeps its own dependence over time, which permutations of rows destroy: these find significance in any
    two slow series. Valid where one of the series, x, is stationary, but for the seam: exact for a law that is the same
    after every such move, nearly so where x forgets within a small share of its length. Trends and random walks are
    not stationary: take differences. The hypothesis is that the whole series are independent. For transfer entropy it
    is `shift_test(functools.partial(transfer.entropy, given=z), source, target)`; where the target drives the source,
    so that the series depend but transfer may be 0, ask `local_permutation_test` of the rows of `transfer.embed_past`.
    Cost: `shifts` + 1 estimates.

    Raises:
      ValueError: for series of different lengths, as many shifts as steps or more, and what the estimator raises.
    """
    check_whole(1, shifts=shifts)
    x, y = _check_rows(x=x, y=y)
    if shifts >= len(x):
        raise ValueError(f"shifts={shifts} of series of {len(x)} steps, expected at most {len(x) - 1}")
    steps = np.random.default_rng(seed).choice(len(x) - 1, shifts, replace=False) + 1
    orders = (np.roll(np.arange(len(x)), step) for step in steps)
    condition = "a stationary x that forgets within a small share of its length: exact but for the seam of a shift"
    return _compare(estimator, (x, y), orders, condition)


def local_permutation_test(
    estimator: Estimator, x: Any, y: Any, z: Any, *, permutations: int = 199, neighbours: int = 5, seed: int = 0
) -> Significance:
    """Tests that x and y are independent given z: x, in random orders within cells of neighbouring z, against (y, z).

    After Runge (2018), who draws each x from the `neighbours` nearest in z. Draws repeat some x, and repeated rows are
    ties, which nearest-neighbour estimators take for dependence; so here cells of `neighbours` rows or a few more, cut
    from z alone, are permuted (Kim, Neykov, Balakrishnan and Wasserman 2022). Rows with the same z are never parted: of
    labels with at least `neighbours` rows each, all rows of a label are permuted.

    Exact where x and z are independent within each cell, as they are where z does not vary in it. Else it is an
    approximation: right where the law of x given z hardly changes over a cell, wrong where z nearly determines x or
    has many columns, so that no rows are near. No test is valid for all laws (Shah and Peters 2020). Rows of a series
    serve where y given z depends on no other past, as the next value of a Markov target does.
    Cost: `permutations` + 1 estimates.

    Raises:
      ValueError: for samples of different numbers of rows, no permutations, fewer than 2 neighbours or fewer rows than
        those, a z that is not finite, and what the estimator raises.
    """
    check_whole(1, permutations=permutations)
    check_whole(2, neighbours=neighbours)
    x, y, z = _check_rows(x=x, y=y, z=z)
    if len(x) < neighbours:
        raise ValueError(f"{len(x)} rows, expected at least neighbours={neighbours}")
    numbers = columns("z", z)
    cells = _cut_cells(rankdata(numbers, axis=0), neighbours)  # ranks know no unit and no outlier
    exact = all((numbers[cell] == numbers[cell[:1]]).all() for cell in cells)
    label, rng = np.empty(len(x), int), np.random.default_rng(seed)
    for number, cell in enumerate(cells):
        label[cell] = number
    within = np.argsort(label, kind="stable")
    orders = (_permute_within(within, label, rng) for _ in range(permutations))
    condition = "rows that are independent of one another: exact, for z does not vary where rows are permuted"
    if not exact:
        condition = f"a law of x given z that hardly changes among {neighbours} neighbours in z: an approximation"
    return _compare(estimator, (x, y, z), orders, condition)


def confidence_interval(estimate: Estimate, *, level: float = 0.95) -> Interval:
    """Limits from the standard error that an estimate states, by the normal law; one-sided for a bound.

    It covers as often as that error is right, which for rows of a series it is not: see `jackknife_interval`. "lower":
    from a limit to inf. "upper": up to a limit. An exact value has no width.

    Raises:
      ValueError: for a level outside of (0, 1), and an estimate without a standard error.
    """
    _check_level(level)
    if math.isnan(estimate.stderr):
        raise ValueError(
            f"{estimate.method} states no standard error: use jackknife_interval, which makes one of the samples"
        )
    reach = float(ndtri(_tail(estimate, level)))
    return _limit(estimate, level, estimate.stderr, reach, "stated standard error")


def jackknife_interval(
    estimator: Estimator, *samples: Any, level: float = 0.95, blocks: int = 20, serial: bool = False
) -> Interval:
    """Limits from the values of samples that lack one of `blocks` blocks of rows each; one-sided for a bound.

    With v_b the value without block b, the error is ((B - 1) / B sum_b (v_b - mean)^2)^(1/2), and limits are those of
    Student's law of B - 1 degrees. Rows are left out and never repeated, as the bootstrap would: repeated rows are
    ties, at distance 0, and nearest neighbours take them for information.

    Blocks are of random rows, or, with `serial`, of consecutive ones, which keep the dependence over times much shorter
    than a block: for rows in the order of time, such as those of `transfer.embed_past`. The error that the estimate
    states holds biases, which no jackknife sees. Rows that are independent: the larger of the two counts. Rows in the
    order of time: both, for the stated one misses the dependence; where there is none, limits are then up to 1.4 times
    too wide.
    An estimator whose stated error lacks its bias (`gaussian` of other laws, plain frequencies) is covered as far as
    it has none. Cost: `blocks` + 1 estimates.

    Raises:
      ValueError: for samples of different numbers of rows, fewer than 2 blocks or rows, a level outside of (0, 1), and
        what the estimator raises.
    """
    _check_level(level)
    check_whole(2, blocks=blocks)
    rows = _check_rows(**{f"samples[{place}]": sample for place, sample in enumerate(samples)})
    N = len(rows[0])
    if 2 * blocks > N:
        raise ValueError(f"{N} rows for blocks={blocks}, expected at least {2 * blocks}: use fewer blocks")
    estimate = estimator(*rows)
    order = np.arange(N) if serial else np.random.default_rng(0).permutation(N)
    member = np.empty(N, int)
    member[order] = np.arange(N) * blocks // N
    values = [_value(estimator, tuple(side[member != block] for side in rows)) for block in range(blocks)]
    error = math.sqrt((blocks - 1) * float(np.var(values))) if np.isfinite(values).all() else math.inf
    stated = 0.0 if math.isnan(estimate.stderr) else estimate.stderr
    stderr = math.hypot(error, stated) if serial else max(error, stated)
    reach = float(stdtrit(blocks - 1, _tail(estimate, level)))
    method = f"jackknife, {blocks} blocks of {'consecutive' if serial else 'random'} rows"
    return _limit(estimate, level, stderr, reach, method)


def _check_rows(**samples: Any) -> tuple[np.ndarray, ...]:
    """Arrays of as many rows, of the types that they have: an estimator of labels asks for whole numbers."""
    arrays = {name: np.asanyarray(value) for name, value in samples.items()}  # a masked one stays one
    if not arrays or any(not array.ndim for array in arrays.values()):
        raise ValueError(
            f"samples have shapes {[array.shape for array in arrays.values()]}, expected rows (N,) or (N, d)"
        )
    if len({len(array) for array in arrays.values()}) > 1:
        listed = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise ValueError(f"samples have different numbers of rows, {listed}: expected as many in each, row by row")
    return tuple(arrays.values())


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level}, expected a share between 0 and 1, for example 0.95")


def _compare(
    estimator: Estimator, samples: tuple[np.ndarray, ...], orders: Iterator[np.ndarray], condition: str
) -> Significance:
    """The p-value of the samples among those with the first of them in other orders."""
    estimate = estimator(*samples)
    null = np.array([_value(estimator, (samples[0][order], *samples[1:])) for order in orders])
    least = estimate.nats - TIE * max(abs(estimate.nats), 1.0) if math.isfinite(estimate.nats) else estimate.nats
    return Significance(float(1 + np.sum(null >= least)) / (1 + len(null)), estimate, null, condition)


def _value(estimator: Estimator, samples: tuple[np.ndarray, ...]) -> float:
    """What the estimator warns of, it said of the samples as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator(*samples).nats


def _permute_within(within: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order within each label; `within` are the rows in the order of their labels."""
    order = np.empty_like(within)
    order[within] = np.lexsort((rng.random(len(label)), label))
    return order


def _cut_cells(z: np.ndarray, least: int) -> list[np.ndarray]:
    """Rows of z (N, d) in cells of at least so many: cut in two, at a step of the column that reaches farthest, as near
    to the middle as one is, for as long as both halves are large enough. The same rows are never cut apart.
    """
    whole, cells = [np.arange(len(z))], []
    while whole:
        cell = whole.pop()
        halves = _halve(z, cell, least) if len(cell) >= 2 * least else None
        if halves is None:
            cells.append(cell)
        else:
            whole.extend(halves)
    return cells


def _halve(z: np.ndarray, cell: np.ndarray, least: int) -> tuple[np.ndarray, np.ndarray] | None:
    for column in np.argsort(-np.ptp(z[cell], axis=0), kind="stable"):
        rows = cell[np.argsort(z[cell, column], kind="stable")]
        steps = np.flatnonzero(np.diff(z[rows, column]) > 0) + 1
        steps = steps[(steps >= least) & (steps <= len(cell) - least)]
        if len(steps):
            middle = steps[np.argmin(np.abs(steps - len(cell) / 2))]
            return rows[:middle], rows[middle:]
    return None


def _tail(estimate: Estimate, level: float) -> float:
    """The probability below the limit above an estimate: all that the level leaves is on one side for a bound."""
    return level if estimate.direction in ("lower", "upper") else (1 + level) / 2


def _limit(estimate: Estimate, level: float, stderr: float, reach: float, method: str) -> Interval:
    width = 0.0 if math.isinf(estimate.nats) or estimate.direction == "exact" else reach * stderr
    lower = -math.inf if estimate.direction == "upper" else estimate.nats - width
    upper = math.inf if estimate.direction == "lower" else estimate.nats + width
    return Interval(lower, upper, level, estimate, stderr, method)
