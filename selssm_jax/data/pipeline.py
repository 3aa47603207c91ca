"""From arrays to batches: endless, shuffled, resumable training batches, and batches that cover a split exactly once.

Training example number n of a seed is a function of (seed, n) alone: neither the batch size, nor the number of
processes, nor an interruption changes it. Grain draws whole batches ahead of time and keeps the iterator's state.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np

from selssm_jax.config import Task
from selssm_jax.data import vocabulary as vocabularies
from selssm_jax.errors import InputError

Batch = dict[str, np.ndarray]
SPLITS = ("train", "validation", "test")
LISTED, ROUNDS = 1 << 24, 6  # examples whose order is listed; of a network that orders more
WHOLE = "whole"  # every split together: another file than the run's own is evaluated so


@runtime_checkable
class Batches(Protocol):
    """An endless iterator whose state is a JSON value."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """Returns where the iterator is."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from where another iterator was, bit for bit."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A task and its examples.

    A batch is a dictionary of arrays with B rows: `inputs` (B, T) int32 tokens or (B, T, C) float32; `targets` (B, T)
    tokens, (B,) classes or (B, H, C) values; `weights` float32, (B, T) for tokens, else (B,), 0 where nothing is
    scored; `valid` (B, T) bool, False on the padded end of a row; optionally `reset` (B, T) bool, True where another
    document begins in a packed row, and `course` (B, T + H, C), what was taken off inputs and targets of a series as
    its cycle.

    Attributes:
      task: what it asks of a model.
      draw: (seed, numbers) -> the training examples of these numbers, as a batch.
      cover: (split, batch_size) -> batches that cover a split once; rows that fill the last one have weight 0.
      is_stream: whether row b of a covering batch goes on where row b of the one before ended.
      info: a JSON value saved with the run: vocabulary, scaling, sizes, origin.
      baselines: split -> {name: metrics} of rivals that need no training, or of the known optimum.
      vocabulary: the token names of a language task. level: what a token of a text is (`vocabulary.tokenise`).
      tokenizer: what makes subwords, the content of a tokenizer.json; empty for other levels.
      sizes: examples of each split, where they are counted.
      reading: of a file of one's own, what was read, kept, cut and left out, in one line.
    """

    task: Task
    draw: Callable[[int, np.ndarray], Batch]
    cover: Callable[[str, int], Iterator[Batch]]
    info: Mapping[str, Any]
    baselines: Callable[[str], dict[str, dict[str, float]]]
    is_stream: bool = False
    vocabulary: tuple[str, ...] = ()
    level: str = "character"
    tokenizer: str = ""
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    reading: str = ""

    def train(self, batch_size: int, *, seed: int) -> Batches:
        """Returns the endless training batches of a seed; each of several processes draws its share of the rows, one
        after the other in the order of the processes.

        Raises:
          InputError: where the processes cannot share a batch equally.
        """
        process, processes = jax.process_index(), jax.process_count()
        if batch_size % processes:
            raise InputError(
                f"data.batch_size={batch_size} cannot be shared by {processes} processes: use a multiple of {processes}"
            )
        rows = np.arange(batch_size).reshape(processes, -1)[process]
        return _TrainBatches(functools.partial(self.draw, seed), batch_size, rows)

    def evaluate(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Returns batches that cover `split` exactly once. Raises InputError where it has no example."""
        if split not in (*SPLITS, WHOLE):
            raise ValueError(f"split={split!r} is unknown: use one of {', '.join((*SPLITS, WHOLE))}")
        self.check(split)
        return self.cover(split, batch_size)

    def check(self, split: str) -> None:
        """Raises InputError where a split has no example."""
        name = self.info.get("file") or self.info.get("source")
        if split == WHOLE and WHOLE not in self.sizes:
            raise InputError(f"{name} has splits of its own: evaluate one of {', '.join(SPLITS)}")
        if not self.sizes.get(split, 1):
            raise InputError(
                f"the {split} split of {name} is too small for one example: evaluate --split={WHOLE}, or give more data"
            )

    def metadata(self) -> dict[str, Any]:
        """Returns what a run must remember of its data, as JSON."""
        names = {"vocabulary": list(self.vocabulary), "separator": self.separator, "level": self.level}
        return {
            "task": self.task.describe(),
            **names,
            **({"tokenizer": self.tokenizer} if self.tokenizer else {}),
            **self.info,
        }

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of a sequence of tokens."""
        return vocabularies.decode(tokens, self.vocabulary, self.level, self.tokenizer)

    def encode(self, text: str) -> np.ndarray:
        """Returns the tokens of a text; the inverse of `decode`. Raises InputError for what the vocabulary lacks."""
        return vocabularies.encode(
            vocabularies.tokenise(text, self.level, self.tokenizer), self.vocabulary, "the text"
        ).astype(np.int32)

    @property
    def separator(self) -> str:
        """What stands between tokens in a text: a space between words, else nothing."""
        return " " if self.level == "word" else ""


class _TrainBatches:
    """Batch k has the examples first + k batch_size and on, of which this process has some `rows`.

    first: less than a batch, 0 but for a run that went on with another batch size; see `resize_state`.
    """

    def __init__(self, draw: Callable[[np.ndarray], Batch], batch_size: int, rows: np.ndarray) -> None:
        self._draw, self._batch_size, self._rows = draw, batch_size, rows
        self._begin(0)

    def __next__(self) -> Batch:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state() | ({"first": self._first} if self._first else {})

    def set_state(self, state: dict[str, Any]) -> None:
        if state.get("first", 0) != self._first:
            self._begin(state.get("first", 0))
        self._batches.set_state({name: value for name, value in state.items() if name != "first"})

    def _begin(self, first: int) -> None:
        def load(number: int) -> Batch:
            return self._draw(first + int(number) * self._batch_size + self._rows)

        batches = grain.MapDataset.range(2**40).map(load)
        self._first = first
        self._batches = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def count_examples(state: Mapping[str, int], batch_size: int) -> int:
    """Returns how many examples training batches in this state have had."""
    return state.get("first", 0) + state["next_index"] * batch_size


def resize_state(state: Mapping[str, int], old: int, new: int) -> dict[str, int]:
    """Returns the state in which training batches of `new` examples go on after those of `old`: no example is left out,
    and none comes again.
    """
    following, first = divmod(count_examples(state, old), new)
    return {"next_index": following} | ({"first": first} if first else {})


def shuffled_rows(seed: int, numbers: np.ndarray, count: int) -> np.ndarray:
    """Returns the rows of examples in an endless shuffle: every epoch is a permutation of its own, and none is
    skipped.
    """
    epochs, places = np.divmod(numbers, count)
    rows = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = (
            _order(seed, int(epoch), count)[places[here]]
            if count <= LISTED
            else _scatter(seed, int(epoch), places[here], count)
        )
    return rows


def _scatter(seed: int, epoch: int, places: np.ndarray, count: int) -> np.ndarray:
    """Places in a permutation of numbers that are too many to list: a Feistel network over pairs of half as many bits,
    gone through again where it leads out of them.
    """
    half = np.uint64(-(-(count - 1).bit_length() // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.default_rng((seed, epoch)).integers(2**63, size=ROUNDS, dtype=np.uint64)
    numbers = places.astype(np.uint64)
    outside = np.ones(len(numbers), bool)
    while outside.any():
        left, right = numbers[outside] >> half, numbers[outside] & low
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & low)
        numbers[outside] = (left << half) | right
        outside = numbers >= count
    return numbers.astype(np.int64)


def _mix(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)


def in_order(count: int, batch_size: int, take: Callable[[np.ndarray], Batch]) -> Iterator[Batch]:
    """Yields batches of rows 0..count-1; the last is filled up with repetitions of weight 0."""
    for start in range(0, count, batch_size):
        rows = np.arange(start, start + batch_size)
        batch = take(np.minimum(rows, count - 1))
        present = (rows < count).astype(np.float32)
        batch["weights"] = batch["weights"] * present.reshape(-1, *[1] * (batch["weights"].ndim - 1))
        yield batch
