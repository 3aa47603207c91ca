"""Tasks whose answer and entropy are known. Every example is a function of (seed, split, number) alone."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data.pipeline import SPLITS, Batch, Dataset, in_order, shuffled_rows
from selssm_jax.errors import InputError

Example = Callable[[Data, np.random.Generator], tuple[np.ndarray, np.ndarray, np.ndarray]]


def dataset(config: Data) -> Dataset:
    """Returns the synthetic task that data.source names."""
    task, example, optimum = TASKS[config.source](config)
    source = _Drawn(config, example)
    info = {"source": config.source, "optimum": optimum}
    vocabulary = tuple(_symbol(index) for index in range(task.vocab))
    return Dataset(task, source.draw, source.cover, info, lambda split: {"optimal": optimum}, vocabulary=vocabulary, separator=" " if task.vocab else "")


@dataclasses.dataclass(frozen=True)
class _Drawn:
    config: Data
    example: Example

    def draw(self, seed: int, number: int, batch_size: int) -> Batch:
        return self._take("train", shuffled_rows(seed, number, batch_size, self.config.train_examples))

    def cover(self, split: str, batch_size: int) -> Iterator[Batch]:
        count = self.config.train_examples if split == "train" else self.config.eval_examples
        return in_order(count, batch_size, lambda rows: self._take(split, rows))

    def _take(self, split: str, rows: np.ndarray) -> Batch:
        key = (self.config.seed, SPLITS.index(split))
        examples = [self.example(self.config, np.random.default_rng((*key, row))) for row in rows]
        inputs, targets, weights = (np.stack(part) for part in zip(*examples, strict=True))
        return {"inputs": inputs, "targets": targets, "weights": weights, "valid": np.ones(inputs.shape[:2], bool)}


def _selective_copying(config: Data) -> tuple[Task, Example, dict[str, float]]:
    """`tokens` symbols strewn over `length` blanks, then as many marks, at which they are to be said in order (Gu and Dao 2023).

    Vocabulary: `vocab` symbols, a blank, a mark. Each answer has entropy log(vocab) given the marks alone, and 0 given all.
    """
    if config.tokens > config.length:
        raise InputError(f"data.tokens={config.tokens} do not fit into data.length={config.length} steps: use fewer tokens or a longer sequence")
    blank, mark, total = config.vocab, config.vocab + 1, config.length + config.tokens

    def example(config: Data, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        symbols = rng.integers(0, config.vocab, config.tokens)
        inputs = np.full(total, blank, np.int32)
        inputs[config.length :] = mark
        inputs[np.sort(rng.choice(config.length, config.tokens, replace=False))] = symbols
        return _answered(inputs, config.length, symbols)

    return Task("language", vocab=config.vocab + 2, length=total), example, {"nats": 0.0, "accuracy": 1.0}


def _induction_heads(config: Data) -> tuple[Task, Example, dict[str, float]]:
    """Random symbols; a mark occurs once inside and once at the end, where the symbol that followed it is to be said.

    Vocabulary: `vocab` symbols and the mark (Olsson et al. 2022; Gu and Dao 2023).
    """
    if config.length < 4:
        raise InputError(f"data.length={config.length} is too short for induction: use at least 4")
    mark = config.vocab

    def example(config: Data, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = rng.integers(0, config.vocab, config.length).astype(np.int32)
        place = rng.integers(0, config.length - 2)
        inputs[place] = inputs[-1] = mark
        return _answered(inputs, config.length - 1, inputs[place + 1 : place + 2])

    return Task("language", vocab=config.vocab + 1, length=config.length), example, {"nats": 0.0, "accuracy": 1.0}


def _delayed_recall(config: Data) -> tuple[Task, Example, dict[str, float]]:
    """Random symbols; at every step that which was read `lag` steps before is to be said."""
    if config.lag >= config.length:
        raise InputError(f"data.lag={config.lag} reaches before the start of data.length={config.length} steps: use a smaller lag or a longer sequence")

    def example(config: Data, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = rng.integers(0, config.vocab, config.length).astype(np.int32)
        return _answered(inputs, config.lag, inputs[: config.length - config.lag])

    return Task("language", vocab=config.vocab, length=config.length), example, {"nats": 0.0, "accuracy": 1.0}


DECAY = 0.9  # of the hidden state of linear_gaussian


def _linear_gaussian(config: Data) -> tuple[Task, Example, dict[str, float]]:
    """z_t = DECAY z_{t-1} + e_t with var z = 1, observed as x_t = z_t + n_t, var n = `noise`; the next `horizon` x are to be said.

    The least mean squared error is that of the Kalman filter after `length` observations.
    """

    def example(config: Data, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        total = config.length + config.horizon
        drive = np.sqrt(1 - DECAY**2) * rng.standard_normal(total)
        drive[0] = rng.standard_normal()
        kernel = DECAY ** np.arange(total)
        x = np.convolve(drive, kernel)[:total] + np.sqrt(config.noise) * rng.standard_normal(total)
        x = x.astype(np.float32)[:, None]
        return x[: config.length], x[config.length :], np.float32(1)

    task = Task("forecasting", channels=1, length=config.length, horizon=config.horizon)
    return task, example, {"mse": _kalman_error(config)}


def _kalman_error(config: Data) -> float:
    """Mean over the horizon of the error of the optimal forecast, by the Riccati recursion."""
    variance = 1.0  # of z given the observations so far
    for _ in range(config.length):
        variance = variance * config.noise / (variance + config.noise) if config.noise else 0.0
        last, variance = variance, DECAY**2 * variance + 1 - DECAY**2
    ahead = np.arange(1, config.horizon + 1)
    return float((DECAY ** (2 * ahead) * last + 1 - DECAY ** (2 * ahead) + config.noise).mean())


TASKS = {
    "selective_copying": _selective_copying,
    "induction_heads": _induction_heads,
    "delayed_recall": _delayed_recall,
    "linear_gaussian": _linear_gaussian,
}


def _answered(inputs: np.ndarray, start: int, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets that are scored from step `start` on, where they are `answers`."""
    targets, weights = np.zeros_like(inputs), np.zeros(len(inputs), np.float32)
    targets[start : start + len(answers)], weights[start : start + len(answers)] = answers, 1
    return inputs, targets, weights


def _symbol(index: int) -> str:
    return str(index)
