"""From arrays to batches: endless, shuffled, resumable training batches, and batches that cover a split exactly once.

A training batch is a pure function of (seed, number of the batch), so that the order survives any interruption. Grain
runs that function ahead of time and keeps the iterator's state.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import grain
import jax
import numpy as np

from selssm_jax.config import Task

Batch = dict[str, np.ndarray]
SPLITS = ("train", "validation", "test")


class Batches(Protocol):
    """An endless iterator whose state is a JSON value."""

    def __next__(self) -> Batch: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A task and its examples.

    Attributes:
      task: what it asks of a model.
      draw: (seed, number) -> the training batch of that number, `batch_size` rows of it.
      cover: (split, batch_size) -> batches that cover a split once; rows that fill the last one have weight 0.
      carries: whether row b of a covering batch goes on where row b of the one before ended.
      info: a JSON value saved with the run: vocabulary, scaling, sizes, origin.
      baselines: split -> {name: metrics} of rivals that need no training, or of the known optimum.
      vocabulary: the token names of a language task.
    """

    task: Task
    draw: Callable[[int, int, int], Batch]
    cover: Callable[[str, int], Iterator[Batch]]
    info: Mapping[str, Any]
    baselines: Callable[[str], dict[str, dict[str, float]]]
    carries: bool = False
    vocabulary: tuple[str, ...] = ()
    separator: str = ""

    def train(self, batch_size: int, *, seed: int) -> Batches:
        """Returns the endless training batches of a seed; a process of several draws its own share of the rows."""

        def load(number: int) -> Batch:
            batch = self.draw(seed, int(number), batch_size)
            return {name: rows[jax.process_index() :: jax.process_count()] for name, rows in batch.items()}

        numbers = grain.MapDataset.range(2**40).map(load)
        return iter(numbers.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))

    def evaluate(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Returns batches that cover `split` exactly once."""
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is unknown: use one of {', '.join(SPLITS)}")
        return self.cover(split, batch_size)

    def metadata(self) -> dict[str, Any]:
        """Returns what a run must remember of its data, as JSON."""
        return {"task": dataclasses.asdict(self.task), "vocabulary": list(self.vocabulary), "separator": self.separator, **self.info}

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of a sequence of tokens."""
        return self.separator.join(self.vocabulary[token] for token in np.asarray(tokens).ravel())

    def encode(self, text: str) -> np.ndarray:
        """Returns the tokens of a text; the inverse of `decode` for text of this vocabulary."""
        number = {token: index for index, token in enumerate(self.vocabulary)}
        return np.array([number[token] for token in (text.split(self.separator) if self.separator else text)], np.int32)


def shuffled_rows(seed: int, number: int, batch_size: int, count: int) -> np.ndarray:
    """Returns the rows of a batch in an endless shuffle: every epoch is a permutation of its own, and none is skipped."""
    position = number * batch_size + np.arange(batch_size)
    epochs, places = np.divmod(position, count)
    orders = {epoch: np.random.default_rng((seed, epoch)).permutation(count) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)])


def in_order(count: int, batch_size: int, take: Callable[[np.ndarray], Batch]) -> Iterator[Batch]:
    """Yields batches of rows 0..count-1; the last is filled up with repetitions of weight 0."""
    for start in range(0, count, batch_size):
        rows = np.arange(start, start + batch_size)
        batch = take(np.minimum(rows, count - 1))
        present = (rows < count).astype(np.float32)
        batch["weights"] = batch["weights"] * present.reshape(-1, *[1] * (batch["weights"].ndim - 1))
        yield batch
