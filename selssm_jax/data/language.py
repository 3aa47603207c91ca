"""Text as tokens: vocabularies, random training windows, streams for evaluation, entropy baselines."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data.pipeline import Batch, Dataset
from selssm_jax.errors import InputError

CUTS = (0.85, 0.9)  # train | validation | test of a text without a split of its own: train + validation is its first 90 %


def cut(text: str) -> dict[str, str]:
    """Returns the splits of a text in reading order: 85 % training, 5 % validation, 10 % test."""
    first, second = (int(share * len(text)) for share in CUTS)
    return {"train": text[:first], "validation": text[first:second], "test": text[second:]}


def words(text: str) -> list[str]:
    """Returns the words of a text, with <eos> at every line's end."""
    return [word for line in text.splitlines() for word in (*line.split(), "<eos>")]


def dataset(config: Data, texts: Mapping[str, str], vocabulary: tuple[str, ...] | None, info: Mapping[str, object]) -> Dataset:
    """Returns the language task of three texts; `vocabulary` is that of a training run, else it is read off the texts.

    Raises:
      InputError: for a text shorter than a window, or with tokens that the vocabulary lacks.
    """
    tokens = {split: words(text) if config.level == "word" else list(text) for split, text in texts.items()}
    if vocabulary is None:
        vocabulary = tuple(sorted(set(tokens["train"]).union(*(tokens.values() if config.level == "character" else ()))))
    streams = {split: _encode(found, vocabulary, split) for split, found in tokens.items()}
    source = _Streams(config.length, _joined(streams, config.train_on), streams)
    source.check()
    sizes = {f"{split}_tokens": len(stream) for split, stream in streams.items()}
    return Dataset(
        task=Task("language", vocab=len(vocabulary), length=config.length),
        draw=source.draw,
        cover=source.cover,
        info={**info, **sizes, "level": config.level, "train_on": config.train_on},
        baselines=source.baselines,
        carries=True,
        vocabulary=vocabulary,
        separator=" " if config.level == "word" else "",
    )


@dataclasses.dataclass(frozen=True)
class _Streams:
    length: int
    train: np.ndarray
    splits: Mapping[str, np.ndarray]

    def check(self) -> None:
        for split, stream in {"train": self.train, **self.splits}.items():
            if len(stream) < 2 or (split == "train" and len(stream) <= self.length):
                raise InputError(f"the text's {split} split has {len(stream)} tokens, data.length={self.length} needs more: use a longer text or a shorter data.length")

    def draw(self, seed: int, number: int, batch_size: int) -> Batch:
        """Windows that begin anywhere in the training text."""
        starts = np.random.default_rng((seed, number)).integers(0, len(self.train) - self.length, batch_size)
        return _language_batch(self.train[starts[:, None] + np.arange(self.length + 1)[None]])

    def cover(self, split: str, batch_size: int) -> Iterator[Batch]:
        """`batch_size` streams side by side, in windows; every token but the first is predicted once."""
        stream = self.splits[split]
        targets = len(stream) - 1
        rows = -(-targets // batch_size)
        windows = -(-rows // self.length)
        place = np.arange(batch_size)[:, None] * rows + np.arange(windows * self.length + 1)[None]
        within = np.arange(windows * self.length)[None] < np.clip(targets - np.arange(batch_size)[:, None] * rows, 0, rows)
        padded = stream[np.minimum(place, targets)]
        for start in range(0, windows * self.length, self.length):
            batch = _language_batch(padded[:, start : start + self.length + 1])
            counted = within[:, start : start + self.length]
            yield {**batch, "weights": counted.astype(np.float32), "valid": counted}

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """Cross-entropy of token frequencies and of pairs on the split, counted on training text (add 0.01; pairs back off)."""
        vocab = int(max(stream.max() for stream in (self.train, *self.splits.values()))) + 1
        unigram = np.bincount(self.train, minlength=vocab) + 0.01
        unigram /= unigram.sum()
        stream = self.splits[split]
        pair, count = np.unique(self.train[:-1].astype(np.int64) * vocab + self.train[1:], return_counts=True)
        before = np.bincount(self.train[:-1], minlength=vocab)
        key = stream[:-1].astype(np.int64) * vocab + stream[1:]
        place = np.minimum(np.searchsorted(pair, key), len(pair) - 1)
        seen = np.where(pair[place] == key, count[place], 0)
        strength = 5.0  # of the unigram prior, in counts
        bigram = (seen + strength * unigram[stream[1:]]) / (before[stream[:-1]] + strength)
        return {"unigram entropy": {"nats": float(-np.log(unigram[stream[1:]]).mean())}, "bigram entropy": {"nats": float(-np.log(bigram).mean())}}


def _joined(streams: Mapping[str, np.ndarray], train_on: str) -> np.ndarray:
    return streams["train"] if train_on == "train" else np.concatenate([streams["train"], streams["validation"]])


def _language_batch(tokens: np.ndarray) -> Batch:
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    return {"inputs": inputs, "targets": targets, "weights": np.ones(inputs.shape, np.float32), "valid": np.ones(inputs.shape, bool)}


def _encode(tokens: list[str], vocabulary: tuple[str, ...], split: str) -> np.ndarray:
    number = {token: index for index, token in enumerate(vocabulary)}
    unknown = number.get("<unk>")
    encoded = [number.get(token, unknown) for token in tokens]
    if None in encoded:
        missing = sorted({token for token, index in zip(tokens, encoded, strict=True) if index is None})
        shown = ", ".join(repr(token) for token in missing[:10])
        raise InputError(
            f"the text's {split} split has {len(missing)} token(s) that the training vocabulary lacks, the first at position "
            f"{encoded.index(None)}: {shown}; replace them in the file, or train on text that has them"
        )
    return np.array(encoded, np.int32)
