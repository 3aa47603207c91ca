"""Text as examples: random training windows, streams for evaluation, entropy baselines."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data import counter, vocabulary
from selssm_jax.data.pipeline import SPLITS, Batch, Dataset
from selssm_jax.errors import InputError

CUTS = (0.85, 0.9)  # train | validation | test of a text without a split of its own: train + validation is its first 90 %
UNIGRAM_COUNT = 0.01  # added to the count of every token
BIGRAM_COUNT = 5.0  # weight of the unigram distribution in that of the next token, in counts


def dataset(config: Data, text: str | Mapping[str, str], known: tuple[str, ...] | None, info: Mapping[str, object], tokenizer: str = "") -> Dataset:
    """Returns the language task of a text.

    Args:
      config: what a token is (level), the window (length), and what is trained on.
      text: one text, cut in reading order at 85 % and 90 % of its tokens, or the three splits.
      known: the vocabulary of a training run, else it is read off the text.
      info: goes into the metadata; names the text in errors.
      tokenizer: of subwords; see `vocabulary.tokenise`.

    Raises:
      InputError: for a text shorter than a window, or with tokens that the vocabulary lacks.
    """
    name = str(info.get("file") or info["source"])
    streams, names = _encoded(config.level, text, known, name, tokenizer)
    _check(name, streams, config.length)
    train = streams["train"] if config.train_on == "train" else np.concatenate([streams["train"], streams["validation"]])
    source = _Streams(config.length, len(names), train, streams)
    return Dataset(
        task=Task("language", vocab=len(names), length=config.length),
        draw=source.draw,
        cover=source.cover,
        info={**info, **{f"{split}_tokens": len(stream) for split, stream in streams.items()}, "train_on": config.train_on},
        baselines=source.baselines,
        carries=True,
        vocabulary=names,
        level=config.level,
        tokenizer=tokenizer,
    )


@dataclasses.dataclass(frozen=True)
class _Streams:
    length: int
    vocab: int
    train: np.ndarray
    splits: Mapping[str, np.ndarray]

    def draw(self, seed: int, numbers: np.ndarray) -> Batch:
        """Windows that begin anywhere in the training text."""
        starts = (counter.uniform((seed,), numbers, 1) * (len(self.train) - self.length)).astype(np.int64)
        return _language_batch(self.train[starts + np.arange(self.length + 1)[None]])

    def cover(self, split: str, batch_size: int) -> Iterator[Batch]:
        """`batch_size` streams side by side, in windows; every token but the first is predicted once."""
        stream = self.splits[split]
        last = len(stream) - 1
        rows = -(-last // batch_size)
        starts = np.arange(batch_size)[:, None] * rows
        ends = np.minimum(starts + rows, last)
        for first in range(0, rows, self.length):
            place = starts + first + np.arange(self.length + 1)[None]
            counted = place[:, :-1] < ends
            yield {**_language_batch(stream[np.minimum(place, last)]), "weights": counted.astype(np.float32), "valid": counted}

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """Cross-entropy of the split in nats a token, under frequencies of tokens and of pairs counted on the training text.

        p(x) = (n(x) + a) / sum, and p(y | x) = (n(x, y) + b p(y)) / (n(x) + b), with a = UNIGRAM_COUNT and b = BIGRAM_COUNT.
        """
        before, after = self.splits[split][:-1].astype(np.int64), self.splits[split][1:]
        counts = np.bincount(self.train, minlength=self.vocab)
        unigram = (counts + UNIGRAM_COUNT) / (counts + UNIGRAM_COUNT).sum()
        pairs, seen = np.unique(self.train[:-1].astype(np.int64) * self.vocab + self.train[1:], return_counts=True)
        place = np.minimum(np.searchsorted(pairs, before * self.vocab + after), len(pairs) - 1)
        together = np.where(pairs[place] == before * self.vocab + after, seen[place], 0)
        followed = np.bincount(self.train[:-1], minlength=self.vocab)
        bigram = (together + BIGRAM_COUNT * unigram[after]) / (followed[before] + BIGRAM_COUNT)
        return {name: {"nats": float(-np.log(p).mean())} for name, p in (("unigram entropy", unigram[after]), ("bigram entropy", bigram))}


def cut(sequence: Any) -> dict[str, Any]:
    """Returns the splits of anything that has a length and slices, in reading order: 85 % training, 5 % validation, 10 % test."""
    marks = [0, *(int(share * len(sequence)) for share in CUTS), len(sequence)]
    return {split: sequence[first:last] for split, first, last in zip(SPLITS, marks[:-1], marks[1:], strict=True)}


def _encoded(
    level: str, text: str | Mapping[str, str], known: tuple[str, ...] | None, name: str, tokenizer: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    if isinstance(text, str):
        whole = vocabulary.tokenise(text, level, tokenizer)
        names = known or vocabulary.build(cut(whole), level)
        return cut(vocabulary.encode(whole, names, name)), names
    parts = {split: vocabulary.tokenise(part, level, tokenizer) for split, part in text.items()}
    names = known or vocabulary.build(parts, level)
    return {split: vocabulary.encode(part, names, f"the {split} split of {name}") for split, part in parts.items()}, names


def _check(name: str, streams: Mapping[str, np.ndarray], length: int) -> None:
    for split, stream in streams.items():
        least = length + 1 if split == "train" else 2
        if len(stream) < least:
            raise InputError(
                f"the {split} split of {name} has {len(stream)} tokens, data.length={length} needs at least {least}: use a longer text or a shorter data.length"
            )


def _language_batch(tokens: np.ndarray) -> Batch:
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    return {"inputs": inputs, "targets": targets, "weights": np.ones(inputs.shape, np.float32), "valid": np.ones(inputs.shape, bool)}
