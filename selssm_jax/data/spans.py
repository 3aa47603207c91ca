"""Numbers in runs, each of numbers that follow one another: the first rows of the windows of one or several series."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Spans(NamedTuple):
    """The numbers first, ..., first + count - 1 of every run, one run after the other.

    Attributes:
      firsts, counts: of the runs. ends: the sums of counts so far.
    """

    firsts: np.ndarray
    counts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, runs: Iterable[tuple[int, int]]) -> "Spans":
        """Returns the runs (first, count), without those that have none."""
        there = np.array([(first, count) for first, count in runs if count > 0], np.int64).reshape(-1, 2)
        return cls(there[:, 0], there[:, 1], np.cumsum(there[:, 1]))

    @classmethod
    def join(cls, spans: Sequence["Spans"]) -> "Spans":
        """Returns the numbers of all, one after the other; runs that go on are one."""
        firsts, counts = (
            np.concatenate([[], *(getattr(part, name) for part in spans)]).astype(np.int64)
            for name in ("firsts", "counts")
        )
        begins = np.flatnonzero(np.append(True, firsts[1:] != firsts[:-1] + counts[:-1])[: len(firsts)])
        counts = np.add.reduceat(counts, begins) if begins.size else counts
        return cls(firsts[begins], counts, np.cumsum(counts))

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return int(self.ends[-1]) if self.ends.size else 0

    def at(self, places: np.ndarray) -> np.ndarray:
        """Returns the numbers at places from 0 on."""
        run = np.searchsorted(self.ends, places, side="right")
        return self.firsts[run] + places - (self.ends[run] - self.counts[run])

    def runs(self, most: int) -> Iterator[tuple[int, int]]:
        """Yields (first, count) of every run, those of more than `most` in parts."""
        for first, count in zip(self.firsts.tolist(), self.counts.tolist(), strict=True):
            for begun in range(0, count, most):
                yield first + begun, min(most, count - begun)


def spans_of(starts: np.ndarray | Spans) -> Spans:
    """Returns the runs that rising numbers are made of."""
    if isinstance(starts, Spans):
        return starts
    breaks = np.flatnonzero(np.diff(starts) != 1) + 1
    return Spans.of((int(run[0]), len(run)) for run in np.split(starts, breaks) if len(run))
