"""Detectors of drift: has the mean of a sequence of numbers, such as errors, changed?

Both are pure functions of arrays with a state of fixed size, so that they run inside the compiled step of a stream, are
saved with it, and are replayed by a scan: no step waits for the host. In float32 sums are those of buckets, never a
running one, so that no rounding grows with the length of the stream; with `jax_enable_x64` all is float64.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

ROWS = 32  # sizes of buckets, 1 to 2^31: the window has room for 10^10 numbers
RISE, FALL = 1, -1  # changes; 0 is none


@runtime_checkable
class Detector(Protocol):
    """What a stream asks of a detector: `ADWIN` and `PageHinkley` are ones."""

    def start(self) -> Any:
        """Returns the state before the first number."""
        ...

    def update(self, state: Any, value: Float[Array, ""]) -> tuple[Any, Int[Array, ""]]:
        """Returns (the state after one number more, 1 where the mean is seen to have risen, -1 where to have fallen, 0
        where neither).
        """
        ...


class Window(NamedTuple):
    """The exponential histogram of `ADWIN`: of every bucket its sum and its sum of squared deviations, the oldest of
    each size first, and how many there are of each size, 2^row.
    """

    totals: Float[Array, "R M"]
    deviations: Float[Array, "R M"]
    counts: Int[Array, "R"]
    ticks: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class ADWIN:
    """Adaptive windowing (Bifet and Gavalda 2007, ADWIN2): a window that grows while nothing changes.

    It loses its oldest numbers as long as two parts of it, n0 old and n1 new numbers, have means that differ by more
    than

    eps = sqrt(2 m v ln(2 ln(n) / delta)) + 2/3 m ln(2 ln(n) / delta),  m = 1 / (n0 - least + 1) + 1 / (n1 - least + 1),

    of n = n0 + n1 numbers with the variance v. The bound is one of numbers of a range of 1, and is used as it is for
    others. Numbers are held in O(log n) buckets: at most `buckets` of each size 1, 2, 4, ...

    Attributes:
      delta: of false alarms. clock: the window is examined once in so many numbers. buckets: of a size, at most; more
        are a finer choice of cuts. least: numbers on either side of a cut, at least. grace: numbers before the first
        alarm.

    Raises:
      ValueError: for values out of range.
    """

    delta: float = 0.002
    clock: int = 32
    buckets: int = 5
    least: int = 5
    grace: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError(f"delta={self.delta} is out of range: use a number between 0 and 1, such as 0.002")
        for name in ("clock", "buckets", "least", "grace"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is out of range: use at least 1")

    def start(self) -> Window:
        """Returns an empty window."""
        empty = jnp.zeros((ROWS, self.buckets + 1), float)
        return Window(empty, empty, jnp.zeros(ROWS, jnp.int32), jnp.zeros((), jnp.int32))

    def update(self, state: Window, value: Float[Array, ""]) -> tuple[Window, Int[Array, ""]]:
        """See `Detector`. A change is said at the number that it is seen at, and the window then holds what came
        after.
        """
        window = self._insert(state, jnp.asarray(value, state.totals.dtype))
        due = (window.ticks % self.clock == 0) & (_sizes(window).sum() > self.grace)
        return jax.lax.cond(due, self._shrink, lambda window: (window, jnp.zeros((), jnp.int32)), window)

    def mean(self, state: Window) -> Float[Array, ""]:
        """Returns the mean of the window; 0 of an empty one."""
        return state.totals.sum() / jnp.maximum(_sizes(state).sum(), 1)

    def width(self, state: Window) -> Float[Array, ""]:
        """Returns how many numbers the window holds."""
        return _sizes(state).sum()

    def _insert(self, window: Window, value: Array) -> Window:
        place = window.counts[0]
        window = Window(
            window.totals.at[0, place].set(value),
            window.deviations.at[0, place].set(0),
            window.counts.at[0].add(1),
            window.ticks + 1,
        )

        def is_full(carry: tuple[Array, Window]) -> Array:
            row, window = carry
            return window.counts[row] > self.buckets

        def merge(carry: tuple[Array, Window]) -> tuple[Array, Window]:
            row, window = carry
            return row + 1, _merge_oldest(window, row)

        return jax.lax.while_loop(is_full, merge, (jnp.zeros((), jnp.int32), window))[1]

    def _shrink(self, window: Window) -> tuple[Window, Array]:
        """Drops the oldest bucket while any cut is one; the change is that of the first cut that was seen."""

        def drop(carry: tuple[Window, Array, Array]) -> tuple[Window, Array, Array]:
            window, cut, change = carry
            window = _drop_oldest(window)
            return window, self._cut(window), jnp.where(change == 0, cut, change)

        cut = self._cut(window)
        window, _, change = jax.lax.while_loop(
            lambda carry: carry[1] != 0, drop, (window, cut, jnp.zeros((), jnp.int32))
        )
        return window, change

    def _cut(self, window: Window) -> Array:
        """The sign of the change at the clearest cut, 0 where there is none."""
        sizes, totals = _sizes(window)[::-1].ravel(), window.totals[::-1].ravel()  # the oldest first
        n0, u0 = jnp.cumsum(sizes), jnp.cumsum(totals)
        n, u = n0[-1], u0[-1]
        n1, u1 = n - n0, u - u0
        means = jnp.where(sizes > 0, totals / jnp.maximum(sizes, 1), 0)
        variance = (window.deviations.sum() + (sizes * jnp.square(means - u / jnp.maximum(n, 1))).sum()) / n
        allowed = (n0 >= self.least) & (n1 >= self.least)
        m = 1 / jnp.where(allowed, n0 - self.least + 1, 1) + 1 / jnp.where(allowed, n1 - self.least + 1, 1)
        log = jnp.log(2 * jnp.log(n) / self.delta)
        least = jnp.sqrt(2 * m * variance * log) + 2 / 3 * log * m
        rise = u1 / jnp.maximum(n1, 1) - u0 / jnp.maximum(n0, 1)
        excess = jnp.where(allowed, jnp.abs(rise) - least, -1)
        clearest = excess.argmax()
        return jnp.where(excess[clearest] > 0, jnp.sign(rise[clearest]), 0).astype(jnp.int32)


def _sizes(window: Window) -> Array:
    """How many numbers each place for a bucket holds, (R, M)."""
    rows, places = window.totals.shape
    sizes = 2.0 ** jnp.arange(rows, dtype=window.totals.dtype)
    return jnp.where(jnp.arange(places)[None] < window.counts[:, None], sizes[:, None], 0)


def _merge_oldest(window: Window, row: Array) -> Window:
    """The two oldest buckets of a row as one of the next; those of the last row are forgotten."""
    totals, deviations = window.totals[row], window.deviations[row]
    size = 2.0 ** row.astype(totals.dtype)
    between = jnp.square(totals[0] - totals[1]) / (2 * size)  # n^2 / (2 n) (u0 / n - u1 / n)^2
    place = window.counts[jnp.minimum(row + 1, ROWS - 1)]
    return Window(
        window.totals.at[row].set(_shift(totals, 2)).at[row + 1, place].set(totals[0] + totals[1], mode="drop"),
        window.deviations.at[row]
        .set(_shift(deviations, 2))
        .at[row + 1, place]
        .set(deviations[0] + deviations[1] + between, mode="drop"),
        window.counts.at[row].add(-2).at[row + 1].add(1, mode="drop"),
        window.ticks,
    )


def _drop_oldest(window: Window) -> Window:
    row = jnp.where(window.counts > 0, jnp.arange(ROWS), 0).max()
    return Window(
        window.totals.at[row].set(_shift(window.totals[row], 1)),
        window.deviations.at[row].set(_shift(window.deviations[row], 1)),
        window.counts.at[row].add(-1),
        window.ticks,
    )


def _shift(values: Array, count: int) -> Array:
    return jnp.concatenate([values[count:], jnp.zeros(count, values.dtype)])


class PageSums(NamedTuple):
    """What `PageHinkley` carries: how many numbers, their mean, and the two sums with their extremes."""

    numbers: Int[Array, ""]
    mean: Float[Array, ""]
    rising: Float[Array, ""]
    lowest: Float[Array, ""]
    falling: Float[Array, ""]
    highest: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class PageHinkley:
    """The test of Page (1954) with a mean that is estimated (Hinkley 1971).

    With M_t the mean of x_1..x_t,

    U_t = alpha U_{t-1} + x_t - M_t - delta says that the mean has risen where U_t - min U > threshold,
    D_t = alpha D_{t-1} + x_t - M_t + delta that it has fallen where max D - D_t > threshold.

    After a change it begins anew.

    Attributes:
      delta: changes of the mean that are allowed, in units of x. threshold: in the same units. alpha: forgetting of the
        sums, 1: none. least: numbers before the first alarm. two_sided: whether a fall is a change too.

    Raises:
      ValueError: for values out of range.
    """

    delta: float = 0.005
    threshold: float = 50.0
    alpha: float = 0.9999
    least: int = 30
    two_sided: bool = True

    def __post_init__(self) -> None:
        if not (self.delta >= 0 and self.threshold > 0 and 0 < self.alpha <= 1 and self.least >= 1):
            raise ValueError(
                f"delta={self.delta}, threshold={self.threshold}, alpha={self.alpha}, least={self.least} are out of "
                "range: use delta >= 0, threshold > 0, 0 < alpha <= 1 and least >= 1"
            )

    def start(self) -> PageSums:
        """Returns the sums of no numbers."""
        zero = jnp.zeros((), float)
        return PageSums(jnp.zeros((), jnp.int32), zero, zero, zero + math.inf, zero, zero - math.inf)

    def update(self, state: PageSums, value: Float[Array, ""]) -> tuple[PageSums, Int[Array, ""]]:
        """See `Detector`."""
        count = state.numbers + 1
        mean = state.mean + (value - state.mean) / count
        rising = self.alpha * state.rising + value - mean - self.delta
        falling = self.alpha * state.falling + value - mean + self.delta
        lowest, highest = jnp.minimum(state.lowest, rising), jnp.maximum(state.highest, falling)
        ready = count >= self.least
        rose = ready & (rising - lowest > self.threshold)
        fell = ready & (highest - falling > self.threshold) & self.two_sided
        after = PageSums(count, mean, rising, lowest, falling, highest)
        after = jax.tree.map(lambda old, new: jnp.where(rose | fell, new, old), after, self.start())
        return after, jnp.where(rose, RISE, jnp.where(fell, FALL, 0)).astype(jnp.int32)
